//! Exit transactions of cooperative exits on the own chain and in its mempool.

use std::collections::HashSet;

use bitcoin::{BlockHash, Txid, hashes::Hash as _};
use spark_rules::settlement::Block;
use sqlx::{FromRow, PgConnection, PgExecutor};

use super::{DbError, fixed};

/// Where an exit transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a block of the active chain.
    Mined(Block),
    /// In the mempool, or it left blocks and mempool less than ten minutes ago: it may come back.
    Near,
    /// Nowhere.
    Nowhere,
}

#[derive(FromRow)]
struct Raw {
    height: Option<i32>,
    block_hash: Option<Vec<u8>>,
    near: bool,
}

/// Where it is, as last seen.
pub async fn place(ex: impl PgExecutor<'_>, txid: &Txid) -> Result<Place, DbError> {
    let raw: Option<Raw> = sqlx::query_as(
        "SELECT h.height, s.block_hash, s.in_mempool OR s.last_seen > now() - interval '10 minutes' AS near \
         FROM exit_seen s LEFT JOIN header h ON h.hash = s.block_hash WHERE s.txid = $1",
    )
    .bind(txid.to_byte_array().as_slice())
    .fetch_optional(ex)
    .await?;
    Ok(match raw {
        Some(Raw { height: Some(height), block_hash: Some(hash), .. }) => Place::Mined(Block {
            height: u32::try_from(height).map_err(|_| DbError::Corrupt("header.height"))?,
            hash: fixed("exit_seen.block_hash", hash)?,
        }),
        Some(Raw { near: true, .. }) => Place::Near,
        _ => Place::Nowhere,
    })
}

/// Which of these transactions exits wait for, or were settled by.
pub(super) async fn among(ex: impl PgExecutor<'_>, txids: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, DbError> {
    Ok(sqlx::query_scalar("SELECT DISTINCT exit_txid FROM htlc WHERE exit_txid = ANY($1)")
        .bind(txids)
        .fetch_all(ex)
        .await?)
}

/// A block has them.
pub(super) async fn mined(
    tx: &mut PgConnection,
    txids: &[Vec<u8>],
    block_hash: &[u8],
) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO exit_seen (txid, block_hash, in_mempool) SELECT unnest($1::bytea[]), $2, false \
         ON CONFLICT (txid) DO UPDATE SET block_hash = excluded.block_hash, in_mempool = false, last_seen = now()",
    )
    .bind(txids)
    .bind(block_hash)
    .execute(tx)
    .await?;
    Ok(())
}

/// A block left the active chain. Returns the exits that were settled by it and vanished with it.
pub(super) async fn unmined(ex: impl PgExecutor<'_>, block: &BlockHash) -> Result<Vec<Vec<u8>>, DbError> {
    Ok(sqlx::query_scalar(
        "WITH left_block AS (UPDATE exit_seen SET block_hash = NULL, last_seen = now() WHERE block_hash = $1 \
         RETURNING txid) \
         SELECT DISTINCT h.exit_txid FROM htlc h JOIN left_block l ON l.txid = h.exit_txid WHERE h.state = 'SETTLED'",
    )
    .bind(block.to_byte_array().as_slice())
    .fetch_all(ex)
    .await?)
}

/// What a look at the mempool changes: transactions that came, and that left.
#[derive(Debug, Default)]
pub(super) struct Changes {
    came: Vec<Vec<u8>>,
    left: Vec<Vec<u8>>,
}

impl Changes {
    pub(super) const fn is_empty(&self) -> bool {
        self.came.is_empty() && self.left.is_empty()
    }
}

/// Compares the mempool with what was seen of exits that are not over.
pub(super) async fn changes(ex: impl PgExecutor<'_>, held: &HashSet<Txid>) -> Result<Changes, DbError> {
    let waiting: Vec<(Vec<u8>, bool)> = sqlx::query_as(
        "SELECT w.txid, coalesce(s.in_mempool, false) FROM ( \
             SELECT exit_txid AS txid FROM htlc WHERE exit_txid IS NOT NULL AND NOT announced \
             UNION SELECT txid FROM exit_seen WHERE in_mempool) w \
         LEFT JOIN exit_seen s ON s.txid = w.txid",
    )
    .fetch_all(ex)
    .await?;
    let mut changes = Changes::default();
    for (txid, known) in waiting {
        match (Txid::from_slice(&txid).is_ok_and(|txid| held.contains(&txid)), known) {
            (true, false) => changes.came.push(txid),
            (false, true) => changes.left.push(txid),
            _ => {}
        }
    }
    Ok(changes)
}

/// Writes what changed.
pub(super) async fn looked(tx: &mut PgConnection, changes: &Changes) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO exit_seen (txid, in_mempool) SELECT unnest($1::bytea[]), true \
         ON CONFLICT (txid) DO UPDATE SET in_mempool = true, last_seen = now()",
    )
    .bind(&changes.came)
    .execute(&mut *tx)
    .await?;
    sqlx::query("UPDATE exit_seen SET in_mempool = false, last_seen = now() WHERE txid = ANY($1)")
        .bind(&changes.left)
        .execute(&mut *tx)
        .await?;
    Ok(())
}
