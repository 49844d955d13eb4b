//! What every public call passes before a handler sees it.
//!
//! From outside to inside: trace id and timing · CORS · per-address quota · files of the deletion log · grpc-web
//! translation · metrics · size limit, session, per-identity quota and authorisation table · handlers. A method that
//! is not in the table, or that no handler serves, never runs.

mod authz;
#[cfg(feature = "development")]
mod development;
mod gate;
mod listeners;
mod observe;
mod quota;
mod trace;
mod wire;

use std::{convert::Infallible, sync::Arc};

pub use authz::{Method, Rule, TABLE, lookup};
use bytes::Bytes;
use http::{HeaderName, Request, Response, header};
pub use listeners::{TlsMaterial, signer_channel};
pub use quota::{QuotaLimits, Quotas};
use tonic::{body::Body, service::Routes};
use tower::{BoxError, Layer as _, ServiceBuilder, util::BoxCloneService};
use tower_http::cors::{Any, CorsLayer};
pub use trace::TraceId;

use crate::{authn::Authn, deletion_log::LogFiles, metrics::Metrics};

/// Largest request message, in bytes.
pub const MAX_REQUEST_BYTES: usize = 10 * 1024 * 1024;
/// Milliseconds until the response headers, as decimal text. Public wallets set their clock by it and `date`.
pub const PROCESSING_TIME: HeaderName = HeaderName::from_static("x-processing-time-ms");
/// Names the call in the log.
pub const TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");

/// What the public edge works with. Clones share everything.
#[derive(Debug, Clone)]
pub struct Edge {
    /// Sessions.
    pub authn: Authn,
    /// Limits per address and per identity.
    pub quotas: Arc<Quotas>,
    /// Where calls are counted.
    pub metrics: Metrics,
    /// What everybody may read.
    pub files: LogFiles,
    /// Queries need no session ([`Rule::Read`]).
    pub open_reads: bool,
    /// What only test suites call is answered; only in a build with the feature `development`.
    pub sdk_suites: bool,
}

/// A service for [`spark_proto::transport::serve`]: the public handlers in `routes` behind every check.
pub fn public_service<B>(
    edge: &Edge,
    routes: Routes,
) -> BoxCloneService<Request<B>, Response<Body>, Infallible>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + std::fmt::Display + Send,
{
    let gate = gate::GateLayer::new(edge);
    let inner = ServiceBuilder::new()
        .layer(trace::TraceLayer)
        .layer(cors())
        .layer(quota::AddressQuotaLayer::new(edge.quotas.clone()))
        .layer(edge.files.clone())
        .layer(tonic_web::GrpcWebLayer::new())
        .layer(observe::ObserveLayer::new(edge.metrics.clone()))
        .service(gate.layer(routes));
    BoxCloneService::new(inner)
}

/// Any web page may call: sessions are bearer tokens that a page must already hold, never cookies.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([http::Method::GET, http::Method::POST, http::Method::OPTIONS])
        .allow_headers(tower_http::cors::AllowHeaders::mirror_request())
        .expose_headers([
            header::DATE,
            PROCESSING_TIME,
            TRACE_ID,
            HeaderName::from_static("grpc-status"),
            HeaderName::from_static("grpc-message"),
            HeaderName::from_static("grpc-status-details-bin"),
        ])
        .max_age(std::time::Duration::from_secs(3600))
}
