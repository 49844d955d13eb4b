//! The keys token as the signer uses it: apart from the roots, and never waited for without end.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

use bitcoin::secp256k1::{PublicKey, ecdsa};
use spark_rules::federation_key::FederationKey;
use spark_signer::vault::{Token, TokenError};
use zeroize::Zeroizing;

use super::{
    apart::{Apart, DEADLINE, Hangs},
    config::{Security, TokenConfig},
    inventory::TokenInfo,
    keys::{IdentityMethod, Keys, PROBE},
    link::Link,
    module::Module,
    separate,
};

/// Calls at the same time. The engine makes one after the other.
const THREADS: usize = 4;
/// Calls that may wait.
const WAITING: usize = 64;
/// Least time between two starts of its library for it.
const ANEW: Duration = Duration::from_secs(30);

/// The token that holds the identity and federation keys.
pub struct KeysToken {
    apart: Apart<Inner>,
}

struct Inner {
    module: Arc<Module>,
    keys: Keys,
    info: TokenInfo,
    /// When the library was started anew for this token.
    started: Mutex<Option<Instant>>,
}

impl Hangs for Inner {
    fn note_hang(&self, ended: Arc<AtomicBool>) {
        self.module.note_hang(ended);
    }
}

impl Inner {
    fn revive(&self) -> Result<(), TokenError> {
        match self.keys.check() {
            Err(error @ (TokenError::PinRefused | TokenError::PinLocked)) => return Err(error),
            Err(_) => self.keys.reset(),
            Ok(()) => return Ok(()),
        }
        let result = self.keys.check();
        let mut last = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        if result.is_ok() || last.is_some_and(|last| last.elapsed() < ANEW) {
            return result;
        }
        *last = Some(Instant::now());
        self.module.reinitialize()?;
        self.keys.check()
    }
}

impl fmt::Debug for KeysToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeysToken").field("identity", &self.keys().identity).finish_non_exhaustive()
    }
}

impl KeysToken {
    /// Loads the module (once per process), logs in, finds both keys and asserts their attributes. Makes no object:
    /// that is the ceremony's business. In production no device with roots is this token.
    pub fn open(config: &TokenConfig) -> Result<Self, TokenError> {
        let module = Module::load(&config.keys.module)?;
        let link = Link::new(&module, &config.keys.token, config.security)?;
        let info = link.info()?;
        if config.security == Security::Production {
            separate::assert_apart(&link, &info, &config.devices)?;
        }
        let keys = Keys::find(link, config.keys.profile, config.security)?;
        let inner = Arc::new(Inner { module, keys, info, started: Mutex::default() });
        Ok(Self { apart: Apart::start(inner, THREADS, WAITING)? })
    }

    fn keys(&self) -> &Keys {
        &self.apart.inner().keys
    }

    /// What the token said of itself when it was opened.
    pub fn info(&self) -> &TokenInfo {
        &self.apart.inner().info
    }

    /// How the identity key came into the token.
    pub fn identity_method(&self) -> IdentityMethod {
        self.keys().method
    }

    /// Whether it answers: signs with the federation key.
    pub fn probe(&self) -> Result<(), TokenError> {
        self.sign_federation(PROBE).map(drop)
    }

    /// For how long no thread has been left for calls, since each is inside one that does not come back. Nothing in this
    /// process can end such a call.
    pub fn stuck_for(&self) -> Option<Duration> {
        self.apart.stuck_for()
    }

    /// Whether both keys answer, if need be after the library was started anew, which is not done often: it closes the
    /// sessions of everything behind it.
    pub fn revive(&self) -> Result<(), TokenError> {
        self.apart.run(3 * DEADLINE, Inner::revive)
    }

    /// Starts the library anew at once, and checks both keys.
    pub(super) fn reconnect(&self) -> Result<(), TokenError> {
        self.apart.run(3 * DEADLINE, |inner| {
            inner.module.reinitialize()?;
            inner.keys.check()
        })
    }
}

impl Token for KeysToken {
    fn identity_public_key(&self) -> PublicKey {
        self.keys().identity
    }

    fn sign_identity(&self, digest: &[u8; 32]) -> Result<ecdsa::Signature, TokenError> {
        let digest = *digest;
        self.apart.call(move |inner| inner.keys.sign_identity(&digest))
    }

    fn identity_ecdh_x(&self, point: &PublicKey) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        let point = *point;
        self.apart.call_for_secret(move |inner| inner.keys.ecdh_x(&point))
    }

    fn federation_public_key(&self) -> FederationKey {
        self.keys().federation
    }

    fn sign_federation(&self, message: &[u8]) -> Result<[u8; 64], TokenError> {
        let message = message.to_vec();
        self.apart.call(move |inner| inner.keys.sign_federation(&message))
    }
}
