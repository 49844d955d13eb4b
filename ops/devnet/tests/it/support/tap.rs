//! An eavesdropper between a wallet and its coordinator: it keeps what wallets send, holds requests back, and
//! can answer in the operator's place, as a compromised operator host could.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use spark_devnet::{certs::Authority, network::Devnet};
use spark_proto::transport::{Alpn, ClientAuth, HandshakeLimits, Identity, ServerTls, TrustRoots, serve};
use tokio::{net::TcpListener, sync::oneshot};
use tonic::{Status, body::Body, transport::Channel};
use tower::{Service as _, ServiceExt as _, service_fn};

use super::call::{Door, wallet_card};

/// Flag and length before a message.
const FRAME: usize = 5;

/// A request as a wallet sent it.
#[derive(Debug, Clone)]
pub(crate) struct Caught {
    /// `/service/method`.
    pub(crate) path: String,
    /// The session.
    pub(crate) authorization: Vec<u8>,
    /// The message.
    pub(crate) message: Vec<u8>,
}

#[derive(Default)]
struct State {
    held: BTreeSet<String>,
    caught: Vec<Caught>,
    kept: BTreeMap<String, Bytes>,
    forged: BTreeMap<String, Bytes>,
}

/// The eavesdropper; it goes away when dropped.
pub(crate) struct Tap {
    address: String,
    ca: std::path::PathBuf,
    state: Arc<Mutex<State>>,
    _stop: oneshot::Sender<()>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tap {
    /// Listens in front of operator `operator`.
    pub(crate) async fn start(devnet: &Devnet, operator: usize) -> anyhow::Result<Self> {
        let dir = devnet.endpoints().dir.join("tap");
        std::fs::create_dir_all(&dir)?;
        let authority = Authority::new("tap")?;
        let files = authority.issue("tap")?.write(&dir, "tap")?;
        let ca = dir.join("ca.pem");
        let theirs = std::fs::read_to_string(&devnet.endpoints().ca)?;
        std::fs::write(&ca, format!("{theirs}{}", authority.certificate()))?;
        let url = &devnet.endpoints().operators.get(operator).context("operator")?.mutual_tls;
        let upstream = Door::of(devnet, url).open(Some(&wallet_card(devnet)))?;
        let tls = ServerTls {
            identity: Identity::from_pem_files(&files.certificate, &files.key)?,
            client_auth: ClientAuth::Required(TrustRoots::from_pem_file(&ca)?),
            allow: None,
            alpn: Alpn::H2,
            handshakes: HandshakeLimits::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("https://{}", listener.local_addr()?);
        let state = Arc::new(Mutex::new(State::default()));
        let (stop, stopped) = oneshot::channel::<()>();
        let shared = Arc::clone(&state);
        let service = service_fn(move |request: Request<Incoming>| {
            let (shared, upstream) = (Arc::clone(&shared), upstream.clone());
            async move {
                let answer = relay(&shared, upstream, request).await;
                Ok::<_, Infallible>(answer.unwrap_or_else(|e| Status::unavailable(e.to_string()).into_http()))
            }
        });
        tokio::spawn(async move {
            serve(listener, tls, service, async {
                let _ = stopped.await;
            })
            .await
        });
        Ok(Self { address, ca, state, _stop: stop })
    }

    /// Writes `wallet.toml` for a wallet whose coordinator is reached through here.
    pub(crate) fn write_wallet_config(
        &self,
        devnet: &Devnet,
        dir: &Path,
        operator: u16,
    ) -> anyhow::Result<()> {
        devnet.write_wallet_config(dir, operator)?;
        let path = dir.join("wallet.toml");
        let mut config: toml::Table = std::fs::read_to_string(&path)?.parse()?;
        let tls = config.get_mut("tls").and_then(toml::Value::as_table_mut).context("tls")?;
        tls.insert("ca".into(), self.ca.display().to_string().into());
        let mut here = toml::Table::new();
        here.insert("index".into(), i64::from(operator).into());
        here.insert("address".into(), self.address.clone().into());
        config.insert("operator".into(), vec![toml::Value::Table(here)].into());
        Ok(std::fs::write(&path, config.to_string())?)
    }

    /// From now on requests of this method do not arrive; wallets are told that they are invalid.
    pub(crate) fn hold(&self, path: &str) {
        lock(&self.state).held.insert(path.to_owned());
    }

    /// Ends [`Self::hold`] and hands out the last request that was held back.
    pub(crate) fn take(&self, path: &str) -> anyhow::Result<Caught> {
        lock(&self.state).held.remove(path);
        self.last(path)
    }

    /// The last request of a method.
    pub(crate) fn last(&self, path: &str) -> anyhow::Result<Caught> {
        let state = lock(&self.state);
        state.caught.iter().rev().find(|c| c.path == path).cloned().with_context(|| format!("no {path} came"))
    }

    /// Answers the next request of this method with the operator's last answer to it.
    pub(crate) fn answer_again(&self, path: &str) -> anyhow::Result<()> {
        let mut state = lock(&self.state);
        let kept = state.kept.get(path).cloned().with_context(|| format!("no answer to {path}"))?;
        state.forged.insert(path.to_owned(), kept);
        Ok(())
    }

    /// Whether an answer that was asked for by [`Self::answer_again`] has gone out.
    pub(crate) fn has_answered_again(&self, path: &str) -> bool {
        !lock(&self.state).forged.contains_key(path)
    }
}

async fn relay(
    state: &Mutex<State>,
    mut upstream: Channel,
    request: Request<Incoming>,
) -> anyhow::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let body = body.collect().await?.to_bytes();
    let authorization = parts.headers.get("authorization").map(|v| v.as_bytes().to_vec()).unwrap_or_default();
    {
        let mut state = lock(state);
        let message = body.get(FRAME..).unwrap_or_default().to_vec();
        state.caught.push(Caught { path: path.clone(), authorization, message });
        if state.held.contains(&path) {
            return Ok(Status::invalid_argument("held back").into_http());
        }
        if let Some(forged) = state.forged.remove(&path) {
            return Ok(answer(forged));
        }
    }
    let request = Request::from_parts(parts, Body::new(Full::new(body)));
    let response = upstream.ready().await?.call(request).await?;
    if path.ends_with("/get_signing_commitments") {
        let (parts, body) = response.into_parts();
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned();
        let frames = collected.to_bytes();
        if !frames.is_empty() {
            lock(state).kept.insert(path, frames.clone());
        }
        let body = Full::new(frames).with_trailers(async move { trailers.map(Ok) });
        return Ok(Response::from_parts(parts, Body::new(body)));
    }
    Ok(response)
}

/// A good answer with these frames.
fn answer(frames: Bytes) -> Response<Body> {
    let trailers =
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let body = Full::new(frames).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}
