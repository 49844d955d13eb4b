//! Where a log is read from: a folder, or HTTPS under a given authority. Sizes and times are bounded.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use backon::{ExponentialBuilder, Retryable as _};
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{io::AsyncReadExt as _, net::TcpStream, sync::Mutex, time::timeout};
use tokio_rustls::TlsConnector;

use crate::Location;

/// For TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(10);
/// For one request and its answer.
const REQUEST: Duration = Duration::from_secs(30);

/// The place of a log cannot be used or does not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Not an `https` URL with a host.
    #[error("{0:?} is not a log's prefix; https://host:port/path is")]
    Url(String),
    /// The authorities cannot be used.
    #[error("authorities {path}: {what}")]
    Authorities {
        /// As given.
        path: String,
        /// Why.
        what: String,
    },
    /// A file of the log is there and cannot be read.
    #[error("{path}: {error}")]
    File {
        /// Within the log.
        path: String,
        /// Of the system.
        error: io::Error,
    },
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The connection broke.
    #[error("{path}: {error}")]
    Connection {
        /// Within the log.
        path: String,
        /// Of HTTP.
        error: hyper::Error,
    },
    /// No answer in time.
    #[error("{0}: no answer in time")]
    Timeout(String),
    /// Another answer than "here it is" and "not here".
    #[error("{path}: {status}")]
    Status {
        /// Within the log.
        path: String,
        /// Of HTTP.
        status: StatusCode,
    },
    /// Encoded although nobody asked for it, or cut off.
    #[error("{path}: the body cannot be read: {what}")]
    Body {
        /// Within the log.
        path: String,
        /// Why.
        what: String,
    },
    /// Larger than what can stand there.
    #[error("{path} has more than {limit} bytes")]
    TooLong {
        /// Within the log.
        path: String,
        /// Most bytes that are taken.
        limit: usize,
    },
}

impl SourceError {
    /// Stable reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Url(_) => "URL",
            Self::Authorities { .. } => "AUTHORITIES",
            Self::TooLong { .. } => "TOO_LONG",
            Self::File { .. }
            | Self::Connect(_)
            | Self::Connection { .. }
            | Self::Timeout(_)
            | Self::Status { .. }
            | Self::Body { .. } => "LOG_UNREACHABLE",
        }
    }

    /// May be over in a moment: the server has too much to do, or closed a connection that was idle.
    fn passes(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(status)
            }
            Self::Connection { .. } => true,
            _ => false,
        }
    }
}

/// A log's place.
#[derive(Debug)]
pub enum Source {
    /// A folder.
    Directory(PathBuf),
    /// A server.
    Https(Box<Https>),
}

impl Source {
    /// Prepares reading; connects to nothing yet.
    pub fn open(location: &Location) -> Result<Self, SourceError> {
        match location {
            Location::Directory(path) => Ok(Self::Directory(path.clone())),
            Location::Https { url, ca } => Ok(Self::Https(Box::new(Https::new(url, ca)?))),
        }
    }

    /// One file of the log; `None` if it is not there.
    pub async fn read(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, SourceError> {
        match self {
            Self::Directory(folder) => {
                let failed = |error| SourceError::File { path: path.to_owned(), error };
                let file = match tokio::fs::File::open(folder.join(path)).await {
                    Ok(file) => file,
                    Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                        return Ok(None);
                    }
                    Err(e) => return Err(failed(e)),
                };
                let mut bytes = Vec::new();
                let most = (limit as u64).saturating_add(1);
                file.take(most).read_to_end(&mut bytes).await.map_err(failed)?;
                match bytes.len() > limit {
                    true => Err(SourceError::TooLong { path: path.to_owned(), limit }),
                    false => Ok(Some(bytes)),
                }
            }
            Self::Https(https) => https.read(path, limit).await,
        }
    }
}

/// A server with the log, over one connection at a time.
pub struct Https {
    address: (String, u16),
    authority: String,
    prefix: String,
    name: ServerName<'static>,
    tls: TlsConnector,
    sender: Mutex<Option<SendRequest<Empty<Bytes>>>>,
}

impl std::fmt::Debug for Https {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Https")
            .field("authority", &self.authority)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl Https {
    fn new(url: &str, ca: &std::path::Path) -> Result<Self, SourceError> {
        let bad = || SourceError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        if uri.scheme_str() != Some("https") || uri.query().is_some() {
            return Err(bad());
        }
        let authority = uri.authority().filter(|a| !a.as_str().contains('@')).ok_or_else(bad)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| bad())?;
        Ok(Self {
            address: (host, authority.port_u16().unwrap_or(443)),
            authority: authority.to_string(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            name,
            tls: TlsConnector::from(Arc::new(tls_config(ca)?)),
            sender: Mutex::new(None),
        })
    }

    async fn read(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, SourceError> {
        let tries = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(20))
            .with_max_times(8)
            .with_jitter();
        (|| async {
            timeout(REQUEST, self.attempt(path, limit))
                .await
                .unwrap_or_else(|_| Err(SourceError::Timeout(path.to_owned())))
        })
        .retry(tries)
        .when(SourceError::passes)
        .await
    }

    async fn attempt(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, SourceError> {
        // Put back only when an answer was read to its end: a connection in an unknown state serves nobody.
        let mut place = self.sender.lock().await;
        let mut former = place.take();
        if let Some(sender) = &mut former
            && sender.ready().await.is_err()
        {
            former = None;
        }
        let mut sender = match former {
            Some(sender) => sender,
            None => self.connect(path).await?,
        };
        let broken = |error| SourceError::Connection { path: path.to_owned(), error };
        let request = Request::get(format!("{}/{path}", self.prefix))
            .header(header::HOST, &self.authority)
            .header(header::ACCEPT_ENCODING, "identity")
            .body(Empty::new())
            .map_err(|_| SourceError::Url(self.authority.clone()))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        match head.status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
            status => return Err(SourceError::Status { path: path.to_owned(), status }),
        }
        let unreadable = |what: String| SourceError::Body { path: path.to_owned(), what };
        if head.headers.get(header::CONTENT_ENCODING).is_some_and(|e| e != "identity") {
            return Err(unreadable("it is encoded".to_owned()));
        }
        let body =
            Limited::new(body, limit).collect().await.map_err(|e| match e.is::<LengthLimitError>() {
                true => SourceError::TooLong { path: path.to_owned(), limit },
                false => unreadable(e.to_string()),
            })?;
        *place = Some(sender);
        Ok(Some(body.to_bytes().to_vec()))
    }

    async fn connect(&self, path: &str) -> Result<SendRequest<Empty<Bytes>>, SourceError> {
        let (host, port) = &self.address;
        let connect = async {
            let tcp = TcpStream::connect((host.as_str(), *port)).await?;
            tcp.set_nodelay(true)?;
            self.tls.connect(self.name.clone(), tcp).await
        };
        let stream = timeout(CONNECT, connect)
            .await
            .map_err(|_| SourceError::Timeout(self.authority.clone()))?
            .map_err(SourceError::Connect)?;
        let (sender, connection) = http1::Builder::new()
            .max_headers(64)
            .max_buf_size(64 * 1024)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| SourceError::Connection { path: path.to_owned(), error })?;
        // It ends with the sender, and what goes wrong on it is told to the request.
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn tls_config(ca: &std::path::Path) -> Result<ClientConfig, SourceError> {
    let bad = |what: String| SourceError::Authorities { path: ca.display().to_string(), what };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|e| bad(e.to_string()))? {
        roots.add(certificate.map_err(|e| bad(e.to_string()))?).map_err(|e| bad(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad("no certificate in it".to_owned()));
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}
