//! Packages replayed at a signer, by an operator process that lies to it, and nonces handed out twice (S3).

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use prost::Message as _;
use spark_devnet::{http, network::Devnet};
use spark_proto::{
    peer::v1::{self as peer, operation::Request as Words},
    signer::v1 as signer,
    spark,
};
use spark_rules::ids::{OperationId, OperatorIndex};
use spark_wallet::Wallet;
use tonic::{Code, Status, transport::Channel};
use uuid::Uuid;

use super::{NONCES, flip};

use crate::support::{
    call::{Door, call},
    people,
    tap::{Caught, Tap},
};

/// An operator process that lies to its own signer: a signing package again, with one field changed at a time.
pub(super) async fn replays_at_the_signer(devnet: &Devnet, sent: &Caught) -> anyhow::Result<()> {
    let signer = |index: usize| {
        let member = devnet.members().get(index).context("member")?;
        Door::of(devnet, &member.signer_address()).open(Some(member.operator_tls()))
    };
    let channel = signer(0)?;
    let request = spark::StartTransferRequest::decode(sent.message.as_slice())?;
    let honest = peer::Operation {
        operation_id: operation_id(&request)?,
        attempt: 0,
        federation_epoch: 1,
        coordinator: 0,
        request: Some(Words::Send(request)),
    };
    let prepare = |operation| prepare(channel.clone(), operation);
    let first = prepare(honest.clone()).await?;
    let vote = signer::PrepareResponse::decode(first.clone())?.vote.context("vote")?;
    ensure!(vote.choice() == peer::Choice::Yes, "not the package that was signed: {vote:?}");
    ensure!(prepare(honest.clone()).await? == first, "the same package is answered otherwise");
    ensure!(alarm(devnet, 0, "prepare_differs").await? == 0, "an honest repeat raises the alarm");

    for (field, change) in CHANGES {
        let mut changed = honest.clone();
        change(&mut changed)?;
        ensure!(changed != honest, "{field}: nothing was changed");
        let refused = prepare(changed).await.err().with_context(|| format!("{field}: answered"))?;
        let reason = refused.metadata().get("spark-reason").and_then(|v| v.to_str().ok());
        ensure!(
            (refused.code(), reason) == (Code::AlreadyExists, Some("OPERATION_DIFFERS")),
            "{field}: {refused:?}"
        );
        ensure!(alarm(devnet, 0, "prepare_differs").await? == 1, "{field}: no alarm");
    }
    ensure!(prepare(honest.clone()).await? == first, "the recorded answer changed");

    // Under another attempt or another id it is another package under used nonces.
    ensure!(alarm(devnet, 0, "nonce_replayed").await? == 0, "alarm without a cause");
    let mut changed = honest.clone();
    changed.attempt = 1;
    let refused = prepare(changed).await.err().context("another attempt: answered")?;
    ensure!(refused.code() == Code::FailedPrecondition, "another attempt: {refused:?}");
    ensure!(alarm(devnet, 0, "nonce_replayed").await? == 1, "another attempt: no alarm");

    let mut changed = honest.clone();
    let named = job(&mut changed)?.signing_commitments.as_ref().context("nonces")?;
    let named = named.signing_commitments.keys().map(|id| OperatorIndex::from_identifier(id));
    let named = named.collect::<Result<Vec<_>, _>>()?;
    let other = named.iter().map(|index| index.as_usize()).find(|index| *index != 0).context("named")?;
    ensure!(alarm(devnet, other, "nonce_replayed").await? == 0, "alarm without a cause");
    let words = send(&mut changed)?;
    words.transfer_id = Uuid::now_v7().to_string();
    changed.operation_id = operation_id(words)?;
    let answer = self::prepare(signer(other)?, changed).await?;
    let vote = signer::PrepareResponse::decode(answer)?.vote.context("vote")?;
    ensure!(vote.choice() == peer::Choice::No, "another id: {vote:?}");
    ensure!(alarm(devnet, other, "nonce_replayed").await? == 1, "another id: no alarm");
    Ok(())
}

/// The id that operators and signers derive for a send.
fn operation_id(request: &spark::StartTransferRequest) -> anyhow::Result<Vec<u8>> {
    let transfer: Uuid = request.transfer_id.parse()?;
    let parts: [&[u8]; 2] = [&request.owner_identity_public_key, transfer.as_bytes()];
    Ok(OperationId::derive("spark/send", &parts).as_bytes().to_vec())
}

/// A coordinator that hands a wallet nonces that were used before, for another transaction. The signers notice;
/// the wallet asks again and pays with fresh ones.
pub(super) async fn nonces_handed_out_twice(
    devnet: &Devnet,
    tap: &Tap,
    alice: &Wallet,
    bob: &Wallet,
) -> anyhow::Result<()> {
    ensure!(alarm(devnet, 0, "nonce_replayed").await? == 0, "alarm without a cause");
    let to = people::address(bob)?;
    // Its nonces are what is handed out again.
    people::deposit(devnet, alice, 30_000).await?;
    tap.answer_again(NONCES)?;
    alice.send(&to, 30_000, None).await?;
    ensure!(tap.has_answered_again(NONCES), "the wallet asked for no nonces");
    ensure!(alarm(devnet, 0, "nonce_replayed").await? == 1, "no alarm");
    Ok(())
}

async fn prepare(channel: Channel, operation: peer::Operation) -> Result<Bytes, Status> {
    let message = signer::PrepareRequest { operation: Some(operation) }.encode_to_vec();
    call(&channel, "/signer.v1.Signer/Prepare", message, None).await
}

type Change = fn(&mut peer::Operation) -> anyhow::Result<()>;

/// Each field of a signing package that an attacker would like to exchange.
const CHANGES: &[(&str, Change)] = &[
    ("coordinator", |o| {
        o.coordinator = 1;
        Ok(())
    }),
    ("federation epoch", |o| {
        o.federation_epoch = 2;
        Ok(())
    }),
    ("expiry", |o| {
        send(o)?.expiry_time = Some(prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 });
        Ok(())
    }),
    ("receiver", |o| {
        let send = send(o)?;
        send.receiver_identity_public_key.clone_from(&send.owner_identity_public_key);
        Ok(())
    }),
    ("transaction", |o| flip(&mut job(o)?.raw_tx)),
    ("user's share", |o| flip(&mut job(o)?.user_signature)),
    ("user's nonce", |o| flip(&mut job(o)?.signing_nonce_commitment.as_mut().context("nonce")?.binding)),
    ("operators' nonces", |o| {
        let set = job(o)?.signing_commitments.as_mut().context("nonces")?;
        let mut pairs = set.signing_commitments.values_mut();
        let (first, second) = (pairs.next().context("pair")?, pairs.next().context("pair")?);
        std::mem::swap(first, second);
        Ok(())
    }),
    ("named signers", |o| {
        let set = job(o)?.signing_commitments.as_mut().context("nonces")?;
        set.signing_commitments.pop_last();
        Ok(())
    }),
    ("sealed tweak", |o| flip(package(o)?.key_tweak_package.values_mut().next().context("package")?)),
    ("package signature", |o| flip(&mut package(o)?.user_signature)),
    ("a leaf fewer", |o| {
        package(o)?.direct_from_cpfp_leaves_to_send.clear();
        Ok(())
    }),
    ("another kind", |o| {
        let claim =
            spark::ClaimTransferRequest { transfer_id: send(o)?.transfer_id.clone(), ..Default::default() };
        o.request = Some(Words::Claim(claim));
        Ok(())
    }),
    ("nothing", |o| {
        o.request = None;
        Ok(())
    }),
];

fn send(operation: &mut peer::Operation) -> anyhow::Result<&mut spark::StartTransferRequest> {
    match &mut operation.request {
        Some(Words::Send(send)) => Ok(send),
        _ => anyhow::bail!("no send"),
    }
}

fn package(operation: &mut peer::Operation) -> anyhow::Result<&mut spark::TransferPackage> {
    send(operation)?.transfer_package.as_mut().context("package")
}

fn job(operation: &mut peer::Operation) -> anyhow::Result<&mut spark::UserSignedTxSigningJob> {
    package(operation)?.leaves_to_send.first_mut().context("job")
}

/// A signer's alarm as monitoring sees it.
async fn alarm(devnet: &Devnet, member: usize, kind: &str) -> anyhow::Result<u8> {
    let url = format!("{}/metrics", devnet.members().get(member).context("member")?.signer_http_url());
    let text = http::get(&url).await?;
    let name = format!("spark_signer_alarms_active{{kind=\"{kind}\"}} ");
    let value =
        text.lines().find_map(|line| line.strip_prefix(&name)).with_context(|| format!("no {name}"))?;
    Ok(value.parse()?)
}
