//! Own certificate and key, and the authorities to trust.

use std::{
    fmt,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    RootCertStore, SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use super::{Spki, TransportError, provider};

/// Own certificate chain and private key, for either side of a connection.
///
/// Clones share one slot: [`replace`](Self::replace) renews the certificate for all of them, from the next
/// handshake on.
#[derive(Clone)]
pub struct Identity {
    slot: Arc<Slot>,
}

impl Identity {
    /// Reads a certificate chain, leaf first, and its private key (PKCS#8, PKCS#1 or SEC1), both PEM.
    pub fn from_pem_files(
        certificate: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, TransportError> {
        let chain = read_certificates(certificate.as_ref())?;
        let key = PrivateKeyDer::from_pem_file(key.as_ref()).map_err(|source| TransportError::Pem {
            what: "a private key",
            path: key.as_ref().to_owned(),
            source,
        })?;
        let signing_key =
            provider().key_provider.load_private_key(key).map_err(TransportError::KeyMismatch)?;
        Self::from_certified_key(CertifiedKey::new(chain, signing_key))
    }

    /// From a certificate whose key signs by any means, for instance inside a token.
    pub fn from_certified_key(key: CertifiedKey) -> Result<Self, TransportError> {
        Ok(Self { slot: Arc::new(Slot(RwLock::new(checked(key)?))) })
    }

    /// Uses another certificate and key from the next handshake on, for instance after renewal.
    pub fn replace(&self, other: &Self) {
        let key = other.slot.get();
        *self.slot.0.write().unwrap_or_else(PoisonError::into_inner) = key;
    }

    /// Hash of the own public key: what the other side pins.
    pub fn spki(&self) -> Result<Spki, TransportError> {
        let key = self.slot.get();
        let leaf = key.end_entity_cert().map_err(TransportError::KeyMismatch)?;
        Spki::of_certificate(leaf)
    }

    pub(super) fn server_resolver(&self) -> Arc<dyn ResolvesServerCert> {
        self.slot.clone()
    }

    pub(super) fn client_resolver(&self) -> Arc<dyn ResolvesClientCert> {
        self.slot.clone()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.spki().ok()).finish()
    }
}

struct Slot(RwLock<Arc<CertifiedKey>>);

impl Slot {
    fn get(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

impl ResolvesServerCert for Slot {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl ResolvesClientCert for Slot {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        // Always offered: a server that does not accept it should say so, rather than see an anonymous client.
        Some(self.get())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn checked(key: CertifiedKey) -> Result<Arc<CertifiedKey>, TransportError> {
    match key.keys_match() {
        // A token that cannot tell its public key is found out by the first handshake.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(Arc::new(key)),
        Err(mismatch) => Err(TransportError::KeyMismatch(mismatch)),
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let pem = |source| TransportError::Pem { what: "certificates", path: path.to_owned(), source };
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(pem)?.collect::<Result<_, _>>().map_err(pem)?;
    if chain.is_empty() {
        return Err(TransportError::NoCertificate { path: path.to_owned() });
    }
    Ok(chain)
}

/// Certificate authorities to trust. There is no default: system roots are never consulted.
#[derive(Debug, Clone)]
pub struct TrustRoots {
    pub(super) store: Arc<RootCertStore>,
}

impl TrustRoots {
    /// Reads every certificate of a PEM file as an authority.
    pub fn from_pem_file(path: impl AsRef<Path>) -> Result<Self, TransportError> {
        Self::from_certificates(read_certificates(path.as_ref())?)
    }

    /// From DER-encoded certificates.
    pub fn from_certificates(
        certificates: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, TransportError> {
        let mut store = RootCertStore::empty();
        for certificate in certificates {
            store.add(certificate).map_err(TransportError::Roots)?;
        }
        Ok(Self { store: Arc::new(store) })
    }
}
