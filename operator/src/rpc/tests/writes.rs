use std::collections::BTreeMap;

use spark_proto::{
    common,
    spark::{self, renew_leaf_request::SigningJobs, spark_service_server::SparkService as _},
};
use spark_rules::leaf::LeafStatus;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{Bench, bench, from};
use crate::{
    rpc::testing::{key, leaf_id, put_claim, put_leaf, put_transfer, record},
    status::{Reason, Refused},
};

const TRANSFER: &str = "09090909-0909-0909-0909-090909090909";

fn pair() -> common::SigningCommitment {
    common::SigningCommitment { hiding: key(20).serialize().to_vec(), binding: key(21).serialize().to_vec() }
}

fn identifier(operator: u8) -> String {
    format!("{:064x}", operator + 1)
}

fn job(leaf: u8) -> spark::UserSignedTxSigningJob {
    spark::UserSignedTxSigningJob {
        leaf_id: leaf_id(leaf).to_string(),
        signing_public_key: key(1).serialize().to_vec(),
        raw_tx: vec![3; 150],
        signing_nonce_commitment: Some(pair()),
        user_signature: vec![4; 32],
        signing_commitments: Some(spark::SigningCommitments {
            signing_commitments: BTreeMap::from([(identifier(0), pair()), (identifier(2), pair())]),
        }),
        additional_inputs: vec![],
    }
}

fn packages() -> BTreeMap<String, Vec<u8>> {
    (0..3).map(|operator| (identifier(operator), vec![5; 500])).collect()
}

pub(super) fn send() -> spark::StartTransferRequest {
    spark::StartTransferRequest {
        transfer_id: TRANSFER.into(),
        owner_identity_public_key: key(1).serialize().to_vec(),
        receiver_identity_public_key: key(2).serialize().to_vec(),
        transfer_package: Some(spark::TransferPackage {
            leaves_to_send: vec![job(7)],
            direct_from_cpfp_leaves_to_send: vec![job(7)],
            key_tweak_package: packages(),
            user_signature: vec![6; 70],
            hash_variant: spark::HashVariant::V2 as i32,
            ..spark::TransferPackage::default()
        }),
        ..spark::StartTransferRequest::default()
    }
}

fn send_many() -> spark::StartTransferV3Request {
    spark::StartTransferV3Request {
        transfer_id: TRANSFER.into(),
        sender_packages: vec![spark::SenderTransferPackage {
            owner_identity_public_key: key(1).serialize().to_vec(),
            transfer_package: send().transfer_package,
            receiver_identity_public_keys: BTreeMap::from([(
                leaf_id(7).to_string(),
                key(2).serialize().to_vec(),
            )]),
        }],
        expiry_time: None,
    }
}

fn claim() -> spark::ClaimTransferRequest {
    spark::ClaimTransferRequest {
        transfer_id: TRANSFER.into(),
        owner_identity_public_key: key(2).serialize().to_vec(),
        claim_package: Some(spark::ClaimPackage {
            leaves_to_claim: vec![job(7)],
            direct_from_cpfp_leaves_to_claim: vec![job(7)],
            key_tweak_package: packages(),
            user_signature: vec![6; 70],
            hash_variant: spark::HashVariant::V2 as i32,
            ..spark::ClaimPackage::default()
        }),
    }
}

fn renew() -> spark::RenewLeafRequest {
    spark::RenewLeafRequest {
        leaf_id: leaf_id(7).to_string(),
        signing_jobs: Some(SigningJobs::RenewRefundTimelockSigningJob(
            spark::RenewRefundTimelockSigningJob {
                node_tx_signing_job: Some(job(7)),
                refund_tx_signing_job: Some(job(7)),
                direct_node_tx_signing_job: Some(job(7)),
                direct_refund_tx_signing_job: Some(job(7)),
                direct_from_cpfp_refund_tx_signing_job: Some(job(7)),
            },
        )),
    }
}

fn deposit() -> spark::FinalizeDepositTreeCreationRequest {
    let tx = record(1, 1, 0, LeafStatus::Creating).node_tx;
    spark::FinalizeDepositTreeCreationRequest {
        identity_public_key: key(1).serialize().to_vec(),
        on_chain_utxo: Some(spark::Utxo {
            raw_tx: bitcoin::consensus::serialize(&tx),
            vout: 0,
            network: spark::Network::Regtest as i32,
            txid: vec![],
        }),
        root_tx_signing_job: Some(job(7)),
        refund_tx_signing_job: Some(job(7)),
        direct_from_cpfp_refund_tx_signing_job: Some(job(7)),
        additional_on_chain_utxos: vec![],
    }
}

pub(super) fn assert_field(status: &Status, field: &str) {
    assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "FIELD_INVALID");
    let named = &details.bad_request().unwrap().field_violations[0].field;
    assert!(named.ends_with(field), "{named} is not {field}");
}

impl Bench {
    fn nothing_ran(&self) {
        assert!(self.engine.seen.lock().unwrap().is_empty());
    }

    fn refuse(&self, reason: Reason) {
        *self.engine.refuse.lock().unwrap() = Some(Refused::new(reason, "for the test"));
    }
}

type Change<T> = (&'static str, fn(&mut T));

fn package(request: &mut spark::StartTransferRequest) -> &mut spark::TransferPackage {
    request.transfer_package.as_mut().unwrap()
}

fn operators(job: &mut spark::UserSignedTxSigningJob) -> &mut BTreeMap<String, common::SigningCommitment> {
    &mut job.signing_commitments.as_mut().unwrap().signing_commitments
}

#[tokio::test]
async fn sends_are_bounded_before_any_work() {
    let bench = bench().await;
    let changes: &[Change<spark::StartTransferRequest>] = &[
        ("transfer_id", |r| r.transfer_id = "x".into()),
        ("transfer_id", |r| r.transfer_id = "0193C5D2-7B0A-7C40-9A55-2F3F6D0A1B2C".into()),
        ("owner_identity_public_key", |r| r.owner_identity_public_key.clear()),
        ("receiver_identity_public_key", |r| r.receiver_identity_public_key = vec![4; 33]),
        ("spark_invoice", |r| r.spark_invoice = "s".repeat(1025)),
        ("expiry_time", |r| r.expiry_time = Some(prost_types::Timestamp::default())),
        ("transfer_package", |r| r.transfer_package = None),
        ("leaves_to_send", |r| r.leaves_to_send = vec![spark::LeafRefundTxSigningJob::default()]),
        ("leaves_to_send", |r| package(r).leaves_to_send.clear()),
        ("leaves_to_send", |r| package(r).leaves_to_send = vec![job(7); 257]),
        ("leaf_id", |r| package(r).leaves_to_send.push(job(7))),
        ("leaf_id", |r| package(r).direct_leaves_to_send = vec![job(1), job(1)]),
        ("leaf_id", |r| package(r).leaves_to_send[0].leaf_id.clear()),
        ("raw_tx", |r| package(r).leaves_to_send[0].raw_tx.clear()),
        ("raw_tx", |r| package(r).leaves_to_send[0].raw_tx = vec![0; 5000]),
        ("signing_public_key", |r| package(r).leaves_to_send[0].signing_public_key = vec![4; 65]),
        ("signing_nonce_commitment", |r| package(r).leaves_to_send[0].signing_nonce_commitment = None),
        ("hiding", |r| package(r).leaves_to_send[0].signing_nonce_commitment = Some(Default::default())),
        ("user_signature", |r| package(r).leaves_to_send[0].user_signature.push(0)),
        ("signing_commitments", |r| package(r).leaves_to_send[0].signing_commitments = None),
        ("signing_commitments", |r| operators(&mut package(r).leaves_to_send[0]).clear()),
        ("signing_commitments", |r| {
            operators(&mut package(r).leaves_to_send[0]).insert(identifier(1), pair());
        }),
        ("signing_commitments", |r| {
            let operators = operators(&mut package(r).leaves_to_send[0]);
            operators.pop_first();
            operators.insert(identifier(3), pair());
        }),
        ("additional_inputs", |r| {
            package(r).leaves_to_send[0].additional_inputs = vec![spark::InputSigningData::default(); 11];
        }),
        ("key_tweak_package", |r| {
            package(r).key_tweak_package.pop_first();
        }),
        ("key_tweak_package", |r| {
            package(r).key_tweak_package.insert("0".repeat(64), vec![1]);
        }),
        ("key_tweak_package", |r| {
            package(r).key_tweak_package.insert(identifier(0), vec![1; 10_000]);
        }),
        ("user_signature", |r| package(r).user_signature.clear()),
        ("user_signature", |r| package(r).user_signature = vec![0; 73]),
    ];
    for (field, change) in changes {
        let mut request = send();
        change(&mut request);
        assert_field(&bench.api.start_transfer_v2(from(1, request)).await.unwrap_err(), field);
    }
    let refused = bench.api.start_transfer_v2(from(2, send())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut large = send();
    package(&mut large).user_signature = vec![0; 9 * 1024 * 1024];
    assert_eq!(
        bench.api.start_transfer_v2(from(1, large)).await.unwrap_err().code(),
        Code::ResourceExhausted
    );
    bench.nothing_ran();
}

#[tokio::test]
async fn a_send_answers_with_the_transfer_or_with_what_wallets_act_on() {
    let bench = bench().await;
    for reason in [Reason::NonceUnknown, Reason::OperationAborted, Reason::LeafUnavailable] {
        bench.refuse(reason);
        let refused = bench.api.start_transfer_v2(from(1, send())).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(refused.get_error_details().error_info().unwrap().reason, "LEAF_UNAVAILABLE");
        if reason != Reason::LeafUnavailable {
            assert_eq!(refused.message(), "leaf is not available to transfer");
        }
    }
    bench.refuse(Reason::AlreadyDone);
    assert_eq!(bench.api.start_transfer_v2(from(1, send())).await.unwrap_err().code(), Code::AlreadyExists);
    bench.refuse(Reason::OperationDiffers);
    assert_eq!(bench.api.start_transfer_v2(from(1, send())).await.unwrap_err().code(), Code::Aborted);

    *bench.engine.refuse.lock().unwrap() = None;
    put_transfer(&bench.db, 9, 7, 1, 2).await;
    let done = bench.api.start_transfer_v2(from(1, send())).await.unwrap().into_inner();
    let transfer = done.transfer.unwrap();
    assert_eq!((transfer.id.as_str(), transfer.total_value), (TRANSFER, 1000));
    assert_eq!(transfer.status, spark::TransferStatus::SenderKeyTweaked as i32);
    assert_eq!(transfer.leaves[0].leaf.as_ref().unwrap().id, leaf_id(7).to_string());
}

#[tokio::test]
async fn claims_are_the_receivers_and_repeat_their_result() {
    let bench = bench().await;
    let unknown = bench.api.claim_transfer(from(2, claim())).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let id = put_transfer(&bench.db, 9, 7, 1, 2).await;

    let changes: &[Change<spark::ClaimTransferRequest>] = &[
        ("transfer_id", |r| r.transfer_id.clear()),
        ("claim_package", |r| r.claim_package = None),
        ("leaves_to_claim", |r| r.claim_package.as_mut().unwrap().leaves_to_claim.clear()),
        ("key_tweak_package", |r| r.claim_package.as_mut().unwrap().key_tweak_package.clear()),
        ("user_signature", |r| r.claim_package.as_mut().unwrap().user_signature.clear()),
    ];
    for (field, change) in changes {
        let mut request = claim();
        change(&mut request);
        assert_field(&bench.api.claim_transfer(from(2, request)).await.unwrap_err(), field);
    }
    // The sender takes part in the transfer, but cannot claim it.
    let mut by_sender = claim();
    by_sender.owner_identity_public_key = key(1).serialize().to_vec();
    assert_eq!(
        bench.api.claim_transfer(from(1, by_sender)).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(bench.api.claim_transfer(from(1, claim())).await.unwrap_err().code(), Code::PermissionDenied);
    bench.nothing_ran();

    for reason in [Reason::NonceUnknown, Reason::OperationAborted, Reason::LeafUnavailable] {
        bench.refuse(reason);
        assert_eq!(bench.api.claim_transfer(from(2, claim())).await.unwrap_err().code(), Code::Unavailable);
    }
    let ran = bench.engine.seen.lock().unwrap().len();
    put_claim(&bench.db, id, 7, 2).await;
    let again = bench.api.claim_transfer(from(2, claim())).await.unwrap().into_inner().transfer.unwrap();
    assert_eq!(again.status, spark::TransferStatus::Completed as i32);
    let leaf = again.leaves[0].leaf.as_ref().unwrap();
    assert_eq!(
        (leaf.status.as_str(), &leaf.owner_identity_public_key),
        ("AVAILABLE", &key(2).serialize().to_vec())
    );
    assert_eq!(bench.engine.seen.lock().unwrap().len(), ran, "a completed transfer runs nothing");
}

#[tokio::test]
async fn renewals_are_the_owners_and_complete() {
    let bench = bench().await;
    put_leaf(&bench.db, &record(7, 1, 0, LeafStatus::Available)).await;
    assert_eq!(bench.api.renew_leaf(from(2, renew())).await.unwrap_err().code(), Code::NotFound);
    let mut request = renew();
    request.leaf_id.clear();
    assert_field(&bench.api.renew_leaf(from(1, request)).await.unwrap_err(), "leaf_id");
    let mut request = renew();
    request.signing_jobs = None;
    assert_field(&bench.api.renew_leaf(from(1, request)).await.unwrap_err(), "signing_jobs");
    for jobs in [
        SigningJobs::RenewNodeTimelockSigningJob(Default::default()),
        SigningJobs::RenewRefundTimelockSigningJob(Default::default()),
        SigningJobs::RenewNodeZeroTimelockSigningJob(Default::default()),
    ] {
        let request = spark::RenewLeafRequest { leaf_id: leaf_id(7).to_string(), signing_jobs: Some(jobs) };
        assert_field(&bench.api.renew_leaf(from(1, request)).await.unwrap_err(), "tx_signing_job");
    }
    bench.nothing_ran();
    let done = bench.api.renew_leaf(from(1, renew())).await.unwrap().into_inner();
    let Some(spark::renew_leaf_response::RenewResult::RenewRefundTimelockResult(result)) = done.renew_result
    else {
        panic!("the case of the request");
    };
    assert_eq!(result.node.unwrap().id, leaf_id(7).to_string());
    bench.refuse(Reason::NonceUnknown);
    assert_eq!(bench.api.renew_leaf(from(1, renew())).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn deposits_need_an_address_of_the_session() {
    let bench = bench().await;
    let changes: &[Change<spark::FinalizeDepositTreeCreationRequest>] = &[
        ("on_chain_utxo", |r| r.on_chain_utxo = None),
        ("on_chain_utxo.raw_tx", |r| r.on_chain_utxo.as_mut().unwrap().raw_tx.clear()),
        ("on_chain_utxo.raw_tx", |r| r.on_chain_utxo.as_mut().unwrap().raw_tx.truncate(20)),
        ("on_chain_utxo.raw_tx", |r| r.on_chain_utxo.as_mut().unwrap().raw_tx = vec![0; 400_001]),
        ("on_chain_utxo.vout", |r| r.on_chain_utxo.as_mut().unwrap().vout = u32::MAX),
        ("on_chain_utxo.network", |r| r.on_chain_utxo.as_mut().unwrap().network = 0),
        ("on_chain_utxo.network", |r| r.on_chain_utxo.as_mut().unwrap().network = 1),
        ("root_tx_signing_job", |r| r.root_tx_signing_job = None),
        ("refund_tx_signing_job", |r| r.refund_tx_signing_job = None),
        ("direct_from_cpfp_refund_tx_signing_job", |r| r.direct_from_cpfp_refund_tx_signing_job = None),
        ("additional_on_chain_utxos", |r| r.additional_on_chain_utxos = vec![spark::Utxo::default(); 11]),
    ];
    for (field, change) in changes {
        let mut request = deposit();
        change(&mut request);
        assert_field(&bench.api.finalize_deposit_tree_creation(from(1, request)).await.unwrap_err(), field);
    }
    let refused = bench.api.finalize_deposit_tree_creation(from(2, deposit())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let unknown = bench.api.finalize_deposit_tree_creation(from(1, deposit())).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    bench.nothing_ran();
}

#[tokio::test]
async fn deposit_addresses_are_asked_for_completely() {
    let bench = bench().await;
    let good = spark::GenerateDepositAddressRequest {
        signing_public_key: key(3).serialize().to_vec(),
        identity_public_key: key(1).serialize().to_vec(),
        network: spark::Network::Regtest as i32,
        leaf_id: Some(leaf_id(7).to_string()),
        is_static: None,
        hash_variant: spark::HashVariant::V2 as i32,
    };
    let changes: &[Change<spark::GenerateDepositAddressRequest>] = &[
        ("signing_public_key", |r| r.signing_public_key.truncate(32)),
        ("identity_public_key", |r| r.identity_public_key.clear()),
        ("network", |r| r.network = 0),
        ("network", |r| r.network = 1),
        ("leaf_id", |r| r.leaf_id = None),
        ("leaf_id", |r| r.leaf_id = Some("x".into())),
        ("hash_variant", |r| r.hash_variant = 0),
    ];
    for (field, change) in changes {
        let mut request = good.clone();
        change(&mut request);
        assert_field(&bench.api.generate_deposit_address(from(1, request)).await.unwrap_err(), field);
    }
    let stranger = bench.api.generate_deposit_address(from(2, good.clone())).await.unwrap_err();
    assert_eq!(stranger.code(), Code::PermissionDenied);
    let address = bench.api.generate_deposit_address(from(1, good)).await.unwrap().into_inner();
    let address = address.deposit_address.unwrap();
    assert!(!address.is_static);
    let proof = address.deposit_address_proof.unwrap();
    assert_eq!(proof.address_signatures[&identifier(0)], [0x30, 0x06]);
    assert_eq!(proof.proof_of_possession_signature.len(), 64);
}

#[tokio::test]
async fn nonces_for_leaves_are_their_owners() {
    let bench = bench().await;
    put_leaf(&bench.db, &record(7, 1, 0, LeafStatus::Available)).await;
    let request = |leaf: u8| spark::GetSigningCommitmentsRequest {
        node_ids: vec![leaf_id(leaf).to_string()],
        count: 3,
        node_id_count: 0,
    };
    for (identity, leaf) in [(2, 7), (1, 8)] {
        let refused = bench.api.get_signing_commitments(from(identity, request(leaf))).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        assert!(refused.message().contains("not owned by"));
    }
    let refused = bench.api.get_signing_commitments(from(1, request(7))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "no signer answers here");
}

fn sender(request: &mut spark::StartTransferV3Request) -> &mut spark::SenderTransferPackage {
    &mut request.sender_packages[0]
}

#[tokio::test]
async fn sends_to_several_are_bounded_before_any_work() {
    let bench = bench().await;
    let changes: &[Change<spark::StartTransferV3Request>] = &[
        ("transfer_id", |r| r.transfer_id = "x".into()),
        ("sender_packages", |r| r.sender_packages.clear()),
        ("owner_identity_public_key", |r| sender(r).owner_identity_public_key.clear()),
        ("transfer_package", |r| sender(r).transfer_package = None),
        ("leaves_to_send", |r| sender(r).transfer_package.as_mut().unwrap().leaves_to_send.clear()),
        ("receiver_identity_public_keys", |r| {
            sender(r).receiver_identity_public_keys.insert("x".into(), vec![4; 33]);
        }),
        ("receiver_identity_public_keys", |r| {
            for n in 0..=32 {
                let key = key(n + 1).serialize().to_vec();
                sender(r).receiver_identity_public_keys.insert(n.to_string(), key);
            }
        }),
        ("receiver_identity_public_keys", |r| {
            for n in 0..=256 {
                let key = key(2).serialize().to_vec();
                sender(r).receiver_identity_public_keys.insert(n.to_string(), key);
            }
        }),
    ];
    for (field, change) in changes {
        let mut request = send_many();
        change(&mut request);
        assert_field(&bench.api.start_transfer_v3(from(1, request)).await.unwrap_err(), field);
    }
    let refused = bench.api.start_transfer_v3(from(2, send_many())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut two = send_many();
    two.sender_packages.push(two.sender_packages[0].clone());
    assert_eq!(bench.api.start_transfer_v3(from(1, two)).await.unwrap_err().code(), Code::Unimplemented);
    bench.nothing_ran();
    put_transfer(&bench.db, 9, 7, 1, 2).await;
    let sent = bench.api.start_transfer_v3(from(1, send_many())).await.unwrap().into_inner();
    assert_eq!(sent.transfer.unwrap().id, TRANSFER);
    assert_eq!(bench.engine.seen.lock().unwrap().len(), 1);
}
