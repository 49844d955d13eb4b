//! Listening: TLS handshakes, HTTP/1.1 and HTTP/2, graceful end.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use http_body_util::{Either, Empty};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::{
    ServerConfig,
    server::{Acceptor, NoServerSessionStorage},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tower::{Service, ServiceExt as _};

use super::{
    Gate, HandshakeLimits, Identity, PeerSpki, Spki, SpkiAllowList, TransportError, TrustRoots, provider,
    verify,
};

/// The whole handshake. One that is silent costs a place among the connections and nothing else.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// From the end of the handshake to the first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Open connections per listener; further ones are closed at once.
const CONNECTIONS: usize = 4096;
/// Of these, from one address.
const CONNECTIONS_PER_ADDRESS: usize = 512;
/// How long requests may take to end once shutdown began.
const DRAIN: Duration = Duration::from_secs(5);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
const STREAMS_PER_CONNECTION: u32 = 256;
const HEADER_BYTES: u32 = 64 * 1024;

/// What a listener asks of its clients.
#[derive(Debug, Clone)]
pub enum ClientAuth {
    /// No certificate is asked for.
    Off,
    /// A certificate under these roots, or none.
    Optional(TrustRoots),
    /// A certificate under these roots.
    Required(TrustRoots),
}

/// Protocols offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/2 only, TLS 1.3 only: programs of this project on both ends.
    H2,
    /// HTTP/2 and HTTP/1.1, TLS 1.2 and 1.3: native gRPC and grpc-web on one port.
    H2AndHttp1,
}

/// How a listener proves itself and whom it lets in.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// Own certificate.
    pub identity: Identity,
    /// Whether clients need a certificate.
    pub client_auth: ClientAuth,
    /// Keys that client certificates may carry; `None` accepts every certificate under the roots.
    pub allow: Option<SpkiAllowList>,
    /// Protocols offered.
    pub alpn: Alpn,
    /// How many handshakes at a time.
    pub handshakes: HandshakeLimits,
}

/// Address at the other end of the TCP connection, in the extensions of every request. Headers that claim
/// another one (`x-forwarded-for`) are never consulted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteAddr(pub SocketAddr);

/// Serves `service` (an axum `Router` or tonic `Routes`) until `shutdown` resolves, then lets open requests
/// end for a few seconds.
///
/// Every request carries [`PeerSpki`] and [`RemoteAddr`] as extensions; a tonic handler reads them with
/// `request.extensions().get()`. Clients may ping as often as they like. A key that was taken off the allow-list
/// is refused on its open connections, too.
///
/// Must run inside a tokio runtime. Fails only if TLS cannot be configured.
pub async fn serve<S, B>(
    listener: TcpListener,
    tls: ServerTls,
    service: S,
    shutdown: impl Future<Output = ()>,
) -> Result<(), TransportError>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let shared = Arc::new(Shared {
        config: Arc::new(server_config(&tls)?),
        gate: Gate::new(tls.handshakes),
        allow: tls.allow.clone(),
        http: http_builder(tls.alpn),
    });
    let places = Places::default();
    let (closing, close) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let (tcp, remote) = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, or a client gone before it was served: neither ends the service.
                    tracing::warn!(%error, "accept failed");
                    time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let Some(place) = places.take(remote.ip()) else {
            tracing::warn!(%remote, "too many connections");
            continue;
        };
        let (shared, service, close) = (shared.clone(), service.clone(), close.clone());
        connections.spawn(async move {
            let _place = place;
            shared.connection(tcp, remote, service, close).await;
        });
    }
    drop(listener);
    // No receiver is left when no connection is open.
    let _none_open = closing.send(true);
    let drained = time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        connections.shutdown().await;
    }
    Ok(())
}

/// Places for open connections.
#[derive(Clone, Default)]
struct Places {
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection's place.
struct Place {
    places: Places,
    address: IpAddr,
}

impl Places {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, address: IpAddr) -> Option<Place> {
        let mut taken = self.lock();
        let all: usize = taken.values().sum();
        let mine = taken.entry(address).or_default();
        if all >= CONNECTIONS || *mine >= CONNECTIONS_PER_ADDRESS {
            return None;
        }
        *mine = mine.saturating_add(1);
        Some(Place { places: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(mine) = taken.get_mut(&self.address) {
            *mine = mine.saturating_sub(1);
            if *mine == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

struct Shared {
    config: Arc<ServerConfig>,
    gate: Gate,
    allow: Option<SpkiAllowList>,
    http: auto::Builder<TokioExecutor>,
}

impl Shared {
    /// A client that says nothing takes no place among the handshakes.
    async fn handshake(&self, tcp: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
        let _place = self.gate.enter().await;
        hello.into_stream(Arc::clone(&self.config)).await
    }

    async fn connection<S, B>(
        &self,
        tcp: TcpStream,
        remote: SocketAddr,
        service: S,
        mut close: watch::Receiver<bool>,
    ) where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let _ignored_nodelay = tcp.set_nodelay(true);
        let stream = match time::timeout(HANDSHAKE_TIMEOUT, self.handshake(tcp)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::info!(%remote, %error, "TLS handshake failed");
                return;
            }
            Err(_) => {
                tracing::info!(%remote, "TLS handshake timed out");
                return;
            }
        };
        let peer = match stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
            None => None,
            Some(certificate) => match Spki::of_certificate(certificate) {
                Ok(key) => Some(key),
                // The verifier parsed it already; never serve a client whose key is unknown as an anonymous one.
                Err(error) => {
                    tracing::warn!(%remote, %error, "client certificate unreadable");
                    return;
                }
            },
        };
        let allow = self.allow.as_ref();
        let asked = Arc::new(AtomicBool::new(false));
        let heard = Arc::clone(&asked);
        let handler = service_fn(move |mut request: Request<Incoming>| {
            heard.store(true, Ordering::Relaxed);
            let still_allowed = match (allow, &peer) {
                (Some(allow), Some(key)) => allow.allows(key),
                _ => true,
            };
            request.extensions_mut().insert(PeerSpki(peer));
            request.extensions_mut().insert(RemoteAddr(remote));
            let service = service.clone();
            async move {
                if !still_allowed {
                    return Ok(forbidden().map(Either::Right));
                }
                service.oneshot(request).await.map(|response| response.map(Either::Left))
            }
        });
        // A sender that is gone means the same as one that says so.
        let closing = async { drop(close.wait_for(|closing| *closing).await) };
        let mut connection = pin!(self.http.serve_connection(TokioIo::new(stream), handler));
        let silent = async {
            time::sleep(FIRST_REQUEST_TIMEOUT).await;
            if asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = silent => {
                tracing::info!(%remote, "no request came");
                return;
            }
            () = closing => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%remote, %error, "connection ended");
        }
    }
}

fn forbidden<D: hyper::body::Buf>() -> Response<Empty<D>> {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = http::StatusCode::FORBIDDEN;
    response
}

fn http_builder(alpn: Alpn) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if alpn == Alpn::H2 {
        builder = builder.http2_only();
    }
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .max_header_list_size(HEADER_BYTES);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
}

fn server_config(tls: &ServerTls) -> Result<ServerConfig, TransportError> {
    let versions: &[&rustls::SupportedProtocolVersion] = match tls.alpn {
        Alpn::H2 => &[&rustls::version::TLS13],
        Alpn::H2AndHttp1 => &[&rustls::version::TLS13, &rustls::version::TLS12],
    };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(TransportError::Config)?;
    let builder = match &tls.client_auth {
        ClientAuth::Off => builder.with_no_client_auth(),
        ClientAuth::Optional(roots) => {
            builder.with_client_cert_verifier(verify::client_verifier(roots, true, tls.allow.clone())?)
        }
        ClientAuth::Required(roots) => {
            builder.with_client_cert_verifier(verify::client_verifier(roots, false, tls.allow.clone())?)
        }
    };
    let mut config = builder.with_cert_resolver(tls.identity.server_resolver());
    config.alpn_protocols = match tls.alpn {
        Alpn::H2 => vec![b"h2".to_vec()],
        Alpn::H2AndHttp1 => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_all_places() {
        let places = Places::default();
        let (greedy, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut held: Vec<_> = (0..CONNECTIONS_PER_ADDRESS).map_while(|_| places.take(greedy)).collect();
        assert_eq!(held.len(), CONNECTIONS_PER_ADDRESS);
        assert!(places.take(greedy).is_none());
        assert!(places.take(other).is_some());
        held.pop();
        assert!(places.take(greedy).is_some());
        drop(held);
        assert!(places.lock().is_empty());
    }
}
