//! A person on a signer's host: a new root, a sealed signer, an alarm, a device more, a backup; while wallets go on.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use prost::Message as _;
use serde_json::Value;
use spark_devnet::{member::Member, network::Devnet, wallet::WalletCommand};
use spark_proto::signer::v1 as signer;
use tonic::{Status, transport::Channel};

use crate::support::{
    address, available,
    call::{Door, call},
    deposit, eventually, network, transfer,
};

const SATS: u64 = 60_000;

fn member(devnet: &Devnet) -> anyhow::Result<&Member> {
    devnet.members().first().context("member")
}

/// To the signer, as its operator.
fn to_signer(devnet: &Devnet) -> anyhow::Result<Channel> {
    let member = member(devnet)?;
    Door::of(devnet, &member.signer_address()).open(Some(member.operator_tls()))
}

/// The stable reason that a signer gives.
fn reason(status: &Status) -> String {
    let reason = status.metadata().get("spark-reason").and_then(|reason| reason.to_str().ok());
    reason.unwrap_or_default().to_owned()
}

fn json(member: &Member, arguments: &[&str]) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&member.administer(&[arguments, &["--json"]].concat())?)?)
}

fn devices(answer: &Value) -> anyhow::Result<&Vec<Value>> {
    answer["devices"].as_array().context("devices")
}

/// Proposes a second owner for a keyshare that is bound.
async fn rebind(channel: &Channel) -> anyhow::Result<String> {
    let request = signer::ReadJournalRequest { after: 0, limit: 1000 }.encode_to_vec();
    let journal = call(channel, "/signer.v1.Signer/ReadJournal", request, None).await?;
    let entries = signer::ReadJournalResponse::decode(journal)?.entries;
    let bound = entries.iter().filter(|entry| entry.kind == "bound");
    let bindings = bound.map(|entry| signer::Binding::decode(entry.operation.as_slice()));
    let mut binding = bindings
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .find(|binding| binding.coordinator == 0)
        .context("no binding")?;
    binding.user_public_key.clone_from(&binding.identity_public_key);
    let request = signer::BindKeyshareRequest { binding: Some(binding), ..Default::default() };
    let answer = call(channel, "/signer.v1.Signer/BindKeyshare", request.encode_to_vec(), None).await;
    Ok(reason(&answer.err().context("a second owner was accepted")?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signer_is_administered_while_it_runs() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    deposit(&devnet, &alice, SATS).await?;
    transfer(&alice, &bob, SATS).await?;
    let member = member(&devnet)?;

    let rotated = json(member, &["root", "rotate"])?;
    ensure!(rotated["confirmed"] == true, "{rotated}");
    transfer(&bob, &alice, SATS).await?;

    // Sealed, it says so, and nothing is sent; unsealed, it is heard by its peers and goes on.
    ensure!(json(member, &["seal"])?["sealed"] == true, "not sealed");
    let channel = to_signer(&devnet)?;
    let request = signer::GetStatusRequest {}.encode_to_vec();
    let answer = call(&channel, "/signer.v1.Signer/GetStatus", request, None).await;
    ensure!(reason(&answer.err().context("a sealed signer answers")?) == "SIGNER_SEALED", "reason");
    let (to, amount) = (address(&bob).await?, format!("{SATS}sat"));
    let send = ["send", to.as_str(), amount.as_str()];
    let sending = alice.run(&send);
    let unsealing = async {
        // Long enough for a signer that is there.
        tokio::time::sleep(Duration::from_secs(3)).await;
        ensure!(available(&bob).await? == 0, "arrived without a signer");
        json(member, &["unseal", "--wait", "60"])
    };
    let (sent, status) = tokio::join!(sending, unsealing);
    let status = status?;
    ensure!(status["locked"] == false && status["sealed"] == false, "{status}");
    eventually("the transfer arrives", || async {
        if sent.is_err() && available(&bob).await? == 0 {
            // It may be under way already.
            let _ = alice.run(&send).await;
        }
        bob.run_all(&["receive"]).await?;
        Ok(available(&bob).await? == SATS)
    })
    .await?;

    // A person ends an alarm; what was said of it stays.
    let refused = rebind(&channel).await?;
    ensure!(refused == "KEYSHARE_BOUND", "{refused}");
    let list = json(member, &["alarms", "list"])?;
    ensure!(list["active"][0]["kind"] == "rebind", "{list}");
    let words = ["alarms", "acknowledge", "rebind", "--by", "carol", "--reason", "a test of ours"];
    let record = json(member, &words)?;
    let list = json(member, &["alarms", "list"])?;
    ensure!(list["active"].as_array().is_some_and(Vec::is_empty), "{list}");
    ensure!(list["acknowledged"][0] == record && record["by"] == "carol", "{list}");

    // One device more, and what is destroyed from now on is destroyed on both.
    member.buy_device(5, "fifth")?;
    let list = json(member, &["device", "add", "5"])?;
    ensure!(devices(&list)?.len() == 2, "{list}");
    transfer(&bob, &alice, SATS).await?;
    let rotated = json(member, &["root", "rotate", "--wait", "120"])?;
    ensure!(rotated["confirmed"] == true, "{rotated}");
    for device in devices(&rotated)? {
        ensure!(
            device["state"] == "serving" && device["destroyed_before"] == rotated["epoch_after"],
            "{rotated}"
        );
    }

    // The log in a backup leads to the signed head.
    let archive = member.dir().join("backup.json").display().to_string();
    member.administer(&["backup", "create", "--out", &archive])?;
    let summary: Value = serde_json::from_str(&member.administer(&["backup", "verify", &archive])?)?;
    ensure!(summary["log"]["size"].as_u64().is_some_and(|size| size >= 4), "{summary}");
    ensure!(summary["log"]["marks"]["seen"].as_array().map(Vec::len) == Some(2), "{summary}");
    Ok(())
}
