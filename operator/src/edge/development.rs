//! Calls that only the public SDKs' own test suites make (D17): in builds with the feature `development`, and there only
//! where the configuration says so. Nothing that they carry is read or kept.

#[cfg(not(debug_assertions))]
compile_error!("feature `development` is for test suites on regtest: no release may have it");

use bytes::Bytes;
use http::Response;
use tonic::body::Body;

use super::authz::{Method, Rule, SPARK, field, method};

/// The calls.
const METHODS: &[Method] = &[
    // Tweaks in clear, early in a claim. They are thrown away: the claim that follows brings its own, sealed. A wallet
    // that went on the old way would be refused by `claim_transfer_sign_refunds_v2`, and has lost nothing.
    method(SPARK, "claim_transfer_tweak_keys", Rule::SessionEquals(field(2, "owner_identity_public_key"))),
    // Preimage shares under a hash that suites use again and again: none is kept, so nothing is to be cleaned up.
    method("mock.MockService", "clean_up_preimage_share", Rule::Open),
];

/// The method behind an HTTP path.
pub(super) fn lookup(path: &str) -> Option<&'static Method> {
    let (service, name) = path.strip_prefix('/')?.split_once('/')?;
    METHODS.iter().find(|method| method.service == service && method.name == name)
}

/// An empty message.
pub(super) fn answer() -> Response<Body> {
    let message = http_body_util::Full::new(Bytes::from_static(&[0; 5]));
    let trailers = std::future::ready(Some(Ok(http::HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        http::HeaderValue::from_static("0"),
    )]))));
    let mut response = Response::new(Body::new(http_body_util::BodyExt::with_trailers(message, trailers)));
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    response
}
