//! P-256 keys for TLS in the keys token.
//!
//! They have sessions of their own, few of them: however many handshakes somebody starts, the sessions of signing stay
//! free. A key is found by the certificate that names it, so that a new key and a new certificate take over together.

use std::sync::{Arc, atomic::AtomicBool};

use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, AttributeType},
};
use rand_core::{OsRng, RngCore as _};
use sha2::{Digest as _, Sha256};
use spark_signer::vault::TokenError;

use super::{
    apart::{Apart, Hangs},
    config::TokenConfig,
    error::token_error,
    link::Link,
    module::Module,
    objects::{Birth, Kind, Name, P256, TLS, assert_confined, confined, with_policies},
    profile::Profile,
};

/// Handshakes that sign at the same time.
const SESSIONS: usize = 4;
/// Handshakes that wait for their turn.
const WAITING: usize = 64;
/// SubjectPublicKeyInfo of a P-256 key up to its point (RFC 5480).
const SPKI_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// The public half of a key in the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsKey {
    id: [u8; 16],
    point: [u8; 65],
}

impl TlsKey {
    /// `CKA_ID`, made at random with the key.
    pub const fn id(&self) -> &[u8; 16] {
        &self.id
    }

    /// SEC 1, uncompressed.
    pub const fn point(&self) -> &[u8; 65] {
        &self.point
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn spki(&self) -> Vec<u8> {
        [SPKI_HEAD.as_slice(), &self.point].concat()
    }

    /// SHA-256 of the former: what clients pin.
    pub fn spki_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.spki()).into()
    }
}

/// The keys token as TLS uses it.
pub struct TlsKeys {
    apart: Apart<Inner>,
}

struct Inner {
    module: Arc<Module>,
    link: Arc<Link>,
    profile: Profile,
}

impl Hangs for Inner {
    fn note_hang(&self, ended: Arc<AtomicBool>) {
        self.module.note_hang(ended);
    }
}

impl std::fmt::Debug for TlsKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsKeys").finish_non_exhaustive()
    }
}

impl TlsKeys {
    /// Loads the module and logs in to the keys token.
    pub fn open(config: &TokenConfig) -> Result<Self, TokenError> {
        let module = Module::load(&config.keys.module)?;
        let link = Link::new(&module, &config.keys.token, config.security)?;
        let inner = Arc::new(Inner { module, link, profile: config.keys.profile });
        Ok(Self { apart: Apart::start(inner, SESSIONS, WAITING)? })
    }

    /// Makes another key.
    pub fn generate(&self) -> Result<TlsKey, TokenError> {
        let mut id = [0u8; 16];
        OsRng.fill_bytes(&mut id);
        let public = [
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Verify(true),
            Attribute::Label(TLS.into()),
            Attribute::Id(id.to_vec()),
            Attribute::EcParams(P256.to_vec()),
        ];
        let mut private = confined(TLS);
        private.extend([Attribute::Sign(true), Attribute::Id(id.to_vec())]);
        self.apart.call(move |inner| {
            inner.link.mutate(|_, session| {
                with_policies(&inner.profile, &private, |private| {
                    session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, private).map(drop)
                })
            })
        })?;
        self.keys()?.into_iter().find(|key| key.id == id).ok_or(TokenError::NoObjects)
    }

    /// All keys that the token holds.
    pub fn keys(&self) -> Result<Vec<TlsKey>, TokenError> {
        self.apart.call(|inner| {
            inner.link.run(|_, session| {
                let found =
                    session.find_objects(&Name::new(Kind::Public, TLS).template()).map_err(token_error)?;
                found
                    .into_iter()
                    .map(|handle| {
                        let wanted = [AttributeType::EcPoint, AttributeType::Id];
                        key(&session.get_attributes(handle, &wanted).map_err(token_error)?)
                    })
                    .collect()
            })
        })
    }

    /// ECDSA over a SHA-256 digest: r and s, 32 bytes each. Waits for its turn; blocks.
    pub fn sign(&self, key: &TlsKey, digest: &[u8; 32]) -> Result<[u8; 64], TokenError> {
        let (name, digest) = (Name { id: Some(key.id), ..Name::new(Kind::Private, TLS) }, *digest);
        let signature = self.apart.call(move |inner| {
            inner.link.run(|link, session| {
                let check = |handle| assert_confined(session, &inner.profile, handle, TLS, Birth::Local);
                let handle = link.handle(session, &name, check)?.ok_or(TokenError::NoObjects)?;
                session.sign(&Mechanism::Ecdsa, handle, &digest).map_err(token_error)
            })
        })?;
        signature.try_into().map_err(|_| TokenError::WrongAnswer("ECDSA signature is malformed"))
    }
}

fn key(attributes: &[Attribute]) -> Result<TlsKey, TokenError> {
    let (mut id, mut point) = (None, None);
    for attribute in attributes {
        match attribute {
            Attribute::Id(bytes) => id = bytes.as_slice().try_into().ok(),
            Attribute::EcPoint(bytes) => {
                let bare = bytes.strip_prefix(&[0x04, 65]).filter(|bare| bare.len() == 65).unwrap_or(bytes);
                point = bare.try_into().ok();
            }
            _ => {}
        }
    }
    match (id, point) {
        (Some(id), Some(point)) => Ok(TlsKey { id, point }),
        _ => Err(TokenError::WrongAnswer("TLS key has no id or no point")),
    }
}
