//! The chain view against a real bitcoind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod support;

use std::{
    collections::HashSet,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bitcoin::{
    Amount, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness, absolute,
    consensus::encode, transaction,
};
use serde_json::{Value, json};
use spark_operator::{
    chain::{
        BitcoindSource, BlockConnected, BlockDisconnected, BlockId, BoxError, ChainError, ChainSink,
        ChainSource, Follower, HeaderStore as _, MemoryHeaders, Mempool, OutputState, Spent, Start,
    },
    config::Chain,
    metrics::{BuildInfo, Metrics},
};
use support::Node;

/// Anyone can spend it: P2WSH of OP_TRUE.
fn true_script() -> ScriptBuf {
    ScriptBuf::from_bytes(vec![0x51])
}

fn mining_script() -> ScriptBuf {
    true_script().to_p2wsh()
}

#[derive(Default)]
struct Recorder {
    chain: Mutex<Vec<BlockId>>,
    disconnected: Mutex<Vec<u32>>,
    came: Mutex<Vec<Txid>>,
    held: Mutex<HashSet<Txid>>,
}

#[async_trait]
impl ChainSink for Recorder {
    async fn connected(&self, event: &BlockConnected) -> Result<(), BoxError> {
        self.chain.lock().unwrap().push(event.id);
        Ok(())
    }

    async fn disconnected(&self, event: &BlockDisconnected) -> Result<(), BoxError> {
        assert_eq!(self.chain.lock().unwrap().pop(), Some(event.id));
        self.disconnected.lock().unwrap().push(event.id.height);
        Ok(())
    }

    async fn mempool(&self, came: &[Transaction], held: &HashSet<Txid>) -> Result<(), BoxError> {
        self.came.lock().unwrap().extend(came.iter().map(Transaction::compute_txid));
        held.clone_into(&mut self.held.lock().unwrap());
        Ok(())
    }
}

struct World {
    /// Runs as long as this lives.
    _node: Node,
    source: Arc<BitcoindSource>,
    store: Arc<MemoryHeaders>,
    sink: Arc<Recorder>,
    follower: Arc<Follower>,
}

impl World {
    async fn start(max_reorg: u32, poll: Duration) -> Self {
        let node = Node::start();
        let source = Arc::new(node.connect().await);
        let store = Arc::new(MemoryHeaders::default());
        let sink = Arc::new(Recorder::default());
        let config = Chain {
            deposit_depth: NonZeroU32::MIN,
            exit_depth: NonZeroU32::MIN,
            max_reorg: NonZeroU32::new(max_reorg).unwrap(),
            start_height: None,
            poll,
            max_tip_age: Duration::from_secs(3600),
        };
        let build = BuildInfo { version: "0", commit: "0", network: "regtest", epoch: 1 };
        let metrics = Metrics::new(build, &[1, 2]).unwrap();
        let follower = Arc::new(Follower::new(
            source.clone(),
            store.clone(),
            sink.clone(),
            config,
            Start::Height(0),
            metrics,
        ));
        Self { _node: node, source, store, sink, follower }
    }

    async fn mine(&self, blocks: u32) {
        self.mine_to(&mining_script(), blocks).await;
    }

    /// A block mined again within the same second is the same block, unless it pays elsewhere.
    async fn mine_branch(&self, branch: u8, blocks: u32) {
        let script = ScriptBuf::from_bytes(vec![0x01, branch, 0x75, 0x51]).to_p2wsh();
        self.mine_to(&script, blocks).await;
    }

    async fn mine_to(&self, script: &ScriptBuf, blocks: u32) {
        let address = bitcoin::Address::from_script(script, Network::Regtest).unwrap();
        let _: Value = self
            .source
            .call("generatetoaddress", &[json!(blocks), json!(address.to_string())])
            .await
            .unwrap();
    }

    /// One look at the mempool: what came, and what it holds.
    async fn look(&self, mempool: &mut Mempool) -> (Vec<Txid>, Vec<Txid>) {
        let tip = self.source.info().await.unwrap().best.hash;
        mempool.look(&*self.source, &*self.sink, tip).await.unwrap();
        let came = std::mem::take(&mut *self.sink.came.lock().unwrap());
        (came, self.sink.held.lock().unwrap().iter().copied().collect())
    }

    async fn invalidate(&self, height: u32) {
        let hash = self.source.hash_at(height).await.unwrap().unwrap();
        let _: Value = self.source.call("invalidateblock", &[json!(hash)]).await.unwrap();
    }

    async fn assert_in_step(&self) {
        let best = self.source.info().await.unwrap().best;
        assert_eq!(self.store.tip().await.unwrap().unwrap().id, best);
        let seen = self.sink.chain.lock().unwrap().clone();
        for (height, block) in (0..).zip(&seen) {
            assert_eq!(block.height, height);
            assert_eq!(self.source.hash_at(height).await.unwrap(), Some(block.hash));
        }
        assert_eq!(seen.last(), Some(&best));
    }

    async fn coinbase(&self, height: u32) -> OutPoint {
        let hash = self.source.hash_at(height).await.unwrap().unwrap();
        let block = self.source.block(&hash).await.unwrap();
        let script = mining_script();
        let tx = &block.txdata[0];
        let vout = tx.output.iter().position(|output| output.script_pubkey == script).unwrap();
        OutPoint { txid: tx.compute_txid(), vout: u32::try_from(vout).unwrap() }
    }

    async fn send(&self, transaction: &Transaction) {
        let hex = encode::serialize_hex(transaction);
        let _: Value = self.source.call("sendrawtransaction", &[json!(hex)]).await.unwrap();
    }
}

fn spend(outpoint: OutPoint, value: Amount) -> Transaction {
    Transaction {
        version: transaction::Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: vec![TxIn {
            previous_output: outpoint,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::from_slice(&[true_script().as_bytes()]),
        }],
        output: vec![TxOut { value, script_pubkey: mining_script() }],
    }
}

/// X12: orphaned blocks are seen, undone in reverse order, and replaced, at every depth.
#[tokio::test]
async fn x12_reorganisations() {
    let world = World::start(5, Duration::from_secs(1)).await;
    world.mine(10).await;
    world.follower.sync().await.unwrap();
    world.assert_in_step().await;
    let mut height = 10;
    for depth in 1..=5 {
        world.sink.disconnected.lock().unwrap().clear();
        world.invalidate(height - depth + 1).await;
        // Sometimes look while the best chain is shorter than before.
        if depth % 2 == 1 {
            world.follower.sync().await.unwrap();
            world.assert_in_step().await;
        }
        world.mine_branch(u8::try_from(depth).unwrap(), depth + 1).await;
        world.follower.sync().await.unwrap();
        world.assert_in_step().await;
        let undone = world.sink.disconnected.lock().unwrap().clone();
        let expected: Vec<u32> = (height - depth + 1..=height).rev().collect();
        assert_eq!(undone, expected, "depth {depth}");
        height += 1;
    }
    // Deeper than allowed: refused before anything is undone.
    let before = world.sink.chain.lock().unwrap().clone();
    world.invalidate(height - 5).await;
    world.mine_branch(6, 8).await;
    let refused = world.follower.sync().await.unwrap_err();
    assert!(matches!(refused, ChainError::ReorgTooDeep { limit: 5 }), "{refused}");
    assert_eq!(*world.sink.chain.lock().unwrap(), before);
}

#[tokio::test]
async fn a_new_block_wakes_the_follower() {
    // A poll far longer than the test waits.
    let world = World::start(100, Duration::from_secs(40)).await;
    world.mine(1).await;
    let mut status = world.follower.status();
    let follower = world.follower.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let task = tokio::spawn(async move { follower.run(async { drop(stopped.await) }).await });
    status.wait_for(|status| status.tip.is_some_and(|tip| tip.height == 1)).await.unwrap();
    // The follower must be waiting by then, or the second argument of the call must catch the block.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    world.mine(1).await;
    tokio::time::timeout(
        Duration::from_secs(10),
        status.wait_for(|status| status.tip.is_some_and(|tip| tip.height == 2)),
    )
    .await
    .unwrap()
    .unwrap();
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(status.borrow().fresh(Duration::from_secs(3600)).is_ok());
    let mut old = status.borrow().clone();
    old.tip_time = 0;
    assert!(old.fresh(Duration::from_secs(3600)).unwrap_err().contains("s old"));
    old = status.borrow().clone();
    old.mempool = false;
    assert!(old.fresh(Duration::from_secs(3600)).unwrap_err().contains("mempool"));
    stop.send(()).unwrap();
    task.await.unwrap();
}

#[tokio::test]
async fn outputs_confirmations_and_spends() {
    let world = World::start(100, Duration::from_secs(1)).await;
    world.mine(102).await;
    let coin = world.coinbase(1).await;
    let OutputState::Confirmed { output, block, depth, spent, .. } =
        world.source.output(&coin).await.unwrap()
    else {
        panic!()
    };
    assert_eq!((block.height, depth, spent), (1, 102, Spent::No));
    assert_eq!(output.script_pubkey, mining_script());
    let first = spend(coin, output.value - Amount::from_sat(1000));
    let child = OutPoint { txid: first.compute_txid(), vout: 0 };
    assert_eq!(world.source.output(&child).await.unwrap(), OutputState::Unknown);

    let mut mempool = Mempool::default();
    assert_eq!(world.look(&mut mempool).await, (vec![], vec![]));
    world.send(&first).await;
    let first = first.compute_txid();
    assert_eq!(world.look(&mut mempool).await, (vec![first], vec![first]));
    assert_eq!(world.look(&mut mempool).await, (vec![], vec![first]), "told once");
    assert!(matches!(world.source.output(&child).await.unwrap(), OutputState::Unconfirmed { .. }));
    let state = world.source.output(&coin).await.unwrap();
    assert!(matches!(state, OutputState::Confirmed { spent: Spent::InMempool, .. }), "{state:?}");
    assert!(state.spendable_at(1).is_none());

    let second = spend(coin, output.value - Amount::from_sat(20_000));
    world.send(&second).await;
    let replaced = second.compute_txid();
    assert_eq!(world.look(&mut mempool).await, (vec![replaced], vec![replaced]));

    // Between two blocks nothing is told: what left the mempool may be in a block that is not connected yet.
    let stale = world.source.info().await.unwrap().best.hash;
    world.mine(1).await;
    mempool.look(&*world.source, &*world.sink, stale).await.unwrap();
    assert!(world.sink.held.lock().unwrap().contains(&replaced));
    assert_eq!(world.look(&mut mempool).await, (vec![], vec![]));
    let state = world.source.output(&coin).await.unwrap();
    assert!(matches!(state, OutputState::Confirmed { spent: Spent::InChain, depth: 103, .. }), "{state:?}");

    // Depth counts, and a reorganisation takes it back.
    let child = OutPoint { txid: second.compute_txid(), vout: 0 };
    assert!(world.source.output(&child).await.unwrap().spendable_at(1).is_some());
    assert!(world.source.output(&child).await.unwrap().spendable_at(2).is_none());
    world.mine(2).await;
    assert!(world.source.output(&child).await.unwrap().spendable_at(3).is_some());
    world.invalidate(103).await;
    assert!(world.source.output(&child).await.unwrap().spendable_at(1).is_none());
}

#[tokio::test]
async fn wrong_nodes_are_refused() {
    let mut node = Node::start();
    let source = node.connect().await;
    let refused = BitcoindSource::connect(&node.config(), Network::Signet).await.unwrap_err();
    assert!(matches!(refused, ChainError::WrongNetwork { .. }), "{refused}");
    // A restarted node has another cookie: the source logs in anew.
    node.restart();
    let mut answers = source.info().await.is_ok();
    for _ in 0..50 {
        if answers {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        answers = source.info().await.is_ok();
    }
    assert!(answers);
    node.stop();
    assert!(matches!(source.info().await.unwrap_err(), ChainError::Unreachable(_)));
}

#[tokio::test]
async fn s13_a_mempool_of_large_transactions_is_looked_at_in_parts() {
    let world = World::start(100, Duration::from_secs(1)).await;
    world.mine(148).await;
    let mut sent = HashSet::new();
    for height in 1..=48 {
        // 2300 outputs: 100 kB, the most that is relayed.
        let mut tx = spend(world.coinbase(height).await, Amount::from_sat(2_173_000));
        let output = tx.output[0].clone();
        tx.output = vec![output; 2300];
        world.send(&tx).await;
        sent.insert(tx.compute_txid());
    }
    let mut mempool = Mempool::default();
    let tip = world.source.info().await.unwrap().best.hash;
    assert!(!mempool.look(&*world.source, &*world.sink, tip).await.unwrap(), "something is left");
    let first: HashSet<Txid> = world.sink.came.lock().unwrap().drain(..).collect();
    assert!(first.len() < 48, "{}", first.len());
    assert_eq!(*world.sink.held.lock().unwrap(), sent, "what is held is known at once");
    assert!(mempool.look(&*world.source, &*world.sink, tip).await.unwrap());
    let second: HashSet<Txid> = world.sink.came.lock().unwrap().drain(..).collect();
    assert!(first.is_disjoint(&second));
    assert_eq!(&first | &second, sent, "each is told once");
}
