//! Whether the operator can do its work: named checks, run on demand, shared by `/readyz` and gRPC health.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use futures::future::join_all;
use tokio::time;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

/// A check that does not answer in this time has failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// How often gRPC health follows the checks.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// What gRPC health answers for: the whole server, and the service that wallets use.
const GRPC_SERVICES: [&str; 2] = ["", "spark.SparkService"];

/// Why a check fails, for operators of the machine; never shown to wallets.
pub type CheckResult = Result<String, String>;

type Check = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = CheckResult> + Send>> + Send + Sync>;

/// The checks of one process.
#[derive(Clone, Default)]
pub struct Health {
    checks: Vec<(&'static str, Check)>,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.checks.iter().map(|(name, _)| name)).finish()
    }
}

/// What all checks said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Name and result of each check, in the order of registration.
    pub checks: Vec<(&'static str, CheckResult)>,
}

impl Report {
    /// Whether every check passed.
    pub fn ready(&self) -> bool {
        self.checks.iter().all(|(_, result)| result.is_ok())
    }
}

impl fmt::Display for Report {
    /// One line per check: `ok name: detail` or `FAIL name: detail`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, result) in &self.checks {
            match result {
                Ok(detail) => writeln!(f, "ok {name}: {detail}")?,
                Err(detail) => writeln!(f, "FAIL {name}: {detail}")?,
            }
        }
        Ok(())
    }
}

impl Health {
    /// Adds a check: `Ok` or `Err` with one line for a person.
    #[must_use]
    pub fn with<F, Fut>(mut self, name: &'static str, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = CheckResult> + Send + 'static,
    {
        self.checks.push((name, Arc::new(move || Box::pin(check()))));
        self
    }

    /// Runs all checks at once.
    pub async fn report(&self) -> Report {
        let checks = self.checks.iter().map(|(name, check)| async move {
            let result = time::timeout(CHECK_TIMEOUT, check()).await;
            (*name, result.unwrap_or_else(|_| Err("no answer in time".to_owned())))
        });
        Report { checks: join_all(checks).await }
    }

    /// The service `grpc.health.v1.Health` and what keeps it in step with the checks. It says NOT_SERVING until the
    /// first look.
    pub async fn grpc(&self) -> (GrpcHealth, HealthServer<HealthService>) {
        let reporter = HealthReporter::new();
        let service = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        let this = GrpcHealth { health: self.clone(), reporter, last: None };
        this.say(ServingStatus::NotServing).await;
        (this, service)
    }
}

/// Keeps `grpc.health.v1` in step with the checks.
#[derive(Debug)]
pub struct GrpcHealth {
    health: Health,
    reporter: HealthReporter,
    last: Option<bool>,
}

impl GrpcHealth {
    /// One look at the checks.
    pub async fn look(&mut self) {
        let report = self.health.report().await;
        let ready = report.ready();
        // Watchers hear of changes only.
        if self.last.replace(ready) == Some(ready) {
            return;
        }
        if ready {
            tracing::info!("ready");
            self.say(ServingStatus::Serving).await;
        } else {
            tracing::warn!(%report, "not ready");
            self.say(ServingStatus::NotServing).await;
        }
    }

    /// Looks until `shutdown`, and then sends callers away.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                () = self.look() => {}
            }
            tokio::select! {
                () = &mut shutdown => break,
                () = time::sleep(REPORT_EVERY) => {}
            }
        }
        self.say(ServingStatus::NotServing).await;
    }

    async fn say(&self, status: ServingStatus) {
        for service in GRPC_SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }
}
