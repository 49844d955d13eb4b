//! `spark-signer token`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use spark_signer_hsm::{
    config::Config,
    token::{Inventory, slots},
};

use super::{load, print_json};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Every token that the library shows, with its mechanisms. Needs no PIN.
    Info {
        /// PKCS#11 library; default: the configuration's.
        #[arg(long, env = "PKCS11_MODULE")]
        module: Option<PathBuf>,
        /// For a machine.
        #[arg(long)]
        json: bool,
    },
    /// This signer's objects with their attributes, without secrets.
    List {
        /// For a machine.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(config: &Path, command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Info { module, json } => {
            let module = match module {
                Some(module) => module.clone(),
                None => Config::load(config).context("no --module, and no configuration")?.token.keys.module,
            };
            let slots = slots(&module)?;
            if *json {
                let slots: Vec<_> = slots
                    .iter()
                    .map(|(slot, token, mechanisms)| {
                        serde_json::json!({ "slot": slot, "token": token, "mechanisms": mechanisms })
                    })
                    .collect();
                return print_json(&slots);
            }
            if slots.is_empty() {
                eprintln!("no initialised token");
            }
            for (slot, token, mechanisms) in &slots {
                println!(
                    "slot {slot}: {} ({} {}, serial {}, firmware {})",
                    token.label, token.manufacturer, token.model, token.serial, token.firmware
                );
                println!("  {}", mechanisms.join(" "));
            }
        }
        Command::List { json } => {
            let inventory = Inventory::read(&load(config)?.token)?;
            if *json {
                return print_json(&inventory);
            }
            if inventory.objects.is_empty() {
                eprintln!("no object of a signer");
            }
            for object in &inventory.objects {
                let attributes: Vec<_> =
                    object.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
                println!("{:?}: {} {} id {}", object.token, object.class, object.label, object.id);
                println!("  {}", attributes.join(" "));
                if let Some(point) = &object.point {
                    println!("  {point}");
                }
            }
        }
    }
    Ok(())
}
