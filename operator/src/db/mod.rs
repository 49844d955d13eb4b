//! Postgres. All SQL of the project is in this folder: one function per statement, typed rows, no secret.
//!
//! Statements take any executor, so that they run alone on the pool or inside a transaction. Transactions are
//! short, never contain a call to a peer or to the signer, and are repeated on serialization failures.

pub mod address;
pub mod chain;
pub mod claim;
pub mod confirm;
pub mod delivery;
mod error;
pub mod event;
pub mod event_cursor;
pub mod exit;
pub mod follow;
pub mod headers;
pub mod htlc;
pub mod invoice;
pub mod keyshare;
pub mod leaf;
pub mod operation;
pub mod package_key;
pub mod projection;
pub mod query_event;
pub mod query_node;
pub mod query_transfer;
pub mod query_utxo;
pub mod receipt;
pub mod static_deposit;
#[cfg(test)]
pub(crate) mod testing;
pub mod transfer;
pub mod vote;
pub mod wallet_setting;
pub mod work;

use std::time::Duration;

use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

pub use self::error::DbError;

/// Repeats of a transaction that the database refused for its order among others.
pub(crate) const SERIALIZATION_RETRIES: u32 = 8;

/// The pool of connections to this operator's database.
#[derive(Debug, Clone)]
pub struct Db {
    pool: PgPool,
    deposit_depth: u32,
}

impl Db {
    /// Connects and applies the embedded migrations under an advisory lock.
    ///
    /// `url` is a libpq URL. Every statement is bounded by `statement_timeout`; a connection is waited for at
    /// most ten seconds.
    pub async fn connect(
        url: &str,
        max_connections: u32,
        statement_timeout: Duration,
    ) -> Result<Self, DbError> {
        let options: PgConnectOptions = url.parse()?;
        let timeout = format!("{}ms", statement_timeout.as_millis());
        let options =
            options.application_name("spark-operator").options([("statement_timeout", timeout.as_str())]);
        let pool = PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(Duration::from_secs(10))
            .connect_with(options)
            .await?;
        sqlx::migrate!().run(&pool).await.map_err(|e| DbError::Migration(e.to_string()))?;
        Ok(Self { pool, deposit_depth: 1 })
    }

    /// Confirmations that make a deposit's leaf available; 1 until set.
    #[must_use]
    pub const fn with_deposit_depth(mut self, blocks: u32) -> Self {
        self.deposit_depth = blocks;
        self
    }

    /// Confirmations that make a deposit's leaf available.
    pub const fn deposit_depth(&self) -> u32 {
        self.deposit_depth
    }

    /// For statements outside of a transaction.
    pub const fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Connections that work and that wait for work.
    pub fn connections(&self) -> (usize, usize) {
        let idle = self.pool.num_idle();
        (usize::try_from(self.pool.size()).unwrap_or(usize::MAX).saturating_sub(idle), idle)
    }

    /// One round trip, for health checks.
    pub async fn ping(&self) -> Result<(), DbError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// Runs `$body` in a transaction named `$tx` and commits; repeats it on SQLSTATE 40001 and 40P01.
macro_rules! in_transaction {
    ($db:expr, $tx:ident => $body:expr) => {{
        let mut repeats = 0u32;
        loop {
            let outcome: Result<_, $crate::db::DbError> = async {
                let mut $tx = $db.pool().begin().await?;
                let value = $body;
                $tx.commit().await?;
                Ok(value)
            }
            .await;
            match outcome {
                Err($crate::db::DbError::Serialization) if repeats < $crate::db::SERIALIZATION_RETRIES => {
                    repeats += 1;
                    tokio::time::sleep(std::time::Duration::from_millis(u64::from(5 * repeats * repeats)))
                        .await;
                }
                outcome => break outcome,
            }
        }
    }};
}
pub(crate) use in_transaction;

/// A column that must hold a fixed number of bytes.
pub(crate) fn fixed<const N: usize>(column: &'static str, bytes: Vec<u8>) -> Result<[u8; N], DbError> {
    bytes.try_into().map_err(|_| DbError::Corrupt(column))
}

/// Satoshis and counters: unsigned outside, bigint inside.
pub(crate) fn signed(column: &'static str, value: u64) -> Result<i64, DbError> {
    i64::try_from(value).map_err(|_| DbError::Corrupt(column))
}

/// See [`signed`].
pub(crate) fn unsigned(column: &'static str, value: i64) -> Result<u64, DbError> {
    u64::try_from(value).map_err(|_| DbError::Corrupt(column))
}

#[cfg(test)]
mod tests;
