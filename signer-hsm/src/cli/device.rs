//! `spark-signer device`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::json;
use spark_proto::admin::signer::v1 as wire;
use spark_signer_hsm::ceremony;

use super::{
    load, print_json, running,
    status::{devices, show_devices},
    write_new,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Prepare a new device of the configuration to hold roots, and write what it is, signed, beside the ceremony's
    /// transcript. Once per device, before it joins.
    Prepare {
        /// Its number.
        id: u8,
        /// Supplement to write; default: print it. An existing file is not overwritten.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// The running signer reads its configuration again and lets this device join.
    Add {
        /// Its number.
        id: u8,
        /// For a machine.
        #[arg(long)]
        json: bool,
    },
    /// The running signer ends this device's part: its roots are destroyed, and when that is confirmed it is forgotten.
    /// Then take its entry out of the configuration.
    Retire {
        /// Its number.
        id: u8,
        /// For a machine.
        #[arg(long)]
        json: bool,
    },
    /// The running signer's devices.
    List {
        /// For a machine.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(config: &Path, command: &Command) -> anyhow::Result<()> {
    let (list, as_json) = match command {
        Command::Prepare { id, out } => {
            let config = load(config)?;
            let device = config.token.device(*id).context("configuration: no such device")?;
            // Before the token is touched: it is prepared once only.
            if let Some(taken) = out.as_ref().filter(|out| out.exists()) {
                anyhow::bail!("{} is not overwritten", taken.display());
            }
            let text = serde_json::to_string_pretty(&ceremony::supplement(&config, device)?)? + "\n";
            let written = out.as_ref().map(|out| write_new(out, &text, 0o644).map(|()| out));
            match written {
                Some(Ok(out)) => println!("{}", out.display()),
                Some(Err(error)) => {
                    print!("{text}");
                    return Err(error);
                }
                None => print!("{text}"),
            }
            return Ok(());
        }
        Command::Add { id, json } => {
            (running(config)?.add_device(wire::AddDeviceRequest { device: (*id).into() })?, *json)
        }
        Command::Retire { id, json } => {
            (running(config)?.retire_device(wire::RetireDeviceRequest { device: (*id).into() })?, *json)
        }
        Command::List { json } => (running(config)?.list_devices(wire::ListDevicesRequest {})?, *json),
    };
    if as_json {
        print_json(&json!({ "devices": devices(&list.devices) }))?;
    } else {
        show_devices(&list.devices);
    }
    if let Command::Add { id, .. } = command {
        let serves = |device: &wire::Device| device.id == u32::from(*id) && device.state == "serving";
        anyhow::ensure!(list.devices.iter().any(serves), "device {id} does not serve");
    }
    Ok(())
}
