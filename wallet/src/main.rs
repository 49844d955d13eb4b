//! `spark-wallet`: formats what the library does.

mod cli;
mod commands;
mod output;

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use crate::{
    cli::Cli,
    output::{Failure, explain},
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => "warn",
        1 => "spark_wallet=info",
        _ => "spark_wallet=debug,info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    spark_proto::transport::install_crypto_provider();
    let json = cli.json;
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(1);
        }
    };
    match runtime.block_on(commands::run(cli)) {
        Ok(code) => code,
        Err(error) => {
            let text = explain(&error);
            if json {
                let failure = Failure { error: text, class: error.class().into() };
                println!("{}", serde_json::to_string(&failure).unwrap_or_default());
            } else {
                eprintln!("error: {text}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}
