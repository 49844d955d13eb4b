//! Wallets as their users run them: one process per command.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::bail;
use serde_json::Value;
use tokio::process::Command;

use crate::{network::Devnet, stamp};

/// A wallet in a folder of its own.
#[derive(Clone)]
pub struct WalletCommand {
    program: PathBuf,
    dir: PathBuf,
    words: String,
}

impl std::fmt::Debug for WalletCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("WalletCommand").field(&self.dir).finish()
    }
}

impl WalletCommand {
    /// Makes a wallet with a fresh seed.
    pub async fn create(devnet: &Devnet, name: &str, coordinator: u16) -> anyhow::Result<Self> {
        let dir = devnet.endpoints().dir.join("wallets").join(name);
        devnet.write_wallet_config(&dir, coordinator)?;
        let mut this = Self { program: stamp::program("spark-wallet")?, dir, words: String::new() };
        this.words = text(&this.run(&["create"]).await?, "words")?;
        Ok(this)
    }

    /// The same wallet, coordinated by another operator.
    pub fn coordinated_by(&self, devnet: &Devnet, coordinator: u16) -> anyhow::Result<()> {
        devnet.write_wallet_config(&self.dir, coordinator)
    }

    /// A second folder with the same seed, coordinated by another operator.
    pub async fn twin(&self, devnet: &Devnet, name: &str, coordinator: u16) -> anyhow::Result<Self> {
        let dir = devnet.endpoints().dir.join("wallets").join(name);
        devnet.write_wallet_config(&dir, coordinator)?;
        let twin = Self { program: self.program.clone(), dir, words: self.words.clone() };
        let seed = twin.dir.join("words");
        crate::member::write_private(&seed, self.words.as_bytes())?;
        twin.run(&["restore", "--seed-file", &seed.display().to_string()]).await?;
        Ok(twin)
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs a command with `--json`; all objects that it prints.
    pub async fn run_all(&self, args: &[&str]) -> anyhow::Result<Vec<Value>> {
        let output = Command::new(&self.program)
            .arg("--dir")
            .arg(&self.dir)
            .arg("--json")
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!(
                "spark-wallet {} ended with {}: {stdout}{}",
                args.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(serde_json::Deserializer::from_str(&stdout).into_iter::<Value>().collect::<Result<_, _>>()?)
    }

    /// Runs a command that prints one object.
    pub async fn run(&self, args: &[&str]) -> anyhow::Result<Value> {
        let mut all = self.run_all(args).await?;
        match all.pop() {
            Some(last) => Ok(last),
            None => bail!("spark-wallet {} printed nothing", args.join(" ")),
        }
    }
}

/// A string field of a command's answer.
pub fn text(value: &Value, field: &str) -> anyhow::Result<String> {
    match value.get(field).and_then(Value::as_str) {
        Some(text) => Ok(text.to_owned()),
        None => bail!("{field} is missing in {value}"),
    }
}

/// An integer field of a command's answer.
pub fn number(value: &Value, field: &str) -> anyhow::Result<u64> {
    match value.get(field).and_then(Value::as_u64) {
        Some(number) => Ok(number),
        None => bail!("{field} is missing in {value}"),
    }
}
