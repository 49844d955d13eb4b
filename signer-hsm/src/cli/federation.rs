//! `spark-signer federation`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use spark_signer_hsm::federation;

use super::load;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write an unsigned file from the members' entries in index order.
    Propose {
        /// File to write.
        #[arg(long)]
        out: PathBuf,
        /// Version of the membership.
        #[arg(long, default_value_t = 1)]
        epoch: u64,
        /// mainnet, testnet, signet or regtest.
        #[arg(long)]
        network: String,
        /// t.
        #[arg(long)]
        threshold: u16,
        /// One JSON file per member.
        members: Vec<PathBuf>,
    },
    /// Add this member's signature.
    Sign {
        /// The file.
        file: PathBuf,
    },
    /// Check content and signatures, print the hash to pin.
    Verify {
        /// The file.
        file: PathBuf,
    },
}

pub(crate) fn run(config: &Path, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Propose { out, epoch, network, threshold, members } => {
            let entry = federation::propose(&out, epoch, &network, threshold, &members)?;
            println!("{}", serde_json::json!({ "hash": hex::encode(entry.hash()) }));
            Ok(())
        }
        Command::Verify { file } => {
            println!("{}", serde_json::json!({ "hash": federation::verify(&file)? }));
            Ok(())
        }
        Command::Sign { file } => federation::sign(&load(config)?, &file),
    }
}
