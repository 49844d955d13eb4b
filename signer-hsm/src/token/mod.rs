//! The PKCS#11 token. Nothing else in the program speaks to the HSM.
//!
//! Two kinds of token per signer: devices for roots, nearly empty, any number, and one for the identity, federation and
//! TLS keys. One thread changes objects; signing and derivation use a pool of sessions, and a session that saw an error
//! is dropped. What serves asks each token over threads of its own, with a deadline.

mod apart;
mod ceremony;
mod config;
pub mod conformance;
mod device;
mod error;
mod inventory;
mod kdf;
mod keys;
mod link;
mod module;
mod objects;
mod observed;
mod pin;
mod profile;
mod roots;
mod separate;
mod signer_keys;
mod tls;
mod view;

use std::sync::Arc;

use bitcoin::secp256k1::{PublicKey, ecdsa};
use spark_rules::federation_key::FederationKey;
use spark_signer::vault::{RootId, RootToken, Token, TokenError};
use zeroize::Zeroizing;

pub use apart::Apart;
pub use ceremony::{IdentitySource, generate_keys, prepare_device};
pub use config::{DeviceConfig, KeysConfig, PinSource, Security, TokenConfig, TokenRef};
pub use device::{LoadError, RootDevice};
pub use inventory::{
    DeviceInventory, Inventory, LibraryInfo, ObjectInfo, Purpose, TokenInfo, bears_attributes, slots,
};
pub use keys::{IdentityMethod, federation_key};
pub use observed::Observed;
pub use profile::{
    AtMost, DeleteClaim, EcdhExtract, Facts, LogSignature, Mark, Marks, Policies, Profile, RootMechanism,
};
pub use signer_keys::KeysToken;
pub use tls::{TlsKey, TlsKeys};
pub use view::RootsView;

use module::Module;

/// Loads a library, once per process, so that devices behind it can be added later: a process that serves loads no code.
pub fn preload(module: &std::path::Path) -> Result<(), TokenError> {
    Module::load(module).map(drop)
}

/// The signer's keys and its first device for roots, as ceremonies and checks use them. A signer that serves has each
/// of its devices apart ([`Apart`]).
#[derive(Debug)]
pub struct Pkcs11Token {
    roots: Arc<RootDevice>,
    keys: KeysToken,
    one_library: bool,
}

impl Pkcs11Token {
    /// Loads the modules (once per process), logs in to both tokens, finds the keys and asserts their
    /// attributes. Makes no object: that is the ceremony's business.
    pub fn open(config: &TokenConfig) -> Result<Self, TokenError> {
        let [first, others @ ..] = &*config.devices else { return Err(TokenError::NoObjects) };
        let roots = Arc::new(RootDevice::load(first, config.security)?);
        if let Err(error) = roots.probe()
            && others.is_empty()
        {
            return Err(error);
        }
        let one_library = roots.shares(&config.keys.module);
        Ok(Self { roots, keys: KeysToken::open(config)?, one_library })
    }

    /// Starts the library anew after the device was away: closes every session, finalises, initialises and
    /// logs in again. Waits for calls under way; no call fails half-way because of it.
    pub fn reconnect(&self) -> Result<(), TokenError> {
        self.roots.reconnect()?;
        if self.one_library { self.keys.revive() } else { self.keys.reconnect() }
    }

    /// What the first device for roots is.
    pub fn profile(&self) -> &Profile {
        self.roots.profile()
    }

    /// The first device for roots.
    pub fn device(&self) -> Arc<RootDevice> {
        Arc::clone(&self.roots)
    }

    /// How the identity key came into the token.
    pub fn identity_method(&self) -> IdentityMethod {
        self.keys.identity_method()
    }

    /// Whether both tokens answer: lists the roots and signs with the federation key.
    pub fn probe(&self) -> Result<(), TokenError> {
        self.roots.probe()?;
        self.keys.probe()
    }
}

impl RootToken for Pkcs11Token {
    fn create_root(&self, root: &RootId) -> Result<(), TokenError> {
        self.roots.create_root(root)
    }

    fn roots(&self) -> Result<Vec<RootId>, TokenError> {
        self.roots.roots()
    }

    fn derive(&self, root: &RootId, context: &[u8]) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        self.roots.derive(root, context)
    }

    fn destroy_root(&self, root: &RootId) -> Result<(), TokenError> {
        self.roots.destroy_root(root)
    }

    fn sync(&self) -> Result<(), TokenError> {
        self.roots.sync()
    }

    fn fingerprint(&self) -> Result<[u8; 32], TokenError> {
        self.roots.fingerprint()
    }
}

impl Token for Pkcs11Token {
    fn identity_public_key(&self) -> PublicKey {
        self.keys.identity_public_key()
    }

    fn sign_identity(&self, digest: &[u8; 32]) -> Result<ecdsa::Signature, TokenError> {
        self.keys.sign_identity(digest)
    }

    fn identity_ecdh_x(&self, point: &PublicKey) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        self.keys.identity_ecdh_x(point)
    }

    fn federation_public_key(&self) -> FederationKey {
        self.keys.federation_public_key()
    }

    fn sign_federation(&self, message: &[u8]) -> Result<[u8; 64], TokenError> {
        self.keys.sign_federation(message)
    }
}
