//! What an operator does when another one coordinates, and the own signer's vote in both roles.

use std::time::Instant;

use prost::Message as _;
use spark_proto::{peer::v1 as wire, signer::v1 as signer};
use spark_rules::{
    ids::{OperationId, OperatorIndex},
    operation::{Keys, Operation, OperationError, identify},
    package_key::Envelope,
    vote::{Certificate, Choice, Kind, ProofOfAbort, Vote, VoteError},
};
use uuid::Uuid;

use super::{
    coordinate::LEAF_UNAVAILABLE,
    engine::{Attempt, Engine, EngineError, Outcome, request_digest, unix_seconds, vote_write},
    fail::{Point, fail_point},
    heavy::heavy,
    records::Snapshot,
    settle::{EXIT_DEPTH, EXIT_NOT_OFFERED, EXPIRY_HEIGHT, HTLC_NOT_OFFERED},
};
use crate::{
    db::{
        DbError,
        operation::{self, AttemptId, NewOperation, OperationRow, State},
        package_key, receipt, work,
    },
    metrics::{Outcome as End, Phase},
};

pub(super) fn attempt_id(operation_id: &[u8], attempt: u32) -> Result<AttemptId, EngineError> {
    let op = OperationId::parse(operation_id).map_err(VoteError::from)?;
    Ok(AttemptId { op, attempt })
}

impl Engine {
    /// Own signer's vote on a proposed attempt, written before anybody hears it. Repeats give the stored vote.
    pub(super) async fn prepare_own(&self, attempt: &Attempt) -> Result<wire::Vote, EngineError> {
        let row = operation::get(self.db().pool(), attempt.id).await?.ok_or(EngineError::Unknown)?;
        if let Some(vote) = &row.own_vote {
            return Ok(wire::Vote::decode(vote.as_slice())?);
        }
        // Here and not only where the attempt is proposed: it may have waited since.
        self.chain_is_fresh()?;
        let snapshot = Snapshot::load(self.db(), attempt.body()?).await?;
        if snapshot.forbidden(&attempt.operation).is_some() {
            return self.refuse_own(&row.id, &attempt.request, LEAF_UNAVAILABLE).await;
        }
        self.ask_own_signer(attempt).await
    }

    /// The vote of the own signer, stored; for what it voted on already, whatever the chain says now.
    async fn ask_own_signer(&self, attempt: &Attempt) -> Result<wire::Vote, EngineError> {
        let started = Instant::now();
        let request = signer::PrepareRequest { operation: Some(attempt.request.clone()) };
        let response = self.inner.signers.own().prepare(request).await?;
        fail_point(Point::SignerPrepared);
        let vote = response.vote.ok_or(EngineError::State("signer gave no vote"))?;
        let checked = self.own_vote(&vote, attempt.id)?;
        let own = vote_write(self.own(), checked.ballot.choice, &vote);
        if checked.ballot.choice.aborts() {
            fail_point(Point::SignerRefused);
            if work::refused(self.db(), attempt.id, &own, &vote.reason).await? {
                self.ended(attempt.operation.kind, End::Refused);
            }
            return Ok(vote);
        }
        let opened = signer::PrepareResponse { vote: None, opened: response.opened };
        let digest = heavy(attempt.operation.parts.len(), || {
            let keys = Keys::derive(&attempt.operation, &opened.opened)?;
            Ok::<_, OperationError>(attempt.operation.digest(&keys))
        })?;
        if digest != checked.ballot.digest {
            // Signer and tables disagree about a leaf: serve nothing on it (D10). The YES stays with the signer.
            tracing::error!(operation = %attempt.id, "own signer voted on another digest than own tables give");
            return Err(EngineError::State("own signer and own tables disagree"));
        }
        let opened = opened.encode_to_vec();
        let prepared = work::prepared(self.db(), attempt.id, &own, &checked.ballot.digest, &opened);
        let (prepared, ()) = tokio::join!(prepared, self.package_key_used(&attempt.operation));
        prepared?;
        fail_point(Point::Prepared);
        self.step_done(attempt.operation.kind, Phase::Prepare, started);
        Ok(vote)
    }

    /// The key is the operation's now: nobody else gets it, and it counts no longer against its holder.
    async fn package_key_used(&self, operation: &Operation) {
        let part = operation.sealed.as_ref().and_then(|s| s.ciphertexts.get(self.own().as_usize()));
        let Some(Ok(envelope)) = part.map(|part| Envelope::parse(part)) else { return };
        let key = [Uuid::from_bytes(envelope.key_id)];
        if let Err(error) = package_key::remove(self.db().pool(), &key).await {
            // It goes with those that ran out.
            tracing::debug!(%error, "package key");
        }
    }

    fn own_vote(&self, vote: &wire::Vote, id: AttemptId) -> Result<Vote, EngineError> {
        let checked = Vote::verify(vote, self.federation())?;
        let about = (checked.ballot.operation, checked.ballot.attempt) == (id.op, id.attempt);
        if checked.position.signer != self.own() || !about || checked.ballot.choice == Choice::Commit {
            return Err(EngineError::State("own signer voted on something else"));
        }
        Ok(checked)
    }

    /// A coordinator asks for a vote.
    pub async fn on_prepare(
        &self,
        from: OperatorIndex,
        request: wire::Operation,
    ) -> Result<wire::Vote, EngineError> {
        if request.coordinator != u32::from(from.get()) {
            return Err(EngineError::Forbidden("only the coordinator asks for votes"));
        }
        let id = attempt_id(&request.operation_id, request.attempt)?;
        let digest = request_digest(request.request.as_ref().ok_or(OperationError::Malformed("request"))?);
        if let Some(row) = operation::get(self.db().pool(), id).await? {
            if row.request_digest != digest || row.coordinator != from {
                return self.refuse_rival(&row).await;
            }
            if let Some(vote) = &row.own_vote {
                return Ok(wire::Vote::decode(vote.as_slice())?);
            }
            if row.state == State::Refused {
                return self.refuse_own(&row.id, &request, &row.reason).await;
            }
            let attempt = self.reload(&row).await?;
            return self.prepare_own(&attempt).await;
        }
        self.chain_is_fresh()?;
        let started = Instant::now();
        match self.derive(request.clone()).await {
            Ok((attempt, snapshot)) => {
                if snapshot.forbidden(&attempt.operation).is_some() {
                    return self.refuse(&attempt.new_row(false), &request, LEAF_UNAVAILABLE).await;
                }
                if let Err(error) = attempt.operation.terms.at(unix_seconds()) {
                    return self.refuse(&attempt.new_row(false), &request, error.reason()).await;
                }
                if let Some(reason) = self.declined(&attempt.operation) {
                    return self.refuse(&attempt.new_row(false), &request, reason).await;
                }
                if !self.expiry_fits(&attempt.operation)? {
                    return self.refuse(&attempt.new_row(false), &request, EXPIRY_HEIGHT).await;
                }
                match work::propose(self.db(), &attempt.new_row(false), &attempt.claims()?).await {
                    Ok(()) => {
                        fail_point(Point::Proposed);
                        self.step_done(attempt.operation.kind, Phase::Propose, started);
                        self.prepare_own(&attempt).await
                    }
                    Err(DbError::LeafClaimed | DbError::ResourceClaimed) => {
                        let reason = self.claimed(&attempt.operation).await?;
                        self.refuse(&attempt.new_row(false), &request, reason).await
                    }
                    Err(DbError::AttemptLive) => {
                        Err(EngineError::State("an earlier attempt is undecided here"))
                    }
                    Err(error) => Err(error.into()),
                }
            }
            Err(EngineError::Operation(error)) => {
                let new = self.bare_row(&request, id, digest, from).await?;
                self.refuse(&new, &request, error.reason()).await
            }
            Err(error) => Err(error),
        }
    }

    /// Another request, or another coordinator, has this attempt already: two devices of one wallet did the same thing
    /// at once. One attempt cannot become both, so our signer's ABORT ends it for both, and the next attempt decides.
    /// Once a certificate is known, it can still become the first.
    async fn refuse_rival(&self, row: &OperationRow) -> Result<wire::Vote, EngineError> {
        if !matches!(row.state, State::Proposed | State::Prepared | State::Refused | State::Aborted) {
            return Err(EngineError::State("another request holds this attempt"));
        }
        let ask = signer::SignAbortRequest {
            operation_id: row.id.op.as_bytes().to_vec(),
            attempt: row.id.attempt,
            aborts: Vec::new(),
        };
        let vote = self.inner.signers.own().sign_abort(ask).await?.vote;
        let mut vote = vote.ok_or(EngineError::State("signer gave no vote"))?;
        let checked = self.own_vote(&vote, row.id)?;
        if !checked.ballot.choice.aborts() {
            return Err(EngineError::State("own signer does not abort"));
        }
        if row.state != State::Aborted {
            let own = vote_write(self.own(), checked.ballot.choice, &vote);
            fail_point(Point::SignerRefused);
            if work::refused(self.db(), row.id, &own, LEAF_UNAVAILABLE).await? {
                self.ended(Kind::from_code(row.kind)?, End::Refused);
            }
        }
        vote.reason = LEAF_UNAVAILABLE.to_owned();
        Ok(vote)
    }

    /// A row for a request that one's own records refuse, with what can be known of it.
    async fn bare_row(
        &self,
        request: &wire::Operation,
        id: AttemptId,
        request_digest: [u8; 32],
        coordinator: OperatorIndex,
    ) -> Result<NewOperation, EngineError> {
        let body = request.request.as_ref().ok_or(OperationError::Malformed("request"))?;
        let snapshot = Snapshot::load(self.db(), body).await?;
        let (_, kind) = identify(request, &snapshot)?;
        Ok(NewOperation {
            id,
            kind: kind.code(),
            coordinates: false,
            coordinator,
            request: request.encode_to_vec(),
            request_digest,
            // The named signers could not be derived. A proof of abort by everybody holds for any of them.
            named: self.federation().indices().collect(),
        })
    }

    async fn refuse(
        &self,
        new: &NewOperation,
        request: &wire::Operation,
        reason: &str,
    ) -> Result<wire::Vote, EngineError> {
        work::refuse_new(self.db(), new, reason).await?;
        self.ended(Kind::from_code(new.kind)?, End::Refused);
        self.refuse_own(&new.id, request, reason).await
    }

    /// The own signer's word that it will never release. It may not know the attempt yet: then it hears the request
    /// first, and takes back a YES that its own ledger would have given.
    async fn refuse_own(
        &self,
        id: &AttemptId,
        request: &wire::Operation,
        reason: &str,
    ) -> Result<wire::Vote, EngineError> {
        let ask = signer::SignAbortRequest {
            operation_id: id.op.as_bytes().to_vec(),
            attempt: id.attempt,
            aborts: Vec::new(),
        };
        let own = self.inner.signers.own();
        let vote = match own.sign_abort(ask.clone()).await {
            Ok(response) => response.vote,
            Err(error) if error.refused() => {
                let response =
                    own.prepare(signer::PrepareRequest { operation: Some(request.clone()) }).await?;
                match response.vote {
                    Some(vote) if !self.own_vote(&vote, *id)?.ballot.choice.aborts() => {
                        own.sign_abort(ask).await?.vote
                    }
                    vote => vote,
                }
            }
            Err(error) => return Err(error.into()),
        };
        let mut vote = vote.ok_or(EngineError::State("signer gave no vote"))?;
        let checked = self.own_vote(&vote, *id)?;
        if !checked.ballot.choice.aborts() {
            return Err(EngineError::State("own signer does not abort"));
        }
        // The signer's ABORT says nothing but that; what this operator takes no part in, nobody needs to try again.
        if vote.reason.is_empty() || [HTLC_NOT_OFFERED, EXIT_NOT_OFFERED, EXIT_DEPTH].contains(&reason) {
            vote.reason = reason.to_owned();
        }
        // Counted when its row was written.
        fail_point(Point::SignerRefused);
        work::refused(self.db(), *id, &vote_write(self.own(), checked.ballot.choice, &vote), reason).await?;
        Ok(vote)
    }

    /// Somebody asks our signer for its shares, with a certificate.
    pub async fn on_release(
        &self,
        request: signer::ReleaseRequest,
    ) -> Result<signer::ReleaseResponse, EngineError> {
        let id = attempt_id(&request.operation_id, request.attempt)?;
        let row = operation::get(self.db().pool(), id).await?.ok_or(EngineError::Unknown)?;
        let certificate = request.certificate.as_ref().ok_or(VoteError::Malformed("certificate"))?;
        let checked = Certificate::verify(certificate, self.federation())?;
        if checked.ballot().operation != id.op || checked.ballot().attempt != id.attempt {
            return Err(VoteError::Disagree("operation").into());
        }
        if row.state < State::Certified {
            work::certified(self.db(), id, &certificate.encode_to_vec(), &[]).await?;
            fail_point(Point::Certified);
        }
        let response = self.inner.signers.own().release(request).await?;
        fail_point(Point::Released);
        Ok(response)
    }

    /// Somebody asks our signer for an ABORT: the coordinator at any time, others once the attempt is stale.
    pub async fn on_sign_abort(
        &self,
        from: OperatorIndex,
        request: signer::SignAbortRequest,
    ) -> Result<signer::SignAbortResponse, EngineError> {
        let id = attempt_id(&request.operation_id, request.attempt)?;
        let row = operation::get(self.db().pool(), id).await?;
        if let Some(row) = &row {
            if row.coordinator != from && row.age_seconds < self.inner.settings.stale_after {
                return Err(EngineError::Forbidden("only the coordinator ends a fresh attempt"));
            }
            if row.state.committed() {
                return Err(EngineError::State("a proof of commit is known"));
            }
        }
        let response = self.inner.signers.own().sign_abort(request).await?;
        if let (Some(row), Some(vote)) = (row, &response.vote) {
            let checked = self.own_vote(vote, id)?;
            if checked.ballot.choice.aborts() && row.state != State::Aborted {
                let own = vote_write(self.own(), checked.ballot.choice, vote);
                fail_point(Point::SignerRefused);
                if work::refused(self.db(), id, &own, "ABORT_ASKED").await? {
                    self.ended(Kind::from_code(row.kind)?, End::Refused);
                }
            }
        }
        Ok(response)
    }

    /// Somebody hands over a proof of commit. Idempotent.
    pub async fn on_apply(&self, request: wire::ApplyRequest) -> Result<Vec<wire::Receipt>, EngineError> {
        let started = Instant::now();
        let proof = request.proof.ok_or(VoteError::Malformed("proof"))?;
        let certificate = proof.certificate.as_ref().ok_or(VoteError::Malformed("certificate"))?;
        let checked = Certificate::verify(certificate, self.federation())?;
        let id = AttemptId { op: checked.ballot().operation, attempt: checked.ballot().attempt };
        let row = operation::get(self.db().pool(), id).await?;
        if row.as_ref().is_some_and(|row| matches!(row.state, State::Applied | State::Done)) {
            return self.own_receipts(id).await;
        }
        let attempt = match (&row, request.operation) {
            (Some(row), _) if row.request.is_some() => self.reload(row).await?,
            (_, Some(operation)) => self.derive_voted(operation).await?,
            (_, None) => return Err(EngineError::Unknown),
        };
        if attempt.id != id {
            return Err(VoteError::Disagree("operation").into());
        }
        let row = match row {
            Some(row) => row,
            None => {
                work::restore(self.db(), &attempt.new_row(false), &attempt.claims()?).await?;
                operation::get(self.db().pool(), id).await?.ok_or(EngineError::Unknown)?
            }
        };
        let keys = self.keys(&attempt, &row).await?;
        self.outcome(&attempt, &keys, &proof)?;
        work::committed(self.db(), id, &proof.encode_to_vec(), &certificate.encode_to_vec(), &[]).await?;
        fail_point(Point::Committed);
        let receipts = self.signer_apply(id, &proof).await?;
        fail_point(Point::SignerApplied);
        self.write_applied(&attempt, &keys, &proof, &receipts).await?;
        self.step_done(attempt.operation.kind, Phase::Apply, started);
        Ok(receipts)
    }

    async fn own_receipts(&self, id: AttemptId) -> Result<Vec<wire::Receipt>, EngineError> {
        let own = operation::index_column(self.own());
        let rows = receipt::of_operation(self.db().pool(), id.op.uuid()).await?;
        rows.iter()
            .filter(|r| r.signer == own)
            .map(|r| Ok(wire::Receipt::decode(r.body.as_slice())?))
            .collect()
    }

    /// Somebody hands over a proof of abort. Idempotent.
    pub async fn on_abort(&self, request: wire::AbortRequest) -> Result<(), EngineError> {
        let id = attempt_id(&request.operation_id, request.attempt)?;
        let proof = request.proof.ok_or(VoteError::Malformed("proof"))?;
        let Some(row) = operation::get(self.db().pool(), id).await? else { return Ok(()) };
        if row.state == State::Aborted {
            return Ok(());
        }
        if row.state.committed() {
            tracing::error!(operation = %id, "proofs of commit and of abort exist for one attempt");
            return Err(EngineError::State("a proof of commit is known"));
        }
        // A row whose named signers could not be derived held no claim and no YES: the proof frees nothing here.
        if row.state != State::Refused {
            ProofOfAbort::verify(&proof, self.federation(), id.op, id.attempt, &row.named)?;
        }
        match self.conclude_abort(&row, proof, "ABORTED").await? {
            Outcome::Undecided(_) => Err(EngineError::State("own signer has not taken the proof yet")),
            _ => Ok(()),
        }
    }

    /// What this operator can prove about an attempt.
    pub async fn on_query(
        &self,
        request: wire::QueryProofRequest,
    ) -> Result<wire::QueryProofReply, EngineError> {
        use wire::query_proof_reply::{Outcome as Reply, Unknown};
        let id = attempt_id(&request.operation_id, request.attempt)?;
        let Some(row) = operation::get(self.db().pool(), id).await? else {
            let outcome = Some(Reply::Unknown(Unknown {}));
            return Ok(wire::QueryProofReply { outcome, certificate: None });
        };
        let mut certificate = None;
        let outcome = match (&row.proof, &row.abort_proof, &row.own_vote) {
            (Some(proof), _, _) => Reply::Commit(wire::ApplyRequest {
                operation: row.request.as_deref().map(wire::Operation::decode).transpose()?,
                proof: Some(wire::ProofOfCommit::decode(proof.as_slice())?),
            }),
            (_, Some(proof), _) => Reply::Abort(wire::AbortRequest {
                operation_id: id.op.as_bytes().to_vec(),
                attempt: id.attempt,
                proof: Some(wire::ProofOfAbort::decode(proof.as_slice())?),
            }),
            (_, _, Some(vote)) => {
                certificate = row.certificate.as_deref().map(wire::Certificate::decode).transpose()?;
                Reply::Vote(wire::Vote::decode(vote.as_slice())?)
            }
            _ => Reply::Unknown(Unknown {}),
        };
        Ok(wire::QueryProofReply { outcome: Some(outcome), certificate })
    }

    /// The coordinator says that every operator applied it.
    pub async fn on_close(
        &self,
        from: OperatorIndex,
        request: wire::CloseRequest,
    ) -> Result<(), EngineError> {
        let id = attempt_id(&request.operation_id, request.attempt)?;
        let row = operation::get(self.db().pool(), id).await?.ok_or(EngineError::Unknown)?;
        if row.coordinator != from {
            return Err(EngineError::Forbidden("only the coordinator closes"));
        }
        self.close_row(&row).await
    }

    /// Closes an applied attempt of one's own tables.
    pub(super) async fn close_row(&self, row: &OperationRow) -> Result<(), EngineError> {
        let (State::Applied, Some(bytes)) = (row.state, &row.request) else { return Ok(()) };
        let request = wire::Operation::decode(bytes.as_slice())?;
        let body = request.request.as_ref().ok_or(OperationError::Malformed("request"))?;
        self.close_own(row.id, body, true).await
    }
}

/// Following the signer's journal (D10).
impl Engine {
    /// Writes again an attempt that the own signer prepared and these tables lost, and its vote. False: nothing was
    /// missing.
    pub(crate) async fn restore(&self, request: wire::Operation) -> Result<bool, EngineError> {
        let id = attempt_id(&request.operation_id, request.attempt)?;
        let found = operation::get(self.db().pool(), id).await?;
        if found.as_ref().is_some_and(|row| row.own_vote.is_some()) {
            return Ok(false);
        }
        let attempt = self.derive_voted(request).await?;
        let coordinates = attempt.operation.coordinator == self.own();
        work::restore(self.db(), &attempt.new_row(coordinates), &attempt.claims()?).await?;
        self.ask_own_signer(&attempt).await?;
        Ok(true)
    }

    /// Applies here what the own signer has applied. False: these tables show it already.
    pub(crate) async fn reapply(
        &self,
        id: AttemptId,
        proof: wire::ProofOfCommit,
    ) -> Result<bool, EngineError> {
        match operation::get(self.db().pool(), id).await? {
            Some(row) if matches!(row.state, State::Applied | State::Done) => Ok(false),
            Some(_) => {
                self.on_apply(wire::ApplyRequest { operation: None, proof: Some(proof) }).await?;
                Ok(true)
            }
            None => {
                // Lost with an older database: a peer that has not closed the attempt still has the request.
                let query =
                    wire::QueryProofRequest { operation_id: id.op.as_bytes().to_vec(), attempt: id.attempt };
                for (_, peer) in self.inner.signers.peers() {
                    let reply = peer.query_proof(query.clone()).await.ok().and_then(|r| r.outcome);
                    if let Some(wire::query_proof_reply::Outcome::Commit(request)) = reply
                        && request.operation.is_some()
                    {
                        self.on_apply(wire::ApplyRequest {
                            operation: request.operation,
                            proof: Some(proof),
                        })
                        .await?;
                        return Ok(true);
                    }
                }
                Err(EngineError::Unknown)
            }
        }
    }
}
