//! New events of all identities, for the one reader that feeds every stream of this process.

use sqlx::PgExecutor;

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
