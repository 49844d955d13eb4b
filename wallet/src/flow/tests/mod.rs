//! Whole flows against operators, some of which lie.

mod bounds;
mod deposit;
mod invoice;
mod package_keys;
mod receive;
mod send;
mod static_deposit;

use std::time::Duration;

use bitcoin::{Amount, OutPoint, TxOut, Txid, hashes::Hash as _};
use spark_proto::spark::{
    GetSigningCommitmentsRequest, GetSigningCommitmentsResponse, QueryNodesRequest, QueryNodesResponse,
    QueryTransfersResponse, Transfer, TransferFilter, TreeNode, query_nodes_request::Source,
};
use spark_rules::tx::{Spend, p2tr_script};

use crate::{
    Wallet,
    keys::Keys,
    testing::{Liar, Operators, commitment_set, wallet_of},
};

const SECOND_LEAF: &str = "0193c5d2-7b0a-7c40-9a55-2f3f6d0a1b2d";

/// A wallet of `keys` with one server per operator.
fn wallet(operators: &Operators, keys: Keys, servers: Vec<Liar>) -> (Wallet, tempfile::TempDir) {
    wallet_of(operators, keys, servers, Duration::from_secs(20))
}

/// Lists these nodes, all or by id, and gives out commitments.
fn listing(nodes: Vec<TreeNode>) -> Liar {
    Liar::default().on("query_nodes", move |request: QueryNodesRequest| Ok(page(&nodes, &request))).on(
        "get_signing_commitments",
        |request: GetSigningCommitmentsRequest| {
            let nodes = request.node_ids.len().max(request.node_id_count as usize);
            let count = nodes * request.count as usize;
            let signing_commitments = (0..count).map(|_| commitment_set().1).collect();
            Ok(GetSigningCommitmentsResponse { signing_commitments })
        },
    )
}

fn page(nodes: &[TreeNode], request: &QueryNodesRequest) -> QueryNodesResponse {
    let named = |node: &&TreeNode| match &request.source {
        Some(Source::NodeIds(ids)) => ids.node_ids.contains(&node.id),
        _ => true,
    };
    let nodes = nodes.iter().filter(named).map(|n| (n.id.clone(), n.clone())).collect();
    QueryNodesResponse { nodes, offset: -1 }
}

/// Shows these transfers to whoever asks.
fn showing(server: Liar, transfers: Vec<Transfer>) -> Liar {
    server.on("query_all_transfers", move |request: TransferFilter| {
        let asked = |t: &&Transfer| request.transfer_ids.contains(&t.id);
        let transfers = transfers.iter().filter(asked).cloned().collect();
        Ok(QueryTransfersResponse { transfers, offset: -1 })
    })
}

/// A leaf with another id, on an output of its own.
fn second_leaf(operators: &Operators, keys: &Keys, sats: u64) -> TreeNode {
    leaf_at(operators, keys, SECOND_LEAF, 0, sats)
}

/// One of many leaves.
fn numbered_leaf(operators: &Operators, keys: &Keys, number: usize, sats: u64) -> TreeNode {
    let id = format!("0193c5d2-7b0a-7c40-9a55-{number:012x}");
    leaf_at(operators, keys, &id, u32::try_from(number).unwrap(), sats)
}

fn leaf_at(operators: &Operators, keys: &Keys, id: &str, vout: u32, sats: u64) -> TreeNode {
    let script_pubkey = p2tr_script(&operators.verifying_key(keys, id));
    let outpoint = OutPoint { txid: Txid::from_byte_array([8; 32]), vout };
    let txout = TxOut { value: Amount::from_sat(sats), script_pubkey };
    operators.deposit_of(keys, id, vec![Spend { outpoint, txout }])
}
