//! Static deposits: one address for any number of payments, each of which its owner can take back (D6 (d), D17).

use anyhow::{Context as _, ensure};
use bitcoin::{Amount, Network, OutPoint, TxOut};
use serde_json::Value;
use spark_devnet::wallet::{WalletCommand, number, text};
use spark_proto::{common, spark};
use spark_wallet::{ErrorClass, Wallet, WalletError};

use crate::support::{
    eventually, network, pay, people, ready,
    rogue::{self, Rogue},
    rows,
};

const SATS: u64 = 100_000;

async fn static_address(wallet: &WalletCommand) -> anyhow::Result<String> {
    text(&wallet.run(&["deposit", "address", "--static"]).await?, "address")
}

async fn outputs(wallet: &WalletCommand) -> anyhow::Result<Vec<Value>> {
    let list = wallet.run(&["deposit", "list", "--static"]).await?;
    Ok(list.get("items").and_then(Value::as_array).cloned().unwrap_or_default())
}

fn flag(value: &Value, field: &str) -> Option<bool> {
    value.get(field).and_then(Value::as_bool)
}

/// Waits until the coordinator counts `count` outputs.
async fn confirmed(wallet: &WalletCommand, count: usize) -> anyhow::Result<Vec<Value>> {
    eventually("outputs are confirmed", || async {
        let outputs = outputs(wallet).await?;
        Ok(outputs.iter().filter(|o| flag(o, "confirmed") == Some(true)).count() == count)
    })
    .await?;
    outputs(wallet).await
}

/// Several payments to one address, two of them in one transaction; each is taken back, one of them twice at rising
/// fees. bitcoind takes the transactions, and nobody else sees or takes anything.
#[tokio::test(flavor = "multi_thread")]
async fn d6_static_deposits_go_back_to_their_owner() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 0).await?;
    let to = static_address(&alice).await?;
    ensure!(static_address(&alice).await? == to, "another address");
    ensure!(static_address(&bob).await? != to, "one address for two");

    let script = to.parse::<bitcoin::Address<_>>()?.require_network(Network::Regtest)?.script_pubkey();
    let output = |sats| TxOut { value: Amount::from_sat(sats), script_pubkey: script.clone() };
    let both = devnet.faucet().pay(vec![output(SATS), output(2 * SATS)]).await?.compute_txid();
    let single = pay(&devnet, &to, 3 * SATS).await?;
    eventually("they are seen before their block", || async { Ok(outputs(&alice).await?.len() == 3) })
        .await?;
    ensure!(
        outputs(&alice).await?.iter().all(|o| flag(o, "confirmed") == Some(false)),
        "confirmed without a block"
    );
    devnet.faucet().mine(1).await?;
    let seen = confirmed(&alice, 3).await?;
    let of_both = seen
        .iter()
        .filter(|o| text(o, "outpoint").is_ok_and(|outpoint| outpoint.starts_with(&both.to_string())));
    ensure!(of_both.count() == 2, "two outputs of one transaction: {seen:?}");
    ensure!(outputs(&bob).await?.is_empty(), "outputs are private");

    // Two refunds of one output: the dearer one replaces the cheaper in the mempool.
    let place = devnet.faucet().address().to_string();
    let single = seen
        .iter()
        .find_map(|o| text(o, "outpoint").ok().filter(|o| o.starts_with(&single.to_string())))
        .context("the single one")?;
    let refund = |rate: &'static str| {
        let (alice, single, place) = (alice.clone(), single.clone(), place.clone());
        async move { alice.run(&["deposit", "refund", &single, "--to", &place, "--fee-rate", rate]).await }
    };
    eventually("a first refund", || async { Ok(refund("2").await.is_ok()) }).await?;
    let second = refund("7").await?;
    ensure!(number(&second, "amount_sats")? + number(&second, "fee_sats")? == 3 * SATS, "{second}");
    let mempool = devnet.bitcoind().mempool().await?;
    ensure!(mempool.len() == 1, "{mempool:?}");
    ensure!(mempool.first().context("one")?.to_string() == text(&second, "txid")?, "not replaced");
    let foreign = bob.run(&["deposit", "refund", &single, "--to", &place, "--fee-rate", "9"]).await;
    ensure!(foreign.is_err(), "bob's wallet asks for what is alice's");
    // Nor do operators give it to one who asks without a wallet's scruples.
    let thief = Rogue::of(&bob)?;
    let outpoint: OutPoint = single.parse()?;
    let point = thief.id_bytes();
    let stolen = spark::InitiateStaticDepositUtxoRefundRequest {
        on_chain_utxo: Some(spark::Utxo {
            txid: hex::decode(outpoint.txid.to_string())?,
            vout: outpoint.vout,
            network: spark::Network::Regtest.into(),
            raw_tx: Vec::new(),
        }),
        refund_tx_signing_job: Some(spark::SigningJob {
            signing_public_key: thief.wallet.keys().static_deposit(0)?.public_key().serialize().to_vec(),
            raw_tx: vec![0; 100],
            signing_nonce_commitment: Some(common::SigningCommitment {
                hiding: point.clone(),
                binding: point,
            }),
        }),
        user_signature: vec![0; 70],
        ..Default::default()
    };
    let refused =
        thief.call(stolen, |mut c, r| async move { c.initiate_static_deposit_utxo_refund(r).await }).await;
    let reason = refused.err().map(|status| rogue::reason(&status));
    ensure!(reason.as_deref() == Some("DEPOSIT_UNKNOWN"), "bob took what is alice's: {reason:?}");
    devnet.faucet().mine(1).await?;

    // The others through another operator: who is asked does not matter.
    let twin = alice.twin(&devnet, "twin", 1).await?;
    for outpoint in seen.iter().filter_map(|o| text(o, "outpoint").ok()).filter(|o| *o != single) {
        eventually("refund at another operator", || async {
            Ok(twin.run(&["deposit", "refund", &outpoint, "--to", &place, "--fee-rate", "3"]).await.is_ok())
        })
        .await?;
    }
    devnet.faucet().mine(1).await?;
    ensure!(devnet.bitcoind().mempool().await?.is_empty(), "a refund was not mined");
    ensure!(
        outputs(&alice).await?.iter().all(|o| flag(o, "unspent") == Some(false)),
        "all of them are spent"
    );
    eventually("a spent one is refused", || async {
        let refused = refund("8").await.err().context("signed a spent output")?;
        Ok(refused.to_string().contains("spent or credited"))
    })
    .await
}

/// After a rotation the former address keeps working: it is watched, listed, and refunded. Operators that were down or
/// lost their tables show the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_address_stays_its_owners() -> anyhow::Result<()> {
    let mut devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    ensure!(
        alice.run(&["deposit", "address", "--static", "--rotate"]).await.is_err(),
        "nothing to rotate, and rotated"
    );
    let former = static_address(&alice).await?;
    let present = text(&alice.run(&["deposit", "address", "--static", "--rotate"]).await?, "address")?;
    ensure!(present != former && static_address(&alice).await? == present, "not rotated");
    for to in [&former, &present] {
        pay(&devnet, to, SATS).await?;
    }
    devnet.faucet().mine(1).await?;
    let mut seen: Vec<String> =
        confirmed(&alice, 2).await?.iter().map(|o| text(o, "address")).collect::<anyhow::Result<_>>()?;
    seen.sort();
    let mut expected = vec![former.clone(), present.clone()];
    expected.sort();
    ensure!(seen == expected, "{seen:?}");

    // Nonces are gone with a restart; keys, addresses and the chain are not.
    devnet.process("operator-0")?.restart()?;
    devnet.process("signer-1")?.restart()?;
    ready(&mut devnet).await?;
    ensure!(static_address(&alice).await? == present, "another address after a restart");
    let place = devnet.faucet().address().to_string();
    for output in confirmed(&alice, 2).await? {
        let outpoint = text(&output, "outpoint")?;
        eventually("refund", || async {
            Ok(alice.run(&["deposit", "refund", &outpoint, "--to", &place, "--fee-rate", "2"]).await.is_ok())
        })
        .await?;
    }
    devnet.faucet().mine(1).await?;
    ensure!(devnet.bitcoind().mempool().await?.is_empty(), "a refund was not mined");
    Ok(())
}

/// The reason of a refusal by the operators.
async fn refused(wallet: &Wallet, outpoint: &OutPoint, place: &str) -> anyhow::Result<String> {
    match wallet.refund_static(outpoint, place, Some(2)).await {
        Err(error @ WalletError::Client(_)) => {
            let reason = match &error {
                WalletError::Client(client) => client.reason(),
                _ => None,
            };
            ensure!(error.class() != ErrorClass::Failed, "{error:?}");
            reason.context("no reason")
        }
        other => anyhow::bail!("{other:?}"),
    }
}

/// S12 and one claimant per output: nothing is signed for an output that is not deep enough, that a reorganisation
/// took away, or that a provider has credited, whichever operators know of it.
#[tokio::test(flavor = "multi_thread")]
async fn s12_static_deposits_stand_on_blocks_and_have_one_claimant() -> anyhow::Result<()> {
    let devnet = network().await?;
    let dir = devnet.endpoints().dir.join("people");
    let alice = people::wallet(&devnet, &dir, "alice", 0)?;
    let to = alice.static_address().await?.address;
    let place = devnet.faucet().address().to_string();
    pay(&devnet, &to, SATS).await?;
    eventually("it is seen", || async { Ok(alice.static_outputs().await?.len() == 1) }).await?;
    let outpoint = alice.static_outputs().await?.first().context("output")?.spend.outpoint;
    ensure!(refused(&alice, &outpoint, &place).await? == "DEPOSIT_UNCONFIRMED", "before its block");

    devnet.faucet().mine(1).await?;
    let counts = |wanted: bool| {
        let alice = &alice;
        async move {
            eventually("the coordinator's view changes", || async {
                Ok(alice.static_outputs().await?.iter().any(|output| output.confirmed) == wanted)
            })
            .await
        }
    };
    counts(true).await?;
    // Back to the mempool: the block that replaces it is empty.
    devnet.bitcoind().reorg(1, 2).await?;
    counts(false).await?;
    match alice.refund_static(&outpoint, &place, Some(2)).await {
        Err(WalletError::Client(error)) => {
            ensure!(error.reason().as_deref() == Some("DEPOSIT_UNCONFIRMED"), "{error:?}");
        }
        // Its wallet does not even ask for what nobody shows any more.
        Err(WalletError::Refused(why)) => ensure!(why.contains("no static deposit of yours"), "{why}"),
        signed => anyhow::bail!("after the reorganisation: {signed:?}"),
    }
    eventually("it is mined again", || async {
        devnet.faucet().mine(1).await?;
        Ok(alice.static_outputs().await?.iter().any(|output| output.confirmed))
    })
    .await?;

    // A provider's credit, at the coordinator first, then at the others only.
    let credit = async |operators: std::ops::Range<usize>, live: bool| -> anyhow::Result<()> {
        for operator in operators {
            let mut database = rows::connect(&devnet, operator).await?;
            let txid: &[u8] = outpoint.txid.as_ref();
            let sql = if live {
                "INSERT INTO utxo_claim (txid, vout, claimant) VALUES ($1, $2, 'PROVIDER')"
            } else {
                "UPDATE utxo_claim SET state = 'CANCELLED' WHERE txid = $1 AND vout = $2"
            };
            sqlx::query(sql).bind(txid).bind(i64::from(outpoint.vout)).execute(&mut database).await?;
        }
        Ok(())
    };
    credit(0..1, true).await?;
    ensure!(refused(&alice, &outpoint, &place).await? == "DEPOSIT_CLAIMED", "refund after credit");
    credit(0..1, false).await?;
    credit(1..3, true).await?;
    ensure!(refused(&alice, &outpoint, &place).await? == "QUORUM_SHORT", "one operator signed alone");
    for operator in 1..3 {
        let mut database = rows::connect(&devnet, operator).await?;
        let sql = "SELECT count(*) FROM utxo_claim WHERE claimant = 'OWNER'";
        let claims: i64 = sqlx::query_scalar(sql).fetch_one(&mut database).await?;
        ensure!(claims == 0, "two claimants at operator {operator}");
    }
    // One of them gives it up: two operators are enough.
    credit(1..2, false).await?;
    eventually("the refund is signed and taken by bitcoind", || async {
        let refunded = alice.refund_static(&outpoint, &place, Some(2)).await?;
        Ok(refunded.broadcast)
    })
    .await?;
    devnet.faucet().mine(1).await?;
    ensure!(devnet.bitcoind().mempool().await?.is_empty(), "the refund was not mined");
    Ok(())
}
