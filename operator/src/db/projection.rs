//! How far these tables have followed the signer's journal (D10).

use sqlx::PgExecutor;
use uuid::Uuid;

use super::{Db, DbError, in_transaction};

/// Incarnation and sequence of the last journal entry that was projected.
pub async fn get(ex: impl PgExecutor<'_>) -> Result<Option<([u8; 16], u64)>, DbError> {
    let row: Option<(Vec<u8>, i64)> =
        sqlx::query_as("SELECT incarnation, sequence FROM projection").fetch_optional(ex).await?;
    row.map(|(incarnation, sequence)| {
        Ok((super::fixed("incarnation", incarnation)?, super::unsigned("sequence", sequence)?))
    })
    .transpose()
}

/// Leaves put aside in one statement.
const BATCH: i64 = 10_000;

/// The signer's journal is that of a repaired signer and begins anew. Every leaf is put aside until that journal names
/// it (nodes above leaves are no keys), and what only the lost signer could open is no longer given out. Cut off, it begins again.
pub async fn begin_life(db: &Db, incarnation: &[u8; 16]) -> Result<(), DbError> {
    let mut after = Uuid::nil();
    loop {
        let last: Option<Uuid> = sqlx::query_scalar(
            "WITH page AS (SELECT leaf_id FROM leaf WHERE leaf_id > $1 AND status <> 'SPLITTED' ORDER BY leaf_id LIMIT $2), \
             put AS (INSERT INTO unrepaired_leaf SELECT leaf_id FROM page ON CONFLICT DO NOTHING) \
             SELECT leaf_id FROM page ORDER BY leaf_id DESC LIMIT 1",
        )
        .bind(after)
        .bind(BATCH)
        .fetch_optional(db.pool())
        .await?;
        let Some(last) = last else { break };
        after = last;
    }
    in_transaction!(db, tx => {
        sqlx::query("DELETE FROM package_key").execute(&mut *tx).await?;
        set(&mut *tx, incarnation, 0).await?;
    })
}

/// The signer has this leaf, at this version: its row may be served again if it says the same.
pub async fn has_leaf(ex: impl PgExecutor<'_>, leaf_id: Uuid, version: i64) -> Result<(), DbError> {
    sqlx::query(
        "DELETE FROM unrepaired_leaf u USING leaf l WHERE u.leaf_id = $1 AND l.leaf_id = $1 AND l.version = $2",
    )
    .bind(leaf_id)
    .bind(version)
    .execute(ex)
    .await?;
    Ok(())
}

/// Leaves on which nothing is served, since the own signer lacks them.
pub async fn unrepaired(ex: impl PgExecutor<'_>) -> Result<i64, DbError> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM unrepaired_leaf").fetch_one(ex).await?)
}

/// Moves forward. Within an incarnation the sequence never goes back.
pub async fn set(ex: impl PgExecutor<'_>, incarnation: &[u8; 16], sequence: u64) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO projection (incarnation, sequence) VALUES ($1, $2) ON CONFLICT (singleton) DO UPDATE \
         SET incarnation = EXCLUDED.incarnation, sequence = EXCLUDED.sequence \
         WHERE projection.incarnation <> EXCLUDED.incarnation OR projection.sequence < EXCLUDED.sequence",
    )
    .bind(incarnation.as_slice())
    .bind(super::signed("sequence", sequence)?)
    .execute(ex)
    .await?;
    Ok(())
}
