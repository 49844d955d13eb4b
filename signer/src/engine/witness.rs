//! The peers' memory (D11): what a local rollback cannot take away.
//!
//! Every statement carries its signer's position. Peers remember the highest they saw. At start the signer asks
//! all of them with a fresh nonce and stays locked until every answer is in and none is ahead of its store.

use std::collections::BTreeMap;

use prost::Message as _;
use spark_proto::{peer::v1 as peer, signer::v1 as wire};
use spark_rules::{
    ids::OperatorIndex,
    vote::{Position, Vote, VoteError},
};

use super::{EngineError, Shared};
use crate::vault::Txn;

const QUESTION: &str = "witness-question/v1";
const ANSWER: &str = "witness-answer/v2";

fn seen_key(peer: OperatorIndex) -> Vec<u8> {
    [b"seen/".as_slice(), &peer.get().to_be_bytes()].concat()
}

fn seen_of(txn: &Txn<'_>, peer: OperatorIndex) -> Result<Option<wire::SeenStatement>, EngineError> {
    let Some(bytes) = txn.record(&seen_key(peer))? else { return Ok(None) };
    Ok(Some(wire::SeenStatement::decode(bytes.as_slice())?))
}

/// Locked until the peers were heard.
#[derive(Debug)]
pub(super) struct Gate {
    locked: bool,
    nonce: [u8; 32],
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { locked: true, nonce: Shared::random() }
    }

    pub(super) const fn is_locked(&self) -> bool {
        self.locked
    }

    pub(super) fn lock(&mut self) {
        self.locked = true;
    }
}

/// Names the asker: an answer to one signer is none to another that asked with the same nonce.
fn answer_payload(
    asker: OperatorIndex,
    nonce: &[u8],
    seen: Option<&wire::SeenStatement>,
    repair: bool,
) -> Vec<u8> {
    let mut payload = asker.get().to_be_bytes().to_vec();
    payload.extend_from_slice(nonce);
    match seen {
        Some(seen) => {
            payload.push(1);
            payload.extend_from_slice(&seen.encode_to_vec());
        }
        None => payload.push(0),
    }
    payload.push(repair.into());
    payload
}

impl Shared {
    pub(super) fn ask_witness(&self, txn: &Txn<'_>) -> Result<wire::WitnessQuestion, EngineError> {
        let position = self.committed_position(txn);
        let nonce = self.gate.nonce;
        let signature = self.sign_statement(&position, QUESTION, &nonce)?;
        Ok(wire::WitnessQuestion {
            asker: self.me.get().into(),
            nonce: nonce.to_vec(),
            position: Some(position.to_wire()),
            signature,
        })
    }

    /// Answers also while locked, from what the store holds.
    /// The question itself is a statement, and remembered like any other once this signer is unlocked.
    pub(super) fn answer_witness(
        &self,
        txn: &mut Txn<'_>,
        question: &wire::WitnessQuestion,
    ) -> Result<wire::WitnessAnswer, EngineError> {
        let asker = Position::parse(question.position.as_ref())?;
        if question.nonce.len() != 32 || OperatorIndex::from_wire(question.asker)? != asker.signer {
            return Err(EngineError::Malformed("question"));
        }
        asker.verify(&self.federation, QUESTION, &question.nonce, &question.signature)?;
        let statement = asker.statement(&self.federation, QUESTION, &question.nonce);
        let approved = self.approved.get(&asker.signer);
        if approved
            .is_some_and(|approved| !approved.made(&self.federation, &asker, &statement, &question.signature))
        {
            // A person here believes that this life of the signer is over.
            return Err(EngineError::NotApproved(asker.signer.get()));
        }
        let seen = seen_of(txn, asker.signer)?;
        if approved.is_some() {
            self.check_repair_epoch(seen.as_ref(), &asker)?;
        }
        // What an earlier life said is no mark for an approved new one.
        let seen = seen.filter(|seen| {
            let position = Position::parse(seen.position.as_ref());
            approved.is_none() || position.is_ok_and(|position| position.incarnation == asker.incarnation)
        });
        if !self.gate.is_locked() {
            self.remember(txn, &asker, statement, &question.signature)?;
        }
        let position = self.committed_position(txn);
        let repair = approved.is_some();
        let payload = answer_payload(asker.signer, &question.nonce, seen.as_ref(), repair);
        let signature = self.sign_statement(&position, ANSWER, &payload)?;
        Ok(wire::WitnessAnswer {
            witness: self.me.get().into(),
            nonce: question.nonce.clone(),
            seen,
            position: Some(position.to_wire()),
            signature,
            repair,
        })
    }

    /// A repair goes with a later federation file than the one of the life that was lost, as far as this signer saw it:
    /// only then the repaired signer's log has another origin, and is no shrunk one.
    fn check_repair_epoch(
        &self,
        seen: Option<&wire::SeenStatement>,
        asker: &Position,
    ) -> Result<(), EngineError> {
        let Some(seen) = seen else { return Ok(()) };
        let lost = Position::parse(seen.position.as_ref())?;
        if lost.incarnation == asker.incarnation || lost.federation_epoch < self.federation.epoch() {
            return Ok(());
        }
        Err(EngineError::RepairEpoch { operator: asker.signer.get(), epoch: lost.federation_epoch })
    }

    /// Unlocks if enough peers answered this process's question and none is ahead.
    pub(super) fn accept_witness(
        &mut self,
        txn: &Txn<'_>,
        request: &wire::AcceptWitnessRequest,
    ) -> Result<(), EngineError> {
        let own = self.committed_position(txn);
        let mut heard = BTreeMap::new();
        for answer in &request.answers {
            let position = Position::parse(answer.position.as_ref())?;
            if position.signer == self.me || answer.nonce != self.gate.nonce {
                return Err(EngineError::Malformed("answer"));
            }
            position.verify(
                &self.federation,
                ANSWER,
                &answer_payload(self.me, &answer.nonce, answer.seen.as_ref(), answer.repair),
                &answer.signature,
            )?;
            // A witness that answers with anything but this signer's own words was not heard.
            if let Some(seen) = &answer.seen {
                let Some(seen) = self.own_statement(seen) else { continue };
                self.check_not_ahead(position.signer, &own, &seen)?;
            }
            heard.insert(position.signer, answer.repair);
        }
        let all = usize::from(self.federation.quorum()).saturating_sub(1);
        let excused = self.approved.keys().filter(|p| !heard.contains_key(p)).count();
        let need = all.saturating_sub(excused);
        if heard.len() < need {
            return Err(VoteError::Short { have: heard.len(), need }.into());
        }
        // What all of them approved is this signer's repair: an empty ledger neither votes nor makes keys before.
        if !heard.is_empty() && heard.values().all(|repair| *repair) {
            self.repairs.expect();
        }
        self.gate.locked = false;
        Ok(())
    }

    /// The position of a statement if it bears this signer's own signature, so a witness cannot invent one.
    fn own_statement(&self, seen: &wire::SeenStatement) -> Option<Position> {
        let position = Position::of_statement(&seen.statement)?;
        let own =
            position.signer == self.me && self.federation.verify(self.me, &seen.statement, &seen.signature);
        own.then_some(position)
    }

    fn check_not_ahead(
        &mut self,
        witness: OperatorIndex,
        own: &Position,
        seen: &Position,
    ) -> Result<(), EngineError> {
        let ahead = seen.incarnation != own.incarnation
            || (seen.root_epoch, seen.sequence) > (own.root_epoch, own.sequence)
            || seen.sequence > own.sequence
            || seen.root_epoch > own.root_epoch;
        if ahead {
            self.alarm("rolled_back");
            // Evidence that comes late counts as well.
            self.gate.lock();
            return Err(EngineError::RolledBack {
                witness: witness.get(),
                seen_epoch: seen.root_epoch,
                seen_sequence: seen.sequence,
            });
        }
        Ok(())
    }

    /// Remembers the positions in votes that were verified.
    pub(super) fn remember_votes(&self, txn: &mut Txn<'_>, votes: &[peer::Vote]) -> Result<(), EngineError> {
        if votes.len() > usize::from(self.federation.size()) {
            return Err(EngineError::Malformed("votes"));
        }
        for wire in votes {
            let vote = Vote::verify(wire, &self.federation)?;
            let statement = vote.ballot.statement(&self.federation, &vote.position);
            self.remember(txn, &vote.position, statement, &wire.signature)?;
        }
        Ok(())
    }

    /// Remembers a peer's statement if it is the highest so far. Called for every verified statement of a peer
    /// that reaches this signer with a durable change.
    pub(super) fn remember(
        &self,
        txn: &mut Txn<'_>,
        position: &Position,
        statement: Vec<u8>,
        signature: &[u8],
    ) -> Result<(), EngineError> {
        if position.signer == self.me {
            return Ok(());
        }
        if let Some(approved) = self.approved.get(&position.signer)
            && !approved.made(&self.federation, position, &statement, signature)
        {
            return Ok(());
        }
        if let Some(known) = seen_of(txn, position.signer)? {
            if self.check_repair_epoch(Some(&known), position).is_err() {
                return Ok(());
            }
            let known = Position::parse(known.position.as_ref())?;
            // A signer's new life is believed only where a person approved its repair: an old statement of a former
            // life must not take the mark down.
            let reborn = known.incarnation != position.incarnation;
            if reborn && !self.approved.contains_key(&position.signer) {
                return Ok(());
            }
            let newer =
                reborn || (position.root_epoch, position.sequence) > (known.root_epoch, known.sequence);
            if !newer {
                return Ok(());
            }
        }
        let seen = wire::SeenStatement {
            position: Some(position.to_wire()),
            statement,
            signature: signature.to_vec(),
        };
        txn.put_record(&seen_key(position.signer), seen.encode_to_vec());
        Ok(())
    }
}
