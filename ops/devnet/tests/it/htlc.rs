//! Transfers that a preimage completes (D8): settled, returned, and what nobody gets out of them.

use anyhow::{Context as _, ensure};
use spark_devnet::network::Devnet;
use spark_wallet::{Wallet, WalletError};
use uuid::Uuid;

use crate::support::{eventually, network, people, ready, rows};

/// Seconds; six blocks at least.
const SOON: u64 = 600;
/// Blocks to the expiry and over it, with the margin for preimages on their way.
const EXPIRY: u32 = 6;
const MARGIN: u32 = 6;

async fn status(wallet: &Wallet) -> anyhow::Result<String> {
    Ok(wallet.htlcs().await?.first().context("an HTLC")?.status.clone())
}

fn reason<T>(result: Result<T, WalletError>) -> anyhow::Result<String> {
    match result.err().context("accepted")? {
        WalletError::Client(error) => error.reason().context("no reason"),
        other => Err(other.into()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preimage_settles_and_time_returns() -> anyhow::Result<()> {
    let mut devnet = network().await?;
    let dir = tempfile::tempdir()?;
    let alice = people::wallet(&devnet, dir.path(), "alice", 0)?;
    let bob = people::wallet(&devnet, dir.path(), "bob", 1)?;
    let carol = people::wallet(&devnet, dir.path(), "carol", 2)?;
    people::deposit(&devnet, &alice, 20_000).await?;
    let to = people::address(&bob)?;

    // Locked for Bob: neither side has it.
    let id = Uuid::now_v7();
    let sent = alice.send_for_preimage(&to, 20_000, None, SOON, Some(id)).await?;
    ensure!(alice.send_for_preimage(&to, 20_000, None, SOON, Some(id)).await? == sent, "a repeat");
    let (own, his) = (alice.balance().await?, bob.balance().await?);
    ensure!((own.available_sats, own.locked_sats, his.available_sats) == (0, 20_000, 0), "{own:?} {his:?}");
    ensure!(bob.receive().await?.is_empty(), "claimed without a preimage");
    let listed = bob.htlcs().await?.pop().context("listed")?;
    ensure!((listed.sent, listed.status.as_str(), listed.preimage) == (false, "pending", None), "pending");
    ensure!(carol.htlcs().await?.is_empty(), "shown to a stranger");
    ensure!(alice.send(&people::address(&carol)?, 20_000, None).await.is_err(), "sent twice");

    // Nobody but the receiver settles it, and he only with its preimage.
    let preimage = alice.preimage(&id)?;
    for (who, amount) in [(&carol, 20_000), (&alice, 20_000), (&bob, 20_001)] {
        let refused = who.claim_htlc(&preimage, amount).await;
        ensure!(
            matches!(&refused, Err(WalletError::Refused(why)) if why.contains("was not told")),
            "{refused:?}"
        );
    }
    ensure!(matches!(bob.claim_htlc(&[1; 32], 1).await, Err(WalletError::Refused(_))), "another preimage");
    for operator in 0..3 {
        let mut database = rows::connect(&devnet, operator).await?;
        let known: i64 = sqlx::query_scalar("SELECT count(*) FROM htlc WHERE preimage IS NOT NULL")
            .fetch_one(&mut database)
            .await?;
        ensure!(known == 0, "operator {operator} was told the preimage");
    }
    // By time, Alice leaves with it alone.
    let (home, transfer) = (alice.exit_fee_address()?, sent.sent.transfer_id.as_str());
    let exit = alice.htlc_exit(transfer, &home, 2)?;
    let last = exit.first().and_then(|steps| steps.last()).context("an exit")?;
    ensure!((last.kind.as_str(), last.wait_blocks) == ("spend", 2160), "{exit:?}");
    // The operators and their signers remember it.
    for name in ["operator-0", "signer-2"] {
        devnet.process(name)?.restart()?;
    }
    // One operator will lose what comes now.
    devnet.process("operator-2")?.kill()?;
    devnet.cluster().copy_database("operator_2", "operator_2_old")?;
    devnet.process("operator-2")?.restart()?;
    ready(&mut devnet).await?;
    let claimed = bob.claim_htlc(&preimage, 20_000).await?;
    ensure!(claimed.amount == 20_000 && claimed.transfer_id == sent.sent.transfer_id, "{claimed:?}");
    ensure!(bob.claim_htlc(&preimage, 20_000).await? == claimed, "claimed is claimed");
    let paid = alice.htlcs().await?.pop().context("listed")?;
    ensure!(paid.status == "settled" && paid.preimage == Some(hex::encode(*preimage)), "{paid:?}");
    ensure!(bob.balance().await?.available_sats == 20_000, "claimed");
    ensure!(alice.htlc_exit(transfer, &home, 2)?.is_empty(), "an exit of what is another's");
    rows::agree(&devnet).await?;
    // D10: its signer's journal tells how it ended, and the claim after it follows.
    devnet.process("operator-2")?.kill()?;
    devnet.cluster().drop_database("operator_2")?;
    devnet.cluster().copy_database("operator_2_old", "operator_2")?;
    devnet.process("operator-2")?.restart()?;
    ready(&mut devnet).await?;
    rows::agree(&devnet).await?;

    // Back to Alice, but she does not show up in time: before the expiry nothing returns, a little after it all does.
    let (back, id) = (people::address(&alice)?, Uuid::now_v7());
    bob.send_for_preimage(&back, 20_000, None, SOON, Some(id)).await?;
    let preimage = bob.preimage(&id)?;
    mine(&devnet, EXPIRY).await?;
    ensure!(reason(alice.claim_htlc(&preimage, 20_000).await)? == "EXPIRED", "in time after the expiry");
    ensure!(status(&bob).await? == "pending", "returned at the expiry");
    mine(&devnet, MARGIN).await?;
    eventually("it is returned", || async { Ok(status(&bob).await? == "returned") }).await?;
    let late = alice.claim_htlc(&preimage, 20_000).await;
    ensure!(matches!(&late, Err(WalletError::Refused(why)) if why.contains("gone back")), "{late:?}");
    // Alice's refund matures at 1870, Bob's old one at 1900: his wallet moves the leaf below both.
    eventually("the leaf is safe", || async {
        bob.htlcs().await?;
        let leaves = bob.sync().await?;
        let timelocks: Vec<_> = leaves.iter().filter_map(|leaf| leaf.refund_timelock).collect();
        Ok(timelocks == [1700] && bob.balance().await?.available_sats == 20_000)
    })
    .await?;
    rows::agree(&devnet).await?;

    // The leaf goes on, also to somebody else.
    people::transfer(&bob, &carol, 20_000).await?;
    rows::agree(&devnet).await?;

    // Where one operator takes no part, nothing is locked, and nothing is lost.
    let config = devnet.members()[1].dir().join("operator.toml");
    let offered = std::fs::read_to_string(&config)?;
    let not_offered = offered.replace("[htlc]\noffered = true", "[htlc]\noffered = false");
    ensure!(not_offered != offered, "{offered}");
    std::fs::write(&config, not_offered)?;
    devnet.process("operator-1")?.restart()?;
    ready(&mut devnet).await?;
    // At first the others may not reach the one that started anew, and end the attempt for that.
    eventually("it is refused for what is not offered", || async {
        match carol.send_for_preimage(&to, 20_000, None, SOON, None).await {
            Ok(sent) => anyhow::bail!("accepted: {sent:?}"),
            Err(WalletError::Refused(why)) if why.contains("takes no part") => Ok(true),
            Err(error) => Err(error.into()),
        }
    })
    .await?;
    eventually("the leaf is free", || async { Ok(carol.balance().await?.available_sats == 20_000) }).await?;
    people::transfer(&carol, &alice, 20_000).await?;
    rows::agree(&devnet).await
}

/// Mines, until every operator has seen it.
async fn mine(devnet: &Devnet, blocks: u32) -> anyhow::Result<()> {
    devnet.faucet().mine(blocks.into()).await?;
    let tip = devnet.bitcoind().tip().await?.height;
    for operator in 0..3 {
        eventually("the operator sees the tip", || async {
            let mut database = rows::connect(devnet, operator).await?;
            let seen: i32 =
                sqlx::query_scalar("SELECT max(height) FROM header").fetch_one(&mut database).await?;
            Ok(u64::try_from(seen)? >= tip)
        })
        .await?;
    }
    Ok(())
}
