//! Transfers that a preimage completes: bounds, who may do what, and what is shown to whom.

use bitcoin::hashes::{Hash as _, sha256};
use prost_types::Timestamp;
use spark_proto::spark::{self, spark_service_server::SparkService as _};
use spark_rules::{
    ids::OperationId,
    settlement::{Condition, Pending},
};
use tonic::Code;

use super::{
    Bench, bench, from,
    writes::{assert_field, send},
};
use crate::{
    db::{
        htlc::{self, HtlcRow, HtlcState},
        work::{self, Claims},
    },
    rpc::testing::{key, put_transfer},
    status::{Reason, Refused},
};

const PREIMAGE: [u8; 32] = [6; 32];

fn hash() -> [u8; 32] {
    sha256::Hash::hash(&PREIMAGE).to_byte_array()
}

fn swap() -> spark::InitiatePreimageSwapRequest {
    let transfer = spark::StartTransferRequest {
        expiry_time: Some(Timestamp { seconds: 2_000_000_000, nanos: 0 }),
        ..send()
    };
    spark::InitiatePreimageSwapRequest {
        payment_hash: hash().to_vec(),
        receiver_identity_public_key: key(2).serialize().to_vec(),
        transfer_request: Some(transfer),
        ..spark::InitiatePreimageSwapRequest::default()
    }
}

fn provide(identity: u8) -> spark::ProvidePreimageRequest {
    spark::ProvidePreimageRequest {
        payment_hash: hash().to_vec(),
        preimage: PREIMAGE.to_vec(),
        identity_public_key: key(identity).serialize().to_vec(),
    }
}

fn query(identity: u8, role: spark::PreimageRequestRole) -> spark::QueryHtlcRequest {
    spark::QueryHtlcRequest {
        identity_public_key: key(identity).serialize().to_vec(),
        match_role: role.into(),
        ..spark::QueryHtlcRequest::default()
    }
}

/// From identity 1 to identity 2, waiting.
async fn waiting(bench: &Bench) -> HtlcRow {
    let transfer_id = put_transfer(&bench.db, 9, 7, 1, 2).await;
    let id = crate::db::operation::AttemptId { op: OperationId::from_bytes([9; 16]), attempt: 0 };
    let new = crate::db::operation::NewOperation {
        id,
        kind: 8,
        coordinates: false,
        coordinator: spark_rules::ids::OperatorIndex::new(1),
        request: vec![1],
        request_digest: [7; 32],
        named: [spark_rules::ids::OperatorIndex::new(1)].into(),
    };
    work::propose(&bench.db, &new, &Claims::default()).await.unwrap();
    let row = HtlcRow {
        pending: Pending {
            operation: id.op,
            attempt: 0,
            digest: [3; 32],
            condition: Condition::preimage(hash(), 100),
            deciders: new.named,
        },
        transfer_id,
        sender: key(1).serialize().to_vec(),
        receiver: key(2).serialize().to_vec(),
        state: HtlcState::Pending,
        preimage: None,
        proof: None,
        announced: false,
        created_micros: 0,
    };
    htlc::insert(bench.db.pool(), &row).await.unwrap();
    row
}

type Change = (&'static str, fn(&mut spark::InitiatePreimageSwapRequest));

fn transfer(request: &mut spark::InitiatePreimageSwapRequest) -> &mut spark::StartTransferRequest {
    request.transfer_request.as_mut().unwrap()
}

#[tokio::test]
async fn swaps_are_bounded_before_any_work() {
    let bench = bench().await;
    let changes: &[Change] = &[
        ("payment_hash", |r| r.payment_hash.truncate(31)),
        ("receiver_identity_public_key", |r| r.receiver_identity_public_key.clear()),
        ("transfer_request", |r| r.transfer_request = None),
        ("transfer_id", |r| transfer(r).transfer_id = "x".into()),
        ("expiry_time", |r| transfer(r).expiry_time = None),
        ("transfer_package", |r| transfer(r).transfer_package = None),
        ("leaves_to_send", |r| {
            let leaves_to_send = vec![spark::UserSignedTxSigningJob::default(); 257];
            r.transfer = Some(spark::StartUserSignedTransferRequest { leaves_to_send, ..Default::default() });
        }),
    ];
    for (field, change) in changes {
        let mut request = swap();
        change(&mut request);
        assert_field(&bench.api.initiate_preimage_swap_v3(from(1, request)).await.unwrap_err(), field);
    }
    let foreign = bench.api.initiate_preimage_swap_v3(from(2, swap())).await.unwrap_err();
    assert_eq!(foreign.code(), Code::PermissionDenied);
    // A swap that hands out a preimage is not offered.
    let mut receive = swap();
    receive.reason = spark::initiate_preimage_swap_request::Reason::Receive.into();
    let refused = bench.api.initiate_preimage_swap_v3(from(1, receive)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(bench.engine.seen.lock().unwrap().is_empty());
    put_transfer(&bench.db, 9, 7, 1, 2).await;
    let made = bench.api.initiate_preimage_swap_v3(from(1, swap())).await.unwrap().into_inner();
    assert!(made.preimage.is_empty() && made.transfer.is_some());
    assert_eq!(bench.engine.seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn only_the_receiver_settles_and_only_with_the_preimage() {
    let bench = bench().await;
    let none = bench.api.provide_preimage(from(2, provide(2))).await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound);
    waiting(&bench).await;
    for (session, request) in [(1, provide(2)), (2, provide(1)), (3, provide(2))] {
        let refused = bench.api.provide_preimage(from(session, request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    for identity in [1, 3] {
        let refused = bench.api.provide_preimage(from(identity, provide(identity))).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "not theirs");
    }
    for preimage in [vec![], vec![6; 31], vec![7; 32]] {
        let wrong = spark::ProvidePreimageRequest { preimage, ..provide(2) };
        assert_field(&bench.api.provide_preimage(from(2, wrong)).await.unwrap_err(), "preimage");
    }
    assert!(bench.engine.provided.lock().unwrap().is_empty());
    let settled = bench.api.provide_preimage(from(2, provide(2))).await.unwrap().into_inner();
    assert!(settled.transfer.is_some());
    assert_eq!(*bench.engine.provided.lock().unwrap(), [PREIMAGE]);
    *bench.engine.refuse.lock().unwrap() = Some(Refused::new(Reason::Expired, "too late"));
    let late = bench.api.provide_preimage(from(2, provide(2))).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn both_sides_see_it_and_the_preimage_only_once_it_is_settled() {
    use spark::PreimageRequestRole::{Receiver, ReceiverAndSender, Sender};
    let bench = bench().await;
    let row = waiting(&bench).await;
    let seen = async |identity, request| {
        let answer = bench.api.query_htlc(from(identity, request)).await.unwrap().into_inner();
        answer.preimage_requests
    };
    for (identity, role, count) in [
        (1, Sender, 1),
        (1, Receiver, 0),
        (1, ReceiverAndSender, 1),
        (2, Receiver, 1),
        (2, Sender, 0),
        (3, ReceiverAndSender, 0),
    ] {
        assert_eq!(seen(identity, query(identity, role)).await.len(), count, "{identity} {role:?}");
    }
    let foreign = bench.api.query_htlc(from(3, query(2, Receiver))).await.unwrap_err();
    assert_eq!(foreign.code(), Code::PermissionDenied);
    for (limit, offset) in [(-1, 0), (101, 0), (0, -1)] {
        let wrong = spark::QueryHtlcRequest { limit, offset, ..query(2, Receiver) };
        assert!(bench.api.query_htlc(from(2, wrong)).await.is_err());
    }
    let other = spark::QueryHtlcRequest { payment_hashes: vec![vec![1; 32]], ..query(2, Receiver) };
    assert!(seen(2, other).await.is_empty());
    // Known to this operator, but not settled: told to nobody.
    htlc::set_preimage(bench.db.pool(), row.id(), &PREIMAGE).await.unwrap();
    let shown = seen(1, query(1, Sender)).await.remove(0);
    assert_eq!(
        (shown.status, shown.preimage),
        (spark::PreimageRequestStatus::WaitingForPreimage.into(), None)
    );
    assert_eq!(shown.payment_hash, hash());
    assert!(shown.transfer.is_some() && shown.created_time.is_some());
    htlc::set_proof(bench.db.pool(), row.id(), &[1]).await.unwrap();
    work::ended(&bench.db, &row, HtlcState::Settled, &work::AppliedWrite::default()).await.unwrap();
    let shown = seen(1, query(1, Sender)).await.remove(0);
    assert_eq!(shown.preimage.as_deref(), Some(PREIMAGE.as_slice()));
    let returned = Some(spark::PreimageRequestStatus::Returned.into());
    assert!(seen(1, spark::QueryHtlcRequest { status: returned, ..query(1, Sender) }).await.is_empty());
}

#[tokio::test]
async fn nothing_begins_where_it_is_not_offered() {
    let mut bench = bench().await;
    bench.api.parts.htlc = false;
    put_transfer(&bench.db, 9, 7, 1, 2).await;
    let refused = bench.api.initiate_preimage_swap_v3(from(1, swap())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(bench.engine.seen.lock().unwrap().is_empty());
}
