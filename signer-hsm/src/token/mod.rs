//! The PKCS#11 token. Nothing else in the program speaks to the HSM.
//!
//! Two tokens per signer: one nearly empty for the roots, one for the identity and federation keys. One
//! thread changes objects; signing and derivation use a pool of sessions, and a session that saw an error
//! is dropped.

mod ceremony;
mod config;
pub mod conformance;
mod error;
mod inventory;
mod keys;
mod link;
mod module;
mod objects;
mod observed;
mod pin;
mod profile;
mod roots;
mod view;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use bitcoin::secp256k1::{PublicKey, ecdsa};
use spark_signer::vault::{RootId, Token, TokenError};
use zeroize::Zeroizing;

pub use ceremony::{IdentitySource, generate_keys};
pub use config::{PinSource, Security, TokenConfig, TokenRef};
pub use inventory::{Inventory, LibraryInfo, ObjectInfo, Purpose, TokenInfo, bears_attributes, slots};
pub use keys::IdentityMethod;
pub use observed::Observed;
pub use profile::{
    AtMost, DeleteClaim, EcdhExtract, Facts, LogSignature, Mark, Marks, Policies, Profile, RootMechanism,
};
pub use view::RootsView;

use keys::Keys;
use link::Link;
use module::Module;

/// An HSM behind PKCS#11.
pub struct Pkcs11Token {
    module: Arc<Module>,
    profile: Profile,
    roots: Arc<Link>,
    keys: Keys,
    files: Option<File>,
    not_destroyed: Mutex<BTreeSet<RootId>>,
}

impl fmt::Debug for Pkcs11Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pkcs11Token")
            .field("profile", &self.profile.name)
            .field("identity", &self.keys.identity)
            .finish_non_exhaustive()
    }
}

impl Pkcs11Token {
    /// Loads the module (once per process), logs in to both tokens, finds the keys and asserts their
    /// attributes. Makes no object: that is the ceremony's business.
    pub fn open(config: &TokenConfig) -> Result<Self, TokenError> {
        let module = Module::load(&config.module)?;
        let roots = Link::new(&module, &config.roots, config.security)?;
        let keys = Link::new(&module, &config.keys, config.security)?;
        roots::assert_listable(&roots)?;
        let keys = Keys::find(keys, config.profile, config.security)?;
        let files = config.profile.open_files()?;
        Ok(Self { module, profile: config.profile, roots, keys, files, not_destroyed: Mutex::default() })
    }

    /// Starts the library anew after the device was away: closes every session, finalises, initialises and
    /// logs in again. Waits for calls under way; no call fails half-way because of it.
    pub fn reconnect(&self) -> Result<(), TokenError> {
        self.module.reinitialize()?;
        // A fresh start shows objects as they are, so a destruction may be tried again.
        self.sticky().clear();
        roots::assert_listable(&self.roots)?;
        self.keys.check()
    }

    /// What the token is and what may be claimed of it.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// How the identity key came into the token.
    pub fn identity_method(&self) -> IdentityMethod {
        self.keys.method
    }

    /// Whether both tokens answer: lists the roots and signs with the federation key.
    pub fn probe(&self) -> Result<(), TokenError> {
        roots::assert_listable(&self.roots)?;
        self.keys.sign_federation(keys::PROBE).map(|_| ())
    }

    fn sticky(&self) -> std::sync::MutexGuard<'_, BTreeSet<RootId>> {
        self.not_destroyed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Token for Pkcs11Token {
    fn create_root(&self, root: &RootId) -> Result<(), TokenError> {
        roots::create(&self.roots, &self.profile, root)
    }

    fn roots(&self) -> Result<Vec<RootId>, TokenError> {
        roots::list(&self.roots)
    }

    fn derive(&self, root: &RootId, context: &[u8]) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        roots::derive(&self.roots, &self.profile, root, context)
    }

    fn destroy_root(&self, root: &RootId) -> Result<(), TokenError> {
        if self.sticky().contains(root) {
            return Err(TokenError::NotDestroyed(*root));
        }
        let result = roots::destroy(&self.roots, root);
        if matches!(result, Err(TokenError::NotDestroyed(_))) {
            self.sticky().insert(*root);
        }
        result
    }

    fn sync(&self) -> Result<(), TokenError> {
        let Some(files) = &self.files else { return Ok(()) };
        rustix::fs::syncfs(files).map_err(|error| TokenError::Unavailable(format!("sync: {error}")))
    }

    fn identity_public_key(&self) -> PublicKey {
        self.keys.identity
    }

    fn sign_identity(&self, digest: &[u8; 32]) -> Result<ecdsa::Signature, TokenError> {
        self.keys.sign_identity(digest)
    }

    fn identity_ecdh_x(&self, point: &PublicKey) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        self.keys.ecdh_x(point)
    }

    fn federation_public_key(&self) -> [u8; 32] {
        self.keys.federation.to_bytes()
    }

    fn sign_federation(&self, message: &[u8]) -> Result<[u8; 64], TokenError> {
        self.keys.sign_federation(message)
    }
}
