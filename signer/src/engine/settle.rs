//! The second decision of a conditional operation (D8): a decider's word, and what the words of all deciders lead to.
//!
//! After its first decision an operation is pending: its conditional refunds are complete and stored, its leaves are
//! held, its tweaks are staged. A preimage, or an exit transaction at its depth, and the COMMIT of every decider apply the
//! tweaks; the ABORT of every decider,
//! each on a tip beyond the expiry, destroys them and gives the leaves back.

use std::collections::BTreeSet;

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
    /// The first word is the last: the other one is refused from then on.
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
        let attempt = ledger::attempt(txn, &id, request.attempt)?.ok_or(EngineError::Unknown("operation"))?;
        if let Some(given) = own_word(txn, &id, request.attempt)? {
            let vote = SettlementVote::verify(&given, &self.federation)?;
            if !vote.ruling.agrees(&ruling) {
                return Err(EngineError::Decided(vote.ruling.name()));
            }
            return Ok(wire::SignSettlementResponse { vote: Some(given) });
        }
        // Before the first decision there is nothing to settle; after the second nobody needs another word.
        if attempt.phase != Phase::Pending {
            return Err(EngineError::Decided(attempt.phase.name()));
        }
        let operation = self.stored_operation(txn, &attempt)?;
        let condition = operation.condition.as_ref().ok_or(EngineError::Malformed("condition"))?;
        if !operation.named.contains(&self.me) {
            return Err(EngineError::NotNamed);
        }
        condition.check(&ruling)?;
        let vote = SettlementVote {
            position: self.position(txn),
            operation: id,
            attempt: request.attempt,
            digest: own_digest(&attempt)?,
            ruling,
        };
        let signature = self.token.sign_federation(&vote.statement(&self.federation))?.to_vec();
        let vote = vote.into_wire(signature);
        txn.put_record(&word_key(&id, request.attempt), vote.encode_to_vec());
        let mut ruled = entry("ruled", &id, request.attempt, &attempt.vote, None, Vec::new());
        ruled.settlement = Some(vote.clone());
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
        let attempt = ledger::attempt(txn, &id, request.attempt)?.ok_or(EngineError::Unknown("operation"))?;
        let proof = request.proof.as_ref().ok_or(EngineError::Malformed("proof"))?;
        if matches!(attempt.phase, Phase::Applied | Phase::Returned) {
            return self.settled_before(txn, &id, request.attempt, &attempt, proof);
        }
        if attempt.phase != Phase::Pending {
            return Err(EngineError::Decided(attempt.phase.name()));
        }
        let operation = self.stored_operation(txn, &attempt)?;
        let pending = Pending::of(&operation, own_digest(&attempt)?)?;
        let verified = ProofOfSettlement::verify(proof, &self.federation, &pending)?;
        for wire in &proof.votes {
            let vote = SettlementVote::verify(wire, &self.federation)?;
            self.remember(txn, &vote.position, vote.statement(&self.federation), &wire.signature)?;
        }
        match verified.ruling {
            Ruling::Commit { .. } | Ruling::Confirmed { .. } => self.complete(txn, attempt, &operation),
            Ruling::Abort { .. } => self.give_back(txn, attempt, &operation, pending.return_hash()),
        }
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
        let mut others = BTreeSet::new();
        for wire in &proof.votes {
            let vote = SettlementVote::verify(wire, &self.federation)?;
            let about = (vote.operation, vote.attempt) == (*id, number)
                && vote.digest.as_slice() == attempt.vote.digest;
            if about && wire.ruling() != ended {
                others.insert(u32::from(vote.position.signer.get()));
            }
        }
        if !others.is_empty() {
            if attempt.vote.named.iter().all(|decider| others.contains(decider)) {
                self.alarms.raise_over("both_proofs", self.now, proof.encode_to_vec());
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
    ) -> Result<wire::ApplyResponse, EngineError> {
        let keys = Keys::derive(operation, &attempt.opened)?;
        let proof = attempt.proof.clone().ok_or(EngineError::Malformed("stored proof"))?;
        let signatures = operation.parse_signatures(&proof.signatures)?;
        let outcome = operation.outcome(&signatures, &keys, &own_digest(&attempt)?)?;
        self.finish(txn, attempt, operation, &keys, &outcome, proof)
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
        journal::append(txn, returned)?;
        Ok(wire::ApplyResponse { position: Some(self.position(txn).to_wire()), receipts })
    }
}

/// What this signer voted for; a pending attempt has it.
fn own_digest(attempt: &Attempt) -> Result<[u8; 32], EngineError> {
    let digest = attempt.vote.digest.as_slice();
    Ok(digest.try_into().map_err(|_| VoteError::Malformed("digest"))?)
}
