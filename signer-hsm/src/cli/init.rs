//! `spark-signer init`.

use std::path::Path;

use clap::Args;
use spark_signer_hsm::{config::Config, token::Profile};

use super::write_new;

/// Write a commented configuration for a vendor's tokens. An existing file is not overwritten.
#[derive(Debug, Args)]
pub(crate) struct Command {
    /// luna, nshield, cloudhsm, yubihsm2, securosys, softhsm or kryoptic.
    #[arg(long)]
    profile: String,
    /// Index of this operator in the federation.
    #[arg(long)]
    operator: u16,
}

pub(crate) fn run(path: &Path, command: &Command) -> anyhow::Result<()> {
    let Some(profile) = Profile::by_name(&command.profile) else {
        let names: Vec<_> = Profile::ALL.iter().map(|profile| profile.name).collect();
        anyhow::bail!("unknown profile {}; known: {}", command.profile, names.join(", "));
    };
    let text = text(&profile, command.operator);
    // What is written must be a configuration.
    Config::parse(&text)?;
    write_new(path, &text, 0o600)?;
    println!("{}", path.display());
    Ok(())
}

/// The vendor's usual path of the library.
fn library(profile: &str) -> &'static str {
    match profile {
        "luna" => "/usr/safenet/lunaclient/lib/libCryptoki2_64.so",
        "nshield" => "/opt/nfast/toolkits/pkcs11/libcknfast.so",
        "cloudhsm" => "/opt/cloudhsm/lib/libcloudhsm_pkcs11.so",
        "yubihsm2" => "/usr/lib/x86_64-linux-gnu/pkcs11/yubihsm_pkcs11.so",
        "securosys" => "/usr/local/primus/lib/libprimusP11.so",
        "kryoptic" => "/usr/lib/libkryoptic_pkcs11.so",
        _ => "/usr/lib/softhsm/libsofthsm2.so",
    }
}

fn text(profile: &Profile, operator: u16) -> String {
    let cells: String = profile
        .cells()
        .iter()
        .map(|(cell, value, mark)| format!("#   {cell} = {value} ({})\n", mark.as_str()))
        .collect();
    let missing = profile.missing_facts(&spark_signer_hsm::token::Facts::default());
    let facts: String =
        missing
            .iter()
            .map(|fact| {
                if *fact == "backup_days" { format!("# {fact} = 7\n") } else { format!("# {fact} = true\n") }
            })
            .collect();
    let facts =
        if facts.is_empty() { "# This profile's claim needs no statement.\n".to_owned() } else { facts };
    let security = if matches!(profile.name, "softhsm" | "kryoptic") { "development" } else { "production" };
    format!(
        r#"# A signer's configuration. `spark-signer check` reads it, `spark-signer doctor` tries it.

# "production", or "development" (regtest only).
profile = "{security}"
# Index of this operator in the federation, from 0.
operator = {operator}
# The sealed store. The ceremony makes it; nothing else does.
store = "signer.redb"

# After all operators have signed it (runbook of the ceremony):
# federation = "federation.json"
# federation_hash = "…"

# Where the operator connects, and its certificates:
# listen = "127.0.0.1:7400"
# http = "127.0.0.1:7401"
# [tls]
# cert = "signer.crt"
# key = "signer.key"
# client_ca = "ca.crt"
# allow = ["SHA-256 of the operator's SubjectPublicKeyInfo, hex"]

[token]
module = "{library}"
# What is known of these devices, and how sure it is:
{cells}profile = "{name}"

# Nearly empty and for roots alone: no cloning, no backup, no high availability. This is device 0; more of them, each
# with roots of its own, are [[token.devices]] with `id`, `module`, `profile`, `roots` and `facts`.
[token.roots]
label = "spark-roots"
pin = {{ file = "roots.pin" }}

# Identity, federation and TLS keys, in a token or partition of their own: `module` and `profile` if it is another
# vendor's. A signer whose calls into it do not come back for `end_after_seconds` (300) ends, to be started again.
[token.keys]
label = "spark-keys"
pin = {{ file = "keys.pin" }}

# What only you know of the roots device. Nothing is taken for granted: with a statement missing, receipts
# claim nothing. State only what is true and what you can show.
[token.facts]
{facts}# at_most = "none"
"#,
        library = library(profile.name),
        name = profile.name,
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn every_profile_gives_a_configuration() {
        for profile in Profile::ALL {
            let config = Config::parse(&text(&profile, 3)).unwrap();
            assert_eq!((config.token.keys.profile.name, config.operator), (profile.name, 3));
            // The commented statements are the configuration's own names.
            let stated = text(&profile, 3).replace("# no_", "no_").replace("# ha_", "ha_");
            let stated = stated.replace("# key_", "key_").replace("# backup_", "backup_");
            let config = Config::parse(&stated).unwrap();
            assert!(profile.missing_facts(&config.token.devices[0].facts).is_empty(), "{}", profile.name);
        }
    }
}
