//! Plain HTTP for monitoring: `/metrics`, `/healthz`, `/readyz`.

use std::{collections::HashMap, future::Future, io};

use axum::{
    Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use crate::{health::Health, metrics::Metrics};

#[derive(Debug, Clone)]
struct Shared {
    metrics: Metrics,
    health: Health,
}

/// The routes, for [`serve`] and for tests.
pub fn router(metrics: Metrics, health: Health) -> Router {
    Router::new()
        .route("/metrics", get(render))
        // The event loop turns: nothing else, or a slow database would restart the process.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Shared { metrics, health })
}

/// Serves until `shutdown` resolves.
///
/// # Errors
/// When the socket fails.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    health: Health,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router(metrics, health)).with_graceful_shutdown(shutdown).await
}

async fn render(State(shared): State<Shared>) -> Response {
    match shared.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// 200 or 503; with `?verbose` one line per check.
async fn ready(State(shared): State<Shared>, Query(query): Query<HashMap<String, String>>) -> Response {
    let report = shared.health.report().await;
    let (code, word) = if report.ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    };
    let body = if query.contains_key("verbose") { format!("{report}{word}") } else { word.to_owned() };
    (code, body).into_response()
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;
    use crate::metrics::BuildInfo;

    async fn ask(health: &Health, path: &str) -> (StatusCode, String) {
        let build = BuildInfo { version: "0", commit: "0", network: "regtest", epoch: 1 };
        let router = router(Metrics::new(build, &[1, 2]).unwrap(), health.clone());
        let response = router.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_follows_the_checks() {
        let good = Health::default().with("database", || async { Ok("reachable".to_owned()) });
        assert_eq!(ask(&good, "/readyz").await, (StatusCode::OK, "ready\n".to_owned()));
        let bad = good.with("chain", || async { Err("tip is old".to_owned()) });
        assert_eq!(ask(&bad, "/readyz").await, (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()));
        let (status, text) = ask(&bad, "/readyz?verbose").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text, "ok database: reachable\nFAIL chain: tip is old\nnot ready\n");
        // Alive all the same.
        assert_eq!(ask(&bad, "/healthz").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_check_that_hangs_has_failed() {
        let hung = Health::default().with("signer", std::future::pending);
        assert!(!hung.report().await.ready());
    }

    #[tokio::test]
    async fn metrics_are_text() {
        let (status, text) = ask(&Health::default(), "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("# TYPE spark_operator_rpc_requests_total counter"));
    }
}
