use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use spark_rules::leaf::LeafStatus;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tonic::Code;

use super::*;
use crate::{
    db::testing::database,
    rpc::testing::{leaf_id, put_leaf, record, session},
};

/// A log without a signer: entries as a test adds them.
#[derive(Default)]
struct Entries(Mutex<Vec<Receipt>>, AtomicBool);

impl Entries {
    /// The key of a leaf gets a new version under the next root.
    fn add(&self, leaf: u8, phase: &str, new_version: u64) {
        let mut all = self.0.lock().unwrap();
        let index = all.len() as u64;
        all.push(Receipt {
            leaf_id: leaf_id(leaf).to_string(),
            log_index: index,
            phase: phase.into(),
            retired_version: new_version.saturating_sub(1),
            new_version,
            root_epoch_before: index,
            root_epoch_after: index + 1,
            ..Default::default()
        });
    }
}

#[tonic::async_trait]
impl LogReader for Entries {
    async fn entries(&self, from: u64, until: u64) -> Result<Vec<Receipt>, CallError> {
        let all = self.0.lock().unwrap();
        // Pages of two.
        Ok(all.iter().filter(|r| (from..until).contains(&r.log_index)).take(2).cloned().collect())
    }

    async fn receipts(&self, leaf: &LeafId, size: u64) -> Result<Vec<Receipt>, CallError> {
        if self.1.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let (all, leaf) = (self.0.lock().unwrap(), leaf.to_string());
        Ok(all.iter().filter(|r| r.leaf_id == leaf && r.log_index < size).cloned().collect())
    }
}

struct Bench {
    db: Db,
    log: Arc<Entries>,
    heads: watch::Sender<Option<Arc<Head>>>,
    watch: Watch,
}

async fn bench() -> Bench {
    let db = database().await;
    let log = Arc::new(Entries::default());
    let (heads, published) = Published::by_hand();
    let watch = Watch::start(db.clone(), log.clone(), published);
    Bench { db, log, heads, watch }
}

type News = ReceiverStream<Message>;

impl Bench {
    fn publish(&self, size: u64, destroyed_before: u64, witnesses: usize) {
        self.heads.send_replace(Some(Arc::new(Head::unsigned(size, destroyed_before, witnesses))));
    }

    async fn subscribe(&self, identity: u8, leaves: &[u8]) -> Result<News, Refused> {
        let ids: Vec<String> = leaves.iter().map(|leaf| leaf_id(*leaf).to_string()).collect();
        self.watch.subscribe(&session(identity), &ids).await
    }
}

async fn message(news: &mut News) -> Message {
    timeout(Duration::from_secs(20), news.next()).await.expect("in time").expect("open")
}

/// The next state of a leaf: leaf, applied, confirmed, version, witnesses.
async fn state(news: &mut News) -> (String, u64, u64, u64, u32) {
    loop {
        match message(news).await.unwrap().event.unwrap() {
            Event::Leaf(leaf) => {
                return (leaf.leaf_id, leaf.applied, leaf.confirmed, leaf.version, leaf.witnesses);
            }
            Event::Heartbeat(_) => {}
        }
    }
}

#[tokio::test]
async fn applied_is_said_before_confirmed_and_a_new_stream_begins_with_the_state() {
    let bench = bench().await;
    put_leaf(&bench.db, &record(7, 1, 2, LeafStatus::Available)).await;
    let id = leaf_id(7).to_string();
    bench.log.add(7, "dkg", 0);
    bench.log.add(8, "send", 1);
    bench.publish(2, 2, 2);
    let mut news = bench.subscribe(1, &[7]).await.unwrap();
    assert_eq!(state(&mut news).await, (id.clone(), 1, 1, 0, 2));

    // What is not published is not said; more than a page is.
    for entry in [8, 8, 7] {
        bench.log.add(entry, "claim", 1);
    }
    bench.publish(4, 2, 2);
    bench.publish(5, 2, 2);
    assert_eq!(state(&mut news).await, (id.clone(), 2, 1, 1, 2), "applied");
    // Others' destructions are confirmed, this one is not yet.
    bench.publish(5, 4, 2);
    bench.publish(5, 5, 2);
    assert_eq!(state(&mut news).await, (id.clone(), 2, 2, 1, 2), "confirmed");
    bench.publish(5, 5, 1);
    assert_eq!(state(&mut news).await, (id.clone(), 2, 2, 1, 1), "a witness is away");

    drop(news);
    bench.log.add(7, "claim", 2);
    bench.publish(6, 5, 2);
    let mut again = bench.subscribe(1, &[7]).await.unwrap();
    assert_eq!(state(&mut again).await, (id, 3, 2, 2, 2));
    assert!(matches!(message(&mut again).await.unwrap().event, Some(Event::Heartbeat(_))));
}

#[tokio::test]
async fn d16_leaves_of_others_and_what_comes_after_are_not_told() {
    let bench = bench().await;
    put_leaf(&bench.db, &record(7, 1, 2, LeafStatus::Available)).await;
    for (phase, version) in [("dkg", 0), ("claim", 1), ("claim", 2), ("send", 3), ("claim", 4)] {
        bench.log.add(7, phase, version);
    }
    bench.publish(5, 9, 2);
    let stranger = bench.subscribe(3, &[7]).await.unwrap_err();
    assert_eq!(stranger.reason, Reason::NotOwner);
    assert_eq!(bench.subscribe(1, &[7, 9]).await.unwrap_err().reason, Reason::NotOwner, "an unknown leaf");
    // Up to the step by which it left them.
    let mut news = bench.subscribe(1, &[7]).await.unwrap();
    assert_eq!(state(&mut news).await, (leaf_id(7).to_string(), 4, 4, 3, 2));
    // It comes back.
    put_leaf(&bench.db, &record(7, 1, 4, LeafStatus::Available)).await;
    bench.log.add(7, "send", 5);
    bench.publish(6, 9, 2);
    assert_eq!(state(&mut news).await, (leaf_id(7).to_string(), 6, 6, 5, 2));
}

#[tokio::test]
async fn streams_and_leaves_are_bounded() {
    let bench = bench().await;
    put_leaf(&bench.db, &record(7, 1, 2, LeafStatus::Available)).await;
    let unpublished = bench.subscribe(1, &[7]).await.unwrap_err();
    assert_eq!(unpublished.reason, Reason::SignerUnreachable);
    bench.publish(0, 0, 0);
    let own = session(1);
    for leaves in [Vec::new(), vec!["x".to_owned()], vec![leaf_id(7).to_string(); MOST_LEAVES + 1]] {
        assert_eq!(bench.watch.subscribe(&own, &leaves).await.unwrap_err().reason, Reason::FieldInvalid);
    }
    let mut oldest = bench.subscribe(1, &[7, 7]).await.unwrap();
    assert_eq!(state(&mut oldest).await, (leaf_id(7).to_string(), 0, 0, 0, 0));
    let mut newer = Vec::new();
    for _ in 0..PER_IDENTITY {
        newer.push(bench.subscribe(1, &[7]).await.unwrap());
    }
    let ended = loop {
        if let Err(status) = message(&mut oldest).await {
            break status;
        }
    };
    assert_eq!(ended.code(), Code::Unavailable);
    assert!(oldest.next().await.is_none());
    assert_eq!(bench.watch.shared.places.count(), PER_IDENTITY);
    drop(newer);
    timeout(Duration::from_secs(20), async {
        while bench.watch.shared.places.count() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("places are given back");
}

/// The log of a repaired signer begins anew.
#[tokio::test]
async fn a_log_that_begins_anew_is_read_from_its_beginning() {
    let bench = bench().await;
    put_leaf(&bench.db, &record(7, 1, 2, LeafStatus::Available)).await;
    for version in 0..3 {
        bench.log.add(7, "claim", version);
    }
    bench.publish(3, 9, 2);
    let mut news = bench.subscribe(1, &[7]).await.unwrap();
    assert_eq!(state(&mut news).await, (leaf_id(7).to_string(), 3, 3, 2, 2));
    bench.log.0.lock().unwrap().clear();
    bench.log.add(7, "repair", 2);
    bench.publish(1, 9, 2);
    assert_eq!(state(&mut news).await, (leaf_id(7).to_string(), 1, 1, 2, 2));
}

#[tokio::test]
async fn s13_an_identity_keeps_a_slow_signer_busy_with_as_many_streams_as_it_may_have() {
    let bench = bench().await;
    put_leaf(&bench.db, &record(7, 1, 2, LeafStatus::Available)).await;
    bench.log.add(7, "dkg", 0);
    bench.publish(1, 1, 2);
    bench.log.1.store(true, Ordering::Relaxed);
    let more = 4;
    let all = futures::future::join_all((0..PER_IDENTITY + more).map(|_| async {
        match timeout(Duration::from_secs(3), bench.subscribe(1, &[7])).await {
            Ok(refused) => Some(refused.map(|_| ()).unwrap_err().reason),
            Err(_) => None,
        }
    }))
    .await;
    assert_eq!(all.iter().filter(|given_up| **given_up == Some(Reason::Draining)).count(), more);
    assert_eq!(all.iter().filter(|waits| waits.is_none()).count(), PER_IDENTITY);
}
