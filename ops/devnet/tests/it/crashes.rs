//! S10: a program dies at every durable step of every flow, and all converge.
//!
//! The programs carry the feature `failpoints` and say themselves which steps they have, so that a new step is a new
//! round here. `cargo build --workspace --bins --features failpoints` builds them.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use sqlx::Connection as _;

use crate::support::{address, available, deposit, eventually, network, pay, ready, rows::agree};
use anyhow::{Context as _, bail, ensure};
use spark_devnet::{
    network::Devnet,
    stamp,
    wallet::{WalletCommand, number, text},
};

/// Steps that only the operator passes that coordinates.
const OF_COORDINATORS: &[&str] = &["Voted", "Signed", "Everywhere"];
/// Steps of attempts that end without effect.
const OF_REFUSALS: &[&str] = &["SignerRefused", "SignerAborted", "Aborted"];
/// Steps of a conditional transfer's second decision.
const OF_SETTLEMENTS: &[&str] = &["Settle", "SignSettlement"];
/// Unused keyshares that an operator keeps.
const POOL: i64 = 64;
/// Calls of a signer that belong to no operation.
const OF_KEYS: &[&str] = &["CommitNonces", "BindKeyshare", "ProvePossession", "Dkg"];

/// The steps that a program has.
fn steps(program: &str) -> anyhow::Result<Vec<String>> {
    let output = Command::new(stamp::program(program)?).arg("fail-points").output()?;
    ensure!(
        output.status.success(),
        "{program} has no fail points: cargo build --workspace --bins --features failpoints"
    );
    let steps: Vec<String> = String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect();
    ensure!(steps.len() > 10, "{program}: {steps:?}");
    Ok(steps)
}

fn starts_with_any(step: &str, names: &[&str]) -> bool {
    names.iter().any(|name| step.starts_with(name))
}

/// A network whose programs die on demand.
struct Victims {
    devnet: Devnet,
}

/// Which program dies where: that of the member that comes there first.
#[derive(Debug, Clone, Copy)]
struct Blow<'a> {
    members: &'a [u16],
    program: &'a str,
    step: &'a str,
}

impl Victims {
    fn files(&self, blow: Blow<'_>) -> Vec<(u16, PathBuf)> {
        let members = self.devnet.members().iter().filter(|m| blow.members.contains(&m.index()));
        members.map(|m| (m.index(), m.fail_file(blow.program))).collect()
    }

    fn arm(&self, blow: Blow<'_>) -> anyhow::Result<()> {
        for (_, file) in self.files(blow) {
            fs::write(file, blow.step)?;
        }
        Ok(())
    }

    /// Waits for the blow and starts what died again. False if nobody came to that step in time.
    async fn revive(&mut self, blow: Blow<'_>, within: Duration) -> anyhow::Result<bool> {
        let files = self.files(blow);
        let end = tokio::time::Instant::now() + within;
        while files.iter().all(|(_, file)| file.exists()) && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut struck = false;
        for (member, file) in files {
            // A file that is still there did nothing and must not do so later.
            if fs::remove_file(&file).is_err() {
                struck = true;
                self.devnet.process(&format!("{}-{member}", blow.program))?.restart()?;
            }
        }
        if struck {
            ready(&mut self.devnet).await?;
        }
        Ok(struck)
    }

    /// Runs a command of a wallet while the blow falls. The command may fail; the blow may not miss.
    async fn strike(
        &mut self,
        wallet: &WalletCommand,
        args: &[&str],
        blow: Blow<'_>,
    ) -> anyhow::Result<bool> {
        self.arm(blow)?;
        let (ran, struck) = tokio::join!(wallet.run_all(args), self.revive(blow, Duration::from_secs(30)));
        ensure!(struck?, "nobody came to this step");
        Ok(ran.is_ok())
    }

    /// Every operator shows the same leaves, and nobody holds anything open.
    async fn settled(&self) -> anyhow::Result<()> {
        agree(&self.devnet).await
    }
}

/// The wallets and what they own together.
struct Story {
    victims: Victims,
    alice: WalletCommand,
    bob: WalletCommand,
    total: u64,
}

/// A step of the story at which the blow falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Deposit,
    Send,
    Claim,
    Renew,
}

impl Story {
    async fn begin() -> anyhow::Result<Self> {
        let devnet = network().await?;
        let alice = WalletCommand::create(&devnet, "alice", 0).await?;
        let bob = WalletCommand::create(&devnet, "bob", 0).await?;
        Ok(Self { victims: Victims { devnet }, alice, bob, total: 0 })
    }

    /// One flow with one blow; afterwards the money is whole, and who has the whole of it is called alice.
    async fn round(&mut self, flow: Flow, blow: Blow<'_>) -> anyhow::Result<()> {
        match flow {
            Flow::Deposit => self.deposit(blow).await,
            Flow::Send => self.send(blow).await,
            Flow::Claim => self.claim(blow).await,
            Flow::Renew => self.renew(blow).await,
        }
        .with_context(|| format!("{flow:?} under {blow:?}"))
    }

    async fn deposit(&mut self, blow: Blow<'_>) -> anyhow::Result<()> {
        let answer = self.alice.run(&["deposit", "address"]).await?;
        let to = answer.get("address").and_then(|v| v.as_str()).context("address")?.to_owned();
        let txid = pay(&self.victims.devnet, &to, 10_000).await?.to_string();
        self.victims.devnet.faucet().mine(1).await?;
        let claim = ["deposit", "claim", "--address", &to, "--txid", &txid];
        self.victims.strike(&self.alice, &claim, blow).await?;
        self.total += 10_000;
        eventually("deposit is available", || async {
            if available(&self.alice).await? < self.total {
                // A repeat of what succeeded is refused or answered; either way it changes nothing.
                let _ = self.alice.run(&claim).await;
            }
            Ok(available(&self.alice).await? == self.total)
        })
        .await
    }

    async fn send(&mut self, blow: Blow<'_>) -> anyhow::Result<()> {
        let (to, amount) = (address(&self.bob).await?, format!("{}sat", self.total));
        let sent = self.victims.strike(&self.alice, &["send", &to, &amount], blow).await?;
        if !sent {
            // The wallet stored the request before it left: it finishes it, or learns that nothing happened.
            eventually("send ends", || async {
                self.alice.run(&["resume"]).await?;
                if available(&self.alice).await? == self.total {
                    self.alice.run(&["send", &to, &amount]).await?;
                }
                let balance = self.alice.run(&["balance"]).await?;
                Ok(number(&balance, "available_sats")? + number(&balance, "locked_sats")? == 0)
            })
            .await?;
        }
        receive(&self.bob, self.total).await?;
        self.handed_over().await
    }

    async fn claim(&mut self, blow: Blow<'_>) -> anyhow::Result<()> {
        let (to, amount) = (address(&self.bob).await?, format!("{}sat", self.total));
        self.alice.run(&["send", &to, &amount]).await?;
        self.victims.strike(&self.bob, &["receive"], blow).await?;
        receive(&self.bob, self.total).await?;
        self.handed_over().await
    }

    async fn htlc(&mut self, blow: Blow<'_>) -> anyhow::Result<()> {
        let (to, amount) = (address(&self.bob).await?, format!("{}sat", self.total));
        let sent = self.alice.run(&["htlc", "create", &to, &amount]).await?;
        let preimage = text(&sent, "preimage")?;
        let claim = ["htlc", "claim", preimage.as_str(), "--amount", amount.as_str()];
        self.victims.strike(&self.bob, &claim, blow).await?;
        eventually("settled and claimed", || async {
            if available(&self.bob).await? < self.total {
                // The same again, until it is settled; then what waits is claimed.
                let _ = self.bob.run(&claim).await;
            }
            Ok(available(&self.bob).await? == self.total)
        })
        .await?;
        self.handed_over().await
    }

    async fn renew(&mut self, blow: Blow<'_>) -> anyhow::Result<()> {
        let leaf = deposit(&self.victims.devnet, &self.alice, 10_000).await?;
        self.total += 10_000;
        self.victims.strike(&self.alice, &["renew", &leaf], blow).await?;
        eventually("renewal ends", || async {
            self.alice.run(&["resume"]).await?;
            Ok(available(&self.alice).await? == self.total)
        })
        .await
    }

    /// An address needs a key of the pool, which is filled again at once.
    async fn key(&mut self, blow: Blow<'_>) -> anyhow::Result<()> {
        self.victims.strike(&self.alice, &["deposit", "address"], blow).await?;
        deposit(&self.victims.devnet, &self.alice, 10_000).await?;
        self.total += 10_000;
        eventually("the pool is full again", || async {
            let mut db = sqlx::PgConnection::connect(&self.victims.devnet.database_url(0)).await?;
            let unused: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM keyshare WHERE owner_index = 0 AND state = 'AVAILABLE'",
            )
            .fetch_one(&mut db)
            .await?;
            Ok(unused == POOL)
        })
        .await
    }

    /// Two sends of one leaf through different coordinators, until the blow falls or one of them wins. One wins in
    /// the end, and the money is there once. False if it was won before the blow.
    async fn race(&mut self, blow: Blow<'_>) -> anyhow::Result<bool> {
        let (bob, amount) = (address(&self.bob).await?, format!("{}sat", self.total));
        let twin = self.alice.twin(&self.victims.devnet, &format!("twin-{}", self.total), 1).await?;
        let send = ["send", bob.as_str(), amount.as_str()];
        let before = available(&self.bob).await?;
        for _ in 0..20 {
            twin.run(&["leaves"]).await?;
            self.victims.arm(blow)?;
            let sends = async {
                let both = tokio::join!(self.alice.run(&send), twin.run(&send));
                // An abort that a peer still has to hear of comes a little later.
                tokio::time::sleep(Duration::from_millis(500)).await;
                both
            };
            let (both, struck) = tokio::join!(sends, self.victims.revive(blow, Duration::from_secs(4)));
            ensure!(!(both.0.is_ok() && both.1.is_ok()), "both sends won");
            let struck = struck?;
            eventually("the race is decided", || async {
                self.alice.run(&["resume"]).await?;
                twin.run(&["resume"]).await?;
                let balance = self.alice.run(&["balance"]).await?;
                Ok(number(&balance, "locked_sats")? == 0)
            })
            .await?;
            let won = available(&self.alice).await? == 0;
            if !won && !struck {
                continue;
            }
            if !won {
                self.alice.run(&send).await?;
            }
            receive(&self.bob, before + self.total).await?;
            return Ok(struck);
        }
        bail!("nobody wins and nobody comes to this step")
    }

    /// Bob has it all, and is the next to give.
    async fn handed_over(&mut self) -> anyhow::Result<()> {
        ensure!(available(&self.alice).await? == 0, "both have the money");
        std::mem::swap(&mut self.alice, &mut self.bob);
        Ok(())
    }

    /// Leaves near the end of their ladder are left behind, and a fresh one takes their place.
    async fn fresh(&mut self) -> anyhow::Result<()> {
        let devnet = &self.victims.devnet;
        let name = format!("alice-{}", self.total);
        self.alice = WalletCommand::create(devnet, &name, 0).await?;
        self.total = 20_000 + self.total % 1000 + 1;
        deposit(devnet, &self.alice, self.total).await.map(drop)
    }
}

async fn receive(wallet: &WalletCommand, sats: u64) -> anyhow::Result<()> {
    eventually("transfer is claimed", || async {
        wallet.run_all(&["receive"]).await?;
        Ok(available(wallet).await? == sats)
    })
    .await
}

/// The coordinator is member 0; of the two others one is named, and only its shares are asked for.
const ROLES: [&[u16]; 2] = [&[0], &[1, 2]];

/// The operator that coordinates, and one that takes part, die at each of their steps.
#[tokio::test(flavor = "multi_thread")]
async fn operators_die_at_every_step() -> anyhow::Result<()> {
    let steps = steps("spark-operator")?;
    let mut story = Story::begin().await?;
    // Deposits and renewals go through the same engine; `./ops/test --all` takes them, too.
    let all = std::env::var_os("SPARK_TEST_ALL").is_some();
    let flows = [Flow::Send, Flow::Claim, Flow::Deposit, Flow::Renew];
    let of_all =
        |step: &&String| !starts_with_any(step, OF_REFUSALS) && !starts_with_any(step, OF_SETTLEMENTS);
    for flow in flows.into_iter().take(if all { 4 } else { 2 }) {
        for (position, step) in steps.iter().filter(of_all).enumerate() {
            if position % 8 == 0 {
                story.fresh().await?;
            }
            story.round(flow, Blow { members: ROLES[0], program: "operator", step }).await?;
            if !starts_with_any(step, OF_COORDINATORS) {
                story.round(flow, Blow { members: ROLES[1], program: "operator", step }).await?;
            }
        }
        story.victims.settled().await?;
    }
    Ok(())
}

/// Signers die before and after each of their commits.
#[tokio::test(flavor = "multi_thread")]
async fn signers_die_at_every_step() -> anyhow::Result<()> {
    let steps = steps("spark-signer")?;
    let mut story = Story::begin().await?;
    let of_operations = |step: &&String| {
        !starts_with_any(step, OF_KEYS) && !starts_with_any(step, OF_SETTLEMENTS) && !step.contains("Abort")
    };
    for flow in [Flow::Send, Flow::Claim] {
        story.fresh().await?;
        for step in steps.iter().filter(of_operations) {
            for members in ROLES {
                story.round(flow, Blow { members, program: "signer", step }).await?;
            }
        }
        story.victims.settled().await?;
    }
    // What belongs to no operation: nonces for a send, and the key of an address.
    for step in steps.iter().filter(|s| s.starts_with("CommitNonces")) {
        story.round(Flow::Send, Blow { members: ROLES[0], program: "signer", step }).await?;
    }
    for step in steps.iter().filter(|s| starts_with_any(s, OF_KEYS) && !s.starts_with("CommitNonces")) {
        for members in ROLES {
            let blow = Blow { members, program: "signer", step };
            story.key(blow).await.with_context(|| format!("under {blow:?}"))?;
        }
    }
    story.victims.settled().await
}

/// Operators and signers die while a preimage settles a transfer: it is settled all the same, once.
#[tokio::test(flavor = "multi_thread")]
async fn settlements_survive_deaths() -> anyhow::Result<()> {
    let mut blows = Vec::new();
    for program in ["operator", "signer"] {
        let steps = steps(&format!("spark-{program}"))?.into_iter();
        blows.extend(steps.filter(|s| starts_with_any(s, OF_SETTLEMENTS)).map(|step| (program, step)));
    }
    ensure!(blows.len() == 8, "{blows:?}");
    let mut story = Story::begin().await?;
    story.fresh().await?;
    for (program, step) in &blows {
        let blow = Blow { members: &[0, 1, 2], program, step };
        story.htlc(blow).await.with_context(|| format!("settlement under {blow:?}"))?;
    }
    story.victims.settled().await
}

/// Operators and signers die while two sends of one leaf refuse each other.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_survive_deaths() -> anyhow::Result<()> {
    let operator = steps("spark-operator")?.into_iter().filter(|s| starts_with_any(s, OF_REFUSALS));
    let signer = steps("spark-signer")?.into_iter().filter(|s| s.contains("Abort"));
    let mut blows: Vec<(&str, String)> = operator.map(|step| ("operator", step)).collect();
    blows.extend(signer.map(|step| ("signer", step)));
    let mut story = Story::begin().await?;
    for (program, step) in &blows {
        let blow = Blow { members: &[0, 1, 2], program, step };
        let mut tries = 0;
        loop {
            story.fresh().await?;
            if story.race(blow).await.with_context(|| format!("race under {blow:?}"))? {
                break;
            }
            tries += 1;
            ensure!(tries < 10, "nobody comes to this step: {blow:?}");
        }
    }
    story.victims.settled().await
}
