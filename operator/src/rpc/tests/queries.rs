use spark_proto::{
    spark::{
        self, query_nodes_request::Source, spark_service_server::SparkService as _,
        transfer_filter::Participant,
    },
    spark_token::{
        QueryTokenOutputsRequest, QueryTokenTransactionsRequest,
        spark_token_service_server::SparkTokenService as _,
    },
};
use spark_rules::leaf::LeafStatus;
use tonic::{Code, Request};

use super::{bench, from};
use crate::{
    db::transfer,
    rpc::testing::{key, leaf_id, put_claim, put_leaf, put_shared_transfer, put_transfer, record},
};

fn owned_by(identity: u8) -> spark::QueryNodesRequest {
    spark::QueryNodesRequest {
        source: Some(Source::OwnerIdentityPubkey(key(identity).serialize().to_vec())),
        ..spark::QueryNodesRequest::default()
    }
}

fn named(leaves: &[u8]) -> spark::QueryNodesRequest {
    let node_ids = leaves.iter().map(|leaf| leaf_id(*leaf).to_string()).collect();
    spark::QueryNodesRequest {
        source: Some(Source::NodeIds(spark::TreeNodeIds { node_ids })),
        ..spark::QueryNodesRequest::default()
    }
}

fn ids(nodes: &std::collections::BTreeMap<String, spark::TreeNode>) -> Vec<String> {
    nodes.keys().cloned().collect()
}

#[tokio::test]
async fn x20_nodes_of_others_are_as_if_they_did_not_exist() {
    let bench = bench().await;
    put_leaf(&bench.db, &record(1, 1, 0, LeafStatus::Available)).await;
    put_leaf(&bench.db, &record(2, 2, 0, LeafStatus::Available)).await;

    let mine = bench.api.query_nodes(from(1, owned_by(1))).await.unwrap().into_inner();
    assert_eq!((ids(&mine.nodes), mine.offset), (vec![leaf_id(1).to_string()], -1));
    let refused = bench.api.query_nodes(from(1, owned_by(2))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let named = bench.api.query_nodes(from(1, named(&[1, 2, 3]))).await.unwrap().into_inner();
    assert_eq!(ids(&named.nodes), [leaf_id(1).to_string()]);
    let nobody =
        bench.api.query_nodes(from(1, spark::QueryNodesRequest::default())).await.unwrap().into_inner();
    assert_eq!(ids(&nobody.nodes), [leaf_id(1).to_string()]);
    let refused = bench.api.query_nodes(Request::new(owned_by(1))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_leaf_on_its_way_is_seen_by_both_sides_and_then_by_the_receiver_only() {
    let bench = bench().await;
    let transfer = put_transfer(&bench.db, 9, 7, 1, 2).await;
    for identity in [1, 2] {
        let nodes = bench.api.query_nodes(from(identity, named(&[7]))).await.unwrap().into_inner().nodes;
        assert_eq!(nodes.values().next().unwrap().status, "TRANSFER_LOCKED", "{identity}");
    }
    assert!(bench.api.query_nodes(from(3, named(&[7]))).await.unwrap().into_inner().nodes.is_empty());
    put_claim(&bench.db, transfer, 7, 2).await;
    assert!(bench.api.query_nodes(from(1, named(&[7]))).await.unwrap().into_inner().nodes.is_empty());
    let nodes = bench.api.query_nodes(from(2, named(&[7]))).await.unwrap().into_inner().nodes;
    assert_eq!(nodes.values().next().unwrap().status, "AVAILABLE");
}

#[tokio::test]
async fn parents_come_to_the_root_whoever_is_named_in_them() {
    let bench = bench().await;
    // Root and middle were renewed away under an earlier owner.
    let mut root = record(1, 3, 0, LeafStatus::Splitted);
    let mut middle = record(2, 3, 0, LeafStatus::Splitted);
    let mut leaf = record(3, 1, 4, LeafStatus::Available);
    middle.parent_id = Some(root.leaf_id);
    leaf.parent_id = Some(middle.leaf_id);
    for node in [&mut root, &mut middle, &mut leaf] {
        node.tree_id = uuid::Uuid::from_bytes([1; 16]);
        put_leaf(&bench.db, node).await;
    }
    for mut request in [owned_by(1), named(&[3])] {
        request.include_parents = true;
        let nodes = bench.api.query_nodes(from(1, request)).await.unwrap().into_inner().nodes;
        assert_eq!(nodes.len(), 3);
        let mut at = &nodes[&leaf_id(3).to_string()];
        let mut steps = 0;
        while let Some(parent) = &at.parent_node_id {
            at = &nodes[parent];
            steps += 1;
        }
        assert_eq!((steps, at.id.as_str()), (2, leaf_id(1).to_string().as_str()));
    }
    let parent = bench.api.query_nodes(from(1, named(&[2]))).await.unwrap().into_inner().nodes;
    assert_eq!(parent.len(), 1, "a parent can be asked for by its id");
    let former = bench.api.query_nodes(from(3, owned_by(3))).await.unwrap().into_inner().nodes;
    assert!(former.is_empty(), "who owned the leaf at a renewal owns nothing");
    let former = bench.api.query_nodes(from(3, named(&[1, 2, 3]))).await.unwrap().into_inner().nodes;
    assert!(former.is_empty());
}

#[tokio::test]
async fn pages_of_nodes_and_statuses() {
    let bench = bench().await;
    for leaf in 1..=5 {
        let status = if leaf == 5 { LeafStatus::Creating } else { LeafStatus::Available };
        put_leaf(&bench.db, &record(leaf, 1, 0, status)).await;
    }
    let (mut offset, mut seen) = (0, Vec::new());
    while offset >= 0 {
        let mut request = owned_by(1);
        (request.limit, request.offset) = (2, offset);
        let page = bench.api.query_nodes(from(1, request)).await.unwrap().into_inner();
        assert!(page.nodes.len() <= 2);
        seen.extend(ids(&page.nodes));
        offset = page.offset;
    }
    seen.sort();
    assert_eq!(seen, (1..=5).map(|leaf| leaf_id(leaf).to_string()).collect::<Vec<_>>());

    let mut request = owned_by(1);
    request.statuses = vec![spark::TreeNodeStatus::Creating as i32];
    let creating = bench.api.query_nodes(from(1, request)).await.unwrap().into_inner();
    assert_eq!(ids(&creating.nodes), [leaf_id(5).to_string()]);

    let request = spark::QueryBalanceRequest { identity_public_key: key(1).serialize().to_vec(), network: 2 };
    let balance = bench.api.query_balance(from(1, request.clone())).await.unwrap().into_inner();
    assert_eq!(
        (balance.balance, balance.node_balances.len()),
        (4000, 4),
        "what is not confirmed cannot be spent"
    );
    let refused = bench.api.query_balance(from(2, request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

fn of(participant: Participant) -> spark::TransferFilter {
    spark::TransferFilter { participant: Some(participant), ..spark::TransferFilter::default() }
}

#[tokio::test]
async fn transfers_are_those_of_the_session() {
    let bench = bench().await;
    let first = put_transfer(&bench.db, 8, 6, 1, 2).await.to_string();
    let second = put_transfer(&bench.db, 9, 7, 2, 1).await.to_string();
    put_transfer(&bench.db, 10, 8, 3, 4).await;
    let me = || key(1).serialize().to_vec();

    let request = spark::TransferFilter::default();
    let all = bench.api.query_all_transfers(from(1, request)).await.unwrap().into_inner();
    let found: Vec<_> = all.transfers.iter().map(|t| t.id.clone()).collect();
    assert_eq!((found, all.offset), (vec![second.clone(), first.clone()], -1), "newest first");

    let pending = of(Participant::ReceiverIdentityPublicKey(me()));
    let pending = bench.api.query_pending_transfers(from(1, pending)).await.unwrap().into_inner();
    assert_eq!(pending.transfers.len(), 1);
    assert_eq!(pending.transfers[0].id, second);
    let leaf = &pending.transfers[0].leaves[0];
    assert_eq!((leaf.secret_cipher.len(), leaf.signature.len()), (129, 64));
    assert!(bitcoin::consensus::deserialize::<bitcoin::Transaction>(&leaf.intermediate_refund_tx).is_ok());
    assert_eq!(leaf.leaf.as_ref().unwrap().id, leaf_id(7).to_string());

    let sent = of(Participant::SenderIdentityPublicKey(me()));
    let sent = bench.api.query_pending_transfers(from(1, sent)).await.unwrap().into_inner();
    assert!(sent.transfers.is_empty(), "a send that is applied is not pending for its sender");

    let mut request = of(Participant::SenderOrReceiverIdentityPublicKey(me()));
    request.order = spark::Order::Ascending as i32;
    request.limit = 1;
    let page = bench.api.query_all_transfers(from(1, request.clone())).await.unwrap().into_inner();
    assert_eq!((page.transfers[0].id.as_str(), page.offset), (first.as_str(), 1));
    request.offset = page.offset;
    let page = bench.api.query_all_transfers(from(1, request)).await.unwrap().into_inner();
    assert_eq!((page.transfers[0].id.as_str(), page.offset), (second.as_str(), -1));

    let foreign = of(Participant::SenderIdentityPublicKey(key(3).serialize().to_vec()));
    let refused = bench.api.query_all_transfers(from(1, foreign)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let by_id = spark::TransferFilter {
        transfer_ids: vec![uuid::Uuid::from_bytes([10; 16]).to_string()],
        ..spark::TransferFilter::default()
    };
    let by_id = bench.api.query_all_transfers(from(1, by_id)).await.unwrap().into_inner();
    assert!(by_id.transfers.is_empty(), "the id of a foreign transfer gives nothing");
}

#[tokio::test]
async fn a_completed_transfer_does_not_tell_who_got_the_leaf_next() {
    let bench = bench().await;
    let id = put_transfer(&bench.db, 9, 7, 1, 2).await;
    put_claim(&bench.db, id, 7, 2).await;
    let shown = |identity| {
        let api = bench.api.clone();
        async move {
            let all =
                api.query_all_transfers(from(identity, spark::TransferFilter::default())).await.unwrap();
            all.into_inner().transfers[0].leaves[0].leaf.clone().unwrap()
        }
    };
    assert_eq!(shown(2).await.owner_identity_public_key, key(2).serialize());
    // The receiver passes it on.
    put_leaf(&bench.db, &record(7, 5, 4, LeafStatus::Available)).await;
    for identity in [1, 2] {
        let leaf = shown(identity).await;
        assert_ne!(leaf.owner_identity_public_key, key(5).serialize(), "{identity}");
        assert_eq!(leaf.status, "TRANSFER_LOCKED");
    }
}

/// Each receiver of a transfer sees its own part, the sender all of it.
#[tokio::test]
async fn x20_receivers_of_one_transfer_see_only_their_own() {
    let bench = bench().await;
    let id = put_shared_transfer(&bench.db, 9, 1, &[(7, 2), (8, 3), (6, 2)], "").await;
    let shown = |identity| {
        let api = bench.api.clone();
        async move {
            let all = api.query_all_transfers(from(identity, spark::TransferFilter::default())).await;
            all.unwrap().into_inner().transfers.pop()
        }
    };
    assert_eq!(shown(4).await, None);
    for (identity, leaves) in [(2, vec![7, 6]), (3, vec![8])] {
        let own = shown(identity).await.unwrap();
        let ids: Vec<_> = own.leaves.iter().map(|l| l.leaf.as_ref().unwrap().id.clone()).collect();
        assert_eq!(ids, leaves.iter().map(|l| leaf_id(*l).to_string()).collect::<Vec<_>>());
        assert_eq!(own.total_value, 1000 * leaves.len() as u64);
        assert_eq!(own.receiver_identity_public_key, key(identity).serialize());
        let [only] = own.receivers.as_slice() else { panic!("{:?}", own.receivers) };
        assert_eq!(only.identity_public_key, key(identity).serialize());
        assert!(own.leaves.iter().all(|leaf| leaf.transfer_receiver_id == only.id));
    }
    let all = shown(1).await.unwrap();
    assert_eq!((all.leaves.len(), all.total_value, all.receivers.len()), (3, 3000, 2));
    assert_eq!(all.receivers[0].amount_sats, 2000);
    // One claims: complete for it, open for the other and for the sender.
    let mut connection = bench.db.pool().acquire().await.unwrap();
    transfer::complete(&mut connection, id, &key(3).serialize()).await.unwrap();
    let status = |t: Option<spark::Transfer>| t.unwrap().status();
    let open = spark::TransferStatus::SenderKeyTweaked;
    assert_eq!(status(shown(3).await), spark::TransferStatus::Completed);
    assert_eq!((status(shown(2).await), status(shown(1).await)), (open, open));
    for (identity, count) in [(2, 1), (3, 0)] {
        let pending = spark::TransferFilter::default();
        let pending = bench.api.query_pending_transfers(from(identity, pending)).await.unwrap();
        assert_eq!(pending.into_inner().transfers.len(), count);
    }
}

#[tokio::test]
async fn invoices_are_found_by_payer_and_receiver() {
    use secp256k1::Keypair;
    use spark_rules::address::{Invoice, Network, Payment, SparkAddress};
    let bench = bench().await;
    let secret = secp256k1::SecretKey::from_slice(&[2; 32]).unwrap();
    let receiver = secp256k1::PublicKey::from_secret_key_global(&secret);
    let mut address = SparkAddress::new(Network::Regtest, receiver);
    let payment = Payment::Sats { amount: Some(1000) };
    address.invoice = Some(Invoice { id: [1; 16], payment, memo: None, sender: None, expiry: None });
    let message = secp256k1::Message::from_digest(address.invoice_hash().unwrap());
    let pair = Keypair::from_secret_key(secp256k1::SECP256K1, &secret);
    address.signature = Some(secp256k1::SECP256K1.sign_schnorr_no_aux_rand(&message, &pair).serialize());
    let text = address.encode().unwrap();
    let ask = |identity, invoice: Vec<String>| {
        let api = bench.api.clone();
        let request = spark::QuerySparkInvoicesRequest { invoice, ..Default::default() };
        async move { api.query_spark_invoices(from(identity, request)).await.map(|r| r.into_inner()) }
    };
    let status = |answer: spark::QuerySparkInvoicesResponse| answer.invoice_statuses[0].status();
    assert_eq!(status(ask(1, vec![text.clone()]).await.unwrap()), spark::InvoiceStatus::NotFound);
    let id = put_shared_transfer(&bench.db, 9, 1, &[(7, 2)], &text).await;
    let found = ask(1, vec![text.clone(), text.clone()]).await.unwrap();
    assert_eq!((found.invoice_statuses.len(), found.offset), (2, -1));
    assert_eq!(found.invoice_statuses[1].invoice, text);
    let paid = spark::SatsTransfer { transfer_id: id.as_bytes().to_vec() };
    let paid = spark::invoice_response::TransferType::SatsTransfer(paid);
    assert_eq!(found.invoice_statuses[1].transfer_type, Some(paid));
    assert_eq!(status(found), spark::InvoiceStatus::Finalized);
    assert_eq!(status(ask(5, vec![text.clone()]).await.unwrap()), spark::InvoiceStatus::NotFound);
    for bad in [vec!["spark".into()], vec![text; 101], vec!["s".repeat(2000)]] {
        assert_eq!(ask(1, bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn operators_tokens_and_what_is_not_offered() {
    let bench = bench().await;
    let list = bench.api.get_signing_operator_list(from(1, ())).await.unwrap().into_inner().signing_operators;
    assert_eq!(list.len(), 3);
    assert_eq!(list[&format!("{:064x}", 2)].index, 1);

    let request = QueryTokenOutputsRequest {
        owner_public_keys: vec![key(1).serialize().to_vec()],
        ..QueryTokenOutputsRequest::default()
    };
    let none = bench.api.query_token_outputs(from(1, request.clone())).await.unwrap().into_inner();
    assert!(none.outputs_with_previous_transaction_data.is_empty());
    assert!(!none.page_response.unwrap().has_next_page);
    assert_eq!(
        bench.api.query_token_outputs(from(2, request)).await.unwrap_err().code(),
        Code::PermissionDenied
    );

    let transactions = QueryTokenTransactionsRequest {
        owner_public_keys: vec![key(1).serialize().to_vec()],
        ..QueryTokenTransactionsRequest::default()
    };
    let none = bench.api.query_token_transactions(from(1, transactions.clone())).await.unwrap().into_inner();
    assert!(none.token_transactions_with_status.is_empty() && none.offset == -1);
    assert_eq!(
        bench.api.query_token_transactions(from(2, transactions)).await.unwrap_err().code(),
        Code::PermissionDenied
    );

    let refused = bench.api.initiate_swap_primary_transfer(from(1, Default::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let refused = bench.api.start_leaf_swap_v2(from(1, Default::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test]
async fn x19_events_are_for_the_session_only() {
    let bench = bench().await;
    let request = spark::SubscribeToEventsRequest { identity_public_key: key(1).serialize().to_vec() };
    assert!(bench.api.subscribe_to_events(from(1, request.clone())).await.is_ok());
    let refused = bench.api.subscribe_to_events(from(2, request.clone())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = bench.api.subscribe_to_events(Request::new(request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}
