//! Votes as evidence.

use spark_rules::ids::OperatorIndex;
use sqlx::PgExecutor;

use super::{
    DbError,
    operation::{AttemptId, index, index_column},
};

/// Keeps a verified vote; a repeat changes nothing. `choice` is `YES`, `NO` or `ABORT`.
pub async fn insert(
    ex: impl PgExecutor<'_>,
    id: AttemptId,
    signer: OperatorIndex,
    choice: &str,
    body: &[u8],
) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO vote (op_id, attempt, signer, choice, body) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
    )
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .bind(index_column(signer))
    .bind(choice)
    .bind(body)
    .execute(ex)
    .await?;
    Ok(())
}

/// All votes of an attempt: signer, choice, encoded `peer.v1.Vote`.
pub async fn of_attempt(
    ex: impl PgExecutor<'_>,
    id: AttemptId,
) -> Result<Vec<(OperatorIndex, String, Vec<u8>)>, DbError> {
    let rows: Vec<(i16, String, Vec<u8>)> = sqlx::query_as(
        "SELECT signer, choice, body FROM vote WHERE op_id = $1 AND attempt = $2 ORDER BY signer, choice",
    )
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .fetch_all(ex)
    .await?;
    rows.into_iter().map(|(signer, choice, body)| Ok((index(signer)?, choice, body))).collect()
}
