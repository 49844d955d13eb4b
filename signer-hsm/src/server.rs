//! Starting and stopping the signer.

use std::sync::Arc;

use anyhow::Context as _;
use spark_proto::{
    signer::v1::signer_server::SignerServer,
    transport::{Alpn, ClientAuth, Identity, ServerTls, Spki, SpkiAllowList, TrustRoots, serve},
};
use spark_rules::{federation::Federation, ids::OperatorIndex};
use spark_signer::{
    engine::{Engine, Settings},
    vault::{Token, Vault},
};
use tokio::net::TcpListener;

use crate::{
    config::Config,
    confirmer::{self, Recipe},
    federation, http,
    metrics::{BuildInfo, HsmMetrics, Metrics},
    service::SignerService,
    store::RedbStore,
    token::{DeleteClaim, Observed, Pkcs11Token, Security},
    worker::Worker,
};

/// Most bytes of one message: a package of the largest operation for every operator.
const MAX_MESSAGE: usize = 32 << 20;

/// Opens token and store and checks that both belong to the federation's member. From then on `metrics` counts the
/// token's calls.
pub fn open(config: &Config, metrics: &HsmMetrics) -> anyhow::Result<(Engine, Federation)> {
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
    let token = Pkcs11Token::open(&config.token)?;
    anyhow::ensure!(
        token.profile().delete_claim != DeleteClaim::None
            || federation.network() != bitcoin::Network::Bitcoin,
        "a {} token proves nothing of deletion: it holds no real money",
        token.profile().name
    );
    let delete_claim = token.profile().delete_claim.as_str().to_owned();
    anyhow::ensure!(
        member.identity == token.identity_public_key(),
        "identity key is not the federation file's"
    );
    anyhow::ensure!(
        member.federation_keys.contains(&token.federation_public_key()),
        "federation key is not the federation file's"
    );
    let store = RedbStore::open(&config.store)?;
    let vault = Vault::open(Arc::new(Observed::new(token, metrics.clone())), Box::new(store))?;
    let approved_repairs = config.repairs()?;
    let settled_evidence =
        config.settled_evidence.iter().map(|id| evidence_id(id)).collect::<Result<_, _>>()?;
    let settings =
        Settings { federation: federation.clone(), me, delete_claim, approved_repairs, settled_evidence };
    let mut engine = Engine::new(vault, settings);
    for (operator, reason, id) in engine.distrusted()? {
        tracing::error!(
            operator = operator.get(),
            reason,
            evidence = hex::encode(id),
            "deletion log contradicts itself: nothing that this operator coordinates gets a vote"
        );
    }
    Ok((engine, federation))
}

fn evidence_id(text: &str) -> anyhow::Result<[u8; 32]> {
    let bytes = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.with_context(|| format!("configuration: settled_evidence {text:?} is not 32 bytes of hex"))
}

/// Serves until `shutdown` resolves. Prints the bound addresses as one JSON line on standard output, so that a
/// supervisor can let the system choose ports.
pub async fn run(mut config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let tls = config.tls.clone().context("configuration: tls is missing")?;
    let recipe = Recipe {
        program: std::env::current_exe().context("own program")?,
        config: config.path.clone(),
        pin: config.token.hold_roots_pin()?,
    };
    let hsm = HsmMetrics::new()?;
    let (mut engine, federation) = open(&config, &hsm)?;
    let build = BuildInfo {
        version: env!("CARGO_PKG_VERSION"),
        commit: option_env!("SPARK_COMMIT").unwrap_or("unknown"),
        network: federation.network().to_core_arg(),
        epoch: federation.epoch(),
    };
    let metrics = Metrics::new(build, &hsm)?;
    metrics.engine(&mut engine);
    let (worker, progress, thread) = Worker::start(engine, metrics.clone())?;
    let confirmer = tokio::spawn(confirmer::run(recipe, worker.clone(), progress));

    let allow = tls.allow.iter().map(|text| text.parse::<Spki>()).collect::<Result<Vec<_>, _>>()?;
    let server_tls = ServerTls {
        identity: Identity::from_pem_files(&tls.cert, &tls.key)?,
        client_auth: ClientAuth::Required(TrustRoots::from_pem_file(&tls.client_ca)?),
        allow: Some(SpkiAllowList::new(allow)),
        alpn: Alpn::H2,
    };
    let listener = TcpListener::bind(config.listen.context("configuration: listen is missing")?).await?;
    let web = match config.http {
        Some(address) => Some(TcpListener::bind(address).await?),
        None => None,
    };
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
    let until = async {
        tokio::select! {
            () = shutdown => {}
            () = stopped => {}
        }
    };
    serve(listener, server_tls, routes.into_axum_router(), until).await?;
    if let Some(task) = web_task {
        task.abort();
    }
    confirmer.abort();
    // Its end is the only news; it holds a handle until then.
    let _ = confirmer.await;
    drop(worker);
    // All handles are gone with the service: the engine's thread ends after its last batch.
    let engine = tokio::task::spawn_blocking(move || thread.join())
        .await?
        .map_err(|_| anyhow::anyhow!("engine panicked"))?;
    anyhow::ensure!(!engine.vault().must_reopen(), "a commit was cut off; start the signer again");
    Ok(())
}
