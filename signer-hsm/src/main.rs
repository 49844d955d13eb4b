//! `spark-signer`: the signer process.

mod cli;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use spark_signer_hsm::{
    config::Config,
    confirmer,
    devices::KeysStuck,
    hardening::{Places, Role},
    server, starter,
};

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
    Init(cli::init::Command),
    Ceremony(cli::ceremony::Command),
    /// Make, sign or verify the federation file.
    #[command(subcommand)]
    Federation(cli::federation::Command),
    /// Keys for the listener's certificate, in the keys token.
    #[command(subcommand)]
    Tls(cli::tls::Command),
    /// Serve.
    Start,
    Doctor(cli::doctor::Command),
    /// Check the configuration file only.
    Check,
    /// The running signer: where it stands.
    Status(cli::status::Command),
    /// The running signer's roots.
    #[command(subcommand)]
    Root(cli::root::Command),
    /// The running signer forgets every key of its store and refuses all calls.
    Seal(cli::seal::Seal),
    /// The sealed signer opens its store again, by the HSM and with its peers' memory.
    Unseal(cli::seal::Unseal),
    /// The running signer's alarms.
    #[command(subcommand)]
    Alarms(cli::alarms::Command),
    /// The devices with roots.
    #[command(subcommand)]
    Device(cli::device::Command),
    /// Show tokens and this signer's objects.
    #[command(subcommand)]
    Token(cli::token::Command),
    Conformance(cli::conformance::Command),
    /// Archive what is public, verify or restore such an archive.
    #[command(subcommand)]
    Backup(cli::backup::Command),
    /// Look at the roots token, line by line. The signer starts this process itself.
    #[command(hide = true)]
    Confirmer,
    /// Start that process whenever the signer asks. The signer starts this one first.
    #[command(hide = true)]
    Starter,
    /// Print the steps at which a test may end this program.
    #[cfg(feature = "failpoints")]
    FailPoints,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:?}");
            let stuck = error.downcast_ref::<KeysStuck>();
            stuck.map_or(ExitCode::FAILURE, |_| ExitCode::from(KeysStuck::EXIT))
        }
    }
}

fn run() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("SPARK_LOG").unwrap_or_else(|_| "info".into()),
        )
        .init();
    let Cli { config, command } = Cli::parse();
    match command {
        Command::Init(command) => cli::init::run(&config, &command)?,
        Command::Ceremony(command) => cli::ceremony::run(&config, command)?,
        Command::Federation(command) => cli::federation::run(&config, command)?,
        Command::Doctor(command) => cli::doctor::run(&config, &command)?,
        Command::Tls(command) => cli::tls::run(&config, command)?,
        Command::Device(command) => cli::device::run(&config, &command)?,
        Command::Status(command) => cli::status::run(&config, &command)?,
        Command::Root(command) => cli::root::run(&config, &command)?,
        Command::Seal(command) => cli::seal::seal(&config, &command)?,
        Command::Unseal(command) => cli::seal::unseal(&config, &command)?,
        Command::Alarms(command) => cli::alarms::run(&config, command)?,
        Command::Token(command) => cli::token::run(&config, &command)?,
        Command::Conformance(command) => cli::conformance::run(command)?,
        Command::Backup(command) => cli::backup::run(&config, command)?,
        Command::Check => {
            Config::load(&config)?;
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
        Command::Confirmer => {
            let config = cli::load(&config)?;
            config.hardening().confine(&Places::confirmer(&config)?)?;
            config.hardening().filter(Role::Confirmer)?;
            confirmer::serve(&config)?;
        }
        Command::Starter => {
            let config = cli::load(&config)?;
            config.hardening().confine(&Places::starter(&config)?)?;
            config.hardening().filter(Role::Starter)?;
            starter::serve(&config)?;
        }
        Command::Start => {
            let config = cli::load(&config)?;
            spark_proto::transport::install_crypto_provider();
            server::start(config, terminated())?;
        }
    }
    Ok(())
}

async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
