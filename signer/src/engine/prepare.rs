//! Prepare: policy, opening and staging of tweaks, signature shares sealed, the vote; one store commit (D2).

use std::collections::BTreeSet;

use prost::Message as _;
use rand_core::OsRng;
use sha2::{Digest as _, Sha256};
use spark_proto::{peer::v1 as peer, signer::v1 as wire, spark};
use spark_rules::{
    feldman::Proofs,
    ids::{KeyshareId, LeafId, OperationId},
    operation::{Keys, Operation, OperationError, Resource, commitment_sets, identify},
    vote::{Ballot, Choice, Kind},
};
use zeroize::{Zeroize as _, Zeroizing};

use super::{
    EngineError, Shared, journal,
    ledger::{self, Attempt, Holder, Phase, Terms, View},
    static_deposit,
};
use crate::{
    ecies::Envelope,
    frost::{NoncePair, sign_operator},
    nonce::{NonceError, PER_IDENTITY},
    secret::SecretScalar,
    vault::{SecretId, SecretKind, Txn},
};

/// Most bytes of one operator's opened package.
const MAX_PACKAGE: usize = 4 << 20;

/// Everything that a leaf claims, as a resource of the ledger.
pub(super) fn leaf_resource(leaf: &LeafId) -> Resource {
    Resource { kind: "leaf", key: leaf.as_bytes().to_vec() }
}

fn request_digest(canonical: &[u8]) -> [u8; 32] {
    Sha256::digest(canonical).into()
}

/// Name of a staged tweak: of an operation, by position of the leaf.
pub(super) fn tweak_id(operation: &OperationId, attempt: u32, position: usize) -> SecretId {
    SecretId::new(*operation.as_bytes(), SecretKind::StagedTweak, slot(attempt, position))
}

/// Name of the sealed signature shares of one stage.
pub(super) fn shares_id(operation: &OperationId, attempt: u32, stage: u8) -> SecretId {
    SecretId::new(*operation.as_bytes(), SecretKind::SignatureShares, slot(attempt, stage.into()))
}

fn slot(attempt: u32, position: usize) -> u64 {
    (u64::from(attempt) << 32) | (position as u64 & 0xffff_ffff)
}

pub(super) fn keyshare_secret(id: &KeyshareId, version: u64) -> SecretId {
    SecretId::new(*id.as_bytes(), SecretKind::Keyshare, version)
}

pub(super) fn read_scalar(txn: &Txn<'_>, id: &SecretId) -> Result<SecretScalar, EngineError> {
    let bytes = txn.get_secret(id)?.ok_or(EngineError::Unknown("keyshare secret"))?;
    let mut fixed = Zeroizing::new([0u8; 32]);
    if bytes.len() != fixed.len() {
        return Err(EngineError::Malformed("stored secret"));
    }
    fixed.copy_from_slice(&bytes);
    Ok(SecretScalar::from_bytes(&fixed)?)
}

/// A tweak for this operator, checked against its Feldman commitments.
struct OpenedTweak {
    public: wire::OpenedLeaf,
    secret: Zeroizing<[u8; 32]>,
}

impl Shared {
    pub(super) fn prepare(
        &mut self,
        txn: &mut Txn<'_>,
        request: wire::PrepareRequest,
    ) -> Result<wire::PrepareResponse, EngineError> {
        self.unlocked()?;
        let request = request.operation.ok_or(EngineError::Malformed("operation"))?;
        let id = OperationId::parse(&request.operation_id)?;
        let canonical = request.encode_to_vec();
        if let Some(known) = ledger::attempt(txn, &id, request.attempt)? {
            return match known.phase {
                // The same bytes get the same vote, whatever happened since; other bytes are another operation. After
                // an ABORT that is the last word for all of them. What was opened goes along: a proof of commit may
                // still come, and tables that lost it need it then.
                Phase::Refused | Phase::Aborted => {
                    let vote = Some(known.word().clone());
                    let same = known.digest == request_digest(&canonical);
                    let opened = if same { known.opened } else { Vec::new() };
                    Ok(wire::PrepareResponse { vote, opened })
                }
                _ if known.digest == request_digest(&canonical) => {
                    Ok(wire::PrepareResponse { vote: Some(known.vote), opened: known.opened })
                }
                _ => {
                    self.alarm("prepare_differs");
                    Err(EngineError::Differs)
                }
            };
        }
        // S3: whatever else is wrong with it, another package under a used nonce raises the alarm. Asked before
        // nonces are taken for this one.
        if self.replays(&request) {
            self.alarm("nonce_replayed");
        }
        if request.attempt > 0 && !self.former_attempt_is_aborted(txn, &id, request.attempt)? {
            return Err(EngineError::Decided("undecided before"));
        }
        let (_, kind) = View::ask(txn, |view| identify(&request, view))?;
        let savepoint = txn.savepoint();
        match self.try_prepare(txn, &request, &canonical) {
            Ok(response) => Ok(response),
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                txn.rollback_to(savepoint);
                self.refuse(txn, id, request.attempt, kind, &error)
            }
        }
    }

    /// Whether a package names a nonce of this signer that served another one.
    fn replays(&self, request: &peer::Operation) -> bool {
        let me = self.me.identifier_hex();
        request
            .request
            .iter()
            .flat_map(commitment_sets)
            .filter_map(|set| set.signing_commitments.get(&me))
            .any(|pair| self.nonces.was_used(&pair.hiding, &pair.binding))
    }

    fn former_attempt_is_aborted(
        &self,
        txn: &Txn<'_>,
        id: &OperationId,
        attempt: u32,
    ) -> Result<bool, EngineError> {
        let former = ledger::attempt(txn, id, attempt.saturating_sub(1))?;
        Ok(former.is_none_or(|a| matches!(a.phase, Phase::Aborted | Phase::Refused)))
    }

    /// A durable NO.
    pub(super) fn refuse(
        &mut self,
        txn: &mut Txn<'_>,
        id: OperationId,
        attempt: u32,
        kind: Kind,
        error: &EngineError,
    ) -> Result<wire::PrepareResponse, EngineError> {
        let ballot = Ballot {
            operation: id,
            attempt,
            kind,
            choice: Choice::No,
            digest: [0; 32],
            named: BTreeSet::new(),
        };
        let vote = self.sign_vote(txn, ballot, error.vote_reason())?;
        let record = Attempt {
            phase: Phase::Refused,
            request: Vec::new(),
            digest: [0; 32],
            opened: Vec::new(),
            vote: vote.clone(),
            abort: None,
            proof: None,
        };
        ledger::put_attempt(txn, &id, attempt, &record);
        journal::append(txn, entry("refused", &id, attempt, &vote, None, Vec::new()))?;
        Ok(wire::PrepareResponse { vote: Some(vote), opened: Vec::new() })
    }

    fn try_prepare(
        &mut self,
        txn: &mut Txn<'_>,
        request: &peer::Operation,
        canonical: &[u8],
    ) -> Result<wire::PrepareResponse, EngineError> {
        let operation = View::ask(txn, |view| Operation::derive(request, view, &self.federation))?;
        operation.terms.at(i64::try_from(self.now).unwrap_or(i64::MAX))?;
        self.trusted(txn, operation.coordinator)?;
        self.unproven.acts(operation.coordinator);
        if operation.parts.iter().any(|part| self.repairs.locks(&part.record.leaf_id, self.now)) {
            return Err(EngineError::Repairing);
        }
        let holder = Holder { operation: operation.id, attempt: operation.attempt };
        for resource in operation.resources.iter().chain(&self.leaves(&operation)) {
            ledger::claim(txn, resource, &holder)?;
        }
        self.check_maturities(txn, &operation)?;
        let tweaks = self.open(txn, &operation)?;
        let opened: Vec<_> = tweaks.iter().map(|t| t.public.clone()).collect();
        let keys = Keys::derive(&operation, &opened)?;
        for (position, (part, tweak)) in operation.parts.iter().zip(&tweaks).enumerate() {
            let id = keyshare_secret(&part.record.keyshare_id, part.record.version);
            if !txn.has_secret(&id)? {
                return Err(EngineError::Unknown("keyshare secret of this version"));
            }
            let id = tweak_id(&operation.id, operation.attempt, position);
            txn.put_secret(id, Zeroizing::new(tweak.secret.to_vec()))?;
        }
        self.stage_refresh(txn, &operation)?;
        if operation.named.contains(&self.me) && !operation.signs_nothing() {
            self.sign(txn, &operation, &keys, &tweaks)?;
        }
        let ballot = Ballot {
            operation: operation.id,
            attempt: operation.attempt,
            kind: operation.kind,
            choice: Choice::Yes,
            digest: operation.digest(&keys),
            named: operation.named.clone(),
        };
        let vote = self.sign_vote(txn, ballot, String::new())?;
        let record = Attempt {
            phase: Phase::Prepared,
            request: canonical.to_vec(),
            digest: request_digest(canonical),
            opened: opened.clone(),
            vote: vote.clone(),
            abort: None,
            proof: None,
        };
        ledger::put_attempt(txn, &operation.id, operation.attempt, &record);
        journal::append(txn, entry("prepared", &operation.id, operation.attempt, &vote, None, Vec::new()))?;
        Ok(wire::PrepareResponse { vote: Some(vote), opened })
    }

    fn leaves(&self, operation: &Operation) -> Vec<Resource> {
        operation.parts.iter().map(|p| leaf_resource(&p.record.leaf_id)).collect()
    }

    /// Rule S4: at most one transaction per maturity ever gets a released share. Exception D6 (c): the same
    /// owner's next version of the leaf may share it. And nothing is signed above a step at which something came back.
    pub(super) fn check_maturities(&self, txn: &Txn<'_>, operation: &Operation) -> Result<(), EngineError> {
        for (index, job) in operation.jobs.iter().enumerate() {
            // A leaf that came back has its old step: what it was given away for at a lower one stays valid.
            if ledger::returned_below(txn, job.maturity)? {
                return Err(EngineError::Maturity(index));
            }
            let Some(released) = ledger::released(txn, job.maturity)? else { continue };
            if released.sighash == *job.session.message() {
                continue;
            }
            let part = operation.parts.iter().find(|p| p.record.leaf_id == job.leaf);
            let receiver = part.map(|part| part.receiver.serialize());
            let same_owner = receiver == Some(released.owner);
            let next_of_same_owner = operation.kind == Kind::Claim
                && same_owner
                && part.map(|part| part.record.version) == Some(released.version.saturating_add(1));
            // Exception D6 (a): what a returned HTLC was signed for may be signed for once more, for the same receiver
            // with a preimage, or for anybody without one, whose refund matures 70 blocks earlier. What a returned exit
            // was signed for matures as a plain refund does, should its exit transaction come after all: nobody but its
            // receiver gets another one.
            let after_return = match (released.terms, operation.kind) {
                (Terms::Returned, Kind::Send | Kind::CoopExit) => true,
                (Terms::Returned, Kind::Htlc) | (Terms::ExitReturned, Kind::CoopExit) => same_owner,
                _ => false,
            };
            if !next_of_same_owner && !after_return {
                return Err(EngineError::Maturity(index));
            }
        }
        Ok(())
    }

    /// Opens this operator's part of the package: exactly the operation's leaves, every share on its polynomial,
    /// public share tweaks derived and compared, never trusted (S5).
    fn open(&self, txn: &mut Txn<'_>, operation: &Operation) -> Result<Vec<OpenedTweak>, EngineError> {
        let Some(sealed) = &operation.sealed else { return Ok(Vec::new()) };
        let ciphertext = sealed.ciphertexts.get(self.me.as_usize()).ok_or(EngineError::Sealed("missing"))?;
        if ciphertext.len() > MAX_PACKAGE {
            return Err(EngineError::Sealed("too long"));
        }
        let plaintext = match self.open_one_time(txn, operation, sealed)? {
            Some(plaintext) => plaintext,
            None => {
                let envelope = Envelope::parse(ciphertext)?;
                let shared_x = self.token.identity_ecdh_x(envelope.ephemeral())?;
                envelope.open_with_shared_x(&shared_x)?
            }
        };
        let mut leaves = decode_tweaks(operation.kind, &plaintext)?;
        if leaves.len() != operation.parts.len() {
            leaves.iter_mut().for_each(SealedTweak::wipe);
            return Err(EngineError::Sealed("number of leaves"));
        }
        let mut opened = Vec::with_capacity(leaves.len());
        for part in &operation.parts {
            let name = part.record.leaf_id.to_string();
            let position = leaves
                .iter()
                .position(|l| l.leaf_id == name)
                .ok_or(EngineError::Sealed("leaf missing or doubled"))?;
            let leaf = leaves.swap_remove(position);
            opened.push(self.check_tweak(operation, leaf)?);
        }
        Ok(opened)
    }

    fn check_tweak(&self, operation: &Operation, mut leaf: SealedTweak) -> Result<OpenedTweak, EngineError> {
        let mut secret = Zeroizing::new([0u8; 32]);
        let share = leaf.share.as_mut().ok_or(EngineError::Sealed("secret_share_tweak"))?;
        let fits = share.secret_share.len() == secret.len();
        if fits {
            secret.copy_from_slice(&share.secret_share);
        }
        share.secret_share.zeroize();
        if !fits {
            return Err(EngineError::Sealed("secret_share_tweak"));
        }
        let points = std::mem::take(&mut share.proofs);
        let proofs = Proofs::parse(&points, operation.threshold())?;
        proofs.verify_share(self.me, &secret)?;
        if leaf.public_shares.len() != usize::from(self.federation.size()) {
            return Err(EngineError::Sealed("pubkey_shares_tweak"));
        }
        for index in self.federation.indices() {
            let claimed = leaf.public_shares.get(&index.identifier_hex());
            let derived = proofs.share_commitment(index)?.serialize();
            if claimed.map(Vec::as_slice) != Some(derived.as_slice()) {
                return Err(EngineError::Sealed("pubkey_shares_tweak"));
            }
        }
        let public = wire::OpenedLeaf {
            leaf_id: std::mem::take(&mut leaf.leaf_id),
            proofs: points,
            secret_cipher: std::mem::take(&mut leaf.secret_cipher),
            signature: std::mem::take(&mut leaf.signature),
        };
        Ok(OpenedTweak { public, secret })
    }

    /// Takes every nonce out of the book, then computes the shares and seals them by stage (S3, S4).
    fn sign(
        &mut self,
        txn: &mut Txn<'_>,
        operation: &Operation,
        keys: &Keys,
        tweaks: &[OpenedTweak],
    ) -> Result<(), EngineError> {
        let mut nonces: Vec<NoncePair> = Vec::with_capacity(operation.jobs.len());
        for job in &operation.jobs {
            let commitment = job.package.operators().get(&self.me).ok_or(EngineError::NotNamed)?;
            match self.nonces.take(commitment, &job.leaf, self.now) {
                Ok(pair) => nonces.push(pair),
                Err(error) => {
                    if error == NonceError::Used {
                        self.alarm("nonce_replayed");
                    }
                    return Err(error.into());
                }
            }
        }
        let mut shares = Vec::with_capacity(operation.parts.len());
        for (position, part) in operation.parts.iter().enumerate() {
            let current = read_scalar(txn, &keyshare_secret(&part.record.keyshare_id, part.record.version))?;
            let share = match (operation.kind, tweaks.get(position)) {
                (Kind::Claim, Some(tweak)) => current.add(&SecretScalar::from_bytes(&tweak.secret)?)?,
                (Kind::Claim, None) => return Err(EngineError::Sealed("missing")),
                _ => current,
            };
            let expected = operation
                .signing_shares(&part.record.leaf_id, keys)
                .and_then(|s| s.get(self.me.as_usize()))
                .ok_or(OperationError::Opened("public share"))?;
            if share.public_key() != *expected {
                return Err(EngineError::Malformed("own public share"));
            }
            shares.push((part.record.leaf_id, share));
        }
        let mut stages: Vec<Zeroizing<Vec<u8>>> =
            (0..operation.stages()).map(|_| Zeroizing::default()).collect();
        for ((index, job), nonce) in operation.jobs.iter().enumerate().zip(nonces) {
            let (_, share) = shares
                .iter()
                .find(|(leaf, _)| *leaf == job.leaf)
                .ok_or(OperationError::Incomplete(job.leaf))?;
            let signed = sign_operator(&job.session, self.me, nonce, share)?;
            if let Some(stage) = stages.get_mut(usize::from(job.stage)) {
                stage.extend_from_slice(&(index as u32).to_be_bytes());
                stage.extend_from_slice(&signed.to_bytes());
            }
        }
        for (stage, bytes) in stages.into_iter().enumerate() {
            txn.put_secret(shares_id(&operation.id, operation.attempt, stage as u8), bytes)?;
        }
        Ok(())
    }

    /// New pairs for a session identity: bound to leaves, kind by kind, or unbound.
    pub(super) fn commit_nonces(
        &mut self,
        txn: &Txn<'_>,
        request: &wire::CommitNoncesRequest,
    ) -> Result<wire::CommitNoncesResponse, EngineError> {
        self.unlocked()?;
        let identity = spark_rules::point::parse("identity", &request.identity)?;
        let pairs = request.leaf_ids.len().max(1).saturating_mul(request.count as usize);
        if request.count == 0 || pairs > PER_IDENTITY {
            return Err(EngineError::Malformed("count"));
        }
        let leaves: Vec<Option<LeafId>> = if request.leaf_ids.is_empty() {
            vec![None]
        } else {
            request
                .leaf_ids
                .iter()
                .map(|l| Ok(Some(LeafId::parse(l)?)))
                .collect::<Result<_, EngineError>>()?
        };
        for leaf in leaves.iter().flatten() {
            let owner = match ledger::leaf(txn, leaf)? {
                Some(record) => record.owner_identity,
                None => static_deposit::owner(txn, leaf)?.ok_or(EngineError::Unknown("leaf"))?,
            };
            if owner != identity {
                return Err(OperationError::NotOwner(*leaf).into());
            }
        }
        let mut commitments = Vec::with_capacity(pairs);
        for _ in 0..request.count {
            for leaf in &leaves {
                let commitment = self.nonces.issue(&identity, *leaf, self.now, &mut OsRng)?;
                commitments.push(spark_proto::common::SigningCommitment {
                    hiding: commitment.hiding.serialize().to_vec(),
                    binding: commitment.binding.serialize().to_vec(),
                });
            }
        }
        Ok(wire::CommitNoncesResponse { commitments })
    }
}

/// A leaf's tweak as it lies in the package.
struct SealedTweak {
    leaf_id: String,
    share: Option<spark::SecretShare>,
    public_shares: std::collections::BTreeMap<String, Vec<u8>>,
    secret_cipher: Vec<u8>,
    signature: Vec<u8>,
}

impl SealedTweak {
    fn wipe(&mut self) {
        if let Some(share) = &mut self.share {
            share.secret_share.zeroize();
        }
    }
}

impl Drop for SealedTweak {
    fn drop(&mut self) {
        self.wipe();
    }
}

fn decode_tweaks(kind: Kind, plaintext: &[u8]) -> Result<Vec<SealedTweak>, EngineError> {
    let malformed = |_| EngineError::Sealed("not a tweak message");
    Ok(match kind {
        Kind::Claim => spark::ClaimLeafKeyTweaks::decode(plaintext)
            .map_err(malformed)?
            .leaves_to_receive
            .into_iter()
            .map(|l| SealedTweak {
                leaf_id: l.leaf_id,
                share: l.secret_share_tweak,
                public_shares: l.pubkey_shares_tweak,
                secret_cipher: Vec::new(),
                signature: Vec::new(),
            })
            .collect(),
        _ => spark::SendLeafKeyTweaks::decode(plaintext)
            .map_err(malformed)?
            .leaves_to_send
            .into_iter()
            .map(|l| SealedTweak {
                leaf_id: l.leaf_id,
                share: l.secret_share_tweak,
                public_shares: l.pubkey_shares_tweak,
                secret_cipher: l.secret_cipher,
                signature: l.signature,
            })
            .collect(),
    })
}

pub(super) fn entry(
    kind: &str,
    operation: &OperationId,
    attempt: u32,
    vote: &peer::Vote,
    proof: Option<peer::ProofOfCommit>,
    request: Vec<u8>,
) -> wire::JournalEntry {
    wire::JournalEntry {
        sequence: 0,
        kind: kind.to_owned(),
        operation_id: operation.as_bytes().to_vec(),
        attempt,
        vote: Some(vote.clone()),
        proof,
        operation: request,
        ..wire::JournalEntry::default()
    }
}
