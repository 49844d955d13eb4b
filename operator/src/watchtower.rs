//! Watchtower: who is away loses nothing to somebody who publishes what is no longer theirs.
//!
//! Whoever ever owned a leaf can publish its node tx, and a former owner a refund of their own under it, which matures
//! later than the present owner's. Once a node tx is in a block, the present owner's refund is broadcast as soon as it
//! matures: the one that pays its own fee, so that nobody has to add one. Every operator does it; the second one hears
//! that it is there already.
//!
//! Leaves in flight are left alone: which transaction is right depends on how the flight ends.

use std::{future::Future, pin::pin, sync::Arc};

use bitcoin::{OutPoint, Transaction, Txid, hashes::Hash as _, relative::LockTime};
use spark_rules::leaf::LeafRecord;
use tokio::sync::watch;

use crate::{
    chain::{ChainError, ChainSource, ChainStatus, OutputState, Spent},
    db::{Db, DbError, chain},
};

/// Exits looked at after a block, the oldest first.
const MOST: i64 = 500;
/// Blocks after which an exit is nobody's concern any more: longer than any timelock, twice over.
const LONGEST: u32 = 8192;

/// A refund that is to be broadcast, once its time has come.
#[derive(Debug, PartialEq, Eq)]
struct Refund<'a> {
    tx: &'a Transaction,
    spends: OutPoint,
    /// First height of a block that may hold it.
    matures: u32,
}

/// The present owner's refund under a node tx, or its direct twin, that a block of this height holds.
fn refund<'a>(record: &'a LeafRecord, node: &Txid, height: u32) -> Option<Refund<'a>> {
    let tx = if record.node_tx.compute_txid() == *node {
        &record.refunds.direct_from_cpfp
    } else {
        record.refunds.direct.as_ref()?
    };
    let input = tx.input.first()?;
    // Not signed, or below another transaction.
    if input.witness.is_empty() || input.previous_output.txid != *node {
        return None;
    }
    let LockTime::Blocks(blocks) = input.sequence.to_relative_lock_time()? else { return None };
    let matures = height.checked_add(blocks.value().into())?;
    Some(Refund { tx, spends: input.previous_output, matures })
}

/// Why a look after a block ended early. The next block brings the next look.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// Looks after every block until `stop`.
pub async fn run(
    db: Db,
    source: Arc<dyn ChainSource>,
    mut blocks: watch::Receiver<ChainStatus>,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    loop {
        let tip = blocks.borrow_and_update().tip;
        if let Some(tip) = tip
            && let Err(error) = look(&db, &*source, tip.height).await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "watchtower");
        }
        tokio::select! {
            () = &mut stop => return,
            changed = blocks.changed() => if changed.is_err() { return },
        }
    }
}

async fn look(db: &Db, source: &dyn ChainSource, tip: u32) -> Result<(), LookError> {
    for exit in chain::exits(db.pool(), tip.saturating_sub(LONGEST), MOST).await? {
        let (Ok(record), Ok(node)) = (LeafRecord::decode(&exit.record), Txid::from_slice(&exit.spender_txid))
        else {
            tracing::error!(leaf = %exit.leaf_id, "the record of a leaf does not decode");
            continue;
        };
        let height = u32::try_from(exit.height).unwrap_or(u32::MAX);
        let Some(refund) = refund(&record, &node, height) else { continue };
        if refund.matures > tip.saturating_add(1) {
            continue;
        }
        let state = source.output(&refund.spends).await?;
        if !matches!(state, OutputState::Confirmed { spent: Spent::No, .. }) {
            continue;
        }
        match source.broadcast(refund.tx).await {
            Ok(()) => tracing::info!(leaf = %exit.leaf_id, "watchtower: refund broadcast"),
            // Another one was faster, or the node wants a higher fee: the next look tries again.
            Err(ChainError::Refused { code, .. }) => {
                tracing::warn!(leaf = %exit.leaf_id, code, "watchtower: refund refused");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bitcoin::{Sequence, Witness};
    use spark_rules::leaf::LeafStatus;

    use super::*;
    use crate::{
        db::{
            chain::{SpendRow, exits, insert_event},
            headers::{self, HeaderRow},
            testing::database,
        },
        rpc::testing::{put_leaf, record},
    };

    fn signed(status: LeafStatus) -> LeafRecord {
        let mut record = record(1, 2, 0, status);
        let refund = &mut record.refunds.direct_from_cpfp.input[0];
        refund.sequence = Sequence(1 << 30 | 2050);
        refund.witness = Witness::from_slice(&[[7; 64]]);
        record
    }

    #[test]
    fn a_refund_is_due_when_it_matures() {
        let record = signed(LeafStatus::Available);
        let node = record.node_tx.compute_txid();
        let due = refund(&record, &node, 100).unwrap();
        assert_eq!((due.matures, due.spends), (2150, OutPoint { txid: node, vout: 0 }));
        assert_eq!(due.tx, &record.refunds.direct_from_cpfp);
        // There is no direct node tx, so nothing is under another transaction.
        assert_eq!(refund(&record, &Txid::all_zeros(), 100), None);
        assert_eq!(refund(&record, &node, u32::MAX), None);
        let mut unsigned = record;
        unsigned.refunds.direct_from_cpfp.input[0].witness = Witness::new();
        assert_eq!(refund(&unsigned, &node, 100), None);
    }

    #[test]
    fn the_direct_twin_has_a_refund_of_its_own() {
        let mut record = signed(LeafStatus::Available);
        let mut twin = record.node_tx.clone();
        twin.output[0].value = bitcoin::Amount::from_sat(900);
        let mut direct = record.refunds.direct_from_cpfp.clone();
        direct.input[0].previous_output.txid = twin.compute_txid();
        record.direct_node_tx = Some(twin.clone());
        record.refunds.direct = Some(direct.clone());
        assert_eq!(refund(&record, &twin.compute_txid(), 5).unwrap().tx, &direct);
        // Any other spend of the deposit is none of ours.
        assert_eq!(refund(&record, &Txid::from_byte_array([9; 32]), 5), None);
    }

    #[tokio::test]
    async fn exits_are_node_txs_in_blocks_of_leaves_at_rest() {
        let db = database().await;
        let record = signed(LeafStatus::Available);
        put_leaf(&db, &record).await;
        let node = record.node_tx.compute_txid().to_byte_array().to_vec();
        let header = HeaderRow { height: 100, hash: vec![4; 32], prev_hash: vec![3; 32], block_time: 0 };
        headers::insert(db.pool(), &header).await.unwrap();
        assert!(exits(db.pool(), 0, 10).await.unwrap().is_empty());
        let below = record.node_tx.input[0].previous_output;
        let spend = SpendRow {
            txid: below.txid.to_byte_array().to_vec(),
            vout: below.vout.into(),
            spender_txid: node.clone(),
            kind: "NODE".into(),
            leaf_id: Some(record.leaf_id.uuid()),
        };
        insert_event(db.pool(), &spend, 100, &[4; 32]).await.unwrap();
        let found = exits(db.pool(), 0, 10).await.unwrap();
        assert_eq!((found.len(), found[0].height, &found[0].spender_txid), (1, 100, &node));
        assert!(exits(db.pool(), 100, 10).await.unwrap().is_empty(), "long ago");
        // In flight it is left alone.
        put_leaf(&db, &LeafRecord { version: 1, ..signed(LeafStatus::TransferLocked) }).await;
        assert!(exits(db.pool(), 0, 10).await.unwrap().is_empty());
        put_leaf(&db, &LeafRecord { version: 2, ..signed(LeafStatus::Available) }).await;
        // And once somebody has spent it there is nothing left to do.
        let taken =
            SpendRow { txid: node, vout: 0, spender_txid: vec![8; 32], kind: "REFUND".into(), ..spend };
        insert_event(db.pool(), &taken, 100, &[4; 32]).await.unwrap();
        assert!(exits(db.pool(), 0, 10).await.unwrap().is_empty());
    }
}
