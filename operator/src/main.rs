//! `spark-operator`: the operator process.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use spark_operator::{config::Config, deletion_log, server, telemetry};

/// Coordinates deposits, transfers, claims and exits with the other operators. Holds no secret.
#[derive(Debug, Parser)]
#[command(name = "spark-operator", version)]
struct Cli {
    /// Configuration file.
    #[arg(long, global = true, default_value = "operator.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve.
    Start,
    /// Print the steps at which a test may end this program.
    #[cfg(feature = "failpoints")]
    FailPoints,
    /// Configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// The deletion log of this operator.
    #[command(subcommand)]
    Log(LogCommand),
}

#[derive(Debug, Subcommand)]
enum LogCommand {
    /// Print the log's entries, one JSON object per line, for an auditor: they say whose key was destroyed when, so
    /// give them to nobody else (D16).
    Export {
        /// Index of the first entry.
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check the file, open everything it names, and compare the federation file with its pinned hash, without
    /// connecting anywhere.
    Check,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Command::Config(ConfigCommand::Check) => {
            let federation = server::federation(&Config::check(&cli.config)?)?;
            let hash = hex::encode(federation.hash());
            println!("federation: epoch {}, hash {hash}, as pinned", federation.epoch());
            println!("ok");
            Ok(())
        }
        #[cfg(feature = "failpoints")]
        Command::FailPoints => {
            for point in spark_operator::op::Point::ALL {
                println!("{point:?}");
            }
            Ok(())
        }
        Command::Log(LogCommand::Export { from }) => {
            let config = Config::load(&cli.config)?;
            spark_proto::transport::install_crypto_provider();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(deletion_log::export(&config, from, &mut std::io::stdout().lock()))
        }
        Command::Start => {
            let config = Config::load(&cli.config)?;
            telemetry::init(config.log_format, &config.log_filter)?;
            spark_proto::transport::install_crypto_provider();
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(server::run(config, terminated()))
        }
    }
}

async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
