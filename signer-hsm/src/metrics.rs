//! Prometheus metrics of the signer.

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramTimer, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use spark_signer::engine::{ALARMS, Engine};

/// All metrics, in a registry of their own.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    batch_size: Histogram,
    batch_seconds: Histogram,
    nonces_open: IntGauge,
    root_epoch: IntGauge,
    sequence: IntGauge,
    secrets: IntGauge,
    locked: IntGauge,
    alarms: IntGaugeVec,
}

impl Metrics {
    /// Registers all.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let this = Self {
            requests: IntCounterVec::new(
                Opts::new("spark_signer_requests_total", "Calls by method and gRPC code."),
                &["method", "code"],
            )?,
            batch_size: Histogram::with_opts(
                HistogramOpts::new("spark_signer_batch_calls", "Calls that shared one batch of the vault.")
                    .buckets(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]),
            )?,
            batch_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "spark_signer_batch_duration_seconds",
                    "Time of one batch, checks and commit.",
                )
                .buckets(prometheus::exponential_buckets(0.0005, 2.0, 14)?),
            )?,
            nonces_open: IntGauge::new("spark_signer_nonces_available", "Open nonce pairs.")?,
            root_epoch: IntGauge::new("spark_signer_root_epoch", "Epoch of the HSM root key.")?,
            sequence: IntGauge::new("spark_signer_sequence", "Number of the last commit.")?,
            secrets: IntGauge::new("spark_signer_live_secrets", "Secrets in the vault.")?,
            locked: IntGauge::new("spark_signer_locked", "1 until the peers' memory was heard.")?,
            alarms: IntGaugeVec::new(
                Opts::new("spark_signer_alarms_active", "Alarms that a person must look at."),
                &["kind"],
            )?,
            registry,
        };
        for collector in [
            Box::new(this.requests.clone()) as Box<dyn prometheus::core::Collector>,
            Box::new(this.batch_size.clone()),
            Box::new(this.batch_seconds.clone()),
            Box::new(this.nonces_open.clone()),
            Box::new(this.root_epoch.clone()),
            Box::new(this.sequence.clone()),
            Box::new(this.secrets.clone()),
            Box::new(this.locked.clone()),
            Box::new(this.alarms.clone()),
            Box::new(prometheus::process_collector::ProcessCollector::for_self()),
        ] {
            this.registry.register(collector)?;
        }
        this.locked.set(1);
        for kind in ALARMS {
            this.alarms.with_label_values(&[kind]).set(0);
        }
        Ok(this)
    }

    /// One call ended.
    pub fn request(&self, method: &'static str, code: &'static str) {
        self.requests.with_label_values(&[method, code]).inc();
    }

    /// A batch begins.
    pub fn batch_started(&self, calls: usize) -> HistogramTimer {
        self.batch_size.observe(calls as f64);
        self.batch_seconds.start_timer()
    }

    /// State after a batch.
    pub fn engine(&self, engine: &Engine) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.nonces_open.set(gauge(engine.open_nonces() as u64));
        self.root_epoch.set(gauge(engine.vault().epoch()));
        self.sequence.set(gauge(engine.vault().sequence()));
        self.secrets.set(gauge(engine.vault().secret_count() as u64));
        self.locked.set(i64::from(engine.is_locked()));
        for kind in ALARMS {
            let active = engine.alarms().any(|alarm| alarm == *kind);
            self.alarms.with_label_values(&[kind]).set(i64::from(active));
        }
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
