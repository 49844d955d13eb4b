//! The wallet's own safety, on a real chain: what it forgot, what others pay to it, and what others do to its exits.

use serde_json::{Value, json};
use spark_devnet::{
    network::Devnet,
    wallet::{WalletCommand, number, text},
};
use spark_proto::spark::TreeNode;
use spark_wallet::{bundle::Bundle, exit::ExitStatus};

use crate::support::{available, deposit, eventually, network, pay};
use anyhow::{Context as _, ensure};
use bitcoin::{
    Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness, absolute::LockTime,
    consensus::encode, transaction::Version,
};

/// The seed alone finds a deposit address again that waits for money, and dust on it does not push the money out.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_wallet_claims_a_deposit_that_waits_among_dust() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let address = text(&alice.run(&["deposit", "address"]).await?, "address")?;
    let parsed = address.parse::<bitcoin::Address<_>>()?.require_network(bitcoin::Network::Regtest)?;
    let to = |sats| TxOut { value: Amount::from_sat(sats), script_pubkey: parsed.script_pubkey() };
    let mut outputs = vec![to(400); 15];
    outputs.push(to(80_000));
    let funding = devnet.faucet().pay(outputs).await?.compute_txid().to_string();
    devnet.faucet().mine(1).await?;

    // The same seed in a new folder, coordinated by another operator than the address was asked from.
    let restored = alice.twin(&devnet, "restored", 1).await?;
    let listed = restored.run(&["deposit", "list"]).await?;
    ensure!(listed.to_string().contains(&address), "the address is forgotten: {listed}");
    let named: [&str; 6] = ["deposit", "claim", "--address", &address, "--txid", &funding];
    let claimed = restored.run(&named).await?;
    ensure!(number(&claimed, "amount_sats")? == 80_000 + 10 * 400, "not the most valuable ones: {claimed}");
    eventually("deposit is available", || async { Ok(available(&restored).await? == 84_000) }).await?;

    // And without a record at all: the claim itself asks the operators.
    let address = text(&restored.run(&["deposit", "address"]).await?, "address")?;
    pay(&devnet, &address, 30_000).await?;
    devnet.faucet().mine(1).await?;
    let claimed = alice.run(&["deposit", "claim", "--address", &address]).await?;
    ensure!(number(&claimed, "amount_sats")? == 30_000, "{claimed}");
    Ok(())
}

/// S14: whatever somebody else publishes in an exit, it ends with the money on the user's address: a child that
/// pushes the wallet's own sweep out, or a twin of the refund.
#[tokio::test(flavor = "multi_thread")]
async fn s14_exits_end_whoever_interferes() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let pushed = deposit(&devnet, &alice, 60_000).await?;
    let twinned = deposit(&devnet, &alice, 70_000).await?;
    let twin = twin_of_refund(&alice, &twinned).await?;
    let fees = text(&alice.run(&["info"]).await?, "fee_address")?;
    for _ in 0..2 {
        pay(&devnet, &fees, 50_000).await?;
    }
    // Anyone can spend it (BIP 433), so the stranger needs no keys.
    let anyone = TxOut { value: Amount::from_sat(100_000), script_pubkey: anchor() };
    let stranger = devnet.faucet().pay(vec![anyone]).await?;
    devnet.faucet().mine(1).await?;
    let destination = devnet.faucet().address().to_string();
    for leaf in [&pushed, &twinned] {
        alice.run(&["exit", "start", leaf, "--to", &destination, "--yes"]).await?;
    }
    for _ in 0..20 {
        devnet.faucet().mine(100).await?;
    }

    // The refund goes out with the wallet's sweep, and a stranger's child takes the sweep's place.
    let status = advance(&alice, &pushed).await?;
    let refund = last(&status)?.txid;
    let sweep = status.sweep_txid.context("a sweep")?;
    let before = devnet.bitcoind().mempool().await?;
    ensure!(before.contains(&refund) && before.contains(&sweep), "not out: {status:?}");
    push_out(&devnet, refund, &stranger).await?;
    let after = devnet.bitcoind().mempool().await?;
    ensure!(after.contains(&refund) && !after.contains(&sweep), "the sweep is still there");
    devnet.faucet().mine(1).await?;
    let status = advance(&alice, &pushed).await?;
    ensure!(!status.done, "done, while the money lies on the refund: {status:?}");
    arrives(&devnet, &alice, &pushed).await?;

    // 50 blocks later the refund that pays its own fee can be published by whoever has it.
    devnet.faucet().mine(50).await?;
    devnet.bitcoind().send_raw(&twin).await?;
    devnet.faucet().mine(1).await?;
    let status = advance(&alice, &twinned).await?;
    ensure!(last(&status)?.txid == twin.compute_txid(), "another way: {status:?}");
    arrives(&devnet, &alice, &twinned).await?;
    Ok(())
}

async fn advance(wallet: &WalletCommand, leaf: &str) -> anyhow::Result<ExitStatus> {
    Ok(serde_json::from_value(wallet.run(&["exit", "resume", leaf]).await?)?)
}

fn last(status: &ExitStatus) -> anyhow::Result<&spark_wallet::exit::StepView> {
    status.steps.last().context("a step")
}

/// One more block, and the exit is done, with its money unspent on the destination.
async fn arrives(devnet: &Devnet, wallet: &WalletCommand, leaf: &str) -> anyhow::Result<()> {
    devnet.faucet().mine(1).await?;
    let status = advance(wallet, leaf).await?;
    ensure!(status.done, "not done: {status:?}");
    let sweep = status.sweep_txid.context("a sweep")?;
    let output: Value = devnet.bitcoind().rpc().call("gettxout", json!([sweep.to_string(), 0])).await?;
    ensure!(output["confirmations"].as_u64().is_some_and(|c| c > 0), "no such output: {output}");
    let script = devnet.faucet().address().script_pubkey();
    ensure!(output["scriptPubKey"]["hex"] == json!(script.to_hex_string()), "elsewhere: {output}");
    Ok(())
}

/// The refund of a leaf that pays its own fee, from the exit bundle.
async fn twin_of_refund(wallet: &WalletCommand, leaf: &str) -> anyhow::Result<Transaction> {
    let file = wallet.dir().join("bundle.json");
    wallet.run(&["bundle", "export", &file.display().to_string()]).await?;
    let bundle = Bundle::parse(&std::fs::read_to_string(&file)?)?;
    let stored = bundle.leaves.iter().find(|l| l.leaf_id == leaf).context("the leaf")?;
    let node: TreeNode = stored.lineage.first().context("a node")?.decode()?;
    Ok(encode::deserialize(&node.direct_from_cpfp_refund_tx)?)
}

/// A child of the refund's anchor that pays more than the wallet's.
async fn push_out(devnet: &Devnet, refund: Txid, money: &Transaction) -> anyhow::Result<()> {
    let vout = money.output.iter().position(|o| o.script_pubkey == anchor()).context("the money")?;
    let input = |txid, vout| TxIn {
        previous_output: OutPoint { txid, vout },
        script_sig: ScriptBuf::new(),
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        witness: Witness::new(),
    };
    let child = Transaction {
        version: Version::non_standard(3),
        lock_time: LockTime::ZERO,
        input: vec![input(money.compute_txid(), u32::try_from(vout)?), input(refund, 1)],
        output: vec![TxOut {
            value: Amount::from_sat(50_000),
            script_pubkey: devnet.faucet().address().script_pubkey(),
        }],
    };
    devnet.bitcoind().send_raw(&child).await?;
    Ok(())
}

fn anchor() -> ScriptBuf {
    ScriptBuf::from_bytes(spark_rules::tx::ANCHOR_SCRIPT.to_vec())
}
