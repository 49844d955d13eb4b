//! One private PostgreSQL cluster, from the server programs that are installed.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::RngCore;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::ports::{Port, PortError};
use crate::process::{Process, ProcessError, Program};
use crate::user::{UnixUser, UserError};

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// After a kill the old backends may hold the shared memory a moment longer, and the server refuses to start.
const START_ATTEMPTS: usize = 20;
/// What we call, all from one folder.
const PROGRAMS: [&str; 6] = ["initdb", "postgres", "pg_isready", "createdb", "dropdb", "pg_dump"];
const SUPERUSER: &str = "spark";

#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error("no PostgreSQL server programs in PATH or /usr/lib/postgresql; run ops/setup")]
    NotFound,
    #[error("folder {path} cannot be prepared")]
    Folder { path: PathBuf, source: io::Error },
    #[error("{program} cannot be run")]
    Run { program: String, source: io::Error },
    #[error("{program} failed: {stderr}")]
    Failed { program: String, stderr: String },
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// How carefully the cluster writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// As in production: a committed transaction survives a power failure.
    #[default]
    Full,
    /// Survives `kill -9`, not a power failure. For tests that do not measure.
    ProcessOnly,
}

/// A running cluster. Killed when dropped.
#[derive(Debug)]
pub struct Cluster {
    programs: PathBuf,
    user: Option<UnixUser>,
    process: Process,
    port: Port,
    password: String,
    /// Sockets have paths of at most 107 bytes, so theirs lies apart from the state folder.
    sockets: TempDir,
}

impl Cluster {
    /// Makes a cluster in `dir`, which must not exist yet and whose parents others may traverse, and starts it.
    pub async fn create(dir: &Path, durability: Durability) -> Result<Self, PostgresError> {
        let programs = server_programs().ok_or(PostgresError::NotFound)?;
        let user = UnixUser::for_postgres()?;
        let own = |path: &Path| {
            user.as_ref()
                .map_or(Ok(()), |user| user.own(path))
                .map_err(|source| PostgresError::Folder { path: path.to_owned(), source })
        };
        let prepared = |path: &Path, source| PostgresError::Folder { path: path.to_owned(), source };

        fs::create_dir(dir).map_err(|source| prepared(dir, source))?;
        fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(|source| prepared(dir, source))?;
        own(dir)?;
        let sockets = tempfile::Builder::new()
            .prefix("spg-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in("/tmp")
            .map_err(|source| prepared(Path::new("/tmp"), source))?;
        own(sockets.path())?;

        let password = random_password();
        let password_file = dir.join("password");
        fs::write(&password_file, &password).map_err(|source| prepared(&password_file, source))?;
        own(&password_file)?;
        let data = dir.join("data");
        let mut initdb = as_user(&programs.join("initdb"), user.as_ref());
        initdb
            .args(["--username", SUPERUSER, "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"])
            .args(["--no-sync", "--no-instructions"])
            .arg("--pwfile")
            .arg(&password_file)
            .arg("--pgdata")
            .arg(&data)
            // It changes into its folder and must be allowed to come back.
            .current_dir(dir);
        run("initdb", initdb)?;
        fs::remove_file(&password_file).map_err(|source| prepared(&password_file, source))?;

        let port = Port::lease()?;
        let program = server(&programs, &data, sockets.path(), &port, durability, dir).user(user.clone());
        let mut cluster = Self { programs, user, process: Process::start(program)?, port, password, sockets };
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Makes an empty database and gives the URL to reach it over TCP.
    pub fn create_database(&self, name: &str) -> Result<String, PostgresError> {
        self.client("createdb", &["--template", "template0", name])?;
        Ok(self.url(name))
    }

    /// Makes a database that is a copy of another one, to which nobody may be connected.
    pub fn copy_database(&self, from: &str, to: &str) -> Result<String, PostgresError> {
        self.client("createdb", &["--template", from, to])?;
        Ok(self.url(to))
    }

    /// Drops a database, throwing out whoever is connected.
    pub fn drop_database(&self, name: &str) -> Result<(), PostgresError> {
        self.client("dropdb", &["--force", name])
    }

    /// Everything in a database as SQL text.
    pub fn dump(&self, name: &str) -> Result<Vec<u8>, PostgresError> {
        self.client_output("pg_dump", &[name])
    }

    /// `postgres://` URL of a database over TCP, with user and password.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{SUPERUSER}:{}@{}/{database}", self.password, self.port.address())
    }

    /// The folder with the Unix socket `.s.PGSQL.<port>`.
    pub fn socket_dir(&self) -> &Path {
        self.sockets.path()
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// For `pause`, `resume` and the log.
    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// `kill -9` of the server.
    pub fn kill(&mut self) -> Result<(), PostgresError> {
        Ok(self.process.kill()?)
    }

    /// Ends it in order (fast shutdown: open transactions are rolled back).
    pub async fn stop(&mut self) -> Result<(), PostgresError> {
        // To the server alone would be kinder, but its children ignore what the group is told.
        self.process.stop(Signal::INT, STOP_WITHIN).await?;
        Ok(())
    }

    /// Starts it again after [`Cluster::kill`] or [`Cluster::stop`]; recovery runs first.
    pub async fn restart(&mut self) -> Result<(), PostgresError> {
        self.process.restart()?;
        self.wait_ready().await
    }

    async fn wait_ready(&mut self) -> Result<(), PostgresError> {
        let pg_isready = self.programs.join("pg_isready");
        let port = self.port.number().to_string();
        let mut attempt = 1;
        loop {
            let ready = || {
                let mut asking = tokio::process::Command::new(&pg_isready);
                asking.args(["--quiet", "--host", "127.0.0.1", "--port", &port]);
                async move { asking.status().await.is_ok_and(|status| status.success()) }
            };
            match self.process.wait_ready(READY_WITHIN, ready).await {
                Ok(()) => return Ok(()),
                Err(ProcessError::Ended { .. }) if attempt < START_ATTEMPTS => {
                    attempt += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    self.process.restart()?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn client(&self, program: &str, args: &[&str]) -> Result<(), PostgresError> {
        self.client_output(program, args).map(drop)
    }

    fn client_output(&self, program: &str, args: &[&str]) -> Result<Vec<u8>, PostgresError> {
        let mut command = as_user(&self.programs.join(program), self.user.as_ref());
        command
            .args(["--host", "127.0.0.1", "--username", SUPERUSER, "--no-password"])
            .args(["--port", &self.port.number().to_string()])
            .args(args)
            .env("PGPASSWORD", &self.password)
            .current_dir("/");
        run(program, command)
    }
}

fn server(
    programs: &Path,
    data: &Path,
    sockets: &Path,
    port: &Port,
    durability: Durability,
    dir: &Path,
) -> Program {
    let fsync = match durability {
        Durability::Full => "on",
        Durability::ProcessOnly => "off",
    };
    let mut program =
        Program::new("postgres", programs.join("postgres"), dir.join("output.log")).arg("-D").arg(data);
    for setting in [
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={}", port.number()),
        format!("unix_socket_directories={}", sockets.display()),
        format!("fsync={fsync}"),
        // n operators with a pool each share this cluster.
        "max_connections=400".to_owned(),
        "shared_buffers=64MB".to_owned(),
        "jit=off".to_owned(),
    ] {
        program = program.arg("-c").arg(setting);
    }
    program
}

/// Folder of the newest installed server.
fn server_programs() -> Option<PathBuf> {
    // What is on PATH may be a link to one program alone; its neighbours lie where it points.
    let resolved = |folder: PathBuf| Some(folder.join("initdb").canonicalize().ok()?.parent()?.to_owned());
    let complete = |folder: &PathBuf| PROGRAMS.iter().all(|program| folder.join(program).is_file());
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(folder) = std::env::split_paths(&on_path).filter_map(resolved).find(complete) {
        return Some(folder);
    }
    // Debian keeps them out of PATH, one folder per major version.
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((version(&path)?, path.join("bin")))
        })
        .filter(|(_, folder)| complete(folder))
        .max()
        .map(|(_, folder)| folder)
}

fn as_user(executable: &Path, user: Option<&UnixUser>) -> Command {
    use std::os::unix::process::CommandExt;

    let mut command = Command::new(executable);
    if let Some(user) = user {
        // As root this also drops the supplementary groups.
        command.uid(user.uid).gid(user.gid);
    }
    command
}

fn run(program: &str, mut command: Command) -> Result<Vec<u8>, PostgresError> {
    let output =
        command.output().map_err(|source| PostgresError::Run { program: program.to_owned(), source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(PostgresError::Failed { program: program.to_owned(), stderr })
}

fn random_password() -> String {
    let mut bytes = [0u8; 16];
    rand::thread_rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}
