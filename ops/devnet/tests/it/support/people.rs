//! Wallets inside the test's own process: what they send and remember can be looked at.

use std::path::Path;

use anyhow::{Context as _, ensure};
use bitcoin::{Amount, TxOut};
use prost::Message as _;
use rand::rngs::OsRng;
use sha2::{Digest as _, Sha256};
use spark_devnet::network::Devnet;
use spark_proto::spark_authn::{
    GetChallengeRequest, GetChallengeResponse, VerifyChallengeRequest, VerifyChallengeResponse,
};
use spark_rules::address::SparkAddress;
use spark_wallet::{
    Wallet,
    flow::Funding,
    keys::{Phrase, Words},
};
use tonic::transport::Channel;

use super::{call::call, eventually, pay};

/// A wallet with a fresh seed in a folder of its own.
pub(crate) fn wallet(devnet: &Devnet, dir: &Path, name: &str, coordinator: u16) -> anyhow::Result<Wallet> {
    let dir = dir.join(name);
    devnet.write_wallet_config(&dir, coordinator)?;
    create(&dir)
}

/// One that seals packages to the operators' long-lived keys, as public wallets do.
pub(crate) fn long_lived_wallet(
    devnet: &Devnet,
    dir: &Path,
    name: &str,
    coordinator: u16,
) -> anyhow::Result<Wallet> {
    let dir = dir.join(name);
    devnet.write_wallet_config(&dir, coordinator)?;
    let path = dir.join("wallet.toml");
    let text = std::fs::read_to_string(&path)?;
    std::fs::write(&path, format!("package_keys = \"long-lived\"\n{text}"))?;
    create(&dir)
}

/// A wallet with a fresh seed in a folder that has its `wallet.toml`.
pub(crate) fn create(dir: &Path) -> anyhow::Result<Wallet> {
    Ok(Wallet::create(dir, &Phrase::generate(Words::Twelve, &mut OsRng)?)?)
}

/// Where others pay to.
pub(crate) fn address(wallet: &Wallet) -> anyhow::Result<SparkAddress> {
    Ok(SparkAddress::decode(&wallet.address()?)?)
}

/// Deposits confirmed money; returns the leaf id once it can be spent.
pub(crate) async fn deposit(devnet: &Devnet, wallet: &Wallet, sats: u64) -> anyhow::Result<String> {
    let record = wallet.deposit_address().await?;
    let txid = pay(devnet, &record.address, sats).await?;
    devnet.faucet().mine(1).await?;
    let claimed =
        wallet.claim_deposit(&record.address, &Funding::Txid(txid)).await?.context("nothing there")?;
    ensure!(claimed.value == sats, "claimed {}", claimed.value);
    spendable(wallet, &claimed.leaf_id).await?;
    Ok(claimed.leaf_id)
}

/// Deposits that one transaction pays for, each to an address of its own, until all can be spent.
pub(crate) async fn deposits(devnet: &Devnet, wallet: &Wallet, sats: &[u64]) -> anyhow::Result<()> {
    let before = wallet.balance().await?.available_sats;
    let mut addresses = Vec::with_capacity(sats.len());
    let mut outputs = Vec::with_capacity(sats.len());
    for value in sats {
        let address = wallet.deposit_address().await?.address;
        let to = address.parse::<bitcoin::Address<_>>()?.require_network(bitcoin::Network::Regtest)?;
        outputs.push(TxOut { value: Amount::from_sat(*value), script_pubkey: to.script_pubkey() });
        addresses.push(address);
    }
    let funding = devnet.faucet().pay(outputs).await?.compute_txid();
    devnet.faucet().mine(1).await?;
    for address in addresses {
        wallet.claim_deposit(&address, &Funding::Txid(funding)).await?.context("nothing there")?;
    }
    let total = before + sats.iter().sum::<u64>();
    eventually("deposits are spendable", || async { Ok(wallet.balance().await?.available_sats == total) })
        .await
}

/// Waits until every operator lets a leaf be spent.
pub(crate) async fn spendable(wallet: &Wallet, leaf: &str) -> anyhow::Result<()> {
    eventually("the leaf can be spent", || async {
        let views = wallet.sync().await?;
        Ok(views.iter().any(|v| v.leaf_id == leaf && v.is_spendable()))
    })
    .await
}

/// Sends and claims.
pub(crate) async fn transfer(from: &Wallet, to: &Wallet, sats: u64) -> anyhow::Result<()> {
    let sent = from.send(&address(to)?, sats, None).await?;
    claim(to, &sent.transfer_id).await
}

/// Claims one transfer once it is there.
pub(crate) async fn claim(wallet: &Wallet, transfer: &str) -> anyhow::Result<()> {
    eventually("the transfer is claimed", || async {
        for outcome in wallet.receive().await? {
            match outcome {
                Ok(claimed) if claimed.transfer_id == transfer => return Ok(true),
                Ok(_) => {}
                Err((id, error)) => return Err(anyhow::Error::from(error).context(id)),
            }
        }
        Ok(false)
    })
    .await
}

/// A login request as a wallet answers a challenge.
pub(crate) async fn answered_challenge(
    channel: &Channel,
    wallet: &Wallet,
) -> anyhow::Result<VerifyChallengeRequest> {
    let public_key = wallet.keys().identity().public_key().serialize().to_vec();
    let ask = GetChallengeRequest { public_key: public_key.clone() }.encode_to_vec();
    let answer = call(channel, "/spark_authn.SparkAuthnService/get_challenge", ask, None).await?;
    let protected = GetChallengeResponse::decode(answer)?.protected_challenge.context("challenge")?;
    let challenge = protected.challenge.as_ref().context("challenge")?.encode_to_vec();
    let signature = wallet.keys().identity().sign_ecdsa(Sha256::digest(challenge).into())?;
    Ok(VerifyChallengeRequest {
        protected_challenge: Some(protected),
        signature: signature.serialize_der().to_vec(),
        public_key,
    })
}

/// A session token.
pub(crate) async fn login(channel: &Channel, wallet: &Wallet) -> anyhow::Result<String> {
    let request = answered_challenge(channel, wallet).await?.encode_to_vec();
    let answer = call(channel, "/spark_authn.SparkAuthnService/verify_challenge", request, None).await?;
    Ok(VerifyChallengeResponse::decode(answer)?.session_token)
}
