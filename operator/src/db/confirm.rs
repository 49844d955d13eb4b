//! Leaves and the confirmation of what they stand on (S12, D20): a leaf is available exactly while every output
//! that its tree's root spends is in the active chain at the configured depth.

use spark_rules::leaf::{LeafRecord, LeafStatus};
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::{Db, DbError, event, in_transaction, leaf, query_node::unsettled};

#[derive(FromRow)]
struct Row {
    leaf_id: Uuid,
    version: i64,
    owner_identity: Vec<u8>,
    record: Vec<u8>,
}

/// Leaves by whether outputs of the root of their tree are not confirmed at `$1` blocks. A leaf that its coordinator
/// does not show yet (D7) waits: what is announced must be visible.
macro_rules! select {
    ($status:literal, $not:literal, $tail:literal) => {
        concat!(
            "SELECT l.leaf_id, l.version, l.owner_identity, l.record FROM leaf l WHERE l.status = '",
            $status,
            "' AND NOT ",
            unsettled!("l"),
            " AND ",
            $not,
            " EXISTS (SELECT 1 FROM leaf t JOIN watched_outpoint w ON w.leaf_id = t.leaf_id AND w.kind = 'BASE' ",
            "WHERE t.tree_id = l.tree_id AND NOT EXISTS (SELECT 1 FROM deposit_output d WHERE d.txid = w.txid ",
            "AND d.vout = w.vout AND d.height <= (SELECT max(height) FROM header) - $1 + 1)) ",
            $tail
        )
    };
}

async fn set(tx: &mut PgConnection, row: &Row, status: LeafStatus) -> Result<(), DbError> {
    let mut record = LeafRecord::decode(&row.record).map_err(|_| DbError::Corrupt("leaf.record"))?;
    record.status = status;
    leaf::set_status(&mut *tx, row.leaf_id, row.version, status.name(), &record.encode()).await?;
    Ok(())
}

async fn announce(tx: &mut PgConnection, rows: &[Row]) -> Result<(), DbError> {
    for row in rows {
        set(tx, row, LeafStatus::Available).await?;
        event::insert(&mut *tx, &row.owner_identity, "DEPOSIT", row.leaf_id.as_bytes()).await?;
    }
    Ok(())
}

/// Makes one new leaf available if its deposit is confirmed and it may be shown, within the caller's transaction.
pub(super) async fn promote(tx: &mut PgConnection, leaf_id: Uuid, depth: u32) -> Result<(), DbError> {
    let rows: Vec<Row> = sqlx::query_as(select!("CREATING", "NOT", "AND l.leaf_id = $2 FOR UPDATE OF l"))
        .bind(i64::from(depth))
        .bind(leaf_id)
        .fetch_all(&mut *tx)
        .await?;
    announce(tx, &rows).await
}

/// Makes every leaf available whose deposit is confirmed at `depth`, and takes back what a reorganisation
/// unconfirmed. Returns how many changed.
pub async fn settle(db: &Db, depth: u32) -> Result<usize, DbError> {
    let confirmed = in_transaction!(db, tx => {
        let confirmed: Vec<Row> = sqlx::query_as(select!("CREATING", "NOT", "FOR UPDATE OF l SKIP LOCKED"))
            .bind(i64::from(depth))
            .fetch_all(&mut *tx)
            .await?;
        announce(&mut tx, &confirmed).await?;
        confirmed.len()
    })?;
    in_transaction!(db, tx => {
        let lost: Vec<Row> = sqlx::query_as(select!("AVAILABLE", "", "FOR UPDATE OF l SKIP LOCKED"))
            .bind(i64::from(depth))
            .fetch_all(&mut *tx)
            .await?;
        for row in &lost {
            set(&mut tx, row, LeafStatus::Creating).await?;
        }
        confirmed + lost.len()
    })
}
