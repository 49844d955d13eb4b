//! A throw-away certificate authority for one devnet. P-256 keys, ECDSA with SHA-256.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SignatureAlgorithm,
};
use sha2::{Digest, Sha256};

#[derive(Debug, thiserror::Error)]
pub enum CertError {
    #[error("certificate cannot be made")]
    Make(#[from] rcgen::Error),
    #[error("{path} cannot be written")]
    Write { path: PathBuf, source: io::Error },
}

/// Issues certificates; its key lives as long as this value.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

struct HeldElsewhere([u8; 65]);

impl PublicKeyData for HeldElsewhere {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// A certificate for server and client use alike, and its key.
pub struct Identity {
    certificate: String,
    key: String,
    spki_sha256: [u8; 32],
}

/// Where an [`Identity`] was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PemFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(name: &str) -> Result<Self, CertError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// The authority's own certificate as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A fresh key with a certificate for `name`, `localhost` and 127.0.0.1.
    pub fn issue(&self, name: &str) -> Result<Identity, CertError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = leaf_params(name)?.signed_by(&key, &self.issuer)?.pem();
        let spki_sha256 = Sha256::digest(key.subject_public_key_info()).into();
        Ok(Identity { certificate, key: key.serialize_pem(), spki_sha256 })
    }

    /// A certificate (PEM) for a P-256 key that somebody else holds, a token for instance, given as its
    /// uncompressed point (65 bytes, SEC 1).
    pub fn certify(&self, name: &str, point: [u8; 65]) -> Result<String, CertError> {
        Ok(leaf_params(name)?.signed_by(&HeldElsewhere(point), &self.issuer)?.pem())
    }

    pub fn write(&self, path: &Path) -> Result<(), CertError> {
        fs::write(path, &self.certificate)
            .map_err(|source| CertError::Write { path: path.to_owned(), source })
    }
}

impl Identity {
    /// Certificate as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Private key as PEM (PKCS #8).
    pub fn key(&self) -> &str {
        &self.key
    }

    /// SHA-256 of the DER SubjectPublicKeyInfo: what pinning compares.
    pub fn spki_sha256(&self) -> [u8; 32] {
        self.spki_sha256
    }

    /// Writes `<stem>.pem` and, for us alone, `<stem>.key` into `dir`.
    pub fn write(&self, dir: &Path, stem: &str) -> Result<PemFiles, CertError> {
        let files =
            PemFiles { certificate: dir.join(format!("{stem}.pem")), key: dir.join(format!("{stem}.key")) };
        let failed = |path: &Path, source| CertError::Write { path: path.to_owned(), source };
        fs::write(&files.certificate, &self.certificate)
            .map_err(|source| failed(&files.certificate, source))?;
        OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&files.key)
            .and_then(|mut file| file.write_all(self.key.as_bytes()))
            .map_err(|source| failed(&files.key, source))?;
        Ok(files)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("spki_sha256", &hex::encode(self.spki_sha256))
            .finish_non_exhaustive()
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn leaf_params(name: &str) -> Result<CertificateParams, CertError> {
    let mut params = CertificateParams::new(vec![name.to_owned(), "localhost".to_owned()])?;
    params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    params.distinguished_name = common_name(name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}
