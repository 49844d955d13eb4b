//! Trace id and processing time of every public response.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use http::{HeaderMap, HeaderValue, Request, Response};
use rand::RngCore as _;
use tower::{Layer, Service};
use tracing::Instrument as _;

use super::{PROCESSING_TIME, TRACE_ID};

/// Names one call in the log; in the extensions of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId([u8; 16]);

impl TraceId {
    /// The trace id of a W3C `traceparent` header, or a fresh one.
    pub fn of(headers: &HeaderMap) -> Self {
        let given = headers.get("traceparent").and_then(|value| value.to_str().ok()).and_then(|text| {
            let mut parts = text.split('-');
            let (version, id) = (parts.next()?, parts.next()?);
            let mut bytes = [0; 16];
            hex::decode_to_slice(id, &mut bytes).ok()?;
            (version == "00" && bytes != [0; 16]).then_some(Self(bytes))
        });
        given.unwrap_or_else(|| {
            let mut bytes = [0; 16];
            rand::thread_rng().fill_bytes(&mut bytes);
            Self(bytes)
        })
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Trace<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Trace<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let started = Instant::now();
        let id = TraceId::of(request.headers());
        request.extensions_mut().insert(id);
        let span = tracing::info_span!("rpc", trace_id = %id, path = request.uri().path());
        let call = self.inner.call(request).instrument(span);
        Box::pin(async move {
            let mut response = call.await?;
            let headers = response.headers_mut();
            let elapsed = format!("{:.3}", started.elapsed().as_secs_f64() * 1000.0);
            for (name, text) in [(PROCESSING_TIME, elapsed), (TRACE_ID, id.to_string())] {
                if let Ok(value) = HeaderValue::from_str(&text) {
                    headers.insert(name, value);
                }
            }
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparent_is_kept_when_well_formed() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", text.parse().unwrap());
            TraceId::of(&headers).to_string()
        };
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(of(&format!("00-{id}-00f067aa0ba902b7-01")), id);
        for bad in [
            format!("ff-{id}-00f067aa0ba902b7-01"),
            "00-00-00-00".to_owned(),
            format!("00-{}-x", "0".repeat(32)),
        ] {
            let fresh = of(&bad);
            assert!(fresh != id && fresh.len() == 32, "{bad}");
        }
    }
}
