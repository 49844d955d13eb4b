//! What peers must still hear, and what they said.

use spark_rules::ids::OperatorIndex;
use sqlx::PgExecutor;
use uuid::Uuid;

use super::{
    DbError,
    operation::{AttemptId, index, index_column},
};

/// What a message carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A request to prepare (inbox only).
    Prepare,
    /// A proof of commit.
    Apply,
    /// A proof of abort.
    Abort,
}

impl Message {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "PREPARE",
            Self::Apply => "APPLY",
            Self::Abort => "ABORT",
        }
    }
}

/// One due message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Row.
    pub id: i64,
    /// To whom.
    pub peer: OperatorIndex,
    /// About which attempt.
    pub attempt: AttemptId,
    /// With what.
    pub message: Message,
}

/// Queues a message; a repeat changes nothing.
pub async fn push(
    ex: impl PgExecutor<'_>,
    peer: OperatorIndex,
    id: AttemptId,
    message: Message,
) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO outbox (peer, op_id, attempt, kind) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(index_column(peer))
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .bind(message.as_str())
    .execute(ex)
    .await?;
    Ok(())
}

/// Takes due messages and puts them off: 1 s, doubled with every try, at most 60 s. Replicas skip each other's rows.
pub async fn due(ex: impl PgExecutor<'_>, limit: i64) -> Result<Vec<Due>, DbError> {
    let rows: Vec<(i64, i16, Uuid, i32, String)> = sqlx::query_as(
        "UPDATE outbox SET attempts = attempts + 1, \
             next_at = now() + make_interval(secs => least(60, power(2, least(attempts, 6)))::double precision) \
         WHERE id IN (SELECT id FROM outbox WHERE next_at <= now() ORDER BY next_at LIMIT $1 FOR UPDATE SKIP LOCKED) \
         RETURNING id, peer, op_id, attempt, kind",
    )
    .bind(limit)
    .fetch_all(ex)
    .await?;
    rows.into_iter()
        .map(|(id, peer, op, attempt, kind)| {
            Ok(Due {
                id,
                peer: index(peer)?,
                attempt: AttemptId {
                    op: op.into(),
                    attempt: u32::try_from(attempt).map_err(|_| DbError::Corrupt("attempt"))?,
                },
                message: if kind == "APPLY" { Message::Apply } else { Message::Abort },
            })
        })
        .collect()
}

/// A peer answered.
pub async fn delivered(
    ex: impl PgExecutor<'_>,
    peer: OperatorIndex,
    id: AttemptId,
    message: Message,
) -> Result<(), DbError> {
    sqlx::query("DELETE FROM outbox WHERE peer = $1 AND op_id = $2 AND attempt = $3 AND kind = $4")
        .bind(index_column(peer))
        .bind(id.op.uuid())
        .bind(id.attempt_column()?)
        .bind(message.as_str())
        .execute(ex)
        .await?;
    Ok(())
}

/// Peers that have not yet answered a kind of message about an attempt.
pub async fn waiting(
    ex: impl PgExecutor<'_>,
    id: AttemptId,
    message: Message,
) -> Result<Vec<OperatorIndex>, DbError> {
    let rows: Vec<i16> = sqlx::query_scalar(
        "SELECT peer FROM outbox WHERE op_id = $1 AND attempt = $2 AND kind = $3 ORDER BY peer",
    )
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .bind(message.as_str())
    .fetch_all(ex)
    .await?;
    rows.into_iter().map(index).collect()
}

/// Notes what a peer said. False: it had said so before.
pub async fn received(
    ex: impl PgExecutor<'_>,
    peer: OperatorIndex,
    id: AttemptId,
    message: Message,
) -> Result<bool, DbError> {
    Ok(sqlx::query(
        "INSERT INTO inbox (peer, op_id, attempt, kind) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(index_column(peer))
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .bind(message.as_str())
    .execute(ex)
    .await?
    .rows_affected()
        == 1)
}
