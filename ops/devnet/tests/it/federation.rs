//! A federation file is what was pinned, or nothing starts.

use std::{fs, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use spark_devnet::{network::Devnet, stamp};
use spark_rules::federation::FederationFile;
use tokio::process::Command;

use crate::support::network;

/// Runs operator 0's program until it ends; what it printed, and whether it ended well.
async fn operator(devnet: &Devnet, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
    let config = devnet.members().first().context("member")?.dir().join("operator.toml");
    let child = Command::new(stamp::program("spark-operator")?)
        .arg("--config")
        .arg(config)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(60), child).await.context("it runs and runs")??;
    let printed = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&printed).into_owned()))
}

async fn refused(devnet: &Devnet, reason: &str) -> anyhow::Result<()> {
    for arguments in [&["config", "check"][..], &["start"]] {
        let (good, printed) = operator(devnet, arguments).await?;
        ensure!(!good && printed.contains(&format!("Error: {reason}: ")), "{arguments:?}: {printed}");
    }
    Ok(())
}

fn change(path: &Path, change: impl FnOnce(&mut FederationFile)) -> anyhow::Result<()> {
    let mut file = FederationFile::parse(&fs::read_to_string(path)?)?;
    change(&mut file);
    fs::write(path, serde_json::to_string_pretty(&file)?)?;
    Ok(())
}

/// S1 and all trust between operators rest on this file: neither a stranger nor all members together exchange it
/// behind the back of whoever pinned it.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_federation_file_is_refused_at_start() -> anyhow::Result<()> {
    let mut devnet = network().await?;
    let path = devnet.endpoints().federation.clone();
    let original = fs::read_to_string(&path)?;
    let (good, printed) = operator(&devnet, &["config", "check"]).await?;
    let pinned = format!("hash {}, as pinned", devnet.endpoints().federation_hash);
    ensure!(good && printed.contains(&pinned), "{printed}");
    devnet.process("operator-0")?.kill()?;

    // Another peer, another threshold of trust: signed by nobody.
    change(&path, |file| file.federation.members[1].peer_address = "127.0.0.1:1".into())?;
    refused(&devnet, "FEDERATION_DIFFERS").await?;
    // Signed by all.
    change(&path, |file| {
        file.federation.epoch = 2;
        file.signatures.clear();
    })?;
    for member in devnet.members() {
        member.sign_federation(&path)?;
    }
    FederationFile::parse(&fs::read_to_string(&path)?)?.verify(None)?;
    refused(&devnet, "FEDERATION_DIFFERS").await?;
    // The pinned content with a signature missing.
    fs::write(&path, &original)?;
    change(&path, |file| file.signatures[2] = String::new())?;
    refused(&devnet, "FEDERATION_UNSIGNED").await?;

    // The signer holds to its own pin.
    fs::write(&path, original.replacen("\"epoch\": 1", "\"epoch\": 2", 1))?;
    devnet.process("signer-0")?.kill()?;
    ensure!(devnet.start_signer(0).await.is_err(), "a signer starts with another federation file");
    let log = fs::read_to_string(devnet.members()[0].dir().join("signer.log"))?;
    ensure!(log.contains("Error: FEDERATION_DIFFERS: "), "{log}");

    fs::write(&path, &original)?;
    devnet.start_signer(0).await?;
    let database = devnet.database_url(0);
    devnet.start_operator(0, &database)?;
    devnet.wait_ready().await
}
