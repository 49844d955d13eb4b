//! The public edge as a wallet sees it: login, authorisation, quotas, headers, grpc-web.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails should say where"
)]

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use secp256k1::{Keypair, SECP256K1, SecretKey, ecdsa::Signature};
use sha2::{Digest as _, Sha256};
use spark_operator::{
    authn::{Authn, challenge_nonce},
    deletion_log::{LogFiles, Published},
    edge::{Edge, MAX_REQUEST_BYTES, QuotaLimits, Quotas, Rule, TABLE, public_service},
    health::Health,
    metrics::{BuildInfo, Metrics},
    signer_client::SignerClient,
};
use spark_proto::{
    spark::{QueryBalanceRequest, SubscribeToEventsRequest},
    spark_authn::{
        GetChallengeRequest, GetChallengeResponse, ProtectedChallenge, VerifyChallengeRequest,
        VerifyChallengeResponse, spark_authn_service_server::SparkAuthnServiceServer,
    },
    transport::RemoteAddr,
};
use tonic::{Code, Status, body::Body, service::Routes, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};
use tonic_types::StatusExt as _;
use tower::{ServiceExt as _, util::BoxCloneService};

type Public = BoxCloneService<Request<Full<Bytes>>, Response<Body>, std::convert::Infallible>;

struct World {
    public: Public,
    metrics: Metrics,
    operator: Keypair,
    /// Seconds since 1970.
    clock: Arc<AtomicU64>,
}

fn keypair(seed: u8) -> Keypair {
    Keypair::from_secret_key(SECP256K1, &SecretKey::from_slice(&[seed; 32]).unwrap())
}

fn world_with(burst: u32) -> World {
    world_beside(burst, |routes| routes)
}

/// Where queries need no session.
fn open_world() -> World {
    world_of(10_000, true, |routes| routes)
}

/// The login and what `more` adds to it.
fn world_beside(burst: u32, more: impl FnOnce(Routes) -> Routes) -> World {
    world_of(burst, false, more)
}

fn world_of(burst: u32, open_reads: bool, more: impl FnOnce(Routes) -> Routes) -> World {
    let operator = keypair(1);
    let clock = Arc::new(AtomicU64::new(1_800_000_000));
    let now = clock.clone();
    let authn = Authn::with_clock(operator.public_key(), Duration::from_secs(900), move || {
        UNIX_EPOCH + Duration::from_secs(now.load(Ordering::SeqCst))
    });
    let metrics =
        Metrics::new(BuildInfo { version: "0", commit: "0", network: "regtest", epoch: 1 }, &[1, 2]).unwrap();
    let burst = NonZeroU32::new(burst).unwrap();
    let quotas = Arc::new(Quotas::new(QuotaLimits {
        address_per_second: NonZeroU32::MIN,
        address_burst: burst,
        identity_per_second: NonZeroU32::MIN,
        identity_burst: burst,
    }));
    let routes = more(Routes::new(SparkAuthnServiceServer::new(authn.clone())));
    // Nothing is published, so nobody asks this signer.
    let signer =
        SignerClient::new(Endpoint::from_static("http://localhost:1").connect_lazy(), Duration::ZERO);
    let files = LogFiles::new(Published::default(), signer);
    let edge = Edge {
        authn,
        quotas,
        metrics: metrics.clone(),
        files,
        open_reads,
        sdk_suites: open_reads && cfg!(feature = "development"),
    };
    World { public: public_service(&edge, routes), metrics, operator, clock }
}

fn world() -> World {
    world_with(10_000)
}

fn frame(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, message].concat().into()
}

impl World {
    async fn send(&self, request: Request<Full<Bytes>>) -> Response<Body> {
        self.public.clone().oneshot(request).await.unwrap()
    }

    fn request(path: &str, message: &[u8], token: Option<&str>) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(Method::POST)
            .version(http::Version::HTTP_2)
            .uri(format!("https://operator{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let mut request = request.body(Full::new(frame(message))).unwrap();
        request.extensions_mut().insert(RemoteAddr(SocketAddr::from(([10, 0, 0, 1], 1234))));
        request
    }

    async fn call(&self, path: &str, message: &[u8], token: Option<&str>) -> Result<Bytes, Status> {
        let response = self.send(Self::request(path, message, token)).await;
        if let Some(status) = Status::from_header_map(response.headers())
            && status.code() != Code::Ok
        {
            return Err(status);
        }
        let collected = response.into_body().collect().await.unwrap();
        let status = collected.trailers().and_then(Status::from_header_map);
        match status {
            Some(status) if status.code() != Code::Ok => Err(status),
            _ => Ok(collected.to_bytes().slice(5..)),
        }
    }

    async fn challenge(&self, wallet: &Keypair) -> ProtectedChallenge {
        let request = GetChallengeRequest { public_key: wallet.public_key().serialize().to_vec() };
        let answer = self.call(GET, &request.encode_to_vec(), None).await.unwrap();
        GetChallengeResponse::decode(answer).unwrap().protected_challenge.unwrap()
    }

    async fn answer(
        &self,
        wallet: &Keypair,
        protected: ProtectedChallenge,
        signature: Signature,
    ) -> Result<VerifyChallengeResponse, Status> {
        let request = VerifyChallengeRequest {
            protected_challenge: Some(protected),
            signature: signature.serialize_der().to_vec(),
            public_key: wallet.public_key().serialize().to_vec(),
        };
        let answer = self.call(VERIFY, &request.encode_to_vec(), None).await?;
        Ok(VerifyChallengeResponse::decode(answer).unwrap())
    }

    async fn login(&self, wallet: &Keypair) -> String {
        let protected = self.challenge(wallet).await;
        let signature = sign(wallet, &protected);
        self.answer(wallet, protected, signature).await.unwrap().session_token
    }

    fn pass(&self, seconds: u64) {
        self.clock.fetch_add(seconds, Ordering::SeqCst);
    }
}

const GET: &str = "/spark_authn.SparkAuthnService/get_challenge";
const VERIFY: &str = "/spark_authn.SparkAuthnService/verify_challenge";
const BALANCE: &str = "/spark.SparkService/query_balance";
const EVENTS: &str = "/spark.SparkService/subscribe_to_events";

fn sign(wallet: &Keypair, protected: &ProtectedChallenge) -> Signature {
    let digest = Sha256::digest(protected.challenge.as_ref().unwrap().encode_to_vec());
    SECP256K1.sign_ecdsa(&secp256k1::Message::from_digest(digest.into()), &wallet.secret_key())
}

fn balance_of(wallet: &Keypair) -> Vec<u8> {
    let identity_public_key = wallet.public_key().serialize().to_vec();
    QueryBalanceRequest { identity_public_key, ..Default::default() }.encode_to_vec()
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// The gate let it through: only the missing handler refuses.
fn reached_handlers(result: Result<Bytes, Status>) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unimplemented, String::new()), "{status:?}");
}

#[tokio::test]
async fn login_gives_a_session() {
    let (world, wallet) = (world(), keypair(2));
    let protected = world.challenge(&wallet).await;
    let challenge = protected.challenge.clone().unwrap();
    assert_eq!((protected.version, challenge.version), (1, 1));
    assert_eq!(challenge.public_key, wallet.public_key().serialize());
    // D24: the nonce names this operator and no other.
    let head: [u8; 16] = challenge.nonce[..16].try_into().unwrap();
    assert_eq!(challenge.nonce, challenge_nonce(&world.operator.public_key(), head));
    assert_ne!(challenge.nonce, challenge_nonce(&keypair(9).public_key(), head));

    let signature = sign(&wallet, &protected);
    let answer = world.answer(&wallet, protected, signature).await.unwrap();
    assert_eq!(answer.expiration_timestamp, 1_800_000_900);
    let token = answer.session_token;
    for given in [token.clone(), format!("Bearer {token}"), format!("bearer {token}")] {
        reached_handlers(world.call(BALANCE, &balance_of(&wallet), Some(&given)).await);
    }
}

#[tokio::test]
async fn challenges_end_and_work_once() {
    let (world, wallet) = (world(), keypair(2));
    let protected = world.challenge(&wallet).await;
    let signature = sign(&wallet, &protected);
    world.answer(&wallet, protected.clone(), signature).await.unwrap();
    let again = world.answer(&wallet, protected, signature).await.unwrap_err();
    assert_eq!((again.code(), reason(&again).as_str()), (Code::Unauthenticated, "CHALLENGE_USED"));

    let protected = world.challenge(&wallet).await;
    world.pass(62);
    let late = world.answer(&wallet, protected.clone(), sign(&wallet, &protected)).await.unwrap_err();
    assert!(late.message().contains("challenge expired"), "{late:?}");
}

#[tokio::test]
async fn forged_answers_are_refused() {
    let (world, wallet, thief) = (world(), keypair(2), keypair(3));
    let protected = world.challenge(&wallet).await;
    let by_thief = sign(&thief, &protected);
    let refused = world.answer(&wallet, protected.clone(), by_thief).await.unwrap_err();
    assert_eq!(reason(&refused), "SIGNATURE_INVALID");
    // A refused answer does not use the challenge up.
    world.answer(&wallet, protected.clone(), sign(&wallet, &protected)).await.unwrap();

    // Another key in the challenge, or beside it.
    let mut other = world.challenge(&wallet).await;
    other.challenge.as_mut().unwrap().public_key = thief.public_key().serialize().to_vec();
    let refused = world.answer(&thief, other.clone(), sign(&thief, &other)).await.unwrap_err();
    assert_eq!(reason(&refused), "CHALLENGE_EXPIRED");
    let protected = world.challenge(&wallet).await;
    let refused = world.answer(&thief, protected.clone(), sign(&wallet, &protected)).await.unwrap_err();
    assert_eq!(reason(&refused), "FIELD_INVALID");
}

/// X18: a challenge of one operator is worth nothing at another.
#[tokio::test]
async fn x18_challenge_of_another_operator() {
    let (one, other, wallet) = (world(), world(), keypair(2));
    let protected = one.challenge(&wallet).await;
    let refused = other.answer(&wallet, protected.clone(), sign(&wallet, &protected)).await.unwrap_err();
    assert!(refused.message().contains("challenge expired"), "{refused:?}");
}

#[tokio::test]
async fn sessions_end() {
    let (world, wallet) = (world(), keypair(2));
    let token = world.login(&wallet).await;
    world.pass(901);
    let expired = world.call(BALANCE, &balance_of(&wallet), Some(&token)).await.unwrap_err();
    assert_eq!(expired.code(), Code::Unauthenticated);
    assert!(expired.message().contains("token has expired"));
    // Another process, or after a restart.
    let foreign = self::world().login(&wallet).await;
    let unknown = world.call(BALANCE, &balance_of(&wallet), Some(&foreign)).await.unwrap_err();
    assert!(unknown.message().contains("token has expired"));
    // The login itself works with a dead or senseless token.
    for token in [&foreign[..], "Bearer undefined", "Bearer "] {
        let request = GetChallengeRequest { public_key: wallet.public_key().serialize().to_vec() };
        world.call(GET, &request.encode_to_vec(), Some(token)).await.unwrap();
    }
    for senseless in ["Bearer undefined", "", "Bearer ", "%%%"] {
        let refused = world.call(BALANCE, &balance_of(&wallet), Some(senseless)).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unauthenticated, "SESSION_MISSING"));
    }
}

#[tokio::test]
async fn every_flipped_bit_of_a_token_kills_it() {
    let (world, wallet) = (world(), keypair(2));
    let token = world.login(&wallet).await;
    for index in (0..token.len()).step_by(7) {
        let mut bytes = token.clone().into_bytes();
        bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(bytes).unwrap();
        assert!(
            world.call(BALANCE, &balance_of(&wallet), Some(&forged)).await.unwrap_err().code()
                == Code::Unauthenticated
        );
    }
}

/// Every method of the table without a session, and the ones not offered with one.
#[tokio::test]
async fn nothing_runs_without_its_rule() {
    let (world, wallet) = (world(), keypair(2));
    let token = world.login(&wallet).await;
    // Health answers anybody and has its own test.
    for method in TABLE.iter().filter(|method| !method.service.starts_with("grpc.health")) {
        let path = format!("/{}/{}", method.service, method.name);
        let bare = world.call(&path, &[], None).await.unwrap_err();
        let with = world.call(&path, &[], Some(&token)).await.unwrap_err();
        match method.rule {
            Rule::Open => assert_eq!(bare.code(), Code::InvalidArgument, "{path}"),
            Rule::Unimplemented => {
                for status in [bare, with] {
                    assert_eq!(
                        (status.code(), reason(&status).as_str()),
                        (Code::Unimplemented, "UNIMPLEMENTED"),
                        "{path}"
                    );
                }
            }
            Rule::SessionEquals(_) => {
                assert_eq!(bare.code(), Code::Unauthenticated, "{path}");
                assert_eq!(with.code(), Code::InvalidArgument, "{path}");
            }
            Rule::Session | Rule::Read => {
                assert_eq!(bare.code(), Code::Unauthenticated, "{path}");
                reached_handlers(Err(with));
            }
        }
    }
    for path in [
        "/peer.v1.PeerService/propose",
        "/spark.SparkService/no_such_method",
        "/grpc.health.v1.Health/List",
        "/x",
    ] {
        assert_eq!(world.call(path, &[], Some(&token)).await.unwrap_err().code(), Code::Unimplemented);
    }
}

/// Where reads are open, queries reach their handlers without a session, and nothing else does.
#[tokio::test]
async fn s11_open_reads_open_queries_only() {
    let (world, wallet) = (open_world(), keypair(2));
    for method in TABLE.iter().filter(|method| matches!(method.rule, Rule::Session | Rule::SessionEquals(_)))
    {
        let path = format!("/{}/{}", method.service, method.name);
        let refused = world.call(&path, &[], None).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{path}");
    }
    reached_handlers(world.call(BALANCE, &balance_of(&wallet), None).await);
    // A session that is over is not taken for none.
    let token = world.login(&wallet).await;
    world.clock.fetch_add(10_000, Ordering::SeqCst);
    let over = world.call(BALANCE, &balance_of(&wallet), Some(&token)).await.unwrap_err();
    assert_eq!(reason(&over), "SESSION_EXPIRED");
}

/// D17: what only test suites call has no handler but in a build for them, where it is told to answer.
#[tokio::test]
async fn what_suites_call_is_answered_in_development_only() {
    let wallet = keypair(2);
    let tweak = "/spark.SparkService/claim_transfer_tweak_keys";
    let clean = "/mock.MockService/clean_up_preimage_share";
    let request = spark_proto::spark::ClaimTransferTweakKeysRequest {
        transfer_id: String::new(),
        owner_identity_public_key: wallet.public_key().serialize().to_vec(),
        leaves_to_receive: Vec::new(),
    };
    let request = request.encode_to_vec();
    let world = world();
    let token = world.login(&wallet).await;
    for path in [tweak, clean] {
        let refused = world.call(path, &request, Some(&token)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{path}");
    }
    if cfg!(feature = "development") {
        let world = open_world();
        let (token, other) = (world.login(&wallet).await, world.login(&keypair(3)).await);
        assert!(world.call(tweak, &request, Some(&token)).await.unwrap().is_empty());
        assert_eq!(
            world.call(tweak, &request, Some(&other)).await.unwrap_err().code(),
            Code::PermissionDenied
        );
        assert_eq!(world.call(tweak, &request, None).await.unwrap_err().code(), Code::Unauthenticated);
        assert!(world.call(clean, &[], None).await.unwrap().is_empty());
        // Never one that reads a secret.
        let read = world.call("/mock.MockService/query_preimage_share", &[], None).await.unwrap_err();
        assert_eq!(read.code(), Code::Unimplemented);
    }
}

fn ask_health(service: &str) -> Vec<u8> {
    HealthCheckRequest { service: service.to_owned() }.encode_to_vec()
}

/// Load balancers have no session. They hear what the checks say, for the whole server and for the service of wallets,
/// and no more.
#[tokio::test]
async fn health_needs_no_session_and_follows_the_checks() {
    let good = Arc::new(AtomicBool::new(true));
    let seen = good.clone();
    let health = Health::default().with("database", move || {
        let seen = seen.clone();
        async move { if seen.load(Ordering::SeqCst) { Ok(String::new()) } else { Err("gone".to_owned()) } }
    });
    let (mut grpc, service) = health.grpc().await;
    let world = world_beside(10_000, |routes| routes.add_service(service));
    let check = async |name: &str| {
        let answer = world.call("/grpc.health.v1.Health/Check", &ask_health(name), None).await?;
        Ok::<_, Status>(HealthCheckResponse::decode(answer).unwrap().status())
    };
    for name in ["", "spark.SparkService"] {
        assert_eq!(check(name).await.unwrap(), ServingStatus::NotServing, "before the first look");
    }
    grpc.look().await;

    let request = World::request("/grpc.health.v1.Health/Watch", &ask_health(""), None);
    let mut watching = world.send(request).await.into_body();
    let mut next = async || {
        let frame = watching.frame().await.unwrap().unwrap().into_data().unwrap();
        HealthCheckResponse::decode(frame.slice(5..)).unwrap().status()
    };
    assert_eq!(next().await, ServingStatus::Serving);
    good.store(false, Ordering::SeqCst);
    grpc.look().await;
    assert_eq!(next().await, ServingStatus::NotServing);
    for name in ["", "spark.SparkService"] {
        assert_eq!(check(name).await.unwrap(), ServingStatus::NotServing, "{name}");
    }
    good.store(true, Ordering::SeqCst);
    grpc.look().await;
    assert_eq!(next().await, ServingStatus::Serving);

    assert_eq!(check("peer.v1.Peer").await.unwrap_err().code(), Code::NotFound);
    // Callers are sent away before the process ends.
    grpc.run(std::future::ready(())).await;
    assert_eq!(next().await, ServingStatus::NotServing);
}

/// X19: nobody hears with somebody else's key. What queries show (X20) their handlers decide.
#[tokio::test]
async fn x19_only_the_own_identity() {
    let (world, wallet, victim) = (world(), keypair(2), keypair(3));
    let token = world.login(&wallet).await;
    let events = |wallet: &Keypair| {
        SubscribeToEventsRequest { identity_public_key: wallet.public_key().serialize().to_vec() }
            .encode_to_vec()
    };
    let foreign = world.call(EVENTS, &events(&victim), Some(&token)).await.unwrap_err();
    assert_eq!((foreign.code(), reason(&foreign).as_str()), (Code::PermissionDenied, "NOT_OWNER"));
    // Twice the same field: whichever the decoder takes.
    for (first, second) in [(&wallet, &victim), (&victim, &wallet)] {
        let both = [events(first), events(second)].concat();
        let refused = world.call(EVENTS, &both, Some(&token)).await.unwrap_err();
        assert_eq!(reason(&refused), "NOT_OWNER");
    }
    reached_handlers(world.call(EVENTS, &events(&wallet), Some(&token)).await);
}

#[tokio::test]
async fn malformed_bodies_are_typed_errors() {
    let (world, wallet) = (world(), keypair(2));
    let token = world.login(&wallet).await;
    for message in [&[0xff][..], &[0x52, 0x21, 1], &[0x52, 0x01, 1], &[0x53]] {
        let refused = world.call(EVENTS, message, Some(&token)).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::InvalidArgument, "FIELD_INVALID"),
            "{message:x?}"
        );
    }
    let large = vec![0; MAX_REQUEST_BYTES + 1];
    let refused = world.call(EVENTS, &large, Some(&token)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
}

/// X24: quotas hold whatever a client says about its address, also before login.
#[tokio::test]
async fn x24_quotas_ignore_forwarded_for() {
    let world = world_with(12);
    let wallet = keypair(2);
    let mut refused = None;
    for index in 0..40u8 {
        let request = GetChallengeRequest { public_key: wallet.public_key().serialize().to_vec() };
        let mut request = World::request(GET, &request.encode_to_vec(), None);
        request.headers_mut().insert("x-forwarded-for", format!("192.0.2.{index}").parse().unwrap());
        let response = world.send(request).await;
        refused = refused.or(Status::from_header_map(response.headers()).filter(|s| s.code() != Code::Ok));
    }
    let refused = refused.unwrap();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "QUOTA"));
    assert!(refused.get_error_details().retry_info().is_some());
}

/// The deletion log is for any HTTP client: a file that is not given must not look like an empty one.
#[tokio::test]
async fn files_are_refused_as_http_refuses() {
    let world = world_with(3);
    let mut codes = Vec::new();
    for path in
        ["/log/checkpoint", "/log/tile/0/000", "/log/../etc/passwd", "/log/checkpoint", "/log/checkpoint"]
    {
        let mut request = World::request(path, &[], None);
        *request.method_mut() = Method::GET;
        let response = world.send(request).await;
        let again = response.headers().get("retry-after").is_some();
        assert_eq!(again, response.status().as_u16() == 429);
        codes.push(response.status().as_u16());
    }
    // Nothing is published in this world.
    assert_eq!(codes, [503, 503, 503, 429, 429]);
    // No other method reads a file, and no other path has one.
    let world = world_with(3);
    for (method, path) in [(Method::POST, "/log/checkpoint"), (Method::GET, "/logs/checkpoint")] {
        let mut request = World::request(path, &[], None);
        *request.method_mut() = method;
        let status = Status::from_header_map(world.send(request).await.headers()).unwrap();
        assert_ne!(status.code(), Code::Ok);
    }
}

#[tokio::test]
async fn responses_carry_clock_and_trace() {
    let (world, wallet) = (world(), keypair(2));
    let request = GetChallengeRequest { public_key: wallet.public_key().serialize().to_vec() };
    let ok = world.send(World::request(GET, &request.encode_to_vec(), None)).await;
    let refused = world.send(World::request(BALANCE, &[], None)).await;
    for response in [ok, refused] {
        let elapsed: f64 = response.headers()["x-processing-time-ms"].to_str().unwrap().parse().unwrap();
        assert!((0.0..10_000.0).contains(&elapsed));
        assert_eq!(response.headers()["x-trace-id"].len(), 32);
        drop(response);
    }
    let text = world.metrics.render().unwrap();
    assert!(text.contains(
        r#"rpc_requests_total{code="UNAUTHENTICATED",method="query_balance",service="spark.SparkService"} 1"#
    ));
    assert!(text.contains(r#"rpc_in_flight{method="query_balance",service="spark.SparkService"} 0"#));
}

#[tokio::test]
async fn browsers_may_call() {
    let (world, wallet) = (world(), keypair(2));
    let mut preflight = World::request(GET, &[], None);
    *preflight.method_mut() = Method::OPTIONS;
    let headers = preflight.headers_mut();
    headers.insert("origin", "https://wallet.example".parse().unwrap());
    headers.insert("access-control-request-method", "POST".parse().unwrap());
    let wanted = "authorization,content-type,x-grpc-web,x-requested-with,x-session-id,x-client-env";
    headers.insert("access-control-request-headers", wanted.parse().unwrap());
    let answer = world.send(preflight).await;
    assert!(answer.status().is_success());
    assert_eq!(answer.headers()["access-control-allow-origin"], "*");
    assert_eq!(answer.headers()["access-control-allow-headers"], wanted);

    let request = GetChallengeRequest { public_key: wallet.public_key().serialize().to_vec() };
    let mut call = World::request(GET, &request.encode_to_vec(), None);
    *call.version_mut() = http::Version::HTTP_11;
    call.headers_mut().insert("content-type", "application/grpc-web+proto".parse().unwrap());
    call.headers_mut().insert("origin", "https://wallet.example".parse().unwrap());
    let answer = world.send(call).await;
    let exposed = answer.headers()["access-control-expose-headers"].to_str().unwrap().to_owned();
    for name in [
        "date",
        "x-processing-time-ms",
        "x-trace-id",
        "grpc-status",
        "grpc-message",
        "grpc-status-details-bin",
    ] {
        assert!(exposed.contains(name), "{name}: {exposed}");
    }
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("grpc-status:0"));
}
