//! Votes of one attempt and what follows from them (D1). No I/O.

use std::collections::{BTreeMap, BTreeSet};

use spark_proto::peer::v1 as wire;
use spark_rules::{
    federation::Federation,
    ids::{OperationId, OperatorIndex},
    vote::{Certificate, Choice, ProofOfAbort, Vote, VoteError},
};

/// What the votes so far permit.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// These have not voted, and no NO was heard.
    Waiting(BTreeSet<OperatorIndex>),
    /// YES of the quorum over one digest: shares may be released.
    Certified(wire::Certificate),
    /// Somebody said NO, or the YES votes differ: the attempt must be ended.
    Refused {
        /// Stable reason; the named signers' come first.
        reason: String,
    },
    /// ABORT of every named signer: claims may be released.
    Aborted(wire::ProofOfAbort),
}

/// Votes of one attempt.
#[derive(Debug, Clone)]
pub struct Tally<'a> {
    federation: &'a Federation,
    operation: OperationId,
    attempt: u32,
    named: BTreeSet<OperatorIndex>,
    yes: BTreeMap<OperatorIndex, (Vote, wire::Vote)>,
    aborts: BTreeMap<OperatorIndex, wire::Vote>,
}

impl<'a> Tally<'a> {
    /// No votes yet.
    pub const fn new(
        federation: &'a Federation,
        operation: OperationId,
        attempt: u32,
        named: BTreeSet<OperatorIndex>,
    ) -> Self {
        Self { federation, operation, attempt, named, yes: BTreeMap::new(), aborts: BTreeMap::new() }
    }

    /// Adds a vote after checking its signature and that it is about this attempt. The same signer may say YES and
    /// later ABORT; a repeat changes nothing.
    pub fn record(&mut self, vote: &wire::Vote) -> Result<(OperatorIndex, Choice), VoteError> {
        let checked = Vote::verify(vote, self.federation)?;
        if checked.ballot.operation != self.operation || checked.ballot.attempt != self.attempt {
            return Err(VoteError::Disagree("operation"));
        }
        let (signer, choice) = (checked.position.signer, checked.ballot.choice);
        if choice.aborts() {
            self.aborts.entry(signer).or_insert_with(|| vote.clone());
        } else if choice == Choice::Commit {
            // Said on a certificate, as part of a proof: it is no vote for one.
            return Err(VoteError::Disagree("choice"));
        } else if checked.ballot.named == self.named {
            self.yes.entry(signer).or_insert_with(|| (checked, vote.clone()));
        } else {
            return Err(VoteError::Disagree("named"));
        }
        Ok((signer, choice))
    }

    /// Everybody's ABORT or NO that was heard.
    pub fn aborts(&self) -> Vec<wire::Vote> {
        self.aborts.values().cloned().collect()
    }

    /// Operators that must still be asked for an ABORT.
    pub fn abort_missing(&self) -> BTreeSet<OperatorIndex> {
        self.named.iter().copied().filter(|i| !self.aborts.contains_key(i)).collect()
    }

    /// What follows. A proof of abort goes before everything else: with it no certificate can lead anywhere, since
    /// no named signer releases after its ABORT.
    pub fn verdict(&self) -> Verdict {
        if self.abort_missing().is_empty() {
            let proof = wire::ProofOfAbort { votes: self.aborts.values().cloned().collect() };
            if ProofOfAbort::verify(&proof, self.federation, self.operation, self.attempt, &self.named)
                .is_ok()
            {
                return Verdict::Aborted(proof);
            }
        }
        if self.named.iter().all(|i| !self.aborts.contains_key(i)) {
            let certificate =
                wire::Certificate { votes: self.yes.values().map(|(_, vote)| vote.clone()).collect() };
            if Certificate::verify(&certificate, self.federation).is_ok() {
                return Verdict::Certified(certificate);
            }
        }
        let size = usize::from(self.federation.size());
        let spare = size.saturating_sub(usize::from(self.federation.quorum()));
        let lost = self.aborts.len() > spare || self.named.iter().any(|i| self.aborts.contains_key(i));
        if lost {
            return Verdict::Refused { reason: self.reason() };
        }
        let mut ballots = self.yes.values().map(|(vote, _)| &vote.ballot);
        let first = ballots.next();
        if ballots.any(|b| Some(b) != first) {
            return Verdict::Refused { reason: "DIGEST_MISMATCH".to_owned() };
        }
        let heard = |i: &OperatorIndex| self.yes.contains_key(i) || self.aborts.contains_key(i);
        Verdict::Waiting(self.federation.indices().filter(|i| !heard(i)).collect())
    }

    fn reason(&self) -> String {
        let named = self.named.iter().filter_map(|i| self.aborts.get(i));
        named
            .chain(self.aborts.values())
            .map(|v| v.reason.clone())
            .find(|r| is_reason(r))
            .unwrap_or_else(|| "REFUSED".to_owned())
    }
}

/// A reason is a name of ours. It is no part of what a signer signs, so anything may stand there.
fn is_reason(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests;
