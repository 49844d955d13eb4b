//! Making keys and asking for certificates.

use anyhow::Context as _;
use rcgen::{
    CertificateParams, DnType, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::der;
use crate::{
    config::Config,
    token::{TlsKey, TlsKeys},
};

/// A key and the request for its certificate.
#[derive(Debug, Clone, Serialize)]
pub struct Request {
    /// `CKA_ID`, hex.
    pub id: String,
    /// SEC 1, uncompressed, hex.
    pub point: String,
    /// SHA-256 of the SubjectPublicKeyInfo, hex: what the operator's `signer.spki` pins.
    pub spki_sha256: String,
    /// PKCS #10, PEM.
    pub csr: String,
}

/// Makes a new P-256 key in the keys token. Those that are there stay.
pub fn generate(config: &Config, names: &[String]) -> anyhow::Result<Request> {
    let keys = TlsKeys::open(&config.token)?;
    let key = keys.generate()?;
    request(&keys, key, names)
}

/// Requests for all keys that are there, or the one whose id begins with `id`.
pub fn requests(config: &Config, names: &[String], id: &str) -> anyhow::Result<Vec<Request>> {
    let keys = TlsKeys::open(&config.token)?;
    let all = keys.keys()?.into_iter().filter(|key| hex::encode(key.id()).starts_with(id));
    all.map(|key| request(&keys, key, names)).collect()
}

fn request(keys: &TlsKeys, key: TlsKey, names: &[String]) -> anyhow::Result<Request> {
    let mut params = CertificateParams::new(names.to_vec())?;
    let common = names.first().context("a certificate needs a name")?;
    params.distinguished_name.push(DnType::CommonName, common);
    let csr = params.serialize_request(&Applicant { keys, key: &key })?.pem()?;
    Ok(Request {
        id: hex::encode(key.id()),
        point: hex::encode(key.point()),
        spki_sha256: hex::encode(key.spki_sha256()),
        csr,
    })
}

struct Applicant<'a> {
    keys: &'a TlsKeys,
    key: &'a TlsKey,
}

impl PublicKeyData for Applicant<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.key.point()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for Applicant<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let digest = Sha256::digest(message).into();
        let signature = self.keys.sign(self.key, &digest);
        signature.map(|bytes| der::ecdsa(&bytes)).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}
