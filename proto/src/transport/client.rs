//! Outgoing connections: persistent, lazily opened tonic channels.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, client::Resumption};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::{Identity, Spki, TransportError, TrustRoots, provider, verify};

/// A ping on idle connections finds a dead peer before the next request needs it.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How a client proves itself and recognises the server.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// Authorities of the server's certificate.
    pub roots: TrustRoots,
    /// Own certificate; `None` connects anonymously.
    pub identity: Option<Identity>,
    /// DNS name or IP address that the server's certificate must carry.
    pub server_name: String,
    /// The only key the server may have.
    pub pinned: Option<Spki>,
}

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For TCP and TLS together.
    pub connect: Duration,
    /// From the call to the response headers. Streams may last longer; a shorter `grpc-timeout` of one call
    /// wins.
    pub request: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), request: Duration::from_secs(60) }
    }
}

/// A channel to `addr` (`host:port`) over HTTP/2. It connects when first used and again whenever the
/// connection is lost; clone it, never build one per call. A refused or unreachable server shows as
/// UNAVAILABLE on each call.
pub fn channel(addr: &str, tls: &ClientTls, deadlines: Deadlines) -> Result<Channel, TransportError> {
    let bad_address = || TransportError::Address(addr.to_owned());
    let server_name = ServerName::try_from(tls.server_name.clone())
        .map_err(|_| TransportError::ServerName(tls.server_name.clone()))?;
    let connector = TlsConnector::from(Arc::new(client_config(tls)?));
    // tonic refuses `https` when it does not do the TLS itself; the origin tells the server the truth.
    let target: Uri = format!("http://{addr}").parse().map_err(|_| bad_address())?;
    let port = target.port_u16().ok_or_else(bad_address)?;
    let host = if tls.server_name.contains(':') {
        format!("[{}]", tls.server_name)
    } else {
        tls.server_name.clone()
    };
    let origin: Uri = format!("https://{host}:{port}").parse().map_err(|_| bad_address())?;
    let endpoint = Endpoint::from(target)
        .origin(origin)
        .timeout(deadlines.request)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let addr: Arc<str> = addr.into();
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (addr, server_name, connector) = (addr.clone(), server_name.clone(), connector.clone());
        async move {
            let connect = async {
                let tcp = TcpStream::connect(&*addr).await?;
                tcp.set_nodelay(true)?;
                connector.connect(server_name, tcp).await
            };
            let stream = tokio::time::timeout(deadlines.connect, connect)
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    })))
}

fn client_config(tls: &ClientTls) -> Result<ClientConfig, TransportError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TransportError::Config)?
        .dangerous()
        .with_custom_certificate_verifier(verify::server_verifier(&tls.roots, tls.pinned)?);
    let mut config = match &tls.identity {
        Some(identity) => builder.with_client_cert_resolver(identity.client_resolver()),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}
