//! Certificate checks: the authority first, then the hash of the key.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{Spki, SpkiAllowList, TransportError, TrustRoots, provider};

/// The certificate is valid, its key is not the expected one.
#[derive(Debug, thiserror::Error)]
#[error("key is not allowed")]
struct KeyNotAllowed;

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

#[derive(Debug)]
struct PinnedServer {
    authority: Arc<WebPkiServerVerifier>,
    pinned: Spki,
}

/// Trusts servers under `roots`; with `pinned`, only the one with that key.
pub(super) fn server_verifier(
    roots: &TrustRoots,
    pinned: Option<Spki>,
) -> Result<Arc<dyn ServerCertVerifier>, TransportError> {
    let authority = WebPkiServerVerifier::builder_with_provider(roots.store.clone(), provider())
        .build()
        .map_err(TransportError::Verifier)?;
    Ok(match pinned {
        Some(pinned) => Arc::new(PinnedServer { authority, pinned }),
        None => authority,
    })
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        if Spki::of_certificate(end_entity).map_err(refused)? == self.pinned {
            Ok(verified)
        } else {
            Err(refused(KeyNotAllowed))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authority.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authority.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authority.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct ListedClient {
    authority: Arc<dyn ClientCertVerifier>,
    allow: SpkiAllowList,
}

/// Trusts clients under `roots`; with `allow`, only listed keys. A client without a certificate passes only
/// when the certificate is `optional`.
pub(super) fn client_verifier(
    roots: &TrustRoots,
    optional: bool,
    allow: Option<SpkiAllowList>,
) -> Result<Arc<dyn ClientCertVerifier>, TransportError> {
    let builder = WebPkiClientVerifier::builder_with_provider(roots.store.clone(), provider());
    let builder = if optional { builder.allow_unauthenticated() } else { builder };
    let authority = builder.build().map_err(TransportError::Verifier)?;
    Ok(match allow {
        Some(allow) => Arc::new(ListedClient { authority, allow }),
        None => authority,
    })
}

impl ClientCertVerifier for ListedClient {
    fn offer_client_auth(&self) -> bool {
        self.authority.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.authority.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.authority.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.authority.verify_client_cert(end_entity, intermediates, now)?;
        if self.allow.allows(&Spki::of_certificate(end_entity).map_err(refused)?) {
            Ok(verified)
        } else {
            Err(refused(KeyNotAllowed))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authority.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authority.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authority.supported_verify_schemes()
    }
}
