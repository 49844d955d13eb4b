use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Weak},
    time::Duration,
};

use spark_proto::spark::{
    ConnectedEvent, HeartbeatEvent, SubscribeToEventsResponse, subscribe_to_events_response::Event as Wire,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};
use tonic::Status;
use uuid::Uuid;

use super::{HEARTBEAT, Shared, marks::Marks};
use crate::{
    convert::ConvertError,
    db::{
        Db,
        event::{self, EventRow},
        event_cursor,
    },
    status::{Reason, Refused},
    streams::Place,
};

/// Most events that a wallet that comes back is told; one that missed more synchronises.
const MOST_REPLAYED: i64 = 1000;
/// Missed events that are read at once.
const PAGE: usize = 50;
/// Events that may come while a wallet is told what it missed; with more it is closed, and comes back later.
const MOST_AHEAD: usize = 4096;
/// How often it is noted up to where a stream was heard, for the case that this process dies.
const NOTE: Duration = Duration::from_secs(60);

pub(super) type Message = Result<SubscribeToEventsResponse, Status>;

/// One stream.
pub(super) struct Stream {
    pub(super) shared: Weak<Shared>,
    pub(super) db: Db,
    pub(super) id: Uuid,
    pub(super) identity: [u8; 33],
    pub(super) inbox: mpsc::Receiver<Arc<EventRow>>,
    /// What came into the inbox while missed events were told.
    pub(super) ahead: VecDeque<Arc<EventRow>>,
    pub(super) out: mpsc::Sender<Message>,
    pub(super) marks: Marks,
    /// Rows that were told before they came into the inbox.
    pub(super) replayed: HashSet<i64>,
}

impl Stream {
    /// Until the wallet leaves, falls behind, loses its place, or the process ends. What the identity missed is told
    /// first. `settled`: of the rows up to it, none comes into the inbox.
    pub(super) async fn run(mut self, mut place: Place, settled: i64) {
        // Never cut off: the database could open the cursor after it was told that the stream has ended.
        let opened = event_cursor::open(self.db.pool(), self.id, &self.identity, settled).await;
        let unsure = opened.is_err();
        let ended = match opened {
            Ok(from) => tokio::select! {
                () = place.gone() => {
                    Some(Refused::new(Reason::Draining, "a newer stream took the place of this one"))
                }
                ended = self.tell(from, settled) => ended,
            },
            Err(error) => Some(Refused::from(error)),
        };
        if let Some(refused) = ended {
            // A wallet that does not read is not waited for.
            let _ = self.out.try_send(Err(refused.into()));
        }
        let heard = self.marks.heard(Instant::now());
        let noted = event_cursor::end(self.db.pool(), self.id, heard).await;
        if let Some(shared) = self.shared.upgrade() {
            if let Err(error) = &noted {
                tracing::debug!(%error, "end of a stream is not noted");
            }
            if noted.is_err() || unsure {
                // The reader ends it later.
                shared.not_noted(self.id, heard);
            }
        }
        // Not before: who subscribes in the place of this stream begins where it ended.
        drop(place);
    }

    /// Why it ended; `None` when the wallet left.
    async fn tell(&mut self, from: Option<i64>, settled: i64) -> Option<Refused> {
        self.marks = Marks::from(from.unwrap_or(settled));
        self.say(Wire::Connected(ConnectedEvent {})).await?;
        if let Some(from) = from
            && let Err(error) = self.replay(from).await?
        {
            return Some(Refused::internal(&error));
        }
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.reset();
        let mut noted = Instant::now();
        loop {
            tokio::select! {
                () = self.out.closed() => return None,
                _ = heartbeat.tick() => {
                    self.mark();
                    if noted.elapsed() >= NOTE {
                        noted = Instant::now();
                        self.note().await;
                    }
                    self.say(Wire::Heartbeat(HeartbeatEvent {})).await?;
                }
                row = next(&mut self.ahead, &mut self.inbox) => {
                    let (Some(row), Some(shared)) = (row, self.shared.upgrade()) else {
                        return Some(Refused::new(Reason::Draining, "stream ended; subscribe again"));
                    };
                    if self.replayed.remove(&row.seq) {
                        continue;
                    }
                    match shared.said(&[&*row]).await {
                        Ok(events) => {
                            for event in events.into_iter().flatten() {
                                self.say(event).await?;
                            }
                        }
                        Err(error) => return Some(Refused::internal(&error)),
                    }
                }
            }
        }
    }

    /// What came after `from` and is still so. `None` when the wallet left.
    async fn replay(&mut self, from: i64) -> Option<Result<(), ConvertError>> {
        // Read first: of the rows up to it, none appears later.
        let Some(settled) = self.shared.upgrade().map(|shared| shared.settled()) else { return Some(Ok(())) };
        let rows = match event::after(self.db.pool(), &self.identity, from, MOST_REPLAYED).await {
            Ok(rows) => rows,
            Err(error) => return Some(Err(error.into())),
        };
        let mut before = None;
        for page in rows.chunks(PAGE) {
            let Some(shared) = self.shared.upgrade() else { return Some(Ok(())) };
            let page: Vec<&EventRow> = page.iter().collect();
            let events = match shared.missed(&page).await {
                Ok(events) => events,
                Err(error) => return Some(Err(error)),
            };
            drop(shared);
            self.replayed.extend(page.iter().map(|row| row.seq));
            let mut said = 0usize;
            for event in events.into_iter().flatten() {
                self.take_in();
                self.say(event).await?;
                said = said.saturating_add(1);
            }
            self.take_in();
            // A stream that breaks off now goes on behind what was handed over, if that was certainly heard.
            let last = page.last().map(|row| row.seq);
            let pending = self.out.max_capacity().saturating_sub(self.out.capacity());
            let handed_over = match pending {
                0 => last,
                pending if said >= pending => before,
                _ => None,
            };
            if let Some(seq) = handed_over {
                self.marks.handed_over(seq.min(settled), Instant::now());
            }
            before = last;
        }
        Some(Ok(()))
    }

    /// Makes room in the inbox, which closes the stream when it is full.
    fn take_in(&mut self) {
        while self.ahead.len() < MOST_AHEAD
            && let Ok(row) = self.inbox.try_recv()
        {
            self.ahead.push_back(row);
        }
    }

    async fn say(&self, event: Wire) -> Option<()> {
        self.out.send(Ok(SubscribeToEventsResponse { event: Some(event) })).await.ok()
    }

    /// Takes note of what is handed over by now.
    pub(super) fn mark(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        // Read first: every row up to it has come into the inbox before.
        let settled = shared.settled();
        // A stream that was too far behind gets no more rows: an empty inbox says nothing then.
        let all_came = self.ahead.is_empty() && self.inbox.is_empty() && !self.inbox.is_closed();
        if all_came && self.out.capacity() == self.out.max_capacity() {
            self.marks.handed_over(settled, Instant::now());
            // Later ones may come yet.
            self.replayed.retain(|seq| *seq > settled);
        }
    }

    async fn note(&mut self) {
        let heard = self.marks.heard(Instant::now());
        if let Err(error) = event_cursor::advance(self.db.pool(), self.id, heard).await {
            tracing::debug!(%error, "progress of a stream is not noted");
        }
    }
}

/// The next row to tell. Nothing is lost when it is dropped.
async fn next(
    ahead: &mut VecDeque<Arc<EventRow>>,
    inbox: &mut mpsc::Receiver<Arc<EventRow>>,
) -> Option<Arc<EventRow>> {
    match ahead.pop_front() {
        Some(row) => Some(row),
        None => inbox.recv().await,
    }
}
