//! What the database can answer.

/// Why a statement failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// Another live operation holds this version of a leaf (`one_live_claim`).
    #[error("a leaf is claimed by another operation")]
    LeafClaimed,
    /// Another live operation holds one of the other resources (`one_live_resource`).
    #[error("a resource is claimed by another operation")]
    ResourceClaimed,
    /// Another attempt of the same operation is undecided or committed (`one_live_attempt`).
    #[error("another attempt of the operation is live")]
    AttemptLive,
    /// A row with this key exists.
    #[error("row exists ({0})")]
    Exists(String),
    /// A check or a trigger refused the change.
    #[error("refused by the schema: {0}")]
    Constraint(String),
    /// The row to change is not there, or not in the state that permits the change.
    #[error("no such row ({0})")]
    Missing(&'static str),
    /// A stored value is not what the code wrote.
    #[error("stored value is malformed ({0})")]
    Corrupt(&'static str),
    /// The transaction must be repeated.
    #[error("transaction was refused for its order among others")]
    Serialization,
    /// Schema and program do not fit.
    #[error("migration: {0}")]
    Migration(String),
    /// No answer from the database.
    #[error("database: {0}")]
    Unavailable(#[source] sqlx::Error),
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        let Some(database) = error.as_database_error() else { return Self::Unavailable(error) };
        let constraint = database.constraint().unwrap_or_default().to_owned();
        match database.code().as_deref() {
            Some("40001" | "40P01") => Self::Serialization,
            Some("23505") => match constraint.as_str() {
                "one_live_claim" => Self::LeafClaimed,
                "one_live_resource" => Self::ResourceClaimed,
                "one_live_attempt" => Self::AttemptLive,
                _ => Self::Exists(constraint),
            },
            Some("23514" | "23502" | "23503") => {
                Self::Constraint(format!("{constraint}: {}", database.message()))
            }
            _ => Self::Unavailable(error),
        }
    }
}
