//! Making the federation file: propose, sign by every member's HSM, verify.

use std::{fs, path::Path};

use anyhow::{Context as _, bail};
use spark_rules::federation::{FederationEntry, FederationFile, MemberEntry};
use spark_signer::vault::Token as _;

use crate::{config::Config, token::KeysToken};

/// Writes an unsigned file from the members' entries, in index order.
pub fn propose(
    out: &Path,
    epoch: u64,
    network: &str,
    threshold: u16,
    members: &[std::path::PathBuf],
) -> anyhow::Result<FederationEntry> {
    let members = members
        .iter()
        .map(|path| {
            let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
            serde_json::from_str::<MemberEntry>(&text).with_context(|| path.display().to_string())
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let federation = FederationEntry {
        epoch,
        network: network.to_owned(),
        threshold,
        quorum: None,
        faults: None,
        members,
    };
    federation.check()?;
    write(out, &FederationFile { federation: federation.clone(), signatures: Vec::new() })?;
    Ok(federation)
}

/// Adds this member's signature.
pub fn sign(config: &Config, path: &Path) -> anyhow::Result<()> {
    let mut file = read(path)?;
    let federation = file.federation.check()?;
    let index = usize::from(config.operator);
    let Some(member) = federation.members().get(index) else { bail!("operator {index} is not a member") };
    let token = KeysToken::open(&config.token)?;
    if member.identity != token.identity_public_key() {
        bail!("identity key of operator {index} in the file is not this signer's");
    }
    if !member.federation_keys.contains(&token.federation_public_key()) {
        bail!("federation key of operator {index} in the file is not this signer's");
    }
    file.signatures.resize(federation.members().len(), String::new());
    let signature = hex::encode(token.sign_federation(&file.federation.signing_message())?);
    if let Some(place) = file.signatures.get_mut(index) {
        *place = signature;
    }
    write(path, &file)
}

/// Checks content and all signatures; returns the hash to pin.
pub fn verify(path: &Path) -> anyhow::Result<String> {
    Ok(hex::encode(read(path)?.verify(None)?.hash()))
}

/// Reads a file without checking it.
pub fn read(path: &Path) -> anyhow::Result<FederationFile> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(FederationFile::parse(&text)?)
}

fn write(path: &Path, file: &FederationFile) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(file)?;
    fs::write(path, text + "\n").with_context(|| path.display().to_string())
}
