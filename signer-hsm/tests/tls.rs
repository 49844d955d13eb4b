//! The listener with its key in SoftHSM: who gets in, what is refused at the start, and what a reload changes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SignatureAlgorithm,
};
use spark_proto::transport::{
    Alpn, ClientAuth, ClientTls, Deadlines, HandshakeLimits, Identity, ServerTls, Spki, TrustRoots, channel,
    install_crypto_provider, serve,
};
use spark_signer::vault::Token as _;
use spark_signer_hsm::{config::Config, tls::Tls, token::Pkcs11Token};
use spark_softhsm::{TokenDir, isolated};
use tokio::{net::TcpListener, runtime::Runtime};
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

    /// Serves the health service until the runtime ends.
    async fn serve(&self, tls: &Tls, handshakes: HandshakeLimits) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = ServerTls {
            identity: tls.identity().clone(),
            client_auth: ClientAuth::Required(self.roots()),
            allow: Some(tls.allow().clone()),
            alpn: Alpn::H2,
            handshakes,
        };
        let (_, health) = tonic_health::server::health_reporter();
        let routes = tonic::service::Routes::new(health).prepare().into_axum_router();
        tokio::spawn(serve(listener, server, routes, std::future::pending()));
        address
    }

    fn connect(&self, address: SocketAddr, client: Option<&Identity>, pinned: Spki) -> Connection {
        let tls = ClientTls {
            roots: self.roots(),
            identity: client.cloned(),
            server_name: "localhost".into(),
            pinned: Some(pinned),
        };
        let deadlines = Deadlines { connect: Duration::from_secs(20), request: Duration::from_secs(20) };
        Connection(HealthClient::new(channel(&address.to_string(), &tls, deadlines).unwrap()))
    }
}

struct Connection(HealthClient<tonic::transport::Channel>);

impl Connection {
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

#[test]
fn a_flood_of_handshakes_does_not_stop_the_signer() {
    isolated("a_flood_of_handshakes_does_not_stop_the_signer", |dir| {
        let world = World::new(dir);
        let me = world.client();
        let config = world.configure("{ token = true }", &[&me]);
        let key = world.make_key(&config);
        let config = Config::load(&config).unwrap();
        let tls = Tls::open(&config).unwrap();
        let token = Pkcs11Token::open(&config.token).unwrap();
        runtime().block_on(async {
            let limits = HandshakeLimits { concurrent: 8, per_second: 50, burst: 10 };
            let address = world.serve(&tls, limits).await;
            let mut mine = world.connect(address, Some(&me), key);
            mine.ask().await.unwrap();
            let flood: Vec<_> = (0..200)
                .map(|_| {
                    let mut one = world.connect(address, Some(&me), key);
                    tokio::spawn(async move { while one.ask().await.is_err() {} })
                })
                .collect();
            for _ in 0..50 {
                mine.ask().await.unwrap();
                tokio::task::block_in_place(|| token.sign_identity(&[7; 32])).unwrap();
            }
            for one in flood {
                one.abort();
            }
            world.connect(address, Some(&me), key).ask().await.unwrap();
        });
    })
    .unwrap();
}
