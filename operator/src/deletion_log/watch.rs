//! News of leaves' receipts: *applied* when one is in the published log, *confirmed* when the head says that what it
//! reports is destroyed.
//!
//! One reader follows the own signer's log behind the published heads and tells the streams which leaves have news. What
//! a stream says is the state of a leaf, so a wallet that connects again has missed nothing: it hears the state first.

use std::{
    collections::HashSet,
    sync::{Arc, Weak},
    time::Duration,
};

use spark_proto::{
    log::v1::{Heartbeat, LeafReceipts, WatchLeavesResponse, watch_leaves_response::Event},
    peer::v1::Receipt,
    signer::v1::{GetReceiptsRequest, ReadLogRequest},
};
use spark_rules::{ids::LeafId, receipt};
use tokio::{
    sync::{
        broadcast::{self, error::RecvError},
        mpsc, watch,
    },
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    publish::{Head, Published},
    theirs::Theirs,
};
use crate::{
    authn::Session,
    call::CallError,
    db::Db,
    signer_client::SignerClient,
    status::{Reason, Refused},
    streams::{Place, Places},
};

/// Most leaves of one stream.
pub const MOST_LEAVES: usize = 32;
/// Most streams of one identity.
const PER_IDENTITY: usize = 16;
/// Most streams of this process.
const STREAMS: usize = 10_000;
/// As with the other stream of events.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Pause before the signer is asked again.
const RETRY: Duration = Duration::from_secs(1);
/// Changes that a stream may be behind before it reads all its leaves anew.
const BACKLOG: usize = 64;

/// A signer's log, as the watch reads it.
#[tonic::async_trait]
pub trait LogReader: Send + Sync + 'static {
    /// Some entries from `from` on, below `until`.
    async fn entries(&self, from: u64, until: u64) -> Result<Vec<Receipt>, CallError>;
    /// Receipts of a leaf among the first `size` entries.
    async fn receipts(&self, leaf: &LeafId, size: u64) -> Result<Vec<Receipt>, CallError>;
}

#[tonic::async_trait]
impl LogReader for SignerClient {
    async fn entries(&self, from: u64, until: u64) -> Result<Vec<Receipt>, CallError> {
        Ok(self.read_log(ReadLogRequest { from, until }).await?.entries)
    }

    async fn receipts(&self, leaf: &LeafId, size: u64) -> Result<Vec<Receipt>, CallError> {
        let mut request = GetReceiptsRequest { leaf_id: leaf.to_string(), tree_size: size, from: 0 };
        let mut receipts = Vec::new();
        loop {
            let page = self.get_receipts(request.clone()).await?;
            receipts.extend(page.receipts);
            if page.next <= request.from {
                return Ok(receipts);
            }
            request.from = page.next;
        }
    }
}

/// Leaves with news; `None`: look at all.
type Change = Option<Arc<HashSet<String>>>;
type Message = Result<WatchLeavesResponse, Status>;

/// The streams of this process. Clones share them; the reader ends with the last clone.
#[derive(Clone)]
pub struct Watch {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("places", &self.shared.places).finish_non_exhaustive()
    }
}

struct Shared {
    db: Db,
    log: Arc<dyn LogReader>,
    published: Published,
    places: Places,
    changes: broadcast::Sender<Change>,
}

impl Watch {
    /// Starts the reader.
    pub fn start(db: Db, log: Arc<dyn LogReader>, published: Published) -> Self {
        let heads = published.watch();
        let places = Places::new(PER_IDENTITY, STREAMS);
        let shared =
            Arc::new(Shared { db, log, published, places, changes: broadcast::Sender::new(BACKLOG) });
        tokio::spawn(follow(Arc::downgrade(&shared), heads));
        Self { shared }
    }

    /// A new stream about leaves of the session's identity: the present state of each, then every change.
    ///
    /// # Errors
    /// For leaves that are no business of the identity, and where signer or database do not answer.
    pub async fn subscribe(
        &self,
        session: &Session,
        leaf_ids: &[String],
    ) -> Result<ReceiverStream<Message>, Refused> {
        if leaf_ids.is_empty() || leaf_ids.len() > MOST_LEAVES {
            return Err(Refused::field("leaf_ids", format!("1 to {MOST_LEAVES} leaf ids")));
        }
        let identity = session.identity.serialize();
        // Before the first look, so that no change falls between.
        let changes = self.shared.changes.subscribe();
        let mut leaves = Vec::with_capacity(leaf_ids.len());
        let mut seen = HashSet::new();
        for id in leaf_ids {
            let id = LeafId::parse(id).map_err(|_| Refused::field("leaf_ids", "is not a leaf id"))?;
            if seen.insert(id) {
                leaves.push(Watched::of(id));
            }
        }
        // Before the signer is asked: an identity asks for as many streams at once as it may have.
        let mut place = self.shared.places.take(identity)?;
        for leaf in &mut leaves {
            tokio::select! {
                () = place.gone() => return Err(replaced()),
                read = leaf.read(&self.shared, &identity) => read?,
            }
        }
        let (out, stream) = mpsc::channel(4);
        let stream_of = Stream { shared: Arc::downgrade(&self.shared), identity, leaves, changes };
        tokio::spawn(stream_of.run(place, out));
        Ok(ReceiverStream::new(stream))
    }
}

/// Follows the published log while somebody listens.
async fn follow(shared: Weak<Shared>, mut heads: watch::Receiver<Option<Arc<Head>>>) {
    let mut told = 0;
    while heads.changed().await.is_ok() {
        loop {
            let Some(shared) = shared.upgrade() else { return };
            let Some(head) = heads.borrow_and_update().clone() else { break };
            match shared.tell(&head, told).await {
                Ok(up_to) => {
                    told = up_to;
                    break;
                }
                Err(error) => tracing::debug!(%error, "log is not followed"),
            }
            drop(shared);
            sleep(RETRY).await;
        }
    }
}

impl Shared {
    fn head(&self) -> Result<Arc<Head>, Refused> {
        let unpublished = || Refused::new(Reason::SignerUnreachable, "no head of the log is published yet");
        self.published.newest().ok_or_else(unpublished)
    }

    /// Tells streams what is new under this head. Returns up to where the log is told.
    async fn tell(&self, head: &Head, mut told: u64) -> Result<u64, CallError> {
        let size = head.checkpoint.size;
        if self.changes.receiver_count() == 0 {
            return Ok(size);
        }
        // The log of a signer that was repaired begins anew.
        let mut change = None;
        if told <= size {
            let mut leaves = HashSet::new();
            while told < size {
                let page = self.log.entries(told, size).await?;
                if page.is_empty() {
                    return Err(CallError::Status(Box::new(Status::data_loss("the log ends early"))));
                }
                told = told.saturating_add(page.len() as u64);
                leaves.extend(page.into_iter().map(|entry| entry.leaf_id));
            }
            change = Some(Arc::new(leaves));
        }
        // Nobody listens any more: nothing to tell.
        let _ = self.changes.send(change);
        Ok(size)
    }
}

/// What is known of a leaf.
struct Watched {
    id: LeafId,
    name: String,
    applied: u64,
    version: u64,
    /// Receipts whose destruction was not confirmed when they were read.
    pending: Vec<Receipt>,
    told: Option<LeafReceipts>,
}

impl Watched {
    fn of(id: LeafId) -> Self {
        Self { id, name: id.to_string(), applied: 0, version: 0, pending: Vec::new(), told: None }
    }

    async fn read(&mut self, shared: &Shared, identity: &[u8; 33]) -> Result<(), Refused> {
        let theirs = Theirs::of(&shared.db, &self.id, identity).await?;
        let head = shared.head()?;
        let mut receipts = match head.checkpoint.size {
            0 => Vec::new(),
            size => shared.log.receipts(&self.id, size).await.map_err(|error| {
                tracing::warn!(%error, "deletion log");
                Refused::new(Reason::SignerUnreachable, "signer does not answer")
            })?,
        };
        receipts.retain(|receipt| theirs.includes(receipt));
        self.applied = receipts.len() as u64;
        self.version = receipts.iter().map(|receipt| receipt.new_version).max().unwrap_or(0);
        receipts.retain(|r| !receipt::is_confirmed(r, head.checkpoint.extension.destroyed_before));
        self.pending = receipts;
        Ok(())
    }

    /// What to say under this head, if it was not said.
    fn news(&mut self, head: &Head) -> Option<LeafReceipts> {
        let destroyed_before = head.checkpoint.extension.destroyed_before;
        self.pending.retain(|r| !receipt::is_confirmed(r, destroyed_before));
        let now = LeafReceipts {
            leaf_id: self.name.clone(),
            applied: self.applied,
            confirmed: self.applied.saturating_sub(self.pending.len() as u64),
            version: self.version,
            witnesses: u32::try_from(head.witnesses).unwrap_or(u32::MAX),
        };
        (self.told.as_ref() != Some(&now)).then(|| self.told.insert(now).clone())
    }
}

struct Stream {
    shared: Weak<Shared>,
    identity: [u8; 33],
    leaves: Vec<Watched>,
    changes: broadcast::Receiver<Change>,
}

impl Stream {
    /// Until the wallet leaves, loses its place, or the process ends.
    async fn run(mut self, mut place: Place, out: mpsc::Sender<Message>) {
        let ended = tokio::select! {
            () = place.gone() => replaced(),
            ended = self.tell(&out) => match ended {
                Some(refused) => refused,
                None => return,
            },
        };
        // A wallet that does not read is not waited for.
        let _ = out.try_send(Err(ended.into()));
    }

    /// Why it ended; `None` when the wallet left.
    async fn tell(&mut self, out: &mpsc::Sender<Message>) -> Option<Refused> {
        let say = |event| Ok(WatchLeavesResponse { event: Some(event) });
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.reset();
        loop {
            match self.news() {
                Ok(news) => {
                    for leaf in news {
                        out.send(say(Event::Leaf(leaf))).await.ok()?;
                    }
                }
                Err(refused) => return Some(refused),
            }
            tokio::select! {
                () = out.closed() => return None,
                _ = heartbeat.tick() => out.send(say(Event::Heartbeat(Heartbeat {}))).await.ok()?,
                change = self.changes.recv() => {
                    let change = match change {
                        Ok(change) => change,
                        Err(RecvError::Lagged(_)) => None,
                        Err(RecvError::Closed) => return Some(ending()),
                    };
                    if let Err(refused) = self.read(change).await {
                        return Some(refused);
                    }
                }
            }
        }
    }

    fn news(&mut self) -> Result<Vec<LeafReceipts>, Refused> {
        let head = self.shared.upgrade().ok_or_else(ending)?.head()?;
        Ok(self.leaves.iter_mut().filter_map(|leaf| leaf.news(&head)).collect())
    }

    async fn read(&mut self, change: Change) -> Result<(), Refused> {
        let shared = self.shared.upgrade().ok_or_else(ending)?;
        let concerned = |leaf: &&mut Watched| change.as_ref().is_none_or(|named| named.contains(&leaf.name));
        for leaf in self.leaves.iter_mut().filter(concerned) {
            leaf.read(&shared, &self.identity).await?;
        }
        Ok(())
    }
}

fn replaced() -> Refused {
    Refused::new(Reason::Draining, "a newer stream took the place of this one")
}

fn ending() -> Refused {
    Refused::new(Reason::Draining, "stream ended; subscribe again")
}

#[cfg(test)]
mod tests;
