//! X21: an operator that waits for another still serves, and what is asked twice is done once.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, ensure};
use futures::future::join_all;
use spark_devnet::wallet::WalletCommand;
use spark_proto::spark;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::support::{
    deposit, eventually, network,
    rogue::{Rogue, reason},
};

/// Three times the connections that an operator has to its database.
const CALLS: usize = 60;

fn retryable(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::Aborted)
        && !reason(status).is_empty()
}

/// X21: while a peer hangs, many calls wait for it. None of them holds a connection to the database, so reads are
/// answered; every waiting call ends with a typed answer; and each may be repeated without being done twice.
#[tokio::test(flavor = "multi_thread")]
async fn x21_a_hanging_peer_blocks_nobody_and_repeats_are_harmless() -> anyhow::Result<()> {
    let mut devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 0).await?;
    let leaf = deposit(&devnet, &alice, 68_000).await?;
    let (alice, bob) = (Arc::new(Rogue::of(&alice)?), Rogue::of(&bob)?);
    let sent = alice.next_send(&leaf, &bob.id()).await?.request;
    let address = |leaf: Uuid| {
        let alice = Arc::clone(&alice);
        async move {
            let id = spark_rules::ids::LeafId::parse(&leaf.as_hyphenated().to_string())
                .map_err(|e| Status::unknown(e.to_string()))?;
            let key = alice.wallet.keys().leaf(&id).map_err(|e| Status::unknown(e.to_string()))?;
            let request = spark::GenerateDepositAddressRequest {
                signing_public_key: key.public_key().serialize().to_vec(),
                identity_public_key: alice.id_bytes(),
                network: spark::Network::Regtest as i32,
                leaf_id: Some(leaf.as_hyphenated().to_string()),
                is_static: Some(false),
                hash_variant: spark::HashVariant::V2 as i32,
            };
            let answer =
                alice.call(request, |mut c, r| async move { c.generate_deposit_address(r).await }).await?;
            answer.deposit_address.map(|a| a.address).ok_or_else(|| Status::unknown("no address"))
        }
    };
    // The session of the balance exists before anything hangs.
    let balance = async || {
        let request =
            spark::QueryBalanceRequest { identity_public_key: bob.id_bytes(), ..Default::default() };
        bob.call(request, |mut c, r| async move { c.query_balance(r).await }).await
    };
    balance().await?;

    devnet.process("operator-2")?.pause()?;
    let ended = Arc::new(AtomicUsize::new(0));
    let leaves: Vec<Uuid> = (0..CALLS).map(|_| Uuid::now_v7()).collect();
    let waiting: Vec<_> = leaves
        .iter()
        .map(|leaf| {
            let (call, ended) = (address(*leaf), Arc::clone(&ended));
            tokio::spawn(async move {
                let answer = call.await;
                ended.fetch_add(1, Ordering::SeqCst);
                answer
            })
        })
        .collect();
    let mut sends = Vec::new();
    for _ in 0..5 {
        let (alice, sent) = (Arc::clone(&alice), sent.clone());
        sends.push(tokio::spawn(async move { alice.start(sent).await }));
    }
    let mut reads = 0;
    while ended.load(Ordering::SeqCst) == 0 && reads < 40 {
        balance().await.context("a read was not answered while a peer hangs")?;
        reads += 1;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    ensure!(reads >= 10, "nothing hung: {reads} reads");
    devnet.process("operator-2")?.resume()?;

    let mut first = Vec::new();
    for answer in join_all(waiting).await {
        match answer? {
            Ok(address) => first.push(Some(address)),
            Err(status) => {
                ensure!(retryable(&status), "a waiting call ended with {status:?}");
                first.push(None);
            }
        }
    }
    for answer in join_all(sends).await {
        if let Err(status) = answer? {
            ensure!(!reason(&status).is_empty(), "a send ended with {status:?}");
        }
    }
    // Again, until all have an answer: the same address for the same leaf, another for another.
    let mut addresses = BTreeSet::new();
    for (leaf, before) in leaves.iter().zip(first) {
        let mut got = None;
        eventually("an address", || async {
            // The pool of keys may have to be filled first.
            Ok(address(*leaf).await.is_ok())
        })
        .await?;
        for _ in 0..2 {
            let now = address(*leaf).await?;
            ensure!(got.get_or_insert_with(|| now.clone()) == &now, "a repeat gave another address");
            ensure!(before.as_ref().is_none_or(|b| *b == now), "a repeat gave another address");
        }
        addresses.extend(got);
    }
    ensure!(addresses.len() == CALLS, "{} addresses for {CALLS} leaves", addresses.len());
    // The transfer happened at most once; the same words again find it, or were given up for good.
    let filter = spark::TransferFilter::default();
    let mut last = None;
    eventually("the send is decided", || async {
        match alice.start(sent.clone()).await {
            Ok(_) => Ok(true),
            Err(status) => Ok(reason(&status) == "LEAF_UNAVAILABLE"),
        }
    })
    .await?;
    for operator in 0..3 {
        let known = bob
            .call_at(operator, filter.clone(), |mut c, r| async move { c.query_pending_transfers(r).await })
            .await?
            .transfers;
        ensure!(known.len() <= 1, "one send, {} transfers", known.len());
        ensure!(*last.get_or_insert(known.len()) == known.len(), "operators disagree");
    }
    Ok(())
}
