//! Gauges that no event feeds: what lies in the tables, the connection pool and the own signer, looked at now and
//! then.

use std::{
    collections::BTreeMap,
    future::Future,
    time::{Duration, Instant},
};

use spark_proto::signer::v1::GetStatusRequest;
use tokio::time;

use crate::{
    call::CallError,
    db::{Db, DbError, keyshare, leaf, operation},
    metrics::{LeafStatus, Metrics, OpenState, PoolState},
    package_keys,
    signer_client::SignerClient,
};

const SHORTEST_PAUSE: Duration = Duration::from_secs(5);
/// The pause is at least this many times what the tables took: large ones are looked at less often.
const RESTRAINT: u32 = 50;
/// However slow the tables are: a gauge older than this misleads.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A signer that hangs must not hold up what the tables say.
const SIGNER_PATIENCE: Duration = Duration::from_secs(2);

/// Why a look gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// Database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// Signer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The signer did not answer in time.
    #[error("signer did not answer within {} s", SIGNER_PATIENCE.as_secs())]
    SignerHangs,
}

/// How long to rest after a look that took `took`.
fn pause_after(took: Duration) -> Duration {
    took.saturating_mul(RESTRAINT).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// Looks and sets gauges.
#[derive(Debug, Clone)]
pub struct Sampler {
    db: Db,
    own: i16,
    signer: SignerClient,
    metrics: Metrics,
}

impl Sampler {
    /// `own` is this operator's column value.
    pub const fn new(db: Db, own: i16, signer: SignerClient, metrics: Metrics) -> Self {
        Self { db, own, signer, metrics }
    }

    /// Looks until `shutdown`. What cannot be had keeps its last value; readiness says what is wrong.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            let started = Instant::now();
            let tables = self.tables().await;
            let pause = pause_after(started.elapsed());
            let nonces = time::timeout(SIGNER_PATIENCE, self.nonces()).await;
            for outcome in [tables, nonces.unwrap_or(Err(SampleError::SignerHangs))] {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "gauges are not fresh");
                }
            }
            tokio::select! {
                () = &mut shutdown => return,
                () = time::sleep(pause) => {}
            }
        }
    }

    async fn tables(&self) -> Result<(), SampleError> {
        let (busy, idle) = self.db.connections();
        for (state, count) in [(PoolState::Busy, busy), (PoolState::Idle, idle)] {
            self.metrics.db_connections(state, i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.metrics.keys_available(keyshare::available(self.db.pool(), self.own).await?);

        self.metrics.package_keys_available(package_keys::available(&self.db).await?);

        let mut open: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
        for (state, count, age) in operation::gauges(self.db.pool()).await? {
            if let Some(state) = OpenState::of(state) {
                let sum = open.entry(state.label()).or_default();
                *sum = (sum.0.saturating_add(count), sum.1.max(age));
            }
        }
        for state in OpenState::ALL {
            let (count, age) = open.get(state.label()).copied().unwrap_or_default();
            self.metrics.operations_open(*state, count, Duration::from_secs(age.max(0).unsigned_abs()));
        }

        let mut leaves: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
        for (status, count, value) in leaf::gauges(self.db.pool()).await? {
            let sum = leaves.entry(LeafStatus::from(status).label()).or_default();
            *sum = (sum.0.saturating_add(count), sum.1.saturating_add(value));
        }
        for status in LeafStatus::ALL {
            let (count, value) = leaves.get(status.label()).copied().unwrap_or_default();
            self.metrics.leaves(*status, count, value);
        }
        Ok(())
    }

    async fn nonces(&self) -> Result<(), SampleError> {
        let status = self.signer.get_status(GetStatusRequest {}).await?;
        self.metrics.nonces_available(i64::try_from(status.nonces_open).unwrap_or(i64::MAX));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_tables_are_looked_at_less_often_but_never_forgotten() {
        for (took, pause) in [(0, 5_000), (100, 5_000), (400, 20_000), (1_200, 60_000), (u64::MAX, 60_000)] {
            assert_eq!(pause_after(Duration::from_millis(took)), Duration::from_millis(pause));
        }
    }
}
