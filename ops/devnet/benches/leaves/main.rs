//! `./ops/bench leaves`: how long a wallet with thousands of leaves keeps its user waiting, and what a package of a
//! hundred leaves costs, each beside the same with one leaf, on a fresh network of real programs.
//!
//! Feeders deposit a hundred leaves each and send them in one package to one wallet, until it has them all. Then it
//! and a wallet with one leaf do the same things in turn: ask for the balance, compare every leaf with all operators, pay
//! one leaf, claim one. Each time the folder is opened anew, as every command of the program does.

use std::{
    future::Future,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bitcoin::{Amount, TxOut};
use clap::Parser;
use futures::future::try_join_all;
use rand::rngs::OsRng;
use spark_devnet::network::{Devnet, Options};
use spark_proto::transport::install_crypto_provider;
use spark_rules::address::SparkAddress;
use spark_wallet::{
    Wallet,
    flow::Funding,
    keys::{Phrase, Words},
};

/// Satoshis of every leaf.
const LEAF: u64 = 1_000;
/// Leaves of a package.
const PACKAGE: usize = 100;
/// Deposits that one transaction pays for.
const DEPOSITS: usize = 25;
/// Wallets that deposit at the same time.
const FEEDERS: usize = 4;
/// Times that each thing is done.
const ROUNDS: usize = 9;
/// Longest wait for what must come soon.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a user waits for, with many leaves and with one.
#[derive(Debug, Parser)]
#[command(name = "bench-leaves")]
struct Cli {
    /// Leaves of the large wallet, in hundreds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=100))]
    hundreds: u16,
}

#[tokio::main(worker_threads = 4)]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    install_crypto_provider();
    let devnet = Devnet::start(Options::default(), |what| eprintln!("… {what}")).await?;
    let home = devnet.endpoints().dir.join("wallets");
    let (large, small) = (home.join("large"), home.join("small"));
    let packages = fill(&devnet, &home, &wallet(&devnet, &large, 0)?, usize::from(cli.hundreds)).await?;
    deposit(&devnet, &wallet(&devnet, &small, 0)?, 1).await?;
    let other = wallet(&devnet, &home.join("other"), 1)?;
    let (of_large, of_small) = use_both(&large, &small, &other).await?;

    eprintln!("programs: {}", if cfg!(debug_assertions) { "debug" } else { "release" });
    println!("leaves={}", u64::from(cli.hundreds) * PACKAGE as u64);
    println!("send_{PACKAGE}_leaves_ms={:.1}", median(&packages.sends)?);
    println!("claim_{PACKAGE}_leaves_ms={:.1}", median(&packages.claims)?);
    for (name, of) in [("large", &of_large), ("small", &of_small)] {
        println!("{name}_balance_ms={:.1}", median(&of.balance)?);
        println!("{name}_verify_leaves_ms={:.1}", median(&of.verify)?);
        println!("{name}_send_1_leaf_ms={:.1}", median(&of.send)?);
        println!("{name}_claim_1_leaf_ms={:.1}", median(&of.claim)?);
    }
    println!("send_100_leaves_per_leaf_ratio={:.3}", per_leaf(&packages.sends, &of_small.send)?);
    println!("claim_100_leaves_per_leaf_ratio={:.3}", per_leaf(&packages.claims, &of_small.claim)?);
    println!("large_send_ratio={:.2}", median(&of_large.send)? / median(&of_small.send)?);
    println!("large_claim_ratio={:.2}", median(&of_large.claim)? / median(&of_small.claim)?);
    Ok(())
}

/// Times of packages of a hundred leaves.
#[derive(Default)]
struct Packages {
    sends: Vec<Duration>,
    claims: Vec<Duration>,
}

/// Times of what a wallet's user does.
#[derive(Default)]
struct Use {
    balance: Vec<Duration>,
    verify: Vec<Duration>,
    send: Vec<Duration>,
    claim: Vec<Duration>,
}

fn wallet(devnet: &Devnet, dir: &Path, coordinator: u16) -> anyhow::Result<Wallet> {
    devnet.write_wallet_config(dir, coordinator)?;
    Ok(Wallet::create(dir, &Phrase::generate(Words::Twelve, &mut OsRng)?)?)
}

fn address(wallet: &Wallet) -> anyhow::Result<SparkAddress> {
    Ok(SparkAddress::decode(&wallet.address()?)?)
}

/// Sends `hundreds` packages of a hundred leaves to one wallet. Packages are sent and claimed one at a time: their
/// times are those of an idle network.
async fn fill(devnet: &Devnet, home: &Path, to: &Wallet, hundreds: usize) -> anyhow::Result<Packages> {
    let mut times = Packages::default();
    let receiver = address(to)?;
    let feeders: Vec<Wallet> = (0..FEEDERS.min(hundreds))
        .map(|index| wallet(devnet, &home.join(format!("feeder-{index}")), u16::try_from(index % 3)?))
        .collect::<anyhow::Result<_>>()?;
    let mut left = hundreds;
    while left > 0 {
        let round = feeders.get(..left.min(feeders.len())).context("feeders")?;
        try_join_all(round.iter().map(|feeder| deposit(devnet, feeder, PACKAGE))).await?;
        for feeder in round {
            let sats = LEAF * PACKAGE as u64;
            let (sent, time) = timed(feeder.send(&receiver, sats, None)).await;
            ensure!(sent.context("package")?.leaves.len() == PACKAGE, "another package than meant");
            times.sends.push(time);
            times.claims.push(claim(to).await?);
        }
        left -= round.len();
        eprintln!("… {} leaves", (hundreds - left) * PACKAGE);
    }
    Ok(times)
}

/// Deposits `count` leaves and waits until they can be spent.
async fn deposit(devnet: &Devnet, wallet: &Wallet, count: usize) -> anyhow::Result<()> {
    let before = wallet.balance().await?.available_sats;
    for batch in (0..count).collect::<Vec<_>>().chunks(DEPOSITS) {
        let (mut addresses, mut outputs) = (Vec::new(), Vec::new());
        for _ in batch {
            let address = wallet.deposit_address().await?.address;
            let to = address.parse::<bitcoin::Address<_>>()?.require_network(bitcoin::Network::Regtest)?;
            outputs.push(TxOut { value: Amount::from_sat(LEAF), script_pubkey: to.script_pubkey() });
            addresses.push(address);
        }
        let funding = devnet.faucet().pay(outputs).await?.compute_txid();
        devnet.faucet().mine(1).await?;
        for address in addresses {
            wallet.claim_deposit(&address, &Funding::Txid(funding)).await?.context("nothing to claim")?;
        }
    }
    let end = Instant::now() + PATIENCE;
    while wallet.balance().await?.available_sats < before + LEAF * count as u64 {
        ensure!(Instant::now() < end, "deposits do not become spendable");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Both wallets do the same in turn, so that whatever else the machine does strikes both.
async fn use_both(large: &Path, small: &Path, other: &Wallet) -> anyhow::Result<(Use, Use)> {
    let (mut of_large, mut of_small) = (Use::default(), Use::default());
    for _ in 0..ROUNDS {
        for (dir, times) in [(large, &mut of_large), (small, &mut of_small)] {
            let (balance, time) = timed(async { Wallet::open(dir)?.balance().await }).await;
            ensure!(balance?.available_sats >= LEAF, "nothing to spend");
            times.balance.push(time);

            let (leaves, time) = timed(async { Wallet::open(dir)?.sync().await }).await;
            ensure!(leaves?.iter().any(|leaf| leaf.is_spendable()), "no leaf");
            times.verify.push(time);

            let to = address(other)?;
            let (sent, time) = timed(async { Wallet::open(dir)?.send(&to, LEAF, None).await }).await;
            sent.context("send")?;
            times.send.push(time);
            claim(other).await?;

            let back = address(&Wallet::open(dir)?)?;
            other.send(&back, LEAF, None).await.context("back")?;
            let started = Instant::now();
            let wallet = Wallet::open(dir)?;
            let opened = started.elapsed();
            times.claim.push(opened + claim(&wallet).await?);
        }
    }
    Ok((of_large, of_small))
}

/// Claims the one transfer that waits.
async fn claim(wallet: &Wallet) -> anyhow::Result<Duration> {
    let end = Instant::now() + PATIENCE;
    loop {
        let (outcomes, time) = timed(wallet.receive()).await;
        let mut outcomes = outcomes.context("receive")?;
        match outcomes.pop() {
            Some(Ok(_)) if outcomes.is_empty() => return Ok(time),
            Some(Ok(_)) => anyhow::bail!("more transfers than were sent"),
            Some(Err((id, error))) => return Err(error).context(format!("claim of {id}")),
            None => ensure!(Instant::now() < end, "nothing arrives"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn timed<T>(what: impl Future<Output = T>) -> (T, Duration) {
    let started = Instant::now();
    let result = what.await;
    (result, started.elapsed())
}

/// Milliseconds.
fn median(times: &[Duration]) -> anyhow::Result<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    Ok(sorted.get(sorted.len() / 2).context("nothing was done")?.as_secs_f64() * 1000.0)
}

/// What a leaf of a package costs, of what a leaf alone does.
fn per_leaf(package: &[Duration], alone: &[Duration]) -> anyhow::Result<f64> {
    Ok(median(package)? / PACKAGE as f64 / median(alone)?)
}
