//! Throw-away tokens of kryoptic, the second software token.
//!
//! It keeps each token in an SQLite database and syncs it, answers with other errors than SoftHSM, and knows
//! no secp256k1 and no Ed25519: it can hold roots, not the keys. `ops/setup` builds its library from
//! `softhsm/kryoptic`, apart from ours. It finds its tokens through a file named by `KRYOPTIC_CONF`, read
//! when the module is initialised.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::Error;
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use sha2::{Digest as _, Sha256};

use crate::{CONF_VARIABLE as SOFTHSM_VARIABLE, SoftHsmError, TokenDir, at, lock, memory_dir};

/// Environment variable that kryoptic reads.
pub const CONF_VARIABLE: &str = "KRYOPTIC_CONF";
/// Environment variable that names the library where it is not in the cache.
pub const MODULE_VARIABLE: &str = "KRYOPTIC_MODULE";

const MANIFEST: &[u8] = include_bytes!("../kryoptic/Cargo.toml");
const LOCK: &[u8] = include_bytes!("../kryoptic/Cargo.lock");

/// The PKCS#11 library: `KRYOPTIC_MODULE`, or what `ops/setup` built from exactly these sources
/// (`kryoptic_cached_path` in `ops/lib.sh` is the same rule).
pub fn module_path() -> Result<PathBuf, SoftHsmError> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = set(MODULE_VARIABLE).unwrap_or_else(|| {
        let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        let key = hex::encode(Sha256::new().chain_update(MANIFEST).chain_update(LOCK).finalize());
        let folder = format!("kryoptic-{}", key.get(..12).unwrap_or_default());
        base.unwrap_or_default().join("spark-devnet").join(folder).join("libkryoptic_pkcs11.so")
    });
    if path.is_file() { Ok(path) } else { Err(SoftHsmError::NoKryoptic(path)) }
}

/// A kryoptic configuration and its databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KryopticDir {
    conf: PathBuf,
    databases: PathBuf,
}

impl KryopticDir {
    /// Writes `dir/kryoptic.conf` without slots and makes a folder for the databases.
    pub fn create(dir: &Path) -> Result<Self, SoftHsmError> {
        fs::create_dir_all(dir).map_err(at(dir))?;
        let dir = dir.canonicalize().map_err(at(dir))?;
        let databases = memory_dir("kryoptic", &dir.join("databases"))?;
        let conf = dir.join("kryoptic.conf");
        let text = format!("# {}\nslots = []\n", databases.display());
        fs::write(&conf, text).map_err(at(&conf))?;
        Ok(Self { conf, databases })
    }

    /// Reads a configuration that [`Self::create`] made.
    pub fn open(conf: &Path) -> Result<Self, SoftHsmError> {
        let text = fs::read_to_string(conf).map_err(at(conf))?;
        let databases = text.lines().next().and_then(|line| line.strip_prefix("# ")).map(PathBuf::from);
        let databases = databases.ok_or_else(|| SoftHsmError::Configuration(conf.to_owned()))?;
        Ok(Self { conf: conf.to_owned(), databases })
    }

    /// Initialises a new token in a new slot. This process must have been started with [`Self::env`] and must
    /// not have the module initialised: it is finalised again here.
    pub fn init_token(&self, label: &str, so_pin: &str, pin: &str) -> Result<(), SoftHsmError> {
        if std::env::var_os(CONF_VARIABLE).as_deref() != Some(OsStr::new(&self.conf)) {
            return Err(SoftHsmError::Environment(self.conf.clone()));
        }
        let _guard = lock(self.conf.parent().unwrap_or(Path::new(".")))?;
        let slot = self.add_slot()?;
        let module = Pkcs11::new(module_path()?)?;
        module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
        let result = init(&module, slot, label, so_pin, pin);
        module.finalize()?;
        Ok(result?)
    }

    /// Another empty database; returns the number of its slot.
    fn add_slot(&self) -> Result<u64, SoftHsmError> {
        let count = fs::read_dir(&self.databases)
            .map_err(at(&self.databases))?
            .filter_map(Result::ok)
            .filter(|entry| entry.path().extension() == Some(OsStr::new("sql")))
            .count();
        let mut text = format!("# {}\n", self.databases.display());
        for slot in 0..=count {
            let database = self.databases.join(format!("{slot}.sql"));
            // Writing to a string does not fail.
            let _ = write!(
                text,
                "[[slots]]\nslot = {slot}\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n",
                database.display()
            );
        }
        fs::write(&self.conf, text).map_err(at(&self.conf))?;
        Ok(u64::try_from(count).unwrap_or(u64::MAX))
    }

    /// The configuration file.
    pub fn conf_path(&self) -> &Path {
        &self.conf
    }

    /// Where the databases lie.
    pub fn databases_path(&self) -> &Path {
        &self.databases
    }

    /// What a process that loads the module needs in its environment.
    pub fn env(&self) -> (&'static str, &Path) {
        (CONF_VARIABLE, &self.conf)
    }

    /// Removes databases and configuration.
    pub fn destroy(self) -> Result<(), SoftHsmError> {
        match fs::remove_dir_all(&self.databases) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(at(&self.databases)(error));
            }
            _ => {}
        }
        fs::remove_file(&self.conf).map_err(at(&self.conf))
    }
}

fn init(module: &Pkcs11, slot: u64, label: &str, so_pin: &str, pin: &str) -> Result<(), Error> {
    let slot =
        module.get_all_slots()?.into_iter().find(|found| found.id() == slot).ok_or(Error::InvalidValue)?;
    let so_pin = AuthPin::from(so_pin);
    module.init_token(slot, &so_pin, label)?;
    let session = module.open_rw_session(slot)?;
    session.login(UserType::So, Some(&so_pin))?;
    session.init_pin(&AuthPin::from(pin))
}

/// Like [`crate::isolated`], with an empty folder of each kind of token.
pub fn isolated(test: &str, body: impl FnOnce(&TokenDir, &KryopticDir)) -> Result<(), SoftHsmError> {
    if std::env::var_os(crate::ISOLATED).is_some_and(|name| name == test) {
        let conf = |name| std::env::var_os(name).map(PathBuf::from).unwrap_or_default();
        body(&TokenDir::open(&conf(SOFTHSM_VARIABLE))?, &KryopticDir::open(&conf(CONF_VARIABLE))?);
        return Ok(());
    }
    module_path()?;
    let folder = tempfile::tempdir().map_err(at(Path::new("temporary directory")))?;
    let softhsm = TokenDir::create(folder.path())?;
    let kryoptic = KryopticDir::create(folder.path())?;
    let conf = kryoptic.conf_path().to_string_lossy().into_owned();
    let result = crate::run_test(test, &softhsm, &[(CONF_VARIABLE, &conf)]);
    kryoptic.destroy()?;
    softhsm.destroy()?;
    crate::passed(&result?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_initialised_and_listed() {
        isolated("kryoptic::tests::tokens_are_initialised_and_listed", |_, dir| {
            dir.init_token("one", "12345678", "123456").unwrap();
            dir.init_token("two", "12345678", "123456").unwrap();
            assert_eq!(KryopticDir::open(dir.conf_path()).unwrap(), *dir);
            let module = Pkcs11::new(module_path().unwrap()).unwrap();
            module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
            let slots = module.get_slots_with_initialized_token().unwrap();
            let labels: Vec<_> =
                slots.iter().map(|slot| module.get_token_info(*slot).unwrap().label().to_owned()).collect();
            assert_eq!(labels, ["one", "two"]);
            let session = module.open_rw_session(slots[1]).unwrap();
            session.login(UserType::User, Some(&AuthPin::from("123456"))).unwrap();
        })
        .unwrap();
    }

    #[test]
    fn another_process_would_initialise_another_token() {
        let folder = tempfile::tempdir().unwrap();
        let dir = KryopticDir::create(folder.path()).unwrap();
        assert!(matches!(dir.init_token("one", "1", "1"), Err(SoftHsmError::Environment(_))));
        dir.destroy().unwrap();
    }
}
