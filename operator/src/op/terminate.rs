//! Termination (D1, S10): undecided attempts end by proofs of others, committed ones are applied everywhere.
//! Time only says when to ask; it decides nothing.

use std::{
    future::{Future, ready},
    time::Duration,
};

use futures::{
    StreamExt as _,
    future::{join_all, join3},
    stream,
};
use prost::Message as _;
use spark_proto::peer::v1::{self as wire, query_proof_reply::Outcome as Reply};
use spark_rules::{ids::OperatorIndex, vote::Kind};

use super::{
    engine::{Engine, EngineError, Outcome, vote_write},
    tally::{Tally, Verdict},
};
use crate::db::{
    delivery::{self, Message},
    operation::{self, OperationRow, State},
    work,
};

/// Attempts looked at in one round.
const BATCH: i64 = 64;
/// Seconds for which a replica keeps an attempt to itself.
const LEASE: i64 = 60;
/// Attempts worked on at once.
const AT_ONCE: usize = 16;

impl Engine {
    /// Works on open attempts and undelivered proofs until `shutdown`.
    pub async fn run_termination(&self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            if let Err(error) = self.terminate_once().await {
                tracing::warn!(%error, "termination round failed");
            }
            tokio::select! {
                () = &mut shutdown => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    /// Carries on at once what this operator coordinated when its process ended: nobody else would, before the stale
    /// timer. One process per operator works on its attempts.
    pub async fn resume(&self) -> Result<(), EngineError> {
        for row in
            operation::open(self.db().pool(), 0, BATCH).await?.into_iter().filter(|row| row.coordinates)
        {
            let engine = self.clone();
            tokio::spawn(async move {
                let Some(_driving) = engine.driving(row.id) else { return };
                let resumed = match row.state {
                    State::Committed | State::Applied => engine.terminate(&row).await,
                    _ => engine.end_stale(&row).await,
                };
                if let Err(error) = resumed {
                    tracing::warn!(%error, operation = %row.id, state = row.state.as_str(), "attempt is not resumed yet");
                }
            });
        }
        Ok(())
    }

    /// One round.
    pub async fn terminate_once(&self) -> Result<(), EngineError> {
        let mut aborts: Vec<_> = delivery::due(self.db().pool(), BATCH)
            .await?
            .into_iter()
            .filter(|due| due.message == Message::Abort)
            .map(|due| due.attempt)
            .collect();
        aborts.sort_unstable();
        aborts.dedup();
        let open = operation::open(self.db().pool(), self.inner.settings.ask_after, BATCH).await?;
        // Side by side: one peer that hangs must not keep the others' attempts open.
        let deliver = stream::iter(aborts.into_iter().map(|id| async move {
            if let Err(error) = self.deliver_aborts(id).await {
                tracing::warn!(%error, operation = %id, "proof of abort is not delivered");
            }
        }));
        let finish = stream::iter(open.into_iter().map(|row| async move {
            if let Err(error) = self.terminate_leased(&row).await {
                tracing::warn!(%error, operation = %row.id, state = row.state.as_str(), "attempt stays open");
            }
        }));
        let settle = async {
            if let Err(error) = self.settle_due().await {
                tracing::warn!(%error, "conditional transfers are not looked at");
            }
        };
        join3(
            settle,
            deliver.buffer_unordered(AT_ONCE).for_each(|()| ready(())),
            finish.buffer_unordered(AT_ONCE).for_each(|()| ready(())),
        )
        .await;
        Ok(())
    }

    async fn terminate_leased(&self, row: &OperationRow) -> Result<(), EngineError> {
        let Some(_driving) = self.driving(row.id) else { return Ok(()) };
        if !operation::lease(self.db().pool(), row.id, LEASE).await? {
            return Ok(());
        }
        let result = match operation::get(self.db().pool(), row.id).await? {
            // It may have moved on while it waited for its turn.
            Some(row) => self.terminate(&row).await,
            None => Ok(()),
        };
        operation::unlease(self.db().pool(), row.id).await?;
        operation::touch(self.db().pool(), row.id).await?;
        result
    }

    async fn terminate(&self, row: &OperationRow) -> Result<(), EngineError> {
        match row.state {
            State::Applied => self.finish_applied(row).await,
            State::Committed => {
                let attempt = self.reload(row).await?;
                if row.coordinates {
                    self.finish(&attempt, row)
                        .await
                        .map(|outcome| tracing::info!(?outcome, "committed attempt resumed"))
                } else {
                    let proof = wire::ProofOfCommit::decode(row.proof.as_deref().unwrap_or_default())?;
                    let request = wire::ApplyRequest { operation: Some(attempt.request), proof: Some(proof) };
                    self.on_apply(request).await.map(|_| ())
                }
            }
            State::Proposed | State::Prepared | State::Certified | State::Refused => {
                if self.ask_others(row).await? {
                    return Ok(());
                }
                if row.age_seconds < self.inner.settings.stale_after {
                    return Ok(());
                }
                self.end_stale(row).await
            }
            State::Done | State::Aborted => Ok(()),
        }
    }

    /// Makes sure that everybody applied; any holder of the proof may do so.
    async fn finish_applied(&self, row: &OperationRow) -> Result<(), EngineError> {
        let Some(bytes) = &row.request else { return Ok(()) };
        let request = wire::Operation::decode(bytes.as_slice())?;
        let proof = wire::ProofOfCommit::decode(row.proof.as_deref().unwrap_or_default())?;
        if !row.coordinates {
            for peer in self.peer_indices() {
                delivery::push(self.db().pool(), peer, row.id, Message::Apply).await?;
            }
        }
        let waiting = self.deliver_applies(row.id, &request, &proof).await?;
        if waiting.len() <= self.spare() {
            let body = request.request.as_ref().ok_or(EngineError::State("request is empty"))?;
            self.close(row.id, body, row.coordinates, waiting.is_empty()).await?;
        }
        Ok(())
    }

    /// Asks the coordinator, then everybody, for a proof. True when one was found.
    async fn ask_others(&self, row: &OperationRow) -> Result<bool, EngineError> {
        let query =
            wire::QueryProofRequest { operation_id: row.id.op.as_bytes().to_vec(), attempt: row.id.attempt };
        let mut order = self.peer_indices();
        order.sort_by_key(|index| *index != row.coordinator);
        let replies = join_all(order.into_iter().map(|index: OperatorIndex| {
            let query = query.clone();
            async move {
                match self.inner.signers.peer(index) {
                    Ok(peer) => (index, peer.query_proof(query).await),
                    Err(error) => (index, Err(error)),
                }
            }
        }))
        .await;
        let mut keep = Vec::new();
        let mut rival = false;
        let mut tally = self.tally(row).await?;
        for (index, reply) in replies {
            // A coordinator may keep its own vote to itself; who was shown the certificate has it.
            let certificate = reply.as_ref().ok().and_then(|reply| reply.certificate.as_ref());
            let most = usize::from(self.federation().size());
            for vote in certificate.iter().flat_map(|certificate| certificate.votes.iter().take(most)) {
                if let Ok((signer, choice)) = tally.record(vote) {
                    keep.push(vote_write(signer, choice, vote));
                }
            }
            match reply.map(|r| r.outcome) {
                Ok(Some(Reply::Commit(mut request))) => {
                    // One's own copy of the request is the one that was voted on.
                    if let Some(bytes) = &row.request {
                        request.operation = Some(wire::Operation::decode(bytes.as_slice())?);
                    }
                    match self.on_apply(request).await {
                        Ok(_) => return Ok(true),
                        Err(error) => {
                            tracing::warn!(peer = index.get(), %error, "proof of commit does not apply")
                        }
                    }
                }
                Ok(Some(Reply::Abort(request))) => {
                    // A rival's proof may name other signers than this request does: its votes count all the same.
                    for vote in request.proof.iter().flat_map(|proof| &proof.votes) {
                        if let Ok((signer, choice)) = tally.record(vote) {
                            keep.push(vote_write(signer, choice, vote));
                        }
                    }
                    match self.on_abort(request).await {
                        Ok(()) => return Ok(true),
                        Err(error) => {
                            tracing::warn!(peer = index.get(), %error, "proof of abort does not hold")
                        }
                    }
                    rival = true;
                }
                Ok(Some(Reply::Vote(vote))) => {
                    if let Ok((signer, choice)) = tally.record(&vote) {
                        keep.push(vote_write(signer, choice, &vote));
                    }
                }
                Ok(Some(Reply::Unknown(_)) | None) => {}
                Err(error) => tracing::debug!(peer = index.get(), %error, "peer was not asked"),
            }
        }
        work::keep_votes(self.db(), row.id, &keep).await?;
        if rival {
            let outcome = self.collect_aborts(row, &mut tally, "ABORTED").await?;
            return Ok(!matches!(outcome, Outcome::Undecided(_)));
        }
        if let Verdict::Aborted(proof) = tally.verdict() {
            let _ = self.conclude_abort(row, proof, "REFUSED").await?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Nobody has a proof. The coordinator goes on from where it stands. A participant collects ABORTs if somebody
    /// has refused already, or if it is a refresh; otherwise it stays locked, which people must see.
    async fn end_stale(&self, row: &OperationRow) -> Result<(), EngineError> {
        if row.coordinates {
            // Without own records of the request, or with a refusal in it, only an abort is left.
            match self.reload(row).await {
                Ok(attempt) => {
                    let outcome = self.drive(&attempt).await?;
                    tracing::info!(?outcome, operation = %row.id, "stale attempt resumed");
                    return Ok(());
                }
                Err(EngineError::Operation(error)) => {
                    tracing::warn!(%error, operation = %row.id, "stale attempt no longer fits the records");
                }
                Err(error) => return Err(error),
            }
        }
        let mut tally = self.tally(row).await?;
        if !row.coordinates && Kind::from_code(row.kind)? == Kind::Refresh {
            return self.end_stale_refresh(row, &mut tally).await;
        }
        match tally.verdict() {
            Verdict::Refused { reason } => {
                let _ = self.collect_aborts(row, &mut tally, &reason).await?;
            }
            _ if row.coordinates => {
                let _ = self.collect_aborts(row, &mut tally, "STALE").await?;
            }
            _ => tracing::error!(
                operation = %row.id,
                coordinator = row.coordinator.get(),
                age_seconds = row.age_seconds,
                "attempt is undecided and its coordinator has no proof"
            ),
        }
        Ok(())
    }

    /// A refresh that its coordinator leaves undecided. No user waits for it and its coordinator is no decider, so the
    /// others end it: they carry a certificate on, if one of them was shown it, and collect the ABORT of all deciders
    /// otherwise. So leaves come free without a person.
    async fn end_stale_refresh(&self, row: &OperationRow, tally: &mut Tally<'_>) -> Result<(), EngineError> {
        let outcome = match tally.verdict() {
            Verdict::Certified(certificate) => {
                let attempt = self.reload(row).await?;
                work::certified(self.db(), row.id, &certificate.encode_to_vec(), &[]).await?;
                self.release(&attempt, row, tally, certificate).await?
            }
            _ => self.collect_aborts(row, tally, "STALE").await?,
        };
        tracing::warn!(
            ?outcome,
            operation = %row.id,
            coordinator = row.coordinator.get(),
            "a refresh was left undecided by its coordinator"
        );
        Ok(())
    }
}
