//! X19, X20: what concerns others.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use spark_devnet::wallet::WalletCommand;
use spark_proto::{
    signer::v1::GetReceiptsRequest,
    spark::{
        self, query_nodes_request::Source, subscribe_to_events_response::Event, transfer_filter::Participant,
    },
};
use tonic::{Code, Status, Streaming};

use crate::support::{
    available, deposit, eventually,
    rogue::{Rogue, reason},
    transfer,
    world::with,
};

type Stream = Streaming<spark::SubscribeToEventsResponse>;

async fn subscribe(rogue: &Rogue, identity_public_key: Vec<u8>) -> Result<Stream, Status> {
    let request = spark::SubscribeToEventsRequest { identity_public_key };
    rogue.call(request, |mut c, r| async move { c.subscribe_to_events(r).await }).await
}

/// The next event that says something; none within `wait`.
async fn next(stream: &mut Stream, wait: Duration) -> anyhow::Result<Option<Event>> {
    let told = async {
        loop {
            let event = stream.message().await?.context("stream ended")?.event.context("empty event")?;
            if !matches!(event, Event::Connected(_) | Event::Heartbeat(_)) {
                return anyhow::Ok(event);
            }
        }
    };
    match tokio::time::timeout(wait, told).await {
        Ok(event) => event.map(Some),
        Err(_) => Ok(None),
    }
}

/// X19: nobody hears another's events, and nobody takes a stream away from its owner.
#[test]
fn x19_events_are_for_their_owner_on_every_stream() -> anyhow::Result<()> {
    with(async |devnet| {
        let alice = WalletCommand::create(devnet, "x19-alice", 0).await?;
        let bob = WalletCommand::create(devnet, "x19-bob", 0).await?;
        let mallory = WalletCommand::create(devnet, "x19-mallory", 0).await?;
        let leaf = deposit(devnet, &alice, 64_000).await?;
        let (sender, receiver, thief) = (Rogue::of(&alice)?, Rogue::of(&bob)?, Rogue::of(&mallory)?);

        let refused = subscribe(&thief, receiver.id_bytes()).await.err().context("another's events")?;
        ensure!(refused.code() == Code::PermissionDenied && reason(&refused) == "NOT_OWNER", "{refused:?}");
        // In the reference a later stream of the same key silenced the earlier one.
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(subscribe(&receiver, receiver.id_bytes()).await?);
        }
        let mut own = subscribe(&thief, thief.id_bytes()).await?;
        for stream in &mut streams {
            let connected = stream.message().await?.and_then(|m| m.event);
            ensure!(matches!(connected, Some(Event::Connected(_))), "{connected:?}");
        }
        let sent = sender.next_send(&leaf, &receiver.id()).await?;
        sender.start(sent.request.clone()).await?;
        for stream in &mut streams {
            let event = next(stream, Duration::from_secs(60)).await?.context("a stream heard nothing")?;
            let Event::ReceiverTransfer(event) = event else { anyhow::bail!("{event:?}") };
            let id = event.transfer.map(|t| t.id);
            ensure!(id.as_ref() == Some(&sent.request.transfer_id), "{id:?}");
        }
        // The owner has heard it, so it went out: the thief has had its chance.
        let heard = next(&mut own, Duration::from_secs(2)).await?;
        ensure!(heard.is_none(), "a stranger heard {heard:?}");
        Ok(())
    })
}

/// X19: what happens while a wallet is away is told when it comes back, as what it missed or may have missed.
#[test]
fn x19_who_comes_back_hears_what_it_missed() -> anyhow::Result<()> {
    with(async |devnet| {
        let alice = WalletCommand::create(devnet, "x19-sender", 0).await?;
        let bob = WalletCommand::create(devnet, "x19-away", 0).await?;
        let leaf = deposit(devnet, &alice, 63_000).await?;
        let (sender, receiver) = (Rogue::of(&alice)?, Rogue::of(&bob)?);
        let mut stream = subscribe(&receiver, receiver.id_bytes()).await?;
        let connected = stream.message().await?.and_then(|m| m.event);
        ensure!(matches!(connected, Some(Event::Connected(_))), "{connected:?}");
        drop(stream);
        let sent = sender.next_send(&leaf, &receiver.id()).await?;
        sender.start(sent.request.clone()).await?;
        for _ in 0..2 {
            // Twice: what was told right before a stream ended may have been lost with it.
            let mut stream = subscribe(&receiver, receiver.id_bytes()).await?;
            let event = next(&mut stream, Duration::from_secs(60)).await?.context("nothing is told")?;
            let Event::ReceiverTransfer(event) = event else { anyhow::bail!("{event:?}") };
            let id = event.transfer.map(|t| t.id);
            ensure!(id.as_ref() == Some(&sent.request.transfer_id), "{id:?}");
        }
        Ok(())
    })
}

/// X20: with every query and every operator, a stranger with a session learns nothing of others.
#[test]
fn x20_strangers_see_nothing() -> anyhow::Result<()> {
    with(async |devnet| {
        let alice = WalletCommand::create(devnet, "x20-alice", 0).await?;
        let bob = WalletCommand::create(devnet, "x20-bob", 1).await?;
        let mallory = WalletCommand::create(devnet, "x20-mallory", 2).await?;
        let kept = deposit(devnet, &alice, 65_000).await?;
        let moved = deposit(devnet, &alice, 66_000).await?;
        transfer(&alice, &bob, 66_000).await?;
        alice.run(&["deposit", "address"]).await?;
        let (victim, id) = {
            let rogue = Rogue::of(&alice)?;
            let filter = spark::TransferFilter::default();
            let own =
                rogue.call(filter, |mut c, r| async move { c.query_all_transfers(r).await }).await?.transfers;
            (rogue.id_bytes(), own.first().context("alice sees her own transfer")?.id.clone())
        };
        let thief = Rogue::of(&mallory)?;
        for operator in 0..3 {
            // Without a name, or by id: as if they did not exist.
            for ids in [Vec::new(), vec![id.clone()]] {
                let filter = spark::TransferFilter { transfer_ids: ids, ..Default::default() };
                let all =
                    thief
                        .call_at(operator, filter.clone(), |mut c, r| async move {
                            c.query_all_transfers(r).await
                        })
                        .await?;
                let pending = thief
                    .call_at(operator, filter, |mut c, r| async move { c.query_pending_transfers(r).await })
                    .await?;
                ensure!(all.transfers.is_empty() && pending.transfers.is_empty(), "transfers of others");
            }
            for leaf in [&kept, &moved] {
                ensure!(thief.node_at(operator, leaf).await?.is_none(), "a leaf of others");
            }
            // By the owner's name: refused.
            let mut refusals = Vec::new();
            for participant in [
                Participant::SenderIdentityPublicKey(victim.clone()),
                Participant::ReceiverIdentityPublicKey(victim.clone()),
                Participant::SenderOrReceiverIdentityPublicKey(victim.clone()),
            ] {
                let filter = spark::TransferFilter { participant: Some(participant), ..Default::default() };
                refusals.push(
                    thief
                        .call_at(operator, filter, |mut c, r| async move { c.query_all_transfers(r).await })
                        .await
                        .err(),
                );
            }
            let nodes = spark::QueryNodesRequest {
                source: Some(Source::OwnerIdentityPubkey(victim.clone())),
                ..Default::default()
            };
            refusals.push(
                thief.call_at(operator, nodes, |mut c, r| async move { c.query_nodes(r).await }).await.err(),
            );
            let identity_public_key = victim.clone();
            let balance = spark::QueryBalanceRequest { identity_public_key, ..Default::default() };
            refusals.push(
                thief
                    .call_at(operator, balance, |mut c, r| async move { c.query_balance(r).await })
                    .await
                    .err(),
            );
            let identity_public_key = victim.clone();
            let unused =
                spark::QueryUnusedDepositAddressesRequest { identity_public_key, ..Default::default() };
            refusals.push(
                thief
                    .call_at(
                        operator,
                        unused,
                        |mut c, r| async move { c.query_unused_deposit_addresses(r).await },
                    )
                    .await
                    .err(),
            );
            for refused in refusals {
                let refused = refused.context("answered about others")?;
                ensure!(refused.code() == Code::PermissionDenied, "{refused:?}");
            }
        }
        // The deletion log would tell who owned a leaf and when.
        for operator in thief.wallet.operators().all() {
            for leaf_id in [kept.clone(), moved.clone()] {
                let request = GetReceiptsRequest { leaf_id, tree_size: 0, from: 0 };
                let told = operator
                    .log(thief.wallet.keys().identity(), request, |mut c, r| async move {
                        c.get_receipts(r).await
                    })
                    .await;
                ensure!(told.is_err(), "receipts of another's leaf");
            }
        }
        ensure!(thief.commitments(Some(&kept), 1).await.is_err(), "nonces of another's leaf");
        drop(thief);
        eventually("the owners see theirs", || async {
            Ok(available(&alice).await? == 65_000 && available(&bob).await? == 66_000)
        })
        .await
    })
}
