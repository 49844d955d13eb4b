//! The one TLS stack of all programs.
//!
//! tonic is built without TLS: its configuration knows neither pinned keys nor keys inside a token. Here a
//! rustls acceptor hands connections to hyper, and a rustls connector hands them to tonic's channels. Both
//! sides may be bound to SHA-256 hashes of public keys ([`Spki`]) on top of a certificate authority, and a
//! server's list of allowed keys and both sides' certificates change without a restart.
//!
//! Nothing is resumable: no session tickets, no session cache, no early data, no key log. A recorded
//! connection that carries key tweaks must not become readable through a ticket key.

mod client;
mod handshakes;
mod identity;
mod server;
mod spki;
mod verify;

use std::{io, path::PathBuf, sync::Arc};

pub use client::{ClientTls, Deadlines, channel};
use handshakes::Gate;
pub use handshakes::HandshakeLimits;
pub use identity::{Identity, TrustRoots};
use rustls::crypto::{CryptoProvider, ring};
pub use server::{Alpn, ClientAuth, RemoteAddr, ServerTls, serve};
pub use spki::{PeerSpki, Spki, SpkiAllowList};

/// Why TLS could not be set up. Failed handshakes are not here: they concern one connection and are logged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A PEM file cannot be read, or holds nothing of the wanted kind.
    #[error("cannot read {what} from {path}")]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// The file holds no certificate.
    #[error("no certificate in {path}")]
    NoCertificate {
        /// Where.
        path: PathBuf,
    },
    /// The private key is not that of the certificate, or of a kind TLS cannot use.
    #[error("the private key does not fit the certificate")]
    KeyMismatch(#[source] rustls::Error),
    /// The certificate authority is unusable.
    #[error("unusable certificate authority")]
    Roots(#[source] rustls::Error),
    /// The verifier of certificates cannot be built from these roots.
    #[error("no certificate can be verified with these roots")]
    Verifier(#[source] rustls::client::VerifierBuilderError),
    /// A certificate that does not parse.
    #[error("certificate does not parse")]
    Certificate(#[source] webpki::Error),
    /// Protocol versions and provider do not fit together.
    #[error("TLS cannot be configured")]
    Config(#[source] rustls::Error),
    /// Not a DNS name or IP address.
    #[error("{0:?} is no server name")]
    ServerName(String),
    /// Not of the form `host:port`.
    #[error("{0:?} is no address of the form host:port")]
    Address(String),
    /// The listening socket failed.
    #[error("listener failed")]
    Listener(#[source] io::Error),
}

/// Makes ring the process-wide provider of cryptography for rustls. Calling it again does nothing.
pub fn install_crypto_provider() {
    // Err means that one is installed already, by an earlier call or by another library.
    let _already = ring::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
