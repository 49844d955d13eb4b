//! Events for wallets, from the durable `event_log` to any number of streams per identity.
//!
//! One reader per process follows the table and hands each row to the streams of its identity. What a stream says is
//! read when it says it: a transfer that is not claimable or a leaf that is not AVAILABLE is never announced. An
//! identity has a few streams at most, and beyond it its oldest ends.
//!
//! Where streams ended is remembered (`db::event_cursor`), so a wallet that comes back is told what it missed. Some of
//! it may have been told before.

mod cursor;
mod marks;
mod retention;
mod said;
mod stream;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use spark_proto::spark;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

pub use retention::retain;

use self::{
    cursor::Cursor,
    marks::Marks,
    stream::{Message, Stream},
};
use crate::{
    convert::Converter,
    db::{Db, DbError, event, event::EventRow, event_cursor, query_event},
    status::Refused,
    streams::Places,
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
/// Ends of streams that are noted late, in one look at the table.
const ENDED_AT_ONCE: usize = 64;
/// Most streams of this process.
const STREAMS: usize = 10_000;

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
    places: Places,
    listeners: Mutex<HashMap<[u8; 33], Listeners>>,
    wake: Notify,
    /// Every row up to it was handed to the streams, or will never appear.
    settled: AtomicI64,
    /// Streams that ended, and up to where they were heard, of which the database did not take note.
    unnoted: Mutex<Vec<(Uuid, i64)>>,
}

impl Events {
    /// Starts the reader at the present end of the table.
    pub async fn start(db: Db, converter: Converter, network: spark::Network) -> Result<Self, DbError> {
        event_cursor::end_all(db.pool()).await?;
        let head = event::head(db.pool()).await?;
        let mut cursor = Cursor::before(head);
        for row in query_event::above(db.pool(), cursor.newest(), &[], BATCH * 2).await? {
            cursor.take(row.seq, Instant::now());
        }
        let shared = Arc::new(Shared {
            db,
            converter,
            network,
            places: Places::new(PER_IDENTITY, STREAMS),
            listeners: Mutex::default(),
            wake: Notify::new(),
            settled: AtomicI64::new(cursor.settled()),
            unnoted: Mutex::default(),
        });
        tokio::spawn(read(Arc::downgrade(&shared), cursor));
        Ok(Self { shared })
    }

    /// Says that rows were added, to be faster than the next look.
    pub fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// Streams open now.
    pub fn streams(&self) -> usize {
        self.shared.places.count()
    }

    /// A new stream of an identity, which the caller has authorised. `connected` comes first and at once, then what
    /// was missed since the identity's last streams ended.
    ///
    /// # Errors
    /// When this process has as many streams as it may.
    pub async fn subscribe(&self, identity: [u8; 33]) -> Result<ReceiverStream<Message>, Refused> {
        let shared = &self.shared;
        let place = shared.places.take(identity)?;
        let (events, inbox) = mpsc::channel(BACKLOG);
        shared.listeners().entry(identity).or_default().push(events);
        // After it is listed: what is not settled now comes into the inbox, or stands in the table already.
        let settled = shared.settled();
        let (out, stream) = mpsc::channel(4);
        let stream_of = Stream {
            shared: Arc::downgrade(shared),
            db: shared.db.clone(),
            id: Uuid::new_v4(),
            identity,
            inbox,
            ahead: VecDeque::new(),
            out,
            // Nothing is known to be heard until the stream has its cursor.
            marks: Marks::from(0),
            replayed: HashSet::new(),
        };
        // Whatever becomes of the caller: a cursor that is opened is ended.
        tokio::spawn(stream_of.run(place, settled));
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

    fn unnoted(&self) -> std::sync::MutexGuard<'_, Vec<(Uuid, i64)>> {
        self.unnoted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of a stream is to be noted later. While the database is away streams end as they begin, so not all of
    /// them are remembered.
    fn not_noted(&self, stream: Uuid, heard: i64) {
        let mut unnoted = self.unnoted();
        if unnoted.len() < STREAMS {
            unnoted.push((stream, heard));
        }
    }

    /// Ends the cursors of streams that are no more, if the end of one could not be noted: of these streams and no
    /// others, since new ones open theirs meanwhile.
    async fn end_left(&self) -> Result<(), DbError> {
        for _ in 0..ENDED_AT_ONCE {
            let Some((stream, heard)) = self.unnoted().pop() else { break };
            if let Err(error) = event_cursor::end(self.db.pool(), stream, heard).await {
                self.not_noted(stream, heard);
                return Err(error);
            }
        }
        Ok(())
    }

    fn settled(&self) -> i64 {
        self.settled.load(Ordering::Acquire)
    }

    fn forget_closed(&self) {
        self.listeners().retain(|_, streams| {
            streams.retain(|stream| !stream.is_closed());
            !streams.is_empty()
        });
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
        shared.settled.store(cursor.settled(), Ordering::Release);
        if !full {
            return shared.end_left().await;
        }
    }
}

#[cfg(test)]
mod tests;
