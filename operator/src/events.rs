//! Events for wallets, from the durable `event_log` to any number of streams per identity.
//!
//! One reader per process follows the table and hands each row to the streams of its identity. What a stream says is
//! read when it says it: a transfer that is not claimable or a leaf that is not AVAILABLE is never announced. An
//! identity has a few streams at most, and beyond it its oldest ends.

mod cursor;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use spark_proto::spark::{
    self, ConnectedEvent, DepositEvent, HeartbeatEvent, SubscribeToEventsResponse, TransferEvent,
    subscribe_to_events_response::Event as Wire,
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use uuid::Uuid;

use self::cursor::Cursor;
use crate::{
    convert::{ConvertError, Converter, Side},
    db::{Db, DbError, event, event::EventRow, query_event, query_node, query_transfer, transfer},
    status::{Reason, Refused},
};

/// How often the table is looked at where nobody in this process wakes the reader.
const POLL: Duration = Duration::from_millis(250);
/// Wallets reconnect when they hear nothing for 15 seconds.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Events of one look at the table.
const BATCH: i64 = 1000;
/// Events that a stream may be behind before it is closed; the wallet reconnects and synchronises.
const BACKLOG: usize = 256;
/// Most streams of one identity: its devices.
const PER_IDENTITY: usize = 16;
/// Most streams of this process.
const STREAMS: usize = 10_000;
/// Statuses in which a receiver may claim.
const CLAIMABLE: [i32; 5] = [2, 3, 4, 9, 10];

/// Streams of one identity.
type Listeners = Vec<mpsc::Sender<Arc<EventRow>>>;

/// The event streams of this process. Clones share everything; the reader ends with the last clone.
#[derive(Debug, Clone)]
pub struct Events {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    db: Db,
    converter: Converter,
    network: spark::Network,
    listeners: Mutex<HashMap<[u8; 33], Listeners>>,
    wake: Notify,
}

impl Events {
    /// Starts the reader at the present end of the table.
    pub async fn start(db: Db, converter: Converter, network: spark::Network) -> Result<Self, DbError> {
        let head = event::head(db.pool()).await?;
        let mut cursor = Cursor::before(head);
        for row in query_event::above(db.pool(), cursor.newest(), &[], BATCH * 2).await? {
            cursor.take(row.seq, Instant::now());
        }
        let shared =
            Arc::new(Shared { db, converter, network, listeners: Mutex::default(), wake: Notify::new() });
        tokio::spawn(read(Arc::downgrade(&shared), cursor));
        Ok(Self { shared })
    }

    /// Says that rows were added, to be faster than the next look.
    pub fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// Streams open now.
    pub fn streams(&self) -> usize {
        self.shared.listeners().values().map(Vec::len).sum()
    }

    /// A new stream of an identity, which the caller has authorised. `connected` comes first and at once.
    ///
    /// # Errors
    /// When this process has as many streams as it may.
    pub fn subscribe(
        &self,
        identity: [u8; 33],
    ) -> Result<ReceiverStream<Result<SubscribeToEventsResponse, Status>>, Refused> {
        let (events, inbox) = mpsc::channel(BACKLOG);
        if self.streams() >= STREAMS {
            return Err(Refused::new(
                Reason::Draining,
                "too many event streams; subscribe at another operator",
            ));
        }
        let mut listeners = self.shared.listeners();
        let mine = listeners.entry(identity).or_default();
        if mine.len() >= PER_IDENTITY {
            mine.remove(0);
        }
        mine.push(events);
        drop(listeners);
        let (out, stream) = mpsc::channel(4);
        tokio::spawn(serve(Arc::downgrade(&self.shared), inbox, out));
        Ok(ReceiverStream::new(stream))
    }
}

impl Shared {
    fn listeners(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 33], Listeners>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a row to the streams of its identity. A stream that is gone or too far behind loses its place, which
    /// ends it.
    fn dispatch(&self, row: EventRow) {
        let Ok(identity) = <[u8; 33]>::try_from(row.identity.as_slice()) else { return };
        let row = Arc::new(row);
        let mut all = self.listeners();
        if let Some(streams) = all.get_mut(&identity) {
            streams.retain(|stream| stream.try_send(row.clone()).is_ok());
            if streams.is_empty() {
                all.remove(&identity);
            }
        }
    }

    fn forget_closed(&self) {
        self.listeners().retain(|_, streams| {
            streams.retain(|stream| !stream.is_closed());
            !streams.is_empty()
        });
    }

    /// What to say about a row now; nothing if there is nothing to say any more.
    async fn event(&self, row: &EventRow) -> Result<Option<Wire>, ConvertError> {
        let Ok(id) = Uuid::from_slice(&row.body) else { return Err(ConvertError::Column("event_log.body")) };
        match row.kind.as_str() {
            "DEPOSIT" => self.deposit(id, &row.identity).await,
            "TRANSFER" => {
                let shown = self.transfer(id, Side::Receiver(&row.identity)).await?;
                Ok(shown.filter(|transfer| CLAIMABLE.contains(&transfer.status)).map(|transfer| {
                    Wire::ReceiverTransfer(TransferEvent {
                        transfer: Some(transfer),
                        trace_id: String::new(),
                    })
                }))
            }
            "SENDER_TRANSFER" => Ok(self.transfer(id, Side::Sender).await?.map(|transfer| {
                Wire::SenderTransfer(TransferEvent { transfer: Some(transfer), trace_id: String::new() })
            })),
            _ => Err(ConvertError::Column("event_log.kind")),
        }
    }

    async fn deposit(&self, leaf: Uuid, owner: &[u8]) -> Result<Option<Wire>, ConvertError> {
        let rows = query_node::visible(self.db.pool(), &[leaf], owner, &["AVAILABLE".to_owned()]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let node = self.converter.node(row)?;
        Ok(Some(Wire::Deposit(DepositEvent { deposit: Some(node), trace_id: String::new() })))
    }

    async fn transfer(&self, id: Uuid, side: Side<'_>) -> Result<Option<spark::Transfer>, ConvertError> {
        let Some(row) = transfer::get(self.db.pool(), id).await? else { return Ok(None) };
        let shares = transfer::shares(self.db.pool(), &[id]).await?;
        let leaves = query_transfer::leaves(self.db.pool(), &[id]).await?;
        Ok(Some(self.converter.transfer(&row, &shares, &leaves, side, self.network)?))
    }
}

async fn read(shared: Weak<Shared>, mut cursor: Cursor) {
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        let Some(alive) = shared.upgrade() else { return };
        tokio::select! {
            _ = ticks.tick() => {}
            () = alive.wake.notified() => {}
        }
        alive.forget_closed();
        match look(&alive, &mut cursor).await {
            Ok(()) => failing = false,
            Err(error) => {
                // Once per outage, not four times a second.
                if !failing {
                    tracing::warn!(%error, "events cannot be read");
                }
                failing = true;
            }
        }
    }
}

async fn look(shared: &Shared, cursor: &mut Cursor) -> Result<(), DbError> {
    loop {
        let rows = query_event::above(shared.db.pool(), cursor.newest(), &cursor.gaps(), BATCH).await?;
        let full = i64::try_from(rows.len()).unwrap_or(i64::MAX) >= BATCH;
        let now = Instant::now();
        for row in rows {
            if cursor.take(row.seq, now) {
                shared.dispatch(row);
            }
        }
        cursor.settle(now);
        if !full {
            return Ok(());
        }
    }
}

/// One stream, until the wallet leaves, falls behind, or the process ends.
async fn serve(
    shared: Weak<Shared>,
    mut inbox: mpsc::Receiver<Arc<EventRow>>,
    out: mpsc::Sender<Result<SubscribeToEventsResponse, Status>>,
) {
    let say = |event| Ok(SubscribeToEventsResponse { event: Some(event) });
    if out.send(say(Wire::Connected(ConnectedEvent {}))).await.is_err() {
        return;
    }
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat.reset();
    loop {
        let message = tokio::select! {
            () = out.closed() => return,
            _ = heartbeat.tick() => say(Wire::Heartbeat(HeartbeatEvent {})),
            row = inbox.recv() => match (row, shared.upgrade()) {
                (Some(row), Some(shared)) => match shared.event(&row).await {
                    Ok(Some(event)) => say(event),
                    Ok(None) => continue,
                    Err(error) => Err(Refused::internal(&error).into()),
                },
                _ => Err(Refused::new(Reason::Draining, "stream ended; subscribe again").into()),
            },
        };
        let last = message.is_err();
        if out.send(message).await.is_err() || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use spark_rules::leaf::LeafStatus;
    use tokio::time::timeout;
    use tokio_stream::StreamExt as _;

    use super::*;
    use crate::{db::testing::database, rpc::testing};

    type Stream = ReceiverStream<Result<SubscribeToEventsResponse, Status>>;

    async fn events(db: &Db) -> Events {
        let converter = Converter::new(&testing::federation(3, 2));
        Events::start(db.clone(), converter, spark::Network::Regtest).await.unwrap()
    }

    async fn next(stream: &mut Stream) -> Wire {
        let message = timeout(Duration::from_secs(10), stream.next()).await.expect("in time").expect("open");
        message.unwrap().event.unwrap()
    }

    async fn insert(db: &Db, identity: u8, kind: &str, id: Uuid) {
        event::insert(db.pool(), &testing::key(identity).serialize(), kind, id.as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn connected_comes_first_and_heartbeats_follow() {
        let db = database().await;
        let events = events(&db).await;
        let started = Instant::now();
        let mut stream = events.subscribe(testing::key(1).serialize()).unwrap();
        assert!(matches!(next(&mut stream).await, Wire::Connected(_)));
        assert!(started.elapsed() < Duration::from_secs(1));
        assert!(matches!(next(&mut stream).await, Wire::Heartbeat(_)));
        assert!(started.elapsed() < Duration::from_secs(8));
    }

    #[tokio::test]
    async fn every_stream_of_an_identity_hears_and_no_other() {
        let db = database().await;
        let events = events(&db).await;
        let mut receivers =
            [2, 2, 1, 3].map(|identity| events.subscribe(testing::key(identity).serialize()).unwrap());
        for stream in &mut receivers {
            assert!(matches!(next(stream).await, Wire::Connected(_)));
        }
        let id = testing::put_transfer(&db, 9, 7, 1, 2).await;
        insert(&db, 2, "TRANSFER", id).await;
        insert(&db, 1, "SENDER_TRANSFER", id).await;
        events.wake();
        let [first, second, sender, stranger] = &mut receivers;
        for stream in [first, second] {
            let Wire::ReceiverTransfer(event) = next(stream).await else { panic!("receiver_transfer") };
            let transfer = event.transfer.unwrap();
            assert_eq!((transfer.id, transfer.leaves.len()), (id.to_string(), 1));
            assert_eq!(transfer.status, spark::TransferStatus::SenderKeyTweaked as i32);
        }
        assert!(matches!(next(sender).await, Wire::SenderTransfer(_)));
        assert!(matches!(next(stranger).await, Wire::Heartbeat(_)), "nothing but a heartbeat");
    }

    #[tokio::test]
    async fn an_identity_has_a_few_streams_and_its_oldest_ends() {
        let db = database().await;
        let events = events(&db).await;
        let key = testing::key(1).serialize();
        let mut oldest = events.subscribe(key).unwrap();
        assert!(matches!(next(&mut oldest).await, Wire::Connected(_)));
        let _others: Vec<_> = (0..PER_IDENTITY).map(|_| events.subscribe(key).unwrap()).collect();
        assert_eq!(events.streams(), PER_IDENTITY);
        let ended =
            timeout(Duration::from_secs(10), oldest.next()).await.expect("in time").expect("a reason");
        assert_eq!(ended.unwrap_err().code(), tonic::Code::Unavailable);
    }

    #[tokio::test]
    async fn what_is_no_longer_so_is_not_said() {
        let db = database().await;
        let events = events(&db).await;
        let mut stream = events.subscribe(testing::key(2).serialize()).unwrap();
        assert!(matches!(next(&mut stream).await, Wire::Connected(_)));
        // A transfer that is claimed, and a deposit that is not confirmed.
        let id = testing::put_transfer(&db, 9, 7, 1, 2).await;
        testing::put_claim(&db, id, 7, 2).await;
        insert(&db, 2, "TRANSFER", id).await;
        let creating = testing::record(8, 2, 0, LeafStatus::Creating);
        testing::put_leaf(&db, &creating).await;
        insert(&db, 2, "DEPOSIT", creating.leaf_id.uuid()).await;
        // One that is.
        let available = testing::record(6, 2, 0, LeafStatus::Available);
        testing::put_leaf(&db, &available).await;
        insert(&db, 2, "DEPOSIT", available.leaf_id.uuid()).await;
        events.wake();
        let Wire::Deposit(event) = next(&mut stream).await else { panic!("deposit") };
        let node = event.deposit.unwrap();
        assert_eq!((node.id, node.status.as_str()), (available.leaf_id.to_string(), "AVAILABLE"));
    }

    #[tokio::test]
    async fn another_replicas_rows_are_found_without_a_wake_and_closed_streams_are_forgotten() {
        let db = database().await;
        let events = events(&db).await;
        let mut stream = events.subscribe(testing::key(2).serialize()).unwrap();
        assert!(matches!(next(&mut stream).await, Wire::Connected(_)));
        let id = testing::put_transfer(&db, 9, 7, 1, 2).await;
        insert(&db, 2, "TRANSFER", id).await;
        assert!(matches!(next(&mut stream).await, Wire::ReceiverTransfer(_)));
        assert_eq!(events.streams(), 1);
        drop(stream);
        timeout(Duration::from_secs(5), async {
            while events.streams() > 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .expect("forgotten");
    }
}
