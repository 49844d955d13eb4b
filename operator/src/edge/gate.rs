//! Size limit, session, per-identity quota and authorisation table, before any handler runs.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use secp256k1::PublicKey;
use spark_proto::transport::RemoteAddr;
use tokio::time::timeout;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

#[cfg(feature = "development")]
use super::development;
use super::{
    Edge, MAX_REQUEST_BYTES,
    authz::{Method, Rule, lookup},
    quota::Quotas,
    wire,
};
use crate::{
    authn::{Authn, Session, TokenState},
    status::{Reason, Refused},
};

/// Flag and length before the message.
const FRAME_BYTES: usize = 5;
/// Most bytes of a request without a session: the login calls are far smaller.
const OPEN_REQUEST_BYTES: usize = 16 * 1024;
/// Longest wait for a whole body.
const READ: Duration = Duration::from_secs(20);

#[derive(Debug, Clone)]
pub(super) struct GateLayer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    authn: Authn,
    quotas: Arc<Quotas>,
    open_reads: bool,
    sdk_suites: bool,
}

impl GateLayer {
    pub(super) fn new(edge: &Edge) -> Self {
        let Edge { authn, quotas, open_reads, sdk_suites, .. } = edge.clone();
        Self { shared: Arc::new(Shared { authn, quotas, open_reads, sdk_suites }) }
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner, shared: self.shared.clone() }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Gate<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = self.shared.clone();
        // The clone that was polled ready is the one to call.
        let other = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, other);
        Box::pin(async move {
            match shared.admit(request).await {
                #[cfg(feature = "development")]
                Ok(request) if development::lookup(request.uri().path()).is_some() => {
                    Ok(development::answer())
                }
                Ok(request) => inner.call(request).await,
                Err(refused) => Ok(Status::from(refused).into_http()),
            }
        })
    }
}

impl Shared {
    /// The request as the handler may see it: its body read and within bounds, the session in its extensions.
    async fn admit(&self, request: Request<Body>) -> Result<Request<Body>, Refused> {
        let path = request.uri().path();
        let method = self
            .method(path)
            .filter(|method| method.offered())
            .ok_or_else(|| Refused::unimplemented(path.trim_start_matches('/')))?;
        // Before the body: a stranger must not make us hold ten megabytes.
        let token = self.authn.session(request.headers());
        let session = match method.rule {
            Rule::Open => match token {
                TokenState::Valid(session) => Some(session),
                TokenState::Absent | TokenState::Expired => None,
            },
            // A token that is over is said to be over: its wallet logs in again and sees what is its own.
            Rule::Read if self.open_reads && token == TokenState::Absent => None,
            _ => Some(token.required()?),
        };
        if let Some(session) = &session {
            self.quotas.take_identity(&session.identity, method.cost)?;
        } else if let Some(RemoteAddr(address)) = request.extensions().get::<RemoteAddr>() {
            // One was counted before; what has no identity pays the rest with its address.
            self.quotas.take_address(address.ip(), method.cost.saturating_sub(1))?;
        }
        let (mut parts, body) = request.into_parts();
        // What a stranger may send is small.
        let limit = if session.is_some() { MAX_REQUEST_BYTES } else { OPEN_REQUEST_BYTES };
        let body = match timeout(READ, read(body, limit)).await {
            Ok(body) => body?,
            Err(_) => return Err(Refused::field("request", "the body did not arrive in time")),
        };
        if let Some(session) = session {
            authorize(method.rule, &session, &body)?;
            parts.extensions.insert(session);
        }
        Ok(Request::from_parts(parts, Body::new(Full::new(body))))
    }
}

impl Shared {
    #[cfg(feature = "development")]
    fn method(&self, path: &str) -> Option<&'static Method> {
        self.sdk_suites.then(|| development::lookup(path)).flatten().or_else(|| lookup(path))
    }

    #[cfg(not(feature = "development"))]
    fn method(&self, path: &str) -> Option<&'static Method> {
        debug_assert!(!self.sdk_suites, "nothing sets it");
        lookup(path)
    }
}

async fn read(body: Body, limit: usize) -> Result<Bytes, Refused> {
    match Limited::new(body, limit.saturating_add(FRAME_BYTES)).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Refused::new(Reason::MessageTooLarge, format!("requests may have at most {limit} bytes")))
        }
        Err(_) => Err(Refused::field("request", "the body ended early")),
    }
}

fn authorize(rule: Rule, session: &Session, body: &[u8]) -> Result<(), Refused> {
    let field = match rule {
        Rule::Open | Rule::Session | Rule::Read => return Ok(()),
        Rule::SessionEquals(field) => field,
        Rule::Unimplemented => return Err(Refused::new(Reason::Unimplemented, "not offered")),
    };
    let malformed = |error: wire::WireError| Refused::field("request", error.to_string());
    let message = wire::unframe(body).map_err(malformed)?;
    let values = wire::bytes_fields(message, field.number).map_err(malformed)?;
    if values.is_empty() {
        return Err(Refused::field(field.name, "is missing"));
    }
    for value in values {
        let key = PublicKey::from_slice(value)
            .map_err(|_| Refused::field(field.name, "must be a secp256k1 public key"))?;
        if key != session.identity {
            return Err(Refused::not_owner());
        }
    }
    Ok(())
}
