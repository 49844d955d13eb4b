//! D10-D12: a signer that lost its store and its HSM is made whole by the others, over the wire, and nobody else profits
//! from that.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, ensure};
use bitcoin::secp256k1::SecretKey;
use prost::Message as _;
use rand::RngCore as _;
use serde_json::Value;
use spark_devnet::{
    exposition::Exposition,
    http,
    network::Devnet,
    replace::{copy_store, rename_store},
    stamp,
    wallet::{WalletCommand, number},
};
use spark_proto::signer::v1 as signer;
use spark_rules::{
    frost::{Coefficients, to_secp},
    ids::OperatorIndex,
};
use tonic::Code;
use uuid::Uuid;

use crate::support::{
    address, available,
    call::{Door, call},
    deposit, eventually, network, ready, rows,
    search::Needles,
    transfer,
};
use crate::vaults::secrets_of_stopped_signer;

const LOST: usize = 2;

async fn gauge(url: &str, family: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
    Ok(Exposition::parse(&http::get(&format!("{url}/metrics")).await?)?.sum(family, labels))
}

async fn is_locked(devnet: &Devnet) -> anyhow::Result<bool> {
    let url = devnet.members()[LOST].signer_http_url();
    Ok(gauge(&url, "spark_signer_locked", &[]).await? > 0.5)
}

/// Operator `index` alone.
async fn is_ready(devnet: &Devnet, index: usize) -> bool {
    http::get(&format!("{}/readyz", devnet.members()[index].http_url())).await.is_ok()
}

/// A call to a peer that the host of the lost signer makes.
async fn as_host(
    devnet: &Devnet,
    peer: usize,
    method: &str,
    message: Vec<u8>,
) -> anyhow::Result<Result<Vec<u8>, tonic::Status>> {
    let card = devnet.members()[LOST].operator_tls();
    let door = Door::of(devnet, &devnet.members()[peer].peer_address());
    let answer = call(&door.open(Some(card))?, &format!("/peer.v1.Peer/{method}"), message, None).await;
    Ok(answer.map(|bytes| bytes.to_vec()))
}

/// A call to the lost signer, or the one in its place, by its host.
async fn to_signer(devnet: &Devnet, method: &str, message: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    let member = &devnet.members()[LOST];
    let door = Door::of(devnet, &member.signer_address());
    let channel = door.open(Some(member.operator_tls()))?;
    Ok(call(&channel, &format!("/signer.v1.Signer/{method}"), message, None).await?.to_vec())
}

async fn status(devnet: &Devnet) -> anyhow::Result<signer::GetStatusResponse> {
    let message = signer::GetStatusRequest {}.encode_to_vec();
    Ok(signer::GetStatusResponse::decode(to_signer(devnet, "GetStatus", message).await?.as_slice())?)
}

async fn count(devnet: &Devnet, sql: &'static str) -> anyhow::Result<i64> {
    let mut database = rows::connect(devnet, LOST).await?;
    Ok(sqlx::query_scalar(sql).fetch_one(&mut database).await?)
}

/// What a wallet says of the lost operator's receipts for a leaf, and of all of them.
async fn verdict(wallet: &WalletCommand, leaf: &str) -> anyhow::Result<(Value, Value)> {
    let list = wallet.run(&["receipts", leaf]).await?;
    let all = list.pointer("/items/0").cloned().context("no verdict")?;
    let own = all.pointer(&format!("/by_operator/{LOST}")).cloned().context("no view")?;
    Ok((own, all))
}

fn flag(value: &Value, field: &str) -> Option<bool> {
    value.get(field).and_then(Value::as_bool)
}

/// All wallets take the present federation file.
fn renew(devnet: &Devnet, wallets: &[(&WalletCommand, u16)]) -> anyhow::Result<()> {
    wallets.iter().try_for_each(|(wallet, coordinator)| wallet.coordinated_by(devnet, *coordinator))
}

#[tokio::test(flavor = "multi_thread")]
async fn d12_a_lost_signer_is_repaired_by_the_others() -> anyhow::Result<()> {
    let mut devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    let carol = WalletCommand::create(&devnet, "carol", 2).await?;
    let moved = deposit(&devnet, &alice, 41_000).await?;
    deposit(&devnet, &alice, 42_000).await?;
    let kept = deposit(&devnet, &carol, 30_000).await?;
    transfer(&alice, &bob, 41_000).await?;
    rows::agree(&devnet).await?;
    // An operation that nobody decided before the loss: all have voted for it.
    fs::write(devnet.members()[0].fail_file("operator"), "Voted")?;
    let to_bob = address(&bob).await?;
    ensure!(alice.run(&["send", &to_bob, "42000sat"]).await.is_err(), "its coordinator died");
    let leaves = count(&devnet, "SELECT count(*) FROM leaf").await?;

    // First what a repair is by itself.
    devnet.refresh_after_repair(LOST, false);
    let (mut lost, made) = devnet.lose_signer(LOST)?;
    // Nobody approves. The others go on by themselves; the new signer stays locked, and its host gets nothing.
    devnet.restart_members().await?;
    eventually("the others are ready", || async {
        Ok(is_ready(&devnet, 0).await && is_ready(&devnet, 1).await)
    })
    .await?;
    ensure!(is_locked(&devnet).await? && !is_ready(&devnet, LOST).await, "works without its leaves");
    let invented = signer::RepairTicket {
        session_id: vec![7; 16],
        lost: LOST as u32,
        helpers: vec![0, 1],
        limit: 64,
        encryption_key: hex::decode(&made.entry.identity_public_key)?,
        position: status(&devnet).await?.position,
        signature: vec![0; 64],
        ..signer::RepairTicket::default()
    };
    let refused = as_host(&devnet, 0, "RepairList", invented.encode_to_vec()).await?;
    let refused = refused.err().context("shares for a signer that nobody approved")?;
    ensure!(refused.message().contains("not approved"), "{refused:?}");

    // A person approves another life than the one that was made: the same.
    devnet.approve_repair(LOST, &"11".repeat(16), &made.federation_key);
    devnet.restart_members().await?;
    eventually("the others are ready", || async {
        Ok(is_ready(&devnet, 0).await && is_ready(&devnet, 1).await)
    })
    .await?;
    ensure!(is_locked(&devnet).await?, "another life was approved");

    devnet.approve_repair(LOST, &made.incarnation, &made.federation_key);
    devnet.restart_members().await?;
    ready(&mut devnet).await?;
    renew(&devnet, &[(&alice, 0), (&bob, 2), (&carol, 2)])?;
    let repair = status(&devnet).await?.repair.context("repair")?;
    ensure!(repair.repaired && repair.taken > 60, "{repair:?}");
    let items = [("state", "taken")];
    let url = devnet.members()[LOST].http_url();
    ensure!(gauge(&url, "spark_operator_repair_items", &items).await? > 60.0, "no progress is shown");
    let followed = "SELECT count(*) FROM projection WHERE encode(incarnation, 'hex') = $1";
    let mut database = rows::connect(&devnet, LOST).await?;
    let followed: i64 = sqlx::query_scalar(followed).bind(&made.incarnation).fetch_one(&mut database).await?;
    ensure!(followed == 1, "another journal is followed");

    // What was repaired is not clean at this operator, and says so.
    eventually("the log is published", || async {
        let (own, _) = verdict(&carol, &kept).await?;
        let problem = own.get("problem").and_then(Value::as_str).unwrap_or_default();
        ensure!(problem.contains("repaired") && flag(&own, "clean") == Some(false), "{own:#}");
        Ok(true)
    })
    .await?;
    // The repaired signer is the first that is named where its operator coordinates.
    transfer(&carol, &bob, 30_000).await?;
    transfer(&bob, &carol, 71_000).await?;
    ensure!(available(&carol).await? == 71_000 && available(&bob).await? == 0, "money is lost");
    eventually("the claim is final without it", || async {
        let (own, all) = verdict(&carol, &moved).await?;
        ensure!(flag(&own, "clean") == Some(false), "{all:#}");
        ensure!(number(&all, "clean")? == 2 && flag(&all, "is_final") == Some(true), "{all:#}");
        Ok(true)
    })
    .await?;
    // An unused key of its pool came back as well.
    deposit(&devnet, &bob, 9_000).await?;
    transfer(&bob, &carol, 9_000).await?;

    // The open operation ended, and its leaf came with a later run.
    eventually("nothing is left out", || async {
        let aside = count(&devnet, "SELECT count(*) FROM unrepaired_leaf").await?;
        ensure!(aside == 0, "{aside} leaves are put aside");
        // Its sender's wallet waits longer before it gives the transfer up.
        let free = "SELECT count(*) FROM leaf WHERE value = 42000 AND status = 'AVAILABLE'";
        Ok(count(&devnet, free).await? == 1)
    })
    .await?;
    rows::agree(&devnet).await?;
    ensure!(count(&devnet, "SELECT count(*) FROM leaf").await? == leaves + 1, "leaves");

    refreshed_by_all(&mut devnet, &carol, &moved).await?;
    a_lying_host(&devnet, &carol).await?;
    the_old_one_does_not_vote(&mut devnet, &mut lost).await?;
    ready(&mut devnet).await?;
    transfer(&carol, &alice, 80_000).await?;
    rows::settled(&devnet).await?;
    no_database_has_a_share(&mut devnet, &moved).await
}

/// The zero-constant refresh: afterwards all are clean for what was repaired, and no liar more is tolerated than before.
async fn refreshed_by_all(devnet: &mut Devnet, carol: &WalletCommand, leaf: &str) -> anyhow::Result<()> {
    let left = [("state", "unrefreshed")];
    let url = devnet.members()[LOST].http_url();
    eventually("what waits is counted", || async {
        Ok(gauge(&url, "spark_operator_repair_items", &left).await? >= 3.0)
    })
    .await?;
    devnet.refresh_after_repair(LOST, true);
    devnet.process(&format!("operator-{LOST}"))?.kill()?;
    let database = devnet.database_url(u16::try_from(LOST)?);
    // S14: it leaves one undecided, with all votes in. The others end it, and nothing is held.
    fs::write(devnet.members()[LOST].fail_file("operator"), "Voted")?;
    devnet.start_operator(LOST, &database)?;
    ends_without_it(devnet).await?;
    devnet.start_operator(LOST, &database)?;
    ready(devnet).await?;
    let devnet = &*devnet;
    let before = available(carol).await?;
    eventually("all leaves are refreshed", || async {
        let refreshed = "SELECT count(*) FROM operation WHERE kind = 9 AND state = 'DONE'";
        let waits = gauge(&url, "spark_operator_repair_items", &left).await?;
        Ok(count(devnet, refreshed).await? > 0 && waits == 0.0)
    })
    .await?;
    rows::agree(devnet).await?;
    ensure!(available(carol).await? == before, "money is lost");
    eventually("all are clean", || async {
        let (own, all) = verdict(carol, leaf).await?;
        let clean = flag(&own, "clean") == Some(true) && number(&all, "clean")? == 3;
        if clean {
            ensure!(flag(&own, "repaired") == Some(true), "{all:#}");
            ensure!(flag(&all, "is_final") == Some(true) && number(&all, "tolerated_liars")? == 0, "{all:#}");
        }
        Ok(clean)
    })
    .await?;
    auditors_agree(devnet).await
}

/// The other operators abort every refresh that they know of.
async fn ends_without_it(devnet: &Devnet) -> anyhow::Result<()> {
    eventually("what it leaves undecided ends without it", || async {
        let mut ended = true;
        for operator in (0..devnet.members().len()).filter(|operator| *operator != LOST) {
            let mut database = rows::connect(devnet, operator).await?;
            let states = "SELECT state FROM operation WHERE kind = 9";
            let states: Vec<String> = sqlx::query_scalar(states).fetch_all(&mut database).await?;
            ended &= !states.is_empty() && states.iter().all(|state| state == "ABORTED");
        }
        Ok(ended)
    })
    .await
}

/// Runs a program that prints one JSON object or lines; returns whether it succeeded, and what it printed.
async fn run(program: &str, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
    let mut command = tokio::process::Command::new(stamp::program(program)?);
    let output = command.args(arguments).kill_on_drop(true).output().await?;
    Ok((output.status.success(), String::from_utf8(output.stdout)?))
}

/// The independent verifier says the same as the wallet, from the logs of all operators together.
async fn auditors_agree(devnet: &Devnet) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: String| folder.path().join(name).display().to_string();
    let federation = devnet.endpoints().federation.display().to_string();
    let ca = devnet.endpoints().ca.display().to_string();
    eventually("the verifier finds every leaf clean", || async {
        let mut arguments = vec!["--json".to_owned(), "refreshes".to_owned()];
        for (index, member) in devnet.members().iter().enumerate() {
            let config = member.dir().join("operator.toml").display().to_string();
            let (done, lines) = run("spark-operator", &["--config", &config, "log", "export"]).await?;
            ensure!(done, "export");
            let entries = path(format!("entries-{index}"));
            fs::write(&entries, lines)?;
            let (operator, url) =
                (index.to_string(), format!("{}/log", devnet.endpoints().operators[index].open));
            let log = ["--json", "log", "--federation", &federation, "--operator", &operator, "--url", &url];
            let (_, report) =
                run("spark-verify", &[&log[..], &["--ca", &ca, "--entries", &entries]].concat()).await?;
            let file = path(format!("report-{index}"));
            fs::write(&file, report)?;
            arguments.push(file);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (holds, text) = run("spark-verify", &arguments).await?;
        let found: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        if holds {
            let repaired = found.pointer(&format!("/repaired/{LOST}")).and_then(Value::as_u64);
            let clean = found.get("clean").and_then(Value::as_array).map(Vec::len);
            ensure!(repaired >= Some(3) && repaired == clean.map(|clean| clean as u64), "{found:#}");
        }
        Ok(holds)
    })
    .await
}

/// Hosts carried the repair, and a refresh: what they carried is in no operator's database. Looks for every share that a
/// signer holds, and for the weighted shares of both helpers, which the repaired ones are the sums of.
async fn no_database_has_a_share(devnet: &mut Devnet, leaf: &str) -> anyhow::Result<()> {
    let mut database = rows::connect(devnet, LOST).await?;
    let ids: Vec<Uuid> =
        sqlx::query_scalar("SELECT keyshare_id FROM keyshare").fetch_all(&mut database).await?;
    let helpers: BTreeSet<_> = [0, 1].map(OperatorIndex::new).into();
    let weights = Coefficients::at(&helpers, OperatorIndex::new(u16::try_from(LOST)?));
    let mut needles = Needles::default();
    needles.text("public: leaf id", leaf);
    let mut bait = None;
    for index in 0..devnet.members().len() {
        let stored = secrets_of_stopped_signer(devnet, index, &ids).await?;
        ensure!(stored.len() > 64, "operator {index} holds {} shares only", stored.len());
        bait = stored.first().map(|share| hex::encode(&share.bytes));
        for share in &stored {
            let name = format!("operator {index}'s share of {}", hex::encode(&share.keyshare));
            needles.all_forms(&name, &share.bytes);
            if let Some(weight) = weights.get(OperatorIndex::new(u16::try_from(index)?)) {
                let part = SecretKey::from_slice(&share.bytes)?.mul_tweak(&to_secp(weight))?;
                needles.all_forms(&format!("{name}, weighted"), &part.secret_bytes());
            }
        }
    }
    for index in 0..devnet.members().len() {
        let dump = devnet.cluster().dump(&format!("operator_{index}"))?;
        let found = needles.in_bytes(&dump);
        ensure!(
            found == BTreeSet::from(["public: leaf id".to_owned()]),
            "dump of operator {index}: {found:?}"
        );
    }
    // A search that finds nothing must be one that finds.
    let mut planted = devnet.cluster().dump("operator_0")?;
    planted.extend_from_slice(bait.context("share")?.as_bytes());
    ensure!(needles.in_bytes(&planted).len() > 1, "a planted share is not found");
    Ok(())
}

/// The host has a ticket of the repaired signer, approved by all. What it changes in it makes it worthless.
async fn a_lying_host(devnet: &Devnet, carol: &WalletCommand) -> anyhow::Result<()> {
    let mut session_id = vec![0; 16];
    rand::thread_rng().fill_bytes(&mut session_id);
    let open = signer::RepairOpenRequest { session_id, helpers: vec![0, 1], limit: 64 };
    let ticket = to_signer(devnet, "RepairOpen", open.encode_to_vec()).await?;
    let ticket = signer::RepairTicket::decode(ticket.as_slice())?;
    // Its own key in the place of the signer's, or another victim.
    let own = hex::decode(&devnet.endpoints().operators[LOST].identity_public_key)?;
    for (changed, code) in [
        (signer::RepairTicket { encryption_key: own, ..ticket.clone() }, Code::FailedPrecondition),
        (signer::RepairTicket { lost: 1, ..ticket.clone() }, Code::PermissionDenied),
    ] {
        for peer in [0, 1] {
            let refused = as_host(devnet, peer, "RepairList", changed.encode_to_vec()).await?;
            let refused = refused.err().context("shares for a host")?;
            ensure!(refused.code() == code, "{refused:?}");
        }
    }
    // What was begun holds nothing up, and nothing moved.
    ensure!(!status(devnet).await?.repair.context("repair")?.waiting, "its host stopped the signer");
    rows::agree(devnet).await?;
    ensure!(available(carol).await? == 80_000, "a leaf was touched");
    Ok(())
}

/// What was lost turns up again: alone, or with its tokens.
async fn the_old_one_does_not_vote(
    devnet: &mut Devnet,
    lost: &mut spark_devnet::replace::Material,
) -> anyhow::Result<()> {
    devnet.process(&format!("signer-{LOST}"))?.kill()?;
    devnet.put_back(LOST, lost)?;
    ensure!(devnet.start_signer(LOST).await.is_err(), "the lost signer starts under the new federation file");
    devnet.put_back(LOST, lost)?;
    // Its store alone, on the new tokens.
    let store = devnet.members()[LOST].dir().join("signer.redb");
    let present = store.with_extension("present");
    rename_store(&store, &present)?;
    copy_store(lost.store(), &store)?;
    ensure!(devnet.start_signer(LOST).await.is_err(), "a store opens with another HSM");
    rename_store(&present, &store)?;
    devnet.start_signer(LOST).await
}
