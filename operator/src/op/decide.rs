//! Proofs: collecting ABORTs, delivering what is decided, applying it.

use futures::future::join_all;
use prost::Message as _;
use spark_proto::{peer::v1 as wire, signer::v1 as signer};
use spark_rules::{
    ids::OperatorIndex,
    operation::{Keys, OperationError, Outcome as Applied},
    vote::{Certificate, Kind},
};

use super::{
    coordinate::refused,
    engine::{Attempt, Engine, EngineError, Outcome, vote_write},
    fail::{Point, fail_point},
    heavy::heavy,
    outcome,
    settle::{exit_transfer, htlc_transfer},
    tally::{Tally, Verdict},
};
use crate::{
    call::CallError,
    db::{
        delivery::{self, Message},
        operation::{self, AttemptId, OperationRow},
        transfer, work,
    },
    metrics::Outcome as End,
};

impl Engine {
    /// Asks every named signer for an ABORT. Without all of them nothing is decided.
    pub(super) async fn collect_aborts(
        &self,
        row: &OperationRow,
        tally: &mut Tally<'_>,
        reason: &str,
    ) -> Result<Outcome, EngineError> {
        for tried in 0..self.inner.settings.tries {
            if let Verdict::Aborted(proof) = tally.verdict() {
                return self.conclude_abort(row, proof, reason).await;
            }
            self.pause(tried).await;
            let request = signer::SignAbortRequest {
                operation_id: row.id.op.as_bytes().to_vec(),
                attempt: row.id.attempt,
                aborts: Vec::new(),
            };
            let replies = if Kind::from_code(row.kind)? == Kind::Refresh {
                self.aborts_in_order(tally, &request).await
            } else {
                join_all(tally.abort_missing().into_iter().map(|index| {
                    let request = request.clone();
                    async move { (index, self.inner.signers.sign_abort(index, request).await) }
                }))
                .await
            };
            let mut keep = Vec::new();
            let mut released = false;
            for (index, reply) in replies {
                match reply.map(|r| r.vote) {
                    Ok(Some(vote)) => match tally.record(&vote) {
                        Ok((signer, choice)) if signer == index => {
                            keep.push(vote_write(signer, choice, &vote))
                        }
                        _ => tracing::warn!(signer = index.get(), "signer sent an ABORT that does not hold"),
                    },
                    Ok(None) => {}
                    Err(error) => {
                        released |= error.refused();
                        tracing::warn!(signer = index.get(), %error, operation = %row.id, "no ABORT");
                    }
                }
            }
            work::keep_votes(self.db(), row.id, &keep).await?;
            if released {
                // A signer that has released does not abort: the attempt can only commit.
                break;
            }
        }
        match tally.verdict() {
            Verdict::Aborted(proof) => self.conclude_abort(row, proof, reason).await,
            _ => Ok(Outcome::Undecided(row.id.op)),
        }
    }

    /// As the deciders of a refresh say it: each is shown what those below it have said.
    async fn aborts_in_order(
        &self,
        tally: &Tally<'_>,
        request: &signer::SignAbortRequest,
    ) -> Vec<(OperatorIndex, Result<signer::SignAbortResponse, CallError>)> {
        let mut heard = tally.clone();
        let mut replies = Vec::new();
        for index in tally.abort_missing() {
            let request = signer::SignAbortRequest { aborts: heard.aborts(), ..request.clone() };
            let reply = self.inner.signers.sign_abort(index, request).await;
            if let Ok(signer::SignAbortResponse { vote: Some(vote) }) = &reply {
                // What does not hold is said where it is counted.
                let _ = heard.record(vote);
            }
            replies.push((index, reply));
        }
        replies
    }

    /// A proof of abort is known: own signer first, then own tables, then the peers.
    pub(super) async fn conclude_abort(
        &self,
        row: &OperationRow,
        proof: wire::ProofOfAbort,
        reason: &str,
    ) -> Result<Outcome, EngineError> {
        let request = signer::AbortRequest {
            operation_id: row.id.op.as_bytes().to_vec(),
            attempt: row.id.attempt,
            proof: Some(proof.clone()),
        };
        match self.inner.signers.own().abort(request).await {
            Ok(_) => {}
            // A signer that was never asked holds nothing to give back.
            Err(error) if error.not_found() => {}
            Err(error) => {
                tracing::warn!(%error, operation = %row.id, "own signer did not take the proof of abort");
                return Ok(Outcome::Undecided(row.id.op));
            }
        }
        fail_point(Point::SignerAborted);
        operation::set_reason(self.db().pool(), row.id, reason).await?;
        let tell = if row.coordinates { self.peer_indices() } else { Vec::new() };
        let kind = Kind::from_code(row.kind)?;
        if work::aborted(self.db(), row.id, &proof.encode_to_vec(), &tell).await? {
            self.ended(kind, End::Aborted);
        }
        fail_point(Point::Aborted);
        self.deliver_aborts(row.id).await?;
        let row = operation::get(self.db().pool(), row.id).await?.ok_or(EngineError::Unknown)?;
        Ok(refused(&row, kind))
    }

    /// Tells peers of a proof of abort that they have not yet acknowledged.
    pub(super) async fn deliver_aborts(&self, id: AttemptId) -> Result<(), EngineError> {
        let waiting = delivery::waiting(self.db().pool(), id, Message::Abort).await?;
        if waiting.is_empty() {
            return Ok(());
        }
        let row = operation::get(self.db().pool(), id).await?.ok_or(EngineError::Unknown)?;
        let proof =
            wire::ProofOfAbort::decode(row.abort_proof.as_deref().ok_or(EngineError::State("no proof"))?)?;
        let request = wire::AbortRequest {
            operation_id: id.op.as_bytes().to_vec(),
            attempt: id.attempt,
            proof: Some(proof),
        };
        let replies = join_all(waiting.into_iter().map(|index| {
            let request = request.clone();
            async move {
                match self.inner.signers.peer(index) {
                    Ok(peer) => (index, peer.abort(request).await),
                    Err(error) => (index, Err(error)),
                }
            }
        }))
        .await;
        for (index, reply) in replies {
            match reply {
                Ok(_) => delivery::delivered(self.db().pool(), index, id, Message::Abort).await?,
                Err(error) => {
                    tracing::warn!(peer = index.get(), %error, operation = %id, "proof of abort not taken")
                }
            }
        }
        Ok(())
    }

    /// Tells peers of a proof of commit that they have not yet applied. Returns those that still have not.
    pub(super) async fn deliver_applies(
        &self,
        id: AttemptId,
        request: &wire::Operation,
        proof: &wire::ProofOfCommit,
    ) -> Result<Vec<OperatorIndex>, EngineError> {
        let waiting = delivery::waiting(self.db().pool(), id, Message::Apply).await?;
        let message = wire::ApplyRequest { operation: Some(request.clone()), proof: Some(proof.clone()) };
        let replies = join_all(waiting.into_iter().map(|index| {
            let message = message.clone();
            async move {
                match self.inner.signers.peer(index) {
                    Ok(peer) => (index, peer.apply(message).await),
                    Err(error) => (index, Err(error)),
                }
            }
        }))
        .await;
        let mut left = Vec::new();
        let (mut told, mut receipts) = (Vec::new(), Vec::new());
        for (index, reply) in replies {
            match reply {
                Ok(reply) => {
                    match outcome::receipts(index, &reply.receipts) {
                        Ok(rows) => receipts.extend(rows),
                        Err(error) => {
                            tracing::warn!(peer = index.get(), %error, "peer sent malformed receipts")
                        }
                    }
                    told.push(index);
                }
                Err(error) => {
                    tracing::warn!(peer = index.get(), %error, operation = %id, "peer did not apply");
                    left.push(index);
                }
            }
        }
        work::told(self.db(), id, &told, &receipts).await?;
        Ok(left)
    }

    /// Verifies a proof of commit against one's own records and says what it leads to.
    pub(super) fn outcome(
        &self,
        attempt: &Attempt,
        keys: &Keys,
        proof: &wire::ProofOfCommit,
    ) -> Result<Applied, EngineError> {
        let certificate = proof.certificate.as_ref().ok_or(OperationError::Malformed("certificate"))?;
        let certificate = Certificate::verify(certificate, self.federation())?;
        let ballot = certificate.ballot();
        let heavily = attempt.operation.parts.len();
        let digest = heavy(heavily, || attempt.operation.digest(keys));
        if ballot.operation != attempt.id.op
            || ballot.attempt != attempt.id.attempt
            || ballot.digest != digest
        {
            return Err(EngineError::State("proof of commit is about something else"));
        }
        attempt.operation.verify_commits(proof, &certificate, self.federation())?;
        let signatures = attempt.operation.parse_signatures(&proof.signatures)?;
        Ok(heavy(heavily, || attempt.operation.outcome(&signatures, keys, &digest))?)
    }

    /// The own signer applies.
    pub(super) async fn signer_apply(
        &self,
        id: AttemptId,
        proof: &wire::ProofOfCommit,
    ) -> Result<Vec<wire::Receipt>, EngineError> {
        let request = signer::ApplyRequest {
            operation_id: id.op.as_bytes().to_vec(),
            attempt: id.attempt,
            proof: Some(proof.clone()),
        };
        Ok(self.inner.signers.own().apply(request).await?.receipts)
    }

    /// Own tables follow the own signer.
    pub(super) async fn write_applied(
        &self,
        attempt: &Attempt,
        keys: &Keys,
        proof: &wire::ProofOfCommit,
        receipts: &[wire::Receipt],
    ) -> Result<(), EngineError> {
        let applied = self.outcome(attempt, keys, proof)?;
        let mut write = outcome::rows(&attempt.operation, attempt.body()?, keys, &applied)?;
        write.receipts = outcome::receipts(self.own(), receipts)?;
        if work::applied(self.db(), attempt.id, &write).await? {
            self.ended(attempt.operation.kind, End::Committed);
        }
        fail_point(Point::Applied);
        Ok(())
    }

    /// Shows the outcome here: events go out once.
    pub(super) async fn close_own(
        &self,
        id: AttemptId,
        body: &wire::operation::Request,
        everywhere: bool,
    ) -> Result<(), EngineError> {
        // A claim concerns the one who claims; the others have theirs still to do, or have done it.
        let (transfer_id, only) = match body {
            wire::operation::Request::Send(send) => (Some(&send.transfer_id), None),
            wire::operation::Request::SendMany(send) => (Some(&send.transfer_id), None),
            wire::operation::Request::Claim(claim) => {
                (Some(&claim.transfer_id), Some(&claim.owner_identity_public_key))
            }
            wire::operation::Request::Htlc(htlc) => {
                (htlc_transfer(htlc).map(|request| &request.transfer_id), None)
            }
            wire::operation::Request::CoopExit(exit) => {
                (exit_transfer(exit).map(|request| &request.transfer_id), None)
            }
            wire::operation::Request::Deposit(_)
            | wire::operation::Request::Renew(_)
            | wire::operation::Request::Refresh(_) => (None, None),
        };
        let mut events = Vec::new();
        if let Some(text) = transfer_id {
            let id = spark_rules::operation::transfer_id(text)?.uuid();
            if let Some(row) = transfer::get(self.db().pool(), id).await? {
                let shares = transfer::shares(self.db().pool(), &[id]).await?;
                // A receiver hears of what it can claim only: wallets claim at once.
                let told =
                    shares.into_iter().filter(|share| share.status != transfer::SENDER_KEY_TWEAK_PENDING);
                let receivers = told.map(|share| share.receiver);
                events = outcome::events(
                    &row,
                    receivers.filter(|receiver| only.is_none_or(|only| only == receiver)).collect(),
                );
            }
        }
        work::done(self.db(), id, &events, everywhere).await?;
        fail_point(Point::Done);
        Ok(())
    }
}
