//! A PKCS#11 library, loaded and initialised once per process.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{
    Arc, LazyLock, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError, Weak,
};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11};
use cryptoki::error::{Error, RvError};
use spark_signer::vault::TokenError;

use super::error::token_error;
use super::link::Link;

/// Longest wait for those inside before a library is started anew.
const PATIENCE: Duration = Duration::from_secs(5);

static MODULES: LazyLock<Mutex<HashMap<PathBuf, Arc<Module>>>> = LazyLock::new(Mutex::default);

/// A loaded library. It is never finalised at exit: finalising while a thread is inside crashes some.
pub(super) struct Module {
    /// Callers hold it shared for a whole operation; [`Module::reinitialize`] holds it alone.
    context: RwLock<Pkcs11>,
    links: Mutex<Vec<Weak<Link>>>,
    /// Calls inside that were given up; true once they have ended.
    hanging: Mutex<Vec<Arc<AtomicBool>>>,
}

impl Module {
    pub(super) fn load(path: &Path) -> Result<Arc<Self>, TokenError> {
        let path = path
            .canonicalize()
            .map_err(|error| TokenError::Failed(format!("PKCS#11 module {}: {error}", path.display())))?;
        let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(&path) {
            return Ok(Arc::clone(module));
        }
        let context = Pkcs11::new(&path).map_err(token_error)?;
        initialize(&context)?;
        let module = Arc::new(Self {
            context: RwLock::new(context),
            links: Mutex::default(),
            hanging: Mutex::default(),
        });
        modules.insert(path, Arc::clone(&module));
        Ok(module)
    }

    /// The library, for one operation. Not to be taken twice by one thread.
    pub(super) fn context(&self) -> RwLockReadGuard<'_, Pkcs11> {
        self.context.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn register(&self, link: &Arc<Link>) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|link| link.strong_count() > 0);
        links.push(Arc::downgrade(link));
    }

    /// A call inside does not come back.
    pub(super) fn note_hang(&self, ended: Arc<AtomicBool>) {
        self.hanging.lock().unwrap_or_else(PoisonError::into_inner).push(ended);
    }

    /// Whether one that was given up is still inside: who waits for it keeps all others out.
    fn hangs(&self) -> bool {
        let mut hanging = self.hanging.lock().unwrap_or_else(PoisonError::into_inner);
        hanging.retain(|ended| !ended.load(Ordering::SeqCst));
        !hanging.is_empty()
    }

    /// The library with nobody inside. A call that hangs and was not given up yet must not keep all others out, so this
    /// does not queue for it.
    fn alone(&self) -> Result<RwLockWriteGuard<'_, Pkcs11>, TokenError> {
        let since = Instant::now();
        loop {
            match self.context.try_write() {
                Ok(context) => return Ok(context),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if !self.hangs() && since.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(TokenError::Unavailable("the library is in use".into()));
                }
            }
        }
    }

    /// Waits until nobody is inside, closes all sessions, finalises and initialises. Sessions go first:
    /// one closed later could hit a new session of the same number.
    pub(super) fn reinitialize(&self) -> Result<(), TokenError> {
        if self.hangs() {
            return Err(TokenError::Unavailable("a call into the library does not come back".into()));
        }
        let context = self.alone()?;
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        for link in links.iter().filter_map(Weak::upgrade) {
            link.reset();
        }
        match context.clone().finalize() {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiNotInitialized, Function::Finalize)) => {}
            Err(error) => return Err(token_error(error)),
        }
        initialize(&context)
    }
}

fn initialize(context: &Pkcs11) -> Result<(), TokenError> {
    match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, Function::Initialize)) => Ok(()),
        Err(error) => Err(token_error(error)),
    }
}
