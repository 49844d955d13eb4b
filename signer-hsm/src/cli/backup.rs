//! `spark-signer backup`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use spark_signer_hsm::{backup, config::Config};

use super::{load, print_json};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a signed archive of public material: configuration without PINs, federation file, transcripts. Never
    /// shares: a backup of them would be dead one batch later.
    Create {
        /// Archive to write. An existing file is not overwritten.
        #[arg(long)]
        out: PathBuf,
        /// More public files to take along: transcripts, tiles and checkpoints of the log.
        #[arg(long = "with")]
        more: Vec<PathBuf>,
    },
    /// Check an archive: signature and every file's digest.
    Verify {
        /// The archive.
        file: PathBuf,
        /// Federation key that must have signed it, hex; default: the one that the archive names.
        #[arg(long)]
        key: Option<String>,
    },
    /// Write an archive's files into an empty folder.
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
        Command::Create { out, more } => {
            let config: Config = load(config)?;
            anyhow::ensure!(!out.exists(), "{} is not overwritten", out.display());
            let archive = backup::create(&config, &more)?;
            super::write_new(&out, &(serde_json::to_string_pretty(&archive)? + "\n"), 0o600)?;
            println!("{}", out.display());
            Ok(())
        }
        Command::Verify { file, key } => print_json(&backup::read(&file, key.as_deref())?.summary()),
        Command::Restore { file, into, key } => {
            for path in backup::read(&file, key.as_deref())?.restore(&into)? {
                println!("{}", path.display());
            }
            Ok(())
        }
    }
}
