//! The throw-away authority, judged by rustls.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use anyhow::Result;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use spark_devnet::certs::{Authority, Identity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

fn chain(identity: &Identity) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let certificate = CertificateDer::from_pem_slice(identity.certificate().as_bytes())?;
    Ok((vec![certificate], PrivateKeyDer::from_pem_slice(identity.key().as_bytes())?))
}

fn roots(authority: &Authority) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate().as_bytes())?)?;
    Ok(Arc::new(roots))
}

/// One byte over mutual TLS; both sides must like the other's certificate.
async fn handshake(
    server: (&Authority, &Identity),
    client: (&Authority, &Identity),
    name: &str,
) -> Result<()> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(server.0)?, Arc::clone(&provider)).build()?;
    let (certificates, key) = chain(server.1)?;
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates, key)?;
    let (certificates, key) = chain(client.1)?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(client.0)?)
        .with_client_auth_cert(certificates, key)?;

    let (near, far) = tokio::io::duplex(4096);
    let served = async {
        let mut stream = TlsAcceptor::from(Arc::new(server)).accept(far).await?;
        stream.write_all(b"!").await?;
        stream.shutdown().await?;
        anyhow::Ok(())
    };
    let asked = async {
        let name = ServerName::try_from(name.to_owned())?;
        let mut stream = TlsConnector::from(Arc::new(client)).connect(name, near).await?;
        let mut byte = [0u8; 1];
        stream.read_exact(&mut byte).await?;
        anyhow::Ok(())
    };
    let (served, asked) = tokio::join!(served, asked);
    served.and(asked)
}

#[tokio::test]
async fn certificates_serve_both_ends_of_mutual_tls() -> Result<()> {
    let authority = Authority::new("devnet")?;
    let (server, client) = (authority.issue("operator-0")?, authority.issue("wallet")?);
    for name in ["localhost", "127.0.0.1", "operator-0"] {
        handshake((&authority, &server), (&authority, &client), name).await?;
    }
    assert!(handshake((&authority, &server), (&authority, &client), "operator-1").await.is_err());

    let stranger = Authority::new("devnet")?;
    let forged = stranger.issue("wallet")?;
    assert!(handshake((&authority, &server), (&authority, &forged), "localhost").await.is_err());
    assert!(handshake((&authority, &server), (&stranger, &client), "localhost").await.is_err());
    Ok(())
}

#[test]
fn files_and_pins() -> Result<()> {
    let authority = Authority::new("devnet")?;
    let (one, two) = (authority.issue("a")?, authority.issue("a")?);
    assert_ne!(one.spki_sha256(), two.spki_sha256());

    let dir = tempfile::tempdir()?;
    let files = one.write(dir.path(), "a")?;
    assert_eq!(std::fs::read_to_string(&files.certificate)?, one.certificate());
    assert_eq!(std::fs::read_to_string(&files.key)?, one.key());
    assert_eq!(std::fs::metadata(&files.key)?.permissions().mode() & 0o777, 0o600);
    Ok(())
}

#[test]
fn a_key_held_elsewhere_is_certified() -> Result<()> {
    let authority = Authority::new("devnet")?;
    let key = rcgen::KeyPair::generate()?;
    let certificate = authority.certify("signer-0", key.public_key_raw().try_into()?)?;
    let der = CertificateDer::from_pem_slice(certificate.as_bytes())?;
    // It carries that key.
    assert!(der.windows(key.public_key_raw().len()).any(|window| window == key.public_key_raw()));
    Ok(())
}
