//! From records to the public wire: `spark.TreeNode` and `spark.Transfer` as wallets require them.

use std::collections::BTreeMap;

use bitcoin::{Transaction, consensus::encode::serialize};
use prost_types::Timestamp;
use spark_proto::spark;
use spark_rules::{
    federation::Federation,
    ids::{LeafId, TransferId},
    leaf::{LeafRecord, LeafStatus},
};

use crate::db::{
    DbError,
    query_node::NodeRow,
    query_transfer::TransferNodeRow,
    transfer::{COMPLETED, ShareRow, TransferRow},
};

/// A stored row that cannot be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The stored record does not parse.
    #[error("stored record of leaf {0} is malformed")]
    Record(uuid::Uuid),
    /// A column holds a value that this program never writes.
    #[error("stored value is malformed ({0})")]
    Column(&'static str),
    /// No answer from the database.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// What all answers say of the federation.
#[derive(Debug, Clone)]
pub struct Converter {
    identifiers: Vec<String>,
    threshold: u32,
}

/// From whose side a transfer is shown. A receiver of several sees its own part and nothing of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side<'a> {
    /// Everything.
    Sender,
    /// What this identity gets.
    Receiver(&'a [u8]),
}

impl Side<'_> {
    fn shows(self, receiver: &[u8]) -> bool {
        match self {
            Self::Sender => true,
            Self::Receiver(key) => key == receiver,
        }
    }
}

/// A leaf with what the record does not hold.
struct Shown<'a> {
    record: &'a LeafRecord,
    status: LeafStatus,
    created_micros: i64,
    updated_micros: i64,
}

impl Converter {
    /// For one federation.
    pub fn new(federation: &Federation) -> Self {
        Self {
            identifiers: federation.indices().map(|index| index.identifier_hex()).collect(),
            threshold: federation.threshold().into(),
        }
    }

    /// A leaf, or a node above one.
    pub fn node(&self, row: &NodeRow) -> Result<spark::TreeNode, ConvertError> {
        let record = record(row.leaf_id, &row.record)?;
        Ok(self.tree_node(&Shown {
            record: &record,
            status: status(&row.status)?,
            created_micros: row.created_micros,
            updated_micros: row.updated_micros,
        }))
    }

    /// A transfer with its receivers and leaves, which must be those of this transfer in the order of its package.
    pub fn transfer(
        &self,
        row: &TransferRow,
        shares: &[ShareRow],
        leaves: &[TransferNodeRow],
        side: Side<'_>,
        network: spark::Network,
    ) -> Result<spark::Transfer, ConvertError> {
        let several = shares.len() > 1;
        let shown: Vec<&ShareRow> = shares.iter().filter(|share| side.shows(&share.receiver)).collect();
        let first = shown.first().ok_or(ConvertError::Column("transfer_receiver"))?;
        let (status, total) = match side {
            Side::Sender => (row.status, row.total),
            Side::Receiver(_) => (first.status, first.total),
        };
        let mut own = Vec::new();
        for leaf in leaves.iter().filter(|leaf| side.shows(&leaf.receiver)) {
            let share = shown.iter().find(|share| share.receiver == leaf.receiver);
            let share = share.ok_or(ConvertError::Column("transfer_leaf.receiver"))?;
            own.push(self.transfer_leaf(share, leaf, several)?);
        }
        // Lists of participants belong to transfers with several of them.
        let listed = shown.iter().filter(|_| several);
        let receivers = listed.map(|share| receiver(share)).collect::<Result<_, _>>()?;
        Ok(spark::Transfer {
            id: row.transfer_id.as_hyphenated().to_string(),
            sender_identity_public_key: row.sender.clone(),
            receiver_identity_public_key: first.receiver.clone(),
            status: status.into(),
            total_value: unsigned("transfer.total", total)?,
            expiry_time: row.expiry.map(timestamp),
            leaves: own,
            created_time: Some(timestamp(row.created_micros)),
            updated_time: Some(timestamp(row.updated_micros)),
            r#type: row.kind.into(),
            spark_invoice: row.invoice.clone(),
            network: network.into(),
            receivers,
            senders: Vec::new(),
        })
    }

    fn transfer_leaf(
        &self,
        share: &ShareRow,
        leaf: &TransferNodeRow,
        several: bool,
    ) -> Result<spark::TransferLeaf, ConvertError> {
        let current = record(leaf.leaf_id, &leaf.current_record)?;
        // After the claim the leaf is shown as it is, but only while it is the receiver's: who got it next is nobody's
        // business.
        let claimed = share.status == COMPLETED
            && leaf.current_version > leaf.leaf_version
            && current.owner_identity.serialize().as_slice() == share.receiver.as_slice();
        let (shown, status) = if claimed {
            (current, status(&leaf.status)?)
        } else {
            (record(leaf.leaf_id, &leaf.record)?, LeafStatus::TransferLocked)
        };
        Ok(spark::TransferLeaf {
            leaf: Some(self.tree_node(&Shown {
                record: &shown,
                status,
                created_micros: leaf.created_micros,
                updated_micros: leaf.updated_micros,
            })),
            secret_cipher: leaf.secret_cipher.clone(),
            signature: leaf.signature.clone(),
            intermediate_refund_tx: leaf.intermediate_refund_tx.clone(),
            intermediate_direct_refund_tx: leaf.intermediate_direct_refund_tx.clone(),
            intermediate_direct_from_cpfp_refund_tx: leaf.intermediate_direct_from_cpfp_refund_tx.clone(),
            pending_key_tweak_public_key: Vec::new(),
            transfer_receiver_id: if several { receiver_id(share) } else { String::new() },
            transfer_sender_id: String::new(),
        })
    }

    fn tree_node(&self, shown: &Shown<'_>) -> spark::TreeNode {
        let Shown { record, status, .. } = shown;
        let updated = timestamp(shown.updated_micros);
        spark::TreeNode {
            id: record.leaf_id.to_string(),
            tree_id: record.tree_id.as_hyphenated().to_string(),
            value: record.value,
            parent_node_id: record.parent_id.map(|id| id.to_string()),
            node_tx: serialize(&record.node_tx),
            refund_tx: serialize(&record.refunds.cpfp),
            vout: record.node_tx.input.first().map_or(0, |input| input.previous_output.vout),
            verifying_public_key: record.verifying_key.serialize().to_vec(),
            owner_identity_public_key: record.owner_identity.serialize().to_vec(),
            signing_keyshare: Some(self.keyshare(record, updated)),
            status: status.name().to_owned(),
            network: record.network.to_wire().into(),
            created_time: Some(timestamp(shown.created_micros)),
            updated_time: Some(updated),
            owner_signing_public_key: record.owner_key.serialize().to_vec(),
            direct_tx: optional(record.direct_node_tx.as_ref()),
            direct_refund_tx: optional(record.refunds.direct.as_ref()),
            direct_from_cpfp_refund_tx: serialize(&record.refunds.direct_from_cpfp),
            treenode_status: status.to_wire().into(),
        }
    }

    fn keyshare(&self, record: &LeafRecord, updated: Timestamp) -> spark::SigningKeyshare {
        let shares = record.public_shares.iter().map(|share| share.serialize().to_vec());
        spark::SigningKeyshare {
            owner_identifiers: self.identifiers.clone(),
            threshold: self.threshold,
            public_key: record.group_key.serialize().to_vec(),
            public_shares: self.identifiers.iter().cloned().zip(shares).collect(),
            updated_time: Some(updated),
        }
    }
}

fn receiver(share: &ShareRow) -> Result<spark::TransferReceiver, ConvertError> {
    use spark::TransferReceiverStatus as Status;
    let claimed = share.status == COMPLETED;
    Ok(spark::TransferReceiver {
        identity_public_key: share.receiver.clone(),
        amount_sats: unsigned("transfer_receiver.total", share.total)?,
        status: if claimed { Status::Completed } else { Status::ClaimPending }.into(),
        id: receiver_id(share),
        completion_time: share.completed_micros.map(timestamp),
    })
}

/// The same at every operator.
fn receiver_id(share: &ShareRow) -> String {
    LeafId::derive("spark/transfer-receiver", &[share.transfer_id.as_bytes(), &share.receiver]).to_string()
}

/// Groups rows of several transfers; the order within each stays.
pub fn by_transfer<T>(rows: Vec<T>, id: impl Fn(&T) -> uuid::Uuid) -> BTreeMap<uuid::Uuid, Vec<T>> {
    let mut grouped: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for row in rows {
        grouped.entry(id(&row)).or_default().push(row);
    }
    grouped
}

/// A transfer id as its column holds it.
pub fn transfer_uuid(id: TransferId) -> uuid::Uuid {
    id.uuid()
}

fn record(leaf: uuid::Uuid, bytes: &[u8]) -> Result<LeafRecord, ConvertError> {
    LeafRecord::decode(bytes).map_err(|_| ConvertError::Record(leaf))
}

fn status(name: &str) -> Result<LeafStatus, ConvertError> {
    name.parse().map_err(|_| ConvertError::Column("leaf.status"))
}

fn optional(tx: Option<&Transaction>) -> Vec<u8> {
    tx.map(serialize).unwrap_or_default()
}

fn unsigned(column: &'static str, value: i64) -> Result<u64, ConvertError> {
    u64::try_from(value).map_err(|_| ConvertError::Column(column))
}

/// Microseconds since 1970 as a protobuf Timestamp. Every `i64` of microseconds is within its range.
pub fn timestamp(micros: i64) -> Timestamp {
    let nanos = i32::try_from(micros.rem_euclid(1_000_000)).unwrap_or(0).saturating_mul(1_000);
    Timestamp { seconds: micros.div_euclid(1_000_000), nanos }
}

/// A protobuf Timestamp as microseconds since 1970, rounded down; `None` out of range.
pub fn micros(time: &Timestamp) -> Option<i64> {
    if !(0..1_000_000_000).contains(&time.nanos) {
        return None;
    }
    time.seconds.checked_mul(1_000_000)?.checked_add(i64::from(time.nanos) / 1_000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spark_rules::leaf::LeafStatus;

    use super::*;
    use crate::rpc::testing;

    fn row(record: &LeafRecord, status: &str) -> NodeRow {
        NodeRow {
            leaf_id: record.leaf_id.uuid(),
            status: status.to_owned(),
            record: record.encode(),
            created_micros: 1_000_001,
            updated_micros: 2_000_002,
        }
    }

    #[test]
    fn a_node_has_every_field_wallets_require() {
        let converter = Converter::new(&testing::federation(3, 2));
        let record = testing::record(7, 1, 0, LeafStatus::Creating);
        // The row's status wins: chain facts change it without a new record.
        let node = converter.node(&row(&record, "AVAILABLE")).unwrap();
        assert_eq!(node.id, testing::leaf_id(7).to_string());
        assert_eq!(
            (node.status.as_str(), node.treenode_status),
            ("AVAILABLE", spark::TreeNodeStatus::Available as i32)
        );
        assert_eq!((node.value, node.vout, node.network), (1000, 1, spark::Network::Regtest as i32));
        assert_eq!(node.parent_node_id, None);
        assert_eq!(bitcoin::consensus::deserialize::<Transaction>(&node.node_tx).unwrap(), record.node_tx);
        assert_eq!(
            bitcoin::consensus::deserialize::<Transaction>(&node.refund_tx).unwrap(),
            record.refunds.cpfp
        );
        assert!(node.direct_tx.is_empty() && node.direct_refund_tx.is_empty());
        assert!(!node.direct_from_cpfp_refund_tx.is_empty());
        assert_eq!(node.created_time, Some(Timestamp { seconds: 1, nanos: 1_000 }));
        let keyshare = node.signing_keyshare.unwrap();
        assert_eq!((keyshare.threshold, keyshare.public_key.len()), (2, 33));
        let identifiers: Vec<String> = (1..=3).map(|i| format!("{i:064x}")).collect();
        assert_eq!(keyshare.owner_identifiers, identifiers);
        assert!(keyshare.public_shares.keys().eq(identifiers.iter()));
        // P = S + D, as wallets check before they count a leaf as theirs.
        let point = |bytes: &[u8]| secp256k1::PublicKey::from_slice(bytes).unwrap();
        let sum = point(&keyshare.public_key).combine(&point(&node.owner_signing_public_key)).unwrap();
        assert_eq!(sum, point(&node.verifying_public_key));
    }

    #[test]
    fn malformed_rows_are_errors() {
        let converter = Converter::new(&testing::federation(3, 2));
        let record = testing::record(7, 1, 0, LeafStatus::Available);
        assert!(matches!(
            converter.node(&row(&record, "available")),
            Err(ConvertError::Column("leaf.status"))
        ));
        let mut broken = row(&record, "AVAILABLE");
        broken.record.pop();
        assert!(matches!(converter.node(&broken), Err(ConvertError::Record(_))));
    }

    proptest! {
        #[test]
        fn times_round_trip(time in any::<i64>()) {
            let wire = timestamp(time);
            prop_assert!((0..1_000_000_000).contains(&wire.nanos));
            prop_assert_eq!(micros(&wire), Some(time).filter(|_| wire.seconds.checked_mul(1_000_000).is_some()));
        }

        #[test]
        fn foreign_times_never_panic(seconds in any::<i64>(), nanos in any::<i32>()) {
            let _ = micros(&Timestamp { seconds, nanos });
        }
    }
}
