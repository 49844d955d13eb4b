//! `spark-signer root`.

use std::path::Path;

use clap::Subcommand;
use serde_json::json;
use spark_proto::admin::signer::v1 as wire;

use super::{
    print_json, running,
    status::{devices, show_devices},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Seal the store under a new root, destroy the old one on every device, and wait until that is confirmed.
    Rotate {
        /// Seconds to wait for the confirmation, at most 120.
        #[arg(long, default_value_t = 60)]
        wait: u32,
        /// For a machine.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(config: &Path, command: &Command) -> anyhow::Result<()> {
    let Command::Rotate { wait, json } = command;
    let mut signer = running(config)?;
    let status = signer.get_status(wire::GetStatusRequest {})?;
    let request = wire::RotateRootRequest { epoch: status.epoch, wait_seconds: *wait };
    let rotated = signer.rotate_root(request)?;
    if *json {
        print_json(&json!({
            "epoch_before": rotated.epoch_before,
            "epoch_after": rotated.epoch_after,
            "confirmed": rotated.confirmed,
            "devices": devices(&rotated.devices),
        }))?;
    } else {
        println!("epoch {} -> {}", rotated.epoch_before, rotated.epoch_after);
        show_devices(&rotated.devices);
    }
    anyhow::ensure!(
        rotated.confirmed,
        "the store is under a new root; that the old one is gone is not confirmed on every device yet"
    );
    Ok(())
}
