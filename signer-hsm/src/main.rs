//! `spark-signer`: the signer process.

use std::{io::Read as _, path::PathBuf};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use spark_signer_hsm::{
    ceremony,
    config::Config,
    confirmer, doctor, federation,
    hardening::{Places, Role},
    server, starter, tls,
    token::{IdentitySource, prepare_device},
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
    /// Keys for the listener's certificate, in the keys token.
    #[command(subcommand)]
    Tls(TlsCommand),
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
    /// Start the former. The signer starts this process itself.
    #[command(hide = true)]
    Starter,
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

#[derive(Debug, Subcommand)]
enum TlsCommand {
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
            config.hardening().basics()?;
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
            config.hardening().basics()?;
            let identity = if import_identity { read_identity()? } else { IdentitySource::Generate };
            println!("{}", serde_json::to_string(&ceremony::run(&config, &identity)?)?);
        }
        Command::Doctor => {
            let config = Config::load(&cli.config)?;
            config.hardening().basics()?;
            let checks = doctor::run(&config);
            let failed = checks.iter().any(|c| c.state == "fail");
            println!("{}", serde_json::to_string_pretty(&checks)?);
            anyhow::ensure!(!failed, "some checks failed");
        }
        Command::Device { id } => {
            let config = Config::load(&cli.config)?;
            config.hardening().basics()?;
            let device = config.token.devices.iter().find(|device| device.id == id);
            prepare_device(device.context("configuration: no such device")?, config.token.security)?;
            println!("ok");
        }
        Command::Tls(command) => {
            let config = Config::load(&cli.config)?;
            config.hardening().basics()?;
            let answer = match command {
                TlsCommand::Generate { names } => serde_json::to_string(&tls::generate(&config, &names)?)?,
                TlsCommand::Csr { names, id } => {
                    serde_json::to_string(&tls::requests(&config, &names, &id)?)?
                }
            };
            println!("{answer}");
        }
        Command::Confirmer => {
            let config = Config::load(&cli.config)?;
            config.hardening().basics()?;
            config.hardening().confine(&Places::confirmer(&config)?)?;
            config.hardening().filter(Role::Confirmer)?;
            confirmer::serve(&config)?;
        }
        Command::Starter => {
            let config = Config::load(&cli.config)?;
            config.hardening().basics()?;
            config.hardening().confine(&Places::starter(&config)?)?;
            config.hardening().filter(Role::Starter)?;
            starter::serve(&config)?;
        }
        Command::Start => {
            let config = Config::load(&cli.config)?;
            config.hardening().basics()?;
            spark_proto::transport::install_crypto_provider();
            server::start(config, terminated())?;
        }
    }
    Ok(())
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
