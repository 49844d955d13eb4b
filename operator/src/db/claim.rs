//! Claims: the double-spend barrier (S9).

use sqlx::PgExecutor;
use uuid::Uuid;

use super::{DbError, operation::AttemptId};

/// Locks one version of a leaf for an attempt; [`DbError::LeafClaimed`] when another holds it.
pub async fn lock_leaf(
    ex: impl PgExecutor<'_>,
    id: AttemptId,
    leaf_id: Uuid,
    version: i64,
) -> Result<(), DbError> {
    sqlx::query("INSERT INTO leaf_claim (leaf_id, leaf_version, op_id, attempt) VALUES ($1, $2, $3, $4)")
        .bind(leaf_id)
        .bind(version)
        .bind(id.op.uuid())
        .bind(id.attempt_column()?)
        .execute(ex)
        .await?;
    Ok(())
}

/// Locks another resource for an attempt; [`DbError::ResourceClaimed`] when another holds it.
pub async fn lock_resource(
    ex: impl PgExecutor<'_>,
    id: AttemptId,
    kind: &str,
    key: &[u8],
) -> Result<(), DbError> {
    sqlx::query("INSERT INTO resource_claim (kind, key, op_id, attempt) VALUES ($1, $2, $3, $4)")
        .bind(kind)
        .bind(key)
        .bind(id.op.uuid())
        .bind(id.attempt_column()?)
        .execute(ex)
        .await?;
    Ok(())
}

/// Spends the leaf claims of a committed attempt.
pub async fn spend_leaves(ex: impl PgExecutor<'_>, id: AttemptId) -> Result<u64, DbError> {
    move_leaves(ex, id, "SPENT").await
}

/// Releases the leaf claims of an aborted attempt.
pub async fn release_leaves(ex: impl PgExecutor<'_>, id: AttemptId) -> Result<u64, DbError> {
    move_leaves(ex, id, "RELEASED").await
}

/// Spends the other claims of a committed attempt.
pub async fn spend_resources(ex: impl PgExecutor<'_>, id: AttemptId) -> Result<u64, DbError> {
    move_resources(ex, id, "SPENT").await
}

/// Releases the other claims of an aborted attempt.
pub async fn release_resources(ex: impl PgExecutor<'_>, id: AttemptId) -> Result<u64, DbError> {
    move_resources(ex, id, "RELEASED").await
}

/// Releases what a returned conditional operation held of one kind; [`spend_resources`] keeps the rest.
pub async fn release_kind(ex: impl PgExecutor<'_>, id: AttemptId, kind: &str) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE resource_claim SET state = 'RELEASED' \
         WHERE op_id = $1 AND attempt = $2 AND kind = $3 AND state = 'LOCKED'",
    )
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .bind(kind)
    .execute(ex)
    .await?;
    Ok(())
}

async fn move_leaves(ex: impl PgExecutor<'_>, id: AttemptId, to: &str) -> Result<u64, DbError> {
    Ok(sqlx::query("UPDATE leaf_claim SET state = $3 WHERE op_id = $1 AND attempt = $2 AND state = 'LOCKED'")
        .bind(id.op.uuid())
        .bind(id.attempt_column()?)
        .bind(to)
        .execute(ex)
        .await?
        .rows_affected())
}

async fn move_resources(ex: impl PgExecutor<'_>, id: AttemptId, to: &str) -> Result<u64, DbError> {
    Ok(sqlx::query(
        "UPDATE resource_claim SET state = $3 WHERE op_id = $1 AND attempt = $2 AND state = 'LOCKED'",
    )
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .bind(to)
    .execute(ex)
    .await?
    .rows_affected())
}

/// Claims that attempts hold on a leaf: (version, operation, attempt, state).
pub async fn of_leaf(
    ex: impl PgExecutor<'_>,
    leaf_id: Uuid,
) -> Result<Vec<(i64, Uuid, i32, String)>, DbError> {
    Ok(sqlx::query_as(
        "SELECT leaf_version, op_id, attempt, state FROM leaf_claim WHERE leaf_id = $1 ORDER BY leaf_version, created_at",
    )
    .bind(leaf_id)
    .fetch_all(ex)
    .await?)
}

/// The operation that holds a resource, or has spent it.
pub async fn holder(ex: impl PgExecutor<'_>, kind: &str, key: &[u8]) -> Result<Option<Uuid>, DbError> {
    Ok(sqlx::query_scalar(
        "SELECT op_id FROM resource_claim WHERE kind = $1 AND key = $2 AND state IN ('LOCKED', 'SPENT')",
    )
    .bind(kind)
    .bind(key)
    .fetch_optional(ex)
    .await?)
}
