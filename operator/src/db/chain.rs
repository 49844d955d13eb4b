//! Facts from blocks and the mempool.

use sqlx::{FromRow, PgConnection, PgExecutor};
use uuid::Uuid;

use super::DbError;

/// An outpoint whose spend must be noticed.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct WatchedRow {
    /// 32 bytes, internal order.
    pub txid: Vec<u8>,
    /// Output.
    pub vout: i64,
    /// `DEPOSIT`, `BASE`, `NODE`, `REFUND`, `EXIT` or `CONNECTOR`.
    pub kind: String,
    /// Leaf that depends on it.
    pub leaf_id: Option<Uuid>,
}

/// A spend of a watched outpoint.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct SpendRow {
    /// Outpoint's transaction.
    pub txid: Vec<u8>,
    /// Outpoint's output.
    pub vout: i64,
    /// Who spends it.
    pub spender_txid: Vec<u8>,
    /// Class of the spend (D21).
    pub kind: String,
    /// Leaf concerned.
    pub leaf_id: Option<Uuid>,
}

/// An output that pays a deposit address.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct DepositRow {
    /// 32 bytes, internal order.
    pub txid: Vec<u8>,
    /// Output.
    pub vout: i64,
    /// 34 bytes.
    pub script: Vec<u8>,
    /// Satoshis.
    pub amount: i64,
    /// Block height; absent in the mempool.
    pub height: Option<i32>,
    /// Block hash; absent in the mempool.
    pub block_hash: Option<Vec<u8>>,
    /// The whole transaction.
    pub raw_tx: Vec<u8>,
}

/// A transaction that pays deposit addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayingRow {
    /// 32 bytes, internal order.
    pub txid: Vec<u8>,
    /// The whole transaction.
    pub raw: Vec<u8>,
    /// Its outputs that do: index, script, satoshis.
    pub outputs: Vec<(i64, Vec<u8>, i64)>,
}

/// Starts to watch an outpoint; a repeat changes nothing. The last word counts: a renewal puts a node between an
/// output and the leaf that used to spend it.
pub async fn watch(ex: impl PgExecutor<'_>, row: &WatchedRow) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO watched_outpoint (txid, vout, kind, leaf_id) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (txid, vout) DO UPDATE SET kind = EXCLUDED.kind, leaf_id = EXCLUDED.leaf_id",
    )
    .bind(&row.txid)
    .bind(row.vout)
    .bind(&row.kind)
    .bind(row.leaf_id)
    .execute(ex)
    .await?;
    Ok(())
}

/// Forgets what was watched for a leaf whose deposit is replaced (D20): the former outputs are no longer its own.
pub async fn unwatch(ex: impl PgExecutor<'_>, leaf_id: Uuid) -> Result<(), DbError> {
    sqlx::query("DELETE FROM watched_outpoint WHERE leaf_id = $1").bind(leaf_id).execute(ex).await?;
    Ok(())
}

/// Leaves among these one of whose deposits is in a block, however deep.
pub async fn mined(ex: impl PgExecutor<'_>, leaf_ids: &[Uuid]) -> Result<Vec<Uuid>, DbError> {
    Ok(sqlx::query_scalar(
        "SELECT DISTINCT w.leaf_id FROM watched_outpoint w JOIN deposit_output d ON d.txid = w.txid AND d.vout = w.vout \
         WHERE w.leaf_id = ANY($1) AND w.kind = 'BASE' AND d.height IS NOT NULL",
    )
    .bind(leaf_ids)
    .fetch_all(ex)
    .await?)
}

/// Which of these outpoints are watched. `txids` and `vouts` are parallel.
pub async fn watched(
    ex: impl PgExecutor<'_>,
    txids: &[Vec<u8>],
    vouts: &[i64],
) -> Result<Vec<WatchedRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT w.txid, w.vout, w.kind, w.leaf_id FROM watched_outpoint w \
         JOIN unnest($1::bytea[], $2::bigint[]) AS o(txid, vout) ON w.txid = o.txid AND w.vout = o.vout",
    )
    .bind(txids)
    .bind(vouts)
    .fetch_all(ex)
    .await?)
}

/// A spend of what is below a leaf at rest by its node tx, or by something else.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct ExitRow {
    /// The leaf.
    pub leaf_id: Uuid,
    /// Its record.
    pub record: Vec<u8>,
    /// What spends the output below it, 32 bytes.
    pub spender_txid: Vec<u8>,
    /// Height of the block.
    pub height: i32,
}

/// Those in blocks above a height whose own output nobody is seen to spend, the oldest first.
pub async fn exits(ex: impl PgExecutor<'_>, above: u32, limit: i64) -> Result<Vec<ExitRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT DISTINCT e.height, l.leaf_id, l.record, e.spender_txid FROM chain_event e JOIN leaf l USING (leaf_id) \
         WHERE e.height > $1 AND e.kind IN ('NODE', 'FOREIGN') AND l.status = 'AVAILABLE' \
         AND NOT EXISTS (SELECT 1 FROM chain_event s WHERE s.txid = e.spender_txid) \
         AND NOT EXISTS (SELECT 1 FROM mempool_spend m WHERE m.txid = e.spender_txid) ORDER BY e.height LIMIT $2",
    )
    .bind(i32::try_from(above).unwrap_or(i32::MAX))
    .bind(limit)
    .fetch_all(ex)
    .await?)
}

/// A spend in a block that `header` holds.
pub async fn insert_event(
    ex: impl PgExecutor<'_>,
    row: &SpendRow,
    height: i32,
    block_hash: &[u8],
) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO chain_event (block_hash, txid, vout, spender_txid, height, kind, leaf_id) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (txid, vout) DO NOTHING",
    )
    .bind(block_hash)
    .bind(&row.txid)
    .bind(row.vout)
    .bind(&row.spender_txid)
    .bind(height)
    .bind(&row.kind)
    .bind(row.leaf_id)
    .execute(ex)
    .await?;
    Ok(())
}

/// Spends in blocks that concern a leaf.
pub async fn events_of_leaf(ex: impl PgExecutor<'_>, leaf_id: Uuid) -> Result<Vec<SpendRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT txid, vout, spender_txid, kind, leaf_id FROM chain_event WHERE leaf_id = $1 ORDER BY height, txid, vout",
    )
    .bind(leaf_id)
    .fetch_all(ex)
    .await?)
}

/// A spend in the mempool; a repeat changes nothing.
pub async fn insert_mempool_spend(ex: impl PgExecutor<'_>, row: &SpendRow) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO mempool_spend (txid, vout, spender_txid, kind, leaf_id) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT DO NOTHING",
    )
    .bind(&row.txid)
    .bind(row.vout)
    .bind(&row.spender_txid)
    .bind(&row.kind)
    .bind(row.leaf_id)
    .execute(ex)
    .await?;
    Ok(())
}

/// Forgets mempool spends by transactions that left the mempool.
pub async fn delete_mempool_spends(ex: impl PgExecutor<'_>, spenders: &[Vec<u8>]) -> Result<u64, DbError> {
    Ok(sqlx::query("DELETE FROM mempool_spend WHERE spender_txid = ANY($1)")
        .bind(spenders)
        .execute(ex)
        .await?
        .rows_affected())
}

/// Transactions in the mempool that spend something watched.
pub async fn mempool_spenders(ex: impl PgExecutor<'_>) -> Result<Vec<Vec<u8>>, DbError> {
    Ok(sqlx::query_scalar("SELECT DISTINCT spender_txid FROM mempool_spend").fetch_all(ex).await?)
}

/// Leaves among these on which no vote may be YES (D21): one of their outputs is spent, in a block or in the mempool,
/// or an output above them by another transaction than the node's own, which would only move the tree on chain. And
/// those that the own signer lacks since it was repaired.
pub async fn frozen(ex: impl PgExecutor<'_>, leaf_ids: &[Uuid]) -> Result<Vec<Uuid>, DbError> {
    Ok(sqlx::query_scalar(
        "WITH RECURSIVE path (leaf_id, node_id) AS ( \
             SELECT leaf_id, leaf_id FROM leaf WHERE leaf_id = ANY($1) \
             UNION \
             SELECT p.leaf_id, l.parent_id FROM path p JOIN leaf l ON l.leaf_id = p.node_id \
             WHERE l.parent_id IS NOT NULL) \
         SELECT p.leaf_id FROM path p JOIN chain_event e ON e.leaf_id = p.node_id \
         WHERE e.kind <> 'MOVE' AND (p.leaf_id = p.node_id OR e.kind <> 'NODE') \
         UNION \
         SELECT p.leaf_id FROM path p JOIN mempool_spend e ON e.leaf_id = p.node_id \
         WHERE e.kind <> 'MOVE' AND (p.leaf_id = p.node_id OR e.kind <> 'NODE') \
         UNION \
         SELECT leaf_id FROM unrepaired_leaf WHERE leaf_id = ANY($1) \
         UNION \
         SELECT t.leaf_id FROM transfer_leaf t JOIN htlc h ON h.transfer_id = t.transfer_id \
         JOIN exit_seen s ON s.txid = h.exit_txid \
         WHERE t.leaf_id = ANY($1) AND h.state = 'SETTLED' AND s.block_hash IS NULL",
    )
    .bind(leaf_ids)
    .fetch_all(ex)
    .await?)
}

/// Records the outputs of a transaction that pay deposit addresses; a later sighting (mempool, then block) updates their
/// place: height and hash of the block.
pub async fn upsert_deposits(
    conn: &mut PgConnection,
    row: &PayingRow,
    place: Option<&(i32, Vec<u8>)>,
) -> Result<(), DbError> {
    sqlx::query("INSERT INTO deposit_tx (txid, raw) VALUES ($1, $2) ON CONFLICT (txid) DO NOTHING")
        .bind(&row.txid)
        .bind(&row.raw)
        .execute(&mut *conn)
        .await?;
    let vouts: Vec<i64> = row.outputs.iter().map(|(vout, ..)| *vout).collect();
    let scripts: Vec<&[u8]> = row.outputs.iter().map(|(_, script, _)| script.as_slice()).collect();
    let amounts: Vec<i64> = row.outputs.iter().map(|(.., amount)| *amount).collect();
    sqlx::query(
        "INSERT INTO deposit_output (txid, vout, script, amount, height, block_hash) \
         SELECT $1, o.vout, o.script, o.amount, $5, $6 \
         FROM unnest($2::bigint[], $3::bytea[], $4::bigint[]) AS o(vout, script, amount) \
         ON CONFLICT (txid, vout) DO UPDATE \
         SET height = coalesce(EXCLUDED.height, deposit_output.height), \
             block_hash = coalesce(EXCLUDED.block_hash, deposit_output.block_hash)",
    )
    .bind(&row.txid)
    .bind(vouts)
    .bind(scripts)
    .bind(amounts)
    .bind(place.map(|(height, _)| *height))
    .bind(place.map(|(_, hash)| hash.as_slice()))
    .execute(conn)
    .await?;
    Ok(())
}

/// One output alone, for tests.
#[cfg(test)]
pub(crate) async fn upsert_deposit(pool: &sqlx::PgPool, row: &DepositRow) -> Result<(), DbError> {
    let paying = PayingRow {
        txid: row.txid.clone(),
        raw: row.raw_tx.clone(),
        outputs: vec![(row.vout, row.script.clone(), row.amount)],
    };
    let place = row.height.zip(row.block_hash.clone());
    upsert_deposits(&mut *pool.acquire().await?, &paying, place.as_ref()).await
}

/// One deposit output.
pub async fn deposit(ex: impl PgExecutor<'_>, txid: &[u8], vout: i64) -> Result<Option<DepositRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT txid, vout, script, amount, height, block_hash, raw AS raw_tx \
         FROM deposit_output JOIN deposit_tx USING (txid) WHERE txid = $1 AND vout = $2",
    )
    .bind(txid)
    .bind(vout)
    .fetch_optional(ex)
    .await?)
}

/// Outputs that pay a script, confirmed ones first.
pub async fn deposits_of(ex: impl PgExecutor<'_>, script: &[u8]) -> Result<Vec<DepositRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT txid, vout, script, amount, height, block_hash, raw AS raw_tx \
         FROM deposit_output JOIN deposit_tx USING (txid) WHERE script = $1 ORDER BY height NULLS LAST, txid, vout",
    )
    .bind(script)
    .fetch_all(ex)
    .await?)
}

/// Transactions that pay a deposit address and are in no block.
pub async fn pending_deposits(ex: impl PgExecutor<'_>) -> Result<Vec<Vec<u8>>, DbError> {
    Ok(sqlx::query_scalar("SELECT DISTINCT txid FROM deposit_output WHERE height IS NULL")
        .fetch_all(ex)
        .await?)
}

/// Forgets outputs of transactions that left the mempool for no block.
pub async fn delete_pending_deposits(conn: &mut PgConnection, txids: &[Vec<u8>]) -> Result<(), DbError> {
    sqlx::query("DELETE FROM deposit_output WHERE height IS NULL AND txid = ANY($1)")
        .bind(txids)
        .execute(&mut *conn)
        .await?;
    sqlx::query(
        "DELETE FROM deposit_tx t WHERE txid = ANY($1) \
         AND NOT EXISTS (SELECT 1 FROM deposit_output d WHERE d.txid = t.txid)",
    )
    .bind(txids)
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets transactions whose outputs went with a block that left the chain.
pub async fn delete_unpaying(ex: impl PgExecutor<'_>) -> Result<u64, DbError> {
    Ok(sqlx::query(
        "DELETE FROM deposit_tx t WHERE NOT EXISTS (SELECT 1 FROM deposit_output d WHERE d.txid = t.txid)",
    )
    .execute(ex)
    .await?
    .rows_affected())
}
