//! S1: after money moved, no secret is where an operator's host can look: database, write-ahead log, logs, files,
//! memory of the operator process; and what a signer has destroyed is not left in its own memory. The signers are the
//! program that ships: optimisation across crates removes what only looks like a wipe. The test knows the secrets: it opens what wallets sealed for the operators
//! (whose identity keys are the development ones here) and the vaults of stopped signers.

mod forward;
mod needles;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use prost::Message as _;
use spark_devnet::network::{DEVELOPMENT_IDENTITIES, Devnet, Options};
use spark_proto::{peer::v1::Receipt, signer::v1 as signer, spark};
use spark_rules::ids::{LeafId, OperatorIndex};
use spark_signer::{ecies::Envelope, secret::SecretScalar};
use spark_wallet::{Wallet, state, verify::Node};
use uuid::Uuid;

use crate::support::{
    call::{Door, call, wallet_card},
    eventually, people, rows,
    search::{Needles, snapshot},
};
use crate::vaults::{Share, secrets_of_stopped_signer};

const SATS: u64 = 40_000;
/// Names of what is no secret and must be found.
const PUBLIC: &str = "public";

#[tokio::test(flavor = "multi_thread")]
async fn s1_secrets_are_nowhere_but_in_signer_and_wallet() -> anyhow::Result<()> {
    let options = Options { known_identities: true, shipped_signers: true, ..Options::default() };
    let mut devnet = Devnet::start(options, |_| {}).await?;
    let wallets = devnet.endpoints().dir.join("people");
    // What is sealed to identity keys the test can open: it knows them.
    let alice = people::long_lived_wallet(&devnet, &wallets, "alice", 0)?;
    let bob = people::long_lived_wallet(&devnet, &wallets, "bob", 1)?;
    let leaf = people::deposit(&devnet, &alice, SATS).await?;
    people::transfer(&alice, &bob, SATS).await?;
    rows::settled(&devnet).await?;

    let mut needles = Needles::default();
    public_facts(&mut needles, &bob, &leaf)?;
    for (name, wallet) in [("alice", &alice), ("bob", &bob)] {
        wallet_secrets(&mut needles, name, wallet, &leaf, &wallets.join(name))?;
    }
    let memories = tempfile::tempdir()?;
    let mut gone = Needles::default();
    public_facts(&mut gone, &bob, &leaf)?;
    let shares =
        operator_secrets(&mut needles, &mut gone, memories.path(), &mut devnet, &alice, &bob, &leaf).await?;
    in_signers(memories.path(), &gone, devnet.members().len()).context("memory of signers")?;

    let found = in_databases(&devnet, &needles).context("databases")?;
    ensure!(found >= 3, "the dumps were not searched");
    in_files(&devnet, &needles, &wallets, &shares).context("files")?;
    in_memory(&mut devnet, &needles, &bob).await.context("memory")
}

/// What is known of the leaf everywhere: it must be found, or the search is blind.
fn public_facts(needles: &mut Needles, owner: &Wallet, leaf: &str) -> anyhow::Result<()> {
    let stored = owner.state().get::<state::StoredLeaf>(leaf)?.context("stored leaf")?;
    let node = Node::parse(&stored.lineage.first().context("node")?.decode()?)?;
    needles.all_forms(&format!("{PUBLIC}: verifying key"), &node.verifying_key.serialize());
    needles.text(&format!("{PUBLIC}: leaf id"), leaf);
    needles.exact(&format!("{PUBLIC}: leaf id, raw"), leaf.parse::<Uuid>()?.as_bytes());
    needles.text(&format!("{PUBLIC}: module"), "spark_operator");
    Ok(())
}

fn wallet_secrets(
    needles: &mut Needles,
    name: &str,
    wallet: &Wallet,
    leaf: &str,
    dir: &Path,
) -> anyhow::Result<()> {
    let words = fs::read_to_string(dir.join("seed"))?;
    needles.text(&format!("{name}'s words"), words.trim());
    let list = words.split_whitespace().map(|word| format!("{word:?}")).collect::<Vec<_>>();
    needles.text(&format!("{name}'s words, listed"), &list.join(","));
    needles.all_forms(&format!("{name}'s identity key"), &*wallet.keys().identity().secret().to_bytes());
    let key = wallet.keys().leaf(&LeafId::parse(leaf)?)?;
    needles.all_forms(&format!("{name}'s key of the leaf"), &*key.secret().to_bytes());
    Ok(())
}

/// One operator's part of the tweaks of both packages.
struct Tweaks {
    send: SecretScalar,
    claim: SecretScalar,
}

fn scalar(bytes: &[u8]) -> anyhow::Result<SecretScalar> {
    Ok(SecretScalar::from_bytes(bytes.try_into()?)?)
}

/// Opens what was sealed for operator `index`, and checks that it is what the public part of the package says.
fn tweaks(alice: &Wallet, bob: &Wallet, index: usize, identity: &SecretScalar) -> anyhow::Result<Tweaks> {
    let id = OperatorIndex::new(u16::try_from(index)?).identifier_hex();
    let send = alice.state().all::<state::SendRecord>()?.pop().context("send")?.request.decode()?;
    let sealed = send.transfer_package.context("package")?.key_tweak_package;
    let plain = Envelope::parse(sealed.get(&id).context("part")?)?.open(identity)?;
    let mut sent = spark::SendLeafKeyTweaks::decode(plain.as_slice())?.leaves_to_send;
    let sent = sent.pop().context("leaf")?;

    let claim = bob.state().all::<state::ClaimRecord>()?.pop().context("claim")?.request.context("claim")?;
    let sealed = claim.decode()?.claim_package.context("package")?.key_tweak_package;
    let plain = Envelope::parse(sealed.get(&id).context("part")?)?.open(identity)?;
    let mut claimed = spark::ClaimLeafKeyTweaks::decode(plain.as_slice())?.leaves_to_receive;
    let claimed = claimed.pop().context("leaf")?;

    let tweaks = Tweaks {
        send: scalar(&sent.secret_share_tweak.context("share")?.secret_share)?,
        claim: scalar(&claimed.secret_share_tweak.context("share")?.secret_share)?,
    };
    for (secret, public) in
        [(&tweaks.send, &sent.pubkey_shares_tweak), (&tweaks.claim, &claimed.pubkey_shares_tweak)]
    {
        let public = public.get(&id).context("public tweak")?;
        ensure!(secret.public_key().serialize() == public.as_slice(), "not the tweak of operator {index}");
    }
    Ok(tweaks)
}

/// The key that went from sender to receiver, and both whole tweaks.
fn keys_in_transit(needles: &mut Needles, alice: &Wallet, bob: &Wallet, leaf: &str) -> anyhow::Result<()> {
    let id = LeafId::parse(leaf)?;
    let send = alice.state().all::<state::SendRecord>()?.pop().context("send")?.request.decode()?;
    let sealed = send.transfer_package.context("package")?.key_tweak_package;
    let (operator, sealed) = sealed.first_key_value().context("part")?;
    ensure!(*operator == OperatorIndex::new(0).identifier_hex(), "order of operators");
    let identity = scalar(&hex::decode(DEVELOPMENT_IDENTITIES.first().context("identity")?)?)?;
    let plain = Envelope::parse(sealed)?.open(&identity)?;
    let sent = spark::SendLeafKeyTweaks::decode(plain.as_slice())?.leaves_to_send.pop().context("leaf")?;
    let cipher = Envelope::parse(&sent.secret_cipher)?;
    let transit = scalar(&cipher.open(bob.keys().identity().secret())?)?;
    needles.all_forms("key in transit", &*transit.to_bytes());
    let (old, new) = (alice.keys().leaf(&id)?, bob.keys().leaf(&id)?);
    needles.all_forms("tweak of the send", &*old.secret().sub(&transit)?.to_bytes());
    needles.all_forms("tweak of the claim", &*transit.sub(new.secret())?.to_bytes());
    Ok(())
}

/// Tweaks, identity keys, and every share of every keyshare, old ones too. Stops the signers. Returns the present
/// shares of the leaf.
async fn operator_secrets(
    needles: &mut Needles,
    gone: &mut Needles,
    memories: &Path,
    devnet: &mut Devnet,
    alice: &Wallet,
    bob: &Wallet,
    leaf: &str,
) -> anyhow::Result<Vec<Vec<u8>>> {
    keys_in_transit(needles, alice, bob, leaf)?;
    // Before any signer stops: a head waits for its witnesses.
    let here = &*devnet;
    for index in 0..DEVELOPMENT_IDENTITIES.len() {
        eventually("the claim's receipt is published", || async {
            let receipts = receipts(here, index, bob, leaf).await?;
            Ok(receipts.last().is_some_and(|receipt| receipt.phase == "claim"))
        })
        .await?;
    }
    // The operators ask their signers for the heads of logs without end; what moved money is over.
    for index in 0..DEVELOPMENT_IDENTITIES.len() {
        let process = devnet.process(&format!("signer-{index}"))?.id().context("signer runs")?;
        let bytes = snapshot(process, &memories.join(index.to_string()))?;
        ensure!(bytes > 1 << 20, "read {bytes} bytes only");
    }
    let mut present = Vec::new();
    for (index, identity) in DEVELOPMENT_IDENTITIES.iter().enumerate() {
        let identity = scalar(&hex::decode(identity)?)?;
        needles.all_forms(&format!("identity key of operator {index}"), &*identity.to_bytes());
        let tweaks = tweaks(alice, bob, index, &identity)?;
        needles.all_forms(&format!("operator {index}'s tweak of the send"), &*tweaks.send.to_bytes());
        needles.all_forms(&format!("operator {index}'s tweak of the claim"), &*tweaks.claim.to_bytes());

        let receipts = receipts(devnet, index, bob, leaf).await?;
        let [.., sent, claimed] = receipts.as_slice() else { anyhow::bail!("receipts: {receipts:?}") };
        ensure!((sent.phase.as_str(), claimed.phase.as_str()) == ("send", "claim"), "{receipts:?}");
        let stored = shares_of_stopped_signer(devnet, index).await?;
        ensure!(stored.len() > 64, "operator {index} holds {} shares only", stored.len());
        let keyshare: Vec<_> = stored.iter().filter(|s| s.keyshare == claimed.keyshare_id).collect();
        let [newest] = keyshare.as_slice() else { anyhow::bail!("{} versions live", keyshare.len()) };
        ensure!(newest.version == claimed.new_version, "version {}", newest.version);

        // old = new - tweak: what the vault has destroyed is known here, and must be nowhere else.
        let second = scalar(&newest.bytes)?;
        let first = second.sub(&tweaks.claim)?;
        let zeroth = first.sub(&tweaks.send)?;
        for (share, public) in [
            (&second, &claimed.new_public_share),
            (&first, &claimed.retired_public_share),
            (&first, &sent.new_public_share),
            (&zeroth, &sent.retired_public_share),
        ] {
            ensure!(share.public_key().serialize() == public.as_slice(), "not the share of a receipt");
        }
        needles.all_forms(&format!("operator {index}'s share before the claim"), &*first.to_bytes());
        needles.all_forms(&format!("operator {index}'s share before the send"), &*zeroth.to_bytes());
        for (name, secret) in [
            ("tweak of the send", &tweaks.send),
            ("tweak of the claim", &tweaks.claim),
            ("share before the claim", &first),
            ("share before the send", &zeroth),
            // Not destroyed, and not in use.
            ("present share", &second),
        ] {
            gone.halves(&format!("operator {index}'s {name}"), &*secret.to_bytes());
        }
        for share in &stored {
            let name = format!("operator {index}'s share of {}", hex::encode(&share.keyshare));
            needles.all_forms(&name, &share.bytes);
        }
        present.push(newest.bytes.clone());
    }
    Ok(present)
}

/// A leaf's receipts, oldest first, as the owner sees them.
async fn receipts(devnet: &Devnet, index: usize, owner: &Wallet, leaf: &str) -> anyhow::Result<Vec<Receipt>> {
    let url = devnet.members().get(index).context("member")?.mutual_url();
    let channel = Door::of(devnet, &url).open(Some(&wallet_card(devnet)))?;
    let session = format!("Bearer {}", people::login(&channel, owner).await?);
    let request =
        signer::GetReceiptsRequest { leaf_id: leaf.to_owned(), tree_size: 0, from: 0 }.encode_to_vec();
    let answer = call(&channel, "/log.v1.DeletionLog/GetReceipts", request, Some(session.as_bytes())).await?;
    Ok(signer::GetReceiptsResponse::decode(answer)?.receipts)
}

/// The shares of every keyshare that the operator knows. Stops its signer.
async fn shares_of_stopped_signer(devnet: &mut Devnet, index: usize) -> anyhow::Result<Vec<Share>> {
    let mut database = rows::connect(devnet, index).await?;
    let ids: Vec<Uuid> =
        sqlx::query_scalar("SELECT keyshare_id FROM keyshare").fetch_all(&mut database).await?;
    secrets_of_stopped_signer(devnet, index, &ids).await
}

/// Fails for any secret; tells whether something public was there.
fn judge(place: &str, found: &BTreeSet<String>) -> anyhow::Result<bool> {
    let secrets: Vec<_> = found.iter().filter(|name| !name.starts_with(PUBLIC)).collect();
    ensure!(secrets.is_empty(), "{place} holds {secrets:?}");
    Ok(!found.is_empty())
}

/// The dump of every database; returns in how many the leaf's keys were found.
fn in_databases(devnet: &Devnet, needles: &Needles) -> anyhow::Result<usize> {
    let mut known = 0;
    for index in 0..devnet.members().len() {
        let found = needles.in_bytes(&devnet.cluster().dump(&format!("operator_{index}"))?);
        judge(&format!("dump of operator {index}"), &found)?;
        let key = found.contains(&format!("{PUBLIC}: verifying key, hex"));
        known += usize::from(key && found.contains(&format!("{PUBLIC}: leaf id")));
    }
    Ok(known)
}

/// Every file of the network but the wallets' own: Postgres' tables and write-ahead log, stores, logs.
fn in_files(devnet: &Devnet, needles: &Needles, wallets: &Path, shares: &[Vec<u8>]) -> anyhow::Result<()> {
    let root = &devnet.endpoints().dir;
    let planted = root.join("planted");
    fs::write(&planted, format!("share={}", hex::encode(shares.first().context("share")?)))?;
    let mut all = needles.in_tree(root, &[wallets.to_owned()])?;
    fs::remove_file(&planted)?;
    let bait = all.remove(&planted).context("the planted file was not read")?;
    ensure!(judge("bait", &bait).is_err(), "a planted share is not found");

    let mut known: BTreeSet<PathBuf> = BTreeSet::new();
    for (path, found) in all {
        if judge(&path.display().to_string(), &found)? {
            known.insert(path);
        }
    }
    let log = known.iter().any(|path| path.components().any(|c| c.as_os_str() == "pg_wal"));
    ensure!(log, "the write-ahead log was not searched: {known:?}");
    for member in devnet.members() {
        // Nothing public is in it that is searched for; like every file it was.
        ensure!(member.dir().join("signer.redb.pages").is_file(), "the pages are elsewhere");
        for file in ["operator.log", "signer.redb"] {
            ensure!(
                known.contains(&member.dir().join(file)),
                "{file} of {} was not searched",
                member.index()
            );
        }
    }
    Ok(())
}

/// The signers as they were before they were stopped.
fn in_signers(memories: &Path, gone: &Needles, signers: usize) -> anyhow::Result<()> {
    for index in 0..signers {
        let memory = memories.join(index.to_string());
        let known = judge(&format!("signer {index}"), &gone.in_file(&memory)?)?;
        ensure!(known, "the memory of signer {index} was not searched");
    }
    // A secret planted at the end of the same file is found by its tail.
    let planted = memories.join("0");
    let mut bait = Needles::default();
    bait.halves("bait", &[0xb5; 32]);
    let mut content = fs::read(&planted)?;
    ensure!(judge("no bait", &bait.in_bytes(&content)).is_ok(), "the bait is there by chance");
    content.extend([[0; 16], [0xb5; 16]].concat());
    ensure!(judge("bait", &bait.in_bytes(&content)).is_err(), "a planted tail is not found");
    Ok(())
}

/// The running operators.
async fn in_memory(devnet: &mut Devnet, needles: &Needles, owner: &Wallet) -> anyhow::Result<()> {
    // This very process knows the shares, and the search finds them in it.
    let (found, _) = needles.in_memory(std::process::id())?;
    ensure!(judge("this process", &found).is_err(), "memory is not searched");
    for index in 0..devnet.members().len() {
        let process = devnet.process(&format!("operator-{index}"))?.id().context("operator runs")?;
        let mut tries = 0;
        loop {
            // What it was just asked for is in its memory, or was until another answer took the place.
            owner.sync().await?;
            let (found, bytes) = needles.in_memory(process)?;
            judge(&format!("memory of operator {index}"), &found)?;
            ensure!(bytes > 1 << 20, "read {bytes} bytes only");
            if found.contains(&format!("{PUBLIC}: verifying key, raw")) {
                break;
            }
            tries += 1;
            ensure!(tries < 20, "the memory of operator {index} does not even hold {found:?}");
        }
    }
    Ok(())
}
