//! One operator can neither hang nor exhaust the wallet.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use spark_proto::spark::{
    QueryNodesRequest, QueryNodesResponse, QueryTransfersResponse, Transfer, TransferFilter,
};

use super::{listing, wallet};
use crate::{
    WalletError,
    client::ClientError,
    testing::{LEAF_ID, Liar, Operators, keys, wallet_of},
};

#[tokio::test]
async fn s13_a_silent_operator_does_not_hang_the_wallet() {
    let (operators, keys) = (Operators::new(), keys());
    let node = operators.deposit(&keys, &[50_000]);
    let silent = Liar::default().hang("query_nodes");
    let servers = vec![listing(vec![node.clone()]), listing(vec![node]), silent];
    let (wallet, _dir) = wallet_of(&operators, keys, servers, Duration::from_millis(300));
    let views = wallet.sync().await.unwrap();
    assert_eq!((views.len(), views[0].operators_agreeing), (1, 2));
    assert!(views[0].problem.as_ref().is_some_and(|p| p.contains("in time")), "{:?}", views[0].problem);
    assert!(!views[0].is_spendable());
}

#[tokio::test]
async fn s13_lists_end() {
    let (operators, keys) = (Operators::new(), keys());
    let node = operators.deposit(&keys, &[50_000]);
    let calls = Arc::new(AtomicU64::new(0));
    let counter = calls.clone();
    // The same page for ever, under growing offsets.
    let repeating = Liar::default().on("query_nodes", move |request: QueryNodesRequest| {
        counter.fetch_add(1, Ordering::Relaxed);
        let nodes = [(LEAF_ID.to_owned(), node.clone())].into();
        Ok(QueryNodesResponse { nodes, offset: request.offset + 1 })
    });
    // Always another transfer.
    let inventive = repeating.on("query_pending_transfers", |request: TransferFilter| {
        let transfer = Transfer { id: request.offset.to_string(), ..Default::default() };
        Ok(QueryTransfersResponse { transfers: vec![transfer], offset: request.offset + 1 })
    });
    let (wallet, _dir) = wallet(&operators, keys, vec![inventive]);
    let nodes = wallet.owned_nodes(wallet.operators().coordinator()).await.unwrap();
    assert_eq!((nodes.len(), calls.load(Ordering::Relaxed)), (1, 2));
    let endless = wallet.pending().await;
    assert!(matches!(endless, Err(WalletError::Client(ClientError::Endless { .. }))), "{endless:?}");
}
