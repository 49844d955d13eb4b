//! grpc-web over HTTP/1.1 and real TLS, binary and text form, as a browser speaks it.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{Code, Status};

use super::call::Door;

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `application/grpc-web+proto`.
    Binary,
    /// `application/grpc-web-text+proto`: base64.
    Text,
}

/// A client without a certificate.
pub(crate) struct Web {
    door: Door,
    form: Form,
    config: Arc<ClientConfig>,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Web {
    /// Connects when first used.
    pub(crate) fn new(door: &Door, form: Form) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&door.ca)?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { door: door.clone(), form, config: Arc::new(config), sender: None })
    }

    async fn sender(&mut self) -> anyhow::Result<&mut SendRequest<Full<Bytes>>> {
        let lives = match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !lives {
            let tcp = TcpStream::connect(&self.door.address).await?;
            let name = ServerName::try_from(self.door.host().to_owned())?;
            let tls = TlsConnector::from(Arc::clone(&self.config)).connect(name, tcp).await?;
            let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
            tokio::spawn(connection);
            self.sender = Some(sender);
        }
        self.sender.as_mut().context("connected")
    }

    /// The answer to one call; of a stream, its first message. The outer error is not the operator's.
    pub(crate) async fn call(
        &mut self,
        path: &str,
        message: &[u8],
        authorization: Option<&[u8]>,
    ) -> anyhow::Result<Result<Bytes, Status>> {
        let frame = [&[0][..], &u32::try_from(message.len())?.to_be_bytes(), message].concat();
        let (kind, body) = match self.form {
            Form::Binary => ("application/grpc-web+proto", frame),
            Form::Text => ("application/grpc-web-text+proto", STANDARD.encode(frame).into_bytes()),
        };
        let mut request = Request::post(path)
            .header("host", &self.door.address)
            .header("content-type", kind)
            .header("accept", kind)
            .header("x-grpc-web", "1")
            .body(Full::new(Bytes::from(body)))?;
        if let Some(value) = authorization {
            request.headers_mut().insert("authorization", HeaderValue::from_bytes(value)?);
        }
        let response = self.sender().await?.send_request(request).await?;
        ensure!(response.status().is_success(), "{path}: HTTP {}", response.status());
        if let Some(status) = Status::from_header_map(response.headers()).filter(|s| s.code() != Code::Ok) {
            response.into_body().collect().await?;
            return Ok(Err(status));
        }
        let body = response.into_body().collect().await?.to_bytes();
        match self.form {
            Form::Binary => frames(&body),
            Form::Text => {
                let mut plain = Vec::new();
                // Each chunk of a stream is padded by itself.
                for quartet in body.chunks(4) {
                    plain.extend(STANDARD.decode(quartet)?);
                }
                frames(&plain)
            }
        }
    }
}

/// The first message, or the status in the trailers.
fn frames(mut body: &[u8]) -> anyhow::Result<Result<Bytes, Status>> {
    let mut first = None;
    while let Some((head, rest)) = body.split_first_chunk::<5>() {
        let [flag, length @ ..] = *head;
        let (content, rest) =
            rest.split_at_checked(usize::try_from(u32::from_be_bytes(length))?).context("frame")?;
        body = rest;
        if flag & 0x80 == 0 {
            first.get_or_insert_with(|| Bytes::copy_from_slice(content));
            continue;
        }
        let mut trailers = HeaderMap::new();
        for line in String::from_utf8_lossy(content).lines() {
            if let Some((name, value)) = line.split_once(':') {
                trailers.insert(HeaderName::try_from(name.trim())?, HeaderValue::try_from(value.trim())?);
            }
        }
        let status = Status::from_header_map(&trailers).context("trailers without a status")?;
        if status.code() != Code::Ok {
            return Ok(Err(status));
        }
    }
    Ok(Ok(first.context("neither message nor status")?))
}
