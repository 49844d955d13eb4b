//! Where the time goes, coarsely: from the programs' own metrics, the kernel and Postgres.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::Context as _;
use spark_devnet::{exposition::Exposition, http, network::Devnet};
use sqlx::{Connection as _, PgConnection};

/// Everything that counts upwards, by what it counts.
pub(crate) struct Snapshot {
    /// Sum and count of histograms.
    times: BTreeMap<String, (f64, f64)>,
    /// Seconds of processor by program.
    cpu: BTreeMap<String, f64>,
    commits: f64,
    hsm_calls: f64,
}

/// Histograms that say where the time goes: metric, what the row is called, the labels in its name.
const ROWS: &[(&str, &str, &[&str])] = &[
    ("spark_operator_rpc_duration_seconds", "operator rpc", &["method"]),
    ("spark_operator_operation_phase_duration_seconds", "operation", &["kind", "phase"]),
    ("spark_operator_peer_duration_seconds", "peer call", &[]),
    ("spark_signer_request_duration_seconds", "signer call", &["method"]),
    ("spark_signer_batch_duration_seconds", "signer batch", &[]),
    ("spark_signer_hsm_operation_duration_seconds", "hsm", &["operation"]),
];

impl Snapshot {
    /// Asks everybody.
    pub(crate) async fn take(devnet: &mut Devnet) -> anyhow::Result<Self> {
        let mut this = Self { times: BTreeMap::new(), cpu: BTreeMap::new(), commits: 0.0, hsm_calls: 0.0 };
        for operator in devnet.endpoints().operators.clone() {
            for url in [&operator.http, &operator.signer_http] {
                this.add(&Exposition::parse(&http::get(&format!("{url}/metrics")).await?)?);
            }
            let url = devnet.database_url(operator.index);
            let mut connection = PgConnection::connect(&url).await?;
            let commits: i64 = sqlx::query_scalar(
                "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()",
            )
            .fetch_one(&mut connection)
            .await?;
            connection.close().await?;
            this.commits += commits as f64;
        }
        for process in devnet.process_names() {
            let id = devnet.process(&process)?.id().context("not running")?;
            let kind = process.split('-').next().unwrap_or_default();
            *this.cpu.entry(kind.to_owned()).or_default() += family_cpu(id)?;
        }
        this.cpu.insert("wallets".to_owned(), own_cpu()?);
        Ok(this)
    }

    fn add(&mut self, read: &Exposition) {
        for (metric, title, labels) in ROWS {
            for (suffix, is_sum) in [("_sum", true), ("_count", false)] {
                for sample in read.matching(&format!("{metric}{suffix}"), &[]) {
                    let name = labels.iter().filter_map(|label| sample.labels.get(*label));
                    let name = name.fold((*title).to_owned(), |name, part| format!("{name} {part}"));
                    let row = self.times.entry(name).or_default();
                    if is_sum {
                        row.0 += sample.value;
                    } else {
                        row.1 += sample.value;
                    }
                }
            }
        }
        let count = "spark_signer_hsm_operation_duration_seconds_count";
        // Flushing SoftHSM's files is no call of a device.
        self.hsm_calls += read.sum(count, &[]) - read.sum(count, &[("operation", "sync")]);
    }

    /// Calls to all tokens so far.
    pub(crate) const fn hsm_calls(&self) -> f64 {
        self.hsm_calls
    }

    /// What was added since.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let times = self.times.iter().map(|(name, (sum, count))| {
            let (old_sum, old_count) = before.times.get(name).copied().unwrap_or_default();
            (name.clone(), (sum - old_sum, count - old_count))
        });
        let cpu = self.cpu.iter().map(|(name, seconds)| {
            (name.clone(), seconds - before.cpu.get(name).copied().unwrap_or_default())
        });
        Self {
            times: times.collect(),
            cpu: cpu.collect(),
            commits: self.commits - before.commits,
            hsm_calls: self.hsm_calls - before.hsm_calls,
        }
    }

    /// A table for people.
    pub(crate) fn print(&self, transfers: usize, elapsed: Duration) {
        let transfers = (transfers as f64).max(1.0);
        eprintln!("\nall operators together{:>26}{:>14}{:>16}", "per transfer", "mean ms", "ms per transfer");
        for (name, (sum, count)) in self.times.iter().filter(|(_, (_, count))| *count > 0.0) {
            let (per, mean, share) = (count / transfers, sum / count * 1000.0, sum / transfers * 1000.0);
            eprintln!("  {name:<34}{per:>12.2}{mean:>14.2}{share:>16.2}");
        }
        eprintln!("  {:<34}{:>12.2}", "Postgres transactions", self.commits / transfers);
        eprintln!("\nprocessor{:>30}{:>14}", "cores", "ms per transfer");
        for (name, seconds) in &self.cpu {
            let (cores, share) = (seconds / elapsed.as_secs_f64(), seconds / transfers * 1000.0);
            eprintln!("  {name:<24}{cores:>13.2}{share:>14.2}");
        }
        eprintln!();
    }
}

/// Seconds of processor that a process, its children and its dead children used.
fn family_cpu(process: u32) -> anyhow::Result<f64> {
    let mut ticks = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process that has ended meanwhile is counted with its parent.
        let Some(stat) = Stat::of(id) else { continue };
        if id == process {
            ticks += stat.own + stat.dead_children;
        } else if stat.parent == process {
            ticks += stat.own;
        }
    }
    Ok(ticks as f64 / ticks_per_second())
}

/// Seconds of processor that this process used, without its children.
fn own_cpu() -> anyhow::Result<f64> {
    Ok(Stat::of(std::process::id()).context("own process")?.own as f64 / ticks_per_second())
}

/// Of Linux on every architecture that we run on (`getconf CLK_TCK`).
const fn ticks_per_second() -> f64 {
    100.0
}

struct Stat {
    parent: u32,
    own: u64,
    dead_children: u64,
}

impl Stat {
    /// See proc_pid_stat(5).
    fn of(process: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name is in parentheses and may contain anything.
        let fields: Vec<u64> =
            text.rsplit_once(')')?.1.split_whitespace().skip(1).map(|f| f.parse().unwrap_or(0)).collect();
        let field = |number: usize| fields.get(number.checked_sub(4)?).copied();
        Some(Self {
            parent: u32::try_from(field(4)?).ok()?,
            own: field(14)? + field(15)?,
            dead_children: field(16)? + field(17)?,
        })
    }
}
