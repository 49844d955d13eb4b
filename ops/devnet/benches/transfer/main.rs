//! `./ops/bench transfer`: wallets in this process send leaves to each other on a fresh network of real programs, with
//! TLS, SoftHSM tokens and Postgres that waits for the disk.
//!
//! Wallets come in pairs. In each round both wallets of a pair send their leaf to the other one, then both claim: k
//! wallets are at work at any time, and a wallet always owns one leaf. Leaves whose timelocks run out are renewed
//! between rounds; renewals are counted and timed apart, but their calls to the HSM are not taken out.
//!
//! A send lasts from the wallet's decision to the answer that all operators applied it; a claim from asking what
//! waits to the verified leaf. Both contain all that the wallet checks and stores.

mod load;
mod profile;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use spark_devnet::network::{Devnet, Options};
use spark_proto::transport::install_crypto_provider;
use sqlx::{Connection as _, PgConnection};

use load::{Counts, Player};
use profile::Snapshot;

/// Transfers per second, and how long each takes.
#[derive(Debug, Parser)]
#[command(name = "bench-transfer")]
struct Cli {
    /// Wallets at work; even.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(2..=512))]
    wallets: u16,
    /// How long; rounds that have begun are finished.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
}

#[tokio::main(worker_threads = 8)]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    ensure!(cli.wallets.is_multiple_of(2), "--wallets must be even");
    install_crypto_provider();
    let mut devnet = Devnet::start(Options::default(), |what| eprintln!("… {what}")).await?;
    for index in 0..u16::try_from(devnet.members().len())? {
        durable(&devnet.database_url(index)).await?;
    }
    eprintln!("… {} wallets, a leaf each", cli.wallets);
    let players = Player::all(&devnet, cli.wallets).await?;
    load::settle(&devnet).await?;

    eprintln!("… sending and claiming for {} s", cli.seconds);
    let before = Snapshot::take(&mut devnet).await?;
    let started = Instant::now();
    let until = started + Duration::from_secs(cli.seconds);
    let progress = load::Progress::default();
    let counts = tokio::select! {
        counts = load::run(&players, until, &progress) => counts?,
        () = progress.report() => Counts::default(),
    };
    let elapsed = started.elapsed();
    let after = Snapshot::take(&mut devnet).await?;
    load::money_is_all_there(&players).await?;

    after.since(&before).print(counts.transfers(), elapsed);
    eprintln!("programs: {}", if cfg!(debug_assertions) { "debug" } else { "release" });
    println!("wallets={}", cli.wallets);
    println!("seconds={:.1}", elapsed.as_secs_f64());
    println!("transfers={}", counts.transfers());
    println!("renewals={}", counts.renewals.len());
    if let Some(time) = percentile(&counts.renewals, 50) {
        println!("renew_p50_ms={time:.1}");
    }
    println!("transfers_per_s={:.2}", counts.transfers() as f64 / elapsed.as_secs_f64());
    for (name, times) in [("send", &counts.sends), ("claim", &counts.claims)] {
        for percent in [50, 99] {
            let time = percentile(times, percent).context("nothing was done")?;
            println!("{name}_p{percent}_ms={time:.1}");
        }
    }
    let calls = after.hsm_calls() - before.hsm_calls();
    println!("hsm_calls_per_transfer={:.2}", calls / counts.transfers() as f64);
    Ok(())
}

/// A database that forgets on a power failure would make every number better.
async fn durable(url: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    for (query, setting) in [
        ("SHOW fsync", "fsync"),
        ("SHOW synchronous_commit", "synchronous_commit"),
        ("SHOW full_page_writes", "full_page_writes"),
    ] {
        let value: String = sqlx::query_scalar(query).fetch_one(&mut connection).await?;
        ensure!(value == "on", "{setting} is {value}");
    }
    Ok(connection.close().await?)
}

/// Milliseconds below which `percent` of all lie (nearest rank).
fn percentile(times: &[Duration], percent: usize) -> Option<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).map(|time| time.as_secs_f64() * 1000.0)
}
