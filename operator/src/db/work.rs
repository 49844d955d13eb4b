//! The few transactions in which the engine changes more than one table.

use spark_rules::{ids::OperatorIndex, operation::PAYMENT};
use uuid::Uuid;

use super::{
    Db, DbError, address, claim, delivery,
    delivery::Message,
    event,
    htlc::{self, HtlcRow, HtlcState},
    in_transaction,
    leaf::{self, LeafWrite, SignedTxRow},
    operation::{self, AttemptId, NewOperation, State},
    receipt::{self, ReceiptRow},
    transfer::{self, TransferLeafRow, TransferRow},
    vote,
};

/// What an attempt takes for itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// Leaves and the version taken.
    pub leaves: Vec<(Uuid, i64)>,
    /// Other resources by kind and key.
    pub resources: Vec<(&'static str, Vec<u8>)>,
}

/// A verified vote with its storage form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoteWrite {
    /// Who.
    pub signer: OperatorIndex,
    /// `YES`, `NO` or `ABORT`.
    pub choice: &'static str,
    /// Encoded `peer.v1.Vote`.
    pub body: Vec<u8>,
}

/// Everything that an applied operation writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppliedWrite {
    /// New state of leaves, parents before children.
    pub leaves: Vec<LeafWrite>,
    /// Signed transactions.
    pub signed: Vec<SignedTxRow>,
    /// A new transfer with its leaves.
    pub transfer: Option<(TransferRow, Vec<TransferLeafRow>)>,
    /// The transfer is pending: leaves and claims stay as they are until it ends.
    pub htlc: Option<HtlcRow>,
    /// Transfers and the receivers that have now claimed them.
    pub completed: Vec<(Uuid, Vec<u8>)>,
    /// The own signer's receipts and those that peers reported.
    pub receipts: Vec<ReceiptRow>,
    /// Leaf ids whose deposit address is now used.
    pub used_addresses: Vec<Uuid>,
    /// Outpoints to watch.
    pub watched: Vec<super::chain::WatchedRow>,
}

/// An event to announce: identity, kind, body.
pub type EventWrite = (Vec<u8>, &'static str, Vec<u8>);

/// Writes the intent with all its claims, or nothing.
pub async fn propose(db: &Db, new: &NewOperation, claims: &Claims) -> Result<(), DbError> {
    in_transaction!(db, tx => {
        operation::insert(&mut *tx, new, State::Proposed, "").await?;
        for (leaf_id, version) in &claims.leaves {
            claim::lock_leaf(&mut *tx, new.id, *leaf_id, *version).await?;
        }
        for (kind, key) in &claims.resources {
            claim::lock_resource(&mut *tx, new.id, kind, key).await?;
        }
    })
}

/// Writes an attempt that one's own records refuse; it holds no claim.
pub async fn refuse_new(db: &Db, new: &NewOperation, reason: &str) -> Result<(), DbError> {
    operation::insert(db.pool(), new, State::Refused, reason).await
}

/// The own signer voted YES.
pub async fn prepared(
    db: &Db,
    id: AttemptId,
    own: &VoteWrite,
    digest: &[u8; 32],
    opened: &[u8],
) -> Result<(), DbError> {
    in_transaction!(db, tx => {
        operation::set_vote(&mut *tx, id, &own.body, Some(digest), Some(opened), "").await?;
        vote::insert(&mut *tx, id, own.signer, own.choice, &own.body).await?;
        operation::advance(&mut *tx, id, &[State::Proposed], State::Prepared).await?;
    })
}

/// The own signer voted NO or ABORT. Claims fall at once if it never voted YES; after a YES only a proof of abort
/// frees them (D1). True if this is what ended the attempt here.
pub async fn refused(db: &Db, id: AttemptId, own: &VoteWrite, reason: &str) -> Result<bool, DbError> {
    in_transaction!(db, tx => {
        operation::set_vote(&mut *tx, id, &own.body, None, None, reason).await?;
        vote::insert(&mut *tx, id, own.signer, own.choice, &own.body).await?;
        let first = operation::advance(&mut *tx, id, &[State::Proposed], State::Refused).await?;
        if first {
            claim::release_leaves(&mut *tx, id).await?;
            claim::release_resources(&mut *tx, id).await?;
        }
        first
    })
}

/// Keeps votes of others.
pub async fn keep_votes(db: &Db, id: AttemptId, votes: &[VoteWrite]) -> Result<(), DbError> {
    if votes.is_empty() {
        return Ok(());
    }
    in_transaction!(db, tx => {
        for v in votes {
            vote::insert(&mut *tx, id, v.signer, v.choice, &v.body).await?;
        }
    })
}

/// YES of the quorum is known; `votes` are those that were not kept before.
pub async fn certified(
    db: &Db,
    id: AttemptId,
    certificate: &[u8],
    votes: &[VoteWrite],
) -> Result<(), DbError> {
    in_transaction!(db, tx => {
        for v in votes {
            vote::insert(&mut *tx, id, v.signer, v.choice, &v.body).await?;
        }
        operation::set_certificate(&mut *tx, id, certificate).await?;
        operation::advance(&mut *tx, id, &[State::Proposed, State::Prepared], State::Certified).await?;
    })
}

/// A proof of commit is known; `tell` are the peers that must hear it from us.
pub async fn committed(
    db: &Db,
    id: AttemptId,
    proof: &[u8],
    certificate: &[u8],
    tell: &[OperatorIndex],
) -> Result<(), DbError> {
    in_transaction!(db, tx => {
        operation::set_proof(&mut *tx, id, proof).await?;
        operation::set_certificate(&mut *tx, id, certificate).await?;
        operation::advance(
            &mut *tx,
            id,
            &[State::Proposed, State::Prepared, State::Certified, State::Refused],
            State::Committed,
        )
        .await?;
        for peer in tell {
            delivery::push(&mut *tx, *peer, id, Message::Apply).await?;
        }
    })
}

/// These peers applied: nothing is left to tell them. With it, what they say of their keys.
pub async fn told(
    db: &Db,
    id: AttemptId,
    peers: &[OperatorIndex],
    receipts: &[ReceiptRow],
) -> Result<(), DbError> {
    if peers.is_empty() {
        return Ok(());
    }
    in_transaction!(db, tx => {
        for r in receipts {
            receipt::upsert(&mut *tx, r).await?;
        }
        for peer in peers {
            delivery::delivered(&mut *tx, *peer, id, Message::Apply).await?;
        }
    })
}

/// The own signer applied; domain rows change in the same transaction as the state. A repeat changes nothing.
/// True the first time.
pub async fn applied(db: &Db, id: AttemptId, write: &AppliedWrite) -> Result<bool, DbError> {
    in_transaction!(db, tx => {
        let first = operation::advance(&mut *tx, id, &[State::Committed], State::Applied).await?;
        if first {
            if write.htlc.is_none() {
                claim::spend_leaves(&mut *tx, id).await?;
                claim::spend_resources(&mut *tx, id).await?;
            }
            for l in &write.leaves {
                leaf::upsert(&mut *tx, l).await?;
                leaf::insert_history(&mut *tx, id, l).await?;
            }
            for t in &write.signed {
                leaf::insert_signed(&mut *tx, id, t).await?;
            }
            if let Some((t, leaves)) = &write.transfer {
                transfer::insert(&mut *tx, t).await?;
                transfer::insert_shares(&mut *tx, t, leaves).await?;
                for l in leaves {
                    transfer::insert_leaf(&mut *tx, l).await?;
                }
                if let Some(pending) = &write.htlc {
                    htlc::insert(&mut *tx, pending).await?;
                    for l in leaves {
                        leaf::show(&mut *tx, l.leaf_id, "TRANSFER_LOCKED").await?;
                    }
                }
            }
            for (transfer_id, receiver) in &write.completed {
                transfer::complete(&mut tx, *transfer_id, receiver).await?;
            }
            for leaf_id in &write.used_addresses {
                address::mark_used(&mut *tx, *leaf_id).await?;
                super::chain::unwatch(&mut *tx, *leaf_id).await?;
            }
            for w in &write.watched {
                super::chain::watch(&mut *tx, w).await?;
            }
            for leaf_id in &write.used_addresses {
                super::confirm::promote(&mut tx, *leaf_id, db.deposit_depth()).await?;
            }
        }
        for r in &write.receipts {
            receipt::upsert(&mut *tx, r).await?;
        }
        first
    })
}

/// The second decision of a conditional transfer was applied by the own signer: `write.leaves` are the receiver's, or
/// the sender's again. True the first time.
pub async fn ended(db: &Db, row: &HtlcRow, state: HtlcState, write: &AppliedWrite) -> Result<bool, DbError> {
    let id = row.id();
    in_transaction!(db, tx => {
        let first = htlc::end(&mut *tx, id, state).await?;
        if first {
            if state == HtlcState::Settled {
                claim::spend_leaves(&mut *tx, id).await?;
                transfer::set_status(&mut tx, row.transfer_id, transfer::SENDER_KEY_TWEAKED).await?;
                for l in &write.leaves {
                    leaf::insert_history(&mut *tx, id, l).await?;
                }
            } else {
                claim::release_leaves(&mut *tx, id).await?;
                claim::release_kind(&mut *tx, id, PAYMENT).await?;
                transfer::set_status(&mut tx, row.transfer_id, transfer::RETURNED).await?;
            }
            claim::spend_resources(&mut *tx, id).await?;
            for l in &write.leaves {
                leaf::upsert(&mut *tx, l).await?;
            }
            for w in &write.watched {
                super::chain::watch(&mut *tx, w).await?;
            }
        }
        for r in &write.receipts {
            receipt::upsert(&mut *tx, r).await?;
        }
        first
    })
}

/// Every operator has ended it: events go out, once.
pub async fn announced(db: &Db, id: AttemptId, events: &[EventWrite]) -> Result<(), DbError> {
    in_transaction!(db, tx => {
        if htlc::announce(&mut *tx, id).await? {
            for (identity, kind, body) in events {
                event::insert(&mut *tx, identity, kind, body).await?;
            }
        }
    })
}

/// Takes over an outcome that the signer applied and these tables never saw: only what is newer than their rows.
pub async fn adopt(db: &Db, write: &AppliedWrite) -> Result<(), DbError> {
    in_transaction!(db, tx => {
        let mut newer = std::collections::BTreeSet::new();
        for l in &write.leaves {
            if leaf::get(&mut *tx, l.leaf_id).await?.is_none_or(|known| known.version < l.version) {
                leaf::upsert(&mut *tx, l).await?;
                newer.insert(l.leaf_id);
            }
        }
        if let Some((t, leaves)) = &write.transfer
            && transfer::get(&mut *tx, t.transfer_id).await?.is_none()
        {
            transfer::insert(&mut *tx, t).await?;
            transfer::insert_shares(&mut *tx, t, leaves).await?;
            for l in leaves {
                transfer::insert_leaf(&mut *tx, l).await?;
            }
        }
        for (transfer_id, receiver) in &write.completed {
            transfer::complete(&mut tx, *transfer_id, receiver).await?;
        }
        for leaf_id in &write.used_addresses {
            address::mark_used(&mut *tx, *leaf_id).await?;
            if newer.contains(leaf_id) {
                super::chain::unwatch(&mut *tx, *leaf_id).await?;
            }
        }
        for w in write.watched.iter().filter(|w| w.leaf_id.is_some_and(|leaf| newer.contains(&leaf))) {
            super::chain::watch(&mut *tx, w).await?;
        }
        for leaf_id in &write.used_addresses {
            super::confirm::promote(&mut tx, *leaf_id, db.deposit_depth()).await?;
        }
    })
}

/// The commit quorum applied: the outcome may be shown and events go out. With `everywhere`, every operator did, and
/// the request with its ciphertexts is dropped.
pub async fn done(db: &Db, id: AttemptId, events: &[EventWrite], everywhere: bool) -> Result<bool, DbError> {
    in_transaction!(db, tx => {
        let first = operation::advance(&mut *tx, id, &[State::Applied], State::Done).await?;
        if everywhere {
            operation::drop_request(&mut *tx, id).await?;
        }
        if first {
            for leaf_id in leaf::creating_of(&mut *tx, id).await? {
                super::confirm::promote(&mut tx, leaf_id, db.deposit_depth()).await?;
            }
            for (identity, kind, body) in events {
                event::insert(&mut *tx, identity, kind, body).await?;
            }
        }
        first
    })
}

/// A proof of abort is known; claims are released. `tell` are the peers that must hear it from us. True if this is
/// what ended the attempt here, false if it was refused before or the proof was known.
pub async fn aborted(db: &Db, id: AttemptId, proof: &[u8], tell: &[OperatorIndex]) -> Result<bool, DbError> {
    in_transaction!(db, tx => {
        operation::set_abort_proof(&mut *tx, id, proof).await?;
        let live = [State::Proposed, State::Prepared, State::Certified];
        let first = operation::advance(&mut *tx, id, &live, State::Aborted).await?;
        if first || operation::advance(&mut *tx, id, &[State::Refused], State::Aborted).await? {
            claim::release_leaves(&mut *tx, id).await?;
            claim::release_resources(&mut *tx, id).await?;
            operation::drop_request(&mut *tx, id).await?;
        }
        for peer in tell {
            delivery::push(&mut *tx, *peer, id, Message::Abort).await?;
        }
        first
    })
}

/// Writes again the intent of an attempt that the signer's journal knows and these tables lost (D10).
pub async fn restore(db: &Db, new: &NewOperation, claims: &Claims) -> Result<bool, DbError> {
    if operation::get(db.pool(), new.id).await?.is_some() {
        return Ok(false);
    }
    propose(db, new, claims).await.map(|()| true)
}
