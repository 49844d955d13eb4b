//! X25: who recorded packages, and later gets the use of an operator's identity key and all that its signer still holds.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use bitcoin::secp256k1::PublicKey;
use prost::Message as _;
use spark_devnet::network::{DEVELOPMENT_IDENTITIES, Devnet, Options};
use spark_proto::{
    packages::v1::{ReserveKeyRequest, ReserveKeyResponse},
    signer::v1 as signer,
};
use spark_rules::{
    ids::{OperatorIndex, TransferId},
    package_key::{self, Envelope, KeyId, PackageKey},
    point,
    vote::Kind,
};
use spark_signer::{ecies, one_time};
use spark_wallet::{Wallet, state};
use uuid::Uuid;

use super::{SATS, receipts, scalar};
use crate::support::{
    call::{Door, call, wallet_card},
    eventually, people, rows,
};
use crate::vaults::secrets_of_stopped_signer;

/// A package as it went over the network.
struct Recorded {
    kind: Kind,
    transfer: TransferId,
    owner: PublicKey,
    sealed: BTreeMap<String, Vec<u8>>,
}

impl Recorded {
    fn part(&self, operator: OperatorIndex) -> anyhow::Result<&[u8]> {
        Ok(self.sealed.get(&operator.identifier_hex()).context("part")?)
    }
}

fn sent(wallet: &Wallet) -> anyhow::Result<Recorded> {
    let request = wallet.state().all::<state::SendRecord>()?.pop().context("send")?.request.decode()?;
    Ok(Recorded {
        kind: Kind::Send,
        transfer: TransferId::from_bytes(*request.transfer_id.parse::<Uuid>()?.as_bytes()),
        owner: point::parse("owner", &request.owner_identity_public_key)?,
        sealed: request.transfer_package.context("package")?.key_tweak_package,
    })
}

fn claimed(wallet: &Wallet) -> anyhow::Result<Recorded> {
    let record = wallet.state().all::<state::ClaimRecord>()?.pop().context("claim")?;
    let request = record.request.context("request")?.decode()?;
    Ok(Recorded {
        kind: Kind::Claim,
        transfer: TransferId::from_bytes(*request.transfer_id.parse::<Uuid>()?.as_bytes()),
        owner: point::parse("owner", &request.owner_identity_public_key)?,
        sealed: request.claim_package.context("package")?.key_tweak_package,
    })
}

/// A key that is given and not used: its secret half must be in the vault, or the search there is blind.
async fn unused(devnet: &Devnet, index: usize, wallet: &Wallet) -> anyhow::Result<signer::PackageKey> {
    let url = devnet.members().get(index).context("member")?.mutual_url();
    let channel = Door::of(devnet, &url).open(Some(&wallet_card(devnet)))?;
    let session = format!("Bearer {}", people::login(&channel, wallet).await?);
    let request = ReserveKeyRequest { request_id: Uuid::new_v4().as_bytes().to_vec() }.encode_to_vec();
    let answer =
        call(&channel, "/packages.v1.PackageKeys/ReserveKey", request, Some(session.as_bytes())).await?;
    ReserveKeyResponse::decode(answer)?.key.context("key")
}

/// After the operation only what was sealed to the identity key still opens, as a public wallet's package does.
#[tokio::test(flavor = "multi_thread")]
async fn x25_recorded_packages_do_not_open_later() -> anyhow::Result<()> {
    let options = Options { known_identities: true, ..Options::default() };
    let mut devnet = Devnet::start(options, |_| {}).await?;
    let wallets = devnet.endpoints().dir.join("people");
    let alice = people::wallet(&devnet, &wallets, "alice", 0)?;
    let bob = people::wallet(&devnet, &wallets, "bob", 1)?;
    let public = people::long_lived_wallet(&devnet, &wallets, "public", 2)?;
    let leaf = people::deposit(&devnet, &alice, SATS).await?;
    people::transfer(&alice, &bob, SATS).await?;
    let ours = [sent(&alice)?, claimed(&bob)?];
    people::deposit(&devnet, &public, 2 * SATS).await?;
    people::transfer(&public, &bob, 2 * SATS).await?;
    let theirs = sent(&public)?;
    rows::settled(&devnet).await?;
    let here = &devnet;
    eventually("receipts say which kind was used", || async {
        let receipts = receipts(here, 0, &bob, &leaf).await?;
        Ok(receipts.iter().filter(|r| r.package_kind == "one-time").count() == 2)
    })
    .await?;

    for (index, identity) in (0u16..).zip(DEVELOPMENT_IDENTITIES) {
        let operator = OperatorIndex::new(index);
        let identity = scalar(&hex::decode(identity)?)?;
        let opened = ecies::Envelope::parse(theirs.part(operator)?)?.open(&identity);
        ensure!(opened.is_ok(), "the bound of public wallets does not hold any more: say so");

        let federation = alice.config().federation.clone();
        let control = unused(&devnet, index.into(), &alice).await?;
        let control = PackageKey::verify(&control, &federation, operator, 0)?;
        // Every key that the operator knows of, and those that the packages name.
        let mut database = rows::connect(&devnet, index.into()).await?;
        let mut ids: Vec<Uuid> =
            sqlx::query_scalar("SELECT key_id FROM package_key").fetch_all(&mut database).await?;
        let mut named: Vec<KeyId> = Vec::new();
        for package in &ours {
            named.push(Envelope::parse(package.part(operator)?)?.key_id);
        }
        ensure!(ids.iter().all(|id| !named.contains(id.as_bytes())), "a used key is still in the tables");
        ids.extend(named.iter().map(|id| Uuid::from_bytes(*id)));
        let left = secrets_of_stopped_signer(&mut devnet, index.into(), &ids).await?;
        ensure!(left.iter().all(|s| named.iter().all(|id| s.keyshare != id)), "a used key is in the vault");
        let mut known = false;
        for secret in &left {
            let key = scalar(&secret.bytes)?;
            known |= key.public_key() == control.key;
            for package in &ours {
                let envelope = Envelope::parse(package.part(operator)?)?;
                let Recorded { kind, transfer, owner, .. } = package;
                let binding = package_key::binding(&federation, operator, *kind, transfer, owner);
                for key in [&key, &identity] {
                    ensure!(one_time::open(&envelope, key, &binding).is_err(), "a recorded package opens");
                }
            }
        }
        ensure!(known, "the secret half of an unused key was not found");
    }
    Ok(())
}
