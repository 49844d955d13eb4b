//! S6, S7: a signer with two devices loses one of them, goes on, and claims no destruction before it is back.

use std::{fs, path::PathBuf};

use spark_proto::log::v1::{
    LeafReceipts, WatchLeavesRequest, WatchLeavesResponse, watch_leaves_response::Event,
};
use spark_wallet::{Wallet, client::ClientError};
use tonic::{Code, Streaming};

use crate::support::{deposit, eventually, network, people, transfer};
use anyhow::{Context as _, ensure};
use spark_devnet::{
    exposition::Exposition,
    http,
    member::{OF_TWO_DEVICES, SECOND},
    network::Devnet,
    wallet::{WalletCommand, number},
};

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

/// A stream about a leaf at the operator of two devices.
async fn listen(wallet: &Wallet, leaf: &str) -> Result<Streaming<WatchLeavesResponse>, ClientError> {
    let request = WatchLeavesRequest { leaf_ids: vec![leaf.to_owned()] };
    let operators = wallet.operators();
    let operator = operators.all().get(OPERATOR).unwrap_or_else(|| operators.coordinator());
    operator.log(wallet.keys().identity(), request, |mut c, r| async move { c.watch_leaves(r).await }).await
}

/// The next state that is told.
async fn next(news: &mut Streaming<WatchLeavesResponse>) -> anyhow::Result<LeafReceipts> {
    let told = async {
        loop {
            let message = news.message().await?.context("stream ended")?;
            if let Some(Event::Leaf(leaf)) = message.event {
                return anyhow::Ok(leaf);
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(90), told).await.context("nothing is told")?
}

/// Wallets hear when a destruction is applied, and later when it is confirmed; of their own leaves only.
#[tokio::test(flavor = "multi_thread")]
async fn s6_applied_is_told_before_confirmed() -> anyhow::Result<()> {
    let devnet = network().await?;
    let dir = devnet.endpoints().dir.join("people");
    let alice = people::wallet(&devnet, &dir, "alice", 0)?;
    let bob = people::wallet(&devnet, &dir, "bob", OF_TWO_DEVICES)?;
    let leaf = people::deposit(&devnet, &alice, 70_000).await?;
    let stranger = listen(&bob, &leaf).await.err().context("another's leaf")?;
    ensure!(stranger.code() == Some(Code::PermissionDenied), "{stranger:?}");
    people::transfer(&alice, &bob, 70_000).await?;

    let mut bobs = listen(&bob, &leaf).await?;
    let mut told = next(&mut bobs).await?;
    while told.applied < 3 || told.confirmed < told.applied {
        told = next(&mut bobs).await?;
    }
    ensure!((told.applied, told.version) == (3, 2), "key, send, claim: {told:?}");

    let token = second_token(&devnet)?;
    let aside = devnet.members()[OPERATOR].dir().join("aside");
    ensure!(std::process::Command::new("mv").arg(&token).arg(&aside).status()?.success());
    people::transfer(&bob, &alice, 70_000).await?;
    while told.applied < 4 {
        told = next(&mut bobs).await?;
    }
    // The next owner's claim may be published with it.
    ensure!(told.confirmed == 3 && told.version + 1 == told.applied, "applied, and not destroyed: {told:?}");
    let mut alices = listen(&alice, &leaf).await?;
    let mut after = next(&mut alices).await?;
    while after.applied < 5 {
        after = next(&mut alices).await?;
    }
    ensure!((after.confirmed, after.version) == (3, 4), "{after:?}");

    ensure!(std::process::Command::new("mv").arg(&aside).arg(&token).status()?.success());
    // The claim ends what was bob's last version, so it concerns him, too (D16).
    while told.confirmed < 5 {
        told = next(&mut bobs).await?;
    }
    while after.confirmed < 5 {
        after = next(&mut alices).await?;
    }
    ensure!((told.applied, told.version) == (5, 4), "bob hears of the end of his version: {told:?}");
    Ok(())
}
