//! The identity and federation keys.

use std::sync::Arc;

use bitcoin::secp256k1::{Message, PublicKey, SECP256K1, ecdsa};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::types::Ulong;
use sha2::{Digest as _, Sha256};
use spark_rules::federation_key::{FederationKey, KeyKind, low_s};
use spark_signer::vault::TokenError;
use zeroize::Zeroizing;

use super::config::Security;
use super::error::token_error;
use super::link::Link;
use super::objects::{
    Birth, FEDERATION, IDENTITY, IDENTITY_IMPORTED, Kind, Name, assert_confined, bare_point,
};
use super::profile::Profile;

/// What a probe signs: no statement of any other domain.
pub(super) const PROBE: &[u8] = b"spark/token/probe/v1";

/// How the identity key came into the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentityMethod {
    /// Generated there.
    Generated,
    /// Imported; development only.
    Imported,
}

impl IdentityMethod {
    /// Name in the transcript.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Generated => "generated",
            Self::Imported => "imported",
        }
    }

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Generated => IDENTITY,
            Self::Imported => IDENTITY_IMPORTED,
        }
    }

    pub(super) fn birth(self) -> Birth {
        match self {
            Self::Generated => Birth::Local,
            Self::Imported => Birth::Imported,
        }
    }
}

/// Both keys, found and checked.
pub(super) struct Keys {
    link: Arc<Link>,
    profile: Profile,
    pub(super) method: IdentityMethod,
    pub(super) identity: PublicKey,
    pub(super) federation: FederationKey,
}

impl Keys {
    pub(super) fn find(link: Arc<Link>, profile: Profile, security: Security) -> Result<Self, TokenError> {
        let (method, identity, federation) = link.run(|_, session| {
            let generated = point(session, IDENTITY)?;
            let (method, identity) = match (generated, point(session, IDENTITY_IMPORTED)?) {
                (Some(point), None) => (IdentityMethod::Generated, point),
                (None, Some(point)) => (IdentityMethod::Imported, point),
                (None, None) => return Err(TokenError::NoObjects),
                (Some(_), Some(_)) => return Err(TokenError::WrongAnswer("two identity keys")),
            };
            let identity = PublicKey::from_slice(&identity)
                .map_err(|_| TokenError::WrongAnswer("identity key is not a point"))?;
            let federation = point(session, FEDERATION)?.ok_or(TokenError::NoObjects)?;
            let federation = federation_key(&federation)
                .ok_or(TokenError::WrongAnswer("federation key is not a point"))?;
            Ok((method, identity, federation))
        })?;
        if method == IdentityMethod::Imported && security != Security::Development {
            return Err(TokenError::Unsupported("imported identity keys are for development only".into()));
        }
        let keys = Self { link, profile, method, identity, federation };
        keys.check()?;
        Ok(keys)
    }

    /// Uses both private keys, so that they are looked up with their attributes and proved to belong to
    /// the public keys that were found.
    pub(super) fn check(&self) -> Result<(), TokenError> {
        self.sign_identity(&[0x5a; 32])?;
        self.sign_federation(PROBE)?;
        Ok(())
    }

    /// Closes its idle sessions and forgets its handles.
    pub(super) fn reset(&self) {
        self.link.reset();
    }

    fn private(
        &self,
        link: &Link,
        session: &Session,
        label: &'static str,
        birth: Birth,
    ) -> Result<ObjectHandle, TokenError> {
        let check = |handle| assert_confined(session, &self.profile, handle, label, birth);
        link.handle(session, &Name::new(Kind::Private, label), check)?.ok_or(TokenError::NoObjects)
    }

    pub(super) fn sign_identity(&self, digest: &[u8; 32]) -> Result<ecdsa::Signature, TokenError> {
        let bytes = self.link.run(|link, session| {
            let key = self.private(link, session, self.method.label(), self.method.birth())?;
            session.sign(&Mechanism::Ecdsa, key, digest).map_err(token_error)
        })?;
        let mut signature = ecdsa::Signature::from_compact(&bytes)
            .map_err(|_| TokenError::WrongAnswer("ECDSA signature is malformed"))?;
        // Tokens return high S for every second signature (BIP 146 wants low S).
        signature.normalize_s();
        SECP256K1
            .verify_ecdsa(&Message::from_digest(*digest), &signature, &self.identity)
            .map_err(|_| TokenError::WrongAnswer("ECDSA signature does not verify"))?;
        Ok(signature)
    }

    pub(super) fn ecdh_x(&self, point: &PublicKey) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        let encoded = point.serialize_uncompressed();
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::ValueLen(Ulong::new(32)),
            Attribute::Token(false),
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
        ];
        self.link.run(|link, session| {
            let key = self.private(link, session, self.method.label(), self.method.birth())?;
            let mechanism = Mechanism::Ecdh1Derive(Ecdh1DeriveParams::new(EcKdf::null(), &encoded));
            let shared = session.derive_key(&mechanism, key, &template).map_err(token_error)?;
            let value = session.get_attributes(shared, &[AttributeType::Value]).map_err(token_error);
            session.destroy_object(shared).map_err(token_error)?;
            let mut x = Zeroizing::new([0u8; 32]);
            match value?.into_iter().next() {
                Some(Attribute::Value(value)) if value.len() == x.len() => {
                    x.copy_from_slice(&Zeroizing::new(value));
                    Ok(x)
                }
                _ => Err(TokenError::WrongAnswer("ECDH result is not 32 bytes")),
            }
        })
    }

    pub(super) fn sign_federation(&self, message: &[u8]) -> Result<[u8; 64], TokenError> {
        let digest: [u8; 32] = Sha256::digest(message).into();
        let bytes = self.link.run(|link, session| {
            let key = self.private(link, session, FEDERATION, Birth::Local)?;
            let signature = match self.federation.kind() {
                KeyKind::Ed25519 => {
                    let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519));
                    session.sign(&mechanism, key, message)
                }
                // Hashed here: some tokens do not know CKM_ECDSA_SHA256.
                KeyKind::EcdsaP256 => session.sign(&Mechanism::Ecdsa, key, &digest),
            };
            signature.map_err(token_error)
        })?;
        let signature = match self.federation.kind() {
            KeyKind::Ed25519 => bytes.try_into().ok(),
            KeyKind::EcdsaP256 => low_s(&bytes),
        };
        let signature = signature.ok_or(TokenError::WrongAnswer("federation signature is malformed"))?;
        if !self.federation.verifies(message, &signature) {
            return Err(TokenError::WrongAnswer("federation signature does not verify"));
        }
        Ok(signature)
    }
}

/// From the bare point of a public key object: of Ed25519, or uncompressed on P-256.
pub fn federation_key(point: &[u8]) -> Option<FederationKey> {
    let compressed = match point {
        [0x04, rest @ ..] if rest.len() == 64 => {
            let (x, y) = rest.split_at_checked(32)?;
            let sign = 2 | (y.last()? & 1);
            [[sign].as_slice(), x].concat()
        }
        other => other.to_vec(),
    };
    FederationKey::from_bytes(&compressed).ok()
}

/// The point of a public key object.
fn point(session: &Session, label: &'static str) -> Result<Option<Vec<u8>>, TokenError> {
    let found = session.find_objects(&Name::new(Kind::Public, label).template()).map_err(token_error)?;
    let handle = match found.as_slice() {
        [] => return Ok(None),
        [handle] => *handle,
        _ => return Err(TokenError::WrongAnswer("a key exists twice")),
    };
    let attributes = session.get_attributes(handle, &[AttributeType::EcPoint]).map_err(token_error)?;
    let Some(Attribute::EcPoint(encoded)) = attributes.into_iter().next() else {
        return Err(TokenError::WrongAnswer("public key has no point"));
    };
    Ok(Some(bare_point(encoded)))
}
