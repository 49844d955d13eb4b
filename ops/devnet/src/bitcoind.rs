//! A real Bitcoin Core on regtest.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs, io};

use bitcoin::consensus::encode::serialize_hex;
use bitcoin::secp256k1::{Secp256k1, SecretKey};
use bitcoin::{Address, BlockHash, CompressedPublicKey, Network, Transaction, Txid};
use rand::RngCore;
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::ports::{Port, PortError};
use crate::process::{Process, ProcessError, Program};
use crate::rpc::{RpcClient, RpcError};

/// The first major version with everything we ask of it (v3 packages with ephemeral anchors).
pub const MIN_MAJOR_VERSION: u32 = 29;

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(30);
const USER: &str = "devnet";

#[derive(Debug, thiserror::Error)]
pub enum BitcoindError {
    #[error("no bitcoind {MIN_MAJOR_VERSION} or later in BITCOIND_EXE, PATH or {cache}; run ops/setup")]
    NotFound { cache: PathBuf },
    #[error("{path} is not bitcoind {MIN_MAJOR_VERSION} or later")]
    Unusable { path: PathBuf },
    #[error("no home for the cache: neither XDG_CACHE_HOME nor HOME is set")]
    NoCache,
    #[error("data directory {path} cannot be prepared")]
    DataDir { path: PathBuf, source: io::Error },
    #[error("the chain has only {height} blocks")]
    TooShort { height: u64 },
    #[error("a fresh address could not be made")]
    Address,
    #[error(transparent)]
    Port(#[from] PortError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

/// Best block of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tip {
    pub height: u64,
    pub hash: BlockHash,
}

/// A running node. Stopped without ceremony when dropped.
#[derive(Debug)]
pub struct Bitcoind {
    process: Process,
    rpc: RpcClient,
    password: String,
    _port: Port,
}

impl Bitcoind {
    /// Starts a node with its data in `dir`; whatever chain lies there is continued.
    pub async fn start(dir: &Path) -> Result<Self, BitcoindError> {
        Self::start_on(dir, Port::lease()?).await
    }

    pub async fn start_on(dir: &Path, port: Port) -> Result<Self, BitcoindError> {
        let executable = find()?;
        let password = random_password();
        write_config(dir, &port, &password)
            .map_err(|source| BitcoindError::DataDir { path: dir.to_owned(), source })?;
        let mut datadir = std::ffi::OsString::from("-datadir=");
        datadir.push(dir);
        // On the command line, so that no file can ever make it another network.
        let program =
            Program::new("bitcoind", executable, dir.join("output.log")).arg("-regtest").arg(datadir);
        let rpc = RpcClient::new(port.address(), USER, &password);
        let process = Process::start(program)?;
        let mut node = Self { process, rpc, password, _port: port };
        node.wait_ready().await?;
        Ok(node)
    }

    pub fn rpc(&self) -> &RpcClient {
        &self.rpc
    }

    pub fn address(&self) -> SocketAddr {
        self.rpc.address()
    }

    /// User name and password of the RPC interface.
    pub fn credentials(&self) -> (&str, &str) {
        (USER, &self.password)
    }

    /// For `pause`, `resume`, `kill` and the log.
    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Lets it write its state and end.
    pub async fn stop(&mut self) -> Result<(), BitcoindError> {
        self.process.stop(Signal::TERM, STOP_WITHIN).await?;
        Ok(())
    }

    /// Starts it again on the same port after [`Bitcoind::stop`] or a kill.
    pub async fn restart(&mut self) -> Result<(), BitcoindError> {
        self.process.restart()?;
        self.wait_ready().await
    }

    /// Mines `count` blocks whose rewards go to `address`.
    pub async fn mine(&self, count: u64, address: &Address) -> Result<Vec<BlockHash>, BitcoindError> {
        Ok(self.rpc.call("generatetoaddress", json!([count, address.to_string()])).await?)
    }

    /// Mines `count` blocks that leave the mempool alone.
    pub async fn mine_empty(&self, count: u64) -> Result<Vec<BlockHash>, BitcoindError> {
        #[derive(Deserialize)]
        struct Generated {
            hash: BlockHash,
        }
        // To nobody in particular, and to somebody else each time: after an invalidation the same coinbase at
        // the same second would be the invalidated block again.
        let address = fresh_address().ok_or(BitcoindError::Address)?.to_string();
        let mut hashes = Vec::new();
        for _ in 0..count {
            let generated: Generated = self.rpc.call("generateblock", json!([address, []])).await?;
            hashes.push(generated.hash);
        }
        Ok(hashes)
    }

    pub async fn tip(&self) -> Result<Tip, BitcoindError> {
        #[derive(Deserialize)]
        struct Info {
            blocks: u64,
            bestblockhash: BlockHash,
        }
        let info: Info = self.rpc.call("getblockchaininfo", json!([])).await?;
        Ok(Tip { height: info.blocks, hash: info.bestblockhash })
    }

    pub async fn block_hash(&self, height: u64) -> Result<BlockHash, BitcoindError> {
        Ok(self.rpc.call("getblockhash", json!([height])).await?)
    }

    /// Takes a block and all after it out of the active chain.
    pub async fn invalidate(&self, block: BlockHash) -> Result<(), BitcoindError> {
        Ok(self.rpc.call("invalidateblock", json!([block])).await?)
    }

    /// Takes back [`Bitcoind::invalidate`].
    pub async fn reconsider(&self, block: BlockHash) -> Result<(), BitcoindError> {
        Ok(self.rpc.call("reconsiderblock", json!([block])).await?)
    }

    /// Replaces the last `depth` blocks by `replacement` empty ones. Transactions of the old blocks return to
    /// the mempool. Gives the hash of the first block that fell.
    pub async fn reorg(&self, depth: u64, replacement: u64) -> Result<BlockHash, BitcoindError> {
        let height = self.tip().await?.height;
        // Depth 0 means nothing falls, which no caller means.
        let first = height.checked_sub(depth.max(1)).ok_or(BitcoindError::TooShort { height })? + 1;
        let fallen = self.block_hash(first).await?;
        self.invalidate(fallen).await?;
        self.mine_empty(replacement).await?;
        Ok(fallen)
    }

    pub async fn send_raw(&self, transaction: &Transaction) -> Result<Txid, BitcoindError> {
        Ok(self.rpc.call("sendrawtransaction", json!([serialize_hex(transaction)])).await?)
    }

    /// Offers parents and their child together (BIP 331 topology). The node's answer as it is: `package_msg`
    /// is `success`, or `tx-results` names the reason per wtxid.
    pub async fn submit_package(&self, transactions: &[Transaction]) -> Result<Value, BitcoindError> {
        let raw: Vec<String> = transactions.iter().map(serialize_hex).collect();
        Ok(self.rpc.call("submitpackage", json!([raw])).await?)
    }

    pub async fn mempool(&self) -> Result<Vec<Txid>, BitcoindError> {
        Ok(self.rpc.call("getrawmempool", json!([])).await?)
    }

    /// Depth of a transaction in the active chain: 0 in the mempool, 1 in the tip, `None` when unknown or
    /// reorganised away.
    pub async fn confirmations(&self, txid: Txid) -> Result<Option<u64>, BitcoindError> {
        #[derive(Deserialize)]
        struct Found {
            #[serde(default)]
            confirmations: u64,
            blockhash: Option<BlockHash>,
        }
        const UNKNOWN: i64 = -5;
        match self.rpc.call::<Found>("getrawtransaction", json!([txid, 1])).await {
            // The index still knows transactions of blocks that fell.
            Ok(found) if found.blockhash.is_some() && found.confirmations == 0 => Ok(None),
            Ok(found) => Ok(Some(found.confirmations)),
            Err(RpcError::Refused { code: UNKNOWN, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn wait_ready(&mut self) -> Result<(), BitcoindError> {
        let rpc = self.rpc.clone();
        // While it warms up every call is refused.
        self.process
            .wait_ready(READY_WITHIN, || async {
                rpc.call::<Value>("getblockchaininfo", json!([])).await.is_ok()
            })
            .await?;
        Ok(())
    }
}

/// The bitcoind to use: `BITCOIND_EXE`, else the first on PATH that is new enough, else the one `ops/setup`
/// built.
pub fn find() -> Result<PathBuf, BitcoindError> {
    if let Some(path) = env::var_os("BITCOIND_EXE").map(PathBuf::from) {
        return if is_usable(&path) { Ok(path) } else { Err(BitcoindError::Unusable { path }) };
    }
    let on_path = env::var_os("PATH").unwrap_or_default();
    if let Some(path) =
        env::split_paths(&on_path).map(|dir| dir.join("bitcoind")).find(|path| is_usable(path))
    {
        return Ok(path);
    }
    let cached = cached_path()?;
    if is_usable(&cached) { Ok(cached) } else { Err(BitcoindError::NotFound { cache: cached }) }
}

/// Where `ops/setup` puts the bitcoind built from exactly these sources with exactly these options
/// (`bitcoind_cached_path` in `ops/lib.sh` is the same rule).
fn cached_path() -> Result<PathBuf, BitcoindError> {
    const LOCK: &str = include_str!("../../bitcoind/Cargo.lock");
    const OPTIONS: &[u8] = include_bytes!("../../bitcoind/options");

    let checksum = LOCK
        .split("[[package]]")
        .find(|package| package.contains("name = \"libbitcoinkernel-sys\""))
        .and_then(|package| package.split("checksum = \"").nth(1))
        .and_then(|rest| rest.get(..12))
        .unwrap_or_default();
    let options = hex::encode(Sha256::digest(OPTIONS));
    let folder = format!("bitcoind-{checksum}-{}", options.get(..12).unwrap_or_default());
    Ok(cache_dir().ok_or(BitcoindError::NoCache)?.join(folder).join("bitcoind"))
}

/// `${XDG_CACHE_HOME:-$HOME/.cache}/spark-devnet`
fn cache_dir() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("spark-devnet"))
}

fn is_usable(path: &Path) -> bool {
    if !path.is_file() {
        return false;
    }
    // Even to tell its version it makes its data directory and writes settings there: not in anyone's home.
    let Ok(scratch) = tempfile::tempdir() else { return false };
    let mut datadir = std::ffi::OsString::from("-datadir=");
    datadir.push(scratch.path());
    let version = Command::new(path).args(["-regtest", "-nosettings", "-version"]).arg(datadir).output();
    let Ok(output) = version else { return false };
    let text = String::from_utf8_lossy(&output.stdout);
    major_version(&text).is_some_and(|major| major >= MIN_MAJOR_VERSION)
}

fn major_version(text: &str) -> Option<u32> {
    text.lines().next()?.split("version v").nth(1)?.split('.').next()?.parse().ok()
}

fn write_config(dir: &Path, port: &Port, password: &str) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;

    fs::create_dir_all(dir)?;
    let port = port.number();
    let mut text = String::from("[regtest]\n");
    for line in [
        "server=1",
        "txindex=1",
        // Only RPC listens, and nothing is looked for outside.
        "listen=0",
        "connect=0",
        "dnsseed=0",
        "natpmp=0",
        "rpcbind=127.0.0.1",
        "rpcallowip=127.0.0.1",
        // Every `waitfornewblock` occupies a thread.
        "rpcthreads=32",
        "rpcworkqueue=256",
        // The policy of the real network.
        "acceptnonstdtxn=0",
        // Standard output goes to our log file.
        "printtoconsole=1",
        "debuglogfile=0",
        "dbcache=64",
    ] {
        text.push_str(line);
        text.push('\n');
    }
    let _ = write!(text, "rpcport={port}\nrpcuser={USER}\nrpcpassword={password}\n");
    let path = dir.join("bitcoin.conf");
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

fn random_password() -> String {
    let mut bytes = [0u8; 16];
    rand::thread_rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

/// A P2WPKH address whose key nobody keeps.
fn fresh_address() -> Option<Address> {
    let mut bytes = [0u8; 32];
    rand::thread_rng().fill_bytes(&mut bytes);
    let key = SecretKey::from_slice(&bytes).ok()?;
    let public = CompressedPublicKey(key.public_key(&Secp256k1::new()));
    Some(Address::p2wpkh(&public, Network::Regtest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_version_lines() {
        assert_eq!(major_version("Bitcoin Core daemon version v31.99.0 bitcoind\nCopyright"), Some(31));
        assert_eq!(major_version("Bitcoin Core version v29.0.0"), Some(29));
        assert_eq!(major_version("something else"), None);
    }

    #[test]
    fn the_cache_is_keyed_by_checksum_and_options() {
        let path = cached_path().unwrap();
        let folder = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let [name, checksum, options] = folder.split('-').collect::<Vec<_>>()[..] else { panic!("{folder}") };
        assert_eq!((name, checksum.len(), options.len()), ("bitcoind", 12, 12));
    }
}
