//! Every write of the public API, sent twice and sent changed (D7), and packages replayed at a signer (S3).

mod replays;

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use prost::Message as _;
use spark_devnet::{http, network::Devnet};
use spark_proto::{
    packages::v1::{ReserveKeyRequest, ReserveKeyResponse},
    spark::{self, renew_leaf_request::SigningJobs},
};
use spark_wallet::{Wallet, flow::Funding};
use tonic::{Code, transport::Channel};

use crate::support::{
    call::{Door, call, reason, wallet_card},
    eventually,
    methods::{self, LOGIN, NOT_OFFERED},
    network, pay, people, ready,
    rows::{self, settled},
    tap::{Caught, Tap},
};

/// Writes that D7 speaks of: one case each below.
const WRITES: &[&str] = &[
    "generate_deposit_address",
    "finalize_deposit_tree_creation",
    "start_transfer_v2",
    "start_transfer_v3",
    "initiate_preimage_swap_v3",
    "provide_preimage",
    "cooperative_exit_v2",
    "claim_transfer",
    "renew_leaf",
    "generate_static_deposit_address",
    "initiate_static_deposit_utxo_refund",
    "ReserveKey",
    "update_wallet_setting",
];

/// Calls that change something and must not give the same answer twice: the reason.
const NEVER_THE_SAME: &[(&str, &str)] = &[
    (
        "get_signing_commitments",
        "a nonce serves once (S3): each answer has fresh ones, and no row is written",
    ),
    (
        "rotate_static_deposit_address",
        "nothing names a rotation: each call is one more, of few, and former addresses keep working",
    ),
    ("get_challenge", "each challenge is fresh, and nothing is stored"),
    ("verify_challenge", "a challenge is answered once: who replays an answer gets no session"),
];

/// Calls that change nothing.
const READS: &[&str] = &[
    "GetCheckpoint",
    "ProveConsistency",
    "GetReceipts",
    "WatchLeaves",
    "get_signing_operator_list",
    "get_utxos_for_address",
    "get_utxos_for_identity",
    "query_all_transfers",
    "query_balance",
    "query_htlc",
    "query_nodes",
    "query_pending_transfers",
    "query_spark_invoices",
    "query_static_deposit_addresses",
    "query_token_outputs",
    "query_token_transactions",
    "query_unused_deposit_addresses",
    "query_wallet_setting",
    "subscribe_to_events",
];

const ADDRESS: &str = "/spark.SparkService/generate_deposit_address";
const DEPOSIT: &str = "/spark.SparkService/finalize_deposit_tree_creation";
const SEND: &str = "/spark.SparkService/start_transfer_v2";
const SEND_MANY: &str = "/spark.SparkService/start_transfer_v3";
const HTLC: &str = "/spark.SparkService/initiate_preimage_swap_v3";
const PREIMAGE: &str = "/spark.SparkService/provide_preimage";
const EXIT: &str = "/spark.SparkService/cooperative_exit_v2";
const CLAIM: &str = "/spark.SparkService/claim_transfer";
const RENEW: &str = "/spark.SparkService/renew_leaf";
const STATIC: &str = "/spark.SparkService/generate_static_deposit_address";
const REFUND: &str = "/spark.SparkService/initiate_static_deposit_utxo_refund";
const KEY: &str = "/packages.v1.PackageKeys/ReserveKey";
const SETTING: &str = "/spark.SparkService/update_wallet_setting";
const NONCES: &str = "/spark.SparkService/get_signing_commitments";

const SATS: u64 = 50_000;
/// Refunds can be renewed at this many blocks or below.
const RENEWABLE: u16 = 300;

#[test]
fn d7_every_public_method_is_sorted() -> anyhow::Result<()> {
    let once = NEVER_THE_SAME.iter().map(|(name, _)| name);
    let listed: Vec<&str> = WRITES.iter().chain(READS).chain(NOT_OFFERED).chain(once).copied().collect();
    let described: BTreeSet<String> = methods::public()?.into_iter().map(|m| m.name).collect();
    ensure!(listed.len() == described.len(), "listed {}, described {}", listed.len(), described.len());
    let listed: BTreeSet<String> = listed.into_iter().map(str::to_owned).collect();
    ensure!(listed == described, "{:?}", listed.symmetric_difference(&described).collect::<Vec<_>>());
    ensure!(LOGIN.iter().all(|name| NEVER_THE_SAME.iter().any(|(other, _)| name == other)), "logins");
    Ok(())
}

/// One network for the whole life of a leaf: address, deposit, send, claim, renewal.
#[tokio::test(flavor = "multi_thread")]
async fn d7_repeats_of_every_write() -> anyhow::Result<()> {
    let devnet = network().await?;
    let mut story = Story::start(devnet).await?;
    story.an_address().await.context("address")?;
    let leaf = story.a_deposit().await.context("deposit")?;
    story.logins_and_nonces(&leaf).await.context("login and nonces")?;
    story.a_package_key().await.context("package key")?;
    story.a_setting().await.context("setting")?;
    story.a_static_address().await.context("static address")?;
    story.a_static_refund().await.context("static refund")?;
    let sent = story.a_send().await.context("send")?;
    story.a_claim(&sent).await.context("claim")?;
    story.a_renewal(&leaf).await.context("renewal")?;
    story.a_send_to_several().await.context("send to several")?;
    story.an_htlc().await.context("send for a preimage")?;
    story.an_exit().await.context("cooperative exit")?;
    let done: BTreeSet<&str> = story.repeated.iter().copied().collect();
    let all: BTreeSet<&str> = WRITES.iter().copied().collect();
    ensure!(done == all, "writes without a case: {:?}", all.difference(&done).collect::<Vec<_>>());
    replays::replays_at_the_signer(&story.devnet, &sent).await.context("replay at the signer")?;
    story.signers_forget_their_alarms().await?;
    replays::nonces_handed_out_twice(&story.devnet, &story.tap, &story.alice, &story.bob)
        .await
        .context("nonces handed out twice")?;
    // Alarms of this kind are for people: nobody can switch an operator off by raising them.
    for member in story.devnet.members() {
        http::get(&format!("{}/readyz", member.http_url())).await.context("an operator is not ready")?;
    }
    Ok(())
}

struct Story {
    devnet: Devnet,
    tap: Tap,
    alice: Wallet,
    bob: Wallet,
    channel: Channel,
    repeated: Vec<&'static str>,
}

impl Story {
    async fn start(devnet: Devnet) -> anyhow::Result<Self> {
        rows::every_table_is_known(&devnet).await?;
        let tap = Tap::start(&devnet, 0).await?;
        let wallet = |name| {
            let dir = devnet.endpoints().dir.join("people").join(name);
            tap.write_wallet_config(&devnet, &dir, 0)?;
            people::create(&dir)
        };
        let (alice, bob) = (wallet("alice")?, wallet("bob")?);
        let channel = Self::channel(&devnet, 0)?;
        Ok(Self { devnet, tap, alice, bob, channel, repeated: Vec::new() })
    }

    fn channel(devnet: &Devnet, operator: usize) -> anyhow::Result<Channel> {
        let url = devnet.members().get(operator).context("operator")?.mutual_url();
        Door::of(devnet, &url).open(Some(&wallet_card(devnet)))
    }

    async fn call(&self, path: &str, caught: &Caught) -> Result<Bytes, tonic::Status> {
        call(&self.channel, path, caught.message.clone(), Some(&caught.authorization)).await
    }

    /// The same bytes again: the same bytes come back, and no row changes.
    async fn again(&mut self, path: &str, caught: &Caught, first: &Bytes) -> anyhow::Result<()> {
        let before = settled(&self.devnet).await?;
        for number in 0..2 {
            let answer = self.call(path, caught).await.with_context(|| format!("repeat {number}"))?;
            ensure!(answer == *first, "repeat {number} is answered otherwise");
        }
        rows::same("repeat", &before, &settled(&self.devnet).await?)?;
        let name = WRITES.iter().find(|name| path.ends_with(&format!("/{name}"))).context("a write")?;
        self.repeated.push(name);
        Ok(())
    }

    /// Other bytes under the same id: refused, and no row changes.
    async fn changed(
        &self,
        what: &str,
        path: &str,
        authorization: &[u8],
        message: Vec<u8>,
        expected: (Code, &str),
    ) -> anyhow::Result<()> {
        let before = settled(&self.devnet).await?;
        let refused = call(&self.channel, path, message, Some(authorization)).await.err();
        let refused = refused.with_context(|| format!("{what}: accepted"))?;
        ensure!((refused.code(), reason(&refused).as_str()) == expected, "{what}: {refused:?}");
        rows::same(what, &before, &settled(&self.devnet).await?)
    }

    async fn an_address(&mut self) -> anyhow::Result<()> {
        self.tap.hold(ADDRESS);
        ensure!(self.alice.deposit_address().await.is_err(), "held back, and answered");
        let caught = self.tap.take(ADDRESS)?;
        let first = self.call(ADDRESS, &caught).await?;
        self.again(ADDRESS, &caught, &first).await?;

        let request = spark::GenerateDepositAddressRequest::decode(caught.message.as_slice())?;
        let taken = (Code::InvalidArgument, "FIELD_INVALID");
        let mut other = request.clone();
        other.signing_public_key = self.bob.keys().identity().public_key().serialize().to_vec();
        let message = other.encode_to_vec();
        self.changed("another user key", ADDRESS, &caught.authorization, message, taken).await?;
        let mut other = request;
        other.identity_public_key = self.bob.keys().identity().public_key().serialize().to_vec();
        let bob = format!("Bearer {}", people::login(&self.channel, &self.bob).await?);
        self.changed("another identity", ADDRESS, bob.as_bytes(), other.encode_to_vec(), taken).await?;

        let answer = spark::GenerateDepositAddressResponse::decode(first)?;
        let shown = self.alice.deposit_address().await?;
        ensure!(answer.deposit_address.context("address")?.address == shown.address, "another address");
        Ok(())
    }

    async fn a_deposit(&mut self) -> anyhow::Result<String> {
        let record = self.alice.deposits()?.into_iter().next().context("deposit")?;
        let txid = pay(&self.devnet, &record.address, SATS).await?;
        self.tap.hold(DEPOSIT);
        let held = self.alice.claim_deposit(&record.address, &Funding::Txid(txid)).await;
        ensure!(held.is_err(), "held back, and answered");
        let caught = self.tap.take(DEPOSIT)?;
        // Not mined yet, so that confirmation changes nothing between two answers.
        let first = self.call(DEPOSIT, &caught).await?;
        self.again(DEPOSIT, &caught, &first).await?;

        let request = spark::FinalizeDepositTreeCreationRequest::decode(caught.message.as_slice())?;
        let done = (Code::AlreadyExists, "DUPLICATE_OPERATION");
        let mut other = request.clone();
        flip(&mut other.refund_tx_signing_job.as_mut().context("job")?.user_signature)?;
        let message = other.encode_to_vec();
        self.changed("another signature share", DEPOSIT, &caught.authorization, message, done).await?;
        let mut other = request;
        std::mem::swap(&mut other.refund_tx_signing_job, &mut other.direct_from_cpfp_refund_tx_signing_job);
        let message = other.encode_to_vec();
        self.changed("other refunds", DEPOSIT, &caught.authorization, message, done).await?;

        self.devnet.faucet().mine(1).await?;
        let claimed = self.alice.claim_deposit(&record.address, &Funding::Scan).await?.context("claimed")?;
        people::spendable(&self.alice, &claimed.leaf_id).await?;
        Ok(claimed.leaf_id)
    }

    async fn logins_and_nonces(&self, leaf: &str) -> anyhow::Result<()> {
        let before = settled(&self.devnet).await?;
        let path = "/spark_authn.SparkAuthnService/verify_challenge";
        let answered = people::answered_challenge(&self.channel, &self.alice).await?.encode_to_vec();
        call(&self.channel, path, answered.clone(), None).await?;
        let refused = call(&self.channel, path, answered, None).await.err().context("a second session")?;
        ensure!(reason(&refused) == "CHALLENGE_USED", "{refused:?}");

        let session = format!("Bearer {}", people::login(&self.channel, &self.alice).await?);
        let request = spark::GetSigningCommitmentsRequest {
            node_ids: vec![leaf.to_owned()],
            count: 3,
            ..Default::default()
        }
        .encode_to_vec();
        let first = call(&self.channel, NONCES, request.clone(), Some(session.as_bytes())).await?;
        let second = call(&self.channel, NONCES, request, Some(session.as_bytes())).await?;
        let pairs = |answer: Bytes| -> anyhow::Result<BTreeSet<Vec<u8>>> {
            let answer = spark::GetSigningCommitmentsResponse::decode(answer)?;
            let sets = answer.signing_commitments.into_iter();
            Ok(sets.flat_map(|s| s.signing_nonce_commitments.into_values()).map(|c| c.hiding).collect())
        };
        let (first, second) = (pairs(first)?, pairs(second)?);
        ensure!(first.len() == 6 && first.is_disjoint(&second), "a commitment was handed out twice");
        rows::same("login and nonces", &before, &settled(&self.devnet).await?)
    }

    async fn a_package_key(&mut self) -> anyhow::Result<()> {
        let session = format!("Bearer {}", people::login(&self.channel, &self.alice).await?);
        let ask = |id: u8| Caught {
            path: KEY.to_owned(),
            authorization: session.clone().into_bytes(),
            message: ReserveKeyRequest { request_id: vec![id; 16] }.encode_to_vec(),
        };
        let first = self.call(KEY, &ask(1)).await?;
        self.again(KEY, &ask(1), &first).await?;
        let key = |answer: Bytes| -> anyhow::Result<Vec<u8>> {
            Ok(ReserveKeyResponse::decode(answer)?.key.context("key")?.public_key)
        };
        let other = self.call(KEY, &ask(2)).await?;
        ensure!(key(first)? != key(other)?, "one key for two requests");
        Ok(())
    }

    async fn a_setting(&mut self) -> anyhow::Result<()> {
        let session = format!("Bearer {}", people::login(&self.channel, &self.alice).await?);
        let request = spark::UpdateWalletSettingRequest { private_enabled: Some(true), ..Default::default() };
        let change = Caught {
            path: SETTING.to_owned(),
            authorization: session.into_bytes(),
            message: request.encode_to_vec(),
        };
        let first = self.call(SETTING, &change).await?;
        self.again(SETTING, &change, &first).await
    }

    async fn a_static_address(&mut self) -> anyhow::Result<()> {
        self.tap.hold(STATIC);
        ensure!(self.alice.static_address().await.is_err(), "held back, and answered");
        let caught = self.tap.take(STATIC)?;
        let first = self.call(STATIC, &caught).await?;
        self.again(STATIC, &caught, &first).await?;
        let mut other = spark::GenerateStaticDepositAddressRequest::decode(caught.message.as_slice())?;
        other.signing_public_key = self.bob.keys().identity().public_key().serialize().to_vec();
        let taken = (Code::InvalidArgument, "FIELD_INVALID");
        self.changed("another key", STATIC, &caught.authorization, other.encode_to_vec(), taken).await?;
        let answer = spark::GenerateStaticDepositAddressResponse::decode(first)?;
        let shown = self.alice.static_address().await?;
        ensure!(answer.deposit_address.context("address")?.address == shown.address, "another address");
        Ok(())
    }

    async fn a_static_refund(&mut self) -> anyhow::Result<()> {
        let address = self.alice.static_address().await?.address;
        pay(&self.devnet, &address, SATS).await?;
        self.devnet.faucet().mine(1).await?;
        eventually("the output is confirmed", || async {
            Ok(self.alice.static_outputs().await?.iter().any(|output| output.confirmed))
        })
        .await?;
        let outputs = self.alice.static_outputs().await?;
        let outpoint = outputs.first().context("output")?.spend.outpoint;
        let to = self.devnet.faucet().address().to_string();
        self.tap.hold(REFUND);
        ensure!(self.alice.refund_static(&outpoint, &to, Some(2)).await.is_err(), "held back, and answered");
        let caught = self.tap.take(REFUND)?;
        // The others may see the block a moment later.
        eventually("the refund is signed", || async { Ok(self.call(REFUND, &caught).await.is_ok()) }).await?;
        let first = self.call(REFUND, &caught).await?;
        self.again(REFUND, &caught, &first).await?;
        let mut other = spark::InitiateStaticDepositUtxoRefundRequest::decode(caught.message.as_slice())?;
        flip(&mut other.refund_tx_signing_job.as_mut().context("job")?.raw_tx)?;
        let rule = (Code::FailedPrecondition, "RULE_VIOLATED");
        self.changed("another transaction", REFUND, &caught.authorization, other.encode_to_vec(), rule)
            .await?;
        Ok(())
    }

    async fn a_send(&mut self) -> anyhow::Result<Caught> {
        self.tap.hold(SEND);
        let to = people::address(&self.bob)?;
        ensure!(self.alice.send(&to, SATS, None).await.is_err(), "held back, and answered");
        let caught = self.tap.take(SEND)?;
        let request = spark::StartTransferRequest::decode(caught.message.as_slice())?;
        let mut other = request.clone();
        other.receiver_identity_public_key.clone_from(&other.owner_identity_public_key);

        // While a signer hangs, the operation is undecided: other bytes are refused, the same bytes wait for it.
        self.devnet.process("signer-2")?.pause()?;
        let first = {
            let (channel, caught) = (self.channel.clone(), caught.clone());
            tokio::spawn(
                async move { call(&channel, SEND, caught.message, Some(&caught.authorization)).await },
            )
        };
        let undecided = self.undecided(&caught, other.encode_to_vec()).await;
        let second = {
            let (channel, caught) = (self.channel.clone(), caught.clone());
            tokio::spawn(
                async move { call(&channel, SEND, caught.message, Some(&caught.authorization)).await },
            )
        };
        self.devnet.process("signer-2")?.resume()?;
        undecided?;
        let (first, second) = (first.await??, second.await??);
        ensure!(first == second, "who attached got another answer");
        self.again(SEND, &caught, &first).await?;

        let done = (Code::AlreadyExists, "DUPLICATE_OPERATION");
        self.changed("another receiver", SEND, &caught.authorization, other.encode_to_vec(), done).await?;
        let mut other = request.clone();
        let job = other.transfer_package.as_mut().and_then(|p| p.leaves_to_send.first_mut());
        flip(&mut job.context("job")?.user_signature)?;
        self.changed("another share", SEND, &caught.authorization, other.encode_to_vec(), done).await?;
        let mut other = request.clone();
        flip(&mut other.transfer_package.as_mut().context("package")?.user_signature)?;
        self.changed("another signature", SEND, &caught.authorization, other.encode_to_vec(), done).await?;

        // Another coordinator knows it, too.
        let elsewhere = Self::channel(&self.devnet, 1)?;
        let session = format!("Bearer {}", people::login(&elsewhere, &self.alice).await?);
        let before = settled(&self.devnet).await?;
        let answer = call(&elsewhere, SEND, caught.message.clone(), Some(session.as_bytes())).await?;
        let transfer = spark::StartTransferResponse::decode(answer)?.transfer.context("transfer")?;
        ensure!(transfer.id == request.transfer_id, "another transfer");
        rows::same("repeat elsewhere", &before, &settled(&self.devnet).await?)?;
        for outcome in self.alice.resume_sends().await? {
            outcome.map_err(|(id, error)| anyhow::Error::from(error).context(id))?;
        }
        Ok(caught)
    }

    async fn undecided(&self, caught: &Caught, other: Vec<u8>) -> anyhow::Result<()> {
        eventually("the operation begins", || async {
            let mut database = rows::connect(&self.devnet, 0).await?;
            let sql = "SELECT state FROM operation WHERE kind = 2 AND state NOT IN ('DONE', 'ABORTED')";
            let state: Option<String> = sqlx::query_scalar(sql).fetch_optional(&mut database).await?;
            Ok(state.is_some())
        })
        .await?;
        let refused = call(&self.channel, SEND, other, Some(&caught.authorization)).await.err();
        let refused = refused.context("accepted while undecided")?;
        ensure!(
            (refused.code(), reason(&refused).as_str()) == (Code::Aborted, "OPERATION_DIFFERS"),
            "{refused:?}"
        );
        Ok(())
    }

    async fn a_claim(&mut self, sent: &Caught) -> anyhow::Result<()> {
        self.tap.hold(CLAIM);
        let held = self.bob.receive().await?;
        ensure!(held.len() == 1 && held.iter().all(Result::is_err), "held back: {held:?}");
        let caught = self.tap.take(CLAIM)?;
        let first = self.call(CLAIM, &caught).await?;
        self.again(CLAIM, &caught, &first).await?;

        let request = spark::ClaimTransferRequest::decode(caught.message.as_slice())?;
        let mut other = request.clone();
        other.owner_identity_public_key = self.alice.keys().identity().public_key().serialize().to_vec();
        let message = other.encode_to_vec();
        let not_owner = (Code::PermissionDenied, "NOT_OWNER");
        self.changed("claimed by the sender", CLAIM, &sent.authorization, message, not_owner).await?;
        // A second device of the receiver makes a package of its own, with other tweaks and shares: it learns what
        // the first one reached, and nothing else happens.
        let mut other = request;
        flip(&mut other.claim_package.as_mut().context("package")?.user_signature)?;
        let before = settled(&self.devnet).await?;
        let answer = call(&self.channel, CLAIM, other.encode_to_vec(), Some(&caught.authorization)).await?;
        ensure!(answer == first, "a second device sees another result");
        rows::same("claim of a second device", &before, &settled(&self.devnet).await?)?;
        self.bob.resume_claims().await?;
        Ok(())
    }

    async fn a_send_to_several(&mut self) -> anyhow::Result<()> {
        for sats in [11_000, 12_000] {
            people::deposit(&self.devnet, &self.alice, sats).await?;
        }
        let to = [(people::address(&self.bob)?, 11_000), (people::address(&self.alice)?, 12_000)];
        self.tap.hold(SEND_MANY);
        ensure!(self.alice.send_many(&to, None).await.is_err(), "held back, and answered");
        let caught = self.tap.take(SEND_MANY)?;
        let first = self.call(SEND_MANY, &caught).await?;
        self.again(SEND_MANY, &caught, &first).await?;

        let done = (Code::AlreadyExists, "DUPLICATE_OPERATION");
        let request = spark::StartTransferV3Request::decode(caught.message.as_slice())?;
        let package = request.sender_packages.first().context("package")?;
        let mut other = request.clone();
        let receivers =
            &mut other.sender_packages.first_mut().context("package")?.receiver_identity_public_keys;
        for receiver in receivers.values_mut() {
            receiver.clone_from(&package.owner_identity_public_key);
        }
        let message = other.encode_to_vec();
        self.changed("other receivers", SEND_MANY, &caught.authorization, message, done).await?;
        // The same id by the other method is another request for the same transfer.
        let one = spark::StartTransferRequest {
            transfer_id: request.transfer_id.clone(),
            owner_identity_public_key: package.owner_identity_public_key.clone(),
            receiver_identity_public_key: package.owner_identity_public_key.clone(),
            transfer_package: package.transfer_package.clone(),
            ..Default::default()
        };
        self.changed("one receiver", SEND, &caught.authorization, one.encode_to_vec(), done).await?;
        for outcome in self.alice.resume_sends().await? {
            outcome.map_err(|(id, error)| anyhow::Error::from(error).context(id))?;
        }
        for wallet in [&self.alice, &self.bob] {
            people::claim(wallet, &request.transfer_id).await?;
        }
        Ok(())
    }

    async fn an_htlc(&mut self) -> anyhow::Result<()> {
        people::deposit(&self.devnet, &self.alice, 13_000).await?;
        let (to, id) = (people::address(&self.bob)?, uuid::Uuid::now_v7());
        self.tap.hold(HTLC);
        let held = self.alice.send_for_preimage(&to, 13_000, None, 7_200, Some(id)).await;
        ensure!(held.is_err(), "held back, and answered");
        let caught = self.tap.take(HTLC)?;
        let first = self.call(HTLC, &caught).await?;
        self.again(HTLC, &caught, &first).await?;
        let done = (Code::AlreadyExists, "DUPLICATE_OPERATION");
        let mut other = spark::InitiatePreimageSwapRequest::decode(caught.message.as_slice())?;
        flip(&mut other.payment_hash)?;
        self.changed("another hash", HTLC, &caught.authorization, other.encode_to_vec(), done).await?;
        self.alice.resume_sends().await?;

        let preimage = self.alice.preimage(&id)?;
        self.tap.hold(PREIMAGE);
        // One operator does not hear it: the others do, and it is settled all the same.
        let told = self.bob.claim_htlc(&preimage, 13_000).await;
        tracing::debug!(?told, "told to the others");
        let caught = self.tap.take(PREIMAGE)?;
        let mut other = spark::ProvidePreimageRequest::decode(caught.message.as_slice())?;
        flip(&mut other.preimage)?;
        let invalid = (Code::InvalidArgument, "FIELD_INVALID");
        self.changed("another preimage", PREIMAGE, &caught.authorization, other.encode_to_vec(), invalid)
            .await?;
        let first = self.call(PREIMAGE, &caught).await?;
        self.again(PREIMAGE, &caught, &first).await?;
        self.bob.claim_htlc(&preimage, 13_000).await?;
        Ok(())
    }

    async fn an_exit(&mut self) -> anyhow::Result<()> {
        people::deposit(&self.devnet, &self.alice, 14_000).await?;
        let offer = crate::coop_exits::offer(&self.devnet, &self.bob, 14_000, 1).await?;
        self.tap.hold(EXIT);
        ensure!(self.alice.withdraw(&offer, None).await.is_err(), "held back, and answered");
        let caught = self.tap.take(EXIT)?;
        let first = self.call(EXIT, &caught).await?;
        self.again(EXIT, &caught, &first).await?;
        let done = (Code::AlreadyExists, "DUPLICATE_OPERATION");
        let mut other = spark::CooperativeExitRequest::decode(caught.message.as_slice())?;
        other.exit_id = uuid::Uuid::now_v7().to_string();
        self.changed("another exit id", EXIT, &caught.authorization, other.encode_to_vec(), done).await?;
        self.alice.resume_sends().await?;
        Ok(())
    }

    /// Down the ladder of timelocks, back and forth, until the leaf has to be renewed.
    async fn a_renewal(&mut self, leaf: &str) -> anyhow::Result<()> {
        let mut owner = &self.bob;
        let mut next = &self.alice;
        loop {
            let views = owner.sync().await?;
            let view = views.iter().find(|v| v.leaf_id == leaf).context("leaf")?;
            if view.refund_timelock.context("timelock")? <= RENEWABLE {
                break;
            }
            people::transfer(owner, next, SATS).await?;
            std::mem::swap(&mut owner, &mut next);
        }
        self.tap.hold(RENEW);
        ensure!(owner.renew(leaf).await.is_err(), "held back, and answered");
        let caught = self.tap.take(RENEW)?;
        let first = self.call(RENEW, &caught).await?;
        self.again(RENEW, &caught, &first).await?;

        let mut other = spark::RenewLeafRequest::decode(caught.message.as_slice())?;
        let job = match other.signing_jobs.as_mut().context("jobs")? {
            SigningJobs::RenewRefundTimelockSigningJob(jobs) => &mut jobs.refund_tx_signing_job,
            SigningJobs::RenewNodeTimelockSigningJob(jobs) => &mut jobs.refund_tx_signing_job,
            SigningJobs::RenewNodeZeroTimelockSigningJob(jobs) => &mut jobs.refund_tx_signing_job,
        };
        flip(&mut job.as_mut().context("job")?.user_signature)?;
        let rule = (Code::FailedPrecondition, "RULE_VIOLATED");
        self.changed("another share", RENEW, &caught.authorization, other.encode_to_vec(), rule).await
    }

    /// Alarms and used nonces live in memory.
    async fn signers_forget_their_alarms(&mut self) -> anyhow::Result<()> {
        for index in 0..self.devnet.members().len() {
            self.devnet.process(&format!("signer-{index}"))?.restart()?;
        }
        eventually("all signers are unlocked again", || async {
            for member in self.devnet.members() {
                http::get(&format!("{}/readyz", member.signer_http_url())).await?;
            }
            Ok(true)
        })
        .await?;
        ready(&mut self.devnet).await
    }
}

fn flip(bytes: &mut [u8]) -> anyhow::Result<()> {
    *bytes.last_mut().context("nothing to change")? ^= 1;
    Ok(())
}
