//! A leaf that goes back and forth until its timelocks are used up, is renewed, and leaves to the chain.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use spark_devnet::{
    network::Devnet,
    wallet::{WalletCommand, number, text},
};
use spark_rules::tx::Timelock;

use crate::support::{
    address, available, deposit, eventually, network, pay,
    rogue::{Rogue, honest},
    transfer,
};

const SATS: u64 = 80_000;

/// One field of the only leaf of a wallet.
async fn leaf_field(wallet: &WalletCommand, field: &str) -> anyhow::Result<Value> {
    let all = wallet.run(&["leaves"]).await?;
    let leaf = all.get("items").and_then(Value::as_array).and_then(|items| items.first());
    Ok(leaf.and_then(|leaf| leaf.get(field)).with_context(|| format!("{field} in {all}"))?.clone())
}

async fn refund_timelock(wallet: &WalletCommand) -> anyhow::Result<u64> {
    leaf_field(wallet, "refund_timelock").await?.as_u64().context("refund_timelock")
}

/// Leaves to the chain; returns the satoshis that arrived and the number of transactions.
async fn exit(devnet: &Devnet, wallet: &WalletCommand, leaf: &str) -> anyhow::Result<(u64, usize)> {
    let info = wallet.run(&["info"]).await?;
    let fee = text(&info, "fee_address")?;
    for _ in 0..4 {
        pay(devnet, &fee, 50_000).await?;
    }
    devnet.faucet().mine(1).await?;
    let to = devnet.faucet().address().to_string();
    wallet.run(&["exit", "start", leaf, "--to", &to, "--yes"]).await?;
    let mut mined = 0;
    loop {
        let status = wallet.run(&["exit", "resume", leaf]).await?;
        let steps = status.get("steps").and_then(Value::as_array).context("steps")?;
        if status.get("done").and_then(Value::as_bool) == Some(true) {
            for step in steps {
                let txid = text(step, "txid")?.parse()?;
                let confirmed = devnet.bitcoind().confirmations(txid).await?;
                ensure!(confirmed.is_some_and(|c| c > 0), "not confirmed: {step}");
            }
            return Ok((number(&status, "amount_sats")?, steps.len()));
        }
        let blocks = number(&status, "blocks_left").unwrap_or(1).clamp(1, 500);
        mined += blocks;
        ensure!(mined < 3000, "exit does not end: {status}");
        devnet.faucet().mine(blocks).await?;
    }
}

/// Sends down to a timelock at once, which signers allow, and claims.
async fn jump(from: &WalletCommand, to: &WalletCommand, leaf: &str, timelock: u16) -> anyhow::Result<()> {
    {
        let rogue = Rogue::of(from)?;
        let other = Rogue::of(to)?.id();
        let node = rogue.node(leaf).await?;
        let sets = rogue.commitments(Some(leaf), 3).await?;
        rogue.start(rogue.send(&node, &other, Timelock::new(timelock)?, sets, &honest)?.request).await?;
    }
    eventually("the worn leaf is claimed", || async {
        to.run_all(&["receive"]).await?;
        Ok(available(to).await? == SATS)
    })
    .await
}

/// The ladder from 2000 down by sends, a renewal by command, another one by itself, and an exit through all the
/// nodes that they made.
#[tokio::test(flavor = "multi_thread")]
async fn a_worn_leaf_is_renewed_and_can_leave() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    let leaf = deposit(&devnet, &alice, SATS).await?;
    let early = alice.run(&["renew", &leaf]).await;
    ensure!(early.is_err(), "renewed a leaf that does not need it");
    let wallets = [&alice, &bob];
    let mut expected = 2000;
    let mut holder = 0;
    while expected > 300 {
        if expected == 1700 {
            expected = 400;
            jump(wallets[holder], wallets[1 - holder], &leaf, expected).await?;
        } else {
            expected -= 100;
            transfer(wallets[holder], wallets[1 - holder], SATS).await?;
        }
        holder = 1 - holder;
        let now = refund_timelock(wallets[holder]).await?;
        ensure!(now == u64::from(expected), "timelock {now} instead of {expected}");
    }
    let owner = wallets[holder];
    let answer = owner.run(&["renew", &leaf]).await?;
    ensure!(answer.to_string().contains("zero"), "{answer}");
    ensure!(refund_timelock(owner).await? == 2000, "not renewed");
    ensure!(leaf_field(owner, "depth").await? == 2, "a node was to come above the leaf");

    // Down to the last step; then a send renews by itself.
    jump(owner, wallets[1 - holder], &leaf, 100).await?;
    holder = 1 - holder;
    let owner = wallets[holder];
    let last = refund_timelock(owner).await?;
    if last == 100 {
        transfer(owner, wallets[1 - holder], SATS).await?;
        holder = 1 - holder;
        ensure!(refund_timelock(wallets[holder]).await? == 1900, "the send did not renew first");
    } else {
        // The claim has renewed it already.
        ensure!(last == 2000, "timelock {last}");
    }
    let owner = wallets[holder];
    ensure!(leaf_field(owner, "depth").await? == 3, "a second node was to come above the leaf");
    ensure!(
        owner.run(&["send", &address(wallets[1 - holder]).await?, "1sat"]).await.is_err(),
        "wrong amount"
    );

    let (amount, transactions) = exit(&devnet, owner, &leaf).await?;
    ensure!(transactions == 4, "root, two nodes, refund: {transactions}");
    ensure!(amount > SATS - 5_000 && amount <= SATS, "{amount} sat arrived");
    Ok(())
}
