//! Public keyshares.

use sqlx::{FromRow, PgExecutor};
use uuid::Uuid;

use super::DbError;

/// One keyshare, public part.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct KeyshareRow {
    /// Id.
    pub keyshare_id: Uuid,
    /// Whose pool it came from.
    pub owner_index: i16,
    /// `AVAILABLE` or `BOUND`.
    pub state: String,
    /// 33 bytes.
    pub group_key: Vec<u8>,
    /// n times 33 bytes, by operator index.
    pub public_shares: Vec<u8>,
    /// DKG batch.
    pub dkg_session: Uuid,
}

/// Records a keyshare of a confirmed batch; a repeat changes nothing.
pub async fn insert(ex: impl PgExecutor<'_>, row: &KeyshareRow) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO keyshare (keyshare_id, owner_index, group_key, public_shares, dkg_session) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (keyshare_id) DO NOTHING",
    )
    .bind(row.keyshare_id)
    .bind(row.owner_index)
    .bind(&row.group_key)
    .bind(&row.public_shares)
    .bind(row.dkg_session)
    .execute(ex)
    .await?;
    Ok(())
}

/// One keyshare.
pub async fn get(ex: impl PgExecutor<'_>, keyshare_id: Uuid) -> Result<Option<KeyshareRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT keyshare_id, owner_index, state, group_key, public_shares, dkg_session FROM keyshare WHERE keyshare_id = $1",
    )
    .bind(keyshare_id)
    .fetch_optional(ex)
    .await?)
}

/// Unused keyshares of one operator's pool.
pub async fn available(ex: impl PgExecutor<'_>, owner_index: i16) -> Result<i64, DbError> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM keyshare WHERE owner_index = $1 AND state = 'AVAILABLE'")
        .bind(owner_index)
        .fetch_one(ex)
        .await?)
}

/// Takes one unused keyshare of a pool; rows that another session is taking are skipped.
pub async fn take(ex: impl PgExecutor<'_>, owner_index: i16) -> Result<Option<Uuid>, DbError> {
    Ok(sqlx::query_scalar(
        "UPDATE keyshare SET state = 'BOUND', bound_at = now() WHERE keyshare_id = ( \
             SELECT keyshare_id FROM keyshare WHERE owner_index = $1 AND state = 'AVAILABLE' \
             ORDER BY keyshare_id LIMIT 1 FOR UPDATE SKIP LOCKED) \
         RETURNING keyshare_id",
    )
    .bind(owner_index)
    .fetch_optional(ex)
    .await?)
}

/// Marks a keyshare as used because its signer says so; a repeat changes nothing.
pub async fn mark_bound(ex: impl PgExecutor<'_>, keyshare_id: Uuid) -> Result<(), DbError> {
    sqlx::query("UPDATE keyshare SET state = 'BOUND', bound_at = now() WHERE keyshare_id = $1 AND state = 'AVAILABLE'")
        .bind(keyshare_id)
        .execute(ex)
        .await?;
    Ok(())
}
