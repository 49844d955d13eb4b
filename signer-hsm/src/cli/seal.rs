//! `spark-signer seal` and `unseal`.

use std::path::Path;

use clap::Args;
use spark_proto::admin::signer::v1 as wire;

use super::{running, status::show};

#[derive(Debug, Args)]
pub(crate) struct Seal {
    /// For a machine.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Unseal {
    /// Seconds to wait until the peers were heard, at most 120. The operator must run for that.
    #[arg(long, default_value_t = 30)]
    wait: u32,
    /// For a machine.
    #[arg(long)]
    json: bool,
}

pub(crate) fn seal(config: &Path, command: &Seal) -> anyhow::Result<()> {
    show(&running(config)?.seal(wire::SealRequest {})?, command.json)
}

pub(crate) fn unseal(config: &Path, command: &Unseal) -> anyhow::Result<()> {
    let status = running(config)?.unseal(wire::UnsealRequest { wait_seconds: command.wait })?;
    show(&status, command.json)?;
    anyhow::ensure!(!status.locked, "the store is open; the signer works when its peers were heard");
    Ok(())
}
