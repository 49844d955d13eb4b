//! `spark-signer device`.

use std::path::Path;

use anyhow::Context as _;
use clap::Args;
use spark_signer_hsm::token::prepare_device;

use super::load;

/// Prepare a further device of the configuration to hold roots. Once per device; it joins when the signer runs.
#[derive(Debug, Args)]
pub(crate) struct Command {
    /// Its number.
    id: u8,
}

pub(crate) fn run(config: &Path, command: &Command) -> anyhow::Result<()> {
    let config = load(config)?;
    let device = config.token.devices.iter().find(|device| device.id == command.id);
    prepare_device(device.context("configuration: no such device")?, config.token.security)?;
    println!("ok");
    Ok(())
}
