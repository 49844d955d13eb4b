//! Cooperative exits (D8): settled by the chain, returned by it, and what nobody gets out of them. The test plays the
//! provider: the receiver's wallet, and a coin that pays.

use anyhow::{Context as _, ensure};
use bitcoin::{
    Address, Amount, CompressedPublicKey, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut,
    Witness,
    absolute::LockTime,
    secp256k1::{SECP256K1, SecretKey},
    transaction::Version,
};
use spark_devnet::network::Devnet;
use spark_wallet::{Wallet, WalletError, flow::ExitOffer};
use uuid::Uuid;

use crate::support::{coin::Coin, eventually, network, people, rows};

/// Confirmations that operators of this network demand.
const DEPTH: u64 = 3;
/// Blocks to the expiry and over it.
const RETURN: u64 = 12;
/// Seconds; six blocks at least.
const SOON: u64 = 600;
const DUST: u64 = 354;

/// What a provider offers for leaves of `amount` satoshis: all but 2,000 of it to the user's own address.
pub(crate) async fn offer(
    devnet: &Devnet,
    provider: &Wallet,
    amount: u64,
    leaves: u64,
) -> anyhow::Result<ExitOffer> {
    let coin = Coin::new(devnet, amount + 10_000).await?;
    let payout = amount - 2_000;
    let fresh = || {
        let key = SecretKey::new(&mut rand::rngs::OsRng).public_key(SECP256K1);
        Address::p2wpkh(&CompressedPublicKey(key), Network::Regtest)
    };
    let (user, own) = (fresh(), fresh());
    let (to_user, to_own) = (user.to_string(), own.to_string());
    let under = (leaves + 1) * DUST + 300;
    let exit_tx = coin.spend(&[(to_user.as_str(), payout), (to_own.as_str(), under)], 500)?;
    let connector = TxOut { value: Amount::from_sat(DUST), script_pubkey: own.script_pubkey() };
    let connector_tx = Transaction {
        version: Version(3),
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint { txid: exit_tx.compute_txid(), vout: 1 },
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: Witness::new(),
        }],
        output: vec![connector; usize::try_from(leaves)? + 1],
    };
    Ok(ExitOffer {
        provider: people::address(provider)?,
        amount,
        exit_tx,
        connector_tx,
        destination: user.script_pubkey(),
        payout,
        expires_in: SOON,
    })
}

async fn status(wallet: &Wallet) -> anyhow::Result<String> {
    Ok(wallet.withdrawals().await?.last().context("a withdrawal")?.status.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn confirmations_settle_and_time_returns() -> anyhow::Result<()> {
    let devnet = network().await?;
    let dir = tempfile::tempdir()?;
    let alice = people::wallet(&devnet, dir.path(), "alice", 0)?;
    let bob = people::wallet(&devnet, dir.path(), "bob", 1)?;
    let carol = people::wallet(&devnet, dir.path(), "carol", 2)?;
    people::deposits(&devnet, &alice, &[20_000, 5_000]).await?;

    // A provider that pays somebody else gets nothing, and no operator hears of it.
    let fair = offer(&devnet, &bob, 25_000, 2).await?;
    let foul = ExitOffer { destination: carol_script(&carol)?, ..fair.clone() };
    ensure!(matches!(alice.withdraw(&foul, None).await, Err(WalletError::Refused(_))), "paid elsewhere");
    let few = offer(&devnet, &bob, 25_000, 1).await?;
    ensure!(
        matches!(alice.withdraw(&few, None).await, Err(WalletError::Refused(_))),
        "one connector for two"
    );
    ensure!(alice.balance().await?.available_sats == 25_000, "nothing was signed");

    // Locked until the payment is deep enough.
    let id = Uuid::now_v7();
    let sent = alice.withdraw(&fair, Some(id)).await?;
    ensure!(alice.withdraw(&fair, Some(id)).await? == sent, "a repeat");
    let own = alice.balance().await?;
    ensure!((own.available_sats, own.locked_sats) == (0, 25_000), "{own:?}");
    ensure!(
        bob.receive().await?.is_empty() && status(&alice).await? == "pending",
        "claimed without a payment"
    );
    ensure!(alice.send(&people::address(&carol)?, 20_000, None).await.is_err(), "sent as well");

    // In a block that is reorganised away, and again in another one.
    devnet.bitcoind().send_raw(&fair.exit_tx).await?;
    mine(&devnet, DEPTH - 1).await?;
    devnet.bitcoind().reorg(DEPTH - 1, DEPTH + 1).await?;
    seen(&devnet).await?;
    ensure!(bob.receive().await?.is_empty() && status(&alice).await? == "pending", "its block is gone");
    mine(&devnet, DEPTH).await?;
    eventually("it is settled", || async { Ok(status(&alice).await? == "settled") }).await?;
    people::claim(&bob, &sent.transfer_id).await?;
    ensure!(bob.balance().await?.available_sats == 25_000, "claimed");
    rows::agree(&devnet).await?;

    // Never paid: the leaf comes back, and goes on.
    let unpaid = offer(&devnet, &alice, 20_000, 1).await?;
    bob.withdraw(&unpaid, None).await?;
    mine(&devnet, RETURN).await?;
    eventually("it is returned", || async { Ok(status(&bob).await? == "returned") }).await?;
    eventually("the leaf is free", || async { Ok(bob.balance().await?.available_sats == 25_000) }).await?;
    ensure!(alice.receive().await?.is_empty(), "claimed after its return");
    rows::agree(&devnet).await?;
    people::transfer(&bob, &carol, 20_000).await?;
    rows::agree(&devnet).await?;

    // X13: connectors that served once serve nobody else.
    let again = ExitOffer { amount: 5_000, payout: 1_000, ..fair };
    ensure!(bob.withdraw(&again, None).await.is_err(), "the same exit transaction twice");
    rows::agree(&devnet).await
}

fn carol_script(carol: &Wallet) -> anyhow::Result<ScriptBuf> {
    let key = people::address(carol)?.identity;
    Ok(Address::p2wpkh(&CompressedPublicKey(key), Network::Regtest).script_pubkey())
}

/// Mines, until every operator has seen it.
async fn mine(devnet: &Devnet, blocks: u64) -> anyhow::Result<()> {
    devnet.faucet().mine(blocks).await?;
    seen(devnet).await
}

async fn seen(devnet: &Devnet) -> anyhow::Result<()> {
    let tip = devnet.bitcoind().tip().await?.hash;
    for operator in 0..3 {
        eventually("the operator sees the tip", || async {
            let mut database = rows::connect(devnet, operator).await?;
            let seen: Vec<u8> = sqlx::query_scalar("SELECT hash FROM header ORDER BY height DESC LIMIT 1")
                .fetch_one(&mut database)
                .await?;
            Ok(seen == AsRef::<[u8]>::as_ref(&tip))
        })
        .await?;
    }
    Ok(())
}
