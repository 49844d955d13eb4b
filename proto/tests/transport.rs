//! The TLS stack against real sockets: who gets in, who does not, and both protocols on one port.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails should say where"
)]

use std::{net::SocketAddr, time::Duration};

use http::{HeaderName, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::ServerName;
use spark_proto::{
    spark_authn::{
        GetChallengeRequest, GetChallengeResponse, ProtectedChallenge, VerifyChallengeRequest,
        VerifyChallengeResponse, spark_authn_service_client::SparkAuthnServiceClient,
        spark_authn_service_server,
    },
    transport::{
        Alpn, ClientAuth, ClientTls, Deadlines, HandshakeLimits, Identity, PeerSpki, RemoteAddr, ServerTls,
        Spki, SpkiAllowList, TrustRoots, channel, install_crypto_provider, serve,
    },
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{Code, Status, service::Routes};

/// Answers with the key and address of its caller.
struct WhoAmI;

#[tonic::async_trait]
impl spark_authn_service_server::SparkAuthnService for WhoAmI {
    async fn get_challenge(
        &self,
        request: tonic::Request<GetChallengeRequest>,
    ) -> Result<tonic::Response<GetChallengeResponse>, Status> {
        let PeerSpki(key) = request.extensions().get().ok_or_else(|| Status::internal("no key"))?;
        let RemoteAddr(from) = request.extensions().get().ok_or_else(|| Status::internal("no address"))?;
        assert!(from.ip().is_loopback());
        let server_hmac = key.map(|key| key.as_bytes().to_vec()).unwrap_or_default();
        let protected = ProtectedChallenge { server_hmac, ..Default::default() };
        Ok(tonic::Response::new(GetChallengeResponse { protected_challenge: Some(protected) }))
    }

    async fn verify_challenge(
        &self,
        _request: tonic::Request<VerifyChallengeRequest>,
    ) -> Result<tonic::Response<VerifyChallengeResponse>, Status> {
        // Longer than a test waits, for the one that shuts down while a call is open.
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(tonic::Response::new(VerifyChallengeResponse::default()))
    }
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        install_crypto_provider();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, folder: tempfile::tempdir().unwrap() }
    }

    /// Through PEM files, as programs do it.
    fn identity(&self) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        let (cert_path, key_path) = (self.folder.path().join("cert.pem"), self.folder.path().join("key.pem"));
        std::fs::write(&cert_path, certificate.pem()).unwrap();
        std::fs::write(&key_path, key.serialize_pem()).unwrap();
        Identity::from_pem_files(cert_path, key_path).unwrap()
    }

    fn roots(&self) -> TrustRoots {
        let path = self.folder.path().join("ca.pem");
        std::fs::write(&path, self.issuer.pem()).unwrap();
        TrustRoots::from_pem_file(path).unwrap()
    }
}

struct Server {
    addr: SocketAddr,
    key: Spki,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(identity: Identity, client_auth: ClientAuth, allow: Option<SpkiAllowList>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let key = identity.spki().unwrap();
        let routes = Routes::new(spark_authn_service_server::SparkAuthnServiceServer::new(WhoAmI));
        let cors = tower_http::cors::CorsLayer::very_permissive().expose_headers([
            HeaderName::from_static("grpc-status"),
            HeaderName::from_static("grpc-message"),
        ]);
        // tonic's own router answers each method; the layers are those of a public listener.
        let service =
            tower::ServiceBuilder::new().layer(cors).layer(tonic_web::GrpcWebLayer::new()).service(routes);
        let (stop, stopped) = oneshot::channel::<()>();
        let tls = ServerTls {
            identity,
            client_auth,
            allow,
            alpn: Alpn::H2AndHttp1,
            handshakes: HandshakeLimits::default(),
        };
        let task = tokio::spawn(async move {
            serve(listener, tls, service, async { drop(stopped.await) }).await.unwrap();
        });
        Self { addr, key, stop: Some(stop), task }
    }

    fn client(&self, tls: &ClientTls) -> SparkAuthnServiceClient<tonic::transport::Channel> {
        let deadlines = Deadlines { connect: Duration::from_secs(2), request: Duration::from_secs(5) };
        SparkAuthnServiceClient::new(channel(&self.addr.to_string(), tls, deadlines).unwrap())
    }

    async fn who_am_i(&self, tls: &ClientTls) -> Result<Option<Spki>, Status> {
        ask(&mut self.client(tls)).await
    }
}

async fn ask(
    client: &mut SparkAuthnServiceClient<tonic::transport::Channel>,
) -> Result<Option<Spki>, Status> {
    let answer = client.get_challenge(GetChallengeRequest::default()).await?.into_inner();
    let key = answer.protected_challenge.unwrap_or_default().server_hmac;
    Ok(key.try_into().ok().map(Spki::from_bytes))
}

fn client_tls(authority: &Authority, identity: Option<&Identity>) -> ClientTls {
    ClientTls {
        roots: authority.roots(),
        identity: identity.cloned(),
        server_name: "localhost".to_owned(),
        pinned: None,
    }
}

#[tokio::test]
async fn listed_client_is_served_and_named() {
    let authority = Authority::new();
    let me = authority.identity();
    let allow = SpkiAllowList::new([me.spki().unwrap()]);
    let server =
        Server::start(authority.identity(), ClientAuth::Required(authority.roots()), Some(allow)).await;
    let tls = ClientTls { pinned: Some(server.key), ..client_tls(&authority, Some(&me)) };
    assert_eq!(server.who_am_i(&tls).await.unwrap(), Some(me.spki().unwrap()));
    // By address, too.
    let tls = ClientTls { server_name: "127.0.0.1".to_owned(), ..tls };
    assert_eq!(server.who_am_i(&tls).await.unwrap(), Some(me.spki().unwrap()));
}

#[tokio::test]
async fn strangers_are_refused() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let (me, other) = (authority.identity(), authority.identity());
    let allow = SpkiAllowList::new([me.spki().unwrap()]);
    let server =
        Server::start(authority.identity(), ClientAuth::Required(authority.roots()), Some(allow)).await;

    let no_certificate = client_tls(&authority, None);
    let unlisted = client_tls(&authority, Some(&other));
    let foreign = client_tls(&authority, Some(&stranger.identity()));
    for (name, tls) in
        [("no certificate", no_certificate), ("unlisted key", unlisted), ("other authority", foreign)]
    {
        let refused = server.who_am_i(&tls).await.unwrap_err();
        assert!(matches!(refused.code(), Code::Unavailable | Code::Unknown), "{name}: {refused:?}");
    }
    // The server still serves.
    assert!(server.who_am_i(&client_tls(&authority, Some(&me))).await.is_ok());
}

#[tokio::test]
async fn client_refuses_wrong_servers() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let server = Server::start(authority.identity(), ClientAuth::Off, None).await;
    let good = client_tls(&authority, None);
    assert_eq!(server.who_am_i(&good).await.unwrap(), None);

    let wrong_pin = ClientTls { pinned: Some(Spki::from_bytes([7; 32])), ..good.clone() };
    let wrong_authority = ClientTls { roots: stranger.roots(), ..good.clone() };
    let wrong_name = ClientTls { server_name: "elsewhere.test".to_owned(), ..good };
    for (name, tls) in [("pin", wrong_pin), ("authority", wrong_authority), ("name", wrong_name)] {
        let refused = server.who_am_i(&tls).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{name}: {refused:?}");
    }
}

#[tokio::test]
async fn optional_certificates() {
    let authority = Authority::new();
    let (me, other) = (authority.identity(), authority.identity());
    let allow = SpkiAllowList::new([me.spki().unwrap()]);
    let server =
        Server::start(authority.identity(), ClientAuth::Optional(authority.roots()), Some(allow)).await;
    assert_eq!(server.who_am_i(&client_tls(&authority, None)).await.unwrap(), None);
    assert_eq!(server.who_am_i(&client_tls(&authority, Some(&me))).await.unwrap(), Some(me.spki().unwrap()));
    // A certificate that is shown must be good.
    assert!(server.who_am_i(&client_tls(&authority, Some(&other))).await.is_err());
}

#[tokio::test]
async fn allow_list_and_certificate_change_without_restart() {
    let authority = Authority::new();
    let (first, second) = (authority.identity(), authority.identity());
    let allow = SpkiAllowList::new([first.spki().unwrap()]);
    let own = authority.identity();
    let server =
        Server::start(own.clone(), ClientAuth::Required(authority.roots()), Some(allow.clone())).await;
    let mut open = server.client(&client_tls(&authority, Some(&first)));
    assert!(ask(&mut open).await.is_ok());

    allow.replace([second.spki().unwrap()]);
    // The open connection of the removed key, a new one of it, and one of the added key.
    assert_eq!(ask(&mut open).await.unwrap_err().code(), Code::PermissionDenied);
    assert!(server.who_am_i(&client_tls(&authority, Some(&first))).await.is_err());
    assert!(server.who_am_i(&client_tls(&authority, Some(&second))).await.is_ok());

    let renewed = authority.identity();
    own.replace(&renewed);
    let pinned = |key| ClientTls { pinned: Some(key), ..client_tls(&authority, Some(&second)) };
    assert!(server.who_am_i(&pinned(renewed.spki().unwrap())).await.is_ok());
    assert!(server.who_am_i(&pinned(server.key)).await.is_err());
}

#[tokio::test]
async fn grpc_web_over_http1_on_the_same_port() {
    let authority = Authority::new();
    let server = Server::start(authority.identity(), ClientAuth::Off, None).await;
    assert!(server.who_am_i(&client_tls(&authority, None)).await.is_ok(), "native gRPC");

    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.issuer.der().clone()).unwrap();
    let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = tokio::net::TcpStream::connect(server.addr).await.unwrap();
    let stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
        .connect(ServerName::try_from("localhost").unwrap(), tcp)
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Full<bytes::Bytes>>(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);

    let uri = "/spark_authn.SparkAuthnService/get_challenge";
    let preflight = Request::builder()
        .method(Method::OPTIONS)
        .uri(uri)
        .header("host", "localhost")
        .header("origin", "https://wallet.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type,x-grpc-web,authorization")
        .body(Full::default())
        .unwrap();
    let answer = sender.send_request(preflight).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://wallet.example");
    answer.into_body().collect().await.unwrap();

    let call = Request::builder()
        .method(Method::POST)
        .uri(uri)
        .header("host", "localhost")
        .header("origin", "https://wallet.example")
        .header("content-type", "application/grpc-web+proto")
        .header("x-grpc-web", "1")
        // An empty message: no compression, length 0.
        .body(Full::from(vec![0; 5]))
        .unwrap();
    let answer = sender.send_request(call).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/grpc-web+proto");
    assert!(answer.headers().contains_key("date"));
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let trailers = String::from_utf8_lossy(&body);
    assert!(trailers.contains("grpc-status:0"), "{trailers:?}");
}

#[tokio::test]
async fn shutdown_lets_open_calls_end() {
    let authority = Authority::new();
    let mut server = Server::start(authority.identity(), ClientAuth::Off, None).await;
    let mut client = server.client(&client_tls(&authority, None));
    ask(&mut client).await.unwrap();
    let mut slow = client.clone();
    let open = tokio::spawn(async move { slow.verify_challenge(VerifyChallengeRequest::default()).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.stop.take().unwrap().send(()).unwrap();
    assert!(open.await.unwrap().is_ok());
    server.task.await.unwrap();
    assert!(ask(&mut client).await.is_err());
}

#[test]
fn keys_that_do_not_fit_are_found_at_start() {
    let authority = Authority::new();
    let _one = authority.identity();
    let key_path = authority.folder.path().join("other.pem");
    std::fs::write(&key_path, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(Identity::from_pem_files(authority.folder.path().join("cert.pem"), &key_path).is_err());
    assert!(Identity::from_pem_files(&key_path, &key_path).is_err());
    assert!(TrustRoots::from_pem_file(authority.folder.path().join("absent.pem")).is_err());
}

#[tokio::test]
async fn addresses_and_names_are_checked() {
    let authority = Authority::new();
    let good = client_tls(&authority, None);
    for bad in ["localhost", "", "a b:1", "localhost:port"] {
        assert!(channel(bad, &good, Deadlines::default()).is_err(), "{bad}");
    }
    let bad_name = ClientTls { server_name: "not a name".to_owned(), ..good };
    assert!(channel("127.0.0.1:1", &bad_name, Deadlines::default()).is_err());
}
