//! The program: exit codes, JSON, and logs over HTTPS.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use common::{OPERATOR, Said, World, story};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::Value;
use spark_verify::{Location, Options, verify};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

fn program(world: &World, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spark-verify"))
        .args(["log", "--federation"])
        .arg(world.path("federation.json"))
        .args(["--operator", &OPERATOR.to_string()])
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn exit_codes_and_json() {
    let world = World::new();
    world.publish(&story(20), &Said::default());
    let text = |path: PathBuf| path.display().to_string();
    let (dir, entries, saved) =
        (text(world.path("log")), text(world.path("entries.jsonl")), text(world.path("saved")));
    let all = ["--json", "--dir", &dir, "--entries", &entries, "--save", &saved];
    let good = program(&world, &all);
    assert_eq!(good.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!(report["holds"], Value::Bool(true));
    assert_eq!(report["entries"]["phases"]["dkg"], 4);
    assert_eq!(report["failures"], Value::Array(Vec::new()));
    assert_eq!(program(&world, &["--dir", &dir, "--since", &saved]).status.code(), Some(0));

    world.bend("log/tile/0/000.p/20", |bytes| bytes[0] ^= 1);
    let bad = program(&world, &all);
    assert_eq!(bad.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&bad.stdout).unwrap();
    assert_eq!(report["failures"][0]["reason"], "TILE_DIFFERS");
    let words = String::from_utf8(program(&world, &["--dir", &dir]).stdout).unwrap();
    assert!(words.contains("FAILED TILE_DIFFERS: tile/0/000.p/20"));
    assert!(words.ends_with("no entries were given\n"));

    let gone = text(world.path("gone"));
    for (more, reason) in [
        (&["--dir", &dir, "--since", &gone][..], Some("FILE_UNREADABLE")),
        (&["--url", "https://localhost/log"], Some("USAGE")),
        (&["--url", "http://localhost/log", "--ca", &saved], Some("URL")),
        (&["--url", "https://localhost/log", "--ca", &saved], Some("AUTHORITIES")),
        (&["--dir", &dir, "--witnesses", "9"], Some("USAGE")),
        (&["--dir", &dir, "--url", "https://localhost/log"], None),
        (&[], None),
    ] {
        let output = program(&world, &[&["--json"], more].concat());
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        let said: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        assert_eq!(said.as_ref().and_then(|v| v["reason"].as_str()), reason, "{more:?}");
    }
    let needed = program(&world, &["--url", "https://localhost/log"]);
    assert!(String::from_utf8(needed.stderr).unwrap().contains("--ca"));
}

/// Serves the folder below `/some/log`; each third answer is "come later", and the connection ends now and then.
async fn serve(world: &World, fault: Fault) -> (u16, Arc<AtomicUsize>) {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, ca_key).unwrap();
    fs::write(world.path("ca.pem"), issuer.pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let folder = world.path("log");
    let answers = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&answers);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
            let (folder, count) = (folder.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                let mut request = Vec::new();
                let mut byte = [0];
                while tls.read_exact(&mut byte).await.is_ok() {
                    request.push(byte[0]);
                    if !request.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    let text = String::from_utf8(std::mem::take(&mut request)).unwrap();
                    let path = text.split(' ').nth(1).unwrap();
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    let file = path.strip_prefix("/some/log/").and_then(|p| fs::read(folder.join(p)).ok());
                    let (status, mut body) = match file {
                        _ if number % 3 == 2 => ("503 Later", Vec::new()),
                        Some(body) => ("200 OK", body),
                        None => ("404 Gone", Vec::new()),
                    };
                    let mut more = "";
                    match fault {
                        Fault::Endless => body.resize(100_000, 0),
                        Fault::Encoded => more = "content-encoding: gzip\r\n",
                        Fault::None => {}
                    }
                    let head = format!("HTTP/1.1 {status}\r\n{more}content-length: {}\r\n\r\n", body.len());
                    let _ = tls.write_all(&[head.as_bytes(), &body].concat()).await;
                    if number % 5 == 4 {
                        let _ = tls.shutdown().await;
                        return;
                    }
                }
            });
        }
    });
    (port, answers)
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    Endless,
    Encoded,
}

fn over_https(world: &World, port: u16) -> Options {
    let url = format!("https://localhost:{port}/some/log/");
    Options { location: Location::Https { url, ca: world.path("ca.pem") }, ..world.options() }
}

#[tokio::test]
async fn a_log_over_https_is_read_through_interruptions() {
    let world = World::new();
    world.publish(&story(700), &Said::default());
    let (port, answers) = serve(&world, Fault::None).await;
    let options = over_https(&world, port);
    let report = verify(&options).await.unwrap();
    assert_eq!(report.failures, []);
    assert_eq!((report.tree.unwrap().records, report.entries.unwrap().read), (700, 700));
    assert!(answers.load(Ordering::Relaxed) > 8, "some were asked for again");
    fs::remove_file(world.path("log/tile/entries/001")).unwrap();
    let report = verify(&options).await.unwrap();
    assert_eq!(report.failures[0].reason, spark_verify::Reason::BundleMissing);
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let world = World::new();
    world.publish(&story(3), &Said::default());
    let (port, answers) = serve(&world, Fault::None).await;
    let other = World::new();
    serve(&other, Fault::None).await;
    let mut options = over_https(&world, port);
    options.location =
        Location::Https { url: format!("https://localhost:{port}/some/log"), ca: other.path("ca.pem") };
    let error = verify(&options).await.unwrap_err();
    assert_eq!(error.reason(), "LOG_UNREACHABLE");
    options.location =
        Location::Https { url: format!("https://127.0.0.1:{port}/some/log"), ca: world.path("ca.pem") };
    assert_eq!(verify(&options).await.unwrap_err().reason(), "LOG_UNREACHABLE", "another name");
    assert_eq!(answers.load(Ordering::Relaxed), 0, "nothing was asked");
}

#[tokio::test]
async fn bodies_are_bounded_and_plain() {
    for (fault, reason) in [(Fault::Endless, "TOO_LONG"), (Fault::Encoded, "LOG_UNREACHABLE")] {
        let world = World::new();
        world.publish(&story(3), &Said::default());
        let (port, _) = serve(&world, fault).await;
        let error = verify(&over_https(&world, port)).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{fault:?}: {error}");
    }
}
