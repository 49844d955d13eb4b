//! `spark-devnet`: a Spark federation on this machine.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use spark_devnet::{
    control, demo, http,
    network::{Devnet, Options},
};

/// A Spark federation on this machine: real bitcoind (regtest), Postgres, SoftHSM, TLS.
#[derive(Debug, Parser)]
#[command(name = "spark-devnet", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Shape {
    /// n.
    #[arg(long, default_value_t = 3)]
    operators: u16,
    /// t.
    #[arg(long, default_value_t = 2)]
    threshold: u16,
    /// Confirmations that make a deposit spendable.
    #[arg(long, default_value_t = 1)]
    deposit_depth: u32,
    /// Development identities and fixed ports, as public SDK test suites expect.
    #[arg(long)]
    sdk: bool,
}

impl Shape {
    fn options(&self, dir: Option<PathBuf>) -> Options {
        Options {
            operators: self.operators,
            threshold: self.threshold,
            deposit_depth: self.deposit_depth,
            sdk: self.sdk,
            known_identities: self.sdk,
            shipped_signers: false,
            dir,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a network, print its endpoints as JSON, run until Ctrl-C or `down`.
    Up {
        #[command(flatten)]
        shape: Shape,
        /// Folder for its state; must be empty or absent.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Run the main job on a fresh network.
    Demo {
        #[command(flatten)]
        shape: Shape,
        /// One JSON object per step.
        #[arg(long)]
        json: bool,
    },
    /// What runs.
    Status {
        /// The network's folder.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Stop a network.
    Down {
        /// The network's folder.
        #[arg(long)]
        dir: PathBuf,
    },
    /// End of a process's log.
    Logs {
        /// The network's folder.
        #[arg(long)]
        dir: PathBuf,
        /// signer-0, operator-1, …
        process: String,
    },
    /// kill -9.
    Kill(Target),
    /// Kill and start again.
    Restart(Target),
    /// Stop without killing.
    Pause(Target),
    /// Go on.
    Resume(Target),
}

#[derive(Debug, Args)]
struct Target {
    /// The network's folder.
    #[arg(long)]
    dir: PathBuf,
    /// signer-0, operator-1, bitcoind, postgres.
    process: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match Cli::parse().command {
        Command::Up { shape, dir } => {
            let devnet = tokio::select! {
                devnet = Devnet::start(shape.options(dir), |what| eprintln!("… {what}")) => devnet?,
                _ = tokio::signal::ctrl_c() => return Ok(()),
            };
            println!("{}", serde_json::to_string_pretty(devnet.endpoints())?);
            control::serve(devnet).await
        }
        Command::Demo { shape, json } => {
            let report = |step: demo::Step| {
                if json {
                    if step.step != "start"
                        && let Ok(line) = serde_json::to_string(&step)
                    {
                        println!("{line}");
                    }
                } else {
                    println!("{:<10} {}", step.step, step.text);
                }
            };
            tokio::select! {
                result = demo::run(shape.options(None), report) => result,
                _ = tokio::signal::ctrl_c() => Ok(()),
            }
        }
        Command::Status { dir } => say(http::get(&format!("{}/status", control::url(&dir)?)).await?),
        Command::Down { dir } => say(http::post(&format!("{}/down", control::url(&dir)?)).await?),
        Command::Logs { dir, process } => {
            let (kind, index) = process.split_once('-').unwrap_or((process.as_str(), ""));
            let path = dir.join(format!("operator-{index}")).join(format!("{kind}.log"));
            say(std::fs::read_to_string(path)?)
        }
        Command::Kill(target) => act(target, "kill").await,
        Command::Restart(target) => act(target, "restart").await,
        Command::Pause(target) => act(target, "pause").await,
        Command::Resume(target) => act(target, "resume").await,
    }
}

fn say(text: String) -> anyhow::Result<()> {
    println!("{text}");
    Ok(())
}

async fn act(target: Target, action: &str) -> anyhow::Result<()> {
    let url = control::url(&target.dir)?;
    say(http::post(&format!("{url}/process/{}/{action}", target.process)).await?)
}
