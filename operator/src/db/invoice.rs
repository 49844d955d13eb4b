//! Spark invoices and what pays them.

use sqlx::PgExecutor;
use uuid::Uuid;

use super::DbError;

/// The transfer that pays an invoice or is about to: found by the claim on what was signed, and, where tables were
/// restored and claims are lost, by the text.
pub async fn paying(ex: impl PgExecutor<'_>, hash: &[u8; 32], text: &str) -> Result<Option<Uuid>, DbError> {
    Ok(sqlx::query_scalar(
        "SELECT encode(t.key, 'hex')::uuid FROM resource_claim i \
         JOIN resource_claim t ON t.op_id = i.op_id AND t.attempt = i.attempt AND t.kind = 'transfer' \
         WHERE i.kind = 'invoice' AND i.key = $1 AND i.state IN ('LOCKED', 'SPENT') \
         UNION ALL SELECT transfer_id FROM transfer WHERE invoice = $2 AND invoice <> '' LIMIT 1",
    )
    .bind(hash.as_slice())
    .bind(text)
    .fetch_optional(ex)
    .await?)
}
