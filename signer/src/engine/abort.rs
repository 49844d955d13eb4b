//! Abort: a promise never to release, and what a proof of abort undoes (D1).

use std::collections::BTreeSet;

use prost::Message as _;
use spark_proto::{
    peer::v1::{self as peer, Receipt, Vote},
    signer::v1 as wire,
};
use spark_rules::{
    ids::{OperationId, OperatorIndex},
    operation::Operation,
    vote::{Ballot, Choice, Kind, Position, ProofOfAbort},
};

use super::{
    EngineError, Shared,
    contradiction::{remember_jobs, without_reasons},
    deletion_log, journal,
    ledger::{self, Attempt, Holder, Phase},
    prepare::{entry, leaf_resource, read_scalar, tweak_id},
    release::forget_finals,
};
use crate::vault::{SecretKind, Txn};

impl Shared {
    /// Signs ABORT, unless shares of the attempt went out. An attempt that was never seen is refused for ever.
    pub(super) fn sign_abort(
        &mut self,
        txn: &mut Txn<'_>,
        request: &wire::SignAbortRequest,
    ) -> Result<wire::SignAbortResponse, EngineError> {
        self.unlocked()?;
        let id = OperationId::parse(&request.operation_id)?;
        let known = ledger::attempt(txn, &id, request.attempt)?;
        let (kind, named, previous) = match known {
            None => (Kind::Send, BTreeSet::new(), None),
            Some(attempt) => match attempt.phase {
                Phase::Refused => {
                    let mut vote = attempt.word().clone();
                    if !self.is_of_this_epoch(&vote)? {
                        let kind = attempt.vote.kind;
                        vote = self.sign_word(txn, id, request.attempt, kind, BTreeSet::new())?;
                        let record = Attempt { abort: Some(vote.clone()), ..attempt };
                        ledger::put_attempt(txn, &id, request.attempt, &record);
                    }
                    return Ok(wire::SignAbortResponse { vote: Some(vote) });
                }
                // Over already, by a proof that may not have needed this signer's word. Another coordinator of the
                // same attempt may need it.
                Phase::Aborted => {
                    let aborts = Choice::of(attempt.word()).is_some_and(Choice::aborts);
                    if aborts && self.is_of_this_epoch(attempt.word())? {
                        return Ok(wire::SignAbortResponse { vote: Some(attempt.word().clone()) });
                    }
                    let vote =
                        self.sign_word(txn, id, request.attempt, attempt.vote.kind, BTreeSet::new())?;
                    let record = Attempt { abort: Some(vote.clone()), ..attempt };
                    ledger::put_attempt(txn, &id, request.attempt, &record);
                    return Ok(wire::SignAbortResponse { vote: Some(vote) });
                }
                Phase::Prepared => {
                    let operation = self.operation_to_end(txn, &attempt)?;
                    self.lower_aborted(&operation, &request.aborts)?;
                    (operation.kind, operation.named.clone(), Some((attempt, operation)))
                }
                phase => return Err(EngineError::Decided(phase.name())),
            },
        };
        let vote = self.sign_word(txn, id, request.attempt, kind.code(), named)?;
        let record = match previous {
            // Still locked: only a proof of abort unlocks. The shares can never be released, so they die now.
            Some((attempt, _)) => {
                self.destroy_staged(txn, &id, request.attempt, false)?;
                Attempt { phase: Phase::Refused, abort: Some(vote.clone()), ..attempt }
            }
            None => Attempt {
                phase: Phase::Refused,
                request: Vec::new(),
                digest: [0; 32],
                opened: Vec::new(),
                vote: vote.clone(),
                abort: None,
                proof: None,
            },
        };
        ledger::put_attempt(txn, &id, request.attempt, &record);
        journal::append(txn, entry("refused", &id, request.attempt, &vote, None, Vec::new()))?;
        Ok(wire::SignAbortResponse { vote: Some(vote) })
    }

    /// Deciders of a refresh speak in order, COMMIT as well as ABORT: so the word of the lowest one decides, and two honest
    /// ones never say different things, whatever reaches whom. There is no second attempt that could mend it (D2).
    fn lower_aborted(&self, operation: &Operation, aborts: &[Vote]) -> Result<(), EngineError> {
        if operation.kind != Kind::Refresh || !operation.named.contains(&self.me) {
            return Ok(());
        }
        if aborts.len() > usize::from(self.federation.size()) {
            return Err(EngineError::Malformed("aborts"));
        }
        let mut heard = BTreeSet::new();
        for vote in aborts {
            let vote = spark_rules::vote::Vote::verify(vote, &self.federation)?;
            let about = (vote.ballot.operation, vote.ballot.attempt) == (operation.id, operation.attempt);
            if !about || !vote.ballot.choice.aborts() {
                return Err(EngineError::Malformed("aborts"));
            }
            heard.insert(vote.position.signer);
        }
        match operation.named.iter().find(|decider| **decider < self.me && !heard.contains(decider)) {
            Some(first) => Err(EngineError::OutOfTurn(first.get())),
            None => Ok(()),
        }
    }

    /// Unlocks an attempt on a proof of abort and destroys what it staged.
    pub(super) fn abort(
        &mut self,
        txn: &mut Txn<'_>,
        request: &wire::AbortRequest,
    ) -> Result<wire::AbortResponse, EngineError> {
        self.unlocked()?;
        let id = OperationId::parse(&request.operation_id)?;
        let mut attempt =
            ledger::attempt(txn, &id, request.attempt)?.ok_or(EngineError::Unknown("operation"))?;
        match attempt.phase {
            Phase::Aborted => {
                return Ok(wire::AbortResponse { position: Some(self.committed_position(txn).to_wire()) });
            }
            Phase::Applied | Phase::Pending | Phase::Returned => {
                // Anybody may say so: only a proof that holds shows it.
                let named = attempt.vote.named.iter().map(|index| OperatorIndex::from_wire(*index));
                let named = named.collect::<Result<_, _>>()?;
                if let Some(proof) = &request.proof
                    && ProofOfAbort::verify(proof, &self.federation, id, request.attempt, &named).is_ok()
                {
                    let evidence = peer::ProofOfAbort { votes: without_reasons(&proof.votes) };
                    self.alarms.raise_over("both_proofs", self.now, evidence.encode_to_vec());
                }
                return Err(EngineError::Decided(attempt.phase.name()));
            }
            // Refused unseen: it holds nothing that a proof could free, and its word must stay obtainable.
            Phase::Refused if attempt.request.is_empty() => {
                return Ok(wire::AbortResponse { position: Some(self.committed_position(txn).to_wire()) });
            }
            Phase::Prepared | Phase::Released | Phase::Refused => {}
        }
        let mut dropped = Vec::new();
        if !attempt.request.is_empty() {
            let operation = self.operation_to_end(txn, &attempt)?;
            let proof = request.proof.as_ref().ok_or(EngineError::Malformed("proof"))?;
            ProofOfAbort::verify(proof, &self.federation, id, request.attempt, &operation.named)?;
            self.remember_votes(txn, &proof.votes)?;
            if attempt.phase == Phase::Released {
                // A share is out, so this signer's ABORT in the proof is from another life of it.
                self.alarm("abort_after_release");
                return Err(EngineError::Decided("released"));
            }
            let holder = Holder { operation: id, attempt: request.attempt };
            for part in &operation.parts {
                ledger::unclaim(txn, &leaf_resource(&part.record.leaf_id), &holder)?;
            }
            for resource in &operation.resources {
                ledger::unclaim(txn, resource, &holder)?;
            }
            forget_finals(txn, &id, request.attempt, operation.jobs.len());
            remember_jobs(txn, &operation);
            dropped = self.dropped(txn, &operation)?;
            self.end_package_key(txn, &operation)?;
        }
        // A dropped tweak is a destruction too: old = new - tweak.
        self.destroy_staged(txn, &id, request.attempt, true)?;
        let mut receipts = Vec::with_capacity(dropped.len());
        for receipt in dropped {
            receipts.push(self.append_receipt(txn, receipt)?);
        }
        deletion_log::index_operation(txn, &id, request.attempt, &receipts);
        attempt.phase = Phase::Aborted;
        attempt.request.clear();
        ledger::put_attempt(txn, &id, request.attempt, &attempt);
        journal::append(txn, entry("aborted", &id, request.attempt, &attempt.vote, None, Vec::new()))?;
        Ok(wire::AbortResponse { position: Some(self.position(txn).to_wire()) })
    }

    /// A word given under an earlier federation file counts no more: it is given again.
    fn is_of_this_epoch(&self, vote: &Vote) -> Result<bool, EngineError> {
        let position = Position::parse(vote.position.as_ref())?;
        Ok(position.federation_epoch == self.federation.epoch())
    }

    fn sign_word(
        &self,
        txn: &Txn<'_>,
        operation: OperationId,
        attempt: u32,
        kind: u32,
        named: BTreeSet<OperatorIndex>,
    ) -> Result<Vote, EngineError> {
        let kind = Kind::from_code(kind)?;
        let ballot = Ballot { operation, attempt, kind, choice: Choice::Abort, digest: [0; 32], named };
        self.sign_vote(txn, ballot, "ABORT".to_owned())
    }

    /// Receipts for the tweaks that die with an attempt. The key stays at its version.
    pub(super) fn dropped(&self, txn: &Txn<'_>, operation: &Operation) -> Result<Vec<Receipt>, EngineError> {
        let mut receipts = Vec::new();
        for (position, part) in operation.parts.iter().enumerate() {
            let staged = tweak_id(&operation.id, operation.attempt, position);
            if !txn.has_secret(&staged)? {
                continue;
            }
            let record = &part.record;
            let share = record.public_shares.get(self.me.as_usize());
            let share = share.map(|share| share.serialize().to_vec()).unwrap_or_default();
            receipts.push(Receipt {
                keyshare_id: record.keyshare_id.as_bytes().to_vec(),
                leaf_id: record.leaf_id.to_string(),
                operation_id: operation.id.as_bytes().to_vec(),
                phase: "abort".to_owned(),
                retired_version: record.version,
                new_version: record.version,
                retired_public_share: share.clone(),
                new_public_share: share,
                tweak_commitment: read_scalar(txn, &staged)?.public_key().serialize().to_vec(),
                package_kind: self.package_kind(operation).to_owned(),
                live_versions: vec![record.version],
                ..Receipt::default()
            });
        }
        Ok(receipts)
    }

    pub(super) fn destroy_staged(
        &self,
        txn: &mut Txn<'_>,
        id: &OperationId,
        attempt: u32,
        tweaks: bool,
    ) -> Result<(), EngineError> {
        for secret in txn.secrets_of(id.as_bytes())? {
            let of_attempt = secret.version >> 32 == u64::from(attempt);
            let dies = match secret.kind {
                SecretKind::SignatureShares => true,
                SecretKind::StagedTweak => tweaks,
                _ => false,
            };
            if of_attempt && dies {
                txn.delete_secret(&secret)?;
            }
        }
        Ok(())
    }
}
