//! X9, X11, X12: value that is not on the chain, no longer, or not any more.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bitcoin::{Amount, consensus::encode};
use spark_devnet::wallet::{WalletCommand, text};

use crate::support::{
    address, available,
    coin::Coin,
    deposit, eventually, network, pay,
    rogue::{Rogue, honest, outputs_to, reason},
    rows, transfer,
    world::with,
};

/// X9: a claim of bytes that no chain has; a real, smaller deposit to the same address does not make it true.
#[test]
fn x9_value_comes_from_the_chain_never_from_the_client() -> anyhow::Result<()> {
    with(async |devnet| {
        let alice = WalletCommand::create(devnet, "x9-alice", 0).await?;
        let answer = alice.run(&["deposit", "address"]).await?;
        let (to, leaf) = (text(&answer, "address")?, text(&answer, "leaf_id")?);
        let parsed = to.parse::<bitcoin::Address<_>>()?.require_network(bitcoin::Network::Regtest)?;
        let real = devnet.faucet().send(&parsed, Amount::from_sat(61_000)).await?;
        let mut fake = real.clone();
        for output in &mut fake.output {
            if output.script_pubkey == parsed.script_pubkey() {
                output.value = Amount::from_sat(2_000_000_000);
            }
        }
        {
            let rogue = Rogue::of(&alice)?;
            let request = rogue.deposit(&leaf, &outputs_to(&fake, &to)?, &honest).await?;
            let node = rogue.finalize(request).await?;
            ensure!(node.status == "CREATING", "a fake is {}", node.status);
        }
        devnet.faucet().mine(3).await?;
        let tip = devnet.bitcoind().tip().await?.height;
        caught_up(devnet, tip).await?;
        {
            let rogue = Rogue::of(&alice)?;
            ensure!(rogue.statuses(&leaf).await? == ["CREATING"; 3], "the fake became spendable");
            let node = rogue.node(&leaf).await?;
            let sets = rogue.commitments(Some(&leaf), 3).await?;
            let step = node.refund_timelock()?.step_down()?;
            let sent = rogue.send(&node, &rogue.id(), step, sets, &honest)?;
            let refused = rogue.start(sent.request).await.err().context("sent money that is not there")?;
            ensure!(reason(&refused) == "LEAF_UNAVAILABLE", "{refused:?}");
        }
        // What is really there takes the fake's place (D20).
        alice.run(&["deposit", "claim", "--address", &to]).await?;
        eventually("the real value", || async { Ok(available(&alice).await? == 61_000) }).await
    })
}

/// Waits until every operator has seen the chain up to `height`.
async fn caught_up(devnet: &spark_devnet::network::Devnet, height: u64) -> anyhow::Result<()> {
    for index in 0..devnet.members().len() as u16 {
        let pool = sqlx::PgPool::connect(&devnet.database_url(index)).await?;
        eventually("operators follow", || async {
            let (seen,): (i32,) = sqlx::query_as("SELECT max(height) FROM header").fetch_one(&pool).await?;
            Ok(u64::try_from(seen)? >= height)
        })
        .await?;
        pool.close().await;
    }
    // Facts become statuses in a step of their own.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    Ok(())
}

/// X11: after the owner has begun to exit, the leaf cannot be paid with.
#[test]
fn x11_an_exiting_leaf_cannot_be_sent() -> anyhow::Result<()> {
    with(async |devnet| {
        let alice = WalletCommand::create(devnet, "x11-alice", 0).await?;
        let bob = WalletCommand::create(devnet, "x11-bob", 1).await?;
        let leaf = deposit(devnet, &alice, 62_000).await?;
        let twin = alice.twin(devnet, "x11-twin", 1).await?;
        twin.run(&["leaves"]).await?;
        let info = alice.run(&["info"]).await?;
        pay(devnet, &text(&info, "fee_address")?, 50_000).await?;
        devnet.faucet().mine(1).await?;
        let to = devnet.faucet().address().to_string();
        alice.run(&["exit", "start", &leaf, "--to", &to, "--yes"]).await?;
        let bobs = Rogue::of(&bob)?.id();
        // A folder with the same seed that knows nothing of the exit.
        let rogue = Rogue::of(&twin)?;
        let leaving = async || -> anyhow::Result<()> {
            let sent = rogue.next_send(&leaf, &bobs).await?;
            let refused = rogue.start(sent.request).await.err().context("paid with a leaf that leaves")?;
            ensure!(reason(&refused) == "LEAF_UNAVAILABLE", "{refused:?}");
            Ok(())
        };
        // From the mempool on (D21).
        for operator in 0..devnet.members().len() {
            eventually("operators see it in the mempool", || async {
                let mut database = rows::connect(devnet, operator).await?;
                let sql = "SELECT count(*) FROM mempool_spend WHERE leaf_id = $1::uuid";
                let seen: i64 = sqlx::query_scalar(sql).bind(&leaf).fetch_one(&mut database).await?;
                Ok(seen > 0)
            })
            .await?;
        }
        leaving().await?;
        devnet.faucet().mine(1).await?;
        let tip = devnet.bitcoind().tip().await?.height;
        caught_up(devnet, tip).await?;
        leaving().await
    })
}

/// X12: a reorganisation takes back what its blocks gave, and gives it again when the money is back.
#[tokio::test(flavor = "multi_thread")]
async fn x12_a_reorganisation_takes_back_and_gives_again() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    let coin = Coin::new(&devnet, 1_000_000).await?;
    let leaf = deposit(&devnet, &alice, 63_000).await?;

    // One to five blocks fall, the deposit returns to the mempool, and comes back in a later block.
    for depth in [1u64, 5] {
        if depth > 1 {
            devnet.faucet().mine(depth - 1).await?;
        }
        devnet.bitcoind().reorg(depth, depth + 1).await?;
        eventually("the deposit is unconfirmed", || async {
            Ok(Rogue::of(&alice)?.statuses(&leaf).await? == ["CREATING"; 3])
        })
        .await?;
        ensure!(available(&alice).await? == 0, "orphaned money is spendable");
        let bobs = Rogue::of(&bob)?.id();
        {
            let rogue = Rogue::of(&alice)?;
            let sent = rogue.next_send(&leaf, &bobs).await?;
            let refused = rogue.start(sent.request).await.err().context("sent orphaned money")?;
            ensure!(reason(&refused) == "LEAF_UNAVAILABLE", "{refused:?}");
        }
        devnet.faucet().mine(1).await?;
        eventually("the deposit is back", || async { Ok(available(&alice).await? == 63_000) }).await?;
    }
    transfer(&alice, &bob, 63_000).await?;

    // The thief's variant: the deposit is spent otherwise on the new branch and never comes back.
    let answer = alice.run(&["deposit", "address"]).await?;
    let (to, stolen) = (text(&answer, "address")?, text(&answer, "leaf_id")?);
    let paying = coin.spend(&[(&to, 500_000)], 1_000)?;
    devnet.bitcoind().send_raw(&paying).await?;
    devnet.faucet().mine(1).await?;
    let raw = encode::serialize_hex(&paying);
    alice.run(&["deposit", "claim", "--address", &to, "--tx", &raw]).await?;
    eventually("deposit is available", || async { Ok(available(&alice).await? == 500_000) }).await?;
    let height = devnet.bitcoind().tip().await?.height;
    devnet.bitcoind().invalidate(devnet.bitcoind().block_hash(height).await?).await?;
    let own = coin.address();
    let away = coin.spend(&[(&own, 900_000)], 90_000)?;
    devnet.bitcoind().send_raw(&away).await?;
    devnet.faucet().mine(3).await?;
    eventually("the deposit is gone", || async {
        Ok(Rogue::of(&alice)?.statuses(&stolen).await? == ["CREATING"; 3])
    })
    .await?;
    devnet.faucet().mine(6).await?;
    let tip = devnet.bitcoind().tip().await?.height;
    caught_up(&devnet, tip).await?;
    ensure!(available(&alice).await? == 0, "money that is elsewhere is spendable");
    ensure!(alice.run(&["send", &address(&bob).await?, "500000sat"]).await.is_err(), "sent what is gone");
    // What was paid before is untouched: its deposit is on both branches.
    ensure!(available(&bob).await? == 63_000, "the other leaf suffered");
    Ok(())
}
