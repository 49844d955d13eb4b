//! Deposits with several outputs, several deposits to one address, and deposits that are replaced (D20).

use anyhow::{Context as _, ensure};
use bitcoin::{Amount, Network, TxOut, consensus::encode};
use spark_devnet::{
    network::{Devnet, Options},
    wallet::{WalletCommand, number, text},
};

use crate::support::{
    available,
    coin::Coin,
    eventually, network, pay,
    rogue::{Rogue, honest, outputs_to, reason},
    transfer,
};

/// A new deposit address and its leaf.
async fn fresh(wallet: &WalletCommand) -> anyhow::Result<(String, String)> {
    let answer = wallet.run(&["deposit", "address"]).await?;
    Ok((text(&answer, "address")?, text(&answer, "leaf_id")?))
}

async fn pay_many(devnet: &Devnet, outputs: &[(&str, u64)]) -> anyhow::Result<bitcoin::Transaction> {
    let mut list = Vec::new();
    for (address, sats) in outputs {
        let to = address.parse::<bitcoin::Address<_>>()?.require_network(Network::Regtest)?;
        list.push(TxOut { value: Amount::from_sat(*sats), script_pubkey: to.script_pubkey() });
    }
    Ok(devnet.faucet().pay(list).await?)
}

/// One transaction pays addresses of two wallets, one of them twice: every output becomes money of its owner.
#[tokio::test(flavor = "multi_thread")]
async fn one_transaction_many_deposits() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    let ((a1, _), (a2, twice), (b1, _)) = (fresh(&alice).await?, fresh(&alice).await?, fresh(&bob).await?);
    let own = devnet.faucet().address().to_string();
    let tx = pay_many(
        &devnet,
        &[(&own, 11_111), (&a1, 20_001), (&b1, 30_002), (&a2, 40_003), (&own, 22_222), (&a2, 50_004)],
    )
    .await?;
    let txid = tx.compute_txid().to_string();
    // Bob's claim through another operator before the block, Alice's after it.
    let claimed = bob.run(&["deposit", "claim", "--address", &b1, "--txid", &txid]).await?;
    ensure!(text(&claimed, "status")? == "CREATING", "{claimed}");
    // A foreign output of the same transaction is not his.
    ensure!(bob.run(&["deposit", "claim", "--address", &a1, "--txid", &txid]).await.is_err(), "foreign");
    devnet.faucet().mine(1).await?;
    for address in [&a1, &a2] {
        alice.run(&["deposit", "claim", "--address", address, "--txid", &txid]).await?;
    }
    eventually("all outputs arrive", || async {
        Ok(available(&alice).await? == 20_001 + 40_003 + 50_004 && available(&bob).await? == 30_002)
    })
    .await?;
    // They are money like any other: the leaf of two outputs moves, and its root is what the chain accepts.
    transfer(&alice, &bob, 90_007).await?;
    transfer(&alice, &bob, 20_001).await?;
    ensure!(available(&bob).await? == 30_002 + 90_007 + 20_001, "bob has them all");
    let bundle = Rogue::of(&bob)?.node(&twice).await?;
    ensure!(bundle.node_tx.input.len() == 2, "one root for both outputs");
    let mut vouts: Vec<u32> = bundle.node_tx.input.iter().map(|i| i.previous_output.vout).collect();
    vouts.sort_unstable();
    ensure!(vouts == [3, 5], "{vouts:?}");
    Ok(())
}

/// Several deposits to one address: those that are there become one leaf; one that comes later finds the address
/// used up, the wallet says so, and nothing of the leaf changes.
#[tokio::test(flavor = "multi_thread")]
async fn several_deposits_to_one_address() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    let (to, leaf) = fresh(&alice).await?;
    for sats in [21_000, 22_000, 23_000] {
        pay(&devnet, &to, sats).await?;
        devnet.faucet().mine(1).await?;
    }
    // Without a transaction named, the chain is searched.
    let claimed = alice.run(&["deposit", "claim", "--address", &to]).await?;
    ensure!(number(&claimed, "amount_sats")? == 66_000, "{claimed}");
    eventually("one leaf", || async { Ok(available(&alice).await? == 66_000) }).await?;

    let late = pay(&devnet, &to, 24_000).await?.to_string();
    devnet.faucet().mine(1).await?;
    for arguments in [
        vec!["deposit", "claim", "--address", to.as_str()],
        vec!["deposit", "claim", "--address", to.as_str(), "--txid", late.as_str()],
    ] {
        let refused = alice.run(&arguments).await.err().context("a used address was used again")?;
        ensure!(refused.to_string().contains("used up"), "{refused}");
    }
    // The operators say the same to a wallet that does not.
    {
        let rogue = Rogue::of(&alice)?;
        let tx: String = devnet.bitcoind().rpc().call("getrawtransaction", serde_json::json!([late])).await?;
        let outputs = outputs_to(&encode::deserialize_hex(&tx)?, &to)?;
        let refused = rogue.finalize(rogue.deposit(&leaf, &outputs, &honest).await?).await;
        let refused = refused.err().context("a confirmed deposit was replaced")?;
        ensure!(reason(&refused) == "LEAF_UNAVAILABLE", "{refused:?}");
        ensure!(rogue.statuses(&leaf).await? == ["AVAILABLE"; 3], "the leaf changed");
    }
    transfer(&alice, &bob, 66_000).await?;
    ensure!(alice.run(&["deposit", "claim", "--address", &to]).await.is_err(), "after the leaf has left");
    ensure!(available(&bob).await? == 66_000, "the receiver's leaf changed");
    Ok(())
}

/// D20: an unconfirmed deposit is replaced by its payer with a higher fee and another amount. The leaf follows the
/// transaction that confirms; before that, and at every operator, it is not spendable.
#[tokio::test(flavor = "multi_thread")]
async fn d20_a_replaced_deposit_is_claimed_anew() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 2).await?;
    let (to, leaf) = fresh(&alice).await?;
    let coin = Coin::new(&devnet, 1_000_000).await?;
    let own = coin.address();
    let first = coin.spend(&[(&to, 300_000)], 1_000)?;
    devnet.bitcoind().send_raw(&first).await?;
    let txid = first.compute_txid().to_string();
    let claimed = alice.run(&["deposit", "claim", "--address", &to, "--txid", &txid]).await?;
    ensure!(text(&claimed, "status")? == "CREATING", "{claimed}");
    // While the first one is in the mempool, nothing replaces it.
    let other = pay(&devnet, &to, 9_000).await?.to_string();
    let kept = alice.run(&["deposit", "claim", "--address", &to, "--txid", &other]).await?;
    ensure!(number(&kept, "amount_sats")? == 300_000, "replaced although it may still confirm: {kept}");

    // Another place in the transaction and another amount.
    let second = coin.spend(&[(&own, 100_000), (&to, 250_000)], 60_000)?;
    devnet.bitcoind().send_raw(&second).await?;
    let txid = second.compute_txid().to_string();
    let claimed = alice.run(&["deposit", "claim", "--address", &to, "--txid", &txid]).await?;
    ensure!(text(&claimed, "leaf_id")? == leaf, "the leaf keeps its id: {claimed}");
    ensure!(number(&claimed, "amount_sats")? == 250_000, "{claimed}");
    ensure!(text(&claimed, "status")? == "CREATING", "{claimed}");
    ensure!(available(&alice).await? == 0, "unconfirmed money is spendable");
    devnet.faucet().mine(1).await?;
    eventually("the second one confirms", || async { Ok(available(&alice).await? == 250_000) }).await?;
    transfer(&alice, &bob, 250_000).await?;
    ensure!(available(&bob).await? == 250_000, "the receiver has it");
    // Receipts lead from the key's creation over the replaced deposit to the receiver.
    let receipts = bob.run(&["receipts", &leaf]).await?.to_string();
    ensure!(!receipts.contains("is missing") && !receipts.contains("without a tweak"), "{receipts}");
    Ok(())
}

/// D20: as soon as a block has the first deposit, it stays, even before it counts.
#[tokio::test(flavor = "multi_thread")]
async fn d20_a_mined_deposit_is_not_replaced() -> anyhow::Result<()> {
    let options = Options { deposit_depth: 3, ..Options::default() };
    let devnet = Devnet::start(options, |_| {}).await?;
    let alice = WalletCommand::create(&devnet, "alice", 1).await?;
    let (to, leaf) = fresh(&alice).await?;
    let first = pay(&devnet, &to, 31_000).await?.to_string();
    alice.run(&["deposit", "claim", "--address", &to, "--txid", &first]).await?;
    devnet.faucet().mine(1).await?;
    let second = pay_many(&devnet, &[(&to, 77_000)]).await?;
    let height = devnet.bitcoind().tip().await?.height;
    // Every operator has seen the block.
    for index in 0..3 {
        let pool = sqlx::PgPool::connect(&devnet.database_url(index)).await?;
        eventually("block is seen", || async {
            let (seen,): (i32,) = sqlx::query_as("SELECT max(height) FROM header").fetch_one(&pool).await?;
            Ok(u64::try_from(seen)? >= height)
        })
        .await?;
        pool.close().await;
    }
    {
        let rogue = Rogue::of(&alice)?;
        ensure!(rogue.statuses(&leaf).await? == ["CREATING"; 3], "one block is not enough");
        let request = rogue.deposit(&leaf, &outputs_to(&second, &to)?, &honest).await?;
        let refused = rogue.finalize(request).await.err().context("a mined deposit was replaced")?;
        ensure!(reason(&refused) == "LEAF_UNAVAILABLE", "{refused:?}");
    }
    devnet.faucet().mine(2).await?;
    eventually("the first one counts", || async { Ok(available(&alice).await? == 31_000) }).await?;
    // Another deposit of the same wallet is not concerned.
    deposit_deep(&devnet, &alice).await
}

async fn deposit_deep(devnet: &Devnet, wallet: &WalletCommand) -> anyhow::Result<()> {
    let (to, _) = fresh(wallet).await?;
    let txid = pay(devnet, &to, 5_000).await?.to_string();
    devnet.faucet().mine(3).await?;
    wallet.run(&["deposit", "claim", "--address", &to, "--txid", &txid]).await?;
    eventually("another deposit", || async { Ok(available(wallet).await? == 36_000) }).await
}
