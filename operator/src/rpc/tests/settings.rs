use spark_proto::spark::{
    self, query_nodes_request::Source, spark_service_server::SparkService as _, transfer_filter::Participant,
    update_wallet_setting_request::MasterIdentityPublicKey as Master,
};
use spark_rules::leaf::LeafStatus;
use tonic::{Code, Request};

use super::{Bench, bench, from, open_bench};
use crate::rpc::testing::{key, leaf_id, put_leaf, put_transfer, record};

fn bytes(identity: u8) -> Vec<u8> {
    key(identity).serialize().to_vec()
}

fn private(enabled: bool) -> spark::UpdateWalletSettingRequest {
    spark::UpdateWalletSettingRequest { private_enabled: Some(enabled), ..Default::default() }
}

fn master(change: Master) -> spark::UpdateWalletSettingRequest {
    spark::UpdateWalletSettingRequest { master_identity_public_key: Some(change), ..Default::default() }
}

/// What `reader` sees of `owner`: nodes, balance, transfers, pending ones. Nothing if it is refused.
async fn seen(bench: &Bench, reader: u8, owner: u8) -> Option<(usize, u64, usize, usize)> {
    let api = &bench.api;
    let source = Some(Source::OwnerIdentityPubkey(bytes(owner)));
    let nodes =
        api.query_nodes(from(reader, spark::QueryNodesRequest { source, ..Default::default() })).await;
    let balance = spark::QueryBalanceRequest { identity_public_key: bytes(owner), ..Default::default() };
    let balance = api.query_balance(from(reader, balance)).await;
    let participant = Some(Participant::SenderOrReceiverIdentityPublicKey(bytes(owner)));
    let filter = spark::TransferFilter { participant, ..Default::default() };
    let all = api.query_all_transfers(from(reader, filter.clone())).await;
    let pending = api.query_pending_transfers(from(reader, filter)).await;
    let unused =
        spark::QueryUnusedDepositAddressesRequest { identity_public_key: bytes(owner), ..Default::default() };
    let unused = api.query_unused_deposit_addresses(from(reader, unused)).await;
    let Ok(nodes) = nodes else {
        for refused in [nodes.err(), balance.err(), all.err(), pending.err(), unused.err()] {
            assert_eq!(refused.unwrap().code(), Code::PermissionDenied);
        }
        return None;
    };
    assert!(unused.unwrap().into_inner().deposit_addresses.is_empty());
    Some((
        nodes.into_inner().nodes.len(),
        balance.unwrap().into_inner().balance,
        all.unwrap().into_inner().transfers.len(),
        pending.unwrap().into_inner().transfers.len(),
    ))
}

/// 2 owns a leaf and is to receive another from 1.
async fn world() -> Bench {
    world_of(bench().await).await
}

async fn world_of(bench: Bench) -> Bench {
    put_leaf(&bench.db, &record(1, 2, 0, LeafStatus::Available)).await;
    put_transfer(&bench.db, 9, 7, 1, 2).await;
    bench
}

const EVERYTHING: Option<(usize, u64, usize, usize)> = Some((1, 1000, 1, 1));
const NOTHING: Option<(usize, u64, usize, usize)> = None;

#[tokio::test]
async fn x20_others_read_what_an_owner_opens_and_no_more() {
    let bench = world().await;
    assert_eq!(seen(&bench, 2, 2).await, EVERYTHING);
    assert_eq!(seen(&bench, 3, 2).await, NOTHING, "closed unless opened");
    let opened = bench.api.update_wallet_setting(from(2, private(false))).await.unwrap().into_inner();
    let setting = opened.wallet_setting.unwrap();
    assert_eq!((setting.owner_identity_public_key, setting.private_enabled), (bytes(2), false));
    // The other side of the transfer has not opened its part.
    assert_eq!(seen(&bench, 3, 2).await, Some((1, 1000, 0, 0)));
    assert_eq!(seen(&bench, 3, 1).await, NOTHING);
    bench.api.update_wallet_setting(from(1, private(false))).await.unwrap();
    assert_eq!(seen(&bench, 3, 2).await, EVERYTHING);
    // By id, and without a name, everybody sees his own only.
    let node_ids = vec![leaf_id(1).to_string()];
    let named = Some(Source::NodeIds(spark::TreeNodeIds { node_ids }));
    let named = spark::QueryNodesRequest { source: named, ..Default::default() };
    assert!(bench.api.query_nodes(from(3, named)).await.unwrap().into_inner().nodes.is_empty());
    let all = bench.api.query_all_transfers(from(3, spark::TransferFilter::default())).await.unwrap();
    assert!(all.into_inner().transfers.is_empty());
    // And closed again.
    bench.api.update_wallet_setting(from(2, private(true))).await.unwrap();
    assert_eq!(seen(&bench, 3, 2).await, NOTHING);
    assert_eq!(seen(&bench, 2, 2).await, EVERYTHING);
}

/// What anybody sees of an identity where reads are open: nodes, balance, transfers, pending ones.
async fn seen_by_anybody(bench: &Bench, owner: u8) -> (usize, u64, usize, usize) {
    let api = &bench.api;
    let source = Some(Source::OwnerIdentityPubkey(bytes(owner)));
    let nodes =
        api.query_nodes(Request::new(spark::QueryNodesRequest { source, ..Default::default() })).await;
    let balance = spark::QueryBalanceRequest { identity_public_key: bytes(owner), ..Default::default() };
    let balance = api.query_balance(Request::new(balance)).await;
    let participant = Some(Participant::SenderOrReceiverIdentityPublicKey(bytes(owner)));
    let filter = spark::TransferFilter { participant, ..Default::default() };
    let all = api.query_all_transfers(Request::new(filter.clone())).await;
    let pending = api.query_pending_transfers(Request::new(filter)).await;
    (
        nodes.unwrap().into_inner().nodes.len(),
        balance.unwrap().into_inner().balance,
        all.unwrap().into_inner().transfers.len(),
        pending.unwrap().into_inner().transfers.len(),
    )
}

#[tokio::test]
async fn x20_where_reads_are_open_an_owner_closes_them() {
    let bench = world_of(open_bench().await).await;
    assert_eq!(seen_by_anybody(&bench, 2).await, (1, 1000, 1, 1));
    assert_eq!(seen(&bench, 3, 2).await, EVERYTHING);
    let setting = bench.api.query_wallet_setting(from(2, Default::default())).await.unwrap().into_inner();
    assert!(!setting.wallet_setting.unwrap().private_enabled);
    // By id, too; but not without any name, and not nodes.
    let transfer_ids = vec![uuid::Uuid::from_bytes([9; 16]).to_string()];
    let named = spark::TransferFilter { transfer_ids, ..Default::default() };
    let by_id = async || {
        let found = bench.api.query_all_transfers(Request::new(named.clone())).await.unwrap();
        found.into_inner().transfers.len()
    };
    assert_eq!(by_id().await, 1);
    let refused = bench.api.query_all_transfers(Request::new(Default::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let node_ids = vec![leaf_id(1).to_string()];
    for source in [None, Some(Source::NodeIds(spark::TreeNodeIds { node_ids }))] {
        let request = spark::QueryNodesRequest { source, ..Default::default() };
        assert_eq!(
            bench.api.query_nodes(Request::new(request)).await.unwrap_err().code(),
            Code::Unauthenticated
        );
    }
    // The other side closes its own: their transfer is gone from sight, the rest stays.
    bench.api.update_wallet_setting(from(1, private(true))).await.unwrap();
    assert_eq!((seen_by_anybody(&bench, 2).await, by_id().await), ((1, 1000, 0, 0), 0));
    // Closed looks like empty, but not to the owner and his master.
    bench.api.update_wallet_setting(from(2, private(true))).await.unwrap();
    let set = master(Master::SetMasterIdentityPublicKey(bytes(5)));
    bench.api.update_wallet_setting(from(2, set)).await.unwrap();
    assert_eq!(seen_by_anybody(&bench, 2).await, (0, 0, 0, 0));
    assert_eq!(seen(&bench, 3, 2).await, Some((0, 0, 0, 0)));
    assert_eq!((seen(&bench, 2, 2).await, seen(&bench, 5, 2).await), (EVERYTHING, EVERYTHING));
}

#[tokio::test]
async fn a_master_reads_everything_and_changes_nothing() {
    let bench = world().await;
    let set = master(Master::SetMasterIdentityPublicKey(bytes(5)));
    let set = bench.api.update_wallet_setting(from(2, set)).await.unwrap().into_inner();
    let setting = set.wallet_setting.unwrap();
    assert!(setting.private_enabled, "private unless opened");
    assert_eq!(setting.master_identity_public_key, Some(bytes(5)));
    assert_eq!(seen(&bench, 5, 2).await, EVERYTHING);
    assert_eq!(seen(&bench, 3, 2).await, NOTHING);
    // What a master changes is his own setting.
    bench.api.update_wallet_setting(from(5, private(false))).await.unwrap();
    assert_eq!(seen(&bench, 3, 2).await, NOTHING);
    let own = bench.api.query_wallet_setting(from(2, Default::default())).await.unwrap().into_inner();
    assert!(own.wallet_setting.unwrap().private_enabled);
    // Nor does he hear events, or get receipts, or spend.
    let subscribe = spark::SubscribeToEventsRequest { identity_public_key: bytes(2) };
    let refused = bench.api.subscribe_to_events(from(5, subscribe)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let clear = master(Master::ClearMasterIdentityPublicKey(true));
    let cleared = bench.api.update_wallet_setting(from(2, clear)).await.unwrap().into_inner();
    assert_eq!(cleared.wallet_setting.unwrap().master_identity_public_key, None);
    assert_eq!(seen(&bench, 5, 2).await, NOTHING);
}

#[tokio::test]
async fn settings_are_the_sessions_and_well_formed() {
    let bench = bench().await;
    let fresh = bench.api.query_wallet_setting(from(1, Default::default())).await.unwrap().into_inner();
    let fresh = fresh.wallet_setting.unwrap();
    assert_eq!((fresh.private_enabled, fresh.master_identity_public_key), (true, None));
    let refused = bench.api.update_wallet_setting(Request::new(private(true))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    for bad in [
        Default::default(),
        master(Master::SetMasterIdentityPublicKey(vec![2; 34])),
        master(Master::SetMasterIdentityPublicKey(bytes(1))),
        master(Master::ClearMasterIdentityPublicKey(false)),
    ] {
        let refused = bench.api.update_wallet_setting(from(1, bad)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    // The same twice is the same.
    for _ in 0..2 {
        let said = bench.api.update_wallet_setting(from(1, private(false))).await.unwrap().into_inner();
        assert!(!said.wallet_setting.unwrap().private_enabled);
    }
}
