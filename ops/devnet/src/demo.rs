//! The main job, told step by step: real bitcoin into a leaf, two changes of owner, out to the chain.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bitcoin::{Amount, Txid};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    network::{Devnet, Options},
    wallet::{WalletCommand, number, text},
};

const DEPOSIT: u64 = 100_000;
/// Blocks mined at a time while timelocks run.
const STRIDE: u64 = 100;
/// More than the longest chain of timelocks of the demo.
const MOST_BLOCKS: u64 = 6000;
const WAIT: Duration = Duration::from_secs(30);

/// What a step reports.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Short stable name.
    pub step: &'static str,
    /// For people.
    pub text: String,
    /// Facts: txids, amounts, ids.
    pub facts: Value,
}

/// Runs the demo on a fresh network. `report` hears of every step as it is done.
pub async fn run(options: Options, report: impl Fn(Step)) -> anyhow::Result<()> {
    let started = Instant::now();
    let devnet = Devnet::start(options, |what| {
        report(Step { step: "start", text: what.to_owned(), facts: Value::Null });
    })
    .await?;
    story(&devnet, &report).await?;
    report(Step {
        step: "done",
        text: format!("done in {} s", started.elapsed().as_secs()),
        facts: json!({ "seconds": started.elapsed().as_secs() }),
    });
    Ok(())
}

/// The steps, on a running network.
pub async fn story(devnet: &Devnet, report: &impl Fn(Step)) -> anyhow::Result<()> {
    let say = |step, text: String, facts: Value| report(Step { step, text, facts });
    let n = devnet.members().len() as u16;
    let alice = WalletCommand::create(devnet, "alice", 0).await?;
    let bob = WalletCommand::create(devnet, "bob", 1 % n).await?;
    let carol = WalletCommand::create(devnet, "carol", 2 % n).await?;
    say(
        "wallets",
        "three wallets: alice, bob, carol".into(),
        json!({ "wallets": ["alice", "bob", "carol"] }),
    );

    let deposit = alice.run(&["deposit", "address"]).await?;
    let (address, leaf) = (text(&deposit, "address")?, text(&deposit, "leaf_id")?);
    say("address", format!("alice's deposit address {address}"), deposit);
    let funding = pay(devnet, &address, DEPOSIT).await?;
    devnet.faucet().mine(1).await?;
    say("funding", format!("{DEPOSIT} sat paid to it by {funding}"), json!({ "txid": funding.to_string() }));
    let txid = funding.to_string();
    let claimed =
        until_available(&alice, &["deposit", "claim", "--address", &address, "--txid", &txid]).await?;
    say("deposit", format!("alice owns leaf {leaf}"), claimed);

    transfer(&alice, ("alice", "bob"), &bob, &say).await?;
    transfer(&bob, ("bob", "carol"), &carol, &say).await?;

    for index in 0..n {
        carol.coordinated_by(devnet, index)?;
        let balance = carol.run(&["balance"]).await?;
        ensure!(
            number(&balance, "available_sats")? == DEPOSIT,
            "operator {index} shows another balance: {balance}"
        );
        say("balance", format!("operator {index}: carol has {DEPOSIT} sat"), balance);
    }
    for (name, wallet) in [("alice", &alice), ("bob", &bob)] {
        let balance = wallet.run(&["balance"]).await?;
        ensure!(number(&balance, "available_sats")? == 0, "{name} still has money: {balance}");
    }
    forgotten(&carol, &say).await?;
    exit(devnet, &carol, &leaf, &say).await
}

/// The last owner checks what the operators claim to have forgotten.
async fn forgotten(wallet: &WalletCommand, say: &impl Fn(&'static str, String, Value)) -> anyhow::Result<()> {
    let deadline = Instant::now() + WAIT;
    let verified = loop {
        // Another process looks into the token before a receipt is confirmed, and witnesses cosign after that.
        match wallet.run(&["verify"]).await {
            Ok(verified) => break verified,
            Err(error) if Instant::now() > deadline => return Err(error.context("receipts do not hold")),
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    };
    let first =
        |list: &str| verified.get(list).and_then(|list| list.get(0)).cloned().context("nothing verified");
    let statement = text(&first("leaves")?, "statement")?;
    let attestation = text(&first("leaves")?, "attestation")?;
    let witnesses = number(&first("logs")?, "witnesses")?;
    let text = format!(
        "carol verifies the receipts: {statement}, attestation: {attestation}; every log is cosigned by {witnesses} \
         others"
    );
    say("receipts", text, verified);
    Ok(())
}

async fn pay(devnet: &Devnet, address: &str, sats: u64) -> anyhow::Result<Txid> {
    let address = address.parse::<bitcoin::Address<_>>()?.require_network(bitcoin::Network::Regtest)?;
    Ok(devnet.faucet().send(&address, Amount::from_sat(sats)).await?.compute_txid())
}

/// Claims a deposit and waits until the wallet can spend it.
async fn until_available(wallet: &WalletCommand, claim: &[&str]) -> anyhow::Result<Value> {
    let claimed = wallet.run(claim).await?;
    let deadline = Instant::now() + WAIT;
    loop {
        let balance = wallet.run(&["balance"]).await?;
        if number(&balance, "available_sats")? > 0 {
            return Ok(claimed);
        }
        if Instant::now() > deadline {
            bail!("deposit does not become available: {balance}");
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

async fn transfer(
    from: &WalletCommand,
    names: (&str, &str),
    to: &WalletCommand,
    say: &impl Fn(&'static str, String, Value),
) -> anyhow::Result<()> {
    let address = text(&to.run(&["address"]).await?, "address")?;
    let sent = from.run(&["send", &address, &format!("{DEPOSIT}sat")]).await?;
    let id = text(&sent, "transfer_id")?;
    say("send", format!("{} sends {DEPOSIT} sat to {}: transfer {id}", names.0, names.1), sent);
    let received = to.run(&["receive", "--wait"]).await?;
    ensure!(number(&received, "amount_sats").ok() == Some(DEPOSIT), "not received: {received}");
    say("claim", format!("{} claims it; the old shares are replaced", names.1), received);
    Ok(())
}

async fn exit(
    devnet: &Devnet,
    wallet: &WalletCommand,
    leaf: &str,
    say: &impl Fn(&'static str, String, Value),
) -> anyhow::Result<()> {
    let info = wallet.run(&["info"]).await?;
    pay(devnet, &text(&info, "fee_address")?, 50_000).await?;
    devnet.faucet().mine(1).await?;
    let plan = wallet.run(&["exit", "plan", leaf]).await?;
    say("exit-plan", "what the exit costs and how long it takes".into(), plan);
    let destination = devnet.faucet().address().to_string();
    let status = wallet.run(&["exit", "start", leaf, "--to", &destination, "--yes"]).await?;
    say("exit-start", format!("carol leaves to {destination} without the operators"), status);
    let mut mined = 0;
    loop {
        let status = wallet.run(&["exit", "resume", leaf]).await?;
        if status.get("done").and_then(Value::as_bool) == Some(true) {
            let amount = number(&status, "amount_sats")?;
            let last =
                status.get("steps").and_then(Value::as_array).and_then(|s| s.last()).context("steps")?;
            let txid: Txid = text(last, "txid")?.parse()?;
            let confirmations = devnet.bitcoind().confirmations(txid).await?;
            ensure!(confirmations.is_some_and(|c| c > 0), "the refund {txid} is not confirmed");
            say("exit", format!("refund {txid} confirmed; {amount} sat on the chain"), status);
            return Ok(());
        }
        let left = number(&status, "blocks_left").unwrap_or(1);
        let blocks = left.clamp(1, STRIDE);
        mined += blocks;
        ensure!(mined < MOST_BLOCKS, "exit does not end: {status}");
        devnet.faucet().mine(blocks).await?;
    }
}
