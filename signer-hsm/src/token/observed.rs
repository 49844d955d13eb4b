//! A token whose calls are counted.

use std::fmt;

use bitcoin::secp256k1::{PublicKey, ecdsa};
use spark_rules::federation_key::FederationKey;
use spark_signer::vault::{RootId, RootToken, Token, TokenError};
use zeroize::Zeroizing;

use crate::metrics::{HsmMetrics, HsmOperation};

/// Every call that reaches the device is counted and timed; the rest passes through.
pub struct Observed<T> {
    token: T,
    metrics: HsmMetrics,
}

impl<T: fmt::Debug> fmt::Debug for Observed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.token, f)
    }
}

impl<T> Observed<T> {
    /// Counts the calls of `token`.
    pub const fn new(token: T, metrics: HsmMetrics) -> Self {
        Self { token, metrics }
    }
}

impl<T: RootToken> RootToken for Observed<T> {
    fn create_root(&self, root: &RootId) -> Result<(), TokenError> {
        self.metrics.call(HsmOperation::CreateRoot, || self.token.create_root(root))
    }

    fn roots(&self) -> Result<Vec<RootId>, TokenError> {
        self.metrics.call(HsmOperation::ListRoots, || self.token.roots())
    }

    fn derive(&self, root: &RootId, context: &[u8]) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        self.metrics.call(HsmOperation::Derive, || self.token.derive(root, context))
    }

    fn destroy_root(&self, root: &RootId) -> Result<(), TokenError> {
        self.metrics.call(HsmOperation::DestroyRoot, || self.token.destroy_root(root))
    }

    fn sync(&self) -> Result<(), TokenError> {
        self.metrics.call(HsmOperation::Sync, || self.token.sync())
    }

    fn fingerprint(&self) -> Result<[u8; 32], TokenError> {
        self.token.fingerprint()
    }
}

impl<T: Token> Token for Observed<T> {
    fn identity_public_key(&self) -> PublicKey {
        self.token.identity_public_key()
    }

    fn sign_identity(&self, digest: &[u8; 32]) -> Result<ecdsa::Signature, TokenError> {
        self.metrics.call(HsmOperation::SignIdentity, || self.token.sign_identity(digest))
    }

    fn identity_ecdh_x(&self, point: &PublicKey) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        self.metrics.call(HsmOperation::Ecdh, || self.token.identity_ecdh_x(point))
    }

    fn federation_public_key(&self) -> FederationKey {
        self.token.federation_public_key()
    }

    fn sign_federation(&self, message: &[u8]) -> Result<[u8; 64], TokenError> {
        self.metrics.call(HsmOperation::SignFederation, || self.token.sign_federation(message))
    }
}
