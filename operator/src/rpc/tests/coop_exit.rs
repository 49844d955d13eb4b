//! Cooperative exits: bounds, who may ask, and where they are off.

use prost_types::Timestamp;
use spark_proto::{
    peer::v1::operation::Request,
    spark::{self, spark_service_server::SparkService as _},
};
use tonic::Code;

use super::{
    bench, from,
    writes::{assert_field, send},
};
use crate::rpc::testing::put_transfer;

fn exit() -> spark::CooperativeExitRequest {
    let transfer = spark::StartTransferRequest {
        expiry_time: Some(Timestamp { seconds: 2_000_000_000, nanos: 0 }),
        ..send()
    };
    spark::CooperativeExitRequest {
        exit_id: transfer.transfer_id.clone(),
        transfer: Some(transfer),
        exit_txid: vec![7; 32],
        connector_tx: vec![8; 200],
    }
}

fn transfer(request: &mut spark::CooperativeExitRequest) -> &mut spark::StartTransferRequest {
    request.transfer.as_mut().unwrap()
}

type Change = (&'static str, fn(&mut spark::CooperativeExitRequest));

#[tokio::test]
async fn exits_are_bounded_before_any_work() {
    let mut bench = bench().await;
    let changes: &[Change] = &[
        ("exit_txid", |r| r.exit_txid.truncate(31)),
        ("connector_tx", |r| r.connector_tx.clear()),
        ("connector_tx", |r| r.connector_tx = vec![8; 16_385]),
        ("exit_id", |r| r.exit_id = "x".into()),
        ("transfer", |r| r.transfer = None),
        ("transfer_id", |r| transfer(r).transfer_id = "x".into()),
        ("receiver_identity_public_key", |r| transfer(r).receiver_identity_public_key.clear()),
        ("expiry_time", |r| transfer(r).expiry_time = None),
        ("transfer_package", |r| transfer(r).transfer_package = None),
    ];
    for (field, change) in changes {
        let mut request = exit();
        change(&mut request);
        assert_field(&bench.api.cooperative_exit_v2(from(1, request)).await.unwrap_err(), field);
    }
    let foreign = bench.api.cooperative_exit_v2(from(2, exit())).await.unwrap_err();
    assert_eq!(foreign.code(), Code::PermissionDenied);
    assert!(bench.engine.seen.lock().unwrap().is_empty());
    put_transfer(&bench.db, 9, 7, 1, 2).await;
    let made = bench.api.cooperative_exit_v2(from(1, exit())).await.unwrap().into_inner();
    assert!(made.transfer.is_some() && made.signing_results.is_empty());
    match bench.engine.seen.lock().unwrap().as_slice() {
        [Request::CoopExit(seen)] => assert_eq!((seen.expiry_height, seen.depth), (0, 0)),
        other => panic!("{other:?}"),
    }
    bench.api.parts.coop_exit = false;
    let off = bench.api.cooperative_exit_v2(from(1, exit())).await.unwrap_err();
    assert_eq!(off.code(), Code::Unimplemented);
}
