//! Bitcoin Core, the faucet and the RPC front, on a real node.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bitcoin::secp256k1::{Keypair, SECP256K1};
use bitcoin::{Address, Amount, Network};
use rand::RngCore;
use serde_json::{Value, json};
use spark_devnet::bitcoind::Bitcoind;
use spark_devnet::faucet::{Faucet, FaucetError};
use spark_devnet::ports::Port;
use spark_devnet::rpc::{RpcClient, RpcError};
use spark_devnet::rpcfront::RpcFront;
use spark_devnet::state::StateDir;

struct Chain {
    node: Bitcoind,
    faucet: Arc<Faucet>,
    state: StateDir,
}

async fn chain() -> Result<Chain> {
    let state = StateDir::temporary()?;
    let node = Bitcoind::start(&state.private("bitcoind")?).await?;
    let faucet = Arc::new(Faucet::start(node.rpc().clone()).await?);
    Ok(Chain { node, faucet, state })
}

fn taproot_address() -> Result<Address> {
    let mut bytes = [0u8; 32];
    rand::thread_rng().fill_bytes(&mut bytes);
    let key = Keypair::from_seckey_slice(SECP256K1, &bytes)?.x_only_public_key().0;
    Ok(Address::p2tr(SECP256K1, key, None, Network::Regtest))
}

#[tokio::test]
async fn the_faucet_pays_a_taproot_address_and_it_confirms() -> Result<()> {
    let Chain { state: _state, node, faucet } = chain().await?;
    let address = taproot_address()?;
    let amount = Amount::from_sat(123_456);

    let paid = faucet.send(&address, amount).await?;
    let txid = paid.compute_txid();
    assert_eq!(paid.output[0].value, amount);
    assert_eq!(paid.output[0].script_pubkey, address.script_pubkey());
    assert_eq!(node.mempool().await?, [txid]);
    assert_eq!(node.confirmations(txid).await?, Some(0));

    let before = node.tip().await?;
    let mined = faucet.mine(3).await?;
    let after = node.tip().await?;
    assert_eq!(after.height, before.height + 3);
    assert_eq!(Some(&after.hash), mined.last());
    assert_eq!(node.confirmations(txid).await?, Some(3));
    Ok(())
}

#[tokio::test]
async fn many_payments_fit_between_two_blocks() -> Result<()> {
    let Chain { state: _state, node, faucet } = chain().await?;
    let address = taproot_address()?;
    for _ in 0..150 {
        faucet.send(&address, Amount::from_sat(1_000)).await?;
    }
    assert_eq!(node.mempool().await?.len(), 150);
    faucet.mine(1).await?;
    assert!(node.mempool().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn the_faucet_refuses_what_it_cannot_pay() -> Result<()> {
    let Chain { state: _state, node: _node, faucet } = chain().await?;
    let address = taproot_address()?;
    assert!(matches!(faucet.pay(Vec::new()).await, Err(FaucetError::NothingToPay)));
    assert!(matches!(faucet.send(&address, Amount::MAX_MONEY).await, Err(FaucetError::Poor { .. })));
    // And it still pays afterwards.
    faucet.send(&address, Amount::from_sat(1_000)).await?;
    Ok(())
}

#[tokio::test]
async fn a_reorganisation_takes_a_payment_back_and_a_reconsideration_restores_it() -> Result<()> {
    let Chain { state: _state, node, faucet } = chain().await?;
    let paid = faucet.send(&taproot_address()?, Amount::from_sat(50_000)).await?.compute_txid();
    faucet.mine(2).await?;
    let old_tip = node.tip().await?;
    assert_eq!(node.confirmations(paid).await?, Some(2));

    let fallen = node.reorg(2, 3).await?;
    let new_tip = node.tip().await?;
    assert_eq!(new_tip.height, old_tip.height + 1);
    assert_ne!(node.block_hash(old_tip.height).await?, old_tip.hash);
    assert_eq!(node.confirmations(paid).await?, Some(0), "back in the mempool");

    // The old branch is shorter by one until it grows.
    node.reconsider(fallen).await?;
    node.invalidate(node.block_hash(old_tip.height - 1).await?).await?;
    assert_eq!(node.tip().await?, old_tip);
    assert_eq!(node.confirmations(paid).await?, Some(2));
    Ok(())
}

#[tokio::test]
async fn the_chain_survives_stop_and_kill() -> Result<()> {
    let Chain { state: _state, mut node, faucet } = chain().await?;
    let tip = node.tip().await?;
    node.stop().await?;
    assert!(node.tip().await.is_err());
    node.restart().await?;
    assert_eq!(node.tip().await?, tip);

    // Without a flush Core may lose the last blocks, never the chain.
    node.process_mut().kill()?;
    node.restart().await?;
    assert!(node.tip().await?.height <= tip.height);

    // The faucet goes on with what is there.
    faucet.mine(101).await?;
    faucet.send(&taproot_address()?, Amount::from_sat(1_000)).await?;
    Ok(())
}

#[tokio::test]
async fn a_package_pays_for_its_parent() -> Result<()> {
    use bitcoin::absolute::LockTime;
    use bitcoin::transaction::Version;
    use bitcoin::{OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};

    let Chain { state: _state, node, faucet } = chain().await?;
    // Anyone can spend a pay-to-anchor output (BIP 433), so parent and child need no keys.
    let anchor = ScriptBuf::from_hex("51024e73")?;
    let funding =
        faucet.pay(vec![TxOut { value: Amount::from_sat(20_000), script_pubkey: anchor.clone() }]).await?;
    faucet.mine(1).await?;
    let spend = |txid, vout, outputs: &[u64]| Transaction {
        version: Version::non_standard(3),
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint { txid, vout },
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: Witness::new(),
        }],
        output: outputs
            .iter()
            .map(|value| TxOut { value: Amount::from_sat(*value), script_pubkey: anchor.clone() })
            .collect(),
    };
    // Two outputs: with one it would have 64 bytes, and nodes refuse what is as short as an inner Merkle node.
    let parent = spend(funding.compute_txid(), 0, &[15_000, 5_000]);
    let mut child = spend(parent.compute_txid(), 0, &[10_000]);
    child.output[0].script_pubkey = taproot_address()?.script_pubkey();

    assert!(node.send_raw(&parent).await.is_err(), "no fee of its own");
    let answer = node.submit_package(&[parent.clone(), child.clone()]).await?;
    assert_eq!(answer["package_msg"], "success", "{answer}");
    assert_eq!(node.mempool().await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn waiting_for_a_block_ends_when_it_comes() -> Result<()> {
    let Chain { state: _state, node, faucet } = chain().await?;
    let rpc = node.rpc().clone();
    let tip = node.tip().await?;
    let waiting =
        tokio::spawn(async move { rpc.call::<Value>("waitfornewblock", json!([0, tip.hash])).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    let mined = faucet.mine(1).await?;
    let woken = tokio::time::timeout(Duration::from_secs(10), waiting).await???;
    assert_eq!(woken["hash"], json!(mined[0]));
    Ok(())
}

async fn front(chain: &Chain) -> Result<(RpcFront, RpcClient)> {
    let front = RpcFront::start(
        Port::lease()?,
        ("tester", "secret"),
        chain.node.rpc().clone(),
        Arc::clone(&chain.faucet),
    )
    .await?;
    let client = RpcClient::new(front.address(), "tester", "secret");
    Ok((front, client))
}

#[tokio::test]
async fn the_front_is_a_node_with_a_wallet() -> Result<()> {
    let chain = chain().await?;
    let (_front, rpc) = front(&chain).await?;

    let created: Value = rpc.call("createwallet", json!(["w"])).await?;
    assert_eq!(created["name"], "w");
    let again = rpc.call::<Value>("createwallet", json!({"wallet_name": "w"})).await;
    assert!(matches!(again, Err(RpcError::Refused { code: -4, .. })));
    let loaded = rpc.call::<Value>("loadwallet", json!(["w"])).await;
    assert!(matches!(loaded, Err(RpcError::Refused { code: -35, .. })));
    let unknown = rpc.call::<Value>("loadwallet", json!(["x"])).await;
    assert!(matches!(unknown, Err(RpcError::Refused { code: -18, .. })));
    assert_eq!(rpc.call::<Value>("listwallets", json!([])).await?, json!(["w"]));
    assert!(rpc.call::<f64>("getbalance", json!([])).await? > 100.0);

    let address = taproot_address()?.to_string();
    let txid: bitcoin::Txid = rpc.call("sendtoaddress", json!([address, 0.001])).await?;
    assert_eq!(chain.node.mempool().await?, [txid]);
    let by_name: bitcoin::Txid =
        rpc.call("sendtoaddress", json!({"address": address, "amount": "0.5"})).await?;
    assert!(chain.node.mempool().await?.contains(&by_name));

    for (params, code) in [
        (json!(["nonsense", 1]), -5),
        (json!(["bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", 1]), -5),
        (json!([address, -1]), -3),
        (json!([address, "much"]), -3),
        (json!([address, 20_000_000]), -6),
        (json!([]), -32602),
    ] {
        let refused = rpc.call::<Value>("sendtoaddress", params.clone()).await;
        assert!(
            matches!(refused, Err(RpcError::Refused { code: got, .. }) if got == code),
            "{params}: {refused:?}"
        );
    }

    // The rest is the node's.
    let own: String = rpc.call("getnewaddress", json!([])).await?;
    let blocks: Vec<String> = rpc.call("generatetoaddress", json!([1, own])).await?;
    assert_eq!(chain.node.tip().await?.hash.to_string(), blocks[0]);
    let missing = rpc.call::<Value>("nosuchmethod", json!([])).await;
    assert!(matches!(missing, Err(RpcError::Refused { code: -32601, .. })));
    Ok(())
}

#[tokio::test]
async fn the_front_speaks_the_old_dialect_batches_and_wallet_paths() -> Result<()> {
    use http_body_util::{BodyExt, Full};
    use hyper::body::Bytes;
    use hyper_util::rt::TokioIo;

    let chain = chain().await?;
    let (front, _) = front(&chain).await?;
    let address = front.address();
    let post = |path: &'static str, credentials: &'static str, body: String| async move {
        let stream = tokio::net::TcpStream::connect(address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = hyper::Request::post(path)
            .header("host", "localhost")
            .header("authorization", format!("Basic {credentials}"))
            .body(Full::new(Bytes::from(body)))?;
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, serde_json::from_slice::<Value>(&body).unwrap_or(Value::Null)))
    };
    // tester:secret
    const GOOD: &str = "dGVzdGVyOnNlY3JldA==";
    const BAD: &str = "dGVzdGVyOmd1ZXNz";

    let call = json!({"jsonrpc": "1.0", "id": "a", "method": "getnewaddress", "params": []}).to_string();
    assert_eq!(post("/", BAD, call.clone()).await?.0, 401);
    let (status, reply) = post("/wallet/anything", GOOD, call).await?;
    assert_eq!((status, &reply["id"], &reply["error"]), (200, &json!("a"), &Value::Null));
    assert!(reply["result"].as_str().context("an address")?.starts_with("bcrt1"));

    let call = json!({"id": 1, "method": "sendtoaddress", "params": ["x", 1]}).to_string();
    let (status, reply) = post("/", GOOD, call).await?;
    assert_eq!((status, &reply["error"]["code"]), (500, &json!(-5)));
    // Passed through with the node's own status.
    let call = json!({"id": 1, "method": "nosuchmethod"}).to_string();
    assert_eq!(post("/", GOOD, call).await?.0, 404);
    assert_eq!(post("/", GOOD, "{".to_owned()).await?.0, 500);

    let batch = json!([
        {"id": 1, "method": "getblockcount"},
        {"id": 2, "method": "getbalance"},
        {"id": 3, "method": "nosuchmethod"},
    ]);
    let (status, reply) = post("/wallet/w", GOOD, batch.to_string()).await?;
    assert_eq!(status, 200);
    assert_eq!(reply[0]["result"], json!(chain.node.tip().await?.height));
    assert!(reply[1]["result"].as_f64().context("a balance")? > 0.0);
    assert_eq!((&reply[2]["id"], &reply[2]["error"]["code"]), (&json!(3), &json!(-32601)));
    Ok(())
}

#[tokio::test]
async fn two_networks_do_not_meet() -> Result<()> {
    let (one, two) = tokio::try_join!(chain(), chain())?;
    assert_ne!(one.node.address(), two.node.address());
    assert_ne!(one.state.path(), two.state.path());
    one.faucet.mine(7).await?;
    assert_ne!(one.node.tip().await?.height, two.node.tip().await?.height);
    let (user, password) = one.node.credentials();
    let intruder = RpcClient::new(two.node.address(), user, password);
    assert!(matches!(intruder.call::<Value>("getblockcount", json!([])).await, Err(RpcError::Status(_))));
    Ok(())
}
