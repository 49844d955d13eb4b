//! Receipts of all signers.

use sqlx::{FromRow, PgExecutor};
use uuid::Uuid;

use super::DbError;

/// A receipt as a signer gave it.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct ReceiptRow {
    /// Operator index.
    pub signer: i16,
    /// 16 bytes.
    pub incarnation: Vec<u8>,
    /// Journal sequence.
    pub sequence: i64,
    /// Index in that signer's log.
    pub log_index: i64,
    /// Leaf.
    pub leaf_id: Option<Uuid>,
    /// Keyshare.
    pub keyshare_id: Uuid,
    /// Operation.
    pub op_id: Option<Uuid>,
    /// `pending` or `confirmed`.
    pub state: String,
    /// Encoded `peer.v1.Receipt`.
    pub body: Vec<u8>,
}

/// Keeps a receipt; a confirmation replaces a pending one, nothing else does.
pub async fn upsert(ex: impl PgExecutor<'_>, row: &ReceiptRow) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO receipt (signer, incarnation, sequence, log_index, leaf_id, keyshare_id, op_id, state, body) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (signer, incarnation, log_index) DO UPDATE \
         SET state = EXCLUDED.state, body = EXCLUDED.body \
         WHERE receipt.state = 'pending' AND EXCLUDED.state = 'confirmed'",
    )
    .bind(row.signer)
    .bind(&row.incarnation)
    .bind(row.sequence)
    .bind(row.log_index)
    .bind(row.leaf_id)
    .bind(row.keyshare_id)
    .bind(row.op_id)
    .bind(&row.state)
    .bind(&row.body)
    .execute(ex)
    .await?;
    Ok(())
}

/// Receipts of a leaf, oldest first per signer.
pub async fn of_leaf(ex: impl PgExecutor<'_>, leaf_id: Uuid) -> Result<Vec<ReceiptRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT signer, incarnation, sequence, log_index, leaf_id, keyshare_id, op_id, state, body FROM receipt \
         WHERE leaf_id = $1 ORDER BY signer, sequence",
    )
    .bind(leaf_id)
    .fetch_all(ex)
    .await?)
}

/// Receipts of an operation.
pub async fn of_operation(ex: impl PgExecutor<'_>, op_id: Uuid) -> Result<Vec<ReceiptRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT signer, incarnation, sequence, log_index, leaf_id, keyshare_id, op_id, state, body FROM receipt \
         WHERE op_id = $1 ORDER BY signer, sequence",
    )
    .bind(op_id)
    .fetch_all(ex)
    .await?)
}
