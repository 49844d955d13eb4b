//! A private Postgres cluster per test process, from the installed server binaries; one database per test.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use sqlx::{Connection as _, PgConnection};

use super::Db;

static CLUSTER: LazyLock<Cluster> = LazyLock::new(Cluster::start);
static NEXT: AtomicU32 = AtomicU32::new(0);

struct Cluster {
    socket_dir: PathBuf,
    // The watcher's standard input: it stops the server when this process ends, however it ends.
    _watcher: Child,
    _server: Child,
}

fn bin() -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL server is installed")
        .filter_map(|e| Some(e.ok()?.path().join("bin")))
        .filter(|p| p.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().expect("initdb is installed")
}

/// Postgres refuses root: as root, run it as `postgres` or `nobody`.
fn account() -> Option<(String, u32)> {
    let uid = fs::metadata("/proc/self").ok().map(|m| std::os::unix::fs::MetadataExt::uid(&m))?;
    if uid != 0 {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").expect("passwd");
    ["postgres", "nobody"].iter().find_map(|name| {
        let line = passwd.lines().find(|l| l.split(':').next() == Some(name))?;
        Some(((*name).to_owned(), line.split(':').nth(2)?.parse().ok()?))
    })
}

fn run_as(account: Option<&(String, u32)>, program: &Path) -> Command {
    let mut command = match account {
        Some((name, _)) => {
            let mut c = Command::new("setpriv");
            c.args(["--reuid", name, "--clear-groups", "--regid", "nogroup", "--"]).arg(program);
            c
        }
        None => Command::new(program),
    };
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    command
}

impl Cluster {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("spg").tempdir_in("/tmp").expect("tempdir").keep();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("chmod");
        let account = account();
        if let Some((_, uid)) = &account {
            chown(&dir, Some(*uid), None).expect("chown");
        }
        let (bin, data) = (bin(), dir.join("d"));
        let status = run_as(account.as_ref(), &bin.join("initdb"))
            .args(["--no-sync", "-A", "trust", "-U", "spark", "-E", "UTF8", "--locale", "C", "-D"])
            .arg(&data)
            .status()
            .expect("initdb runs");
        assert!(status.success(), "initdb");
        let server = run_as(account.as_ref(), &bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(&dir)
            .args([
                "-c",
                "listen_addresses=",
                "-c",
                "max_connections=300",
                "-c",
                "fsync=off",
                "-c",
                "log_min_messages=fatal",
            ])
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres runs");
        let watcher = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("cat >/dev/null; kill -INT {}; sleep 1; rm -rf {}", server.id(), dir.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("watcher runs");
        let socket = dir.join(".s.PGSQL.5432");
        for _ in 0..600 {
            if socket.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { socket_dir: dir, _watcher: watcher, _server: server }
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://spark@localhost/{database}?host={}", self.socket_dir.display())
    }
}

/// A fresh, migrated database.
pub(crate) async fn database() -> Db {
    let cluster = tokio::task::spawn_blocking(|| &*CLUSTER).await.expect("cluster");
    let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut last = None;
    for _ in 0..100 {
        match PgConnection::connect(&cluster.url("postgres")).await {
            Ok(mut admin) => {
                sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
                    .execute(&mut admin)
                    .await
                    .expect("create database");
                return Db::connect(&cluster.url(&name), 45, Duration::from_secs(30))
                    .await
                    .expect("migrated");
            }
            Err(e) => last = Some(e),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no database: {last:?}");
}
