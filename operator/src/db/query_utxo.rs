//! Outputs that deposit addresses got, as their owners see them.

use sqlx::{FromRow, PgExecutor};

use super::DbError;

/// An output of an address.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct UtxoRow {
    /// 32 bytes, internal order.
    pub txid: Vec<u8>,
    /// Output.
    pub vout: i64,
    /// Bech32m text.
    pub address: String,
    /// The whole transaction.
    pub raw_tx: Vec<u8>,
    /// Deep enough to count.
    pub confirmed: bool,
    /// Microseconds since 1970, of the first sight.
    pub seen_micros: i64,
}

/// Where a page begins: after this output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct After {
    /// Of its first sight.
    pub seen_micros: i64,
    /// 32 bytes, internal order.
    pub txid: Vec<u8>,
    /// Output.
    pub vout: i64,
}

/// Whether an output is at least `$1` blocks deep.
macro_rules! deep {
    () => {
        "coalesce(d.height <= (SELECT max(height) FROM header) - $1 + 1, false)"
    };
}

/// Whether an output was claimed: by its owner's refund, by a provider, by a leaf, or by a spend in a block.
macro_rules! claimed {
    () => {
        "(EXISTS (SELECT 1 FROM utxo_claim c WHERE c.txid = d.txid AND c.vout = d.vout AND c.state = 'LIVE') \
         OR EXISTS (SELECT 1 FROM watched_outpoint w WHERE w.txid = d.txid AND w.vout = d.vout AND w.kind = 'BASE') \
         OR EXISTS (SELECT 1 FROM chain_event e WHERE e.txid = d.txid AND e.vout = d.vout))"
    };
}

macro_rules! select {
    ($($rest:tt)*) => {
        concat!(
            "SELECT d.txid, d.vout, a.address, d.raw_tx, ",
            deep!(),
            " AS confirmed, (extract(epoch FROM d.seen_at) * 1000000)::bigint AS seen_micros \
             FROM deposit_output d JOIN deposit_address a ON a.script = d.script WHERE ",
            $($rest)*
        )
    };
}

/// Confirmed outputs of one address, in the order in which they were seen.
pub async fn of_address(
    ex: impl PgExecutor<'_>,
    script: &[u8],
    depth: u32,
    exclude_claimed: bool,
    limit: i64,
    offset: i64,
) -> Result<Vec<UtxoRow>, DbError> {
    Ok(sqlx::query_as(select!(
        "d.script = $2 AND ",
        deep!(),
        " AND NOT ($3 AND ",
        claimed!(),
        ") ORDER BY d.seen_at, d.txid, d.vout LIMIT $4 OFFSET $5"
    ))
    .bind(i64::from(depth))
    .bind(script)
    .bind(exclude_claimed)
    .bind(limit)
    .bind(offset)
    .fetch_all(ex)
    .await?)
}

/// Outputs of all static addresses of an identity, in the order in which they were seen; with `pending` also those
/// that do not count yet.
pub async fn of_identity(
    ex: impl PgExecutor<'_>,
    identity: &[u8],
    depth: u32,
    exclude_claimed: bool,
    pending: bool,
    after: Option<&After>,
    limit: i64,
) -> Result<Vec<UtxoRow>, DbError> {
    Ok(sqlx::query_as(select!(
        "a.identity = $2 AND a.is_static AND ($3 OR ",
        deep!(),
        ") AND NOT ($4 AND ",
        claimed!(),
        ") AND ($5::bigint IS NULL OR ((extract(epoch FROM d.seen_at) * 1000000)::bigint, d.txid, d.vout) > ($5, $6, $7)) \
         ORDER BY (extract(epoch FROM d.seen_at) * 1000000)::bigint, d.txid, d.vout LIMIT $8"
    ))
    .bind(i64::from(depth))
    .bind(identity)
    .bind(pending)
    .bind(exclude_claimed)
    .bind(after.map(|a| a.seen_micros))
    .bind(after.map(|a| a.txid.as_slice()))
    .bind(after.map(|a| a.vout))
    .bind(limit)
    .fetch_all(ex)
    .await?)
}

/// How an output stands: `None` if it is not seen; else whether it is deep enough and whether a block spends it.
pub async fn standing(
    ex: impl PgExecutor<'_>,
    txid: &[u8],
    vout: i64,
    depth: u32,
) -> Result<Option<(bool, bool)>, DbError> {
    Ok(sqlx::query_as(concat!(
        "SELECT ",
        deep!(),
        ", EXISTS (SELECT 1 FROM chain_event e WHERE e.txid = d.txid AND e.vout = d.vout) \
         FROM deposit_output d WHERE d.txid = $2 AND d.vout = $3"
    ))
    .bind(i64::from(depth))
    .bind(txid)
    .bind(vout)
    .fetch_optional(ex)
    .await?)
}
