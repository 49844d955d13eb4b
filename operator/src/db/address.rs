//! Deposit addresses: one keyshare bound to (leaf id, user key, identity).

use std::collections::BTreeMap;

use sqlx::{FromRow, PgExecutor};
use uuid::Uuid;

use super::{Db, DbError, in_transaction, keyshare};

/// A deposit address as recorded.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct AddressRow {
    /// Keyshare.
    pub keyshare_id: Uuid,
    /// Leaf id that a deposit will have.
    pub leaf_id: Uuid,
    /// Bech32m text.
    pub address: String,
    /// P2TR output script, 34 bytes.
    pub script: Vec<u8>,
    /// "mainnet", "testnet", "signet" or "regtest".
    pub network: String,
    /// Owner's identity key, 33 bytes.
    pub identity: Vec<u8>,
    /// Owner's leaf key, 33 bytes.
    pub user_key: Vec<u8>,
    /// Sum of the operators' key and the user's key, 33 bytes.
    pub verifying_key: Vec<u8>,
    /// Whose pool and whose request.
    pub coordinator: i16,
    /// JSON object: FROST identifier (64 hex digits) to DER signature in hex.
    pub address_signatures: String,
    /// BIP340, 64 bytes.
    pub possession_signature: Option<Vec<u8>>,
    /// `BINDING`, `BOUND`, `READY` or `USED`.
    pub state: String,
    /// Microseconds since 1970.
    pub created_micros: i64,
    /// Takes any number of deposits and makes no leaf.
    pub is_static: bool,
}

impl AddressRow {
    /// The operators' signatures over the address by FROST identifier.
    pub fn signatures(&self) -> Result<BTreeMap<String, Vec<u8>>, DbError> {
        let text: BTreeMap<String, String> = serde_json::from_str(&self.address_signatures)
            .map_err(|_| DbError::Corrupt("address_signatures"))?;
        text.into_iter()
            .map(|(id, der)| Ok((id, hex::decode(der).map_err(|_| DbError::Corrupt("address_signatures"))?)))
            .collect()
    }
}

/// What a wallet asked an address for.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct RequestRow {
    /// Leaf id.
    pub leaf_id: Uuid,
    /// Keyshare chosen for it.
    pub keyshare_id: Uuid,
    /// 33 bytes.
    pub identity: Vec<u8>,
    /// 33 bytes.
    pub user_key: Vec<u8>,
}

/// How many addresses of an identity hold a keyshare without a leaf.
pub async fn unused_count(ex: impl PgExecutor<'_>, identity: &[u8]) -> Result<i64, DbError> {
    Ok(sqlx::query_scalar(
        "SELECT count(*) FROM deposit_address WHERE identity = $1 AND state <> 'USED' AND NOT is_static",
    )
    .bind(identity)
    .fetch_one(ex)
    .await?)
}

/// Chooses a keyshare for a leaf id, once: a repeat gets the row of the first request, whatever it asked.
/// `None` when the pool is empty.
pub async fn reserve(
    db: &Db,
    owner_index: i16,
    leaf_id: Uuid,
    identity: &[u8],
    user_key: &[u8],
) -> Result<Option<RequestRow>, DbError> {
    if let Some(row) = request(db.pool(), leaf_id).await? {
        return Ok(Some(row));
    }
    let outcome = in_transaction!(db, tx => {
        match keyshare::take(&mut *tx, owner_index).await? {
            Some(keyshare_id) => {
                let row = RequestRow { leaf_id, keyshare_id, identity: identity.to_vec(), user_key: user_key.to_vec() };
                insert_request(&mut *tx, &row).await?;
                Some(row)
            }
            None => None,
        }
    });
    match outcome {
        // Somebody else reserved this leaf id between our look and our insert.
        Err(DbError::Exists(_)) => request(db.pool(), leaf_id).await,
        outcome => outcome,
    }
}

async fn insert_request(ex: impl PgExecutor<'_>, row: &RequestRow) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO address_request (leaf_id, keyshare_id, identity, user_key) VALUES ($1, $2, $3, $4)",
    )
    .bind(row.leaf_id)
    .bind(row.keyshare_id)
    .bind(&row.identity)
    .bind(&row.user_key)
    .execute(ex)
    .await?;
    Ok(())
}

/// Writes again a reservation that these tables lost; one that is there stays.
pub async fn restore_request(ex: impl PgExecutor<'_>, row: &RequestRow) -> Result<(), DbError> {
    match insert_request(ex, row).await {
        Ok(()) | Err(DbError::Exists(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The reservation of a leaf id.
pub async fn request(ex: impl PgExecutor<'_>, leaf_id: Uuid) -> Result<Option<RequestRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT leaf_id, keyshare_id, identity, user_key FROM address_request WHERE leaf_id = $1",
    )
    .bind(leaf_id)
    .fetch_optional(ex)
    .await?)
}

/// Records a bound address; a repeat with the same keyshare changes nothing.
pub async fn insert(ex: impl PgExecutor<'_>, row: &AddressRow) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO deposit_address (keyshare_id, leaf_id, address, script, network, identity, user_key, \
         verifying_key, coordinator, address_signatures, possession_signature, state, is_static) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text::jsonb, $11, $12, $13) ON CONFLICT (keyshare_id) DO NOTHING",
    )
    .bind(row.keyshare_id)
    .bind(row.leaf_id)
    .bind(&row.address)
    .bind(&row.script)
    .bind(&row.network)
    .bind(&row.identity)
    .bind(&row.user_key)
    .bind(&row.verifying_key)
    .bind(row.coordinator)
    .bind(&row.address_signatures)
    .bind(&row.possession_signature)
    .bind(&row.state)
    .bind(row.is_static)
    .execute(ex)
    .await?;
    Ok(())
}

/// Completes an address of one's own: the first complete set of signatures stays.
pub async fn complete(
    ex: impl PgExecutor<'_>,
    keyshare_id: Uuid,
    signatures: &BTreeMap<String, Vec<u8>>,
    possession: &[u8; 64],
) -> Result<(), DbError> {
    let text: BTreeMap<&String, String> = signatures.iter().map(|(id, der)| (id, hex::encode(der))).collect();
    let text = serde_json::to_string(&text).map_err(|_| DbError::Corrupt("address_signatures"))?;
    sqlx::query(
        "UPDATE deposit_address SET address_signatures = $2::text::jsonb, possession_signature = $3, state = 'READY' \
         WHERE keyshare_id = $1 AND state IN ('BINDING', 'BOUND')",
    )
    .bind(keyshare_id)
    .bind(text)
    .bind(possession.as_slice())
    .execute(ex)
    .await?;
    Ok(())
}

/// A leaf exists on an output of this address.
pub async fn mark_used(ex: impl PgExecutor<'_>, leaf_id: Uuid) -> Result<(), DbError> {
    sqlx::query("UPDATE deposit_address SET state = 'USED' WHERE leaf_id = $1")
        .bind(leaf_id)
        .execute(ex)
        .await?;
    Ok(())
}

macro_rules! select_address {
    ($rest:literal) => {
        concat!(
            "SELECT keyshare_id, leaf_id, address, script, network, identity, user_key, verifying_key, coordinator, \
             address_signatures::text AS address_signatures, possession_signature, state, \
             (extract(epoch FROM created_at) * 1000000)::bigint AS created_micros, is_static FROM deposit_address ",
            $rest
        )
    };
}
pub(super) use select_address;

/// By keyshare.
pub async fn by_keyshare(ex: impl PgExecutor<'_>, keyshare_id: Uuid) -> Result<Option<AddressRow>, DbError> {
    Ok(sqlx::query_as(select_address!("WHERE keyshare_id = $1")).bind(keyshare_id).fetch_optional(ex).await?)
}

/// By its text.
pub async fn by_address(ex: impl PgExecutor<'_>, address: &str) -> Result<Option<AddressRow>, DbError> {
    Ok(sqlx::query_as(select_address!("WHERE address = $1")).bind(address).fetch_optional(ex).await?)
}

/// By leaf id.
pub async fn by_leaf(ex: impl PgExecutor<'_>, leaf_id: Uuid) -> Result<Option<AddressRow>, DbError> {
    Ok(sqlx::query_as(select_address!("WHERE leaf_id = $1")).bind(leaf_id).fetch_optional(ex).await?)
}

/// By output script.
pub async fn by_script(ex: impl PgExecutor<'_>, script: &[u8]) -> Result<Option<AddressRow>, DbError> {
    Ok(sqlx::query_as(select_address!("WHERE script = $1")).bind(script).fetch_optional(ex).await?)
}

/// Every address of these scripts, for a block or transaction with many outputs.
pub async fn by_scripts(ex: impl PgExecutor<'_>, scripts: &[Vec<u8>]) -> Result<Vec<AddressRow>, DbError> {
    Ok(sqlx::query_as(select_address!("WHERE script = ANY($1)")).bind(scripts).fetch_all(ex).await?)
}

/// Addresses of an identity on which no leaf exists yet, oldest first. With `ready_only`: only complete ones, as
/// their coordinator has them.
pub async fn unused(
    ex: impl PgExecutor<'_>,
    identity: &[u8],
    ready_only: bool,
    limit: i64,
    offset: i64,
) -> Result<Vec<AddressRow>, DbError> {
    Ok(sqlx::query_as(select_address!(
        "WHERE identity = $1 AND NOT is_static AND (state = 'READY' OR (NOT $2 AND state IN ('BOUND', 'BINDING'))) \
         ORDER BY created_at, keyshare_id LIMIT $3 OFFSET $4"
    ))
    .bind(identity)
    .bind(ready_only)
    .bind(limit)
    .bind(offset)
    .fetch_all(ex)
    .await?)
}

/// Scripts of all addresses, `limit` at a time after `after` (exclusive), for the chain watcher's start.
pub async fn scripts_after(
    ex: impl PgExecutor<'_>,
    after: &[u8],
    limit: i64,
) -> Result<Vec<Vec<u8>>, DbError> {
    Ok(sqlx::query_scalar("SELECT script FROM deposit_address WHERE script > $1 ORDER BY script LIMIT $2")
        .bind(after)
        .bind(limit)
        .fetch_all(ex)
        .await?)
}
