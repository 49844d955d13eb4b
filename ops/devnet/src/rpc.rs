//! JSON-RPC over HTTP/1.1 to bitcoind: one connection per call, no time limit, because `waitfornewblock` may
//! take as long as it likes. Whoever wants a limit wraps the call in [`tokio::time::timeout`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::net::TcpStream;

#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    #[error("no connection to {0}")]
    Connect(SocketAddr, #[source] std::io::Error),
    #[error("HTTP exchange failed")]
    Http(#[source] hyper::Error),
    #[error("answered with HTTP status {0}")]
    Status(StatusCode),
    #[error("{method}: {message} (code {code})")]
    Refused { method: String, code: i64, message: String },
    #[error("{method}: the answer has another shape")]
    Shape { method: String, source: serde_json::Error },
}

/// Where a node listens and who we are there.
#[derive(Clone, Debug)]
pub struct RpcClient {
    address: SocketAddr,
    authorization: String,
}

/// An answer as it came over the wire.
#[derive(Debug)]
pub struct RawReply {
    pub status: StatusCode,
    pub body: Bytes,
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    result: Value,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    code: i64,
    message: String,
}

impl RpcClient {
    pub fn new(address: SocketAddr, user: &str, password: &str) -> Self {
        Self { address, authorization: basic_authorization(user, password) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Calls `method` with positional or named parameters and decodes the result.
    pub async fn call<T: DeserializeOwned>(&self, method: &str, params: Value) -> Result<T, RpcError> {
        let request = json!({"jsonrpc": "2.0", "id": 0, "method": method, "params": params});
        let reply = self.post(Bytes::from(request.to_string())).await?;
        let shape = |source| RpcError::Shape { method: method.to_owned(), source };
        let parsed: Reply = match serde_json::from_slice(&reply.body) {
            Ok(parsed) => parsed,
            // Refused before any JSON was looked at: wrong password, work queue full.
            Err(_) if !reply.status.is_success() => return Err(RpcError::Status(reply.status)),
            Err(error) => return Err(shape(error)),
        };
        if let Some(Refusal { code, message }) = parsed.error {
            return Err(RpcError::Refused { method: method.to_owned(), code, message });
        }
        serde_json::from_value(parsed.result).map_err(shape)
    }

    /// Sends a body as it is and returns what came back as it is.
    pub async fn post(&self, body: Bytes) -> Result<RawReply, RpcError> {
        let stream =
            TcpStream::connect(self.address).await.map_err(|error| RpcError::Connect(self.address, error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(RpcError::Http)?;
        let request = Request::post("/")
            .header(HOST, self.address.to_string())
            .header(AUTHORIZATION, &self.authorization)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body));
        // Only our own constants and a base64 text went in: it cannot fail, but has no infallible form.
        let Ok(request) = request else { return Err(RpcError::Status(StatusCode::BAD_REQUEST)) };
        let exchange = async {
            let response = sender.send_request(request).await.map_err(RpcError::Http)?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(RpcError::Http)?.to_bytes();
            Ok(RawReply { status, body })
        };
        // The connection must be polled for the exchange to move; both end together, and a caller that stops
        // waiting drops both.
        let mut connection = std::pin::pin!(connection);
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            biased;
            reply = &mut exchange => reply,
            closed = &mut connection => {
                closed.map_err(RpcError::Http)?;
                exchange.await
            }
        }
    }
}

/// The value of an `Authorization` header for HTTP basic authentication (RFC 7617).
pub(crate) fn basic_authorization(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}
