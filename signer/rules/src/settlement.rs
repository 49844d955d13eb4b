//! The second decision of a conditional operation (OPERATION.md D8): deciders' words, and what all of them prove.
//!
//! Deciders are the operators that the first decision names. All of them must say the same, so that one honest decider
//! excludes the other outcome: both proofs never exist. A preimage makes COMMIT the only honest word, and so does an
//! exit transaction at its depth on the decider's own chain; time alone makes none, since ABORT needs every decider.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::Txid;

use spark_proto::peer::v1 as wire;

use crate::{
    federation::Federation,
    ids::{OperationId, OperatorIndex},
    operation::Operation,
    transcript::Transcript,
    tx,
    vote::{Position, VoteError},
};

/// Blocks beyond the expiry that every decider's own tip must show before it may say ABORT: time for a preimage that
/// one operator saw before the expiry to reach all others.
pub const RETURN_MARGIN: u32 = 6;

/// Seconds that a block stands for where a time becomes a height.
const BLOCK_SECONDS: i64 = 600;
/// Fewer blocks may all come within minutes.
const LEAST_BLOCKS: u32 = 6;
/// About thirty days.
const MOST_BLOCKS: u32 = 4320;
/// Blocks by which operators' views of one expiry may differ: their tips and clocks do.
const VIEWS_DIFFER: u32 = 3;

/// The height at which something expires, as seen at `tip` and `now` (seconds since 1970): rounded up, at least six
/// blocks away. None if the time has passed, or is too far away.
pub fn expiry_height(tip: u32, now: i64, expires: i64) -> Option<u32> {
    let seconds = expires.checked_sub(now).filter(|seconds| *seconds > 0)?;
    let blocks = u32::try_from(seconds.checked_add(BLOCK_SECONDS - 1)? / BLOCK_SECONDS).ok()?;
    if blocks > MOST_BLOCKS { None } else { tip.checked_add(blocks.max(LEAST_BLOCKS)) }
}

/// What must happen for a conditional operation to complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// What completes it.
    pub completes: Completion,
    /// From this height on no operator takes a preimage from a client. An exit transaction that a block has completes
    /// it at any height, as long as nothing was returned.
    pub expiry_height: u32,
}

/// What completes a conditional operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// A preimage.
    Preimage {
        /// SHA-256 of it.
        payment_hash: [u8; 32],
    },
    /// The exit transaction of a cooperative exit.
    Exit {
        /// Which.
        txid: Txid,
        /// Confirmations that it needs on each decider's own chain, at least 1.
        depth: u32,
    },
}

impl Condition {
    /// A preimage completes it.
    pub const fn preimage(payment_hash: [u8; 32], expiry_height: u32) -> Self {
        Self { completes: Completion::Preimage { payment_hash }, expiry_height }
    }

    /// SHA-256 of the preimage that completes it, if one does.
    pub const fn payment_hash(&self) -> Option<&[u8; 32]> {
        match &self.completes {
            Completion::Preimage { payment_hash } => Some(payment_hash),
            Completion::Exit { .. } => None,
        }
    }

    /// First tip height at which a decider may say ABORT.
    pub const fn returnable_at(&self) -> u32 {
        self.expiry_height.saturating_add(RETURN_MARGIN)
    }

    /// Whether the height is what the wire's time means by one's own tip and clock: no coordinator chooses it alone.
    pub const fn fits(&self, own_view: u32) -> bool {
        self.expiry_height.abs_diff(own_view) <= VIEWS_DIFFER
    }

    /// The ruling, if this condition admits it.
    pub fn check(&self, ruling: &Ruling) -> Result<(), VoteError> {
        match (ruling, &self.completes) {
            (Ruling::Commit { preimage }, Completion::Preimage { payment_hash })
                if tx::opens(payment_hash, preimage) =>
            {
                Ok(())
            }
            (Ruling::Confirmed { tip, block }, Completion::Exit { depth, .. })
                if block.confirmations(*tip) >= (*depth).max(1) =>
            {
                Ok(())
            }
            (Ruling::Abort { height }, _) if *height >= self.returnable_at() => Ok(()),
            (Ruling::Commit { .. }, _) => Err(VoteError::Disagree("payment hash")),
            (Ruling::Confirmed { .. }, _) => Err(VoteError::Disagree("depth")),
            (Ruling::Abort { .. }, _) => Err(VoteError::Disagree("expiry")),
        }
    }
}

/// How a conditional operation ends, with what permits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// It completes.
    Commit {
        /// Opens the payment hash.
        preimage: [u8; 32],
    },
    /// It completes: the exit transaction is confirmed.
    Confirmed {
        /// The decider's own tip.
        tip: u32,
        /// The block that has the exit transaction.
        block: Block,
    },
    /// The leaves go back.
    Abort {
        /// The decider's own tip.
        height: u32,
    },
}

/// A block of a decider's own chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its height.
    pub height: u32,
    /// Its hash, internal order. Deciders may see different ones.
    pub hash: [u8; 32],
}

impl Block {
    /// 1 where it is the tip itself; 0 where it is above.
    pub const fn confirmations(&self, tip: u32) -> u32 {
        match tip.checked_sub(self.height) {
            Some(above) => above.saturating_add(1),
            None => 0,
        }
    }
}

impl Ruling {
    /// True for both of the same end.
    pub const fn agrees(&self, other: &Self) -> bool {
        self.completes() == other.completes()
    }

    /// The operation completes; otherwise the leaves go back.
    pub const fn completes(&self) -> bool {
        !matches!(self, Self::Abort { .. })
    }

    /// Name in errors and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Commit { .. } | Self::Confirmed { .. } => "committed",
            Self::Abort { .. } => "returned",
        }
    }

    /// From a request: a preimage is a COMMIT, none an ABORT at `tip`.
    pub fn asked(preimage: &[u8], tip: u32) -> Result<Self, VoteError> {
        if preimage.is_empty() {
            return Ok(Self::Abort { height: tip });
        }
        preimage
            .try_into()
            .map(|preimage| Self::Commit { preimage })
            .map_err(|_| VoteError::Malformed("preimage"))
    }

    /// From a request that names the block of an exit transaction, as seen at `tip`.
    pub fn confirmed(tip: u32, height: u32, hash: &[u8]) -> Result<Self, VoteError> {
        let hash = hash.try_into().map_err(|_| VoteError::Malformed("block_hash"))?;
        Ok(Self::Confirmed { tip, block: Block { height, hash } })
    }
}

/// A decider's word whose signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettlementVote {
    /// Who, and where in its history.
    pub position: Position,
    /// On which operation.
    pub operation: OperationId,
    /// Which attempt.
    pub attempt: u32,
    /// Digest of the first decision.
    pub digest: [u8; 32],
    /// The word.
    pub ruling: Ruling,
}

impl SettlementVote {
    const DOMAIN: &'static str = "settlement/v1";

    fn payload(&self) -> [u8; 32] {
        let mut t = Transcript::new("spark/settlement/v1");
        t.bytes(self.operation.as_bytes()).u64(self.attempt.into()).bytes(&self.digest);
        match &self.ruling {
            Ruling::Commit { preimage } => t.u64(wire::Ruling::Commit as u64).bytes(preimage),
            Ruling::Confirmed { tip, block } => t
                .u64(wire::Ruling::Commit as u64)
                .bytes(b"confirmed")
                .u64((*tip).into())
                .u64(block.height.into())
                .bytes(&block.hash),
            Ruling::Abort { height } => t.u64(wire::Ruling::Abort as u64).u64((*height).into()),
        };
        t.finish()
    }

    /// The bytes that the decider signs.
    pub fn statement(&self, federation: &Federation) -> Vec<u8> {
        self.position.statement(federation, Self::DOMAIN, &self.payload())
    }

    /// To the wire, with its signature.
    pub fn into_wire(self, signature: Vec<u8>) -> wire::SettlementVote {
        let (ruling, preimage, height, block) = match self.ruling {
            Ruling::Commit { preimage } => (wire::Ruling::Commit, preimage.to_vec(), 0, None),
            Ruling::Confirmed { tip, block } => (wire::Ruling::Commit, Vec::new(), tip, Some(block)),
            Ruling::Abort { height } => (wire::Ruling::Abort, Vec::new(), height, None),
        };
        wire::SettlementVote {
            position: Some(self.position.to_wire()),
            operation_id: self.operation.as_bytes().to_vec(),
            attempt: self.attempt,
            digest: self.digest.to_vec(),
            ruling: ruling.into(),
            preimage,
            height,
            signature,
            block_height: block.map_or(0, |block| block.height),
            block_hash: block.map(|block| block.hash.to_vec()).unwrap_or_default(),
        }
    }

    /// Parses and verifies.
    pub fn verify(vote: &wire::SettlementVote, federation: &Federation) -> Result<Self, VoteError> {
        let this = Self::stored(vote)?;
        this.position.verify(federation, Self::DOMAIN, &this.payload(), &vote.signature)?;
        Ok(this)
    }

    /// Parses one of one's own records, of whatever federation file. Nothing is verified.
    pub fn stored(vote: &wire::SettlementVote) -> Result<Self, VoteError> {
        let ruling = match vote.ruling() {
            wire::Ruling::Commit if !vote.block_hash.is_empty() => {
                Ruling::confirmed(vote.height, vote.block_height, &vote.block_hash)?
            }
            wire::Ruling::Commit => Ruling::Commit {
                preimage: vote
                    .preimage
                    .as_slice()
                    .try_into()
                    .map_err(|_| VoteError::Malformed("preimage"))?,
            },
            wire::Ruling::Abort => Ruling::Abort { height: vote.height },
            wire::Ruling::Unspecified => return Err(VoteError::Malformed("ruling")),
        };
        Ok(Self {
            position: Position::parse(vote.position.as_ref())?,
            operation: OperationId::parse(&vote.operation_id)?,
            attempt: vote.attempt,
            digest: vote.digest.as_slice().try_into().map_err(|_| VoteError::Malformed("digest"))?,
            ruling,
        })
    }
}

/// What the deciders decide about, from one's own records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Which operation.
    pub operation: OperationId,
    /// Which attempt.
    pub attempt: u32,
    /// Digest of the first decision.
    pub digest: [u8; 32],
    /// What completes it.
    pub condition: Condition,
    /// The operators that the first decision names.
    pub deciders: BTreeSet<OperatorIndex>,
}

impl Pending {
    /// Of an operation whose first decision was over `digest`.
    pub fn of(operation: &Operation, digest: [u8; 32]) -> Result<Self, VoteError> {
        Ok(Self {
            operation: operation.id,
            attempt: operation.attempt,
            digest,
            condition: operation.condition.clone().ok_or(VoteError::Malformed("condition"))?,
            deciders: operation.named.clone(),
        })
    }

    /// Parses and verifies one word about it, which the condition must admit.
    pub fn word(
        &self,
        vote: &wire::SettlementVote,
        federation: &Federation,
    ) -> Result<SettlementVote, VoteError> {
        let vote = SettlementVote::verify(vote, federation)?;
        if vote.operation != self.operation || vote.attempt != self.attempt {
            return Err(VoteError::Disagree("operation"));
        }
        if vote.digest != self.digest {
            return Err(VoteError::Disagree("digest"));
        }
        self.condition.check(&vote.ruling)?;
        Ok(vote)
    }

    /// `last_proof` of a leaf that came back: the next operation's digest shows who knows of the return.
    pub fn return_hash(&self) -> [u8; 32] {
        let mut t = Transcript::new("spark/proof-of-return/v1");
        t.bytes(self.operation.as_bytes()).u64(self.attempt.into()).bytes(&self.digest);
        t.finish()
    }
}

/// The same word of every decider: a preimage of one, an exit transaction on everybody's chain, or everybody's expiry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofOfSettlement {
    /// How it ends.
    pub ruling: Ruling,
    /// The votes, each verified.
    pub votes: BTreeMap<OperatorIndex, SettlementVote>,
}

impl ProofOfSettlement {
    /// Parses and verifies against one's own records: one ruling, which the condition admits, of every decider.
    pub fn verify(
        proof: &wire::ProofOfSettlement,
        federation: &Federation,
        pending: &Pending,
    ) -> Result<Self, VoteError> {
        if proof.votes.len() > usize::from(federation.size()) {
            return Err(VoteError::Malformed("proof of settlement"));
        }
        let mut votes = BTreeMap::new();
        let mut ruling: Option<Ruling> = None;
        for wire in &proof.votes {
            let vote = pending.word(wire, federation)?;
            if !ruling.get_or_insert_with(|| vote.ruling.clone()).agrees(&vote.ruling) {
                return Err(VoteError::Disagree("ruling"));
            }
            let signer = vote.position.signer;
            if votes.insert(signer, vote).is_some() {
                return Err(VoteError::Twice(signer.get()));
            }
        }
        let have = pending.deciders.iter().filter(|i| votes.contains_key(i)).count();
        match ruling {
            Some(ruling) if have == pending.deciders.len() => Ok(Self { ruling, votes }),
            _ => Err(VoteError::Short { have, need: pending.deciders.len() }),
        }
    }
}
