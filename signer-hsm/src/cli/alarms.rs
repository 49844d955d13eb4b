//! `spark-signer alarms`.

use std::path::Path;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::{Value, json};
use spark_proto::admin::signer::v1 as wire;

use super::{print_json, running};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Active alarms, and what persons have said of earlier ones.
    List {
        /// For a machine.
        #[arg(long)]
        json: bool,
    },
    /// Record that you have dealt with an alarm, and end it. Votes for an operator whose log was distrusted go on, and
    /// its log is followed from the beginning.
    Acknowledge {
        /// Name of the alarm.
        kind: String,
        /// Whose log was distrusted.
        #[arg(long)]
        operator: Option<u32>,
        /// Why it is over; kept with the record.
        #[arg(long)]
        reason: String,
        /// Who says so.
        #[arg(long, env = "USER")]
        by: String,
        /// Which one, as the list says; default: the one that is active.
        #[arg(long)]
        id: Option<String>,
        /// For a machine.
        #[arg(long)]
        json: bool,
    },
}

fn of(alarm: &wire::Alarm) -> Value {
    json!({
        "kind": alarm.kind,
        "id": alarm.id,
        "since": alarm.since_unix_seconds,
        "operator": alarm.operator,
        "reason": alarm.reason,
        "statements": alarm.statements,
        "acknowledgeable": alarm.acknowledgeable,
    })
}

fn said(record: &wire::Acknowledgement) -> Value {
    json!({
        "kind": record.kind,
        "id": record.id,
        "operator": record.operator,
        "raised": record.raised_unix_seconds,
        "acknowledged": record.unix_seconds,
        "by": record.by,
        "uid": record.uid,
        "reason": record.reason,
    })
}

fn whom(operator: Option<u32>) -> String {
    operator.map(|operator| format!(" of operator {operator}")).unwrap_or_default()
}

pub(crate) fn run(config: &Path, command: Command) -> anyhow::Result<()> {
    let mut signer = running(config)?;
    match command {
        Command::List { json } => {
            let list = signer.list_alarms(wire::ListAlarmsRequest {})?;
            if json {
                return print_json(&json!({
                    "active": list.active.iter().map(of).collect::<Vec<_>>(),
                    "acknowledged": list.acknowledged.iter().map(said).collect::<Vec<_>>(),
                }));
            }
            for alarm in &list.active {
                let end = if alarm.acknowledgeable { "" } else { "; ends with its cause" };
                println!("{}{} {} (id {}{end})", alarm.kind, whom(alarm.operator), alarm.reason, alarm.id);
                alarm.statements.iter().for_each(|statement| println!("{statement}"));
            }
            if list.active.is_empty() {
                eprintln!("none is active");
            }
            for record in &list.acknowledged {
                println!(
                    "acknowledged: {}{} by {} (uid {}) at {}: {}",
                    record.kind,
                    whom(record.operator),
                    record.by,
                    record.uid,
                    record.unix_seconds,
                    record.reason
                );
            }
        }
        Command::Acknowledge { kind, operator, reason, by, id, json } => {
            let id = match id {
                Some(id) => id,
                None => {
                    let list = signer.list_alarms(wire::ListAlarmsRequest {})?.active;
                    let found = list.into_iter().find(|a| a.kind == kind && a.operator == operator);
                    found.context("no such alarm is active; the list names kinds, operators and ids")?.id
                }
            };
            let request = wire::AcknowledgeAlarmRequest { kind, id, operator, by, reason };
            let record = signer.acknowledge_alarm(request)?;
            if json {
                return print_json(&said(&record));
            }
            println!("{}{} is acknowledged by {}", record.kind, whom(record.operator), record.by);
        }
    }
    Ok(())
}
