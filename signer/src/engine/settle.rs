//! The second decision of a conditional operation (D8): a decider's word, and what the words of all deciders lead to.
//!
//! After its first decision an operation is pending: its conditional refunds are complete and stored, its leaves are
//! held, its tweaks are staged. A preimage, or an exit transaction at its depth, and the COMMIT of every decider apply the
//! tweaks; the ABORT of every decider,
//! each on a tip beyond the expiry, destroys them and gives the leaves back.

use std::collections::BTreeMap;

use prost::Message as _;
use spark_proto::{peer::v1 as peer, signer::v1 as wire};
use spark_rules::{
    ids::OperationId,
    leaf::LeafRecord,
    operation::{Keys, Operation, PAYMENT},
    settlement::{Pending, ProofOfSettlement, Ruling, SettlementVote},
    vote::{Kind, VoteError},
};

use super::{
    EngineError, Shared, deletion_log, journal,
    ledger::{self, Attempt, Holder, Phase, Terms},
    pending,
    prepare::{entry, leaf_resource},
};
use crate::vault::Txn;

fn word_key(id: &OperationId, attempt: u32) -> Vec<u8> {
    [b"ruled/".as_slice(), id.as_bytes(), &attempt.to_be_bytes()].concat()
}

/// This signer's own word, once it is given.
fn own_word(
    txn: &Txn<'_>,
    id: &OperationId,
    attempt: u32,
) -> Result<Option<peer::SettlementVote>, EngineError> {
    let bytes = txn.record(&word_key(id, attempt))?;
    Ok(bytes.map(|bytes| peer::SettlementVote::decode(bytes.as_slice())).transpose()?)
}

impl Shared {
    /// Signs how the operation ends, as one of its deciders: COMMIT for a preimage or a confirmed exit transaction, ABORT
    /// for a tip beyond the expiry. What the chain says is the own operator's word: it counts because all deciders give
    /// theirs (D18).
    /// The first word is the last: the other one is refused from then on. A word that was given under an earlier
    /// federation file counts no more, so it is given again, the same one, also after the end: who has not heard of the
    /// end needs it.
    pub(super) fn sign_settlement(
        &mut self,
        txn: &mut Txn<'_>,
        request: &wire::SignSettlementRequest,
    ) -> Result<wire::SignSettlementResponse, EngineError> {
        self.unlocked()?;
        let id = OperationId::parse(&request.operation_id)?;
        let ruling = match (request.preimage.as_slice(), request.block_hash.as_slice()) {
            (preimage, []) => Ruling::asked(preimage, request.tip_height)?,
            ([], hash) => Ruling::confirmed(request.tip_height, request.block_height, hash)?,
            _ => return Err(EngineError::Malformed("preimage and block_hash")),
        };
        if let Some(given) = own_word(txn, &id, request.attempt)? {
            let word = SettlementVote::stored(&given)?;
            if !word.ruling.agrees(&ruling) {
                return Err(EngineError::Decided(word.ruling.name()));
            }
            if word.position.federation_epoch == self.federation.epoch() {
                return Ok(wire::SignSettlementResponse { vote: Some(given) });
            }
            return self.give_word(txn, word);
        }
        // Before the first decision there is nothing to settle; after the second nobody needs a first word. A repaired
        // signer has the record alone.
        let Some(pending) = pending::get(txn, &id, request.attempt)? else {
            let attempt = ledger::attempt(txn, &id, request.attempt)?;
            return Err(
                attempt.map_or(EngineError::Unknown("operation"), |a| EngineError::Decided(a.phase.name()))
            );
        };
        if !pending.deciders.contains(&self.me) {
            return Err(EngineError::NotNamed);
        }
        pending.condition.check(&ruling)?;
        let (digest, attempt) = (pending.digest, request.attempt);
        self.give_word(
            txn,
            SettlementVote { position: self.position(txn), operation: id, attempt, digest, ruling },
        )
    }

    fn give_word(
        &self,
        txn: &mut Txn<'_>,
        word: SettlementVote,
    ) -> Result<wire::SignSettlementResponse, EngineError> {
        let (id, attempt) = (word.operation, word.attempt);
        let word = SettlementVote { position: self.position(txn), ..word };
        let signature = self.token.sign_federation(&word.statement(&self.federation))?.to_vec();
        let vote = word.into_wire(signature);
        txn.put_record(&word_key(&id, attempt), vote.encode_to_vec());
        let ruled = wire::JournalEntry {
            kind: "ruled".to_owned(),
            operation_id: id.as_bytes().to_vec(),
            attempt,
            settlement: Some(vote.clone()),
            ..wire::JournalEntry::default()
        };
        journal::append(txn, ruled)?;
        Ok(wire::SignSettlementResponse { vote: Some(vote) })
    }

    /// Makes the word of all deciders true.
    pub(super) fn settle_conditional(
        &mut self,
        txn: &mut Txn<'_>,
        request: &wire::SettleRequest,
    ) -> Result<wire::ApplyResponse, EngineError> {
        self.unlocked()?;
        let id = OperationId::parse(&request.operation_id)?;
        let proof = request.proof.as_ref().ok_or(EngineError::Malformed("proof"))?;
        let attempt = match ledger::attempt(txn, &id, request.attempt)? {
            Some(attempt) if attempt.phase != Phase::Refused => attempt,
            _ => return self.settle_unknown(txn, &id, request.attempt, proof),
        };
        if matches!(attempt.phase, Phase::Applied | Phase::Returned) {
            return self.settled_before(txn, &id, request.attempt, &attempt, proof);
        }
        if attempt.phase != Phase::Pending {
            return Err(EngineError::Decided(attempt.phase.name()));
        }
        // Of an earlier federation file, too: the first decision stands, and the words are of this one.
        let operation = self.operation_to_end(txn, &attempt)?;
        let pending = Pending::of(&operation, own_digest(&attempt)?)?;
        let verified = self.verified(txn, proof, &pending)?;
        pending::end(txn, &id, request.attempt);
        match verified.ruling {
            Ruling::Commit { .. } | Ruling::Confirmed { .. } => {
                self.complete(txn, attempt, &operation, proof)
            }
            Ruling::Abort { .. } => self.give_back(txn, attempt, &operation, pending.return_hash(), proof),
        }
    }

    fn verified(
        &mut self,
        txn: &mut Txn<'_>,
        proof: &peer::ProofOfSettlement,
        pending: &Pending,
    ) -> Result<ProofOfSettlement, EngineError> {
        let verified = ProofOfSettlement::verify(proof, &self.federation, pending)?;
        for wire in &proof.votes {
            let vote = SettlementVote::verify(wire, &self.federation)?;
            self.remember(txn, &vote.position, vote.statement(&self.federation), &wire.signature)?;
        }
        Ok(verified)
    }

    /// The end of what was pending at all others when this signer was repaired. It has none of the leaves: they come
    /// with the next run of its repair, as the end leaves them.
    fn settle_unknown(
        &mut self,
        txn: &mut Txn<'_>,
        id: &OperationId,
        attempt: u32,
        proof: &peer::ProofOfSettlement,
    ) -> Result<wire::ApplyResponse, EngineError> {
        let answer = wire::ApplyResponse {
            position: Some(self.committed_position(txn).to_wire()),
            receipts: Vec::new(),
        };
        if let Some((pending, committed)) = pending::ended(txn, id, attempt)? {
            let verified = ProofOfSettlement::verify(proof, &self.federation, &pending)?;
            if verified.ruling.completes() == committed {
                return Ok(answer);
            }
            self.alarms.raise_over("both_proofs", self.now, proof.encode_to_vec());
            return Err(EngineError::Decided(if committed { "applied" } else { "returned" }));
        }
        let pending = pending::get(txn, id, attempt)?.ok_or(EngineError::Unknown("operation"))?;
        let verified = self.verified(txn, proof, &pending)?;
        pending::end_unknown(txn, &pending, verified.ruling.completes());
        Ok(answer)
    }

    /// The same end again is no news; the other one can only be proven if t operators lie.
    fn settled_before(
        &mut self,
        txn: &Txn<'_>,
        id: &OperationId,
        number: u32,
        attempt: &Attempt,
        proof: &peer::ProofOfSettlement,
    ) -> Result<wire::ApplyResponse, EngineError> {
        let ended = if attempt.phase == Phase::Applied { peer::Ruling::Commit } else { peer::Ruling::Abort };
        // One of each, or a long proof would be long evidence.
        let mut others = BTreeMap::new();
        for wire in &proof.votes {
            let vote = SettlementVote::verify(wire, &self.federation)?;
            let about = (vote.operation, vote.attempt) == (*id, number)
                && vote.digest.as_slice() == attempt.vote.digest;
            if about && wire.ruling() != ended {
                others.entry(u32::from(vote.position.signer.get())).or_insert_with(|| wire.clone());
            }
        }
        if !others.is_empty() {
            if attempt.vote.named.iter().all(|decider| others.contains_key(decider)) {
                let evidence = peer::ProofOfSettlement { votes: others.into_values().collect() };
                self.alarms.raise_over("both_proofs", self.now, evidence.encode_to_vec());
            }
            return Err(EngineError::Decided(attempt.phase.name()));
        }
        let receipts = deletion_log::of_operation(txn, id, number)?;
        Ok(wire::ApplyResponse { position: Some(self.committed_position(txn).to_wire()), receipts })
    }

    /// The tweaks are applied; the leaves are the receiver's to claim.
    fn complete(
        &mut self,
        txn: &mut Txn<'_>,
        attempt: Attempt,
        operation: &Operation,
        ended: &peer::ProofOfSettlement,
    ) -> Result<wire::ApplyResponse, EngineError> {
        let keys = Keys::derive(operation, &attempt.opened)?;
        let proof = attempt.proof.clone().ok_or(EngineError::Malformed("stored proof"))?;
        let signatures = operation.parse_signatures(&proof.signatures)?;
        let outcome = operation.outcome(&signatures, &keys, &own_digest(&attempt)?)?;
        self.finish(txn, attempt, operation, &keys, &outcome, proof, Some(ended))
    }

    /// The staged tweaks are destroyed; the leaves are the sender's again, at the version and with the refunds that they
    /// had. The completed refunds stay valid for the chain, with a preimage or with the exit transaction: their maturities
    /// are shared as D6 (a) says.
    fn give_back(
        &mut self,
        txn: &mut Txn<'_>,
        mut attempt: Attempt,
        operation: &Operation,
        last_proof: [u8; 32],
        ended: &peer::ProofOfSettlement,
    ) -> Result<wire::ApplyResponse, EngineError> {
        let (id, number) = (operation.id, operation.attempt);
        let holder = Holder { operation: id, attempt: number };
        let receipts = self.dropped(txn, operation)?;
        let mut leaves = Vec::with_capacity(operation.parts.len());
        for part in &operation.parts {
            ledger::unclaim(txn, &leaf_resource(&part.record.leaf_id), &holder)?;
            let record = LeafRecord { last_proof, ..part.record.clone() };
            ledger::put_leaf(txn, &record);
            leaves.push(record.encode());
        }
        // The hash may be paid again. The transfer's id is used up: some wallets would take a second one for the first.
        for payment in operation.resources.iter().filter(|resource| resource.kind == PAYMENT) {
            ledger::unclaim(txn, payment, &holder)?;
        }
        for job in &operation.jobs {
            if let Some(released) = ledger::released(txn, job.maturity)?
                && released.sighash == *job.session.message()
            {
                let terms =
                    if operation.kind == Kind::CoopExit { Terms::ExitReturned } else { Terms::Returned };
                let returned = ledger::Released { terms, ..released };
                ledger::put_released(txn, job.maturity, &returned);
            }
        }
        self.destroy_staged(txn, &id, number, true)?;
        let receipts =
            receipts.into_iter().map(|r| self.append_receipt(txn, r)).collect::<Result<Vec<_>, _>>()?;
        deletion_log::index_operation(txn, &id, number, &receipts);
        attempt.phase = Phase::Returned;
        attempt.request.clear();
        ledger::put_attempt(txn, &id, number, &attempt);
        let mut returned = entry("returned", &id, number, &attempt.vote, None, Vec::new());
        returned.leaves = leaves;
        returned.ended = Some(ended.clone());
        journal::append(txn, returned)?;
        Ok(wire::ApplyResponse { position: Some(self.position(txn).to_wire()), receipts })
    }
}

/// What this signer voted for; a pending attempt has it.
fn own_digest(attempt: &Attempt) -> Result<[u8; 32], EngineError> {
    let digest = attempt.vote.digest.as_slice();
    Ok(digest.try_into().map_err(|_| VoteError::Malformed("digest"))?)
}
