//! X4, X8, X23: owners who want more than they have, through the public calls with a real session.

use anyhow::{Context as _, ensure};
use bitcoin::{Amount, Sequence, Transaction, absolute::LockTime, transaction::Version};
use spark_devnet::wallet::{WalletCommand, text};
use spark_proto::spark::{self, renew_leaf_request::SigningJobs};
use spark_rules::tx::{Purpose, Timelock};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::{
    available, deposit, eventually, pay,
    rogue::{Rogue, Tamper, honest, outputs_to, reason},
    world::with,
};

/// X4: a leaf on its way to its receiver is not unlocked by anything that its sender may say.
#[test]
fn x4_a_leaf_in_flight_stays_locked() -> anyhow::Result<()> {
    with(async |devnet| {
        let (alice, bob) = (
            WalletCommand::create(devnet, "x4-alice", 0).await?,
            WalletCommand::create(devnet, "x4-bob", 1).await?,
        );
        let answer = alice.run(&["deposit", "address"]).await?;
        let (address, leaf) = (text(&answer, "address")?, text(&answer, "leaf_id")?);
        let txid = pay(devnet, &address, 54_000).await?;
        devnet.faucet().mine(1).await?;
        let tx: Transaction = raw(devnet, txid).await?;
        let first = {
            let rogue = Rogue::of(&alice)?;
            let request = rogue.deposit(&leaf, &outputs_to(&tx, &address)?, &honest).await?;
            rogue.finalize(request.clone()).await?;
            request
        };
        let claim = ["deposit", "claim", "--address", address.as_str()];
        let _ = alice.run(&claim).await;
        eventually("deposit is available", || async { Ok(available(&alice).await? == 54_000) }).await?;
        let bobs = Rogue::of(&bob)?.id();

        let rogue = Rogue::of(&alice)?;
        let sets = rogue.commitments(Some(&leaf), 3).await?;
        let more = rogue.commitments(Some(&leaf), 3).await?;
        let free = rogue.commitments(None, 3).await?;
        let node = rogue.node(&leaf).await?;
        let sent = rogue.send(&node, &bobs, Timelock::new(1900)?, sets, &honest)?;
        rogue.start(sent.request.clone()).await?;
        ensure!(rogue.statuses(&leaf).await? == ["TRANSFER_LOCKED"; 3], "not in flight");

        // The calls of the reference that set states: not offered.
        for intent in 0..5 {
            let request = spark::FinalizeNodeSignaturesRequest {
                intent,
                node_signatures: vec![spark::NodeSignatures {
                    node_id: leaf.clone(),
                    ..spark::NodeSignatures::default()
                }],
            };
            let refused = rogue
                .call(request, |mut c, r| async move { c.finalize_node_signatures_v2(r).await })
                .await
                .err()
                .context("finalize_node_signatures_v2 answered")?;
            ensure!(refused.code() == Code::Unimplemented, "{refused:?}");
        }
        // The deposit again: the same words, fresh words over the same output, and another output of the address.
        let _ = rogue.finalize(first).await;
        let again = rogue.deposit(&leaf, &outputs_to(&tx, &address)?, &honest).await?;
        let _ = rogue.finalize(again).await;
        let other = raw(devnet, pay(devnet, &address, 99_000).await?).await?;
        let replacing = rogue.deposit(&leaf, &outputs_to(&other, &address)?, &honest).await?;
        let refused = rogue.finalize(replacing).await.err().context("a sent leaf got another deposit")?;
        ensure!(reason(&refused) == "LEAF_UNAVAILABLE", "{refused:?}");
        // A renewal, a claim by the sender, and the leaf sent once more, with nonces from before and with free ones.
        let renewal = spark::RenewLeafRequest {
            leaf_id: leaf.clone(),
            signing_jobs: Some(SigningJobs::RenewNodeZeroTimelockSigningJob(
                spark::RenewNodeZeroTimelockSigningJob::default(),
            )),
        };
        let refused = rogue.call(renewal, |mut c, r| async move { c.renew_leaf(r).await }).await;
        ensure!(refused.is_err(), "renewed a leaf in flight");
        let claim = rogue.claim(&sent.request.transfer_id, &leaf, &sent.next).await?.request;
        let refused = rogue.call(claim, |mut c, r| async move { c.claim_transfer(r).await }).await;
        ensure!(refused.is_err(), "the sender claimed its own transfer");
        for sets in [more, free] {
            for step in [1900, 1800] {
                let second = rogue.send(&node, &rogue.id(), Timelock::new(step)?, sets.clone(), &honest)?;
                let refused = rogue.start(second.request).await.err().context("the leaf was sent twice")?;
                ensure!(reason(&refused) == "LEAF_UNAVAILABLE", "{refused:?}");
            }
        }
        ensure!(rogue.statuses(&leaf).await? == ["TRANSFER_LOCKED"; 3], "something unlocked it");
        // The receiver gets it.
        eventually("claim", || async {
            bob.run_all(&["receive"]).await?;
            Ok(available(&bob).await? == 54_000)
        })
        .await
    })
}

async fn raw(devnet: &spark_devnet::network::Devnet, txid: bitcoin::Txid) -> anyhow::Result<Transaction> {
    let hex: String =
        devnet.bitcoind().rpc().call("getrawtransaction", serde_json::json!([txid.to_string()])).await?;
    Ok(bitcoin::consensus::encode::deserialize_hex(&hex)?)
}

type Change = Box<dyn Fn(&mut Transaction) + Sync>;

fn change(change: impl Fn(&mut Transaction) + Sync + 'static) -> Change {
    Box::new(change)
}

fn sequence(raw: u32) -> Change {
    change(move |tx| {
        for input in &mut tx.input {
            input.sequence = Sequence::from_consensus(raw);
        }
    })
}

/// Every way to make a refund valid early, or to make it pay something else.
fn tampers() -> Vec<(&'static str, Change)> {
    vec![
        ("disabled", sequence(0xffff_ffff)),
        ("disabled, blocks below", sequence(1 << 31 | 2000)),
        ("seconds", sequence(1 << 22 | 2000)),
        ("nothing", sequence(0)),
        ("one block", sequence(1)),
        ("marker only", sequence(1 << 30)),
        ("sixteen bits", sequence(0xffff)),
        ("version 1: no relative timelocks", change(|tx| tx.version = Version::ONE)),
        ("version 2", change(|tx| tx.version = Version::TWO)),
        ("absolute", change(|tx| tx.lock_time = LockTime::from_consensus(1))),
        (
            "value",
            change(|tx| {
                if let Some(output) = tx.output.first_mut() {
                    output.value = Amount::from_sat(output.value.to_sat() / 2);
                }
            }),
        ),
        ("no anchor", change(|tx| tx.output.truncate(1))),
    ]
}

/// X8: no depositor and no sender gets a refund that is valid earlier than the ladder says.
#[test]
fn x8_no_refund_that_is_valid_early() -> anyhow::Result<()> {
    with(async |devnet| {
        let alice = WalletCommand::create(devnet, "x8-alice", 2).await?;
        let answer = alice.run(&["deposit", "address"]).await?;
        let (address, leaf) = (text(&answer, "address")?, text(&answer, "leaf_id")?);
        let txid = pay(devnet, &address, 56_000).await?;
        devnet.faucet().mine(1).await?;
        let outputs = outputs_to(&raw(devnet, txid).await?, &address)?;
        {
            let rogue = Rogue::of(&alice)?;
            for (name, change) in tampers() {
                for victim in [Purpose::Refund, Purpose::DirectFromCpfpRefund] {
                    if victim != Purpose::Refund && name == "no anchor" {
                        // It pays its own fee and has none.
                        continue;
                    }
                    let tamper: Tamper<'_> = &|purpose, tx| {
                        if purpose == victim {
                            change(tx);
                        }
                    };
                    let request = rogue.deposit(&leaf, &outputs, tamper).await?;
                    let refused = rogue.finalize(request).await.err();
                    let refused = refused.with_context(|| format!("deposit, {victim}: {name}"))?;
                    ensure!(reason(&refused) == "RULE_VIOLATED", "{victim} {name}: {refused:?}");
                }
            }
            ensure!(rogue.statuses(&leaf).await? == [""; 3], "a refused deposit made a leaf");
        }
        // The refusals used nothing up.
        alice.run(&["deposit", "claim", "--address", &address]).await?;
        eventually("deposit is available", || async { Ok(available(&alice).await? == 56_000) }).await?;

        let rogue = Rogue::of(&alice)?;
        let node = rogue.node(&leaf).await?;
        for (name, change) in tampers() {
            let tamper: Tamper<'_> = &|_, tx| change(tx);
            let sets = rogue.commitments(Some(&leaf), 3).await?;
            let sent = rogue.send(&node, &rogue.id(), Timelock::new(1900)?, sets, tamper)?;
            let refused = rogue.start(sent.request).await.err().with_context(|| format!("send: {name}"))?;
            ensure!(reason(&refused) == "RULE_VIOLATED", "{name}: {refused:?}");
        }
        // Steps that are none, or not lower.
        for step in [2000u32, 1950, 50, 0] {
            let tamper: Tamper<'_> = &|purpose, tx| {
                let offset = if purpose == Purpose::Refund { 0 } else { 50 };
                for input in &mut tx.input {
                    input.sequence = Sequence::from_consensus(step + offset);
                }
            };
            let sets = rogue.commitments(Some(&leaf), 3).await?;
            let sent = rogue.send(&node, &rogue.id(), Timelock::new(1900)?, sets, tamper)?;
            let refused = rogue.start(sent.request).await.err().with_context(|| format!("step {step}"))?;
            ensure!(reason(&refused) == "RULE_VIOLATED", "{step}: {refused:?}");
        }
        ensure!(rogue.statuses(&leaf).await? == ["AVAILABLE"; 3], "a refused send touched the leaf");
        Ok(())
    })
}

/// X23: whatever goes wrong has a code and a stable reason; nothing is "something went wrong".
#[test]
fn x23_every_refusal_has_a_stable_reason() -> anyhow::Result<()> {
    with(async |devnet| {
        let alice = WalletCommand::create(devnet, "x23-alice", 1).await?;
        let leaf = deposit(devnet, &alice, 58_000).await?;
        let rogue = Rogue::of(&alice)?;
        let stranger = WalletCommand::create(devnet, "x23-stranger", 1).await?;
        let stranger = Rogue::of(&stranger)?;
        let check = |what: &str, expected: (Code, &str), refused: Option<Status>| -> anyhow::Result<()> {
            let status = refused.with_context(|| format!("{what}: not refused"))?;
            let info = status.get_details_error_info().with_context(|| format!("{what}: {status:?}"))?;
            ensure!(info.domain == "spark.operator", "{what}: {info:?}");
            ensure!((status.code(), info.reason.as_str()) == expected, "{what}: {status:?}");
            ensure!(!status.message().is_empty(), "{what}: no text");
            Ok(())
        };
        let balance = |key: Vec<u8>| spark::QueryBalanceRequest {
            identity_public_key: key,
            ..spark::QueryBalanceRequest::default()
        };
        let query = async |request: spark::QueryBalanceRequest| {
            rogue.call(request, |mut c, r| async move { c.query_balance(r).await }).await.err()
        };
        check("another's", (Code::PermissionDenied, "NOT_OWNER"), query(balance(stranger.id_bytes())).await)?;
        check("no key", (Code::InvalidArgument, "FIELD_INVALID"), query(balance(Vec::new())).await)?;

        let swap = rogue.call((), |mut c, _| async move {
            c.start_leaf_swap_v2(spark::StartTransferRequest::default()).await
        });
        check("not offered", (Code::Unimplemented, "UNIMPLEMENTED"), swap.await.err())?;

        let node = rogue.node(&leaf).await?;
        let step = Timelock::new(1900)?;
        let fresh = async || rogue.commitments(Some(&leaf), 3).await;
        let honest_send =
            async || anyhow::Ok(rogue.send(&node, &stranger.id(), step, fresh().await?, &honest)?.request);
        let mut sent = honest_send().await?;
        sent.transfer_id = "x".into();
        check("id", (Code::InvalidArgument, "FIELD_INVALID"), rogue.start(sent).await.err())?;
        let mut sent = honest_send().await?;
        if let Some(package) = &mut sent.transfer_package {
            package.user_signature =
                rogue.wallet.keys().identity().sign_ecdsa([1; 32])?.serialize_der().to_vec();
        }
        check("signature", (Code::FailedPrecondition, "RULE_VIOLATED"), rogue.start(sent).await.err())?;
        let mut sent = honest_send().await?;
        sent.receiver_identity_public_key = rogue.id_bytes();
        check("receiver", (Code::FailedPrecondition, "RULE_VIOLATED"), rogue.start(sent).await.err())?;
        let mut unknown = node.clone();
        unknown.id = spark_rules::ids::LeafId::parse(&uuid::Uuid::now_v7().to_string())?;
        let sent = rogue.send(&unknown, &stranger.id(), step, fresh().await?, &honest)?.request;
        check("unknown leaf", (Code::NotFound, "OPERATION_UNKNOWN"), rogue.start(sent).await.err())?;

        // Nonces that a signer does not know: public wallets must fetch fresh ones, which they do for this text.
        let sets = fresh().await?;
        let sent = rogue.send(&node, &stranger.id(), step, sets.clone(), &honest)?.request;
        rogue.start(sent).await?;
        let twice = rogue.send(&node, &stranger.id(), step, sets, &honest)?.request;
        let refused = rogue.start(twice).await.err();
        check("leaf is gone", (Code::FailedPrecondition, "LEAF_UNAVAILABLE"), refused)?;
        let others = stranger.commitments(Some(&leaf), 3).await.err().context("nonces of another's leaf")?;
        ensure!(!reason(&others).is_empty(), "nonces of another's leaf: {others:?}");
        Ok(())
    })
}
