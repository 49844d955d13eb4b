//! TLS of each socket, from the configuration.

use spark_proto::transport::{
    Alpn, ClientAuth, ClientTls, Deadlines, HandshakeLimits, Identity, ServerTls, SpkiAllowList,
    TransportError, TrustRoots, channel,
};
use tonic::transport::Channel;

use crate::config::{ClientCertificates, Config};

/// Own certificate and the authorities it works with, read once; renew it with [`Identity::replace`].
#[derive(Debug, Clone)]
pub struct TlsMaterial {
    identity: Identity,
    client_roots: Option<TrustRoots>,
    peer_roots: TrustRoots,
}

impl TlsMaterial {
    /// Reads the PEM files that `config` names.
    pub fn load(config: &Config) -> Result<Self, TransportError> {
        Ok(Self {
            identity: Identity::from_pem_files(&config.tls.cert, &config.tls.key)?,
            client_roots: config.tls.client_ca.as_ref().map(TrustRoots::from_pem_file).transpose()?,
            peer_roots: TrustRoots::from_pem_file(&config.peers_ca)?,
        })
    }

    /// The own certificate; clones share it.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// For a public socket: native gRPC and grpc-web.
    pub fn public(&self, certificates: ClientCertificates) -> ServerTls {
        let client_auth = match (certificates, &self.client_roots) {
            (ClientCertificates::Off, _) => ClientAuth::Off,
            (ClientCertificates::Optional, Some(roots)) => ClientAuth::Optional(roots.clone()),
            (ClientCertificates::Required, Some(roots)) => ClientAuth::Required(roots.clone()),
            // The configuration was checked: client_ca is there. Were it not, nobody may come in.
            (ClientCertificates::Optional | ClientCertificates::Required, None) => {
                ClientAuth::Required(self.peer_roots.clone())
            }
        };
        ServerTls {
            identity: self.identity.clone(),
            client_auth,
            allow: None,
            alpn: Alpn::H2AndHttp1,
            handshakes: HandshakeLimits::default(),
        }
    }

    /// For the socket of the other operators: keys of the federation file only.
    pub fn peer(&self, allow: SpkiAllowList) -> ServerTls {
        ServerTls {
            identity: self.identity.clone(),
            client_auth: ClientAuth::Required(self.peer_roots.clone()),
            allow: Some(allow),
            alpn: Alpn::H2,
            handshakes: HandshakeLimits::default(),
        }
    }

    /// For the administrators' socket: listed keys only; `None` without `tls.client_ca`.
    pub fn admin(&self, allow: SpkiAllowList) -> Option<ServerTls> {
        let roots = self.client_roots.clone()?;
        Some(ServerTls {
            identity: self.identity.clone(),
            client_auth: ClientAuth::Required(roots),
            allow: Some(allow),
            alpn: Alpn::H2,
            handshakes: HandshakeLimits::default(),
        })
    }

    /// Towards another operator, whose key the federation file names.
    pub fn to_peer(&self, server_name: impl Into<String>, pinned: spark_proto::transport::Spki) -> ClientTls {
        ClientTls {
            roots: self.peer_roots.clone(),
            identity: Some(self.identity.clone()),
            server_name: server_name.into(),
            pinned: Some(pinned),
        }
    }
}

/// The channel to the own signer: mutual TLS, pinned key, the configured deadline.
pub fn signer_channel(config: &Config) -> Result<Channel, TransportError> {
    let signer = &config.signer;
    let tls = ClientTls {
        roots: TrustRoots::from_pem_file(&signer.ca)?,
        identity: Some(Identity::from_pem_files(&signer.cert, &signer.key)?),
        server_name: signer.server_name.clone(),
        pinned: Some(signer.spki),
    };
    channel(&signer.address, &tls, Deadlines { request: signer.deadline, ..Deadlines::default() })
}
