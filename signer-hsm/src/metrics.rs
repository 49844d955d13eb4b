//! Prometheus metrics of the signer, in a registry of its own.
//!
//! Label values come from enums and tables only: no ids, keys or addresses. Names and labels are API.

mod hsm;

use std::time::Duration;

pub use hsm::{HsmMetrics, HsmOperation};
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramTimer, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};
use spark_proto::peer::v1::Choice;
use spark_signer::{
    engine::{ALARMS, DeviceReport, Engine, Reply},
    vault::DeviceState,
};

/// What `spark_signer_build_info` says.
#[derive(Debug, Clone, Copy)]
pub struct BuildInfo<'a> {
    /// Version of the package.
    pub version: &'a str,
    /// Commit it was built from.
    pub commit: &'a str,
    /// Bitcoin network.
    pub network: &'a str,
    /// Epoch of the federation file.
    pub epoch: u64,
}

/// All metrics. Clones share everything.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    refusals: IntCounterVec,
    votes: IntCounterVec,
    shares: IntCounter,
    batch_size: Histogram,
    batch_seconds: Histogram,
    log_size: IntGauge,
    nonces_open: IntGauge,
    root_epoch: IntGauge,
    destroyed_before: IntGauge,
    device_state: IntGaugeVec,
    device_destroyed_before: IntGaugeVec,
    sequence: IntGauge,
    secrets: IntGauge,
    locked: IntGauge,
    alarms: IntGaugeVec,
    acknowledged: IntGaugeVec,
    hsm: HsmMetrics,
}

impl Metrics {
    /// Registers all, with a zero for every combination of labels that is known in advance.
    ///
    /// # Errors
    /// Only if two families share a name.
    pub fn new(build: BuildInfo<'_>, hsm: &HsmMetrics) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = &registry;
        let latency = prometheus::exponential_buckets(0.0005, 2.0, 14)?;
        let batches = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
        let this = Self {
            requests: counters(r, "requests_total", "Calls by method and gRPC code.", &["method", "code"])?,
            request_seconds: register(
                r,
                HistogramVec::new(
                    HistogramOpts::from(opts("request_duration_seconds", "Time of calls, waiting included."))
                        .buckets(latency.clone()),
                    &["method"],
                )?,
            )?,
            refusals: counters(r, "refusals_total", "Calls refused, by stable reason.", &["reason"])?,
            votes: counters(
                r,
                "votes_total",
                "Votes given, repeats of the same vote included.",
                &["choice"],
            )?,
            shares: register(
                r,
                IntCounter::with_opts(opts(
                    "shares_released_total",
                    "Signature shares given, repeats of the same share included.",
                ))?,
            )?,
            batch_size: register(
                r,
                Histogram::with_opts(
                    HistogramOpts::from(opts("batch_calls", "Calls that shared one batch of the vault."))
                        .buckets(batches.to_vec()),
                )?,
            )?,
            batch_seconds: register(
                r,
                Histogram::with_opts(
                    HistogramOpts::from(opts(
                        "batch_duration_seconds",
                        "Time of one batch, checks and commit.",
                    ))
                    .buckets(latency),
                )?,
            )?,
            log_size: gauge(r, "audit_log_size", "Receipts in the deletion log.")?,
            nonces_open: gauge(r, "nonces_available", "Open nonce pairs.")?,
            root_epoch: gauge(r, "root_epoch", "Epoch of the HSM root key.")?,
            destroyed_before: gauge(
                r,
                "destroyed_before_epoch",
                "Epoch before which every root is confirmed to be destroyed.",
            )?,
            device_state: gauges(
                r,
                "device_state",
                "1 for the state in which a device with roots is.",
                &["device", "state"],
            )?,
            device_destroyed_before: gauges(
                r,
                "device_destroyed_before_epoch",
                "Epoch before which every root is confirmed to be gone from a device.",
                &["device"],
            )?,
            sequence: gauge(r, "sequence", "Number of the last commit.")?,
            secrets: gauge(r, "live_secrets", "Secrets in the vault.")?,
            locked: gauge(r, "locked", "1 until the peers' memory was heard, and while sealed.")?,
            alarms: gauges(r, "alarms_active", "Alarms that a person must look at.", &["kind"])?,
            acknowledged: gauges(
                r,
                "alarms_acknowledged",
                "Alarms that a person has acknowledged since the ceremony.",
                &["kind"],
            )?,
            hsm: hsm.clone(),
            registry,
        };
        let epoch = build.epoch.to_string();
        gauges(&this.registry, "build_info", "Always 1.", &["version", "commit", "network", "epoch"])?
            .with_label_values(&[build.version, build.commit, build.network, &epoch])
            .set(1);
        for collector in hsm.collectors() {
            this.registry.register(collector)?;
        }
        // Absent where there is no /proc.
        #[cfg(target_os = "linux")]
        this.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        this.locked.set(1);
        for kind in ALARMS {
            this.alarms.with_label_values(&[kind]).set(0);
            this.acknowledged.with_label_values(&[kind]).set(0);
        }
        for choice in [Choice::Yes, Choice::No, Choice::Abort] {
            this.votes.with_label_values(&[choice_label(choice)]);
        }
        Ok(this)
    }

    /// One call ended.
    pub fn request(&self, method: &'static str, code: &'static str, elapsed: Duration) {
        self.requests.with_label_values(&[method, code]).inc();
        self.request_seconds.with_label_values(&[method]).observe(elapsed.as_secs_f64());
    }

    /// A call was refused for this stable reason.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.with_label_values(&[reason]).inc();
    }

    /// What leaves the signer.
    pub fn replied(&self, reply: &Reply) {
        let vote = match reply {
            Reply::Prepare(reply) => reply.vote.as_ref(),
            Reply::SignAbort(reply) => reply.vote.as_ref(),
            Reply::Release(reply) => {
                self.shares.inc_by(reply.shares.len() as u64);
                None
            }
            _ => None,
        };
        if let Some(vote) = vote {
            self.votes.with_label_values(&[choice_label(vote.choice())]).inc();
        }
    }

    /// A batch begins.
    pub fn batch_started(&self, calls: usize) -> HistogramTimer {
        self.batch_size.observe(calls as f64);
        self.batch_seconds.start_timer()
    }

    /// State after a batch.
    pub fn engine(&self, engine: &mut Engine) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.nonces_open.set(gauge(engine.open_nonces() as u64));
        self.root_epoch.set(gauge(engine.vault().epoch()));
        self.sequence.set(gauge(engine.vault().sequence()));
        self.secrets.set(gauge(engine.vault().secret_count()));
        self.locked.set(i64::from(engine.is_locked()));
        match engine.log_size() {
            Ok(size) => self.log_size.set(gauge(size)),
            Err(error) => tracing::error!(%error, "size of the deletion log"),
        }
        match engine.destroyed_before() {
            Ok(epoch) => self.destroyed_before.set(gauge(epoch)),
            Err(error) => tracing::error!(%error, "what is confirmed"),
        }
        match engine.devices() {
            Ok(reports) => self.devices(&reports),
            Err(error) => tracing::error!(%error, "devices"),
        }
        for kind in ALARMS {
            let active = engine.alarms().any(|alarm| alarm == *kind);
            self.alarms.with_label_values(&[kind]).set(i64::from(active));
        }
        for (kind, count) in engine.acknowledged() {
            self.acknowledged.with_label_values(&[kind]).set(gauge(count));
        }
    }

    /// A person has closed the vault.
    pub fn sealed(&self) {
        self.locked.set(1);
        self.nonces_open.set(0);
        self.secrets.set(0);
    }

    fn devices(&self, reports: &[DeviceReport]) {
        // One that was forgotten is not shown any more.
        self.device_state.reset();
        self.device_destroyed_before.reset();
        for report in reports {
            let device = report.status.id.to_string();
            for state in DeviceState::ALL {
                let is = i64::from(state == report.status.state);
                self.device_state.with_label_values(&[device.as_str(), state.as_str()]).set(is);
            }
            let epoch = i64::try_from(report.destroyed_before).unwrap_or(i64::MAX);
            self.device_destroyed_before.with_label_values(&[device.as_str()]).set(epoch);
        }
    }

    /// Whether the keys token answered when it was asked last: without it there is no vote and no receipt.
    pub fn keys_answer(&self) -> bool {
        self.hsm.keys_answer()
    }

    /// True once the peers were heard.
    pub fn is_unlocked(&self) -> bool {
        self.locked.get() == 0
    }

    /// Text format.
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        // Writing to memory does not fail.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        text
    }
}

const fn choice_label(choice: Choice) -> &'static str {
    match choice {
        Choice::Yes => "yes",
        Choice::No => "no",
        Choice::Abort => "abort",
        // Never the vote on an attempt: it is part of a proof.
        Choice::Commit => "commit",
        Choice::Unspecified => "unspecified",
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("spark_signer_{name}"), help)
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, family: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

fn counters(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    register(r, IntCounterVec::new(opts(name, help), labels)?)
}

fn gauges(r: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    register(r, IntGaugeVec::new(opts(name, help), labels)?)
}

fn gauge(r: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    register(r, IntGauge::with_opts(opts(name, help))?)
}
