//! How far streams of events were heard.
//!
//! The public protocol does not say which device subscribes. So a stream begins where the earliest of its identity's
//! streams is, and takes the place of the latest that ended: however many devices come back in whatever order, none of
//! them begins later than it ended. One whose connection broke may come back before the operator notices, so open
//! streams count, too. The price is that some hear an event twice.

use sqlx::PgExecutor;
use uuid::Uuid;

use super::DbError;

/// Ended streams that are remembered of one identity; of more the earliest count.
const MOST: i64 = 16;

/// Opens a stream. Returns where it begins, if the identity has or had another; otherwise it is heard up to `seq`.
pub async fn open(
    ex: impl PgExecutor<'_>,
    stream: Uuid,
    identity: &[u8],
    seq: i64,
) -> Result<Option<i64>, DbError> {
    Ok(sqlx::query_scalar(
        "WITH others AS (SELECT stream, seq, ended_at FROM event_cursor WHERE identity = $2), \
         taken AS (DELETE FROM event_cursor WHERE stream = ( \
             SELECT stream FROM others WHERE ended_at IS NOT NULL ORDER BY seq DESC, stream LIMIT 1)), \
         earliest AS (SELECT min(seq) AS seq FROM others), \
         opened AS (INSERT INTO event_cursor (stream, identity, seq) \
             SELECT $1, $2, coalesce(earliest.seq, $3) FROM earliest) \
         SELECT seq FROM earliest",
    )
    .bind(stream)
    .bind(identity)
    .bind(seq)
    .fetch_one(ex)
    .await?)
}

/// Notes that a stream was heard up to `seq`; never less than before.
pub async fn advance(ex: impl PgExecutor<'_>, stream: Uuid, seq: i64) -> Result<(), DbError> {
    sqlx::query("UPDATE event_cursor SET seq = $2 WHERE stream = $1 AND seq < $2")
        .bind(stream)
        .bind(seq)
        .execute(ex)
        .await?;
    Ok(())
}

/// Ends a stream that was heard up to `seq`.
pub async fn end(ex: impl PgExecutor<'_>, stream: Uuid, seq: i64) -> Result<(), DbError> {
    sqlx::query(
        "WITH now_ended AS (UPDATE event_cursor SET seq = greatest(seq, $2), ended_at = now() \
             WHERE stream = $1 AND ended_at IS NULL RETURNING identity) \
         DELETE FROM event_cursor WHERE stream IN ( \
             SELECT c.stream FROM event_cursor c JOIN now_ended n ON n.identity = c.identity \
             WHERE c.ended_at IS NOT NULL ORDER BY c.seq, c.stream OFFSET $3)",
    )
    .bind(stream)
    .bind(seq)
    .bind(MOST)
    .execute(ex)
    .await?;
    Ok(())
}

/// Ends all streams: those of a process that is no more.
pub async fn end_all(ex: impl PgExecutor<'_>) -> Result<(), DbError> {
    sqlx::query("UPDATE event_cursor SET ended_at = now() WHERE ended_at IS NULL").execute(ex).await?;
    Ok(())
}

/// Forgets streams that ended some days ago.
pub async fn trim(ex: impl PgExecutor<'_>, days: i32) -> Result<u64, DbError> {
    Ok(sqlx::query("DELETE FROM event_cursor WHERE ended_at < now() - make_interval(days => $1)")
        .bind(days)
        .execute(ex)
        .await?
        .rows_affected())
}
