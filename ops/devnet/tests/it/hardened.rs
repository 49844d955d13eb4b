//! Signers of a network that works are confined, can start their confirmer again, and renew their allow-list.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use prost::Message as _;
use rustix::process::{Pid, Signal, kill_process};
use spark_devnet::network::Devnet;
use spark_proto::{signer::v1 as signer, transport::Identity};
use tonic::transport::Channel;

use crate::support::{
    call::{Door, call, refused_by_tls, wallet_card},
    eventually, people, rows,
};

const SATS: u64 = 30_000;

/// Processes with this configuration and command.
fn processes(config: &Path, command: &str) -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Gone since, or not ours.
        let Ok(line) = fs::read_to_string(entry.path().join("cmdline")) else { continue };
        let words: Vec<&str> = line.trim_end_matches('\0').split('\0').collect();
        if words.last() == Some(&command) && words.contains(&config.display().to_string().as_str()) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The only one, once it is there.
async fn process(config: &Path, command: &str) -> anyhow::Result<u32> {
    eventually(command, || async { Ok(processes(config, command)?.len() == 1) }).await?;
    processes(config, command)?.pop().context("process")
}

/// A system call filter for every thread, and no way to new rights.
fn confined(process: u32) -> anyhow::Result<()> {
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        for line in ["Seccomp:\t2", "NoNewPrivs:\t1"] {
            ensure!(status.contains(line), "{line} is missing in {status}");
        }
    }
    Ok(())
}

/// Puts another file in its place, as deployment tools do.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let draft = path.with_extension("new");
    fs::write(&draft, text)?;
    Ok(fs::rename(&draft, path)?)
}

async fn status(channel: &Channel) -> Result<signer::GetStatusResponse, tonic::Status> {
    let request = signer::GetStatusRequest {}.encode_to_vec();
    let answer = call(channel, "/signer.v1.Signer/GetStatus", request, None).await?;
    signer::GetStatusResponse::decode(answer).map_err(|error| tonic::Status::internal(error.to_string()))
}

fn config(devnet: &Devnet, index: usize) -> anyhow::Result<PathBuf> {
    Ok(devnet.members().get(index).context("member")?.dir().join("signer.toml"))
}

#[tokio::test(flavor = "multi_thread")]
async fn signers_are_confined_and_still_do_all_that_they_must() -> anyhow::Result<()> {
    let devnet = crate::support::network().await?;
    let wallets = devnet.endpoints().dir.join("people");
    let alice = people::wallet(&devnet, &wallets, "alice", 0)?;
    let bob = people::wallet(&devnet, &wallets, "bob", 1)?;
    people::deposit(&devnet, &alice, SATS).await?;

    // Without its confirmer a signer goes on, and has another one started.
    let mut killed = Vec::new();
    for index in 0..devnet.members().len() {
        let config = config(&devnet, index)?;
        confined(process(&config, "start").await?)?;
        confined(process(&config, "starter").await?)?;
        let confirmer = process(&config, "confirmer").await?;
        confined(confirmer)?;
        kill_process(Pid::from_raw(i32::try_from(confirmer)?).context("pid")?, Signal::KILL)?;
        killed.push((config, confirmer));
    }
    people::transfer(&alice, &bob, SATS).await?;
    rows::settled(&devnet).await?;
    for (config, before) in killed {
        eventually("another confirmer", || async {
            Ok(processes(&config, "confirmer")?.iter().any(|now| *now != before))
        })
        .await?;
        confined(process(&config, "confirmer").await?)?;
    }

    // A client that is put on the list comes in, and at its next request it is out again.
    let member = devnet.members().first().context("member")?;
    let (path, card) = (config(&devnet, 0)?, wallet_card(&devnet));
    let original = fs::read_to_string(&path)?;
    let key = Identity::from_pem_files(&card.certificate, &card.key)?.spki()?;
    let door = Door::of(&devnet, &member.signer_address());
    let refused = status(&door.open(Some(&card))?).await.err().context("an unlisted client came in")?;
    ensure!(refused_by_tls(&refused), "{refused:?}");
    replace(&path, &original.replace("allow = [", &format!("allow = [\"{key}\", ")))?;
    let signer = Pid::from_raw(i32::try_from(process(&path, "start").await?)?).context("pid")?;
    kill_process(signer, Signal::HUP)?;
    let channel = door.open(Some(&card))?;
    eventually("the client comes in", || async { Ok(status(&channel).await.is_ok()) }).await?;
    replace(&path, &original)?;
    kill_process(signer, Signal::HUP)?;
    eventually("the client is out", || async { Ok(status(&channel).await.is_err()) }).await?;
    let own = door.open(Some(member.operator_tls()))?;
    ensure!(!status(&own).await?.locked, "the signer is locked");
    Ok(())
}
