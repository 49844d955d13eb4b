//! Two coordinators of one thing, and operators that cannot see the chain.

use anyhow::{Context as _, ensure};
use spark_devnet::{network::Devnet, wallet::WalletCommand};

use crate::support::{
    address, available, deposit, eventually, network,
    rogue::{Rogue, reason},
    rows, transfer,
};

/// Two copies of one wallet claim the same transfer through different operators, each with a package of its own.
/// Whoever wins, the leaf is the owner's, once, at every operator, and can be spent.
#[tokio::test(flavor = "multi_thread")]
async fn d1_two_coordinators_of_one_claim_agree() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 0).await?;
    let twin = bob.twin(&devnet, "bob-twin", 1).await?;
    let to = address(&bob).await?;
    for round in 0..4u64 {
        let sats = 20_000 + round;
        deposit(&devnet, &alice, sats).await?;
        let before = available(&bob).await?;
        alice.run(&["send", &to, &format!("{sats}sat")]).await?;
        // Either may be refused while the other is at work; then it looks again.
        let _both = tokio::join!(bob.run_all(&["receive"]), twin.run_all(&["receive"]));
        eventually("claimed", || async {
            for wallet in [&bob, &twin] {
                wallet.run_all(&["receive"]).await?;
                ensure!(available(wallet).await? == before + sats, "round {round}");
            }
            Ok(true)
        })
        .await?;
        rows::agree(&devnet).await?;
    }
    // All of it can be spent, by the copy that did not claim it as well.
    let all = available(&twin).await?;
    transfer(&twin, &alice, all).await?;
    ensure!(available(&bob).await? == 0, "both copies have it");
    Ok(())
}

/// What a client may be told of a request that another operator works on: to come back, or to make a new one.
const MAY_BE_TOLD: &[&str] =
    &["OPERATION_IN_PROGRESS", "LEAF_UNAVAILABLE", "OPERATION_ABORTED", "QUORUM_SHORT", "NONCE_SPENT"];

/// The same signed request at two operators at once is one transfer.
#[tokio::test(flavor = "multi_thread")]
async fn d7_one_request_at_two_coordinators_is_one_transfer() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    for round in 0..4u64 {
        let sats = 30_000 + round;
        let leaf = deposit(&devnet, &alice, sats).await?;
        let before = available(&bob).await?;
        let receiver = Rogue::of(&bob)?.id();
        {
            let rogue = Rogue::of(&alice)?;
            let request = rogue.next_send(&leaf, &receiver).await?.request;
            let send = async |at: usize| {
                rogue
                    .call_at(at, request.clone(), |mut c, r| async move { c.start_transfer_v2(r).await })
                    .await
            };
            let (first, second) = tokio::join!(send(0), send(1));
            let refusals: Vec<String> =
                [&first, &second].iter().filter_map(|r| r.as_ref().err()).map(reason).collect();
            for refusal in &refusals {
                ensure!(MAY_BE_TOLD.contains(&refusal.as_str()), "round {round}: {first:?} {second:?}");
            }
            // Said again, it is the same transfer, or it can be made anew.
            eventually("the request is decided", || async {
                match send(0).await {
                    Ok(_) => Ok(true),
                    Err(status) => {
                        let anew = rogue.next_send(&leaf, &receiver).await?.request;
                        rogue.start(anew).await.map_err(|e| anyhow::anyhow!("{status:?}, then {e:?}"))?;
                        Ok(true)
                    }
                }
            })
            .await?;
        }
        eventually("claimed", || async {
            bob.run_all(&["receive"]).await?;
            Ok(available(&bob).await? == before + sats)
        })
        .await?;
        rows::agree(&devnet).await?;
        ensure!(available(&alice).await? == 0, "round {round}: both have it");
    }
    Ok(())
}

async fn blind(devnet: &Devnet) -> anyhow::Result<()> {
    let operators = devnet.endpoints().operators.clone();
    eventually("operators notice", || async {
        for operator in &operators {
            ensure!(spark_devnet::http::get(&format!("{}/readyz", operator.http)).await.is_err(), "ready");
        }
        Ok(true)
    })
    .await
}

/// S12, D21: who cannot see the chain does not vote, and goes on when it sees again.
#[tokio::test(flavor = "multi_thread")]
async fn s12_no_votes_on_a_stale_view_of_the_chain() -> anyhow::Result<()> {
    let mut devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    let leaf = deposit(&devnet, &alice, 51_000).await?;
    devnet.process("bitcoind")?.pause()?;
    blind(&devnet).await?;
    {
        let receiver = Rogue::of(&bob)?.id();
        let rogue = Rogue::of(&alice)?;
        let sent = rogue.next_send(&leaf, &receiver).await?;
        let refused = rogue.start(sent.request).await.err().context("voted without a view of the chain")?;
        ensure!(reason(&refused) == "CHAIN_STALE", "{refused:?}");
    }
    let mut database = rows::connect(&devnet, 0).await?;
    let votes: i64 =
        sqlx::query_scalar("SELECT count(*) FROM vote WHERE choice = 'YES'").fetch_one(&mut database).await?;
    ensure!(votes == 3, "{votes} votes; those for the deposit are three");

    devnet.process("bitcoind")?.resume()?;
    devnet.wait_ready().await?;
    transfer(&alice, &bob, 51_000).await
}
