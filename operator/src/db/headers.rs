//! The active chain's headers.

use sqlx::{FromRow, PgExecutor};

use super::DbError;

/// One header.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct HeaderRow {
    /// Height.
    pub height: i32,
    /// Block hash, 32 bytes in internal order.
    pub hash: Vec<u8>,
    /// Parent's hash.
    pub prev_hash: Vec<u8>,
    /// Seconds since 1970, as in the header.
    pub block_time: i64,
}

/// The highest header.
pub async fn tip(ex: impl PgExecutor<'_>) -> Result<Option<HeaderRow>, DbError> {
    Ok(sqlx::query_as("SELECT height, hash, prev_hash, block_time FROM header ORDER BY height DESC LIMIT 1")
        .fetch_optional(ex)
        .await?)
}

/// The header at a height.
pub async fn get(ex: impl PgExecutor<'_>, height: i32) -> Result<Option<HeaderRow>, DbError> {
    Ok(sqlx::query_as("SELECT height, hash, prev_hash, block_time FROM header WHERE height = $1")
        .bind(height)
        .fetch_optional(ex)
        .await?)
}

/// Adds a header on top; a repeat of the same header changes nothing, another one at this height is refused.
pub async fn insert(ex: impl PgExecutor<'_>, row: &HeaderRow) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO header (height, hash, prev_hash, block_time) VALUES ($1, $2, $3, $4) ON CONFLICT (hash) DO NOTHING",
    )
    .bind(row.height)
    .bind(&row.hash)
    .bind(&row.prev_hash)
    .bind(row.block_time)
    .execute(ex)
    .await?;
    Ok(())
}

/// Forgets every header above `height` and, with them, every fact of their blocks. Returns how many.
pub async fn delete_above(ex: impl PgExecutor<'_>, height: i32) -> Result<u64, DbError> {
    Ok(sqlx::query("DELETE FROM header WHERE height > $1").bind(height).execute(ex).await?.rows_affected())
}
