//! Who comes in with which certificate, listener by listener.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use prost::Message as _;
use spark_devnet::{certs::PemFiles, network::Devnet};
use spark_proto::{peer::v1 as peer, signer::v1 as signer};
use tonic::Code;

use super::peers::{self, Voice};

use crate::support::{
    call::{Door, call, refused_by_tls, strangers_card, wallet_card},
    methods::{self, Method},
};

/// A certificate to show, or none.
type Card = (&'static str, Option<PemFiles>);

fn wrong_cards(devnet: &Devnet, others: &[(&'static str, &PemFiles)]) -> anyhow::Result<Vec<Card>> {
    let dir = devnet.endpoints().dir.join("strangers");
    std::fs::create_dir_all(&dir)?;
    let mut cards: Vec<Card> = vec![
        ("no certificate", None),
        ("a certificate of another authority", Some(strangers_card(&dir, "operator-1")?)),
        ("a wallet's certificate", Some(wallet_card(devnet))),
    ];
    cards.extend(others.iter().map(|(name, files)| (*name, Some((*files).clone()))));
    Ok(cards)
}

/// With a wrong certificate no method is answered; with the right one each is.
async fn only_by_certificate(
    door: &Door,
    methods: &[Method],
    right: &PemFiles,
    wrong: &[Card],
) -> anyhow::Result<()> {
    for (name, files) in wrong {
        let channel = door.open(files.as_ref())?;
        for method in methods {
            let refused = call(&channel, &method.path(), Vec::new(), None).await.err();
            let refused = refused.with_context(|| format!("{name}: {} was answered", method.path()))?;
            ensure!(refused_by_tls(&refused), "{name}: {} got as far as {refused:?}", method.path());
        }
    }
    let channel = door.open(Some(right))?;
    for method in methods {
        if let Err(status) = call(&channel, &method.path(), Vec::new(), None).await {
            ensure!(!refused_by_tls(&status), "the right certificate: {} {status:?}", method.path());
            ensure!(status.code() != Code::Unimplemented, "{} is not served", method.path());
        }
    }
    Ok(())
}

pub(super) async fn certificates_at_the_peers_door(devnet: &Devnet) -> anyhow::Result<()> {
    let [own, other, _] = devnet.members() else { anyhow::bail!("three members") };
    let door = Door::of(devnet, &own.peer_address());
    let methods = methods::of("peer.v1")?;
    let wrong = wrong_cards(
        devnet,
        &[("its own certificate", own.operator_tls()), ("a peer's signer", other.signer_tls())],
    )?;
    only_by_certificate(&door, &methods, other.operator_tls(), &wrong).await?;

    // A member speaks for itself only.
    let voices = peers::voices(2);
    let listed: BTreeSet<_> = voices.iter().map(|(name, _)| (*name).to_owned()).collect();
    let described: BTreeSet<_> = methods.iter().map(|m| m.name.clone()).collect();
    ensure!(listed == described, "{:?}", listed.symmetric_difference(&described).collect::<Vec<_>>());
    let channel = door.open(Some(other.operator_tls()))?;
    for (name, voice) in voices {
        match voice {
            Voice::Named(message) => {
                let path = format!("/peer.v1.Peer/{name}");
                let refused = call(&channel, &path, message, None).await.err().context(name)?;
                ensure!(refused.code() == Code::PermissionDenied, "{name}: {refused:?}");
            }
            Voice::Carried(reason) => ensure!(!reason.is_empty(), "{name}"),
        }
    }
    let hash = hex::decode(&devnet.endpoints().federation_hash)?;
    let hello = peer::HelloRequest { federation_epoch: 1, federation_hash: hash, sender: 1 };
    call(&channel, "/peer.v1.Peer/Hello", hello.encode_to_vec(), None).await?;
    Ok(())
}

pub(super) async fn certificates_at_the_signers_door(devnet: &Devnet) -> anyhow::Result<()> {
    let [own, other, _] = devnet.members() else { anyhow::bail!("three members") };
    let door = Door::of(devnet, &own.signer_address());
    let wrong = wrong_cards(
        devnet,
        &[
            ("another member's certificate", other.operator_tls()),
            ("its own certificate", own.signer_tls()),
            ("another signer's certificate", other.signer_tls()),
        ],
    )?;
    only_by_certificate(&door, &methods::of("signer.v1")?, own.operator_tls(), &wrong).await?;
    let channel = door.open(Some(own.operator_tls()))?;
    let status = signer::GetStatusRequest {}.encode_to_vec();
    let status = call(&channel, "/signer.v1.Signer/GetStatus", status, None).await?;
    ensure!(!signer::GetStatusResponse::decode(status)?.locked, "knocking locked the signer");
    Ok(())
}

/// A listener serves its own services and no others, whoever asks. No listener serves
/// administration: the signer's has a socket of its own.
pub(super) async fn services_are_where_they_belong(devnet: &Devnet) -> anyhow::Result<()> {
    let [own, other, _] = devnet.members() else { anyhow::bail!("three members") };
    let wallet = wallet_card(devnet);
    let public: &[&str] = &["spark", "spark_authn", "spark_token", "log.v1", "packages.v1"];
    let doors = [
        (Door::of(devnet, &own.mutual_url()), Some(&wallet), public),
        (Door::of(devnet, &own.open_url()), None, public),
        (Door::of(devnet, &own.peer_address()), Some(other.operator_tls()), &["peer.v1"]),
        (Door::of(devnet, &own.signer_address()), Some(own.operator_tls()), &["signer.v1"]),
    ];
    let all = methods::all()?;
    let packages: BTreeSet<_> = all.iter().map(|m| m.package.as_str()).collect();
    let known = BTreeSet::from([
        "admin.signer.v1",
        "admin.v1",
        "log.v1",
        "packages.v1",
        "peer.v1",
        "signer.v1",
        "spark",
        "spark_authn",
        "spark_token",
    ]);
    ensure!(packages == known, "packages with services: {packages:?}");
    for (door, card, served) in &doors {
        let channel = door.open(*card)?;
        for method in all.iter().filter(|m| !served.contains(&m.package.as_str())) {
            let refused = call(&channel, &method.path(), Vec::new(), None).await.err();
            let refused = refused.with_context(|| format!("{}: {}", door.address, method.path()))?;
            ensure!(refused.code() == Code::Unimplemented, "{} {}: {refused:?}", door.address, method.path());
        }
    }
    // Where certificates are asked for, none and a stranger's do not come in.
    let (door, _, _) = &doors[0];
    let dir = devnet.endpoints().dir.join("strangers");
    for files in [None, Some(strangers_card(&dir, "wallet")?)] {
        let channel = door.open(files.as_ref())?;
        for method in methods::public()? {
            let refused = call(&channel, &method.path(), Vec::new(), None).await.err();
            let refused = refused.with_context(|| format!("{} was answered", method.path()))?;
            ensure!(refused_by_tls(&refused), "{}: {refused:?}", method.path());
        }
    }
    Ok(())
}
