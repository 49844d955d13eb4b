//! The wallets and what they do.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use bitcoin::Amount;
use futures::future::{try_join, try_join_all};
use rand::rngs::OsRng;
use spark_devnet::{exposition::Exposition, http, network::Devnet};
use spark_rules::address::SparkAddress;
use spark_wallet::{
    Wallet,
    flow::{Funding, LeafView},
    keys::{Phrase, Words},
};
use tokio::sync::Mutex;

const LEAF: u64 = 100_000;
/// Blocks that each change of owner takes from a refund's timelock.
const STEP: u16 = 100;
/// Longest wait for what must come soon.
const PATIENCE: Duration = Duration::from_secs(120);

/// A wallet that owns one leaf.
pub(crate) struct Player {
    wallet: Wallet,
    address: SparkAddress,
    leaf: Mutex<Leaf>,
}

#[derive(Clone)]
struct Leaf {
    id: String,
    timelock: u16,
}

impl Leaf {
    fn of(view: &LeafView) -> anyhow::Result<Self> {
        Ok(Self { id: view.leaf_id.clone(), timelock: view.refund_timelock.context("no refund")? })
    }
}

/// How long everything took.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) sends: Vec<Duration>,
    pub(crate) claims: Vec<Duration>,
    pub(crate) renewals: Vec<Duration>,
}

impl Counts {
    /// Transfers that were sent and claimed.
    pub(crate) fn transfers(&self) -> usize {
        self.claims.len()
    }

    fn add(&mut self, other: Self) {
        self.sends.extend(other.sends);
        self.claims.extend(other.claims);
        self.renewals.extend(other.renewals);
    }
}

/// How far it is.
#[derive(Default)]
pub(crate) struct Progress(AtomicU64);

impl Progress {
    /// Says so now and then, for ever.
    pub(crate) async fn report(&self) {
        let started = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let (done, seconds) = (self.0.load(Ordering::Relaxed), started.elapsed().as_secs_f64());
            eprintln!("  {seconds:5.0} s  {done:6} transfers  {:6.2} per second", done as f64 / seconds);
        }
    }
}

impl Player {
    /// `count` wallets, coordinated by the operators in turn, with a confirmed leaf each.
    pub(crate) async fn all(devnet: &Devnet, count: u16) -> anyhow::Result<Vec<Self>> {
        let operators = u16::try_from(devnet.members().len())?;
        let mut wallets = Vec::new();
        for index in 0..count {
            let dir = devnet.endpoints().dir.join("wallets").join(index.to_string());
            devnet.write_wallet_config(&dir, index % operators)?;
            wallets.push(Wallet::create(&dir, &Phrase::generate(Words::Twelve, &mut OsRng)?)?);
        }
        let mut deposits = Vec::new();
        for wallet in &wallets {
            let address = wallet.deposit_address().await?.address;
            let to = address.parse::<bitcoin::Address<_>>()?.require_network(bitcoin::Network::Regtest)?;
            let funding = devnet.faucet().send(&to, Amount::from_sat(LEAF)).await?;
            deposits.push((address, Funding::Transaction(funding)));
        }
        devnet.faucet().mine(1).await?;
        let mut players = Vec::new();
        for (wallet, (address, funding)) in wallets.into_iter().zip(deposits) {
            wallet.claim_deposit(&address, &funding).await?.context("nothing to claim")?;
            let leaf = spendable(&wallet).await?;
            let address = SparkAddress::decode(&wallet.address()?)?;
            players.push(Self { wallet, address, leaf: Mutex::new(Leaf::of(&leaf)?) });
        }
        Ok(players)
    }

    async fn send(&self, to: &Self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        self.wallet.send(&to.address, LEAF, None).await.context("send")?;
        Ok(started.elapsed())
    }

    async fn claim(&self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        loop {
            let mut claimed = self.wallet.receive().await.context("receive")?;
            match (claimed.pop(), claimed.len()) {
                (Some(Ok(_)), 0) => return Ok(started.elapsed()),
                (Some(Err((id, error))), 0) => return Err(error).context(format!("claim of {id}")),
                (None, _) if started.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(5)).await
                }
                (None, _) => bail!("nothing arrives"),
                (Some(_), more) => bail!("{more} more transfers than were sent"),
            }
        }
    }

    /// The time of the renewal, if the leaf could not be sent again without one.
    async fn renew(&self) -> anyhow::Result<Option<Duration>> {
        let mut leaf = self.leaf.lock().await;
        if leaf.timelock >= 2 * STEP {
            return Ok(None);
        }
        let started = Instant::now();
        let renewed = self.wallet.renew(&leaf.id).await.context("renewal")?;
        leaf.timelock = renewed.refund_after;
        Ok(Some(started.elapsed()))
    }
}

async fn spendable(wallet: &Wallet) -> anyhow::Result<LeafView> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(view) = wallet.sync().await?.into_iter().find(LeafView::is_spendable) {
            return Ok(view);
        }
        ensure!(Instant::now() < end, "the deposit does not become spendable");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until no operator makes keys any more, which would cost calls to the HSM that no transfer needs.
pub(crate) async fn settle(devnet: &Devnet) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    for operator in &devnet.endpoints().operators {
        let mut last = 0.0;
        loop {
            let text = http::get(&format!("{}/metrics", operator.http)).await?;
            let keys = Exposition::parse(&text)?.sum("spark_operator_keys_available", &[]);
            if keys > 0.0 && keys == last {
                break;
            }
            ensure!(Instant::now() < end, "operator {} goes on making keys", operator.index);
            last = keys;
            // The gauge is sampled every five seconds.
            tokio::time::sleep(Duration::from_secs(6)).await;
        }
    }
    Ok(())
}

/// All pairs at once, until the time is over.
pub(crate) async fn run(players: &[Player], until: Instant, progress: &Progress) -> anyhow::Result<Counts> {
    let pairs = players.chunks_exact(2).map(|pair| async move {
        match pair {
            [one, other] => play(one, other, until, progress).await,
            _ => bail!("half a pair"),
        }
    });
    let mut all = Counts::default();
    for counts in try_join_all(pairs).await? {
        all.add(counts);
    }
    Ok(all)
}

async fn play(one: &Player, other: &Player, until: Instant, progress: &Progress) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    while Instant::now() < until {
        let (first, second) = try_join(one.renew(), other.renew()).await?;
        counts.renewals.extend([first, second].into_iter().flatten());
        let (first, second) = try_join(one.send(other), other.send(one)).await?;
        counts.sends.extend([first, second]);
        let (first, second) = try_join(one.claim(), other.claim()).await?;
        counts.claims.extend([first, second]);
        progress.0.fetch_add(2, Ordering::Relaxed);
        let (mut mine, mut yours) = (one.leaf.lock().await, other.leaf.lock().await);
        std::mem::swap(&mut *mine, &mut *yours);
        for leaf in [&mut *mine, &mut *yours] {
            leaf.timelock = leaf.timelock.saturating_sub(STEP);
        }
    }
    Ok(counts)
}

/// After all that, every wallet still has its leaf.
pub(crate) async fn money_is_all_there(players: &[Player]) -> anyhow::Result<()> {
    for player in players {
        let balance = player.wallet.balance().await?;
        ensure!(balance.available_sats == LEAF, "a wallet has {balance:?}");
        let known = player.leaf.lock().await.clone();
        let view = Leaf::of(&spendable(&player.wallet).await?)?;
        ensure!((view.id == known.id) && (view.timelock == known.timelock), "another leaf than expected");
    }
    Ok(())
}
