//! Who besides its owner may read what concerns an identity. Without a row, nobody or everybody: as configured.

use sqlx::{FromRow, PgExecutor};

use super::DbError;

/// An identity's setting.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct SettingRow {
    /// Others may not read.
    pub private: bool,
    /// Who may read all the same, 33 bytes.
    pub master: Option<Vec<u8>>,
}

/// The setting of an identity; without one it is `private` by default or not.
pub async fn get(ex: impl PgExecutor<'_>, identity: &[u8], private: bool) -> Result<SettingRow, DbError> {
    let row = sqlx::query_as("SELECT private, master FROM wallet_setting WHERE identity = $1")
        .bind(identity)
        .fetch_optional(ex)
        .await?;
    Ok(row.unwrap_or(SettingRow { private, master: None }))
}

/// Changes what is given: `master` is the new one, or none. A first row is private by default or not.
pub async fn update(
    ex: impl PgExecutor<'_>,
    identity: &[u8],
    private: Option<bool>,
    master: Option<Option<&[u8]>>,
    private_default: bool,
) -> Result<SettingRow, DbError> {
    Ok(sqlx::query_as(
        "INSERT INTO wallet_setting AS s (identity, private, master) VALUES ($1, coalesce($2, $5), $4) \
         ON CONFLICT (identity) DO UPDATE SET private = coalesce($2, s.private), \
             master = CASE WHEN $3 THEN $4 ELSE s.master END, \
             updated_at = CASE WHEN coalesce($2, s.private) <> s.private OR ($3 AND $4 IS DISTINCT FROM s.master) \
                 THEN now() ELSE s.updated_at END \
         RETURNING private, master",
    )
    .bind(identity)
    .bind(private)
    .bind(master.is_some())
    .bind(master.flatten())
    .bind(private_default)
    .fetch_one(ex)
    .await?)
}
