//! `spark-signer doctor`.

use std::path::Path;

use clap::Args;
use spark_signer_hsm::doctor::{self, State};

use super::{load, print_json};

/// Check machine, tokens, keys, store and federation file; say what to do.
#[derive(Debug, Args)]
pub(crate) struct Command {
    /// For a machine.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(config: &Path, command: &Command) -> anyhow::Result<()> {
    let checks = doctor::run(&load(config)?);
    if command.json {
        print_json(&checks)?;
    } else {
        for check in &checks {
            println!("{check}");
        }
    }
    anyhow::ensure!(checks.iter().all(|check| check.state != State::Fail), "some checks failed");
    Ok(())
}
