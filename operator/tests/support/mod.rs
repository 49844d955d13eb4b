//! A private regtest bitcoind.

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use bitcoin::Network;
use spark_operator::{
    chain::BitcoindSource,
    config::{Bitcoind, BitcoindAuth},
};

pub(crate) struct Node {
    folder: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
}

/// `BITCOIND_EXE`, then PATH, then the development network's cache.
fn executable() -> PathBuf {
    if let Some(path) = env::var_os("BITCOIND_EXE") {
        return path.into();
    }
    let on_path = env::var_os("PATH")
        .into_iter()
        .flat_map(|path| env::split_paths(&path).collect::<Vec<_>>())
        .map(|folder| folder.join("bitcoind"));
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(&env::var_os("HOME").expect("HOME is set")).join(".cache"));
    let cached = fs::read_dir(cache.join("spark-devnet"))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("bitcoind-"))
        .map(|entry| entry.path().join("bitcoind"));
    on_path.chain(cached).find(|path| path.is_file()).expect("no bitcoind; run ops/setup")
}

impl Node {
    pub(crate) fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut node = Self { folder: tempfile::tempdir().unwrap(), port, process: None };
        node.spawn();
        node
    }

    fn spawn(&mut self) {
        let process = Command::new(executable())
            .args(["-regtest", "-txindex", "-listen=0", "-server", "-printtoconsole=0"])
            .arg(format!("-datadir={}", self.folder.path().display()))
            .arg(format!("-rpcport={}", self.port))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.process = Some(process);
    }

    pub(crate) fn config(&self) -> Bitcoind {
        Bitcoind {
            url: format!("http://127.0.0.1:{}", self.port),
            auth: BitcoindAuth::Cookie(self.folder.path().join("regtest/.cookie")),
        }
    }

    /// Waits until it answers.
    pub(crate) async fn connect(&self) -> BitcoindSource {
        let started = Instant::now();
        loop {
            match BitcoindSource::connect(&self.config(), Network::Regtest).await {
                Ok(source) => return source,
                Err(error) => assert!(started.elapsed() < Duration::from_secs(60), "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) fn restart(&mut self) {
        self.stop();
        self.spawn();
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // SIGTERM: a clean end, so that the block index survives.
            let pid = process.id().to_string();
            let _asked = Command::new("kill").arg(&pid).status();
            for _ in 0..100 {
                if matches!(process.try_wait(), Ok(Some(_))) {
                    return;
                }
                thread::sleep(Duration::from_millis(100));
            }
            let _killed = process.kill();
            let _reaped = process.wait();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}
