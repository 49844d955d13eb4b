//! Starting and stopping the operator: what depends on what, in order.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use spark_proto::{
    log::v1::deletion_log_server::DeletionLogServer,
    packages::v1::package_keys_server::PackageKeysServer,
    peer::v1::peer_server::PeerServer,
    spark_authn::spark_authn_service_server::SparkAuthnServiceServer,
    transport::{Deadlines, Spki, SpkiAllowList, channel, serve},
};
use spark_rules::{
    address::Network,
    federation::{Federation, FederationFile},
    ids::OperatorIndex,
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::{
    authn::Authn,
    chain::{BitcoindSource, ChainSource, Follower, Start},
    checks,
    config::Config,
    convert::Converter,
    db::{Db, confirm, follow::ChainTables, operation::index_column},
    deletion_log::{Comparer, Heads, LogFiles, LogService, Publisher},
    deposit_address::DepositAddresses,
    edge::{Edge, Quotas, TlsMaterial, public_service, signer_channel},
    events::{self, Events},
    http,
    keypool::Keypool,
    metrics::{BuildInfo, Metrics},
    op::{Engine, Settings},
    package_keys::{PackageKeyService, Stock},
    peer::{PeerClient, PeerService, Signers},
    recovery::{self, RecoveryError},
    refresh::Refresher,
    repair::Repair,
    rpc,
    sampler::Sampler,
    signer_client::SignerClient,
    static_deposit::StaticDeposits,
    watchtower,
};

/// Unused keyshares kept ready.
const POOL: u32 = 64;
/// Longest wait for a peer.
const PEER_DEADLINE: Duration = Duration::from_secs(15);
/// Most bytes between operators: an operation with every package.
const MAX_PEER_MESSAGE: usize = 32 << 20;
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(500);
/// How often peers hear where this signer stands (D11).
const WITNESS_EVERY: Duration = Duration::from_secs(30);
/// Blocks looked back at the first start: nothing was bound before it.
const FIRST_START: u32 = 6;

/// Reads the federation file; it must be the pinned one, and signed by every member. A refusal begins with a stable
/// reason.
pub fn federation(config: &Config) -> anyhow::Result<Federation> {
    let path = &config.federation;
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let federation = FederationFile::parse(&text)
        .and_then(|file| file.verify(Some(&config.federation_hash)))
        .map_err(|error| {
            let reason = error.reason();
            anyhow::Error::new(error).context(format!("{reason}: {}", path.display()))
        })?;
    anyhow::ensure!(federation.network() == config.network, "federation file is for another network");
    Ok(federation)
}

const fn network_of(network: bitcoin::Network) -> Network {
    match network {
        bitcoin::Network::Bitcoin => Network::Mainnet,
        bitcoin::Network::Regtest => Network::Regtest,
        bitcoin::Network::Signet => Network::Signet,
        bitcoin::Network::Testnet | bitcoin::Network::Testnet4 => Network::Testnet,
    }
}

fn peers(
    federation: &Federation,
    own: OperatorIndex,
    tls: &TlsMaterial,
    metrics: &Metrics,
) -> anyhow::Result<BTreeMap<OperatorIndex, PeerClient>> {
    let mut peers = BTreeMap::new();
    for member in federation.members().iter().filter(|m| m.index != own) {
        let (host, _) = member.peer_address.rsplit_once(':').context("peer_address must be host:port")?;
        let spki = member.tls_spki.first().context("member has no TLS key")?;
        let tls = tls.to_peer(host, Spki::from_bytes(*spki));
        let deadlines = Deadlines { request: PEER_DEADLINE, ..Deadlines::default() };
        let channel = channel(&member.peer_address, &tls, deadlines)?;
        let client = PeerClient::new(member.index, channel, PEER_DEADLINE, metrics.clone());
        peers.insert(member.index, client);
    }
    Ok(peers)
}

/// Runs until `shutdown` resolves. Prints the bound addresses as one JSON line on standard output when everything
/// listens.
pub async fn run(config: Config, shutdown: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
    let federation = Arc::new(federation(&config)?);
    let own = config.operator;
    let member = federation.member(own).context("this operator is not in the federation file")?;
    let identity = member.identity;
    let tls = TlsMaterial::load(&config)?;
    let build = BuildInfo {
        version: env!("CARGO_PKG_VERSION"),
        commit: option_env!("SPARK_COMMIT").unwrap_or("unknown"),
        network: config.network.to_core_arg(),
        epoch: federation.epoch(),
    };
    let others: Vec<u16> = federation.indices().filter(|i| *i != own).map(OperatorIndex::get).collect();
    let metrics = Metrics::new(build, &others)?;

    let url = config.database.url.read()?;
    let depth = config.chain.deposit_depth.get();
    let db = Db::connect(url.trim(), config.database.max_connections.get(), STATEMENT_TIMEOUT)
        .await?
        .with_deposit_depth(depth);
    let signer = SignerClient::new(signer_channel(&config)?, config.signer.deadline);
    let signers = Signers::new(own, signer.clone(), peers(&federation, own, &tls, &metrics)?);
    let source: Arc<dyn ChainSource> =
        Arc::new(BitcoindSource::connect(&config.bitcoind, config.network).await?);
    let tables = ChainTables::new(db.clone());
    let follower = Arc::new(Follower::new(
        Arc::clone(&source),
        Arc::new(tables.clone()),
        Arc::new(tables),
        config.chain,
        config.chain.start_height.map_or(Start::BehindTip(FIRST_START), Start::Height),
        metrics.clone(),
    ));
    let chain_status = follower.status();

    let engine = Engine::new(
        db.clone(),
        Arc::clone(&federation),
        signers.clone(),
        Settings {
            htlc: config.htlc,
            coop_exit: config.coop_exit,
            exit_depth: config.chain.exit_depth.get(),
            ..Settings::default()
        },
        metrics.clone(),
    )
    .with_chain(chain_status.clone(), config.chain.max_tip_age);
    let addresses = DepositAddresses::new(db.clone(), Arc::clone(&federation), signers.clone());

    let refunds = StaticDeposits::new(
        db.clone(),
        network_of(config.network),
        signers.clone(),
        chain_status.clone(),
        config.chain.max_tip_age,
    );

    let (stop, stopping) = watch::channel(false);
    let wait = |stopping: &watch::Receiver<bool>| {
        let mut stopping = stopping.clone();
        async move {
            let _ = stopping.wait_for(|stop| *stop).await;
        }
    };
    let mut tasks = JoinSet::new();

    let (publisher, published) = Publisher::new(Arc::clone(&federation), signers.clone(), metrics.clone());
    let heads = Heads::new(own, published.clone());

    // Peers first: nobody unlocks without the others' memory.
    let peer_listener = TcpListener::bind(config.listen.peer).await?;
    let pinned: Vec<Spki> = federation
        .members()
        .iter()
        .filter(|m| m.index != own)
        .flat_map(|m| &m.tls_spki)
        .map(|k| Spki::from_bytes(*k))
        .collect();
    let peer_routes = tonic::service::Routes::new(
        PeerServer::new(PeerService::new(engine.clone(), addresses.clone(), refunds.clone(), heads))
            .max_decoding_message_size(MAX_PEER_MESSAGE)
            .max_encoding_message_size(MAX_PEER_MESSAGE),
    );
    let peer_tls = tls.peer(SpkiAllowList::new(pinned));
    let until = wait(&stopping);
    tasks.spawn(async move {
        serve(peer_listener, peer_tls, peer_routes.prepare(), until).await.map_err(Into::into)
    });

    let (health, ready) = checks::health(own, &db, &signer, &chain_status, config.chain.max_tip_age);
    let (grpc_health, health_service) = health.grpc().await;
    let http_listener = TcpListener::bind(config.listen.http).await?;
    let http_address = http_listener.local_addr()?;
    let (http_metrics, until) = (metrics.clone(), wait(&stopping));
    tasks.spawn(
        async move { http::serve(http_listener, http_metrics, health, until).await.map_err(Into::into) },
    );

    let sampler = Sampler::new(db.clone(), index_column(own), signer.clone(), metrics.clone());
    let until = wait(&stopping);
    tasks.spawn(async move {
        sampler.run(until).await;
        Ok(())
    });

    let repair = Repair::new(signers.clone(), &federation, metrics.clone());
    tokio::pin!(shutdown);
    let started = tokio::select! {
        () = &mut shutdown => false,
        result = recover(&engine, &addresses, &repair) => { result?; true }
    };
    if started {
        // After recovery: a block says nothing about addresses that these tables have lost.
        let until = wait(&stopping);
        tasks.spawn(async move {
            follower.run(until).await;
            Ok(())
        });
        let (settle_db, mut blocks, max_tip_age) =
            (db.clone(), chain_status.clone(), config.chain.max_tip_age);
        let until = wait(&stopping);
        tasks.spawn(async move {
            tokio::pin!(until);
            loop {
                // On a stale view nothing is credited (S12).
                let fresh = blocks.borrow_and_update().fresh(max_tip_age).is_ok();
                if fresh && let Err(error) = confirm::settle(&settle_db, depth).await {
                    tracing::warn!(%error, "confirmations");
                }
                tokio::select! {
                    () = &mut until => return Ok(()),
                    changed = blocks.changed() => if changed.is_err() { return Ok(()) },
                }
            }
        });
        let until = wait(&stopping);
        tasks.spawn({
            let (db, source, blocks) = (db.clone(), Arc::clone(&source), chain_status.clone());
            async move {
                watchtower::run(db, source, blocks, until).await;
                Ok(())
            }
        });
        let until = wait(&stopping);
        let pool = Keypool::new(db.clone(), Arc::clone(&federation), signers.clone(), POOL);
        tasks.spawn(async move {
            pool.run(until).await;
            Ok(())
        });
        let (events_db, days, until) = (db.clone(), config.event_retention_days, wait(&stopping));
        tasks.spawn(async move {
            events::retain(events_db, days, until).await;
            Ok(())
        });
        let until = wait(&stopping);
        let stock = Stock::new(db.clone(), signer.clone(), Arc::clone(&federation), own);
        tasks.spawn(async move {
            stock.run(until).await;
            Ok(())
        });
        engine.resume().await?;
        let (terminator, until) = (engine.clone(), wait(&stopping));
        tasks.spawn(async move {
            terminator.run_termination(until).await;
            Ok(())
        });
        let (keeper, until) = (engine.clone(), wait(&stopping));
        tasks.spawn(async move {
            keep_unlocked(&keeper, until).await;
            Ok(())
        });
        let (follower, places, until) = (engine.clone(), addresses.clone(), wait(&stopping));
        tasks.spawn(async move {
            repair.run(&follower, &places, until).await;
            Ok(())
        });
        let refresher = Refresher::new(engine.clone(), metrics.clone(), config.refresh_after_repair);
        let until = wait(&stopping);
        tasks.spawn(async move {
            refresher.run(until).await;
            Ok(())
        });
        let (announcer, until) = (engine.clone(), wait(&stopping));
        tasks.spawn(async move {
            announce(&announcer, until).await;
            Ok(())
        });

        let until = wait(&stopping);
        tasks.spawn(async move {
            publisher.run(until).await;
            Ok(())
        });
        let (comparer, until) = (Comparer::new(signers.clone()), wait(&stopping));
        tasks.spawn(async move {
            comparer.run(until).await;
            Ok(())
        });

        let until = wait(&stopping);
        tasks.spawn(async move {
            grpc_health.run(until).await;
            Ok(())
        });

        let network = network_of(config.network);
        let events = Events::start(db.clone(), Converter::new(&federation), network.to_wire()).await?;
        let authn = Authn::new(identity, config.session_ttl);
        let parts = rpc::Parts {
            federation: Arc::clone(&federation),
            own,
            network,
            db: db.clone(),
            events,
            operations: Arc::new(engine.clone()),
            nonces: Arc::new(signers.clone()),
            addresses: Arc::new(addresses),
            refunds: Arc::new(refunds),
            htlc: config.htlc,
            coop_exit: config.coop_exit,
            open_reads: config.open_reads,
        };
        let routes = rpc::Api::new(parts)
            .routes()
            .add_service(health_service)
            .add_service(SparkAuthnServiceServer::new(authn.clone()))
            .add_service(DeletionLogServer::new(LogService::new(
                db.clone(),
                signer.clone(),
                published.clone(),
            )))
            .add_service(PackageKeysServer::new(PackageKeyService::new(db.clone())));
        let edge = Edge {
            authn,
            quotas: Arc::new(Quotas::new(config.limits)),
            metrics: metrics.clone(),
            files: LogFiles::new(published, signer.clone()),
            open_reads: config.open_reads,
            sdk_suites: config.sdk_suites,
        };
        let mut public = Vec::new();
        for listener in &config.listen.public {
            let socket = TcpListener::bind(listener.address).await?;
            public.push(socket.local_addr()?);
            let service = public_service(&edge, routes.clone());
            let (server, until) = (tls.public(listener.client_auth), wait(&stopping));
            tasks.spawn(async move { serve(socket, server, service, until).await.map_err(Into::into) });
        }
        // Only now: who is told that this operator is ready calls it at once.
        let _ = ready.send(true);
        println!(
            "{}",
            serde_json::json!({ "public": public, "peer": config.listen.peer, "http": http_address })
        );
        tokio::select! {
            () = &mut shutdown => {}
            // A listener or task that ends by itself ends the process: half an operator serves nobody.
            Some(ended) = tasks.join_next() => ended??,
        }
    }
    let _ = stop.send(true);
    while let Some(ended) = tasks.join_next().await {
        if let Ok(Err(error)) = ended {
            let error: anyhow::Error = error;
            tracing::warn!(%error, "while stopping");
        }
    }
    db.close().await;
    Ok(())
}

/// Unlocks the signer with the peers' memory, has it repaired if it waits for that, and follows its journal; tries
/// again until it works, unless these tables are not the signer's.
async fn recover(engine: &Engine, addresses: &DepositAddresses, repair: &Repair) -> anyhow::Result<()> {
    loop {
        let attempt = async {
            recovery::unlock(engine).await?;
            repair.complete().await?;
            recovery::follow_journal(engine, addresses).await
        };
        match attempt.await {
            Ok(recovered) => {
                tracing::info!(?recovered, "recovered");
                return Ok(());
            }
            Err(error @ (RecoveryError::Behind { .. } | RecoveryError::OtherLife)) => {
                return Err(error.into());
            }
            Err(error) => {
                tracing::info!(%error, "not recovered yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Unlocks the signer again when it was restarted alone (D11).
async fn keep_unlocked(engine: &Engine, shutdown: impl Future<Output = ()>) {
    tokio::pin!(shutdown);
    loop {
        if let Err(error) = recovery::unlock(engine).await {
            tracing::debug!(%error, "signer");
        }
        tokio::select! {
            () = &mut shutdown => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Lets the peers' signers hear where this signer stands, so that they remember it.
async fn announce(engine: &Engine, shutdown: impl Future<Output = ()>) {
    tokio::pin!(shutdown);
    loop {
        let signers = engine.signers();
        let question = spark_proto::signer::v1::AskWitnessRequest {};
        match signers.own().ask_witness(question).await {
            Ok(question) => {
                let answers = signers.peers().map(|(_, peer)| peer.answer_witness(question.clone()));
                futures::future::join_all(answers).await;
            }
            Err(error) => tracing::debug!(%error, "position not announced"),
        }
        tokio::select! {
            () = &mut shutdown => return,
            () = tokio::time::sleep(WITNESS_EVERY) => {}
        }
    }
}
