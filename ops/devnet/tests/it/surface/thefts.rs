//! What a thief with a session of his own gets when he names what belongs to somebody else: method by method.

use bitcoin::hashes::Hash as _;
use prost::Message as _;
use spark_proto::{log::v1::WatchLeavesRequest, signer::v1 as signer, spark, spark_token};
use spark_rules::{
    address::Network,
    tx::{Spend, StaticRefund},
};
use tonic::Code;
use uuid::Uuid;

/// Methods that answer everybody with a session the same, by nature.
pub(super) const FOR_ALL: &[(&str, &str)] = &[
    ("GetCheckpoint", "the log's head is public"),
    ("ReserveKey", "a fresh one-time key, for whoever asks; nobody is named"),
    ("ProveConsistency", "the log's hashes are public"),
    ("update_wallet_setting", "nobody is named: a session changes its own setting"),
    ("query_wallet_setting", "nobody is named: a session sees its own setting"),
    ("get_signing_operator_list", "who the operators are is public"),
];

/// What the thief knows of a victim: everything that is not secret.
#[derive(Debug)]
pub(super) struct Victim {
    pub(super) identity: Vec<u8>,
    pub(super) thief: Vec<u8>,
    /// A leaf that is the victim's now.
    pub(super) leaf: String,
    pub(super) deposit: spark::FinalizeDepositTreeCreationRequest,
    pub(super) send: spark::StartTransferRequest,
    /// That the victim was paid by.
    pub(super) invoice: String,
    /// By which the victim received something.
    pub(super) claim: spark::ClaimTransferRequest,
    /// An output of the victim's static address.
    pub(super) static_output: Spend,
    /// The victim's key in that address.
    pub(super) static_key: Vec<u8>,
}

/// What the thief gets.
#[derive(Debug)]
pub(super) enum Gets {
    /// A refusal with this code.
    Refusal(Code),
    /// A refusal for this reason, where others come with the same code.
    Because(&'static str),
    /// An answer that holds nothing.
    Nothing(fn(&[u8]) -> anyhow::Result<bool>),
}

type Try = (Vec<u8>, Gets);

/// Methods with what a thief may try on them.
pub(super) fn thefts(v: &Victim) -> Vec<(&'static str, Vec<Try>)> {
    let no = |message: Vec<u8>| (message, Gets::Refusal(Code::PermissionDenied));
    let unknown = |message: Vec<u8>| (message, Gets::Refusal(Code::NotFound));
    vec![
        (
            "GetReceipts",
            vec![no(
                signer::GetReceiptsRequest { leaf_id: v.leaf.clone(), ..Default::default() }.encode_to_vec()
            )],
        ),
        ("WatchLeaves", vec![no(WatchLeavesRequest { leaf_ids: vec![v.leaf.clone()] }.encode_to_vec())]),
        ("generate_deposit_address", vec![no(address(v))]),
        ("finalize_deposit_tree_creation", vec![no(v.deposit.encode_to_vec()), unknown(deposit_as_thief(v))]),
        (
            "start_transfer_v2",
            vec![no(v.send.encode_to_vec()), (send_as_thief(v), Gets::Refusal(Code::FailedPrecondition))],
        ),
        (
            "start_transfer_v3",
            vec![no(send_many(v)), (send_many_as_thief(v), Gets::Refusal(Code::FailedPrecondition))],
        ),
        (
            "initiate_preimage_swap_v3",
            vec![
                no(htlc(v.send.clone(), v)),
                (htlc(as_thief(v), v), Gets::Refusal(Code::FailedPrecondition)),
            ],
        ),
        (
            "cooperative_exit_v2",
            vec![
                no(exit(v.send.clone(), v)),
                (exit(as_thief(v), v), Gets::Refusal(Code::FailedPrecondition)),
            ],
        ),
        ("provide_preimage", vec![no(preimage(&v.identity)), unknown(preimage(&v.thief))]),
        ("query_htlc", vec![no(htlcs(v))]),
        ("query_spark_invoices", vec![invoices(v)]),
        ("claim_transfer", vec![no(v.claim.encode_to_vec()), unknown(claim_as_thief(v))]),
        ("get_signing_commitments", vec![unknown(commitments(v))]),
        ("renew_leaf", vec![unknown(renewal(v))]),
        ("query_pending_transfers", transfers(v)),
        ("query_all_transfers", transfers(v)),
        ("query_nodes", nodes(v)),
        ("query_balance", vec![no(balance(v))]),
        ("query_unused_deposit_addresses", vec![no(unused(v))]),
        ("generate_static_deposit_address", vec![no(static_address(v))]),
        // Of nobody but the thief, who has none.
        ("rotate_static_deposit_address", vec![unknown(rotation(v))]),
        ("query_static_deposit_addresses", vec![no(static_addresses(v))]),
        ("get_utxos_for_address", vec![unknown(utxos_of_address(v))]),
        ("get_utxos_for_identity", vec![no(utxos_of_identity(v))]),
        ("initiate_static_deposit_utxo_refund", vec![(static_refund(v), Gets::Because("DEPOSIT_UNKNOWN"))]),
        ("subscribe_to_events", vec![no(events(v))]),
        ("query_token_outputs", vec![no(tokens(v))]),
        ("query_token_transactions", vec![no(token_transactions(v))]),
    ]
}

fn address(v: &Victim) -> Vec<u8> {
    spark::GenerateDepositAddressRequest {
        signing_public_key: v.identity.clone(),
        identity_public_key: v.identity.clone(),
        network: spark::Network::Regtest.into(),
        leaf_id: Some(Uuid::now_v7().to_string()),
        is_static: Some(false),
        hash_variant: spark::HashVariant::V2.into(),
    }
    .encode_to_vec()
}

fn deposit_as_thief(v: &Victim) -> Vec<u8> {
    let mut request = v.deposit.clone();
    request.identity_public_key.clone_from(&v.thief);
    request.encode_to_vec()
}

/// The victim's leaves under a fresh id, to the thief, in the thief's name.
fn send_as_thief(v: &Victim) -> Vec<u8> {
    as_thief(v).encode_to_vec()
}

fn as_thief(v: &Victim) -> spark::StartTransferRequest {
    let mut request = v.send.clone();
    request.transfer_id = Uuid::now_v7().to_string();
    request.owner_identity_public_key.clone_from(&v.thief);
    request.receiver_identity_public_key.clone_from(&v.thief);
    request
}

/// The victim's leaves to the thief, for a preimage that the thief knows.
fn htlc(mut transfer: spark::StartTransferRequest, v: &Victim) -> Vec<u8> {
    transfer.receiver_identity_public_key.clone_from(&v.thief);
    let soon = std::time::SystemTime::now() + std::time::Duration::from_secs(3_600);
    transfer.expiry_time = Some(soon.into());
    spark::InitiatePreimageSwapRequest {
        payment_hash: sha256(PREIMAGE).to_vec(),
        receiver_identity_public_key: v.thief.clone(),
        transfer_request: Some(transfer),
        ..Default::default()
    }
    .encode_to_vec()
}

/// The victim's leaves to the thief, for a payment on chain that the thief names.
fn exit(mut transfer: spark::StartTransferRequest, v: &Victim) -> Vec<u8> {
    transfer.receiver_identity_public_key.clone_from(&v.thief);
    let soon = std::time::SystemTime::now() + std::time::Duration::from_secs(3_600);
    transfer.expiry_time = Some(soon.into());
    let output = bitcoin::TxOut { value: bitcoin::Amount::from_sat(354), script_pubkey: Default::default() };
    let connectors = bitcoin::Transaction {
        version: bitcoin::transaction::Version(3),
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: vec![bitcoin::TxIn {
            previous_output: bitcoin::OutPoint { txid: bitcoin::Txid::from_byte_array([7; 32]), vout: 1 },
            ..Default::default()
        }],
        output: vec![output; 2],
    };
    spark::CooperativeExitRequest {
        transfer: Some(transfer),
        exit_id: Uuid::now_v7().to_string(),
        exit_txid: vec![7; 32],
        connector_tx: bitcoin::consensus::encode::serialize(&connectors),
    }
    .encode_to_vec()
}

const PREIMAGE: [u8; 32] = [7; 32];

fn sha256(preimage: [u8; 32]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(preimage).into()
}

fn preimage(identity: &[u8]) -> Vec<u8> {
    spark::ProvidePreimageRequest {
        payment_hash: sha256(PREIMAGE).to_vec(),
        preimage: PREIMAGE.to_vec(),
        identity_public_key: identity.to_vec(),
    }
    .encode_to_vec()
}

fn htlcs(v: &Victim) -> Vec<u8> {
    spark::QueryHtlcRequest { identity_public_key: v.identity.clone(), ..Default::default() }.encode_to_vec()
}

/// The victim's package with every leaf to the thief.
fn many(v: &Victim, owner: &[u8]) -> spark::StartTransferV3Request {
    let leaves = v.send.transfer_package.iter().flat_map(|p| &p.leaves_to_send);
    spark::StartTransferV3Request {
        transfer_id: Uuid::now_v7().to_string(),
        sender_packages: vec![spark::SenderTransferPackage {
            owner_identity_public_key: owner.to_vec(),
            receiver_identity_public_keys: leaves.map(|j| (j.leaf_id.clone(), v.thief.clone())).collect(),
            transfer_package: v.send.transfer_package.clone(),
        }],
        expiry_time: None,
    }
}

fn send_many(v: &Victim) -> Vec<u8> {
    many(v, &v.identity).encode_to_vec()
}

fn send_many_as_thief(v: &Victim) -> Vec<u8> {
    many(v, &v.thief).encode_to_vec()
}

fn invoices(v: &Victim) -> Try {
    let request = spark::QuerySparkInvoicesRequest { invoice: vec![v.invoice.clone()], ..Default::default() };
    let unknown = |answer: &[u8]| {
        let found = spark::QuerySparkInvoicesResponse::decode(answer)?.invoice_statuses;
        Ok(found.iter().all(|s| s.status() == spark::InvoiceStatus::NotFound && s.transfer_type.is_none()))
    };
    (request.encode_to_vec(), Gets::Nothing(unknown))
}

fn claim_as_thief(v: &Victim) -> Vec<u8> {
    let mut request = v.claim.clone();
    request.owner_identity_public_key.clone_from(&v.thief);
    request.encode_to_vec()
}

fn commitments(v: &Victim) -> Vec<u8> {
    spark::GetSigningCommitmentsRequest { node_ids: vec![v.leaf.clone()], count: 1, ..Default::default() }
        .encode_to_vec()
}

fn renewal(v: &Victim) -> Vec<u8> {
    let job = v.send.transfer_package.as_ref().and_then(|p| p.leaves_to_send.first()).cloned();
    let jobs = spark::RenewRefundTimelockSigningJob {
        node_tx_signing_job: job.clone(),
        refund_tx_signing_job: job.clone(),
        direct_node_tx_signing_job: job.clone(),
        direct_refund_tx_signing_job: job.clone(),
        direct_from_cpfp_refund_tx_signing_job: job,
    };
    let jobs = spark::renew_leaf_request::SigningJobs::RenewRefundTimelockSigningJob(jobs);
    spark::RenewLeafRequest { leaf_id: v.leaf.clone(), signing_jobs: Some(jobs) }.encode_to_vec()
}

fn transfers(v: &Victim) -> Vec<Try> {
    use spark::transfer_filter::Participant;
    let named = |participant| {
        let request = spark::TransferFilter { participant: Some(participant), ..Default::default() };
        (request.encode_to_vec(), Gets::Refusal(Code::PermissionDenied))
    };
    let ids = vec![v.send.transfer_id.clone(), v.claim.transfer_id.clone()];
    let by_id = spark::TransferFilter { transfer_ids: ids, ..Default::default() }.encode_to_vec();
    let empty = |answer: &[u8]| Ok(spark::QueryTransfersResponse::decode(answer)?.transfers.is_empty());
    vec![
        named(Participant::SenderIdentityPublicKey(v.identity.clone())),
        named(Participant::ReceiverIdentityPublicKey(v.identity.clone())),
        named(Participant::SenderOrReceiverIdentityPublicKey(v.identity.clone())),
        (by_id, Gets::Nothing(empty)),
    ]
}

fn nodes(v: &Victim) -> Vec<Try> {
    use spark::query_nodes_request::Source;
    let request =
        |source| spark::QueryNodesRequest { source: Some(source), ..Default::default() }.encode_to_vec();
    let ids = spark::TreeNodeIds { node_ids: vec![v.leaf.clone()] };
    let empty = |answer: &[u8]| Ok(spark::QueryNodesResponse::decode(answer)?.nodes.is_empty());
    vec![
        (request(Source::OwnerIdentityPubkey(v.identity.clone())), Gets::Refusal(Code::PermissionDenied)),
        (request(Source::NodeIds(ids)), Gets::Nothing(empty)),
    ]
}

fn balance(v: &Victim) -> Vec<u8> {
    spark::QueryBalanceRequest { identity_public_key: v.identity.clone(), ..Default::default() }
        .encode_to_vec()
}

fn unused(v: &Victim) -> Vec<u8> {
    spark::QueryUnusedDepositAddressesRequest {
        identity_public_key: v.identity.clone(),
        ..Default::default()
    }
    .encode_to_vec()
}

fn static_address(v: &Victim) -> Vec<u8> {
    spark::GenerateStaticDepositAddressRequest {
        signing_public_key: v.identity.clone(),
        identity_public_key: v.identity.clone(),
        network: spark::Network::Regtest.into(),
        hash_variant: spark::HashVariant::V2.into(),
    }
    .encode_to_vec()
}

fn rotation(v: &Victim) -> Vec<u8> {
    spark::RotateStaticDepositAddressRequest {
        signing_public_key: v.identity.clone(),
        network: spark::Network::Regtest.into(),
        hash_variant: spark::HashVariant::V2.into(),
    }
    .encode_to_vec()
}

fn static_addresses(v: &Victim) -> Vec<u8> {
    spark::QueryStaticDepositAddressesRequest {
        identity_public_key: v.identity.clone(),
        ..Default::default()
    }
    .encode_to_vec()
}

/// The output that the victim deposited.
fn deposited(v: &Victim) -> Option<(bitcoin::Txid, bitcoin::TxOut, u32)> {
    let utxo = v.deposit.on_chain_utxo.as_ref()?;
    let tx: bitcoin::Transaction = bitcoin::consensus::deserialize(&utxo.raw_tx).ok()?;
    let output = tx.output.get(usize::try_from(utxo.vout).ok()?)?.clone();
    Some((tx.compute_txid(), output, utxo.vout))
}

fn utxos_of_address(v: &Victim) -> Vec<u8> {
    let script = deposited(v).map(|(_, output, _)| output.script_pubkey);
    let address = script.and_then(|s| bitcoin::Address::from_script(&s, bitcoin::Network::Regtest).ok());
    let address = address.map(|address| address.to_string()).unwrap_or_default();
    spark::GetUtxosForAddressRequest { address, ..Default::default() }.encode_to_vec()
}

fn utxos_of_identity(v: &Victim) -> Vec<u8> {
    spark::GetUtxosForIdentityRequest {
        identity_public_key: v.identity.clone(),
        network: spark::Network::Regtest.into(),
        ..Default::default()
    }
    .encode_to_vec()
}

/// To the thief's own place, in every other respect as the victim would ask for it: nothing but whose it is stands
/// against it.
fn static_refund(v: &Victim) -> Vec<u8> {
    let outpoint = v.static_output.outpoint;
    let mut txid = AsRef::<[u8]>::as_ref(&outpoint.txid).to_vec();
    txid.reverse();
    let (to, value) = (v.static_output.txout.script_pubkey.clone(), v.static_output.txout.value / 2);
    let refund = StaticRefund::new(v.static_output.clone(), to, value, Network::Regtest);
    let raw_tx = refund.map(|refund| bitcoin::consensus::serialize(&refund.build())).unwrap_or_default();
    let pair = spark_proto::common::SigningCommitment { hiding: v.thief.clone(), binding: v.thief.clone() };
    spark::InitiateStaticDepositUtxoRefundRequest {
        on_chain_utxo: Some(spark::Utxo {
            vout: outpoint.vout,
            network: spark::Network::Regtest.into(),
            txid,
            raw_tx: Vec::new(),
        }),
        refund_tx_signing_job: Some(spark::SigningJob {
            signing_public_key: v.static_key.clone(),
            raw_tx,
            signing_nonce_commitment: Some(pair),
        }),
        user_signature: vec![0; 70],
        ..Default::default()
    }
    .encode_to_vec()
}

fn events(v: &Victim) -> Vec<u8> {
    spark::SubscribeToEventsRequest { identity_public_key: v.identity.clone() }.encode_to_vec()
}

fn token_transactions(v: &Victim) -> Vec<u8> {
    spark_token::QueryTokenTransactionsRequest {
        owner_public_keys: vec![v.identity.clone()],
        ..Default::default()
    }
    .encode_to_vec()
}

fn tokens(v: &Victim) -> Vec<u8> {
    spark_token::QueryTokenOutputsRequest {
        owner_public_keys: vec![v.identity.clone()],
        ..Default::default()
    }
    .encode_to_vec()
}
