//! `spark-signer conformance`.

use std::{io::Read as _, path::PathBuf};

use clap::{Args, ValueEnum};
use spark_signer_hsm::token::{
    TokenRef,
    conformance::{self, Options},
};
use zeroize::Zeroizing;

use super::print_json;

/// What a token is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Purpose {
    /// Roots.
    Roots,
    /// Identity and federation keys.
    Keys,
    /// Both.
    Both,
}

/// Try a scratch token: what it can do, what it refuses, which vendor profile it fits. Makes, uses and destroys
/// only objects with labels of its own, and refuses a token that holds a signer's objects.
#[derive(Debug, Args)]
pub(crate) struct Command {
    /// PKCS#11 library.
    #[arg(long, env = "PKCS11_MODULE")]
    module: PathBuf,
    /// Label of the scratch token.
    #[arg(long, env = "PKCS11_TOKEN")]
    token: String,
    /// Serial number, where labels repeat.
    #[arg(long)]
    serial: Option<String>,
    /// File with the user PIN, mode 0600.
    #[arg(long, env = "PKCS11_PIN_FILE", required_unless_present = "look")]
    pin_file: Option<PathBuf>,
    /// Purpose that the exit status judges.
    #[arg(long, value_enum, default_value = "both")]
    purpose: Purpose,
    /// Calls per measured operation; each root cycle writes to the device's flash.
    #[arg(long, default_value_t = 20)]
    runs: u16,
    /// Objects added to measure their effect.
    #[arg(long, default_value_t = 32)]
    objects: u16,
    /// For a machine.
    #[arg(long)]
    json: bool,
    /// Count the objects with these labels and end; the PIN comes from standard input. The suite starts this.
    #[arg(long, hide = true)]
    look: Vec<String>,
}

pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    let pin_file = command.pin_file.unwrap_or_default();
    let token = TokenRef::with_pin_file(command.token, command.serial, pin_file);
    if !command.look.is_empty() {
        let mut pin = Zeroizing::new(String::with_capacity(512));
        std::io::stdin().take(512).read_to_string(&mut pin)?;
        let counts = conformance::look(&command.module, &token.holding(pin), &command.look)?;
        println!("{}", serde_json::to_string(&counts)?);
        return Ok(());
    }
    let report = conformance::run(&Options {
        module: command.module,
        token,
        runs: command.runs,
        objects: command.objects,
        program: std::env::current_exe().ok(),
    })?;
    if command.json {
        print_json(&report)?;
    } else {
        print!("{report}");
    }
    let (roots, keys) = (report.missing_for_roots(), report.missing_for_keys());
    anyhow::ensure!(
        command.purpose == Purpose::Keys || roots.is_empty(),
        "not for roots: {}",
        roots.join(", ")
    );
    anyhow::ensure!(
        command.purpose == Purpose::Roots || keys.is_empty(),
        "not for keys: {}",
        keys.join(", ")
    );
    Ok(())
}
