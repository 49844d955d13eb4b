//! The main job and what may go wrong with it, on real processes.

use std::{fs, time::Duration};

use crate::support::{
    address, available, deposit, eventually, network, pay, people, ready,
    rogue::{Rogue, reason},
    transfer,
};
use anyhow::{Context as _, ensure};
use rand::Rng as _;
use spark_devnet::{
    demo,
    replace::copy_store,
    stamp,
    wallet::{WalletCommand, number, text},
};
use spark_wallet::Wallet;

/// Deposit, two changes of owner, balances at every operator, exit to the chain.
#[tokio::test(flavor = "multi_thread")]
async fn the_main_job() -> anyhow::Result<()> {
    let devnet = network().await?;
    demo::story(&devnet, &|_| {}).await
}

/// A deposit claimed before it is confirmed becomes spendable with its block; a wrong amount or a foreign output is
/// refused and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn deposits_before_confirmation_and_wrong_ones() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    let answer = alice.run(&["deposit", "address"]).await?;
    let to = text(&answer, "address")?;
    let foreign = pay(&devnet, &text(&bob.run(&["deposit", "address"]).await?, "address")?, 50_000).await?;
    let refused = alice.run(&["deposit", "claim", "--address", &to, "--txid", &foreign.to_string()]).await;
    ensure!(refused.is_err(), "claimed a foreign output");

    let txid = pay(&devnet, &to, 70_000).await?.to_string();
    let claimed = alice.run(&["deposit", "claim", "--address", &to, "--txid", &txid]).await?;
    ensure!(text(&claimed, "status")? == "CREATING", "unconfirmed: {claimed}");
    ensure!(available(&alice).await? == 0, "unconfirmed money is spendable");
    let early = alice.run(&["send", &address(&bob).await?, "70000sat"]).await;
    ensure!(early.is_err(), "sent unconfirmed money");
    devnet.faucet().mine(1).await?;
    eventually("deposit confirms", || async { Ok(available(&alice).await? == 70_000) }).await?;
    transfer(&alice, &bob, 70_000).await?;
    ensure!(available(&alice).await? == 0, "sender still has it");

    // X9: fake value. The transaction is altered before it is claimed: another txid, which never confirms.
    let to = text(&alice.run(&["deposit", "address"]).await?, "address")?;
    let address = to.parse::<bitcoin::Address<_>>()?.require_network(bitcoin::Network::Regtest)?;
    let mut funding = devnet.faucet().send(&address, bitcoin::Amount::from_sat(1000)).await?;
    for output in &mut funding.output {
        if output.script_pubkey == address.script_pubkey() {
            output.value = bitcoin::Amount::from_sat(90_000_000);
        }
    }
    let raw = bitcoin::consensus::encode::serialize_hex(&funding);
    let _ = alice.run(&["deposit", "claim", "--address", &to, "--tx", &raw]).await;
    devnet.faucet().mine(3).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(available(&alice).await? == 0, "a forged amount became spendable");
    Ok(())
}

/// X6: two transfers of one leaf through different coordinators at once; exactly one wins, fifty times.
#[tokio::test(flavor = "multi_thread")]
async fn x6_fifty_races_have_one_winner_each() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    let carol = WalletCommand::create(&devnet, "carol", 2).await?;
    let twin = alice.twin(&devnet, "alice-twin", 1).await?;
    // A hundred lost races within minutes hold more one-time keys than one identity may have.
    for wallet in [&alice, &twin] {
        let config = wallet.dir().join("wallet.toml");
        let text = fs::read_to_string(&config)?;
        fs::write(config, format!("package_keys = \"long-lived\"\n{text}"))?;
    }
    let (to_bob, to_carol) = (address(&bob).await?, address(&carol).await?);
    // Values that add up to each other in no way: the amount names the leaf.
    let values: Vec<u64> = (0..50).map(|round| 20_000 + round).collect();
    {
        let wallet = Wallet::open(alice.dir())?;
        for batch in values.chunks(25) {
            people::deposits(&devnet, &wallet, batch).await?;
        }
    }
    let mut all: u64 = values.iter().sum();
    let expected = all;
    for (round, sats) in values.into_iter().enumerate() {
        twin.run(&["leaves"]).await?;
        let amount = format!("{sats}sat");
        let first_args = ["send", to_bob.as_str(), amount.as_str()];
        let second_args = ["send", to_carol.as_str(), amount.as_str()];
        let mut tries = 0;
        loop {
            let (first, second) = tokio::join!(alice.run(&first_args), twin.run(&second_args));
            ensure!(!(first.is_ok() && second.is_ok()), "round {round}: both won");
            eventually("the race is decided", || async {
                alice.run(&["resume"]).await?;
                twin.run(&["resume"]).await?;
                let balance = alice.run(&["balance"]).await?;
                Ok(number(&balance, "locked_sats")? == 0)
            })
            .await?;
            if available(&alice).await? == all - sats {
                break;
            }
            // Each held what the other needed and both gave way; the leaf is still the sender's.
            tries += 1;
            ensure!(tries < 20, "round {round}: nobody wins: {first:?} {second:?}");
        }
        all -= sats;
    }
    eventually("both claim", || async {
        bob.run_all(&["receive"]).await?;
        carol.run_all(&["receive"]).await?;
        Ok(available(&bob).await? + available(&carol).await? == expected)
    })
    .await?;
    ensure!(available(&alice).await? == 0, "the sender kept something");
    Ok(())
}

/// S6, S7, D15: a send alone is not final; a claim is, once every operator's destruction is confirmed by another process
/// than the one that destroyed, and the signed head of its log says so.
#[tokio::test(flavor = "multi_thread")]
async fn d15_a_claim_becomes_final() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    let leaf = deposit(&devnet, &alice, 70_000).await?;
    let verdict = async |wallet: &WalletCommand| -> anyhow::Result<serde_json::Value> {
        let list = wallet.run(&["receipts", &leaf]).await?;
        list.get("items").and_then(|items| items.get(0)).cloned().context("no verdict")
    };
    alice.run(&["send", &address(&bob).await?, "70000sat"]).await?;
    let confirmed = |view: &serde_json::Value, count: u64| {
        let views = view.get("by_operator").and_then(|v| v.as_array()).cloned().unwrap_or_default();
        views.len() == 3 && views.iter().all(|view| number(view, "confirmed").ok() == Some(count))
    };
    let mut seen = serde_json::Value::Null;
    for (step, count) in [("send", 1), ("claim", 2)] {
        if step == "claim" {
            // It says so itself, as it happens.
            let lines = bob.run_all(&["receive", "--wait", "--until-final"]).await?;
            let last = lines.last().and_then(|line| line.get("is_final")?.as_bool());
            ensure!(last == Some(true), "{lines:#?}");
            ensure!(available(&bob).await? == 70_000, "not claimed");
        }
        eventually("destruction is confirmed", || async {
            let view = verdict(&bob).await?;
            ensure!(confirmed(&view, count), "{step}: {view:#}");
            // A head may come before the last of its witnesses.
            let witnessed = view.get("clean").and_then(serde_json::Value::as_u64) == Some(3);
            ensure!(witnessed || step == "send", "{step}: {view:#}");
            Ok(true)
        })
        .await?;
        seen = verdict(&bob).await?;
        let is_final = seen.get("is_final").and_then(serde_json::Value::as_bool);
        ensure!(is_final == Some(step == "claim"), "{step}: {seen:#}");
    }
    ensure!(number(&seen, "clean")? == 3 && number(&seen, "tolerated_liars")? == 1, "{seen:#}");
    // All of it at once, and the logs themselves.
    eventually("everything holds", || async {
        let verified = bob.run(&["verify"]).await?;
        Ok(verified.get("ok").and_then(serde_json::Value::as_bool) == Some(true))
    })
    .await
}

/// Runs a program that prints one JSON object or lines; returns whether it succeeded, and what it printed.
async fn run(program: &str, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
    let mut command = tokio::process::Command::new(stamp::program(program)?);
    let output = command.args(arguments).kill_on_drop(true).output().await?;
    Ok((output.status.success(), String::from_utf8(output.stdout)?))
}

/// S7, D16: what an auditor does: reads every operator's log from its public files, judges every entry that the
/// operator hands over, and comes again later. An entry that was touched or left out is found.
#[tokio::test(flavor = "multi_thread")]
async fn s7_an_auditor_verifies_every_log() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let federation = devnet.endpoints().federation.display().to_string();
    let ca = devnet.endpoints().ca.display().to_string();

    let audit = async |operator: usize, more: &[&str]| -> anyhow::Result<(bool, serde_json::Value)> {
        let (index, endpoint) = (operator.to_string(), &devnet.endpoints().operators[operator]);
        let url = format!("{}/log", endpoint.open);
        let mut arguments = vec!["--json", "log", "--federation", &federation, "--operator", &index];
        arguments.extend(["--url", &url, "--ca", &ca]);
        arguments.extend(more);
        let (holds, text) = run("spark-verify", &arguments).await?;
        Ok((holds, serde_json::from_str(&text).with_context(|| text)?))
    };
    let export = async |operator: usize| -> anyhow::Result<Vec<String>> {
        let config = devnet.members()[operator].dir().join("operator.toml").display().to_string();
        let (done, text) = run("spark-operator", &["--config", &config, "log", "export"]).await?;
        ensure!(done, "export");
        Ok(text.lines().map(ToOwned::to_owned).collect())
    };

    let mut entries = Vec::new();
    for (visit, amount) in [(0, 70_000), (1, 71_000)] {
        deposit(&devnet, &alice, amount).await?;
        transfer(&alice, &bob, amount).await?;
        for operator in 0..3 {
            let saved = path(&format!("head-{operator}"));
            eventually("log holds, and its destructions are confirmed", || async {
                let lines = export(operator).await?;
                fs::write(path("entries"), lines.join("\n"))?;
                let entries_file = path("entries");
                let mut arguments = vec!["--entries", entries_file.as_str(), "--save", saved.as_str()];
                if visit > 0 {
                    arguments.extend(["--since", saved.as_str()]);
                }
                let (holds, report) = audit(operator, &arguments).await?;
                ensure!(holds, "{report:#}");
                let size = report.pointer("/checkpoint/size").and_then(serde_json::Value::as_u64);
                // The key's making, a send and a claim, of each deposit.
                ensure!(size == Some(3 * (visit + 1)) && lines.len() as u64 == 3 * (visit + 1), "{report:#}");
                let pending = report.pointer("/entries/pending").and_then(serde_json::Value::as_u64);
                ensure!(pending == Some(0), "{report:#}");
                Ok(true)
            })
            .await?;
        }
        entries = export(0).await?;
    }
    // Lies of an operator to its auditor.
    let touched = entries.iter().map(|line| line.replace("\"phase\":\"claim\"", "\"phase\":\"send\""));
    let lies: [Vec<String>; 3] = [
        touched.collect(),
        entries.iter().skip(1).cloned().collect(),
        // A receipt that is shown twice, in place of another.
        entries
            .iter()
            .take(4)
            .chain(entries.iter().skip(3).take(1))
            .chain(entries.iter().skip(5))
            .cloned()
            .collect(),
    ];
    for (number, lie) in lies.iter().enumerate() {
        ensure!(*lie != entries, "lie {number} is none");
        fs::write(path("entries"), lie.join("\n"))?;
        let (holds, report) = audit(0, &["--entries", &path("entries")]).await?;
        ensure!(!holds, "lie {number}: {report:#}");
    }
    // A head of another operator's log is no earlier one of this log.
    let (holds, report) = audit(0, &["--since", &path("head-1")]).await?;
    ensure!(!holds, "{report:#}");
    Ok(())
}

/// S10: processes die at any time; nothing is lost or doubled, and all converge.
#[tokio::test(flavor = "multi_thread")]
async fn processes_die_and_nothing_is_lost() -> anyhow::Result<()> {
    let mut devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    deposit(&devnet, &alice, 60_000).await?;
    let wallets = [&alice, &bob];
    for round in 0..8usize {
        let (from, to) = (wallets[round % 2], wallets[(round + 1) % 2]);
        let target = address(to).await?;
        let victims = ["operator-0", "operator-1", "signer-0", "signer-2"];
        let victim = victims[round % victims.len()];
        let wait = Duration::from_millis(rand::thread_rng().gen_range(20..250));
        let arguments = ["send", target.as_str(), "60000sat"];
        let send = from.run(&arguments);
        let kill = async {
            tokio::time::sleep(wait).await;
            let process = devnet.process(victim)?;
            process.kill()?;
            process.restart()?;
            anyhow::Ok(())
        };
        let (sent, killed) = tokio::join!(send, kill);
        killed?;
        ready(&mut devnet).await?;
        if sent.is_err() {
            // The wallet stored the request before it left: it finishes it, or learns that nothing happened.
            eventually("send ends", || async {
                from.run(&["resume"]).await?;
                if available(from).await? == 60_000 {
                    from.run(&["send", &target, "60000sat"]).await?;
                }
                let balance = from.run(&["balance"]).await?;
                Ok(number(&balance, "available_sats")? + number(&balance, "locked_sats")? == 0)
            })
            .await?;
        }
        eventually("claim", || async {
            to.run_all(&["receive"]).await?;
            Ok(available(to).await? == 60_000)
        })
        .await?;
        ensure!(available(from).await? == 0, "round {round}: both have the money");
    }
    Ok(())
}

/// S8, D10: an operator's database from before a transfer cannot spend the old owner's leaf.
#[tokio::test(flavor = "multi_thread")]
async fn s8_restored_operator_database_cannot_spend() -> anyhow::Result<()> {
    let mut devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    let leaf = deposit(&devnet, &alice, 40_000).await?;
    devnet.process("operator-0")?.kill()?;
    devnet.cluster().copy_database("operator_0", "operator_0_old")?;
    devnet.process("operator-0")?.restart()?;
    ready(&mut devnet).await?;
    // What the old owner keeps: a complete request from while the leaf was hers, with nonces that still live.
    let kept = {
        let rogue = Rogue::of(&alice)?;
        rogue.next_send(&leaf, &rogue.id()).await?.request
    };
    transfer(&alice, &bob, 40_000).await?;

    devnet.process("operator-0")?.kill()?;
    let old = devnet.cluster().url("operator_0_old");
    devnet.start_operator(0, &old)?;
    // It follows its signer's journal before it serves.
    tokio::time::timeout(Duration::from_secs(40), devnet.wait_ready()).await.context("not ready")??;
    {
        let rogue = Rogue::of(&alice)?;
        let refused = rogue.start(kept).await.err().context("the old owner spent the leaf again")?;
        ensure!(reason(&refused) == "NOT_OWNER", "refused for another reason: {refused:?}");
    }
    ensure!(available(&bob).await? == 40_000, "the new owner lost it");
    // That operator serves what is so.
    transfer(&bob, &alice, 40_000).await
}

/// S8: a signer's store from before a transfer does not start.
#[tokio::test(flavor = "multi_thread")]
async fn s8_restored_signer_store_refuses_to_start() -> anyhow::Result<()> {
    let mut devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    deposit(&devnet, &alice, 40_000).await?;
    let store = devnet.members()[0].dir().join("signer.redb");
    let copy = store.with_extension("old");
    devnet.process("signer-0")?.kill()?;
    copy_store(&store, &copy)?;
    devnet.process("signer-0")?.restart()?;
    ready(&mut devnet).await?;
    transfer(&alice, &bob, 40_000).await?;

    devnet.process("signer-0")?.kill()?;
    copy_store(&copy, &store)?;
    let started = devnet.start_signer(0).await;
    ensure!(started.is_err(), "a signer starts from an old store");
    let log = fs::read_to_string(devnet.members()[0].dir().join("signer.log"))?;
    let refusal = log.lines().rev().find(|line| line.starts_with("Error:")).unwrap_or_default();
    ensure!(refusal.contains("root"), "refused for another reason: {refusal}");
    Ok(())
}
