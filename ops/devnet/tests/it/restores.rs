//! S8, D10: an operator whose tables are old, or gone, follows its signer's journal to where it was.

use sqlx::{AssertSqlSafe, Row as _};

use crate::support::{address, available, deposit, eventually, network, pay, ready, rows, transfer};
use spark_devnet::{
    network::Devnet,
    wallet::{WalletCommand, text},
};

const KEYS: &str = "SELECT keyshare_id, state, group_key, public_shares FROM keyshare ORDER BY keyshare_id";
const ADDRESSES: &str =
    "SELECT leaf_id, address, identity, user_key, verifying_key FROM deposit_address ORDER BY leaf_id";
const TRANSFERS: &str =
    "SELECT transfer_id, sender, receiver, total, status FROM transfer ORDER BY transfer_id";

/// What a restored operator must know again, of an operator.
async fn memory(devnet: &Devnet, operator: usize) -> anyhow::Result<Vec<String>> {
    let mut database = rows::connect(devnet, operator).await?;
    let mut all = Vec::new();
    for sql in [KEYS, ADDRESSES, TRANSFERS] {
        let lines = format!("SELECT row_to_json(r)::text FROM ({sql}) r");
        for row in sqlx::query(AssertSqlSafe(lines)).fetch_all(&mut database).await? {
            all.push(row.try_get(0)?);
        }
    }
    Ok(all)
}

/// Money that comes to an address of before, claimed through the operator that was restored.
async fn claim_paid(devnet: &Devnet, wallet: &WalletCommand, address: &str, sats: u64) -> anyhow::Result<()> {
    let before = available(wallet).await?;
    let txid = pay(devnet, address, sats).await?.to_string();
    devnet.faucet().mine(1).await?;
    wallet.run(&["deposit", "claim", "--address", address, "--txid", &txid]).await?;
    eventually("deposit is available", || async { Ok(available(wallet).await? == before + sats) }).await
}

/// Everything is lost: leaves, transfers, keys, addresses and money on the way come back, in the same state.
#[tokio::test(flavor = "multi_thread")]
async fn s8_an_empty_database_is_filled_from_the_journal() -> anyhow::Result<()> {
    let mut devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    let carol = WalletCommand::create(&devnet, "carol", 0).await?;
    deposit(&devnet, &alice, 41_000).await?;
    deposit(&devnet, &alice, 42_000).await?;
    transfer(&alice, &bob, 41_000).await?;
    // Sent and not claimed; an address shown and not paid; one paid and not claimed.
    bob.run(&["send", &address(&carol).await?, "41000sat"]).await?;
    let unpaid = text(&carol.run(&["deposit", "address"]).await?, "address")?;
    let paid = text(&carol.run(&["deposit", "address"]).await?, "address")?;
    let txid = pay(&devnet, &paid, 7_000).await?.to_string();
    devnet.faucet().mine(1).await?;
    rows::agree(&devnet).await?;
    let before = memory(&devnet, 0).await?;

    devnet.process("operator-0")?.kill()?;
    devnet.cluster().drop_database("operator_0")?;
    let empty = devnet.cluster().create_database("operator_0")?;
    devnet.start_operator(0, &empty)?;
    ready(&mut devnet).await?;
    rows::agree(&devnet).await?;
    let after = memory(&devnet, 0).await?;
    let lost: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
    anyhow::ensure!(lost.is_empty(), "lost: {lost:#?}");

    // And it works as before, for those who ask it.
    anyhow::ensure!(available(&alice).await? == 42_000, "alice's leaf");
    eventually("claim of before", || async {
        carol.run_all(&["receive"]).await?;
        Ok(available(&carol).await? == 41_000)
    })
    .await?;
    carol.run(&["deposit", "claim", "--address", &paid, "--txid", &txid]).await?;
    eventually("deposit of before", || async { Ok(available(&carol).await? == 48_000) }).await?;
    claim_paid(&devnet, &carol, &unpaid, 9_000).await?;
    transfer(&carol, &alice, 57_000).await?;
    deposit(&devnet, &bob, 5_000).await.map(drop)
}

/// A backup of yesterday: the address that was shown since then is not lost, nor is the key behind it given twice.
#[tokio::test(flavor = "multi_thread")]
async fn s8_an_address_issued_after_the_backup_is_not_lost() -> anyhow::Result<()> {
    let mut devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 0).await?;
    devnet.process("operator-0")?.kill()?;
    devnet.cluster().copy_database("operator_0", "operator_0_old")?;
    devnet.process("operator-0")?.restart()?;
    ready(&mut devnet).await?;
    let to = text(&alice.run(&["deposit", "address"]).await?, "address")?;

    devnet.process("operator-0")?.kill()?;
    let old = devnet.cluster().url("operator_0_old");
    devnet.start_operator(0, &old)?;
    ready(&mut devnet).await?;
    let other = text(&bob.run(&["deposit", "address"]).await?, "address")?;
    anyhow::ensure!(to != other, "one key for two addresses");
    claim_paid(&devnet, &alice, &to, 8_000).await?;
    claim_paid(&devnet, &bob, &other, 6_000).await
}
