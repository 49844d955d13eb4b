//! `spark-signer ceremony`.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use spark_signer_hsm::{
    ceremony::{self, Plan, SignedSupplement, SignedTranscript},
    config::Config,
    token::{IdentitySource, Inventory},
};
use zeroize::Zeroizing;

use super::{load, print_json, write_new};

/// Make the keys in the tokens and an empty vault. Once.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Command {
    #[command(subcommand)]
    step: Option<Step>,
    /// Without a step: run, and print the unsigned transcript in one line. Read the identity's private key
    /// (64 hex digits) from standard input; development profile only.
    #[arg(long)]
    import_identity: bool,
}

#[derive(Debug, Subcommand)]
enum Step {
    /// Print what will be made and with which attributes. Touches no token.
    Plan {
        /// For a machine.
        #[arg(long)]
        json: bool,
    },
    /// Make the keys and the vault; write the signed transcript.
    Run {
        /// Transcript to write. An existing file is not overwritten.
        #[arg(long)]
        out: PathBuf,
    },
    /// Check a transcript: signature and completeness, and against the tokens where they are at hand.
    Verify {
        /// The transcript.
        file: PathBuf,
        /// What `device prepare` wrote of a device that came later; once for each.
        #[arg(long)]
        supplement: Vec<PathBuf>,
        /// Compare with the tokens of the configuration.
        #[arg(long)]
        tokens: bool,
        /// For a machine.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(config: &Path, command: Command) -> anyhow::Result<()> {
    match command.step {
        None => {
            let config = load(config)?;
            let identity = if command.import_identity { read_identity()? } else { IdentitySource::Generate };
            println!("{}", serde_json::to_string(&ceremony::run(&config, &identity)?.transcript)?);
            Ok(())
        }
        Some(Step::Plan { json }) => {
            let plan = Plan::new(&Config::load(config)?);
            if json {
                return print_json(&plan);
            }
            print!("{plan}");
            Ok(())
        }
        Some(Step::Run { out }) => {
            let config = load(config)?;
            // Before the tokens are touched: a ceremony without a transcript would have to be repeated.
            anyhow::ensure!(!out.exists(), "{} is not overwritten", out.display());
            let signed = ceremony::run(&config, &IdentitySource::Generate)?;
            let text = serde_json::to_string_pretty(&signed)? + "\n";
            if let Err(error) = write_new(&out, &text, 0o644) {
                print!("{text}");
                return Err(error);
            }
            println!("{}", out.display());
            Ok(())
        }
        Some(Step::Verify { file, supplement, tokens, json }) => {
            let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            let signed = SignedTranscript::parse(&text)?;
            let mut checks = ceremony::offline(&signed.transcript);
            let mut supplements = Vec::new();
            for file in supplement {
                let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
                let found = SignedSupplement::parse(&text).with_context(|| file.display().to_string())?;
                checks.extend(ceremony::supplemented(&signed.transcript, &found.supplement));
                supplements.push(found.supplement);
            }
            if tokens {
                let now = Inventory::read(&load(config)?.token)?;
                checks.extend(ceremony::against_tokens(&signed.transcript, &supplements, &now));
            }
            if json {
                print_json(&checks)?;
            } else {
                println!("signature verifies with {}", signed.transcript.federation_public_key);
                for check in &checks {
                    println!(
                        "{:<22} {:<4} {}",
                        check.name,
                        if check.ok { "ok" } else { "FAIL" },
                        check.detail
                    );
                }
            }
            anyhow::ensure!(checks.iter().all(|check| check.ok), "the transcript is not good");
            Ok(())
        }
    }
}

fn read_identity() -> anyhow::Result<IdentitySource> {
    let mut text = Zeroizing::new(String::new());
    std::io::stdin().take(256).read_to_string(&mut text)?;
    let mut secret = Zeroizing::new([0u8; 32]);
    hex::decode_to_slice(text.trim(), secret.as_mut_slice()).context("identity key must be 64 hex digits")?;
    Ok(IdentitySource::Import(secret))
}
