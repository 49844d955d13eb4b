//! Events for subscribers, with a durable cursor.

use sqlx::{FromRow, PgExecutor};

use super::DbError;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct EventRow {
    /// Cursor.
    pub seq: i64,
    /// Whose, 33 bytes.
    pub identity: Vec<u8>,
    /// `TRANSFER`, `SENDER_TRANSFER` (body: transfer id, 16 bytes) or `DEPOSIT` (body: leaf id, 16 bytes).
    pub kind: String,
    /// See `kind`.
    pub body: Vec<u8>,
}

/// Appends.
pub async fn insert(
    ex: impl PgExecutor<'_>,
    identity: &[u8],
    kind: &str,
    body: &[u8],
) -> Result<i64, DbError> {
    Ok(sqlx::query_scalar("INSERT INTO event_log (identity, kind, body) VALUES ($1, $2, $3) RETURNING seq")
        .bind(identity)
        .bind(kind)
        .bind(body)
        .fetch_one(ex)
        .await?)
}

/// Events of an identity after a cursor, oldest first; of too many the newest.
pub async fn after(
    ex: impl PgExecutor<'_>,
    identity: &[u8],
    seq: i64,
    limit: i64,
) -> Result<Vec<EventRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT seq, identity, kind, body FROM ( \
             SELECT seq, identity, kind, body FROM event_log WHERE identity = $1 AND seq > $2 \
             ORDER BY seq DESC LIMIT $3) AS newest ORDER BY seq",
    )
    .bind(identity)
    .bind(seq)
    .bind(limit)
    .fetch_all(ex)
    .await?)
}

/// The newest cursor, 0 when there is no event.
pub async fn head(ex: impl PgExecutor<'_>) -> Result<i64, DbError> {
    Ok(sqlx::query_scalar("SELECT coalesce(max(seq), 0) FROM event_log").fetch_one(ex).await?)
}

/// Forgets events older than some days.
pub async fn trim(ex: impl PgExecutor<'_>, days: i32) -> Result<u64, DbError> {
    Ok(sqlx::query("DELETE FROM event_log WHERE created_at < now() - make_interval(days => $1)")
        .bind(days)
        .execute(ex)
        .await?
        .rows_affected())
}
