//! The listener with its key in SoftHSM: who gets in, what is refused at the start, and what a reload changes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SignatureAlgorithm,
};
use rustls::{
    SignatureScheme,
    crypto::CryptoProvider,
    sign::{CertifiedKey, Signer, SigningKey},
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use spark_proto::transport::{
    Alpn, ClientAuth, ClientTls, Deadlines, HandshakeLimits, Identity, ServerTls, Spki, SpkiAllowList,
    TrustRoots, channel, install_crypto_provider, serve,
};
use spark_signer_hsm::{config::Config, tls::Tls};
use spark_softhsm::{TokenDir, isolated, passed, run_test};
use tokio::{net::TcpListener, runtime::Runtime, task::JoinSet};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

struct World {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

struct InToken(Vec<u8>);

impl PublicKeyData for InToken {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

fn params() -> CertificateParams {
    CertificateParams::new(["localhost".to_owned()]).unwrap()
}

impl World {
    /// Fresh tokens with the signer's keys, and an authority.
    fn new(dir: &TokenDir) -> Self {
        install_crypto_provider();
        common::token(dir);
        let mut authority = CertificateParams::new([]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let folder = dir.conf_path().parent().unwrap().to_owned();
        std::fs::write(folder.join("ca.pem"), issuer.pem()).unwrap();
        Self { folder, issuer }
    }

    fn roots(&self) -> TrustRoots {
        TrustRoots::from_pem_file(self.folder.join("ca.pem")).unwrap()
    }

    fn client(&self) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params().signed_by(&key, &self.issuer).unwrap();
        let (cert, file) = (self.folder.join("client.pem"), self.folder.join("client.key"));
        std::fs::write(&cert, certificate.pem()).unwrap();
        std::fs::write(&file, key.serialize_pem()).unwrap();
        Identity::from_pem_files(cert, file).unwrap()
    }

    fn configure(&self, key: &str, allow: &[&Identity]) -> PathBuf {
        let allow: Vec<String> = allow.iter().map(|client| client.spki().unwrap().to_string()).collect();
        let path = self.folder.join("signer.toml");
        let text = format!(
            "profile = \"development\"\noperator = 0\nstore = \"none\"\n\
             [tls]\ncert = {:?}\nkey = {key}\nclient_ca = {:?}\nallow = {allow:?}\n\
             [token]\nmodule = {:?}\nprofile = \"softhsm\"\n\
             roots = {{ label = \"roots\", pin = {{ inline = {pin:?} }} }}\n\
             keys = {{ label = \"keys\", pin = {{ inline = {pin:?} }} }}\n",
            self.folder.join("signer.pem"),
            self.folder.join("ca.pem"),
            spark_softhsm::module_path().unwrap(),
            pin = common::PIN,
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Makes a key with the real command, has it certified, and returns its hash.
    fn make_key(&self, config: &Path) -> Spki {
        let output = Command::new(env!("CARGO_BIN_EXE_spark-signer"))
            .arg("--config")
            .arg(config)
            .args(["tls", "generate", "--name", "localhost"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(made["csr"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
        let point = hex::decode(made["point"].as_str().unwrap()).unwrap();
        self.certify(&InToken(point));
        made["spki_sha256"].as_str().unwrap().parse().unwrap()
    }

    fn certify(&self, key: &impl PublicKeyData) {
        let certificate = params().signed_by(key, &self.issuer).unwrap();
        std::fs::write(self.folder.join("signer.pem"), certificate.pem()).unwrap();
    }

    async fn serve(&self, tls: &Tls, handshakes: HandshakeLimits) -> SocketAddr {
        self.serve_as(tls.identity().clone(), tls.allow().clone(), handshakes).await
    }

    /// Serves the health service until the runtime ends.
    async fn serve_as(
        &self,
        identity: Identity,
        allow: SpkiAllowList,
        handshakes: HandshakeLimits,
    ) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = ServerTls {
            identity,
            client_auth: ClientAuth::Required(self.roots()),
            allow: Some(allow),
            alpn: Alpn::H2,
            handshakes,
        };
        let (_, health) = tonic_health::server::health_reporter();
        let routes = tonic::service::Routes::new(health).prepare().into_axum_router();
        tokio::spawn(serve(listener, server, routes, std::future::pending()));
        address
    }

    fn client_tls(&self, client: Option<&Identity>, pinned: Spki) -> ClientTls {
        ClientTls {
            roots: self.roots(),
            identity: client.cloned(),
            server_name: "localhost".into(),
            pinned: Some(pinned),
        }
    }

    fn connect(&self, address: SocketAddr, client: Option<&Identity>, pinned: Spki) -> Connection {
        Connection::open(address, &self.client_tls(client, pinned))
    }
}

struct Connection(HealthClient<tonic::transport::Channel>);

impl Connection {
    fn open(address: SocketAddr, tls: &ClientTls) -> Self {
        let deadlines = Deadlines { connect: Duration::from_secs(20), request: Duration::from_secs(20) };
        Self(HealthClient::new(channel(&address.to_string(), tls, deadlines).unwrap()))
    }

    async fn ask(&mut self) -> Result<(), tonic::Status> {
        self.0.check(HealthCheckRequest::default()).await.map(drop)
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn clients_are_known_and_a_reload_takes_effect_at_once() {
    isolated("clients_are_known_and_a_reload_takes_effect_at_once", |dir| {
        let world = World::new(dir);
        let (me, other) = (world.client(), world.client());
        let config = world.configure("{ token = true }", &[&me]);
        let first = world.make_key(&config);
        let tls = Tls::open(&Config::load(&config).unwrap()).unwrap();
        runtime().block_on(async {
            let address = world.serve(&tls, HandshakeLimits::default()).await;
            let mut mine = world.connect(address, Some(&me), first);
            mine.ask().await.unwrap();
            world.connect(address, Some(&other), first).ask().await.unwrap_err();
            world.connect(address, None, first).ask().await.unwrap_err();

            // A second key and its certificate, and another client instead of the first.
            let second = world.make_key(&config);
            assert_ne!(first, second);
            world.configure("{ token = true }", &[&other]);
            tls.reload(&config).unwrap();
            world.connect(address, Some(&other), second).ask().await.unwrap();
            world.connect(address, Some(&other), first).ask().await.unwrap_err();
            mine.ask().await.expect_err("an open connection of a key that left the list");

            // What is wrong changes nothing.
            world.certify(&KeyPair::generate().unwrap());
            world.configure("{ token = true }", &[&me]);
            assert!(tls.reload(&config).unwrap_err().to_string().contains("no TLS key in the token fits"));
            world.connect(address, Some(&other), second).ask().await.unwrap();
            world.connect(address, Some(&me), second).ask().await.unwrap_err();
        });
    })
    .unwrap();
}

#[test]
fn a_certificate_of_another_key_is_refused_at_the_start() {
    isolated("a_certificate_of_another_key_is_refused_at_the_start", |dir| {
        let world = World::new(dir);
        let config = world.configure("{ token = true }", &[&world.client()]);
        world.make_key(&config);
        Tls::open(&Config::load(&config).unwrap()).unwrap();
        world.certify(&KeyPair::generate().unwrap());
        let error = Tls::open(&Config::load(&config).unwrap()).unwrap_err();
        assert!(error.to_string().contains("no TLS key in the token fits"), "{error:#}");
        // A key in a file goes the old way and is held against its certificate, too.
        let key = world.folder.join("signer.key");
        std::fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let config = world.configure(&format!("{key:?}"), &[&world.client()]);
        Tls::open(&Config::load(&config).unwrap()).unwrap_err();
    })
    .unwrap();
}

/// The server's key, which counts what it is asked for: how much of a flood the listener lets through.
struct Counted<K: ?Sized> {
    tally: Arc<Tally>,
    key: Box<K>,
}

impl<K: ?Sized> std::fmt::Debug for Counted<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Counted")
    }
}

impl SigningKey for Counted<Arc<dyn SigningKey>> {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let key = self.key.choose_scheme(offered)?;
        Some(Box::new(Counted { tally: Arc::clone(&self.tally), key }))
    }

    fn algorithm(&self) -> rustls::SignatureAlgorithm {
        self.key.algorithm()
    }
}

impl Signer for Counted<dyn Signer> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        tokio::task::block_in_place(|| self.tally.pass());
        self.key.sign(message)
    }

    fn scheme(&self) -> SignatureScheme {
        self.key.scheme()
    }
}

/// What a [`Counted`] key saw. While it is shut nothing passes.
#[derive(Default)]
struct Tally {
    begun: AtomicUsize,
    seen: Mutex<Seen>,
    opened: Condvar,
}

#[derive(Default)]
struct Seen {
    shut: bool,
    now: usize,
    most: usize,
}

impl Tally {
    fn pass(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let mut seen = self.seen.lock().unwrap();
        seen.now += 1;
        seen.most = seen.most.max(seen.now);
        let mut seen = self.opened.wait_while(seen, |seen| seen.shut).unwrap();
        seen.now -= 1;
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    fn now_and_most(&self) -> (usize, usize) {
        let seen = self.seen.lock().unwrap();
        (seen.now, seen.most)
    }

    fn shut(self: &Arc<Self>) -> Shut {
        self.seen.lock().unwrap().shut = true;
        Shut(Arc::clone(self))
    }
}

/// Opens when it ends, also in a test that fails.
struct Shut(Arc<Tally>);

impl Drop for Shut {
    fn drop(&mut self) {
        self.0.seen.lock().unwrap().shut = false;
        self.0.opened.notify_all();
    }
}

/// A listener with a counted key, its limits, and who may come in.
async fn counted(world: &World, me: &Identity, limits: HandshakeLimits) -> (SocketAddr, Spki, Arc<Tally>) {
    let key = KeyPair::generate().unwrap();
    let certificate = params().signed_by(&key, &world.issuer).unwrap();
    let provider = CryptoProvider::get_default().unwrap().key_provider;
    let signing = provider.load_private_key(PrivatePkcs8KeyDer::from(key.serialize_der()).into()).unwrap();
    let tally = Arc::new(Tally::default());
    let counted = Counted { tally: Arc::clone(&tally), key: Box::new(signing) };
    let chain = vec![certificate.der().clone()];
    let identity = Identity::from_certified_key(CertifiedKey::new(chain, Arc::new(counted))).unwrap();
    let spki = identity.spki().unwrap();
    let allow = SpkiAllowList::new([me.spki().unwrap()]);
    (world.serve_as(identity, allow, limits).await, spki, tally)
}

/// Whoever begins handshakes without end, good ones and such that fail, is let in at the listener's pace, and what is
/// connected goes on.
#[test]
fn a_flood_of_handshakes_is_let_in_at_the_listeners_pace() {
    isolated("a_flood_of_handshakes_is_let_in_at_the_listeners_pace", |dir| {
        let world = World::new(dir);
        let me = world.client();
        runtime().block_on(async {
            let limits = HandshakeLimits { concurrent: 4, per_second: 5, burst: 5 };
            let began = Instant::now();
            let (address, key, tally) = counted(&world, &me, limits).await;
            let mut mine = world.connect(address, Some(&me), key);
            mine.ask().await.unwrap();
            let mut flood = JoinSet::new();
            for n in 0..30 {
                // The server has signed before it sees that a client has no certificate.
                let tls = world.client_tls((n % 2 == 0).then_some(&me), key);
                flood.spawn(async move {
                    loop {
                        let _ = Connection::open(address, &tls).ask().await;
                    }
                });
            }
            while tally.begun() < 12 {
                mine.ask().await.unwrap();
            }
            // In this order: what the pace allowed only grows meanwhile.
            let begun = tally.begun();
            let allowed = 5.0 + 5.0 * began.elapsed().as_secs_f64() + 1.0;
            assert!(begun as f64 <= allowed, "{begun} handshakes where {allowed} are allowed");
            flood.shutdown().await;
        });
    })
    .unwrap();
}

/// A crowd has no more handshakes at a time than the listener has places, however long each takes.
#[test]
fn slow_handshakes_take_only_the_listeners_places() {
    isolated("slow_handshakes_take_only_the_listeners_places", |dir| {
        let world = World::new(dir);
        let me = world.client();
        runtime().block_on(async {
            let limits = HandshakeLimits { concurrent: 3, per_second: 10_000, burst: 10_000 };
            let (address, key, tally) = counted(&world, &me, limits).await;
            let mut mine = world.connect(address, Some(&me), key);
            mine.ask().await.unwrap();
            let shut = tally.shut();
            let mut crowd = JoinSet::new();
            for _ in 0..12 {
                let tls = world.client_tls(Some(&me), key);
                crowd.spawn(async move { while Connection::open(address, &tls).ask().await.is_err() {} });
            }
            while tally.now_and_most().0 < 3 {
                mine.ask().await.unwrap();
            }
            for _ in 0..100 {
                mine.ask().await.unwrap();
            }
            drop(shut);
            while crowd.join_next().await.is_some() {}
            assert_eq!(tally.now_and_most(), (0, 3));
        });
    })
    .unwrap();
}

const HOLD: &str = "TLS_HOLD";

/// Not a test by itself: another process that makes the keys token hang until it is told to let go. It waits for less than
/// the ten seconds after which the signer gives a call up: those who wait for that call come too late.
#[test]
fn child_makes_the_keys_token_hang() {
    let Ok(folder) = std::env::var(HOLD).map(PathBuf::from) else { return };
    isolated("child_makes_the_keys_token_hang", |dir| {
        let lock = common::hang(dir, "keys");
        std::fs::write(folder.join("held"), "").unwrap();
        let asked = (0..800).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            folder.join("let-go").exists()
        });
        drop(lock);
        assert!(asked, "nobody asked to let go: the process hangs with its token");
    })
    .unwrap();
}

/// Handshakes wait for the token in threads of their own: more of them than the runtime has threads stop nothing.
#[test]
fn a_token_that_hangs_stops_no_call() {
    isolated("a_token_that_hangs_stops_no_call", |dir| {
        let world = World::new(dir);
        let me = world.client();
        let config = world.configure("{ token = true }", &[&me]);
        let key = world.make_key(&config);
        let tls = Tls::open(&Config::load(&config).unwrap()).unwrap();
        let folder = world.folder.clone();
        let ended = std::thread::scope(|scope| {
            let holder = runtime().block_on(async {
                let address = world.serve(&tls, HandshakeLimits::default()).await;
                let mut mine = world.connect(address, Some(&me), key);
                mine.ask().await.unwrap();
                let holder = scope.spawn(|| {
                    let folder = world.folder.to_str().unwrap();
                    run_test("child_makes_the_keys_token_hang", dir, &[(HOLD, folder)]).unwrap()
                });
                while !folder.join("held").exists() {
                    mine.ask().await.unwrap();
                }
                let mut crowd = JoinSet::new();
                for _ in 0..4 {
                    let tls = world.client_tls(Some(&me), key);
                    crowd.spawn(async move { while Connection::open(address, &tls).ask().await.is_err() {} });
                }
                for _ in 0..20 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    mine.ask().await.unwrap();
                }
                assert!(crowd.try_join_next().is_none(), "none of them has got in");
                std::fs::write(folder.join("let-go"), "").unwrap();
                while crowd.join_next().await.is_some() {}
                holder
            });
            holder.join().unwrap()
        });
        passed(&ended).unwrap();
    })
    .unwrap();
}
