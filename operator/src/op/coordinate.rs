//! The coordinator's run: propose, votes, certificate, release, proof, apply everywhere, then show.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use bitcoin::secp256k1::PublicKey;
use futures::future::{join, join_all};
use prost::Message as _;
use spark_proto::{peer::v1 as wire, signer::v1 as signer};
use spark_rules::{
    ids::{OperationId, OperatorIndex},
    operation::{Operation, OperationError, identify, invoice_key},
    vote::{Certificate, Kind},
};

use super::{
    engine::{Attempt, Engine, EngineError, Outcome, Refusal, request_digest, unix_seconds, vote_write},
    fail::{Point, fail_point},
    heavy::heavy,
    observe::asked_kind,
    records::Snapshot,
    shares::Stages,
    tally::{Tally, Verdict},
};
use crate::{
    call::CallError,
    db::{
        DbError, claim,
        operation::{self, AttemptId, OperationRow, State},
        vote,
        work::{self, VoteWrite},
    },
    metrics::{Outcome as End, Phase},
};

/// Reason told to wallets when another operation holds a leaf.
pub(super) const LEAF_UNAVAILABLE: &str = "LEAF_UNAVAILABLE";
/// Reason told to wallets when another transfer pays the invoice.
pub(crate) const INVOICE_PAID: &str = "INVOICE_PAID";

impl Engine {
    /// Runs a client's request to its end, or attaches to the run that the same request started before.
    /// `requester` is the identity of the session: only the sender, receiver or owner may start the operation.
    ///
    /// Dropping the returned future does not stop the run.
    pub async fn run(
        &self,
        mut request: wire::operation::Request,
        requester: &PublicKey,
    ) -> Result<Outcome, EngineError> {
        self.fix_terms(&mut request);
        let digest = request_digest(&request);
        // Each turn answers, or lost a race against another session and looks again.
        for _ in 0..8 {
            let started = Instant::now();
            let snapshot = Snapshot::load(self.db(), &request).await?;
            let mut message = wire::Operation {
                federation_epoch: self.federation().epoch(),
                coordinator: self.own().get().into(),
                request: Some(request.clone()),
                ..wire::Operation::default()
            };
            let (op, kind) = match identify(&message, &snapshot) {
                Ok(found) => found,
                Err(error) => return Ok(self.turned_away(asked_kind(&request), Outcome::Invalid(error))),
            };
            let mut latest = operation::latest(self.db().pool(), op).await?;
            if latest.is_none() && kind == Kind::Renew {
                // A renewal's id names the version that it consumed; a repeat after the fact is known by its words.
                latest = operation::by_request_digest(self.db().pool(), &digest).await?;
            }
            let attempt = match latest {
                None => 0,
                Some(row) if row.request_digest == digest && row.state != State::Aborted => {
                    return self.attach(row.id, kind).await;
                }
                Some(row) if row.request_digest == digest => return Ok(refused(&row, kind)),
                Some(row) if row.state.committed() => return Ok(Outcome::Exists(op)),
                Some(row) if row.state.undecided() => return Ok(Outcome::Conflict(op)),
                Some(row) => {
                    self.deliver_aborts(row.id).await?;
                    row.id.attempt.saturating_add(1)
                }
            };
            message.operation_id = op.as_bytes().to_vec();
            message.attempt = attempt;
            let attempt = match self.derive(message).await {
                Ok((attempt, snapshot)) => match snapshot.forbidden(&attempt.operation) {
                    Some(_) => return Ok(self.turned_away(kind, unavailable(op, kind, LEAF_UNAVAILABLE))),
                    None => attempt,
                },
                Err(EngineError::Operation(error)) => {
                    return Ok(self.turned_away(kind, Outcome::Invalid(error)));
                }
                Err(error) => return Err(error),
            };
            if attempt.operation.requester != *requester {
                return Ok(self.turned_away(kind, Outcome::NotRequester(op)));
            }
            if let Err(error) = attempt.operation.terms.at(unix_seconds()) {
                return Ok(self.turned_away(kind, Outcome::Invalid(error)));
            }
            self.chain_is_fresh()?;
            if !self.expiry_fits(&attempt.operation)? {
                let invalid = OperationError::Malformed("expiry_time");
                return Ok(self.turned_away(kind, Outcome::Invalid(invalid)));
            }
            match work::propose(self.db(), &attempt.new_row(true), &attempt.claims()?).await {
                Ok(()) => self.step_done(kind, Phase::Propose, started),
                Err(DbError::LeafClaimed | DbError::ResourceClaimed) => {
                    let reason = self.claimed(&attempt.operation).await?;
                    return Ok(self.turned_away(kind, unavailable(op, kind, reason)));
                }
                Err(DbError::Exists(_) | DbError::AttemptLive) => continue,
                Err(error) => return Err(error.into()),
            }
            fail_point(Point::Proposed);
            let engine = self.clone();
            let Some(driving) = self.driving(attempt.id) else { return self.attach(attempt.id, kind).await };
            return tokio::spawn(async move {
                let outcome = engine.drive(&attempt).await;
                drop(driving);
                outcome
            })
            .await?;
        }
        Err(EngineError::State("too many sessions race for one id"))
    }

    /// Why an operation cannot claim what it needs: another one pays the invoice, or has the leaves.
    pub(super) async fn claimed(&self, operation: &Operation) -> Result<&'static str, EngineError> {
        let Some(paid) = &operation.terms.invoice else { return Ok(LEAF_UNAVAILABLE) };
        let resource = invoice_key(&paid.hash);
        let holder = claim::holder(self.db().pool(), resource.kind, &resource.key).await?;
        let other = holder.is_some_and(|holder| holder != operation.id.uuid());
        Ok(if other { INVOICE_PAID } else { LEAF_UNAVAILABLE })
    }

    /// Refused before anything was written.
    fn turned_away(&self, kind: Kind, outcome: Outcome) -> Outcome {
        self.ended(kind, End::Refused);
        outcome
    }

    /// Waits for an attempt that somebody else drives.
    async fn attach(&self, id: AttemptId, kind: Kind) -> Result<Outcome, EngineError> {
        let until = Instant::now() + self.inner.settings.attach;
        loop {
            let row = operation::get(self.db().pool(), id).await?.ok_or(EngineError::Unknown)?;
            match row.state {
                State::Done => return Ok(Outcome::Applied(id.op)),
                State::Aborted => return Ok(refused(&row, kind)),
                _ if Instant::now() >= until => return Ok(Outcome::Undecided(id.op)),
                _ => tokio::time::sleep(self.inner.settings.pause / 2).await,
            }
        }
    }

    /// Carries an attempt of one's own from wherever it stands. Safe to repeat at any time.
    pub(super) async fn drive(&self, attempt: &Attempt) -> Result<Outcome, EngineError> {
        let row = operation::get(self.db().pool(), attempt.id).await?.ok_or(EngineError::Unknown)?;
        match row.state {
            State::Done => Ok(Outcome::Applied(attempt.id.op)),
            State::Aborted => Ok(refused(&row, attempt.operation.kind)),
            State::Applied => Ok(Outcome::Undecided(attempt.id.op)),
            State::Committed => self.finish(attempt, &row).await,
            State::Proposed | State::Prepared | State::Certified | State::Refused => {
                self.decide(attempt, &row).await
            }
        }
    }

    async fn decide(&self, attempt: &Attempt, row: &OperationRow) -> Result<Outcome, EngineError> {
        let started = Instant::now();
        let mut tally = self.tally(row).await?;
        let mut tried = 0;
        let mut heard = Vec::new();
        let certificate = loop {
            let verdict = tally.verdict();
            if !matches!(verdict, Verdict::Certified(_)) {
                work::keep_votes(self.db(), attempt.id, &std::mem::take(&mut heard)).await?;
            }
            match verdict {
                Verdict::Certified(certificate) => break certificate,
                Verdict::Waiting(missing) if tried < self.inner.settings.tries => {
                    self.pause(tried).await;
                    tried += 1;
                    heard = self.ask_votes(attempt, &mut tally, missing.into_iter().collect()).await;
                }
                Verdict::Waiting(_) => return self.collect_aborts(row, &mut tally, "PEER_UNREACHABLE").await,
                Verdict::Refused { reason } => return self.collect_aborts(row, &mut tally, &reason).await,
                Verdict::Aborted(proof) => return self.conclude_abort(row, proof, "REFUSED").await,
            }
        };
        fail_point(Point::Voted);
        // One commit keeps the votes with the certificate that they make.
        work::certified(self.db(), attempt.id, &certificate.encode_to_vec(), &heard).await?;
        fail_point(Point::Certified);
        self.step_done(attempt.operation.kind, Phase::Certify, started);
        let row = operation::get(self.db().pool(), attempt.id).await?.ok_or(EngineError::Unknown)?;
        self.release(attempt, &row, &mut tally, certificate).await
    }

    /// Votes that are already stored. Those of an earlier federation file count no more, and are asked for again.
    pub(super) async fn tally(&self, row: &OperationRow) -> Result<Tally<'_>, EngineError> {
        let mut tally = Tally::new(self.federation(), row.id.op, row.id.attempt, row.named.clone());
        for (_, _, body) in vote::of_attempt(self.db().pool(), row.id).await? {
            if let Err(error) = tally.record(&wire::Vote::decode(body.as_slice())?) {
                tracing::debug!(%error, operation = %row.id, "a stored vote holds no more");
            }
        }
        Ok(tally)
    }

    /// Votes that hold, for the caller to keep.
    async fn ask_votes(
        &self,
        attempt: &Attempt,
        tally: &mut Tally<'_>,
        missing: Vec<OperatorIndex>,
    ) -> Vec<VoteWrite> {
        let replies = join_all(missing.into_iter().map(|index| async move {
            if index == self.own() {
                return (index, self.prepare_own(attempt).await.map(Some));
            }
            let reply = match self.inner.signers.peer(index) {
                Ok(peer) => peer.prepare(attempt.request.clone()).await,
                Err(error) => Err(error),
            };
            (index, reply.map(|r| r.vote).map_err(EngineError::from))
        }))
        .await;
        let mut keep = Vec::new();
        for (index, reply) in replies {
            match reply {
                Ok(Some(vote)) => match tally.record(&vote) {
                    Ok((signer, choice)) if signer == index => keep.push(vote_write(signer, choice, &vote)),
                    Ok(_) => tracing::warn!(peer = index.get(), "peer sent a vote of somebody else"),
                    Err(error) => {
                        tracing::warn!(peer = index.get(), %error, "peer sent a vote that does not hold")
                    }
                },
                Ok(None) => tracing::warn!(peer = index.get(), "peer sent no vote"),
                Err(error) => tracing::warn!(peer = index.get(), %error, operation = %attempt.id, "no vote"),
            }
        }
        keep
    }

    pub(super) async fn release(
        &self,
        attempt: &Attempt,
        row: &OperationRow,
        tally: &mut Tally<'_>,
        certificate: wire::Certificate,
    ) -> Result<Outcome, EngineError> {
        let started = Instant::now();
        let keys = self.keys(attempt, row).await?;
        let voted = Certificate::verify(&certificate, self.federation())?;
        if voted.ballot().digest != attempt.operation.digest(&keys) {
            tracing::error!(operation = %attempt.id, "signers certified another digest than these records give");
            return Ok(Outcome::Undecided(attempt.id.op));
        }
        let mut stages = Stages::new(&attempt.operation, &keys);
        let mut commits = BTreeMap::new();
        while let Some(stage) = stages.open() {
            for tried in 0..=self.inner.settings.tries {
                let missing = stages.missing();
                if missing.is_empty() {
                    break;
                }
                self.pause(tried).await;
                let request = signer::ReleaseRequest {
                    operation_id: attempt.id.op.as_bytes().to_vec(),
                    attempt: attempt.id.attempt,
                    certificate: Some(certificate.clone()),
                    stage: stage.into(),
                    signatures: stages.signatures(),
                    commits: Vec::new(),
                };
                let replies = if attempt.operation.signs_nothing() {
                    let said = commits.values().cloned().collect();
                    self.commits_in_order(missing, &request, said).await
                } else {
                    join_all(missing.into_iter().map(|index| {
                        let request = request.clone();
                        async move { (index, self.inner.signers.release(index, request).await) }
                    }))
                    .await
                };
                for (index, reply) in replies {
                    match reply {
                        Ok(reply) => {
                            if attempt.operation.signs_nothing() {
                                let commit = reply.commit.unwrap_or_default();
                                match voted.verify_commit(&commit, self.federation()) {
                                    Ok(signer) if signer == index => drop(commits.insert(index, commit)),
                                    _ => {
                                        tracing::error!(signer = index.get(), operation = %attempt.id, "bad COMMIT");
                                        continue;
                                    }
                                }
                            }
                            if let Err(error) = stages.record(index, &reply.shares) {
                                tracing::error!(signer = index.get(), %error, operation = %attempt.id, "bad shares");
                            }
                        }
                        // After its YES a signer refuses a certificate only if it signed ABORT in between.
                        Err(error) if error.refused() => {
                            tracing::warn!(signer = index.get(), %error, operation = %attempt.id, "release refused");
                            return self.collect_aborts(row, tally, "RELEASE_REFUSED").await;
                        }
                        Err(error) => {
                            tracing::warn!(signer = index.get(), %error, operation = %attempt.id, "no shares")
                        }
                    }
                }
            }
            if !stages.missing().is_empty() {
                return Ok(Outcome::Undecided(attempt.id.op));
            }
            fail_point(Point::Released);
            if let Err(error) = heavy(attempt.operation.parts.len(), || stages.close()) {
                tracing::error!(%error, operation = %attempt.id, "shares do not aggregate");
                return Ok(Outcome::Undecided(attempt.id.op));
            }
        }
        fail_point(Point::Signed);
        let signatures = stages.signatures();
        let commits = commits.into_values().collect();
        let proof = wire::ProofOfCommit { certificate: Some(certificate.clone()), signatures, commits };
        // Every final signature is verified against the output that it spends before anything calls this decided.
        self.outcome(attempt, &keys, &proof)?;
        work::committed(
            self.db(),
            attempt.id,
            &proof.encode_to_vec(),
            &certificate.encode_to_vec(),
            &self.peer_indices(),
        )
        .await?;
        fail_point(Point::Committed);
        self.step_done(attempt.operation.kind, Phase::Release, started);
        let row = operation::get(self.db().pool(), attempt.id).await?.ok_or(EngineError::Unknown)?;
        self.finish(attempt, &row).await
    }

    /// As the deciders of a refresh say it: each is shown what those below it have said, and none is asked before them.
    async fn commits_in_order(
        &self,
        deciders: BTreeSet<OperatorIndex>,
        request: &signer::ReleaseRequest,
        mut said: Vec<wire::Vote>,
    ) -> Vec<(OperatorIndex, Result<signer::ReleaseResponse, CallError>)> {
        let mut replies = Vec::new();
        for index in deciders {
            let request = signer::ReleaseRequest { commits: said.clone(), ..request.clone() };
            let reply = self.inner.signers.release(index, request).await;
            let commit = reply.as_ref().ok().and_then(|reply| reply.commit.clone());
            replies.push((index, reply));
            match commit {
                Some(commit) => said.push(commit),
                None => break,
            }
        }
        replies
    }

    /// Applies a committed attempt everywhere; own tables show it last (D7).
    pub(super) async fn finish(&self, attempt: &Attempt, row: &OperationRow) -> Result<Outcome, EngineError> {
        let started = Instant::now();
        let proof = wire::ProofOfCommit::decode(row.proof.as_deref().ok_or(EngineError::State("no proof"))?)?;
        let keys = self.keys(attempt, row).await?;
        for tried in 0..self.inner.settings.tries {
            self.pause(tried).await;
            let (own, waiting) = join(
                self.signer_apply(attempt.id, &proof),
                self.deliver_applies(attempt.id, &attempt.request, &proof),
            )
            .await;
            let waiting = waiting?;
            match own {
                Ok(receipts) if waiting.len() <= self.spare() => {
                    fail_point(Point::SignerApplied);
                    self.write_applied(attempt, &keys, &proof, &receipts).await?;
                    self.step_done(attempt.operation.kind, Phase::Apply, started);
                    fail_point(Point::Everywhere);
                    self.close(attempt.id, attempt.body()?, row.coordinates, waiting.is_empty()).await?;
                    return Ok(Outcome::Applied(attempt.id.op));
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, operation = %attempt.id, "own signer did not apply"),
            }
        }
        Ok(Outcome::Undecided(attempt.id.op))
    }

    /// Operators that may lag when an outcome is shown: none by default (D9).
    pub(super) fn spare(&self) -> usize {
        usize::from(self.federation().size().saturating_sub(self.federation().quorum()))
    }

    /// Everybody applied: events go out here, and the coordinator tells the peers that theirs may.
    pub(super) async fn close(
        &self,
        id: AttemptId,
        body: &wire::operation::Request,
        coordinates: bool,
        everywhere: bool,
    ) -> Result<(), EngineError> {
        self.close_own(id, body, everywhere).await?;
        if coordinates {
            let engine = self.clone();
            tokio::spawn(async move {
                let request =
                    wire::CloseRequest { operation_id: id.op.as_bytes().to_vec(), attempt: id.attempt };
                let calls = engine.inner.signers.peers().map(|(_, peer)| peer.close(request.clone()));
                for error in join_all(calls).await.into_iter().filter_map(Result::err) {
                    // The participant finds out by itself a little later.
                    tracing::debug!(%error, operation = %id, "close was not heard");
                }
            });
        }
        Ok(())
    }
}

pub(super) fn unavailable(id: OperationId, kind: Kind, reason: &str) -> Outcome {
    Outcome::Refused(Refusal { id, kind, reason: reason.to_owned() })
}

pub(super) fn refused(row: &OperationRow, kind: Kind) -> Outcome {
    let reason = if row.reason.is_empty() { "REFUSED".to_owned() } else { row.reason.clone() };
    Outcome::Refused(Refusal { id: row.id.op, kind, reason })
}
