//! `spark-signer`: the signer process.

use std::{io::Read as _, path::PathBuf};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use spark_signer_hsm::{
    ceremony,
    config::Config,
    confirmer, doctor, federation, hardening, server,
    token::{IdentitySource, Security, prepare_device},
};
use zeroize::Zeroizing;

/// Holds this operator's key shares behind an HSM.
#[derive(Debug, Parser)]
#[command(name = "spark-signer", version)]
struct Cli {
    /// Configuration file.
    #[arg(long, global = true, default_value = "signer.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the keys in the tokens and an empty vault. Once.
    Ceremony {
        /// Read the identity's private key (64 hex digits) from standard input; development profile only.
        #[arg(long)]
        import_identity: bool,
    },
    /// Make, sign or verify the federation file.
    #[command(subcommand)]
    Federation(FederationCommand),
    /// Serve.
    Start,
    /// Check tokens, keys, store and federation file.
    Doctor,
    /// Check the configuration file only.
    Check,
    /// Prepare a further device of the configuration to hold roots. Once per device; it joins when the signer runs.
    Device {
        /// Its number.
        id: u8,
    },
    /// Look at the roots token, line by line. The signer starts this process itself.
    #[command(hide = true)]
    Confirmer,
    /// Print the steps at which a test may end this program.
    #[cfg(feature = "failpoints")]
    FailPoints,
}

#[derive(Debug, Subcommand)]
enum FederationCommand {
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

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("SPARK_LOG").unwrap_or_else(|_| "info".into()),
        )
        .init();
    let cli = Cli::parse();
    match cli.command {
        Command::Federation(FederationCommand::Propose { out, epoch, network, threshold, members }) => {
            let entry = federation::propose(&out, epoch, &network, threshold, &members)?;
            println!("{}", serde_json::json!({ "hash": hex::encode(entry.hash()) }));
        }
        Command::Federation(FederationCommand::Verify { file }) => {
            println!("{}", serde_json::json!({ "hash": federation::verify(&file)? }));
        }
        Command::Federation(FederationCommand::Sign { file }) => {
            let config = Config::load(&cli.config)?;
            harden(&config)?;
            federation::sign(&config, &file)?;
        }
        Command::Check => {
            Config::load(&cli.config)?;
            println!("ok");
        }
        #[cfg(feature = "failpoints")]
        Command::FailPoints => {
            for call in spark_signer_hsm::fail::Call::ALL {
                for step in spark_signer_hsm::fail::Step::ALL {
                    println!("{call:?}{step:?}");
                }
            }
        }
        Command::Ceremony { import_identity } => {
            let config = Config::load(&cli.config)?;
            harden(&config)?;
            let identity = if import_identity { read_identity()? } else { IdentitySource::Generate };
            println!("{}", serde_json::to_string(&ceremony::run(&config, &identity)?)?);
        }
        Command::Doctor => {
            let config = Config::load(&cli.config)?;
            harden(&config)?;
            let checks = doctor::run(&config);
            let failed = checks.iter().any(|c| c.state == "fail");
            println!("{}", serde_json::to_string_pretty(&checks)?);
            anyhow::ensure!(!failed, "some checks failed");
        }
        Command::Device { id } => {
            let config = Config::load(&cli.config)?;
            harden(&config)?;
            let device = config.token.devices.iter().find(|device| device.id == id);
            prepare_device(device.context("configuration: no such device")?, config.token.security)?;
            println!("ok");
        }
        Command::Confirmer => {
            let config = Config::load(&cli.config)?;
            harden(&config)?;
            confirmer::serve(&config)?;
        }
        Command::Start => {
            let config = Config::load(&cli.config)?;
            harden(&config)?;
            spark_proto::transport::install_crypto_provider();
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(server::run(config, terminated()))?;
        }
    }
    Ok(())
}

/// A production signer does not run unhardened; development says what is missing and goes on.
fn harden(config: &Config) -> anyhow::Result<()> {
    match hardening::harden() {
        Err(error) if config.profile == Security::Development => {
            tracing::warn!(%error, "not hardened");
            Ok(())
        }
        result => Ok(result?),
    }
}

fn read_identity() -> anyhow::Result<IdentitySource> {
    let mut text = Zeroizing::new(String::new());
    std::io::stdin().take(256).read_to_string(&mut text)?;
    let mut secret = Zeroizing::new([0u8; 32]);
    hex::decode_to_slice(text.trim(), secret.as_mut_slice()).context("identity key must be 64 hex digits")?;
    Ok(IdentitySource::Import(secret))
}

async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
