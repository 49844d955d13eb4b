//! Publishing: the own signer's head goes to every other operator's signer, which cosigns what only grew.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use spark_proto::signer::v1::{CosignLogRequest, GetCheckpointRequest, ReadLogRequest};
use spark_rules::{
    checkpoint::{Checkpoint, CheckpointError},
    federation::Federation,
    ids::OperatorIndex,
    witness,
};
use tokio::{sync::watch, time};

use crate::{
    call::CallError,
    metrics::Metrics,
    peer::{PeerClient, Signers},
};

/// Pause between two looks at the own signer's head.
const EVERY: Duration = Duration::from_secs(1);
/// A head that does not change is cosigned anew after this time, so that its cosignatures are fresh.
const REFRESH: Duration = Duration::from_secs(60);
/// Longest wait for one witness.
const PATIENCE: Duration = Duration::from_secs(5);
/// Witnesses are not asked again this soon about a head that says nothing new.
const AGAIN: Duration = Duration::from_secs(5);
/// A head with enough cosignatures stays for this long where a newer one has not enough.
const GRACE: Duration = Duration::from_secs(15 * 60);
/// Most pages shown to a witness in one round; the next one goes on from there.
const MOST_PAGES: usize = 64;

/// A head of the log that anybody may see.
#[derive(Debug, Clone)]
pub struct Head {
    /// Signed note with cosignatures.
    pub note: String,
    /// What the own signer signed.
    pub checkpoint: Checkpoint,
    /// Other operators' signers that cosigned it.
    pub witnesses: usize,
    since: Instant,
}

#[cfg(test)]
impl Head {
    /// A head that nobody signed.
    pub(super) fn unsigned(size: u64, destroyed_before: u64, witnesses: usize) -> Self {
        use spark_rules::checkpoint::Extension;
        let extension = Extension { destroyed_before, log_size: size, ..Extension::default() };
        let (text, signed) = (Vec::new(), String::new());
        let checkpoint = Checkpoint { size, root: [0; 32], extension, text, signed };
        Self { note: String::new(), checkpoint, witnesses, since: Instant::now() }
    }
}

/// The newest head. Clones see the same.
#[derive(Debug, Clone)]
pub struct Published(watch::Receiver<Option<Arc<Head>>>);

/// Where nothing is ever published.
impl Default for Published {
    fn default() -> Self {
        Self(watch::channel(None).1)
    }
}

impl Published {
    /// None until the first one.
    pub fn newest(&self) -> Option<Arc<Head>> {
        self.0.borrow().clone()
    }

    /// Sees every new one.
    pub(super) fn watch(&self) -> watch::Receiver<Option<Arc<Head>>> {
        self.0.clone()
    }

    /// Heads as a test likes.
    #[cfg(test)]
    pub(super) fn by_hand() -> (watch::Sender<Option<Arc<Head>>>, Self) {
        let (newest, seen) = watch::channel(None);
        (newest, Self(seen))
    }
}

/// Why a head is not published, or a witness did not cosign.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("own signer: {0}")]
    Own(#[from] CheckpointError),
    #[error("witness does not trust this log: {reason}, evidence {evidence}")]
    Distrusted { reason: String, evidence: String },
    #[error("witness follows the log up to {0}, which is more than it has")]
    Ahead(u64),
    #[error("witness did not answer in time")]
    Late,
    #[error("witness gives no cosignature that verifies")]
    Cosignature,
}

/// Publishes one operator's log.
#[derive(Debug)]
pub struct Publisher {
    federation: Arc<Federation>,
    signers: Signers,
    metrics: Metrics,
    newest: watch::Sender<Option<Arc<Head>>>,
    /// Up to where each witness follows.
    followed: BTreeMap<OperatorIndex, u64>,
    /// When witnesses were asked last, and about what: size, and epoch before which all roots are destroyed.
    asked: Option<(Instant, (u64, u64))>,
}

impl Publisher {
    /// Nothing is published yet.
    pub fn new(federation: Arc<Federation>, signers: Signers, metrics: Metrics) -> (Self, Published) {
        let (newest, seen) = watch::channel(None);
        (
            Self { federation, signers, metrics, newest, followed: BTreeMap::new(), asked: None },
            Published(seen),
        )
    }

    /// Publishes until `shutdown`.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            if let Err(error) = self.round().await {
                tracing::debug!(%error, "log head is not published");
            }
            tokio::select! {
                () = &mut shutdown => return,
                () = time::sleep(EVERY) => {}
            }
        }
    }

    async fn round(&mut self) -> Result<(), PublishError> {
        let own = self.signers.own_index();
        let note = self.signers.own().get_checkpoint(GetCheckpointRequest {}).await?.checkpoint;
        let checkpoint = Checkpoint::verify(&note, &self.federation, own)?;
        let last = self.newest.borrow().clone();
        let says_more = last.as_ref().is_none_or(|last| {
            let said = &last.checkpoint;
            checkpoint.size > said.size
                || checkpoint.extension.destroyed_before > said.extension.destroyed_before
        });
        let complete = last.as_ref().is_some_and(|last| last.witnesses == self.signers.peers().count());
        let fresh = last.as_ref().is_some_and(|last| last.since.elapsed() < REFRESH);
        let says = (checkpoint.size, checkpoint.extension.destroyed_before);
        let lately = self.asked.is_some_and(|(at, what)| what == says && at.elapsed() < AGAIN);
        if lately || (!says_more && fresh && complete) {
            return Ok(());
        }
        self.asked = Some((Instant::now(), says));
        let this = &*self;
        let (shown, head) = (note.as_str(), &checkpoint);
        let asked = this.signers.peers().map(|(index, peer)| async move {
            let cosigned = this.cosigned(peer, this.followed.get(&index).copied(), shown, head);
            (index, time::timeout(PATIENCE, cosigned).await.unwrap_or(Err(PublishError::Late)))
        });
        let answers = join_all(asked).await;
        let mut whole = note.clone();
        let mut witnesses = 0;
        for (index, answer) in answers {
            // A line that would spoil the note for everybody, or count for nothing, is left out.
            let checked = answer.and_then(|line| {
                witness::checked_line(&line, &checkpoint.text, &self.federation, index)
                    .ok_or(PublishError::Cosignature)
            });
            match checked {
                Ok((line, _)) => {
                    whole.push_str(&line);
                    whole.push('\n');
                    witnesses += 1;
                    self.followed.insert(index, checkpoint.size);
                }
                Err(error @ PublishError::Distrusted { .. }) => {
                    tracing::error!(witness = index.get(), %error, "log head is not cosigned");
                }
                Err(error) => tracing::debug!(witness = index.get(), %error, "log head is not cosigned"),
            }
        }
        let enough = witness::needed(&self.federation);
        // With a witness away for a while, what is final stays so; what is new waits for it.
        let keep = last.as_ref().is_some_and(|last| {
            let better = last.witnesses >= enough && witnesses < enough && last.since.elapsed() < GRACE;
            better || (!says_more && fresh && witnesses < last.witnesses)
        });
        if !keep {
            self.metrics.log_head(checkpoint.size, witnesses);
            let head = Head { note: whole, checkpoint, witnesses, since: Instant::now() };
            self.newest.send_replace(Some(Arc::new(head)));
        }
        Ok(())
    }

    /// Shows a witness what it has not seen, page by page, up to the checkpoint.
    async fn cosigned(
        &self,
        peer: &PeerClient,
        known: Option<u64>,
        note: &str,
        checkpoint: &Checkpoint,
    ) -> Result<String, PublishError> {
        let mut from = known.unwrap_or(checkpoint.size);
        // It may stand elsewhere than we think, once: after that it stands where it was shown.
        let mut lost = false;
        for _ in 0..MOST_PAGES {
            let mut request = CosignLogRequest {
                operator: self.signers.own_index().get().into(),
                from,
                entries: Vec::new(),
                checkpoint: note.to_owned(),
            };
            if from < checkpoint.size {
                let page = ReadLogRequest { from, until: checkpoint.size };
                let page = self.signers.own().read_log(page).await?;
                if from.saturating_add(page.entries.len() as u64) < checkpoint.size {
                    request.checkpoint = page.checkpoint;
                }
                request.entries = page.entries;
            }
            let shown = from.saturating_add(request.entries.len() as u64);
            let reply = peer.cosign_log(request).await?;
            if !reply.distrust.is_empty() {
                return Err(PublishError::Distrusted { reason: reply.distrust, evidence: reply.evidence });
            }
            if reply.size > checkpoint.size {
                return Err(PublishError::Ahead(reply.size));
            }
            if shown == checkpoint.size && reply.size == shown && !reply.cosignature.is_empty() {
                return Ok(reply.cosignature);
            }
            if reply.size == from || (reply.size != shown && lost) {
                return Err(PublishError::Cosignature);
            }
            lost |= reply.size != shown;
            from = reply.size;
        }
        Err(PublishError::Late)
    }
}
