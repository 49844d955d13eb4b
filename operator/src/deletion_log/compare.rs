//! Heads of the other operators' logs, compared among all: who shows one log here and another one there is caught by
//! the signers of both, since each hears from all others which head they were shown (D16).

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use spark_proto::{
    peer::v1::{ShowLogsReply, ShowLogsRequest, ShownLog},
    signer::v1::{CompareLogRequest, ProveConsistencyRequest},
};
use spark_rules::ids::OperatorIndex;
use tokio::time;
use tonic::Code;

use super::publish::Published;
use crate::{call::CallError, peer::Signers};

/// Pause between two comparisons.
const EVERY: Duration = Duration::from_secs(20);
/// How often a proof is asked for at once: the log that the own signer follows may have grown meanwhile.
const TRIES: usize = 3;

/// The heads that this operator sees: of its own log as everybody does, of the others what its signer cosigned last.
/// Clones share them.
#[derive(Debug, Clone)]
pub struct Heads {
    own: OperatorIndex,
    published: Published,
    cosigned: Arc<Mutex<BTreeMap<OperatorIndex, String>>>,
}

impl Heads {
    /// None but what is published.
    pub fn new(own: OperatorIndex, published: Published) -> Self {
        Self { own, published, cosigned: Arc::default() }
    }

    /// The own signer cosigned this head.
    pub fn cosigned(&self, operator: OperatorIndex, note: String) {
        self.cosigned.lock().unwrap_or_else(PoisonError::into_inner).insert(operator, note);
    }

    /// All of them, for a peer.
    pub fn shown(&self) -> ShowLogsReply {
        let cosigned = self.cosigned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let own = self.published.newest().map(|head| (self.own, head.checkpoint.signed.clone()));
        let shown = |(operator, checkpoint): (OperatorIndex, String)| ShownLog {
            operator: operator.get().into(),
            checkpoint,
        };
        ShowLogsReply { logs: cosigned.into_iter().chain(own).map(shown).collect() }
    }
}

/// Compares what the peers see.
#[derive(Debug)]
pub struct Comparer {
    signers: Signers,
    /// Evidence that is in the log already.
    told: BTreeSet<String>,
}

impl Comparer {
    /// Asks the peers, and tells the own signer.
    pub const fn new(signers: Signers) -> Self {
        Self { signers, told: BTreeSet::new() }
    }

    /// Compares until `shutdown`.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => return,
                () = time::sleep(EVERY) => {}
            }
            self.round().await;
        }
    }

    async fn round(&mut self) {
        let asked = self.signers.peers().map(|(_, peer)| peer.show_logs(ShowLogsRequest {}));
        let answers = join_all(asked).await;
        let others: BTreeSet<_> = self.signers.peers().map(|(index, _)| index).collect();
        let mut heads = BTreeSet::new();
        for logs in answers.into_iter().flatten().map(|reply| reply.logs) {
            // One head of each operator from each peer, whatever it says.
            let shown = logs.into_iter().take(others.len().saturating_add(1));
            heads.extend(shown.filter_map(|log| {
                let operator = OperatorIndex::from_wire(log.operator).ok()?;
                others.contains(&operator).then_some((operator, log.checkpoint))
            }));
        }
        for (operator, note) in heads {
            if let Err(error) = self.compare(operator, note).await {
                tracing::debug!(operator = operator.get(), %error, "head of a log is not compared");
            }
        }
    }

    async fn compare(&mut self, operator: OperatorIndex, note: String) -> Result<(), CallError> {
        let mut request =
            CompareLogRequest { operator: operator.get().into(), checkpoint: note, hashes: Vec::new() };
        for _ in 0..TRIES {
            let reply = self.signers.own().compare_log(request.clone()).await?;
            if !reply.distrust.is_empty() {
                if self.told.insert(reply.evidence.clone()) {
                    tracing::error!(
                        operator = operator.get(),
                        reason = %reply.distrust,
                        evidence = %reply.evidence,
                        "deletion log of this operator is not the one that others are shown"
                    );
                }
                return Ok(());
            }
            if reply.checkpoint.is_empty() {
                return Ok(());
            }
            let ask = ProveConsistencyRequest { old_size: reply.old_size, new_size: reply.new_size };
            request.checkpoint = reply.checkpoint;
            request.hashes = match self.signers.peer(operator)?.prove_log(ask).await {
                Ok(proof) => proof.hashes,
                Err(error) if error.refused() && error.code() != Code::Unimplemented => {
                    tracing::debug!(operator = operator.get(), %error, "log is not proven to be one");
                    Vec::new()
                }
                // Not reached, or of a build without this call: that is no word of the operator's, and must not cost it
                // its votes. Its people, and a person here, can see it.
                Err(error) => {
                    tracing::warn!(operator = operator.get(), %error, "could not ask for a proof that a log is one");
                    return Ok(());
                }
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cosigned_head_of_each_is_shown() {
        let own = OperatorIndex::new(0);
        let heads = Heads::new(own, Published::default());
        assert!(heads.shown().logs.is_empty());
        heads.cosigned(OperatorIndex::new(2), "first".into());
        heads.cosigned(OperatorIndex::new(1), "other".into());
        heads.cosigned(OperatorIndex::new(2), "second".into());
        let shown: Vec<_> =
            heads.shown().logs.into_iter().map(|log| (log.operator, log.checkpoint)).collect();
        assert_eq!(shown, [(1, "other".to_owned()), (2, "second".to_owned())]);
    }
}
