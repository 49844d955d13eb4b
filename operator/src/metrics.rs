//! What the operator counts, in a registry of its own.
//!
//! Label values come from enums and tables only: no ids, keys or addresses. Names and labels are API.

mod labels;

use std::{sync::Arc, time::Duration};

pub use labels::{LeafStatus, OpenState, OperationKind, Outcome, Phase, PoolState, RepairItems};
use prometheus::{
    Encoder as _, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder, core::Collector,
};
use spark_proto::signer::v1::RepairStatus;
use tonic::Code;

use crate::edge::TABLE;

/// Seconds. From a cached read to an operation that waits for a slow token.
const LATENCY: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const DEPTH: &[f64] = &[1.0, 2.0, 3.0, 6.0, 12.0, 50.0, 100.0];

/// Service and method of a call; only values of the authorisation table, or `unknown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RpcLabels {
    pub(crate) service: &'static str,
    pub(crate) method: &'static str,
}

impl RpcLabels {
    /// Whatever is not in the table.
    pub const UNKNOWN: Self = Self { service: "unknown", method: "unknown" };
}

/// What `spark_operator_build_info` says.
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
    families: Arc<Families>,
}

#[derive(Debug)]
struct Families {
    rpc_requests: IntCounterVec,
    rpc_duration: HistogramVec,
    rpc_in_flight: IntGaugeVec,
    operations: IntCounterVec,
    phase_duration: HistogramVec,
    operations_open: IntGaugeVec,
    oldest_age: GaugeVec,
    peer_requests: IntCounterVec,
    peer_duration: HistogramVec,
    peer_up: IntGaugeVec,
    leaves: IntGaugeVec,
    leaf_value: IntGaugeVec,
    keys_available: IntGauge,
    package_keys_available: IntGauge,
    nonces_available: IntGauge,
    chain_tip_height: IntGauge,
    chain_tip_age: IntGauge,
    reorg_depth: Histogram,
    log_size: IntGauge,
    log_cosignatures: IntGauge,
    db_connections: IntGaugeVec,
    repair_waiting: IntGauge,
    repair_items: IntGaugeVec,
}

impl Metrics {
    /// Registers every family, with a zero for every combination of labels that is known in advance, so that
    /// rates and alerts work from the start. `peers` are the indices of the other operators: one's own would be
    /// down for ever.
    ///
    /// # Errors
    /// Only if two families share a name.
    pub fn new(build: BuildInfo<'_>, peers: &[u16]) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = &registry;
        let families = Families {
            rpc_requests: counters(
                r,
                "rpc_requests_total",
                "Public calls that ended.",
                &["service", "method", "code"],
            )?,
            rpc_duration: histograms(
                r,
                "rpc_duration_seconds",
                "Time of public calls.",
                &["service", "method", "code"],
            )?,
            rpc_in_flight: gauges(r, "rpc_in_flight", "Public calls under way.", &["service", "method"])?,
            operations: counters(r, "operations_total", "Operations that ended.", &["kind", "outcome"])?,
            phase_duration: histograms(
                r,
                "operation_phase_duration_seconds",
                "Time of a step.",
                &["kind", "phase"],
            )?,
            operations_open: gauges(r, "operations_open", "Operations that have not ended.", &["state"])?,
            oldest_age: register(
                r,
                GaugeVec::new(
                    opts("operation_oldest_age_seconds", "Age of the oldest open operation."),
                    &["state"],
                )?,
            )?,
            peer_requests: counters(
                r,
                "peer_requests_total",
                "Calls to other operators.",
                &["peer", "code"],
            )?,
            peer_duration: histograms(
                r,
                "peer_duration_seconds",
                "Time of calls to other operators.",
                &["peer"],
            )?,
            peer_up: gauges(r, "peer_up", "1 if the operator answered last time.", &["peer"])?,
            leaves: gauges(r, "leaves", "Leaves.", &["status"])?,
            leaf_value: gauges(r, "leaf_value_satoshis", "Value of leaves.", &["status"])?,
            keys_available: gauge(r, "keys_available", "Unused keyshares.")?,
            package_keys_available: gauge(
                r,
                "package_keys_available",
                "One-time package keys that can be given to wallets.",
            )?,
            nonces_available: gauge(r, "nonce_commitments_available", "Unused nonce commitments.")?,
            chain_tip_height: gauge(r, "chain_tip_height", "Height of the last block connected.")?,
            chain_tip_age: gauge(r, "chain_tip_age_seconds", "Age of that block by its own clock.")?,
            reorg_depth: register(
                r,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "spark_operator_chain_reorg_depth_blocks",
                        "Blocks disconnected at once.",
                    )
                    .buckets(DEPTH.to_vec()),
                )?,
            )?,
            log_size: gauge(r, "log_size", "Receipts in the published head of the deletion log.")?,
            log_cosignatures: gauge(r, "log_cosignatures", "Other operators' signers that cosigned it.")?,
            db_connections: gauges(r, "db_connections", "Database connections.", &["state"])?,
            repair_waiting: gauge(r, "repair_waiting", "1 while the own signer waits for its repair.")?,
            repair_items: gauges(
                r,
                "repair_items",
                "Items that the own signer's repair took, that its last run left out, and leaves not refreshed since.",
                &["state"],
            )?,
        };
        let epoch = build.epoch.to_string();
        gauges(r, "build_info", "Always 1.", &["version", "commit", "network", "epoch"])?
            .with_label_values(&[build.version, build.commit, build.network, &epoch])
            .set(1);
        // Absent where there is no /proc.
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        families.start_at_zero(peers);
        Ok(Self { registry, families: Arc::new(families) })
    }

    /// Prometheus text exposition.
    ///
    /// # Errors
    /// Only if a family is inconsistent.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut buffer = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut buffer)?;
        String::from_utf8(buffer).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }

    pub(crate) fn rpc_started(&self, labels: RpcLabels) {
        self.families.rpc_in_flight.with_label_values(&[labels.service, labels.method]).inc();
    }

    pub(crate) fn rpc_ended(&self, labels: RpcLabels, code: Code, elapsed: Duration) {
        let values = [labels.service, labels.method, code_label(code)];
        self.families.rpc_in_flight.with_label_values(&values[..2]).dec();
        self.families.rpc_requests.with_label_values(&values).inc();
        self.families.rpc_duration.with_label_values(&values).observe(elapsed.as_secs_f64());
    }

    /// An operation ended.
    pub fn operation_ended(&self, kind: OperationKind, outcome: Outcome) {
        self.families.operations.with_label_values(&[kind.label(), outcome.label()]).inc();
    }

    /// A step of an operation took this long.
    pub fn phase(&self, kind: OperationKind, phase: Phase, elapsed: Duration) {
        let labels = [kind.label(), phase.label()];
        self.families.phase_duration.with_label_values(&labels).observe(elapsed.as_secs_f64());
    }

    /// Open operations in a state, and the age of the oldest.
    pub fn operations_open(&self, state: OpenState, count: i64, oldest: Duration) {
        self.families.operations_open.with_label_values(&[state.label()]).set(count);
        self.families.oldest_age.with_label_values(&[state.label()]).set(oldest.as_secs_f64());
    }

    /// A call to the operator at this index ended. Unreachable peers are down, refusing ones are not.
    pub fn peer_call(&self, peer: u16, code: Code, elapsed: Duration) {
        let peer = peer.to_string();
        self.families.peer_requests.with_label_values(&[peer.as_str(), code_label(code)]).inc();
        self.families.peer_duration.with_label_values(&[peer.as_str()]).observe(elapsed.as_secs_f64());
        // A deadline that the transport enforces comes as CANCELLED: we never count calls that we cancel.
        let up =
            !matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown);
        self.families.peer_up.with_label_values(&[peer.as_str()]).set(i64::from(up));
    }

    /// Leaves in a status, and their value.
    pub fn leaves(&self, status: LeafStatus, count: i64, satoshis: i64) {
        self.families.leaves.with_label_values(&[status.label()]).set(count);
        self.families.leaf_value.with_label_values(&[status.label()]).set(satoshis);
    }

    /// Unused keyshares.
    pub fn keys_available(&self, count: i64) {
        self.families.keys_available.set(count);
    }

    /// One-time package keys that can be given to wallets.
    pub fn package_keys_available(&self, count: i64) {
        self.families.package_keys_available.set(count);
    }

    /// Unused nonce commitments.
    pub fn nonces_available(&self, count: i64) {
        self.families.nonces_available.set(count);
    }

    /// The last connected block.
    pub fn chain_tip(&self, height: u32, age: Duration) {
        self.families.chain_tip_height.set(i64::from(height));
        self.families.chain_tip_age.set(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
    }

    /// Blocks were disconnected.
    pub fn reorganised(&self, depth: u32) {
        self.families.reorg_depth.observe(f64::from(depth));
    }

    /// The published head of the deletion log.
    pub fn log_head(&self, size: u64, witnesses: usize) {
        self.families.log_size.set(size.try_into().unwrap_or(i64::MAX));
        self.families.log_cosignatures.set(witnesses.try_into().unwrap_or(i64::MAX));
    }

    /// How far the own signer's repair is.
    pub fn repair(&self, status: &RepairStatus) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.families.repair_waiting.set(status.waiting.into());
        for (state, items) in [(RepairItems::Taken, status.taken), (RepairItems::LeftOut, status.skipped)] {
            self.families.repair_items.with_label_values(&[state.label()]).set(gauge(items));
        }
    }

    /// Leaves that are put aside after a repair.
    pub fn unserved(&self, leaves: i64) {
        self.families.repair_items.with_label_values(&[RepairItems::Unserved.label()]).set(leaves);
    }

    /// Leaves that the own signer's repair brought back and that were not refreshed since.
    pub fn unrefreshed(&self, leaves: usize) {
        let label = RepairItems::Unrefreshed.label();
        self.families.repair_items.with_label_values(&[label]).set(leaves.try_into().unwrap_or(i64::MAX));
    }

    /// Connections of the pool.
    pub fn db_connections(&self, state: PoolState, count: i64) {
        self.families.db_connections.with_label_values(&[state.label()]).set(count);
    }
}

impl Families {
    fn start_at_zero(&self, peers: &[u16]) {
        for method in TABLE.iter().filter(|method| method.offered()) {
            self.rpc_in_flight.with_label_values(&[method.service, method.name]);
            self.rpc_requests.with_label_values(&[method.service, method.name, code_label(Code::Ok)]);
        }
        for kind in OperationKind::ALL {
            for outcome in Outcome::ALL {
                self.operations.with_label_values(&[kind.label(), outcome.label()]);
            }
            for phase in Phase::ALL {
                self.phase_duration.with_label_values(&[kind.label(), phase.label()]);
            }
        }
        for state in OpenState::ALL {
            self.operations_open.with_label_values(&[state.label()]);
            self.oldest_age.with_label_values(&[state.label()]);
        }
        for status in LeafStatus::ALL {
            self.leaves.with_label_values(&[status.label()]);
            self.leaf_value.with_label_values(&[status.label()]);
        }
        for state in RepairItems::ALL {
            self.repair_items.with_label_values(&[state.label()]);
        }
        for state in PoolState::ALL {
            self.db_connections.with_label_values(&[state.label()]);
        }
        for peer in peers {
            let peer = peer.to_string();
            self.peer_up.with_label_values(&[&peer]);
            self.peer_duration.with_label_values(&[&peer]);
            self.peer_requests.with_label_values(&[peer.as_str(), code_label(Code::Ok)]);
        }
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("spark_operator_{name}"), help)
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

fn histograms(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<HistogramVec, prometheus::Error> {
    let opts = HistogramOpts::from(opts(name, help)).buckets(LATENCY.to_vec());
    register(r, HistogramVec::new(opts, labels)?)
}

/// The code's name in the gRPC specification.
fn code_label(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(BuildInfo { version: "0.1.0", commit: "abc", network: "regtest", epoch: 1 }, &[0, 2])
            .unwrap()
    }

    #[test]
    fn families_exist_from_the_start() {
        let text = metrics().render().unwrap();
        for line in [
            r#"spark_operator_build_info{commit="abc",epoch="1",network="regtest",version="0.1.0"} 1"#,
            r#"spark_operator_operations_total{kind="transfer",outcome="committed"} 0"#,
            r#"spark_operator_peer_up{peer="2"} 0"#,
            r#"spark_operator_leaves{status="available"} 0"#,
            "spark_operator_chain_tip_height 0",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains(r#"peer_up{peer="1"}"#), "the own index is no peer");
        #[cfg(target_os = "linux")]
        assert!(text.contains("process_resident_memory_bytes"));
    }

    #[test]
    fn calls_are_counted() {
        let metrics = metrics();
        let labels = RpcLabels { service: "spark.SparkService", method: "query_nodes" };
        metrics.rpc_started(labels);
        metrics.rpc_ended(labels, Code::NotFound, Duration::from_millis(3));
        metrics.peer_call(0, Code::Unavailable, Duration::from_millis(3));
        metrics.peer_call(2, Code::Aborted, Duration::from_millis(3));
        let text = metrics.render().unwrap();
        for line in [
            r#"spark_operator_rpc_requests_total{code="NOT_FOUND",method="query_nodes",service="spark.SparkService"} 1"#,
            r#"spark_operator_rpc_in_flight{method="query_nodes",service="spark.SparkService"} 0"#,
            r#"spark_operator_peer_up{peer="0"} 0"#,
            r#"spark_operator_peer_up{peer="2"} 1"#,
        ] {
            assert!(text.contains(line), "{line}");
        }
    }
}
