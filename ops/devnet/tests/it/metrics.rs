//! Metrics and health of real processes: every family that is registered is fed, and what it says is true.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use spark_devnet::{
    exposition::{Exposition, Family},
    http,
    network::Devnet,
    wallet::WalletCommand,
};
use spark_proto::transport::{ClientTls, Deadlines, TrustRoots, channel, install_crypto_provider};
use tokio::sync::Mutex;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::support::{address, available, deposit, eventually, network, transfer};

/// Families that are zero while nothing is wrong. All others must have moved in the test below: one that is
/// registered and never fed fails it.
const ZERO_IN_GOOD_TIMES: &[&str] = &[
    "spark_operator_repair_items",
    "spark_operator_repair_waiting",
    "spark_signer_hsm_errors_total",
    "spark_signer_alarms_active",
    "spark_signer_alarms_acknowledged",
    "spark_signer_locked",
    "spark_signer_keys_token_stuck_seconds",
];

async fn scrape(url: &str) -> anyhow::Result<Exposition> {
    let text = http::get(&format!("{url}/metrics")).await?;
    Exposition::parse(&text).with_context(|| url.to_owned())
}

/// All operators, then all signers.
async fn scrape_all(devnet: &Devnet) -> anyhow::Result<(Vec<Exposition>, Vec<Exposition>)> {
    let (mut operators, mut signers) = (Vec::new(), Vec::new());
    for endpoint in &devnet.endpoints().operators {
        operators.push(scrape(&endpoint.http).await?);
        signers.push(scrape(&endpoint.signer_http).await?);
    }
    Ok((operators, signers))
}

/// Ids, keys, addresses and hashes are long, or have many digits.
fn looks_like_an_id(value: &str) -> bool {
    let digits = value.chars().filter(char::is_ascii_digit).count();
    let hex = value.len() >= 12 && value.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    hex || digits > 6 || value.len() > 48
}

fn check_conventions(program: &str, family: &Family) -> anyhow::Result<()> {
    let name = &family.name;
    ensure!(name.starts_with(program) || name.starts_with("process_"), "{name}: prefix");
    ensure!(!family.help.is_empty() && !family.kind.is_empty(), "{name}: HELP and TYPE");
    ensure!((family.kind == "counter") == name.ends_with("_total"), "{name}: {} by name", family.kind);
    if name.ends_with("_build_info") {
        return Ok(());
    }
    for sample in &family.samples {
        for (label, value) in &sample.labels {
            ensure!(label == "le" || !looks_like_an_id(value), "{name}: {label}={value:?}");
        }
    }
    Ok(())
}

/// What each family added up to at most, over all processes and scrapes.
#[derive(Debug, Default)]
struct Seen(BTreeMap<String, f64>);

impl Seen {
    fn look(&mut self, exposition: &Exposition) {
        // What the library says of the process is the library's business.
        let ours = exposition.families.iter().filter(|family| !family.name.starts_with("process_"));
        for family in ours {
            let total: f64 = family.samples.iter().map(|sample| sample.value.abs()).sum();
            let most = self.0.entry(family.name.clone()).or_default();
            *most = most.max(total);
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        for (name, most) in &self.0 {
            ensure!(
                ZERO_IN_GOOD_TIMES.contains(&name.as_str()) == (*most == 0.0),
                "{name} is at most {most}"
            );
        }
        Ok(())
    }
}

const PHASES: &str = "spark_operator_operation_phase_duration_seconds_count";

/// A deposit, two transfers with their claims, the second held up by a signer that hangs, and a reorganisation.
#[tokio::test(flavor = "multi_thread")]
async fn every_family_is_fed_and_counts_what_happened() -> anyhow::Result<()> {
    let mut devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    deposit(&devnet, &alice, 60_000).await?;
    let (_, before) = scrape_all(&devnet).await?;
    transfer(&alice, &bob, 60_000).await?;

    // What is only there while something is under way.
    let coordinator = devnet.endpoints().operators[1].http.clone();
    let mut seen = Seen::default();
    devnet.process("signer-2")?.pause()?;
    let to = address(&alice).await?;
    let sending = tokio::spawn(async move { bob.run(&["send", &to, "60000sat"]).await });
    loop {
        let read = scrape(&coordinator).await?;
        seen.look(&read);
        let prepared = [("state", "prepared")];
        let held = read.sum("spark_operator_leaves", &[("status", "transfer_locked")]);
        if read.sum("spark_operator_operations_open", &prepared) == 1.0
            && read.sum("spark_operator_operation_oldest_age_seconds", &prepared) > 0.0
            && read.sum("spark_operator_rpc_in_flight", &[("method", "start_transfer_v2")]) == 1.0
            && held == 1.0
        {
            break;
        }
        ensure!(!sending.is_finished(), "sent without one of the signers");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Long enough that its operator's sampler meets the hanging signer, which must not make its gauges go stale.
    tokio::time::sleep(Duration::from_secs(5)).await;
    devnet.process("signer-2")?.resume()?;
    sending.await??;
    eventually("transfer is claimed", || async {
        alice.run_all(&["receive"]).await?;
        Ok(available(&alice).await? == 60_000)
    })
    .await?;
    devnet.faucet().mine(1).await?;
    // Only who has seen a block can lose it.
    let height = devnet.bitcoind().tip().await?.height;
    eventually("operators follow", || async {
        let (operators, _) = scrape_all(&devnet).await?;
        Ok(operators.iter().all(|read| read.sum("spark_operator_chain_tip_height", &[]) >= height as f64))
    })
    .await?;
    devnet.bitcoind().reorg(1, 2).await?;

    // Gauges are sampled, and the follower looks at the chain, now and then.
    let seen = Mutex::new(seen);
    eventually("every family is fed", || async {
        let (operators, signers) = scrape_all(&devnet).await?;
        let mut seen = seen.lock().await;
        operators.iter().chain(&signers).for_each(|read| seen.look(read));
        seen.check()?;
        for operator in &operators {
            ensure!(operator.sum("spark_operator_leaves", &[("status", "available")]) == 1.0, "one leaf");
            ensure!(operator.sum("spark_operator_leaf_value_satoshis", &[]) == 60_000.0, "its value");
            ensure!(operator.sum("spark_operator_operations_open", &[]) == 0.0, "something is open");
        }
        Ok(true)
    })
    .await?;

    let (operators, signers) = scrape_all(&devnet).await?;
    for (program, expositions) in [("spark_operator_", &operators), ("spark_signer_", &signers)] {
        for family in expositions.iter().flat_map(|exposition| &exposition.families) {
            check_conventions(program, family)?;
        }
    }
    for (own, operator) in operators.iter().enumerate() {
        let ended = |kind, outcome| {
            operator.sum("spark_operator_operations_total", &[("kind", kind), ("outcome", outcome)])
        };
        for (kind, count) in [("deposit", 1.0), ("transfer", 2.0), ("claim", 2.0), ("renewal", 0.0)] {
            ensure!(
                ended(kind, "committed") == count,
                "operator {own}: {kind}: {}",
                ended(kind, "committed")
            );
            ensure!(ended(kind, "aborted") + ended(kind, "refused") == 0.0, "operator {own}: other {kind}");
            for phase in ["propose", "prepare", "apply"] {
                let done = operator.sum(PHASES, &[("kind", kind), ("phase", phase)]);
                ensure!(done == count, "operator {own}: {phase} of the {kind}: {done}");
            }
        }
        for peer in 0..operators.len() {
            let label = peer.to_string();
            let labels = [("peer", label.as_str())];
            let up: Vec<f64> =
                operator.matching("spark_operator_peer_up", &labels).map(|s| s.value).collect();
            ensure!(up == if peer == own { vec![] } else { vec![1.0] }, "operator {own}: {peer} up {up:?}");
        }
    }
    // Who coordinates collects votes and shares: the deposit and one of each at 0, the others at 1.
    for (operator, count) in operators.iter().zip([3.0, 2.0, 0.0]) {
        for phase in ["certify", "release"] {
            let done = operator.sum(PHASES, &[("phase", phase)]);
            ensure!(done == count, "{phase}: {done} instead of {count}");
        }
    }
    let grown = |name: &str, labels: &[(&str, &str)]| -> Vec<f64> {
        let pairs = signers.iter().zip(&before);
        pairs.map(|(after, before)| after.sum(name, labels) - before.sum(name, labels)).collect()
    };
    // Of two transfers and two claims: a vote and a receipt each at every signer.
    ensure!(grown("spark_signer_votes_total", &[("choice", "yes")]) == [4.0; 3], "votes");
    ensure!(grown("spark_signer_audit_log_size", &[]) == [4.0; 3], "receipts");
    // Each is signed by two of the signers: refund and direct-from-cpfp refund, as the node of a deposit has no
    // direct twin.
    let shares: f64 = grown("spark_signer_shares_released_total", &[]).iter().sum();
    ensure!(shares == 16.0, "{shares} shares");
    // Every epoch ends with the destruction of its root, and the token was asked for it.
    let epochs = grown("spark_signer_root_epoch", &[]);
    ensure!(epochs.iter().all(|count| *count >= 4.0), "epochs: {epochs:?}");
    for operation in ["create_root", "destroy_root"] {
        let calls = grown("spark_signer_hsm_operation_duration_seconds_count", &[("operation", operation)]);
        // Each device has a root of its own.
        let devices =
            signers.iter().map(|signer| signer.sum("spark_signer_device_state", &[("state", "serving")]));
        let expected: Vec<f64> =
            epochs.iter().zip(devices).map(|(epochs, devices)| epochs * devices).collect();
        ensure!(calls == expected, "{operation}: {calls:?}, {expected:?}");
    }
    Ok(())
}

/// What load balancers see, without session and certificate, is what `/readyz` says.
#[tokio::test(flavor = "multi_thread")]
async fn grpc_health_follows_readiness() -> anyhow::Result<()> {
    install_crypto_provider();
    let mut devnet = network().await?;
    let endpoint = devnet.endpoints().operators.first().context("operator")?.clone();
    let tls = ClientTls {
        roots: TrustRoots::from_pem_file(&devnet.endpoints().ca)?,
        identity: None,
        server_name: "localhost".into(),
        pinned: None,
    };
    let address = endpoint.open.strip_prefix("https://").context("open listener")?;
    let client = HealthClient::new(channel(address, &tls, Deadlines::default())?);
    let check = async |service: &str| -> anyhow::Result<ServingStatus> {
        let request = HealthCheckRequest { service: service.to_owned() };
        Ok(client.clone().check(request).await?.into_inner().status())
    };
    let says = async |status: ServingStatus| -> anyhow::Result<bool> {
        Ok(check("").await? == status && check("spark.SparkService").await? == status)
    };
    eventually("serving", || says(ServingStatus::Serving)).await?;
    let request = HealthCheckRequest { service: "spark.SparkService".into() };
    let mut watched = client.clone().watch(request).await?.into_inner();
    ensure!(watched.message().await?.context("first")?.status() == ServingStatus::Serving, "watched");

    devnet.process("signer-0")?.kill()?;
    eventually("not serving", || says(ServingStatus::NotServing)).await?;
    ensure!(http::get(&format!("{}/readyz", endpoint.http)).await.is_err(), "readyz says ready");
    ensure!(watched.message().await?.context("second")?.status() == ServingStatus::NotServing, "watched");

    devnet.process("signer-0")?.restart()?;
    devnet.wait_ready().await?;
    eventually("serving again", || says(ServingStatus::Serving)).await?;
    ensure!(watched.message().await?.context("third")?.status() == ServingStatus::Serving, "watched");
    ensure!(check("peer.v1.Peer").await.is_err(), "peers' service is nobody's business");
    Ok(())
}
