//! `spark-signer status`.

use std::path::Path;

use clap::Args;
use serde::Serialize;
use serde_json::json;
use spark_proto::admin::signer::v1 as wire;

use super::{print_json, running};

/// Where the running signer stands.
#[derive(Debug, Args)]
pub(crate) struct Command {
    /// For a machine.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(config: &Path, command: &Command) -> anyhow::Result<()> {
    show(&running(config)?.get_status(wire::GetStatusRequest {})?, command.json)
}

/// Prints where the signer stands.
pub(crate) fn show(status: &wire::Status, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return print_json(&json!({
            "operator": status.operator,
            "sealed": status.sealed,
            "locked": status.locked,
            "epoch": status.epoch,
            "sequence": status.sequence,
            "incarnation": status.incarnation,
            "destroyed_before": status.destroyed_before,
            "log_size": status.log_size,
            "secrets": status.secrets,
            "alarms": status.alarms,
            "devices": devices(&status.devices),
            "min_batch_ms": status.min_batch_ms,
        }));
    }
    println!("operator {}: {}", status.operator, state(status));
    if !status.sealed {
        println!("epoch {}, sequence {}, {} secrets", status.epoch, status.sequence, status.secrets);
        println!("destroyed before epoch {}, log of {} entries", status.destroyed_before, status.log_size);
        show_devices(&status.devices);
        if status.min_batch_ms > 0 {
            println!("what destroys waits {} ms for more", status.min_batch_ms);
        }
        println!(
            "alarms: {}",
            if status.alarms.is_empty() { "none".into() } else { status.alarms.join(", ") }
        );
    }
    Ok(())
}

const fn state(status: &wire::Status) -> &'static str {
    match (status.sealed, status.locked) {
        (true, _) => "sealed",
        (false, true) => "locked: its peers were not heard yet",
        (false, false) => "works",
    }
}

/// A device, for a machine.
#[derive(Debug, Serialize)]
pub(crate) struct Device<'a> {
    id: u32,
    state: &'a str,
    member: bool,
    retired: bool,
    /// Nothing once its last root is gone.
    destroyed_before: Option<u64>,
    trouble: Option<&'a str>,
}

/// Devices, for a machine.
pub(crate) fn devices(devices: &[wire::Device]) -> Vec<Device<'_>> {
    devices
        .iter()
        .map(|device| Device {
            id: device.id,
            state: &device.state,
            member: device.member,
            retired: device.retired,
            destroyed_before: Some(device.destroyed_before).filter(|epoch| *epoch != u64::MAX),
            trouble: Some(device.trouble.as_str()).filter(|trouble| !trouble.is_empty()),
        })
        .collect()
}

/// Devices, for a person.
pub(crate) fn show_devices(devices: &[wire::Device]) {
    for device in devices {
        let roots = match device.destroyed_before {
            u64::MAX => "all roots destroyed".to_owned(),
            epoch => format!("roots before epoch {epoch} destroyed"),
        };
        let retired = if device.retired { ", retired" } else { "" };
        let trouble =
            if device.trouble.is_empty() { String::new() } else { format!(" ({})", device.trouble) };
        let member = if device.member { "" } else { ", not a member" };
        println!("device {}: {}{retired}{member}, {roots}{trouble}", device.id, device.state);
    }
}
