//! What end-to-end tests share: a network and wallets on it.

pub(crate) mod call;
pub(crate) mod coin;
pub(crate) mod methods;
pub(crate) mod people;
pub(crate) mod rogue;
pub(crate) mod rows;
pub(crate) mod search;
pub(crate) mod tap;
pub(crate) mod web;
pub(crate) mod world;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bitcoin::{Amount, Txid};
use spark_devnet::{
    network::{Devnet, Options},
    wallet::{WalletCommand, number, text},
};

/// A fresh network of three operators, two of which sign.
pub(crate) async fn network() -> anyhow::Result<Devnet> {
    Devnet::start(Options::default(), |_| {}).await
}

/// Pays an address and returns the transaction's id; nothing is mined.
pub(crate) async fn pay(devnet: &Devnet, address: &str, sats: u64) -> anyhow::Result<Txid> {
    let address = address.parse::<bitcoin::Address<_>>()?.require_network(bitcoin::Network::Regtest)?;
    Ok(devnet.faucet().send(&address, Amount::from_sat(sats)).await?.compute_txid())
}

/// Deposits confirmed money; returns the leaf id.
pub(crate) async fn deposit(devnet: &Devnet, wallet: &WalletCommand, sats: u64) -> anyhow::Result<String> {
    let before = available(wallet).await?;
    let answer = wallet.run(&["deposit", "address"]).await?;
    let (address, leaf) = (text(&answer, "address")?, text(&answer, "leaf_id")?);
    let txid = pay(devnet, &address, sats).await?.to_string();
    devnet.faucet().mine(1).await?;
    wallet.run(&["deposit", "claim", "--address", &address, "--txid", &txid]).await?;
    eventually("deposit is available", || async { Ok(available(wallet).await? == before + sats) }).await?;
    Ok(leaf)
}

/// What a wallet can spend.
pub(crate) async fn available(wallet: &WalletCommand) -> anyhow::Result<u64> {
    number(&wallet.run(&["balance"]).await?, "available_sats")
}

/// A wallet's Spark address.
pub(crate) async fn address(wallet: &WalletCommand) -> anyhow::Result<String> {
    text(&wallet.run(&["address"]).await?, "address")
}

/// Sends and claims.
pub(crate) async fn transfer(from: &WalletCommand, to: &WalletCommand, sats: u64) -> anyhow::Result<()> {
    from.run(&["send", &address(to).await?, &format!("{sats}sat")]).await?;
    let before = available(to).await?;
    eventually("transfer is claimed", || async {
        to.run_all(&["receive"]).await?;
        Ok(available(to).await? == before + sats)
    })
    .await
}

/// Repeats until true; an error counts as not yet.
pub(crate) async fn eventually<F, Fut>(what: &str, mut check: F) -> anyhow::Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = anyhow::Result<bool>>,
{
    let end = Instant::now() + Duration::from_secs(90);
    let mut last = None;
    while Instant::now() < end {
        match check().await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("did not happen")))
        .with_context(|| format!("{what}: not in time"))
}

/// Waits until every operator is ready again.
pub(crate) async fn ready(devnet: &mut Devnet) -> anyhow::Result<()> {
    devnet.wait_ready().await?;
    ensure!(devnet.members().len() == 3, "three members");
    Ok(())
}
