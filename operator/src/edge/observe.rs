//! Counts and times public calls.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::authz::lookup;
use crate::metrics::{Metrics, RpcLabels};

#[derive(Debug, Clone)]
pub(super) struct ObserveLayer {
    metrics: Metrics,
}

impl ObserveLayer {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, metrics: self.metrics.clone() }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Observe<S> {
    inner: S,
    metrics: Metrics,
}

impl<S> Service<Request<Body>> for Observe<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let labels = lookup(request.uri().path())
            .map_or(RpcLabels::UNKNOWN, |method| RpcLabels { service: method.service, method: method.name });
        let mut watch = Watch::start(self.metrics.clone(), labels);
        let call = self.inner.call(request);
        Box::pin(async move {
            let response = call.await?;
            watch.saw(response.headers());
            // The status of a successful call comes in the trailers, after the messages.
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    if let Some(trailers) = frame.trailers_ref() {
                        watch.saw(trailers);
                    }
                    frame
                }))
            }))
        })
    }
}

/// Lives as long as the call, also one that the client gives up.
struct Watch {
    metrics: Metrics,
    labels: RpcLabels,
    started: Instant,
    code: Option<Code>,
}

impl Watch {
    fn start(metrics: Metrics, labels: RpcLabels) -> Self {
        metrics.rpc_started(labels);
        Self { metrics, labels, started: Instant::now(), code: None }
    }

    fn saw(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.code = Some(status.code());
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // No status yet: the client went away.
        self.metrics.rpc_ended(self.labels, self.code.unwrap_or(Code::Cancelled), self.started.elapsed());
    }
}
