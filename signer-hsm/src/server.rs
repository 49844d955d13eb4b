//! Starting and stopping the signer.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use spark_proto::{
    signer::v1::signer_server::SignerServer,
    transport::{Alpn, ClientAuth, HandshakeLimits, ServerTls, TrustRoots, serve},
};
use spark_rules::{federation::Federation, ids::OperatorIndex};
use spark_signer::{
    engine::{ApprovedRepair, Engine, Settings},
    vault::{Token, Vault},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::{
    admin::{self, Admin},
    config::Config,
    confirmer::{self, Pins, Recipe},
    devices::{self, Fleet},
    federation,
    hardening::{Places, Role},
    http,
    metrics::{BuildInfo, HsmMetrics, Metrics},
    service::SignerService,
    starter::Starter,
    store::RedbStore,
    tls::Tls,
    token::{DeleteClaim, KeysToken, Observed, Security},
    worker::Worker,
};

/// Most bytes of one message: a package of the largest operation for every operator.
const MAX_MESSAGE: usize = 32 << 20;
/// The operator's replicas connect once and stay; whoever begins more handshakes waits.
const HANDSHAKES: HandshakeLimits = HandshakeLimits { concurrent: 64, per_second: 50, burst: 100 };

/// Everything that a vault opens with, so that it can be opened again.
pub struct Opener {
    keys: Arc<KeysToken>,
    hsm: HsmMetrics,
    fleet: Arc<Fleet>,
    federation: Federation,
    me: OperatorIndex,
    approved_repairs: BTreeMap<OperatorIndex, ApprovedRepair>,
    store: PathBuf,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Opener {
    /// Opens the keys token and checks that it belongs to the federation's member. From then on `metrics` counts its calls.
    pub fn new(config: &Config, metrics: &HsmMetrics, pins: Pins) -> anyhow::Result<Self> {
        let path = config.federation.as_deref().context("configuration: federation is missing")?;
        let federation = federation::read(path)?.verify(config.pinned_hash()?.as_ref()).map_err(|error| {
            let reason = error.reason();
            anyhow::Error::new(error).context(format!("{reason}: {}", path.display()))
        })?;
        anyhow::ensure!(
            config.profile == Security::Production || federation.network() == bitcoin::Network::Regtest,
            "profile \"development\" is for regtest only, and the federation is on {}",
            federation.network()
        );
        let me = OperatorIndex::new(config.operator);
        let member = federation.member(me).context("this operator is not in the federation file")?;
        let token = KeysToken::open(&config.token)?;
        let real_money = federation.network() == bitcoin::Network::Bitcoin;
        let fleet = Fleet::load(config, metrics)?.apart_from(token.info());
        let fleet = fleet.with_real_money(real_money).with_pins(pins);
        anyhow::ensure!(
            fleet.delete_claim() != DeleteClaim::None || !real_money,
            "a token of this profile proves nothing of deletion: it holds no real money"
        );
        anyhow::ensure!(
            member.identity == token.identity_public_key(),
            "identity key is not the federation file's"
        );
        anyhow::ensure!(
            member.federation_keys.contains(&token.federation_public_key()),
            "federation key is not the federation file's"
        );
        Ok(Self {
            keys: Arc::new(token),
            hsm: metrics.clone(),
            fleet: Arc::new(fleet),
            me,
            approved_repairs: config.repairs()?,
            store: config.store.clone(),
            federation,
        })
    }

    /// Opens the store. The engine is locked until the peers were heard.
    pub fn engine(&self) -> anyhow::Result<Engine> {
        let store = RedbStore::open(&self.store)?;
        let keys = Arc::new(Observed::new(Arc::clone(&self.keys), self.hsm.clone()));
        let vault = Vault::open(self.fleet.devices(keys), Box::new(store))?;
        let settings = Settings {
            federation: self.federation.clone(),
            me: self.me,
            delete_claim: self.fleet.delete_claim().as_str().to_owned(),
            approved_repairs: self.approved_repairs.clone(),
        };
        let mut engine = Engine::new(vault, settings);
        for (operator, reason, id) in engine.distrusted()? {
            tracing::error!(
                operator = operator.get(),
                reason,
                evidence = hex::encode(id),
                "deletion log contradicts itself: nothing that this operator coordinates gets a vote"
            );
        }
        Ok(engine)
    }
}

/// The engine of a signer that does not run, locked.
pub fn open(config: &Config, metrics: &HsmMetrics) -> anyhow::Result<Engine> {
    Opener::new(config, metrics, Pins::default())?.engine()
}

/// Everything open, and every right given up that serving does not need.
struct Ready {
    config: Config,
    recipe: Recipe,
    listener: std::net::TcpListener,
    web: Option<std::net::TcpListener>,
    admin: std::os::unix::net::UnixListener,
    tls: Tls,
    client_roots: TrustRoots,
    hsm: HsmMetrics,
    engine: Engine,
    opener: Opener,
}

/// The order matters. What starts programs is started first. Then PINs are read and sockets bound; from then on the
/// process sees no other file and port, the PKCS#11 library included, and after that has been loaded it makes only the
/// system calls that serving takes. No thread runs before.
fn prepare(mut config: Config) -> anyhow::Result<Ready> {
    let starter = Starter::launch(&config.path).context("starter")?;
    let pins = devices::hold_pins(&mut config.token)?;
    config.token.keys.token.hold_pin(config.token.security)?;
    let listener = listen(config.listen.context("configuration: listen is missing")?)?;
    let web = config.http.map(listen).transpose()?;
    let socket = config.admin_socket();
    let admin = admin::listen(&socket).with_context(|| format!("admin.socket {}", socket.display()))?;
    config.hardening().confine(&Places::signer(&config)?)?;
    let hsm = HsmMetrics::new()?;
    let opener = Opener::new(&config, &hsm, pins.clone())?;
    let engine = opener.engine()?;
    let recipe = Recipe { starter, pins };
    let tls = Tls::open(&config)?;
    let client_ca = &config.tls.as_ref().context("configuration: tls is missing")?.client_ca;
    let client_roots = TrustRoots::from_pem_file(client_ca)?;
    config.hardening().filter(Role::Signer)?;
    Ok(Ready { config, recipe, listener, web, admin, tls, client_roots, hsm, engine, opener })
}

/// SIGHUP renews certificate, key and allow-list. What cannot be read leaves them as they are.
async fn reload(tls: Tls, path: PathBuf) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        match tokio::task::block_in_place(|| tls.reload(&path)) {
            Ok(()) => tracing::info!(key = ?tls.identity(), "certificate and allowed clients are renewed"),
            Err(error) => tracing::error!("certificate and allowed clients stay as they are: {error:#}"),
        }
    }
}

fn listen(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves until `shutdown` resolves. Prints the bound addresses as one JSON line on standard output, so that a
/// supervisor can let the system choose ports.
pub fn start(config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    // What tells of quotas is out of reach later.
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let ready = prepare(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(run(ready, shutdown))
}

async fn run(ready: Ready, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let Ready { config, recipe, listener, web, admin, tls, client_roots, hsm, mut engine, opener } = ready;
    let (federation, fleet) = (&opener.federation, Arc::clone(&opener.fleet));
    let build = BuildInfo {
        version: env!("CARGO_PKG_VERSION"),
        commit: option_env!("SPARK_COMMIT").unwrap_or("unknown"),
        network: federation.network().to_core_arg(),
        epoch: federation.epoch(),
    };
    let metrics = Metrics::new(build, &hsm)?;
    metrics.engine(&mut engine);
    let end_after = config.token.keys.end_after;
    let mut keys = tokio::spawn(devices::tend_keys(Arc::clone(&opener.keys), hsm.clone(), end_after));
    let reopen = Box::new(move || opener.engine());
    let pacing = Arc::clone(&fleet);
    let pause = Box::new(move |serving: &[_]| pacing.min_batch(serving));
    let (worker, progress, thread) = Worker::start(engine, reopen, pause, metrics.clone())?;
    let confirmer = tokio::spawn(confirmer::run(recipe, worker.clone(), progress.clone()));
    let office = Admin::new(config.operator, worker.weak(), progress, Arc::clone(&fleet));
    let office = tokio::spawn(async move {
        if let Err(error) = admin::serve(admin, office).await {
            tracing::error!(%error, "administration ended");
        }
    });
    let fleet = tokio::spawn(devices::tend(fleet, worker.clone()));

    let server_tls = ServerTls {
        identity: tls.identity().clone(),
        client_auth: ClientAuth::Required(client_roots),
        allow: Some(tls.allow().clone()),
        alpn: Alpn::H2,
        handshakes: HANDSHAKES,
    };
    let reloader = tokio::spawn(reload(tls, config.path.clone()));
    let listener = TcpListener::from_std(listener)?;
    let web = web.map(TcpListener::from_std).transpose()?;
    let web_address = web.as_ref().map(TcpListener::local_addr).transpose()?;
    println!("{}", serde_json::json!({ "listen": listener.local_addr()?, "http": web_address }));

    let service = SignerServer::new(SignerService::new(worker.clone(), metrics.clone()))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<SignerServer<SignerService>>().await;
    let routes = tonic::service::Routes::new(service).add_service(health_service).prepare();
    let web_task = web.map(|listener| {
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, http::router(metrics)).await {
                tracing::error!(%error, "http listener ended");
            }
        })
    });
    let stopped = worker.stopped();
    let mut stuck = None;
    let until = async {
        tokio::select! {
            () = shutdown => {}
            () = stopped => {}
            ended = &mut keys => stuck = Some(ended),
        }
    };
    serve(listener, server_tls, routes.into_axum_router(), until).await?;
    if let Some(task) = web_task {
        task.abort();
    }
    reloader.abort();
    confirmer.abort();
    fleet.abort();
    office.abort();
    keys.abort();
    // Their end is the only news; they hold handles until then.
    let _ = confirmer.await;
    let _ = fleet.await;
    drop(worker);
    // All handles are gone with the service: the engine's thread ends after its last batch.
    let engine = tokio::task::spawn_blocking(move || thread.join())
        .await?
        .map_err(|_| anyhow::anyhow!("engine panicked"))?;
    let cut_off = engine.is_some_and(|engine| engine.vault().must_reopen());
    anyhow::ensure!(!cut_off, "a commit was cut off; start the signer again");
    if let Some(ended) = stuck {
        return Err(ended.context("care for the keys token ended")?.into());
    }
    Ok(())
}
