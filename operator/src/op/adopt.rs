//! Tables that were lost or restored take over what the signer's journal says was applied (D10).

use bitcoin::consensus::encode;
use spark_proto::signer::v1::JournalEntry;
use spark_rules::{
    ids::LeafId,
    leaf::{LeafRecord, LeafStatus},
    operation::TransferRecord,
};
use uuid::Uuid;

use super::{
    engine::{Engine, EngineError},
    outcome::{TYPE_TRANSFER, expiry_column, leaf_write, optional, watched},
};
use crate::db::{
    DbError, signed,
    transfer::{self, TransferLeafRow, TransferRow},
    work::{self, AppliedWrite},
};

impl Engine {
    /// Writes the outcome of an applied entry where these tables are behind it; what is newer here stays.
    pub async fn adopt(&self, entry: &JournalEntry) -> Result<(), EngineError> {
        let mut write = AppliedWrite::default();
        let mut records = Vec::new();
        for bytes in &entry.leaves {
            let record = LeafRecord::decode(bytes).map_err(|_| DbError::Corrupt("journal.leaves"))?;
            write.leaves.push(leaf_write(&record)?);
            write.watched.extend(watched(&record));
            if record.status == LeafStatus::Creating {
                write.used_addresses.push(record.leaf_id.uuid());
            }
            records.push(record);
        }
        if !entry.transfer.is_empty() {
            let record =
                TransferRecord::decode(&entry.transfer).map_err(|_| DbError::Corrupt("journal.transfer"))?;
            let claimed = record.receivers.iter().filter(|share| share.claimed);
            let id = Uuid::from_bytes(record.id);
            write.completed = claimed.map(|share| (id, share.receiver.serialize().to_vec())).collect();
            if write.completed.is_empty() {
                write.transfer = Some(transfer_rows(&record, entry, &records)?);
            }
        }
        Ok(work::adopt(self.db(), &write).await?)
    }
}

fn transfer_rows(
    record: &TransferRecord,
    entry: &JournalEntry,
    leaves: &[LeafRecord],
) -> Result<(TransferRow, Vec<TransferLeafRow>), DbError> {
    let transfer_id = Uuid::from_bytes(record.id);
    let mut total = 0i64;
    let mut rows = Vec::with_capacity(leaves.len());
    for (position, leaf) in (0i32..).zip(leaves) {
        let opened = entry.opened.iter().find(|o| LeafId::parse(&o.leaf_id) == Ok(leaf.leaf_id));
        let value = signed("leaf.value", leaf.value)?;
        let id = leaf.leaf_id.as_bytes();
        let share = record.receivers.iter().find(|share| share.leaves.contains(id));
        let share = share.ok_or(DbError::Corrupt("journal.transfer"))?;
        total = total.saturating_add(value);
        rows.push(TransferLeafRow {
            transfer_id,
            leaf_id: leaf.leaf_id.uuid(),
            receiver: share.receiver.serialize().to_vec(),
            position,
            leaf_version: signed("leaf.version", leaf.version)?,
            value,
            secret_cipher: opened.map(|o| o.secret_cipher.clone()).unwrap_or_default(),
            signature: opened.map(|o| o.signature.clone()).unwrap_or_default(),
            intermediate_refund_tx: encode::serialize(&leaf.refunds.cpfp),
            intermediate_direct_refund_tx: optional(leaf.refunds.direct.as_ref()),
            intermediate_direct_from_cpfp_refund_tx: encode::serialize(&leaf.refunds.direct_from_cpfp),
            record: leaf.encode(),
        });
    }
    let first = record.receivers.first().ok_or(DbError::Corrupt("journal.transfer"))?;
    let row = TransferRow {
        transfer_id,
        sender: record.sender.serialize().to_vec(),
        receiver: first.receiver.serialize().to_vec(),
        total,
        status: transfer::SENDER_KEY_TWEAKED,
        kind: TYPE_TRANSFER,
        expiry: expiry_column(record.expiry_seconds),
        invoice: record.invoice.clone(),
        created_micros: 0,
        updated_micros: 0,
        completed_micros: None,
    };
    Ok((row, rows))
}
