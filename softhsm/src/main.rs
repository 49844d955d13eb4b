//! Throw-away SoftHSM tokens from the command line.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use spark_softhsm::{TokenDir, module_path};

/// Makes and removes throw-away SoftHSM tokens. Never for keys that matter.
#[derive(Debug, Parser)]
#[command(name = "spark-softhsm", version)]
enum Command {
    /// Initialises one token per label and prints what a process must set to use them.
    Init {
        /// Directory for the configuration file.
        #[arg(long)]
        dir: PathBuf,
        /// Security officer's PIN.
        #[arg(long, default_value = "87654321")]
        so_pin: String,
        /// User PIN.
        #[arg(long, default_value = "12345678")]
        pin: String,
        /// Labels of the tokens.
        #[arg(required = true)]
        labels: Vec<String>,
    },
    /// Removes all tokens of a directory.
    Destroy {
        /// Directory given to `init`.
        #[arg(long)]
        dir: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Init { dir, so_pin, pin, labels } => {
            let tokens = TokenDir::create(&dir)?;
            for label in &labels {
                tokens.init_token(label, &so_pin, &pin).with_context(|| format!("token {label}"))?;
            }
            let (name, value) = tokens.env();
            println!("{name}={}", value.display());
            println!("PKCS11_MODULE={}", module_path()?.display());
        }
        Command::Destroy { dir } => TokenDir::open(&dir.join("softhsm2.conf"))?.destroy()?,
    }
    Ok(())
}
