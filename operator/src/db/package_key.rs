//! One-time keys for packages, public part.

use sqlx::{FromRow, PgExecutor};
use uuid::Uuid;

use super::DbError;

/// A key as its signer stated it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// Name.
    pub key_id: Uuid,
    /// Encoded `signer.v1.PackageKey`.
    pub statement: Vec<u8>,
    /// Unix seconds.
    pub expires: i64,
}

/// A key that a wallet may seal to.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Reserved {
    /// Encoded `signer.v1.PackageKey`.
    pub statement: Vec<u8>,
    /// Unix seconds.
    pub reserved_until: i64,
}

/// Records keys of the own signer; a repeat changes nothing.
pub async fn insert(ex: impl PgExecutor<'_>, keys: &[NewKey]) -> Result<(), DbError> {
    let ids: Vec<Uuid> = keys.iter().map(|key| key.key_id).collect();
    let statements: Vec<&[u8]> = keys.iter().map(|key| key.statement.as_slice()).collect();
    let expiries: Vec<i64> = keys.iter().map(|key| key.expires).collect();
    sqlx::query(
        "INSERT INTO package_key (key_id, statement, expires_at) \
         SELECT id, statement, to_timestamp(expires) FROM unnest($1::uuid[], $2::bytea[], $3::bigint[]) \
         AS new (id, statement, expires) ON CONFLICT (key_id) DO NOTHING",
    )
    .bind(ids)
    .bind(statements)
    .bind(expiries)
    .execute(ex)
    .await?;
    Ok(())
}

/// What was reserved under this request before.
pub async fn reserved(
    ex: impl PgExecutor<'_>,
    identity: &[u8],
    request_id: Uuid,
) -> Result<Option<Reserved>, DbError> {
    Ok(sqlx::query_as(
        "SELECT statement, extract(epoch FROM reserved_until)::bigint AS reserved_until FROM package_key \
         WHERE identity = $1 AND request_id = $2",
    )
    .bind(identity)
    .bind(request_id)
    .fetch_optional(ex)
    .await?)
}

/// Gives one free key to an identity for `seconds`, if it holds fewer than `most`; a key that expires before is not
/// given. None: no key, or too many. [`DbError::Exists`]: the request was answered before.
pub async fn reserve(
    ex: impl PgExecutor<'_>,
    identity: &[u8],
    request_id: Uuid,
    seconds: i64,
    most: i64,
) -> Result<Option<Reserved>, DbError> {
    Ok(sqlx::query_as(
        "UPDATE package_key SET identity = $1, request_id = $2, \
             reserved_until = now() + make_interval(secs => $3::float8) \
         WHERE key_id = (SELECT key_id FROM package_key \
             WHERE identity IS NULL AND expires_at > now() + make_interval(secs => $3::float8 * 2) \
                 AND (SELECT count(*) FROM package_key WHERE identity = $1) < $4 \
             ORDER BY expires_at LIMIT 1 FOR UPDATE SKIP LOCKED) \
         RETURNING statement, extract(epoch FROM reserved_until)::bigint AS reserved_until",
    )
    .bind(identity)
    .bind(request_id)
    .bind(seconds)
    .bind(most)
    .fetch_optional(ex)
    .await?)
}

/// How many keys an identity holds.
pub async fn held(ex: impl PgExecutor<'_>, identity: &[u8]) -> Result<i64, DbError> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM package_key WHERE identity = $1")
        .bind(identity)
        .fetch_one(ex)
        .await?)
}

/// A key was used, or is gone.
pub async fn remove(ex: impl PgExecutor<'_>, keys: &[Uuid]) -> Result<(), DbError> {
    sqlx::query("DELETE FROM package_key WHERE key_id = ANY($1)").bind(keys).execute(ex).await?;
    Ok(())
}

/// Takes free keys away; at most `most`.
pub async fn take_free(ex: impl PgExecutor<'_>, most: i64) -> Result<Vec<Uuid>, DbError> {
    Ok(sqlx::query_scalar(
        "DELETE FROM package_key WHERE key_id IN (SELECT key_id FROM package_key WHERE identity IS NULL LIMIT $1) \
         RETURNING key_id",
    )
    .bind(most)
    .fetch_all(ex)
    .await?)
}

/// Free keys that can still be given for `seconds`.
pub async fn available(ex: impl PgExecutor<'_>, seconds: i64) -> Result<i64, DbError> {
    Ok(sqlx::query_scalar(
        "SELECT count(*) FROM package_key \
         WHERE identity IS NULL AND expires_at > now() + make_interval(secs => $1::float8 * 2)",
    )
    .bind(seconds)
    .fetch_one(ex)
    .await?)
}

/// Keys that nobody will use: the time to use them ran out `grace` seconds ago, or it is too short to give them.
pub async fn over(
    ex: impl PgExecutor<'_>,
    seconds: i64,
    grace: i64,
    most: i64,
) -> Result<Vec<Uuid>, DbError> {
    Ok(sqlx::query_scalar(
        "SELECT key_id FROM package_key WHERE reserved_until < now() - make_interval(secs => $2::float8) \
             OR (identity IS NULL AND expires_at <= now() + make_interval(secs => $1::float8 * 2)) LIMIT $3",
    )
    .bind(seconds)
    .bind(grace)
    .bind(most)
    .fetch_all(ex)
    .await?)
}
