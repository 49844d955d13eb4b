//! Throw-away SoftHSM tokens for tests and development networks.
//!
//! SoftHSM finds its tokens through a configuration file named by `SOFTHSM2_CONF`, read when the module is
//! initialised. A [`TokenDir`] is such a file with its token directory, on a memory file system where
//! there is one. Set [`TokenDir::env`] for each process that loads the module.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rand::RngCore as _;

pub mod kryoptic;

/// Environment variable that SoftHSM reads.
pub const CONF_VARIABLE: &str = "SOFTHSM2_CONF";

const ISOLATED: &str = "SPARK_SOFTHSM_ISOLATED";
const MEMORY: &str = "/dev/shm";
const MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
];

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SoftHsmError {
    /// SoftHSM is not installed.
    #[error("SoftHSM is not installed (Debian package softhsm2)")]
    NotInstalled,
    /// A file could not be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// A configuration without `directories.tokendir`.
    #[error("{0} names no token directory")]
    Configuration(PathBuf),
    /// A test in its own process failed.
    #[error("test in its own process failed:\n{0}")]
    Test(String),
    /// `softhsm2-util` failed.
    #[error("softhsm2-util failed: {0}")]
    Tool(String),
    /// The second token's library is not in the cache.
    #[error("kryoptic is not at {0}; run ops/setup")]
    NoKryoptic(PathBuf),
    /// The process that initialises a kryoptic token must have been started with its configuration.
    #[error("KRYOPTIC_CONF must name {0} in the environment of this process")]
    Environment(PathBuf),
    /// A PKCS#11 call failed.
    #[error("kryoptic: {0}")]
    Pkcs11(#[from] cryptoki::error::Error),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> SoftHsmError {
    let path = path.to_owned();
    move |error| SoftHsmError::Io { path, error }
}

/// A SoftHSM configuration and its token directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenDir {
    conf: PathBuf,
    tokens: PathBuf,
}

impl TokenDir {
    /// Writes `dir/softhsm2.conf` and makes an empty token directory. One that is there already is kept.
    pub fn create(dir: &Path) -> Result<Self, SoftHsmError> {
        fs::create_dir_all(dir).map_err(at(dir))?;
        let dir = dir.canonicalize().map_err(at(dir))?;
        let conf = dir.join("softhsm2.conf");
        let _guard = lock(&dir)?;
        if conf.exists() {
            let existing = Self::open(&conf)?;
            // A memory file system forgets at reboot; the configuration does not.
            fs::create_dir_all(&existing.tokens).map_err(at(&existing.tokens))?;
            return Ok(existing);
        }
        let tokens = memory_dir("softhsm", &dir.join("tokens"))?;
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n",
            tokens.display()
        );
        let draft = dir.join("softhsm2.conf.new");
        fs::write(&draft, text).map_err(at(&draft))?;
        fs::rename(&draft, &conf).map_err(at(&conf))?;
        Ok(Self { conf, tokens })
    }

    /// Reads an existing configuration file.
    pub fn open(conf: &Path) -> Result<Self, SoftHsmError> {
        let text = fs::read_to_string(conf).map_err(at(conf))?;
        let tokens = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .find(|(key, _)| key.trim() == "directories.tokendir")
            .map(|(_, value)| PathBuf::from(value.trim()));
        let tokens = tokens.ok_or_else(|| SoftHsmError::Configuration(conf.to_owned()))?;
        Ok(Self { conf: conf.to_owned(), tokens })
    }

    /// Initialises a new token in a free slot. `label` must be unique in this directory.
    pub fn init_token(&self, label: &str, so_pin: &str, pin: &str) -> Result<(), SoftHsmError> {
        module_path()?;
        let _guard = lock(self.conf.parent().unwrap_or(Path::new(".")))?;
        let output = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", label, "--so-pin", so_pin, "--pin", pin])
            .env(CONF_VARIABLE, &self.conf)
            .output()
            .map_err(at(Path::new("softhsm2-util")))?;
        if output.status.success() {
            Ok(())
        } else {
            Err(SoftHsmError::Tool(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
        }
    }

    /// The configuration file.
    pub fn conf_path(&self) -> &Path {
        &self.conf
    }

    /// Where the objects lie.
    pub fn tokens_path(&self) -> &Path {
        &self.tokens
    }

    /// What a process that loads the module needs in its environment.
    pub fn env(&self) -> (&'static str, &Path) {
        (CONF_VARIABLE, &self.conf)
    }

    /// Removes tokens and configuration.
    pub fn destroy(self) -> Result<(), SoftHsmError> {
        match fs::remove_dir_all(&self.tokens) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&self.tokens)(error)),
            _ => {}
        }
        fs::remove_file(&self.conf).map_err(at(&self.conf))
    }
}

/// The PKCS#11 library.
pub fn module_path() -> Result<&'static Path, SoftHsmError> {
    MODULES.into_iter().map(Path::new).find(|path| path.exists()).ok_or(SoftHsmError::NotInstalled)
}

/// Runs a test's body in a process of its own with an empty token directory: a PKCS#11 module is
/// initialised once per process, and its configuration is read then. `test` is the test's full name.
pub fn isolated(test: &str, body: impl FnOnce(&TokenDir)) -> Result<(), SoftHsmError> {
    if std::env::var_os(ISOLATED).is_some_and(|name| name == test) {
        let conf = std::env::var_os(CONF_VARIABLE).map(PathBuf::from).unwrap_or_default();
        body(&TokenDir::open(&conf)?);
        return Ok(());
    }
    let folder = tempfile::tempdir().map_err(at(Path::new("temporary directory")))?;
    let dir = TokenDir::create(folder.path())?;
    let result = run_test(test, &dir, &[]);
    dir.destroy()?;
    let output = result?;
    passed(&output)
}

/// Whether the one test of a [`run_test`] ran and passed.
pub fn passed(output: &Output) -> Result<(), SoftHsmError> {
    let text = String::from_utf8_lossy(&output.stdout);
    // A misspelt name runs no test and succeeds.
    if output.status.success() && text.contains("1 passed") {
        Ok(())
    } else {
        Err(SoftHsmError::Test(format!(
            "{}\n{text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )))
    }
}

/// Runs the body of an [`isolated`] test in another process with the same tokens, as a test that kills
/// processes needs it.
pub fn run_test(test: &str, dir: &TokenDir, environment: &[(&str, &str)]) -> Result<Output, SoftHsmError> {
    let program = std::env::current_exe().map_err(at(Path::new("this program")))?;
    Command::new(&program)
        .args([test, "--exact", "--nocapture"])
        .envs(environment.iter().copied())
        .env(ISOLATED, test)
        .env(CONF_VARIABLE, dir.conf_path())
        .output()
        .map_err(at(&program))
}

/// A fresh private folder in memory, or `fallback` where there is no memory file system.
fn memory_dir(what: &str, fallback: &Path) -> Result<PathBuf, SoftHsmError> {
    let path = if Path::new(MEMORY).is_dir() {
        Path::new(MEMORY).join(format!("spark-{what}-{:016x}", rand::thread_rng().next_u64()))
    } else {
        fallback.to_owned()
    };
    private_dir(&path)?;
    Ok(path)
}

fn private_dir(path: &Path) -> Result<(), SoftHsmError> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))
}

/// Several processes may initialise tokens in one directory.
fn lock(dir: &Path) -> Result<File, SoftHsmError> {
    let path = dir.join("softhsm2.lock");
    let file = OpenOptions::new().create(true).append(true).open(&path).map_err(at(&path))?;
    file.lock().map_err(at(&path))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let dir = TokenDir::create(folder.path()).unwrap();
        assert_eq!(TokenDir::create(folder.path()).unwrap(), dir);
        assert_eq!(TokenDir::open(dir.conf_path()).unwrap(), dir);
        dir.init_token("one", "12345678", "1234").unwrap();
        dir.init_token("two", "12345678", "1234").unwrap();
        assert_eq!(fs::read_dir(dir.tokens_path()).unwrap().count(), 2);
        assert!(matches!(dir.init_token("three", "1", "1"), Err(SoftHsmError::Tool(_))));
        let tokens = dir.tokens_path().to_owned();
        dir.destroy().unwrap();
        assert!(!tokens.exists());
    }
}
