//! `spark-signer backup`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use spark_signer_hsm::{backup, config::Config};

use super::{load, print_json, running};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a signed archive of public material: configuration without PINs, federation file, transcripts, and the
    /// running signer's deletion log and marks. Never shares: a backup of them would be dead one batch later.
    Create {
        /// Archive to write. An existing file is not overwritten.
        #[arg(long)]
        out: PathBuf,
        /// More public files to take along: transcripts, tiles and checkpoints of the log.
        #[arg(long = "with")]
        more: Vec<PathBuf>,
        /// Do not ask the running signer for log and marks. A signer that has no federation file yet is not asked.
        #[arg(long)]
        without_log: bool,
    },
    /// Check an archive: its signature, and that its entries of the log lead to the root that the signer signed.
    Verify {
        /// The archive.
        file: PathBuf,
        /// Federation key that must have signed it, hex; default: the one that the archive names.
        #[arg(long)]
        key: Option<String>,
    },
    /// Write an archive's files into an empty folder, for people and auditors: no signer starts from them.
    Restore {
        /// The archive.
        file: PathBuf,
        /// Folder; made if it does not exist, refused if it holds anything.
        #[arg(long)]
        into: PathBuf,
        /// Federation key that must have signed it, hex; default: the one that the archive names.
        #[arg(long)]
        key: Option<String>,
    },
}

pub(crate) fn run(config: &Path, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create { out, more, without_log } => {
            let path = config;
            let config: Config = load(path)?;
            anyhow::ensure!(!out.exists(), "{} is not overwritten", out.display());
            let log = match config.federation {
                Some(_) if !without_log => backup::take(&mut running(path)?)?,
                _ => BTreeMap::new(),
            };
            let archive = backup::create(&config, &more, &log)?;
            super::write_new(&out, &(serde_json::to_string_pretty(&archive)? + "\n"), 0o600)?;
            println!("{}", out.display());
            Ok(())
        }
        Command::Verify { file, key } => print_json(&backup::read(&file, key.as_deref())?.summary()?),
        Command::Restore { file, into, key } => {
            for path in backup::read(&file, key.as_deref())?.restore(&into)? {
                println!("{}", path.display());
            }
            Ok(())
        }
    }
}
