//! Signed statements, votes, certificates and the proofs that decide (OPERATION.md D1, D4, D11).

use std::collections::{BTreeMap, BTreeSet};

use spark_proto::peer::v1 as wire;

use crate::{
    federation::Federation,
    ids::{IdError, Incarnation, OperationId, OperatorIndex},
    transcript::Transcript,
};

/// Why a statement, vote or proof is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VoteError {
    /// A field is missing or has no legal value.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// Another federation epoch.
    #[error("statement names federation epoch {actual}, not {expected}")]
    Epoch {
        /// Ours.
        expected: u64,
        /// Found.
        actual: u64,
    },
    /// Not signed by the operator it names.
    #[error("statement is not signed by operator {0}")]
    Signature(u16),
    /// Votes of one proof differ in what they are about.
    #[error("votes of one proof disagree on {0}")]
    Disagree(&'static str),
    /// Not enough votes, or a wrong choice among them.
    #[error("{have} of {need} votes needed")]
    Short {
        /// Distinct valid votes.
        have: usize,
        /// Required.
        need: usize,
    },
    /// The same signer twice.
    #[error("operator {0} votes twice")]
    Twice(u16),
}

impl From<IdError> for VoteError {
    fn from(_: IdError) -> Self {
        Self::Malformed("id")
    }
}

/// First bytes of every statement.
const STATEMENT: &[u8] = b"spark/statement/v1\0";

/// Where a signer stands in its own history; part of everything it signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Epoch of the federation file.
    pub federation_epoch: u64,
    /// Who signs.
    pub signer: OperatorIndex,
    /// The signer's life between two ceremonies.
    pub incarnation: Incarnation,
    /// Epoch of the root under which the store is sealed.
    pub root_epoch: u64,
    /// Journal sequence.
    pub sequence: u64,
}

impl Position {
    /// From the wire.
    pub fn parse(p: Option<&wire::Position>) -> Result<Self, VoteError> {
        let p = p.ok_or(VoteError::Malformed("position"))?;
        Ok(Self {
            federation_epoch: p.federation_epoch,
            signer: OperatorIndex::from_wire(p.signer)?,
            incarnation: Incarnation::parse(&p.incarnation)?,
            root_epoch: p.root_epoch,
            sequence: p.sequence,
        })
    }

    /// To the wire.
    pub fn to_wire(self) -> wire::Position {
        wire::Position {
            federation_epoch: self.federation_epoch,
            signer: self.signer.get().into(),
            incarnation: self.incarnation.as_bytes().to_vec(),
            root_epoch: self.root_epoch,
            sequence: self.sequence,
        }
    }

    /// The bytes to sign for a payload in a domain. Every statement of a signer has this form, so that a
    /// witness can keep any of them as proof of the position. They name the federation by the hash of its file: a
    /// key that serves in two of them says nothing in one of what it says in the other.
    pub fn statement(&self, federation: &Federation, domain: &str, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 + payload.len());
        out.extend_from_slice(STATEMENT);
        out.extend_from_slice(federation.hash());
        out.extend_from_slice(&self.federation_epoch.to_be_bytes());
        out.extend_from_slice(&self.signer.get().to_be_bytes());
        out.extend_from_slice(self.incarnation.as_bytes());
        out.extend_from_slice(&self.root_epoch.to_be_bytes());
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&(domain.len() as u64).to_be_bytes());
        out.extend_from_slice(domain.as_bytes());
        out.extend_from_slice(payload);
        out
    }

    /// The position inside bytes made by [`Position::statement`].
    pub fn of_statement(statement: &[u8]) -> Option<Self> {
        let (_, rest) = statement.strip_prefix(STATEMENT)?.split_first_chunk::<32>()?;
        let (epoch, rest) = rest.split_first_chunk::<8>()?;
        let (signer, rest) = rest.split_first_chunk::<2>()?;
        let (incarnation, rest) = rest.split_first_chunk::<16>()?;
        let (root_epoch, rest) = rest.split_first_chunk::<8>()?;
        let (sequence, _) = rest.split_first_chunk::<8>()?;
        Some(Self {
            federation_epoch: u64::from_be_bytes(*epoch),
            signer: OperatorIndex::from_wire(u16::from_be_bytes(*signer).into()).ok()?,
            incarnation: Incarnation::from_bytes(*incarnation),
            root_epoch: u64::from_be_bytes(*root_epoch),
            sequence: u64::from_be_bytes(*sequence),
        })
    }

    /// Verifies a signature over a payload of this position.
    pub fn verify(
        &self,
        federation: &Federation,
        domain: &str,
        payload: &[u8],
        signature: &[u8],
    ) -> Result<(), VoteError> {
        if self.federation_epoch != federation.epoch() {
            return Err(VoteError::Epoch { expected: federation.epoch(), actual: self.federation_epoch });
        }
        if federation.verify(self.signer, &self.statement(federation, domain, payload), signature) {
            Ok(())
        } else {
            Err(VoteError::Signature(self.signer.get()))
        }
    }
}

/// What an operation does; derived from its transactions, never from a label (D5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A deposit becomes a leaf.
    Deposit,
    /// A leaf goes to a receiver's identity key.
    Send,
    /// The receiver takes it under his leaf key.
    Claim,
    /// Timelocks are raised again.
    Renew,
    /// The operators' shares change, and nothing else (D12).
    Refresh,
    /// A send that a preimage completes (D8).
    Htlc,
    /// A send that a transaction on chain completes (D8).
    CoopExit,
}

impl Kind {
    /// On the wire and in storage.
    pub const fn code(self) -> u32 {
        match self {
            Self::Deposit => 1,
            Self::Send => 2,
            Self::Claim => 3,
            Self::Renew => 4,
            Self::Refresh => 9,
            Self::Htlc => 8,
            Self::CoopExit => 7,
        }
    }

    /// Name in storage, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deposit => "deposit",
            Self::Send => "send",
            Self::Claim => "claim",
            Self::Renew => "renew",
            Self::Refresh => "refresh",
            Self::Htlc => "htlc",
            Self::CoopExit => "coop-exit",
        }
    }

    /// From the wire.
    pub fn from_code(code: u32) -> Result<Self, VoteError> {
        Ok(match code {
            1 => Self::Deposit,
            2 => Self::Send,
            3 => Self::Claim,
            4 => Self::Renew,
            9 => Self::Refresh,
            8 => Self::Htlc,
            7 => Self::CoopExit,
            _ => return Err(VoteError::Malformed("kind")),
        })
    }
}

/// A signer's word on one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Prepared, durable, and bound to release on a certificate.
    Yes,
    /// Refused; counts as [`Choice::Abort`].
    No,
    /// Nothing was released and nothing ever will be.
    Abort,
    /// A decider's, given on the certificate only, of an operation that signs no transaction: it stands for the shares
    /// that others release.
    Commit,
}

impl Choice {
    /// What a vote says, if it says anything.
    pub fn of(vote: &wire::Vote) -> Option<Self> {
        match vote.choice() {
            wire::Choice::Yes => Some(Self::Yes),
            wire::Choice::No => Some(Self::No),
            wire::Choice::Abort => Some(Self::Abort),
            wire::Choice::Commit => Some(Self::Commit),
            wire::Choice::Unspecified => None,
        }
    }

    /// True for [`Choice::No`] and [`Choice::Abort`].
    pub const fn aborts(self) -> bool {
        matches!(self, Self::No | Self::Abort)
    }

    const fn code(self) -> wire::Choice {
        match self {
            Self::Yes => wire::Choice::Yes,
            Self::No => wire::Choice::No,
            Self::Abort => wire::Choice::Abort,
            Self::Commit => wire::Choice::Commit,
        }
    }
}

/// What a vote says, without who says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ballot {
    /// Of which operation.
    pub operation: OperationId,
    /// Which attempt.
    pub attempt: u32,
    /// What kind.
    pub kind: Kind,
    /// The word.
    pub choice: Choice,
    /// Digest over all that D4 lists; zeros where it could not be derived.
    pub digest: [u8; 32],
    /// Operators whose nonces the package uses.
    pub named: BTreeSet<OperatorIndex>,
}

impl Ballot {
    const DOMAIN: &'static str = "vote/v1";

    fn payload(&self) -> [u8; 32] {
        let mut t = Transcript::new("spark/vote/v1");
        t.bytes(self.operation.as_bytes()).u64(self.attempt.into()).u64(self.kind.code().into());
        t.u64(self.choice.code() as u64).bytes(&self.digest).u64(self.named.len() as u64);
        for index in &self.named {
            t.u64(index.get().into());
        }
        t.finish()
    }

    /// The bytes that the signer at `position` signs.
    pub fn statement(&self, federation: &Federation, position: &Position) -> Vec<u8> {
        position.statement(federation, Self::DOMAIN, &self.payload())
    }

    /// To the wire, with its signature.
    pub fn into_wire(self, position: Position, signature: Vec<u8>, reason: String) -> wire::Vote {
        wire::Vote {
            position: Some(position.to_wire()),
            operation_id: self.operation.as_bytes().to_vec(),
            attempt: self.attempt,
            kind: self.kind.code(),
            choice: self.choice.code().into(),
            digest: self.digest.to_vec(),
            named: self.named.iter().map(|i| i.get().into()).collect(),
            reason,
            signature,
        }
    }
}

/// A vote whose signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vote {
    /// Who, and where in its history.
    pub position: Position,
    /// What.
    pub ballot: Ballot,
}

impl Vote {
    /// Parses and verifies.
    pub fn verify(vote: &wire::Vote, federation: &Federation) -> Result<Self, VoteError> {
        let position = Position::parse(vote.position.as_ref())?;
        let choice = Choice::of(vote).ok_or(VoteError::Malformed("choice"))?;
        let named: BTreeSet<_> =
            vote.named.iter().map(|i| OperatorIndex::from_wire(*i)).collect::<Result<_, _>>()?;
        if named.len() != vote.named.len() {
            return Err(VoteError::Malformed("named"));
        }
        let ballot = Ballot {
            operation: OperationId::parse(&vote.operation_id)?,
            attempt: vote.attempt,
            kind: Kind::from_code(vote.kind)?,
            choice,
            digest: vote.digest.as_slice().try_into().map_err(|_| VoteError::Malformed("digest"))?,
            named,
        };
        position.verify(federation, Ballot::DOMAIN, &ballot.payload(), &vote.signature)?;
        Ok(Self { position, ballot })
    }
}

/// YES of the whole commit quorum over one digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    ballot: Ballot,
    voters: BTreeMap<OperatorIndex, Position>,
}

impl Certificate {
    /// Parses and verifies: distinct members, all YES, one ballot, at least the quorum, every named signer among them.
    pub fn verify(certificate: &wire::Certificate, federation: &Federation) -> Result<Self, VoteError> {
        let mut voters = BTreeMap::new();
        let mut common: Option<Ballot> = None;
        if certificate.votes.len() > usize::from(federation.size()) {
            return Err(VoteError::Malformed("certificate"));
        }
        for vote in &certificate.votes {
            let vote = Vote::verify(vote, federation)?;
            if vote.ballot.choice != Choice::Yes {
                return Err(VoteError::Disagree("choice"));
            }
            if common.get_or_insert_with(|| vote.ballot.clone()) != &vote.ballot {
                return Err(VoteError::Disagree("ballot"));
            }
            if voters.insert(vote.position.signer, vote.position).is_some() {
                return Err(VoteError::Twice(vote.position.signer.get()));
            }
        }
        let need = usize::from(federation.quorum());
        let short = VoteError::Short { have: voters.len(), need };
        let ballot = common.ok_or_else(|| short.clone())?;
        if voters.len() < need || !ballot.named.iter().all(|i| voters.contains_key(i)) {
            return Err(short);
        }
        Ok(Self { ballot, voters })
    }

    /// What was voted.
    pub const fn ballot(&self) -> &Ballot {
        &self.ballot
    }

    /// Who voted, and where each stood.
    pub const fn voters(&self) -> &BTreeMap<OperatorIndex, Position> {
        &self.voters
    }

    /// One decider's COMMIT on this certificate; returns whose.
    pub fn verify_commit(
        &self,
        vote: &wire::Vote,
        federation: &Federation,
    ) -> Result<OperatorIndex, VoteError> {
        let vote = Vote::verify(vote, federation)?;
        if vote.ballot != (Ballot { choice: Choice::Commit, ..self.ballot.clone() }) {
            return Err(VoteError::Disagree("ballot"));
        }
        let signer = vote.position.signer;
        if self.ballot.named.contains(&signer) { Ok(signer) } else { Err(VoteError::Disagree("named")) }
    }

    /// COMMIT of every decider, each once: with the certificate it decides an operation that signs nothing.
    pub fn verify_commits(&self, votes: &[wire::Vote], federation: &Federation) -> Result<(), VoteError> {
        let need = self.ballot.named.len();
        if votes.len() > usize::from(federation.size()) {
            return Err(VoteError::Malformed("commits"));
        }
        let mut deciders = BTreeSet::new();
        for vote in votes {
            let signer = self.verify_commit(vote, federation)?;
            if !deciders.insert(signer) {
                return Err(VoteError::Twice(signer.get()));
            }
        }
        if need == 0 || deciders != self.ballot.named {
            return Err(VoteError::Short { have: deciders.len(), need: need.max(1) });
        }
        Ok(())
    }
}

/// ABORT (or NO) of every named signer of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofOfAbort {
    voters: BTreeMap<OperatorIndex, Position>,
}

impl ProofOfAbort {
    /// Parses and verifies against the signers that the operation names in one's own records.
    pub fn verify(
        proof: &wire::ProofOfAbort,
        federation: &Federation,
        operation: OperationId,
        attempt: u32,
        named: &BTreeSet<OperatorIndex>,
    ) -> Result<Self, VoteError> {
        if proof.votes.len() > usize::from(federation.size()) {
            return Err(VoteError::Malformed("proof of abort"));
        }
        let mut voters = BTreeMap::new();
        for vote in &proof.votes {
            let vote = Vote::verify(vote, federation)?;
            if vote.ballot.operation != operation || vote.ballot.attempt != attempt {
                return Err(VoteError::Disagree("operation"));
            }
            if !vote.ballot.choice.aborts() {
                return Err(VoteError::Disagree("choice"));
            }
            voters.insert(vote.position.signer, vote.position);
        }
        let have = named.iter().filter(|i| voters.contains_key(i)).count();
        if named.is_empty() || have < named.len() {
            return Err(VoteError::Short { have, need: named.len().max(1) });
        }
        Ok(Self { voters })
    }

    /// Who aborted.
    pub const fn voters(&self) -> &BTreeMap<OperatorIndex, Position> {
        &self.voters
    }
}
