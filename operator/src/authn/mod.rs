//! Login: a signed challenge becomes a session (`spark_authn`).
//!
//! Sessions live in this process only: the authenticating key is drawn at start, so after a restart every
//! wallet logs in again. A session alone never moves value (D18).

mod challenge;
mod service;
mod session;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use challenge::challenge_nonce;
use hmac::{Hmac, Mac as _};
use moka::future::Cache;
use rand::{RngCore as _, rngs::OsRng};
use secp256k1::PublicKey;
pub use session::{Reader, Session, TokenState};
use sha2::Sha256;

/// A challenge must be answered within this time.
pub const CHALLENGE_TTL: Duration = Duration::from_secs(60);
/// How far a challenge may seem to come from the future, after a clock step.
const SKEW: Duration = Duration::from_secs(1);
/// Answered challenges remembered. Beyond it the oldest may be answered again, which gives nothing but another
/// session to the same key.
const ANSWERED: u64 = 200_000;

type HmacSha256 = Hmac<Sha256>;
type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Issues challenges and sessions. Clones share everything.
#[derive(Clone)]
pub struct Authn {
    operator: PublicKey,
    ttl: Duration,
    clock: Clock,
    /// Keyed; cloned per computation. Never printed.
    mac: HmacSha256,
    answered: Cache<[u8; 32], ()>,
}

impl fmt::Debug for Authn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authn")
            .field("operator", &self.operator)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

impl Authn {
    /// For the operator with this identity key; sessions last `ttl`.
    pub fn new(operator: PublicKey, ttl: Duration) -> Self {
        Self::with_clock(operator, ttl, SystemTime::now)
    }

    /// With another clock, for tests and for the clock hooks of the development network.
    pub fn with_clock(
        operator: PublicKey,
        ttl: Duration,
        clock: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Self {
        let mut key = [0; 64];
        OsRng.fill_bytes(&mut key);
        // 64 bytes are one block: this form of HMAC key cannot fail.
        let mac = HmacSha256::new(&key.into());
        let answered = Cache::builder().max_capacity(ANSWERED).time_to_live(CHALLENGE_TTL * 2).build();
        Self { operator, ttl, clock: Arc::new(clock), mac, answered }
    }

    /// Seconds since 1970.
    fn now(&self) -> u64 {
        (self.clock)().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
    }

    /// Separate purposes must never accept each other's tags.
    fn mac(&self, purpose: &[u8], message: &[u8]) -> HmacSha256 {
        self.mac.clone().chain_update(purpose).chain_update([0]).chain_update(message)
    }
}
