//! The commands of `spark-signer`, one file each.

pub(crate) mod alarms;
pub(crate) mod backup;
pub(crate) mod ceremony;
pub(crate) mod conformance;
pub(crate) mod device;
pub(crate) mod doctor;
pub(crate) mod federation;
pub(crate) mod init;
pub(crate) mod root;
pub(crate) mod seal;
pub(crate) mod status;
pub(crate) mod tls;
pub(crate) mod token;

use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use anyhow::Context as _;
use serde::Serialize;
use spark_signer_hsm::{admin::AdminClient, config::Config};

/// A configuration whose tokens will be used.
pub(crate) fn load(path: &Path) -> anyhow::Result<Config> {
    let config = Config::load(path)?;
    config.hardening().basics()?;
    Ok(config)
}

/// The running signer of a configuration.
pub(crate) fn running(path: &Path) -> anyhow::Result<AdminClient> {
    Ok(AdminClient::connect(&Config::load(path)?.admin_socket())?)
}

/// Writes a new file; one that exists is left alone.
pub(crate) fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .with_context(|| format!("{} is not overwritten", path.display()))?;
    file.write_all(text.as_bytes())?;
    file.sync_all().with_context(|| path.display().to_string())
}

/// Prints for a machine.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
