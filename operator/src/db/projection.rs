//! How far these tables have followed the signer's journal (D10).

use sqlx::PgExecutor;

use super::DbError;

/// Incarnation and sequence of the last journal entry that was projected.
pub async fn get(ex: impl PgExecutor<'_>) -> Result<Option<([u8; 16], u64)>, DbError> {
    let row: Option<(Vec<u8>, i64)> =
        sqlx::query_as("SELECT incarnation, sequence FROM projection").fetch_optional(ex).await?;
    row.map(|(incarnation, sequence)| {
        Ok((super::fixed("incarnation", incarnation)?, super::unsigned("sequence", sequence)?))
    })
    .transpose()
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
