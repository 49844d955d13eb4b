//! What an operation is: derived from the client's own words and one's own records, by every operator and
//! every signer alike (OPERATION.md D4, D5).
//!
//! [`Operation::derive`] does every check that needs no secret: ownership, templates, completeness, the
//! package signature, the user's signature shares. What remains for a signer is its ledger and its part of the
//! sealed packages.

mod claim;
mod coop_exit;
mod deposit;
mod digest;
mod error;
mod htlc;
mod jobs;
mod keys;
mod outcome;
mod records;
mod refresh;
mod renew;
mod send;
mod terms;

use std::collections::BTreeSet;

use bitcoin::secp256k1::PublicKey;
use spark_proto::peer::v1 as wire;

pub use claim::claim_id;
pub use coop_exit::{CONNECTOR, MAX_DEPTH};
pub use error::OperationError;
pub use htlc::PAYMENT;
pub use jobs::{Job, commitment_sets, parse_commitment, parse_commitments};
pub use keys::{Keys, TweakedKey};
pub use outcome::{Outcome, SignedTx, proof_hash};
pub use records::{Binding, Records, TransferRecord, TransferShare};
pub use refresh::{Deal, MAX_REFRESH, Refresh, deal_payload, named_leaves};
pub use terms::{PaidInvoice, Terms, invoice_key};

use crate::{
    federation::Federation,
    ids::{LeafId, OperationId, OperatorIndex, TransferId},
    leaf::LeafRecord,
    settlement::Condition,
    tx::Plan,
    vote::{Certificate, Kind, VoteError},
};

/// Most leaves of one operation.
pub const MAX_LEAVES: usize = 256;

/// Most receivers of one transfer.
pub const MAX_RECEIVERS: usize = 32;

/// A leaf that an operation consumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafClaim {
    /// Which.
    pub leaf: LeafId,
    /// At which version of its keyshare.
    pub version: u64,
}

/// Something else that only one operation may hold at a time, like a transfer id or an outpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// What it is.
    pub kind: &'static str,
    /// Which.
    pub key: Vec<u8>,
}

/// One leaf of an operation: what is now, and which transactions it asks for.
#[derive(Debug, Clone)]
pub struct Part {
    /// The record before; for a deposit the record that comes to be, at version 0, or at the version of the deposit
    /// that it replaces.
    pub record: LeafRecord,
    /// The transactions, unsigned.
    pub plan: Plan,
    /// Identity key to which the leaf goes; its owner's where it stays.
    pub receiver: PublicKey,
}

impl Part {
    /// No proof made this leaf before: there is no version to consume.
    pub fn is_new(&self) -> bool {
        self.record.last_proof == [0; 32]
    }
}

/// Ciphertexts of a package, one per operator, and what the owner signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The transfer they belong to; its text is part of the leaf signatures.
    pub transfer: TransferId,
    /// By operator index.
    pub ciphertexts: Vec<Vec<u8>>,
}

/// An operation with everything public checked.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Which.
    pub id: OperationId,
    /// Which attempt.
    pub attempt: u32,
    /// What it does.
    pub kind: Kind,
    /// Who runs it.
    pub coordinator: OperatorIndex,
    /// Whose session may ask for it: sender, receiver or owner.
    pub requester: PublicKey,
    /// The operators whose nonces the package uses: exactly these sign.
    pub named: BTreeSet<OperatorIndex>,
    /// The leaves, in the order of the request.
    pub parts: Vec<Part>,
    /// All inputs to sign, leaf by leaf.
    pub jobs: Vec<Job>,
    /// Tweaks for each operator, where keys change.
    pub sealed: Option<Sealed>,
    /// What every signer dealt, where shares are refreshed.
    pub refresh: Option<Refresh>,
    /// Claimed besides leaves.
    pub resources: Vec<Resource>,
    /// What no signature of the client covers.
    pub terms: Terms,
    /// What completes it after its first decision; none where that decides all.
    pub condition: Option<Condition>,
    epoch: u64,
    threshold: u16,
}

impl Operation {
    /// Derives the operation. Errors are refusals with a stable reason; nothing is changed by asking.
    pub fn derive(
        request: &wire::Operation,
        records: &impl Records,
        federation: &Federation,
    ) -> Result<Self, OperationError> {
        let context = Context::new(request, federation)?;
        match request.request.as_ref().ok_or(OperationError::Malformed("request"))? {
            wire::operation::Request::Deposit(deposit) => deposit::derive(context, deposit, records),
            wire::operation::Request::Send(send) => send::derive(context, send, records),
            wire::operation::Request::SendMany(send) => send::derive_many(context, send, records),
            wire::operation::Request::Claim(claim) => claim::derive(context, claim, records),
            wire::operation::Request::Renew(renew) => renew::derive(context, renew, records),
            wire::operation::Request::Refresh(refresh) => refresh::derive(context, refresh, records),
            wire::operation::Request::Htlc(htlc) => htlc::derive(context, htlc, records),
            wire::operation::Request::CoopExit(exit) => coop_exit::derive(context, exit, records),
        }
    }

    /// The leaves and versions it consumes. A deposit's leaf is new, or replaces one of the same id.
    pub fn claims(&self) -> Vec<LeafClaim> {
        self.parts.iter().map(|p| LeafClaim { leaf: p.record.leaf_id, version: p.record.version }).collect()
    }

    /// Identity keys to which leaves go, each once, in the order of the leaves.
    pub fn receivers(&self) -> Vec<PublicKey> {
        let mut receivers = Vec::new();
        for part in &self.parts {
            if !receivers.contains(&part.receiver) {
                receivers.push(part.receiver);
            }
        }
        receivers
    }

    /// The leaf whose outputs a deposit replaces (D20).
    pub fn replaces(&self) -> Option<LeafId> {
        self.parts
            .iter()
            .find(|part| self.kind == Kind::Deposit && !part.is_new())
            .map(|part| part.record.leaf_id)
    }

    /// Number of release stages (D3). Where nothing is signed there is one, in which the deciders commit.
    pub fn stages(&self) -> u8 {
        self.jobs.iter().map(|j| j.stage).max().unwrap_or(0).saturating_add(1)
    }

    /// It signs no transaction: the named signers' COMMIT takes the place of their shares (D1).
    pub const fn signs_nothing(&self) -> bool {
        self.jobs.is_empty()
    }

    /// What decides beside the certificate and the final signatures: COMMIT of every decider, or none.
    pub fn verify_commits(
        &self,
        proof: &wire::ProofOfCommit,
        certificate: &Certificate,
        federation: &Federation,
    ) -> Result<(), VoteError> {
        if self.signs_nothing() {
            return certificate.verify_commits(&proof.commits, federation);
        }
        if proof.commits.is_empty() { Ok(()) } else { Err(VoteError::Malformed("commits")) }
    }

    /// Jobs of one stage, with their index.
    pub fn jobs_of_stage(&self, stage: u8) -> impl Iterator<Item = (usize, &Job)> {
        self.jobs.iter().enumerate().filter(move |(_, job)| job.stage == stage)
    }

    /// t of the federation that runs it.
    pub const fn threshold(&self) -> u16 {
        self.threshold
    }
}

/// The id that a request must carry, and its kind: known before anything is checked.
pub fn identify(
    request: &wire::Operation,
    records: &impl Records,
) -> Result<(OperationId, Kind), OperationError> {
    Ok(match request.request.as_ref().ok_or(OperationError::Malformed("request"))? {
        wire::operation::Request::Deposit(deposit) => (deposit::operation_id(deposit)?, Kind::Deposit),
        wire::operation::Request::Send(send) => (send::operation_id(send)?, Kind::Send),
        wire::operation::Request::SendMany(send) => (send::operation_id_many(send)?, Kind::Send),
        wire::operation::Request::Claim(claim) => (claim::operation_id(claim)?, Kind::Claim),
        wire::operation::Request::Renew(renew) => (renew::operation_id(renew, records)?, Kind::Renew),
        wire::operation::Request::Refresh(refresh) => (refresh::operation_id(refresh)?, Kind::Refresh),
        wire::operation::Request::Htlc(htlc) => (htlc::operation_id(htlc)?, Kind::Htlc),
        wire::operation::Request::CoopExit(exit) => (coop_exit::operation_id(exit)?, Kind::CoopExit),
    })
}

/// A transfer id: the text of a UUID.
pub fn transfer_id(text: &str) -> Result<TransferId, OperationError> {
    let id = LeafId::parse(text).map_err(|_| OperationError::Malformed("transfer_id"))?;
    Ok(TransferId::from_bytes(*id.as_bytes()))
}

/// What all kinds share.
struct Context<'a> {
    id: OperationId,
    attempt: u32,
    coordinator: OperatorIndex,
    federation: &'a Federation,
}

impl<'a> Context<'a> {
    fn new(request: &wire::Operation, federation: &'a Federation) -> Result<Self, OperationError> {
        if request.federation_epoch != federation.epoch() {
            return Err(OperationError::Epoch {
                expected: federation.epoch(),
                actual: request.federation_epoch,
            });
        }
        let coordinator = OperatorIndex::from_wire(request.coordinator)
            .ok()
            .filter(|c| federation.member(*c).is_some())
            .ok_or(OperationError::Malformed("coordinator"))?;
        let id = OperationId::parse(&request.operation_id)
            .map_err(|_| OperationError::Malformed("operation_id"))?;
        Ok(Self { id, attempt: request.attempt, coordinator, federation })
    }

    fn expect_id(&self, expected: OperationId) -> Result<(), OperationError> {
        if self.id == expected { Ok(()) } else { Err(OperationError::Malformed("operation_id")) }
    }

    /// Ciphertexts for exactly the federation's operators.
    fn sealed(
        &self,
        transfer: TransferId,
        packages: &std::collections::BTreeMap<String, Vec<u8>>,
    ) -> Result<Sealed, OperationError> {
        if packages.len() != usize::from(self.federation.size()) {
            return Err(OperationError::Malformed("key_tweak_package"));
        }
        let ciphertexts = self
            .federation
            .indices()
            .map(|i| {
                packages
                    .get(&i.identifier_hex())
                    .cloned()
                    .ok_or(OperationError::Malformed("key_tweak_package"))
            })
            .collect::<Result<_, _>>()?;
        Ok(Sealed { transfer, ciphertexts })
    }
}

/// Everything that differs between kinds; [`assemble`] adds the rest.
struct Draft {
    kind: Kind,
    requester: PublicKey,
    parts: Vec<Part>,
    jobs: Vec<Job>,
    sealed: Option<Sealed>,
    resources: Vec<Resource>,
    terms: Terms,
}

fn assemble(context: &Context<'_>, draft: Draft) -> Result<Operation, OperationError> {
    let mut named: Option<BTreeSet<OperatorIndex>> = None;
    for job in &draft.jobs {
        let signers = job.package.operators().keys().copied().collect();
        if named.get_or_insert_with(|| BTreeSet::clone(&signers)) != &signers {
            return Err(OperationError::Named);
        }
    }
    let named = named.filter(|n| !n.is_empty()).ok_or(OperationError::Named)?;
    let mut nonces = BTreeSet::new();
    for job in &draft.jobs {
        for commitment in job.package.operators().values() {
            if !nonces.insert(commitment.to_bytes().to_vec()) {
                return Err(OperationError::NonceTwice);
            }
        }
    }
    Ok(Operation {
        id: context.id,
        attempt: context.attempt,
        kind: draft.kind,
        coordinator: context.coordinator,
        requester: draft.requester,
        named,
        parts: draft.parts,
        jobs: draft.jobs,
        sealed: draft.sealed,
        refresh: None,
        resources: draft.resources,
        terms: draft.terms,
        condition: None,
        epoch: context.federation.epoch(),
        threshold: context.federation.threshold(),
    })
}
