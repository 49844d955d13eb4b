//! `spark-signer tls`.

use std::path::Path;

use clap::Subcommand;
use spark_signer_hsm::tls;

use super::load;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a new P-256 key and print a request for its certificate. The present key stays.
    Generate {
        /// DNS name or IP address that the operator connects to; may be repeated.
        #[arg(long = "name", required = true)]
        names: Vec<String>,
    },
    /// Print requests for the keys that are there.
    Csr {
        /// DNS name or IP address; may be repeated.
        #[arg(long = "name", required = true)]
        names: Vec<String>,
        /// Only the key whose id begins so.
        #[arg(long, default_value = "")]
        id: String,
    },
}

pub(crate) fn run(config: &Path, command: Command) -> anyhow::Result<()> {
    let config = load(config)?;
    let answer = match command {
        Command::Generate { names } => serde_json::to_string(&tls::generate(&config, &names)?)?,
        Command::Csr { names, id } => serde_json::to_string(&tls::requests(&config, &names, &id)?)?,
    };
    println!("{answer}");
    Ok(())
}
