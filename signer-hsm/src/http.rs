//! Metrics and health over plain HTTP, for the local network of the operator.

use axum::{Router, http::StatusCode, routing::get};

use crate::metrics::Metrics;

/// `/metrics`, `/healthz` (the process answers), `/readyz` (unlocked, and the keys token answers: it votes and signs).
pub fn router(metrics: Metrics) -> Router {
    let text = metrics.clone();
    Router::new()
        .route("/metrics", get(move || async move { text.render() }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || async move {
                if !metrics.is_unlocked() {
                    (StatusCode::SERVICE_UNAVAILABLE, "locked: the peers' memory was not heard yet\n")
                } else if !metrics.keys_answer() {
                    (StatusCode::SERVICE_UNAVAILABLE, "the keys token does not answer\n")
                } else {
                    (StatusCode::OK, "ready\n")
                }
            }),
        )
}
