//! S6, S7: a signer with two devices loses one of them, goes on, and claims no destruction before it is back.

mod support;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, ensure};
use spark_devnet::{
    exposition::Exposition,
    http,
    member::{OF_TWO_DEVICES, SECOND},
    network::Devnet,
    wallet::{WalletCommand, number},
};
use support::{deposit, eventually, network, transfer};

const OPERATOR: usize = OF_TWO_DEVICES as usize;

/// Folder of the token with the second device's roots.
fn second_token(devnet: &Devnet) -> anyhow::Result<PathBuf> {
    let tokens = devnet.members()[OPERATOR].tokens().tokens_path();
    for token in fs::read_dir(tokens)? {
        let token = token?.path();
        let content = fs::read(token.join("token.object"))?;
        if content.windows(SECOND.len()).any(|window| window == SECOND.as_bytes()) {
            return Ok(token);
        }
    }
    anyhow::bail!("no token {SECOND}")
}

async fn gauge(devnet: &Devnet, family: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
    let url = format!("{}/metrics", devnet.members()[OPERATOR].signer_http_url());
    let exposition = Exposition::parse(&http::get(&url).await?)?;
    Ok(exposition.sum(family, labels))
}

async fn state(devnet: &Devnet, device: &str, state: &str) -> anyhow::Result<bool> {
    let value = gauge(devnet, "spark_signer_device_state", &[("device", device), ("state", state)]).await?;
    Ok(value > 0.5)
}

/// How many destructions of the leaf's key the operator has confirmed, as the owner's wallet sees it.
async fn confirmed(wallet: &WalletCommand, leaf: &str) -> anyhow::Result<u64> {
    let list = wallet.run(&["receipts", leaf]).await?;
    let views = list.pointer("/items/0/by_operator").and_then(|v| v.as_array()).context("no verdict")?;
    number(views.get(OPERATOR).context("no view")?, "confirmed")
}

#[tokio::test(flavor = "multi_thread")]
async fn s6_nothing_is_called_destroyed_while_a_device_is_away() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", OF_TWO_DEVICES).await?;
    let leaf = deposit(&devnet, &alice, 70_000).await?;
    transfer(&alice, &bob, 70_000).await?;
    eventually("both have forgotten", || async { Ok(confirmed(&bob, &leaf).await? == 2) }).await?;
    ensure!(state(&devnet, "0", "serving").await? && state(&devnet, "1", "serving").await?);

    let token = second_token(&devnet)?;
    let aside = devnet.members()[OPERATOR].dir().join("aside");
    ensure!(std::process::Command::new("mv").arg(&token).arg(&aside).status()?.success());
    // Work goes on, without a restart.
    transfer(&bob, &alice, 70_000).await?;
    ensure!(state(&devnet, "1", "away").await?, "it failed when it was needed");
    let alarm = gauge(&devnet, "spark_signer_alarms_active", &[("kind", "device_away")]).await?;
    ensure!(alarm > 0.5, "no alarm");
    let other = [("device", "0")];
    eventually("the other one has forgotten", || async {
        let epoch = gauge(&devnet, "spark_signer_root_epoch", &[]).await?;
        Ok(gauge(&devnet, "spark_signer_device_destroyed_before_epoch", &other).await? == epoch)
    })
    .await?;
    ensure!(confirmed(&alice, &leaf).await? == 2, "destroyed on one device, pending on the other");

    ensure!(std::process::Command::new("mv").arg(&aside).arg(&token).status()?.success());
    eventually("it is back", || async { state(&devnet, "1", "serving").await }).await?;
    eventually("all is destroyed", || async { Ok(confirmed(&alice, &leaf).await? == 4) }).await?;
    let alarm = gauge(&devnet, "spark_signer_alarms_active", &[("kind", "device_away")]).await?;
    ensure!(alarm < 0.5, "the alarm stays");
    transfer(&alice, &bob, 70_000).await
}
