use std::{
    collections::HashSet,
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
    pub(super) out: mpsc::Sender<Message>,
    pub(super) marks: Marks,
    /// Rows that were told before they came into the inbox.
    pub(super) replayed: HashSet<i64>,
}

impl Stream {
    /// Until the wallet leaves, falls behind, loses its place, or the process ends. With `from`, what came after it is
    /// told first.
    pub(super) async fn run(mut self, mut place: Place, from: Option<i64>) {
        let ended = tokio::select! {
            () = place.gone() => Some(Refused::new(Reason::Draining, "a newer stream took the place of this one")),
            ended = self.tell(from) => ended,
        };
        if let Some(refused) = ended {
            // A wallet that does not read is not waited for.
            let _ = self.out.try_send(Err(refused.into()));
        }
        let heard = self.marks.heard(Instant::now());
        if let Err(error) = event_cursor::end(self.db.pool(), self.id, heard).await {
            tracing::debug!(%error, "end of a stream is not noted");
        }
        // Not before: who subscribes in the place of this stream begins where it ended.
        drop(place);
    }

    /// Why it ended; `None` when the wallet left.
    async fn tell(&mut self, from: Option<i64>) -> Option<Refused> {
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
                row = self.inbox.recv() => {
                    let (Some(row), Some(shared)) = (row, self.shared.upgrade()) else {
                        return Some(Refused::new(Reason::Draining, "stream ended; subscribe again"));
                    };
                    if self.replayed.remove(&row.seq) {
                        continue;
                    }
                    match shared.event(&row).await {
                        Ok(Some(event)) => self.say(event).await?,
                        Ok(None) => {}
                        Err(error) => return Some(Refused::internal(&error)),
                    }
                }
            }
        }
    }

    /// What came after `from` and is still so. `None` when the wallet left.
    async fn replay(&mut self, from: i64) -> Option<Result<(), ConvertError>> {
        let rows = match event::after(self.db.pool(), &self.identity, from, MOST_REPLAYED).await {
            Ok(rows) => rows,
            Err(error) => return Some(Err(error.into())),
        };
        for row in &rows {
            let Some(shared) = self.shared.upgrade() else { return Some(Ok(())) };
            let event = match shared.missed(row).await {
                Ok(event) => event,
                Err(error) => return Some(Err(error)),
            };
            self.replayed.insert(row.seq);
            if let Some(event) = event {
                self.say(event).await?;
            }
        }
        Some(Ok(()))
    }

    async fn say(&self, event: Wire) -> Option<()> {
        self.out.send(Ok(SubscribeToEventsResponse { event: Some(event) })).await.ok()
    }

    /// Takes note of what is handed over by now.
    fn mark(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        // Read first: every row up to it has come into the inbox before.
        let settled = shared.settled();
        if self.inbox.is_empty() && self.out.capacity() == self.out.max_capacity() {
            self.marks.handed_over(settled, Instant::now());
            self.replayed.clear();
        }
    }

    async fn note(&mut self) {
        let heard = self.marks.heard(Instant::now());
        if let Err(error) = event_cursor::advance(self.db.pool(), self.id, heard).await {
            tracing::debug!(%error, "progress of a stream is not noted");
        }
    }
}
