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
    /// Outputs that the page might have held, and one more if there is one.
    pub candidates: i64,
}

/// How much a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most rows.
    pub rows: i64,
    /// Most bytes of their transactions. The first row comes whatever it has, so that every page goes on.
    pub bytes: i64,
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

/// A page, cut before its transactions are read. `$where` names the outputs, and `$rows`, `$bytes` and `$skip` are
/// the numbers of the parameters that bound it.
macro_rules! page {
    ($rows:literal, $bytes:literal, $skip:literal, $($where:tt)*) => {
        concat!(
            "WITH candidate AS (SELECT d.txid, d.vout, a.address, octet_length(t.raw) AS size, ",
            deep!(),
            " AS confirmed, (extract(epoch FROM d.seen_at) * 1000000)::bigint AS seen_micros \
             FROM deposit_output d JOIN deposit_address a ON a.script = d.script JOIN deposit_tx t ON t.txid = d.txid \
             WHERE ",
            $($where)*,
            " ORDER BY seen_micros, d.txid, d.vout LIMIT ", $rows, " + 1 OFFSET ", $skip, "), \
             placed AS (SELECT *, count(*) OVER () AS candidates, row_number() OVER listed AS place, \
                 sum(size) OVER listed AS bytes FROM candidate \
                 WINDOW listed AS (ORDER BY seen_micros, txid, vout)) \
             SELECT p.txid, p.vout, p.address, t.raw AS raw_tx, p.confirmed, p.seen_micros, p.candidates \
             FROM placed p JOIN deposit_tx t ON t.txid = p.txid \
             WHERE p.place <= ", $rows, " AND (p.place = 1 OR p.bytes <= ", $bytes, ") \
             ORDER BY p.seen_micros, p.txid, p.vout"
        )
    };
}

/// The rows, and whether there are more behind them.
fn with_more(rows: Vec<UtxoRow>) -> (Vec<UtxoRow>, bool) {
    let shown = i64::try_from(rows.len()).unwrap_or(i64::MAX);
    let more = rows.first().is_some_and(|row| row.candidates > shown);
    (rows, more)
}

/// Confirmed outputs of one address, in the order in which they were seen, and whether there are more.
pub async fn of_address(
    ex: impl PgExecutor<'_>,
    script: &[u8],
    depth: u32,
    exclude_claimed: bool,
    bounds: Bounds,
    offset: i64,
) -> Result<(Vec<UtxoRow>, bool), DbError> {
    let rows = sqlx::query_as(page!(
        "$4",
        "$5",
        "$6",
        "d.script = $2 AND ",
        deep!(),
        " AND NOT ($3 AND ",
        claimed!(),
        ")"
    ))
    .bind(i64::from(depth))
    .bind(script)
    .bind(exclude_claimed)
    .bind(bounds.rows)
    .bind(bounds.bytes)
    .bind(offset)
    .fetch_all(ex)
    .await?;
    Ok(with_more(rows))
}

/// Outputs of all static addresses of an identity, in the order in which they were seen, and whether there are more;
/// with `pending` also those that do not count yet.
pub async fn of_identity(
    ex: impl PgExecutor<'_>,
    identity: &[u8],
    depth: u32,
    exclude_claimed: bool,
    pending: bool,
    after: Option<&After>,
    bounds: Bounds,
) -> Result<(Vec<UtxoRow>, bool), DbError> {
    let rows = sqlx::query_as(page!(
        "$8",
        "$9",
        "0",
        "a.identity = $2 AND a.is_static AND ($3 OR ",
        deep!(),
        ") AND NOT ($4 AND ",
        claimed!(),
        ") AND ($5::bigint IS NULL OR \
         ((extract(epoch FROM d.seen_at) * 1000000)::bigint, d.txid, d.vout) > ($5, $6, $7))"
    ))
    .bind(i64::from(depth))
    .bind(identity)
    .bind(pending)
    .bind(exclude_claimed)
    .bind(after.map(|a| a.seen_micros))
    .bind(after.map(|a| a.txid.as_slice()))
    .bind(after.map(|a| a.vout))
    .bind(bounds.rows)
    .bind(bounds.bytes)
    .fetch_all(ex)
    .await?;
    Ok(with_more(rows))
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
