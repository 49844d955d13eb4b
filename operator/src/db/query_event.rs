//! New events of all identities, for the one reader that feeds every stream of this process.

use sqlx::PgExecutor;
use uuid::Uuid;

use super::{DbError, event::EventRow};

/// Events above a cursor, and those of `gaps` that have appeared since, oldest first.
pub async fn above(
    ex: impl PgExecutor<'_>,
    seq: i64,
    gaps: &[i64],
    limit: i64,
) -> Result<Vec<EventRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT seq, identity, kind, body FROM event_log WHERE seq > $1 OR seq = ANY($2) ORDER BY seq LIMIT $3",
    )
    .bind(seq)
    .bind(gaps)
    .bind(limit)
    .fetch_all(ex)
    .await?)
}

/// Those of these transfers of which a leaf is its sender's again, or on its way back.
pub async fn came_back(
    ex: impl PgExecutor<'_>,
    transfers: &[Uuid],
    sender: &[u8],
) -> Result<Vec<Uuid>, DbError> {
    Ok(sqlx::query_scalar(
        "SELECT DISTINCT sent.transfer_id FROM transfer_leaf sent JOIN leaf l USING (leaf_id) \
         WHERE sent.transfer_id = ANY($1) AND ( \
             (l.owner_identity = $2 AND l.version > sent.leaf_version) OR EXISTS ( \
                 SELECT 1 FROM transfer_leaf tl JOIN transfer_receiver r USING (transfer_id, receiver) \
                 WHERE tl.leaf_id = l.leaf_id AND r.transfer_id <> sent.transfer_id AND r.receiver = $2 \
                 AND r.status IN (2, 3, 4, 9, 10)))",
    )
    .bind(transfers)
    .bind(sender)
    .fetch_all(ex)
    .await?)
}
