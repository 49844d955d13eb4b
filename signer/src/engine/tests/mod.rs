//! Three signers in one process, over tokens and stores whose states can be copied and put back, and a wallet
//! that builds real packages. Coordination is the test's.

mod admin;
mod attacks;
mod coop_exit;
mod deposits;
mod final_signatures;
mod flows;
mod htlc;
mod invoices;
mod log_pages;
mod logs;
mod one_time;
mod packages;
mod prepared;
mod proofs;
mod quorum;
mod receivers;
mod refreshes;
mod renewals;
mod repairs;
mod split_views;
mod static_deposits;
mod tweaks;
mod witness;

use bitcoin::{
    Amount, OutPoint, ScriptBuf, Transaction, TxIn, TxOut,
    absolute::LockTime,
    consensus::encode,
    secp256k1::{Message, PublicKey, SECP256K1, SecretKey},
    transaction::Version,
};
use prost::Message as _;
use quorum::{Leaf, Quorum};
use rand::rngs::OsRng;
use spark_proto::{common, peer::v1 as peer, spark};
use spark_rules::{
    frost::SigningPackage,
    ids::{LeafId, OperationId},
    operation::{Operation, identify, parse_commitments},
    package,
    tx::{Plan, Planned, Purpose, Source, Spend, p2tr_script, sighash},
};

use super::ledger::View;
use crate::{
    ecies, feldman,
    frost::{NoncePair, sign_user},
    secret::SecretScalar,
};

/// A wallet: an identity and one key per leaf.
struct Wallet {
    identity: SecretScalar,
}

impl Wallet {
    fn new() -> Self {
        Self { identity: SecretScalar::random(&mut OsRng) }
    }

    fn id(&self) -> PublicKey {
        self.identity.public_key()
    }

    fn sign(&self, digest: [u8; 32]) -> Vec<u8> {
        let key = SecretKey::from_slice(self.identity.to_bytes().as_slice()).unwrap();
        SECP256K1.sign_ecdsa(&Message::from_digest(digest), &key).serialize_der().to_vec()
    }
}

/// A transaction that pays a script, as a chain would hold it.
fn funding(script: ScriptBuf, sats: u64) -> Transaction {
    let mut txid = [0u8; 32];
    rand::RngCore::fill_bytes(&mut OsRng, &mut txid);
    let input = TxIn {
        previous_output: OutPoint { txid: bitcoin::hashes::Hash::from_byte_array(txid), vout: 0 },
        ..TxIn::default()
    };
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![input],
        output: vec![TxOut { value: Amount::from_sat(sats), script_pubkey: script }],
    }
}

/// Signs one planned transaction as the user.
fn user_job(
    quorum: &mut Quorum,
    leaf: &str,
    verifying_key: PublicKey,
    key: &SecretScalar,
    planned: &Planned,
    identity: PublicKey,
) -> spark::UserSignedTxSigningJob {
    let commitments = quorum.commitments(identity, 1, &[]).remove(0);
    sign_job(quorum, leaf, verifying_key, key, planned, commitments)
}

/// The same under given commitments of the operators.
fn sign_job(
    quorum: &Quorum,
    leaf: &str,
    verifying_key: PublicKey,
    key: &SecretScalar,
    planned: &Planned,
    commitments: spark::SigningCommitments,
) -> spark::UserSignedTxSigningJob {
    let message = sighash(&planned.tx, &planned.template.prevouts(), 0).unwrap();
    let nonce = NoncePair::generate(&mut OsRng, Some(key));
    let commitment = *nonce.commitment();
    let package = SigningPackage::new(
        verifying_key,
        message,
        parse_commitments(Some(&commitments)).unwrap(),
        Some(commitment),
        None,
        quorum.threshold(),
        quorum.size(),
    )
    .unwrap();
    let share = sign_user(&package.session().unwrap(), nonce, key).unwrap();
    spark::UserSignedTxSigningJob {
        leaf_id: leaf.to_owned(),
        signing_public_key: key.public_key().serialize().to_vec(),
        raw_tx: encode::serialize(&planned.tx),
        signing_nonce_commitment: Some(common::SigningCommitment {
            hiding: commitment.hiding.serialize().to_vec(),
            binding: commitment.binding.serialize().to_vec(),
        }),
        user_signature: share.to_bytes().to_vec(),
        signing_commitments: Some(commitments),
        additional_inputs: Vec::new(),
    }
}

/// A fresh leaf id of `wallet`, bound: the leaf to come and the key of its address.
fn bound(quorum: &mut Quorum, wallet: &Wallet) -> (Leaf, PublicKey) {
    let key = SecretScalar::random(&mut OsRng);
    let id = LeafId::derive("test", &[&rand::random::<[u8; 16]>()]);
    let verifying_key = quorum.bind(id, key.public_key(), wallet.id());
    (Leaf { id, key }, verifying_key)
}

/// The claim of one output of a bound address.
fn deposit_request(
    quorum: &mut Quorum,
    wallet: &Wallet,
    key: &SecretScalar,
    verifying_key: PublicKey,
    sats: u64,
) -> spark::FinalizeDepositTreeCreationRequest {
    let tx = funding(p2tr_script(&verifying_key), sats);
    let plan = Plan::deposit(Source::Build, vec![Spend::of(&tx, 0).unwrap()], &key.public_key()).unwrap();
    let mut job = |purpose| {
        let planned = plan.get(purpose).unwrap();
        Some(user_job(quorum, "", verifying_key, key, planned, wallet.id()))
    };
    spark::FinalizeDepositTreeCreationRequest {
        identity_public_key: wallet.id().serialize().to_vec(),
        on_chain_utxo: Some(spark::Utxo {
            raw_tx: encode::serialize(&tx),
            vout: 0,
            network: 2,
            txid: Vec::new(),
        }),
        root_tx_signing_job: job(Purpose::Root),
        refund_tx_signing_job: job(Purpose::Refund),
        direct_from_cpfp_refund_tx_signing_job: job(Purpose::DirectFromCpfpRefund),
        additional_on_chain_utxos: Vec::new(),
    }
}

/// Deposits to a fresh leaf of `wallet`, confirmed.
fn deposit(quorum: &mut Quorum, wallet: &Wallet, sats: u64) -> Leaf {
    let (leaf, verifying_key) = bound(quorum, wallet);
    let request = deposit_request(quorum, wallet, &leaf.key, verifying_key, sats);
    quorum.run(peer::operation::Request::Deposit(request)).unwrap();
    leaf
}

/// A send package and the new key that only sender and receiver know.
fn send_request(
    quorum: &mut Quorum,
    wallet: &Wallet,
    leaf: &Leaf,
    receiver: PublicKey,
) -> (spark::StartTransferRequest, SecretScalar) {
    let transfer = LeafId::from_bytes(rand::random()).to_string();
    send_request_as(quorum, wallet, leaf, receiver, &transfer, |_, _| {})
}

/// The same under a given transfer id, with a hand in what each operator gets sealed.
fn send_request_as(
    quorum: &mut Quorum,
    wallet: &Wallet,
    leaf: &Leaf,
    receiver: PublicKey,
    transfer: &str,
    tamper: impl Fn(usize, &mut spark::SendLeafKeyTweak),
) -> (spark::StartTransferRequest, SecretScalar) {
    let plan = quorum.leaf(0, &leaf.id).build_send(&receiver).unwrap();
    package_request(quorum, wallet, leaf, receiver, transfer, &plan, tamper)
}

/// A send package whose transactions are those of `plan`.
fn package_request(
    quorum: &mut Quorum,
    wallet: &Wallet,
    leaf: &Leaf,
    receiver: PublicKey,
    transfer: &str,
    plan: &Plan,
    tamper: impl Fn(usize, &mut spark::SendLeafKeyTweak),
) -> (spark::StartTransferRequest, SecretScalar) {
    let record = quorum.leaf(0, &leaf.id);
    let next = SecretScalar::random(&mut OsRng);
    let cipher = ecies::seal(&receiver, next.to_bytes().as_slice(), &mut OsRng).unwrap();
    let signature = wallet.sign(package::secret_cipher_digest(&leaf.id.to_string(), transfer, &cipher));
    let split =
        feldman::split(&leaf.key.sub(&next).unwrap(), quorum.threshold(), quorum.size(), &mut OsRng).unwrap();
    let packages = quorum.seal(&split, |operator, share| {
        let mut tweak = spark::SendLeafKeyTweak {
            leaf_id: leaf.id.to_string(),
            secret_share_tweak: Some(share.0),
            pubkey_shares_tweak: share.1,
            secret_cipher: cipher.clone(),
            signature: signature.clone(),
            ..spark::SendLeafKeyTweak::default()
        };
        tamper(operator, &mut tweak);
        spark::SendLeafKeyTweaks { leaves_to_send: vec![tweak] }.encode_to_vec()
    });
    let user_signature =
        wallet.sign(package::transfer_payload(&package::parse_transfer_id(transfer).unwrap(), &packages));
    let mut jobs = |purposes: [Purpose; 3]| {
        purposes
            .into_iter()
            .find_map(|purpose| plan.get(purpose))
            .map(|p| user_job(quorum, &leaf.id.to_string(), record.verifying_key, &leaf.key, p, wallet.id()))
            .into_iter()
            .collect::<Vec<_>>()
    };
    let transfer_package = spark::TransferPackage {
        leaves_to_send: jobs([Purpose::Refund, Purpose::HtlcRefund, Purpose::ConnectorRefund]),
        direct_leaves_to_send: jobs([
            Purpose::DirectRefund,
            Purpose::HtlcDirectRefund,
            Purpose::ConnectorDirectRefund,
        ]),
        direct_from_cpfp_leaves_to_send: jobs([
            Purpose::DirectFromCpfpRefund,
            Purpose::HtlcDirectFromCpfpRefund,
            Purpose::ConnectorDirectFromCpfpRefund,
        ]),
        key_tweak_package: packages,
        user_signature,
        hash_variant: spark::HashVariant::V2.into(),
    };
    let request = spark::StartTransferRequest {
        transfer_id: transfer.to_owned(),
        owner_identity_public_key: wallet.id().serialize().to_vec(),
        receiver_identity_public_key: receiver.serialize().to_vec(),
        transfer_package: Some(transfer_package),
        ..spark::StartTransferRequest::default()
    };
    (request, next)
}

/// A claim package under a fresh key.
fn claim_request(
    quorum: &mut Quorum,
    wallet: &Wallet,
    leaf: &LeafId,
    transfer: &str,
    received: &SecretScalar,
) -> (spark::ClaimTransferRequest, SecretScalar) {
    let record = quorum.leaf(0, leaf);
    let key = SecretScalar::random(&mut OsRng);
    let plan = record.claim(Source::Build, &key.public_key()).unwrap();
    let split =
        feldman::split(&received.sub(&key).unwrap(), quorum.threshold(), quorum.size(), &mut OsRng).unwrap();
    let packages = quorum.seal(&split, |_, share| {
        spark::ClaimLeafKeyTweaks {
            leaves_to_receive: vec![spark::ClaimLeafKeyTweak {
                leaf_id: leaf.to_string(),
                secret_share_tweak: Some(share.0),
                pubkey_shares_tweak: share.1,
            }],
        }
        .encode_to_vec()
    });
    let user_signature =
        wallet.sign(package::claim_payload(&package::parse_transfer_id(transfer).unwrap(), &packages));
    let mut jobs = |purpose| {
        plan.get(purpose)
            .map(|p| user_job(quorum, &leaf.to_string(), record.verifying_key, &key, p, wallet.id()))
            .into_iter()
            .collect::<Vec<_>>()
    };
    let claim_package = spark::ClaimPackage {
        leaves_to_claim: jobs(Purpose::Refund),
        direct_leaves_to_claim: jobs(Purpose::DirectRefund),
        direct_from_cpfp_leaves_to_claim: jobs(Purpose::DirectFromCpfpRefund),
        key_tweak_package: packages,
        user_signature,
        hash_variant: spark::HashVariant::V2.into(),
    };
    let request = spark::ClaimTransferRequest {
        transfer_id: transfer.to_owned(),
        owner_identity_public_key: wallet.id().serialize().to_vec(),
        claim_package: Some(claim_package),
    };
    (request, key)
}

/// Wraps a request as the first attempt of its operation.
fn operation(quorum: &mut Quorum, request: peer::operation::Request) -> peer::Operation {
    let mut operation = peer::Operation {
        operation_id: Vec::new(),
        attempt: 0,
        federation_epoch: quorum.federation.epoch(),
        coordinator: 0,
        request: Some(request),
    };
    let id: OperationId = quorum.read(0, |txn| View::ask(txn, |view| identify(&operation, view)).unwrap().0);
    operation.operation_id = id.as_bytes().to_vec();
    operation
}

/// Derives an operation as signer 0 sees it.
fn derive(quorum: &mut Quorum, request: &peer::Operation) -> Operation {
    let federation = quorum.federation.clone();
    quorum.read(0, |txn| View::ask(txn, |view| Operation::derive(request, view, &federation)).unwrap())
}
