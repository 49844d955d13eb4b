//! Static deposit addresses of an identity, who claims what they got, and what refunds were answered with.

use sqlx::{FromRow, PgConnection, PgExecutor};
use uuid::Uuid;

use super::{
    Db, DbError,
    address::{AddressRow, select_address},
    in_transaction, keyshare,
};

/// Most static addresses of one identity, rotated ones included: each holds a keyshare for ever.
pub const MOST_STATIC: i32 = 64;

/// Answers that are kept for each output, the newest ones: a wallet that asks for one again asks soon.
const MOST_ANSWERS: i64 = 32;

/// A keyshare chosen for a static address.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct StaticRow {
    /// Counts the identity's addresses from 0.
    pub generation: i32,
    /// Its keyshare.
    pub keyshare_id: Uuid,
    /// Owner's key of the address, 33 bytes.
    pub user_key: Vec<u8>,
}

/// What became of the wish for a new address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reserved {
    /// This one.
    Row(StaticRow),
    /// No unused keyshare.
    PoolEmpty,
    /// The identity has [`MOST_STATIC`].
    TooMany,
}

/// The address that an identity is shown.
pub async fn current(ex: impl PgExecutor<'_>, identity: &[u8]) -> Result<Option<StaticRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT generation, keyshare_id, user_key FROM static_address WHERE identity = $1 AND archived_at IS NULL",
    )
    .bind(identity)
    .fetch_optional(ex)
    .await?)
}

async fn next_generation(ex: impl PgExecutor<'_>, identity: &[u8]) -> Result<i32, DbError> {
    Ok(sqlx::query_scalar("SELECT coalesce(max(generation) + 1, 0) FROM static_address WHERE identity = $1")
        .bind(identity)
        .fetch_one(ex)
        .await?)
}

async fn insert(ex: impl PgExecutor<'_>, identity: &[u8], row: &StaticRow) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO static_address (identity, generation, keyshare_id, user_key) VALUES ($1, $2, $3, $4)",
    )
    .bind(identity)
    .bind(row.generation)
    .bind(row.keyshare_id)
    .bind(&row.user_key)
    .execute(ex)
    .await?;
    Ok(())
}

async fn archive(ex: impl PgExecutor<'_>, identity: &[u8], generation: i32) -> Result<bool, DbError> {
    let done = sqlx::query(
        "UPDATE static_address SET archived_at = now() \
         WHERE identity = $1 AND generation = $2 AND archived_at IS NULL",
    )
    .bind(identity)
    .bind(generation)
    .execute(ex)
    .await?;
    Ok(done.rows_affected() == 1)
}

async fn revive(ex: impl PgExecutor<'_>, identity: &[u8], generation: i32) -> Result<(), DbError> {
    sqlx::query("UPDATE static_address SET archived_at = NULL WHERE identity = $1 AND generation = $2")
        .bind(identity)
        .bind(generation)
        .execute(ex)
        .await?;
    Ok(())
}

async fn take(
    tx: &mut PgConnection,
    owner_index: i16,
    identity: &[u8],
    user_key: &[u8],
) -> Result<Reserved, DbError> {
    let generation = next_generation(&mut *tx, identity).await?;
    if generation >= MOST_STATIC {
        return Ok(Reserved::TooMany);
    }
    let Some(keyshare_id) = keyshare::take(&mut *tx, owner_index).await? else {
        return Ok(Reserved::PoolEmpty);
    };
    let row = StaticRow { generation, keyshare_id, user_key: user_key.to_vec() };
    insert(&mut *tx, identity, &row).await?;
    Ok(Reserved::Row(row))
}

/// The identity's address, chosen now if it has none.
pub async fn reserve(
    db: &Db,
    owner_index: i16,
    identity: &[u8],
    user_key: &[u8],
) -> Result<Reserved, DbError> {
    if let Some(row) = current(db.pool(), identity).await? {
        return Ok(Reserved::Row(row));
    }
    let outcome = in_transaction!(db, tx => take(&mut tx, owner_index, identity, user_key).await?);
    match outcome {
        // Somebody else reserved it between our look and our insert.
        Err(DbError::Exists(constraint)) => {
            let row = current(db.pool(), identity).await?.ok_or(DbError::Exists(constraint))?;
            Ok(Reserved::Row(row))
        }
        outcome => outcome,
    }
}

/// Puts another address in the place of `former`. Whoever comes second finds the one that came first.
pub async fn rotate(
    db: &Db,
    owner_index: i16,
    identity: &[u8],
    former: i32,
    user_key: &[u8],
) -> Result<Reserved, DbError> {
    let outcome = in_transaction!(db, tx => {
        if archive(&mut *tx, identity, former).await? {
            let reserved = take(&mut tx, owner_index, identity, user_key).await?;
            if !matches!(reserved, Reserved::Row(_)) {
                // Nothing takes its place, so it stays.
                revive(&mut *tx, identity, former).await?;
            }
            Some(reserved)
        } else {
            None
        }
    })?;
    match outcome {
        Some(reserved) => Ok(reserved),
        None => {
            let row = current(db.pool(), identity).await?.ok_or(DbError::Missing("static_address"))?;
            Ok(Reserved::Row(row))
        }
    }
}

/// Writes again an address that these tables lost; it takes the place of the one before it. Signers do not know in which
/// order an identity's addresses were made, so after a repair the one shown to it may be one that it had rotated; all
/// of them stay watched and refundable.
pub async fn restore(db: &Db, identity: &[u8], keyshare_id: Uuid, user_key: &[u8]) -> Result<(), DbError> {
    in_transaction!(db, tx => {
        let known: Option<i32> =
            sqlx::query_scalar("SELECT generation FROM static_address WHERE keyshare_id = $1")
                .bind(keyshare_id)
                .fetch_optional(&mut *tx)
                .await?;
        if known.is_none() {
            if let Some(former) = current(&mut *tx, identity).await? {
                archive(&mut *tx, identity, former.generation).await?;
            }
            let generation = next_generation(&mut *tx, identity).await?;
            let row = StaticRow { generation, keyshare_id, user_key: user_key.to_vec() };
            insert(&mut *tx, identity, &row).await?;
        }
    })
}

/// Complete static addresses of an identity, as their coordinator has them: the present one first, then the newest.
/// With `address`: that one only.
pub async fn addresses(
    ex: impl PgExecutor<'_>,
    identity: &[u8],
    address: Option<&str>,
    limit: i64,
    offset: i64,
) -> Result<Vec<AddressRow>, DbError> {
    Ok(sqlx::query_as(select_address!(
        "WHERE identity = $1 AND is_static AND state = 'READY' AND ($2::text IS NULL OR address = $2) \
         ORDER BY (SELECT s.archived_at IS NOT NULL FROM static_address s \
                   WHERE s.keyshare_id = deposit_address.keyshare_id), created_at DESC, keyshare_id \
         LIMIT $3 OFFSET $4"
    ))
    .bind(identity)
    .bind(address)
    .bind(limit)
    .bind(offset)
    .fetch_all(ex)
    .await?)
}

/// Claims an output for its owner, for ever. False when somebody else has it.
pub async fn claim_for_owner(db: &Db, txid: &[u8], vout: i64) -> Result<bool, DbError> {
    sqlx::query(
        "INSERT INTO utxo_claim (txid, vout, claimant) VALUES ($1, $2, 'OWNER') \
         ON CONFLICT (txid, vout) WHERE state = 'LIVE' DO NOTHING",
    )
    .bind(txid)
    .bind(vout)
    .execute(db.pool())
    .await?;
    Ok(claimant(db.pool(), txid, vout).await?.as_deref() == Some("OWNER"))
}

/// Who has an output: `OWNER` or `PROVIDER`.
pub async fn claimant(ex: impl PgExecutor<'_>, txid: &[u8], vout: i64) -> Result<Option<String>, DbError> {
    Ok(sqlx::query_scalar("SELECT claimant FROM utxo_claim WHERE txid = $1 AND vout = $2 AND state = 'LIVE'")
        .bind(txid)
        .bind(vout)
        .fetch_optional(ex)
        .await?)
}

/// What this request was answered with.
pub async fn answer(ex: impl PgExecutor<'_>, request_digest: &[u8; 32]) -> Result<Option<Vec<u8>>, DbError> {
    Ok(sqlx::query_scalar("SELECT answer FROM static_refund WHERE request_digest = $1")
        .bind(request_digest.as_slice())
        .fetch_optional(ex)
        .await?)
}

/// Keeps an answer; the first one to a request stays. Returns the one that stays. Of an output's answers the oldest are
/// forgotten.
pub async fn keep_answer(
    db: &Db,
    request_digest: &[u8; 32],
    txid: &[u8],
    vout: i64,
    body: &[u8],
) -> Result<Vec<u8>, DbError> {
    sqlx::query(
        "INSERT INTO static_refund (request_digest, txid, vout, answer) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (request_digest) DO NOTHING",
    )
    .bind(request_digest.as_slice())
    .bind(txid)
    .bind(vout)
    .bind(body)
    .execute(db.pool())
    .await?;
    sqlx::query(
        "DELETE FROM static_refund WHERE request_digest IN ( \
             SELECT request_digest FROM static_refund WHERE txid = $1 AND vout = $2 AND request_digest <> $4 \
             ORDER BY created_at DESC, request_digest OFFSET $3 - 1)",
    )
    .bind(txid)
    .bind(vout)
    .bind(MOST_ANSWERS)
    .bind(request_digest.as_slice())
    .execute(db.pool())
    .await?;
    answer(db.pool(), request_digest).await?.ok_or(DbError::Missing("static_refund"))
}
