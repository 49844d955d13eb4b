//! The listener's certificate, its key in a file or in the token, and the clients that may come in; all of it is
//! renewed while the signer runs.

mod der;
mod request;

use std::{fmt, path::Path, sync::Arc};

use anyhow::Context as _;
use rustls::{
    Error, OtherError, SignatureAlgorithm, SignatureScheme,
    sign::{CertifiedKey, Signer, SigningKey},
};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use spark_proto::transport::{Identity, Spki, SpkiAllowList};
use tokio::runtime::{Handle, RuntimeFlavor};

pub use request::{Request, generate, requests};

use crate::{
    config::{Config, TlsConfig, TlsKeySource},
    token::{TlsKey, TlsKeys},
};

/// What a running listener uses.
#[derive(Debug)]
pub struct Tls {
    identity: Identity,
    allow: SpkiAllowList,
    token: Option<Arc<TlsKeys>>,
}

impl Tls {
    /// Reads certificate and key; refuses a certificate of another key.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let tls = config.tls.as_ref().context("configuration: tls is missing")?;
        let token = match tls.key {
            TlsKeySource::Token => Some(Arc::new(TlsKeys::open(&config.token)?)),
            TlsKeySource::File(_) => None,
        };
        Ok(Self { identity: identity(tls, token.as_ref())?, allow: SpkiAllowList::new(allowed(tls)?), token })
    }

    /// Certificate and key; clones follow a reload.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Keys of clients; clones follow a reload.
    pub const fn allow(&self) -> &SpkiAllowList {
        &self.allow
    }

    /// Reads the configuration again and takes certificate, key and allow-list from it: all of them, or none if
    /// anything is wrong. Nothing else of the configuration changes.
    pub fn reload(&self, path: &Path) -> anyhow::Result<()> {
        let config = Config::load(path)?;
        let tls = config.tls.as_ref().context("configuration: tls is missing")?;
        let renewed = identity(tls, self.token.as_ref())?;
        let allowed = allowed(tls)?;
        self.identity.replace(&renewed);
        self.allow.replace(allowed);
        Ok(())
    }
}

fn allowed(tls: &TlsConfig) -> anyhow::Result<Vec<Spki>> {
    Ok(tls.allow.iter().map(|text| text.parse::<Spki>()).collect::<Result<_, _>>()?)
}

fn identity(tls: &TlsConfig, token: Option<&Arc<TlsKeys>>) -> anyhow::Result<Identity> {
    match (&tls.key, token) {
        (TlsKeySource::File(key), _) => Ok(Identity::from_pem_files(&tls.cert, key)?),
        (TlsKeySource::Token, Some(keys)) => in_token(&tls.cert, keys),
        (TlsKeySource::Token, None) => {
            anyhow::bail!("the signer was started with a TLS key in a file: start it again")
        }
    }
}

fn in_token(certificate: &Path, keys: &Arc<TlsKeys>) -> anyhow::Result<Identity> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| certificate.display().to_string())?;
    let leaf = chain.first().with_context(|| format!("no certificate in {}", certificate.display()))?;
    let spki = Spki::of_certificate(leaf)?;
    let key = keys
        .keys()?
        .into_iter()
        .find(|key| &key.spki_sha256() == spki.as_bytes())
        .with_context(|| format!("no TLS key in the token fits the certificate, whose key is {spki}"))?;
    let key = InToken { keys: Arc::clone(keys), key };
    Ok(Identity::from_certified_key(CertifiedKey::new(chain, Arc::new(key)))?)
}

/// A key that signs in the token.
#[derive(Clone)]
struct InToken {
    keys: Arc<TlsKeys>,
    key: TlsKey,
}

impl InToken {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let digest = Sha256::digest(message).into();
        // A slow token must not hold up what else this thread of the runtime serves.
        let signature = match Handle::try_current().map(|handle| handle.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => {
                tokio::task::block_in_place(|| self.keys.sign(&self.key, &digest))
            }
            _ => self.keys.sign(&self.key, &digest),
        };
        signature.map(|bytes| der::ecdsa(&bytes)).map_err(|error| Error::Other(OtherError(Arc::new(error))))
    }
}

impl fmt::Debug for InToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InToken").field("key", &self.key).finish_non_exhaustive()
    }
}

impl SigningKey for InToken {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ECDSA_NISTP256_SHA256).then(|| Box::new(self.clone()) as _)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.key.spki().into())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for InToken {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Self::sign(self, message)
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}
