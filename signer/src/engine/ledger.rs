//! The signer's own records: keyshares, leaves, transfers, operations, live claims, released maturities.
//!
//! Values are encoded messages or JSON; every one is authenticated by the vault.

use std::cell::RefCell;

use bitcoin::{Script, secp256k1::PublicKey};
use prost::Message as _;
use spark_proto::{peer::v1 as peer, signer::v1 as wire};
use spark_rules::{
    address::Network,
    ids::{KeyshareId, LeafId, OperationId, OperatorIndex, TransferId},
    leaf::LeafRecord,
    operation::{Binding, OperationError, Records, Resource, TransferRecord},
    package_key::KeyId,
    point,
    tx::{Maturity, p2tr_script},
};

use super::EngineError;
use crate::vault::Txn;

fn key(prefix: &[u8], id: &[u8]) -> Vec<u8> {
    [prefix, id].concat()
}

/// A keyshare, public part.
#[derive(Debug, Clone)]
pub(super) struct Keyshare {
    pub(super) public: wire::PublicKeyshare,
    pub(super) binding: Option<wire::Binding>,
    /// Usable: all members signed the transcript of its batch.
    pub(super) confirmed: bool,
}

impl Keyshare {
    pub(super) fn group_key(&self) -> Result<PublicKey, EngineError> {
        Ok(point::parse("group_key", &self.public.group_key)?)
    }

    pub(super) fn public_shares(&self) -> Result<Vec<PublicKey>, EngineError> {
        self.public.public_shares.iter().map(|s| Ok(point::parse("public_share", s)?)).collect()
    }

    /// The binding with its derived keys.
    pub(super) fn bound(&self) -> Result<Option<Binding>, EngineError> {
        let Some(wire) = &self.binding else { return Ok(None) };
        let user_key = point::parse("user_public_key", &wire.user_public_key)?;
        let group_key = self.group_key()?;
        Ok(Some(Binding {
            keyshare_id: KeyshareId::parse(&wire.keyshare_id)?,
            leaf_id: LeafId::parse(&wire.leaf_id)?,
            user_key,
            identity: point::parse("identity_public_key", &wire.identity_public_key)?,
            network: Network::from_wire(wire.network).map_err(|_| EngineError::Malformed("network"))?,
            group_key,
            public_shares: self.public_shares()?,
            verifying_key: group_key
                .combine(&user_key)
                .map_err(|_| EngineError::Binding("keys cancel out"))?,
            is_static: wire.is_static,
        }))
    }
}

pub(super) fn keyshare(txn: &Txn<'_>, id: &KeyshareId) -> Result<Option<Keyshare>, EngineError> {
    let Some(public) = txn.record(&key(b"key/", id.as_bytes()))? else { return Ok(None) };
    let binding = txn.record(&key(b"bound/", id.as_bytes()))?;
    Ok(Some(Keyshare {
        public: wire::PublicKeyshare::decode(public.as_slice())?,
        binding: binding.map(|b| wire::Binding::decode(b.as_slice())).transpose()?,
        confirmed: txn.record(&key(b"usable/", id.as_bytes()))?.is_some(),
    }))
}

pub(super) fn put_keyshare(txn: &mut Txn<'_>, id: &KeyshareId, public: &wire::PublicKeyshare) {
    txn.put_record(&key(b"key/", id.as_bytes()), public.encode_to_vec());
}

pub(super) fn confirm_keyshare(txn: &mut Txn<'_>, id: &KeyshareId, owner: OperatorIndex) {
    txn.put_record(&key(b"usable/", id.as_bytes()), vec![1]);
    txn.put_record(&free_key(owner, id), vec![1]);
}

fn free_key(owner: OperatorIndex, id: &KeyshareId) -> Vec<u8> {
    [b"free/".as_slice(), &owner.get().to_be_bytes(), id.as_bytes()].concat()
}

/// Unused keyshares of one operator's pool.
pub(super) fn free_keyshares(txn: &Txn<'_>, owner: OperatorIndex) -> Result<usize, EngineError> {
    Ok(txn.scan_records(&[b"free/".as_slice(), &owner.get().to_be_bytes()].concat())?.len())
}

pub(super) fn bind_keyshare(
    txn: &mut Txn<'_>,
    binding: &Binding,
    wire: &wire::Binding,
    owner: OperatorIndex,
) {
    txn.put_record(&key(b"bound/", binding.keyshare_id.as_bytes()), wire.encode_to_vec());
    txn.put_record(
        &key(b"script/", p2tr_script(&binding.verifying_key).as_bytes()),
        binding.keyshare_id.as_bytes().to_vec(),
    );
    txn.put_record(&key(b"leaf-key/", binding.leaf_id.as_bytes()), binding.keyshare_id.as_bytes().to_vec());
    txn.delete_record(&free_key(owner, &binding.keyshare_id));
}

/// The keyshare that a leaf id is bound to.
pub(super) fn keyshare_of_leaf(txn: &Txn<'_>, leaf: &LeafId) -> Result<Option<KeyshareId>, EngineError> {
    let Some(id) = txn.record(&key(b"leaf-key/", leaf.as_bytes()))? else { return Ok(None) };
    Ok(Some(KeyshareId::parse(&id)?))
}

pub(super) fn leaf(txn: &Txn<'_>, id: &LeafId) -> Result<Option<LeafRecord>, EngineError> {
    match txn.record(&key(b"leaf/", id.as_bytes()))? {
        Some(bytes) => Ok(Some(LeafRecord::decode(&bytes)?)),
        None => Ok(None),
    }
}

pub(super) fn put_leaf(txn: &mut Txn<'_>, record: &LeafRecord) {
    txn.put_record(&key(b"leaf/", record.leaf_id.as_bytes()), record.encode());
}

pub(super) fn put_transfer(txn: &mut Txn<'_>, transfer: &TransferRecord) {
    txn.put_record(&key(b"transfer/", &transfer.id), transfer.encode());
}

pub(super) fn transfer(txn: &Txn<'_>, id: &TransferId) -> Result<Option<TransferRecord>, EngineError> {
    match txn.record(&key(b"transfer/", id.as_bytes()))? {
        Some(bytes) => Ok(Some(TransferRecord::decode(&bytes)?)),
        None => Ok(None),
    }
}

/// The keyshare whose deposit address has this script.
pub(super) fn keyshare_of_script(txn: &Txn<'_>, script: &Script) -> Result<Option<KeyshareId>, EngineError> {
    let Some(id) = txn.record(&key(b"script/", script.as_bytes()))? else { return Ok(None) };
    Ok(Some(KeyshareId::parse(&id)?))
}

fn binding(txn: &Txn<'_>, script: &Script) -> Result<Option<Binding>, EngineError> {
    let Some(id) = keyshare_of_script(txn, script)? else { return Ok(None) };
    keyshare(txn, &id)?.ok_or(EngineError::Unknown("keyshare of a script"))?.bound()
}

/// The ledger as the rules see it. An error of the store reads as "unknown" to them; [`View::ask`] then fails with
/// the error, whatever they made of it.
pub(super) struct View<'a, 'v> {
    txn: &'a Txn<'v>,
    failed: RefCell<Option<EngineError>>,
}

impl<'a, 'v> View<'a, 'v> {
    /// Asks the rules.
    pub(super) fn ask<T, E: Into<EngineError>>(
        txn: &'a Txn<'v>,
        question: impl FnOnce(&Self) -> Result<T, E>,
    ) -> Result<T, EngineError> {
        let view = Self { txn, failed: RefCell::new(None) };
        let answer = question(&view);
        match view.failed.into_inner() {
            Some(error) => Err(error),
            None => answer.map_err(Into::into),
        }
    }

    fn found<T>(&self, read: Result<Option<T>, EngineError>) -> Option<T> {
        read.unwrap_or_else(|error| {
            self.failed.borrow_mut().get_or_insert(error);
            None
        })
    }
}

impl Records for View<'_, '_> {
    fn leaf(&self, id: &LeafId) -> Option<LeafRecord> {
        self.found(leaf(self.txn, id))
    }

    fn binding(&self, script: &Script) -> Option<Binding> {
        self.found(binding(self.txn, script))
    }

    fn transfer(&self, id: &TransferId) -> Option<TransferRecord> {
        self.found(transfer(self.txn, id))
    }
}

/// Who holds a leaf or resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) operation: OperationId,
    pub(super) attempt: u32,
}

impl Holder {
    fn encode(&self) -> Vec<u8> {
        [self.operation.as_bytes().as_slice(), &self.attempt.to_be_bytes()].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, EngineError> {
        let (operation, attempt) =
            bytes.split_first_chunk::<16>().ok_or(EngineError::Malformed("stored claim"))?;
        let attempt = attempt.try_into().map_err(|_| EngineError::Malformed("stored claim"))?;
        Ok(Self { operation: OperationId::from_bytes(*operation), attempt: u32::from_be_bytes(attempt) })
    }
}

fn resource_key(resource: &Resource) -> Vec<u8> {
    [b"held/".as_slice(), resource.kind.as_bytes(), b"/", &resource.key].concat()
}

/// Whether an attempt holds a leaf.
pub(super) fn is_held(txn: &Txn<'_>, resource: &Resource) -> Result<bool, EngineError> {
    Ok(txn.record(&resource_key(resource))?.is_some())
}

/// Claims a leaf or resource for one attempt; only one may hold it.
pub(super) fn claim(txn: &mut Txn<'_>, resource: &Resource, holder: &Holder) -> Result<(), EngineError> {
    let key = resource_key(resource);
    if let Some(bytes) = txn.record(&key)? {
        let current = Holder::decode(&bytes)?;
        if current != *holder {
            return Err(EngineError::Held { what: resource.kind, by: current.operation.to_string() });
        }
    }
    txn.put_record(&key, holder.encode());
    Ok(())
}

/// Most outputs of one static address that are held for its owner. A transaction that nobody mines pays an address as
/// well as another: without a bound a host could fill the ledger.
const MOST_STATIC: u32 = 10_000;

/// Holds an output of a static address for its owner, for ever. Such outputs are of a kind of their own: no deposit can
/// spend one, and none stands in a deposit's way. No operation of the engine has the holder's id.
pub(super) fn hold_static(
    txn: &mut Txn<'_>,
    address: &KeyshareId,
    outpoint: &[u8],
) -> Result<(), EngineError> {
    let resource = Resource { kind: "static-outpoint", key: outpoint.to_vec() };
    let held = is_held(txn, &resource)?;
    let holder = Holder { operation: OperationId::derive("spark/static-refund", &[outpoint]), attempt: 0 };
    claim(txn, &resource, &holder)?;
    if held {
        return Ok(());
    }
    let key = key(b"static-held/", address.as_bytes());
    let known = txn.record(&key)?.map(|bytes| bytes.try_into().map(u32::from_be_bytes)).transpose();
    let known = known.map_err(|_| EngineError::Malformed("stored number of outputs"))?.unwrap_or_default();
    if known >= MOST_STATIC {
        let (what, most) = ("outputs of a static address", MOST_STATIC as usize);
        return Err(OperationError::TooMany { what, most }.into());
    }
    txn.put_record(&key, known.saturating_add(1).to_be_bytes().to_vec());
    Ok(())
}

/// Gives a claim up, if the holder holds it.
pub(super) fn unclaim(txn: &mut Txn<'_>, resource: &Resource, holder: &Holder) -> Result<(), EngineError> {
    let key = resource_key(resource);
    if let Some(bytes) = txn.record(&key)?
        && Holder::decode(&bytes)? == *holder
    {
        txn.delete_record(&key);
    }
    Ok(())
}

/// A one-time key for packages, public part (D14).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PackageKey {
    /// Unix seconds.
    pub(super) expires: u64,
    /// The attempt whose package it opened.
    pub(super) holder: Option<Holder>,
}

impl PackageKey {
    const PREFIX: &[u8] = b"package-key/";

    fn decode(bytes: &[u8]) -> Result<Self, EngineError> {
        let (expires, holder) =
            bytes.split_first_chunk::<8>().ok_or(EngineError::Malformed("stored package key"))?;
        let holder = if holder.is_empty() { None } else { Some(Holder::decode(holder)?) };
        Ok(Self { expires: u64::from_be_bytes(*expires), holder })
    }

    pub(super) fn get(txn: &Txn<'_>, id: &KeyId) -> Result<Option<Self>, EngineError> {
        txn.record(&key(Self::PREFIX, id))?.map(|bytes| Self::decode(&bytes)).transpose()
    }

    pub(super) fn put(&self, txn: &mut Txn<'_>, id: &KeyId) {
        let holder = self.holder.as_ref().map(Holder::encode).unwrap_or_default();
        txn.put_record(&key(Self::PREFIX, id), [self.expires.to_be_bytes().as_slice(), &holder].concat());
    }

    pub(super) fn delete(txn: &mut Txn<'_>, id: &KeyId) {
        txn.delete_record(&key(Self::PREFIX, id));
    }

    /// All that live, by name.
    pub(super) fn all(txn: &Txn<'_>) -> Result<Vec<(KeyId, Self)>, EngineError> {
        let malformed = || EngineError::Malformed("stored package key");
        txn.scan_records(Self::PREFIX)?
            .into_iter()
            .map(|(name, bytes)| {
                let id = name.strip_prefix(Self::PREFIX).and_then(|id| id.try_into().ok());
                Ok((id.ok_or_else(malformed)?, Self::decode(&bytes)?))
            })
            .collect()
    }
}

/// What was released for a maturity (S4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Released {
    pub(super) sighash: [u8; 32],
    pub(super) owner: [u8; 33],
    pub(super) version: u64,
    pub(super) terms: Terms,
}

/// Under which terms the transaction of a maturity was released (D6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Terms {
    /// For good.
    Plain,
    /// A preimage or an exit transaction completes it: pending or settled.
    Htlc,
    /// A preimage would have completed it, but the deciders gave the leaf back.
    Returned,
    /// An exit transaction would have completed it, but the deciders gave the leaf back.
    ExitReturned,
}

impl Terms {
    /// Nothing for plain ones: as records were before there were others.
    const fn code(self) -> &'static [u8] {
        match self {
            Self::Plain => &[],
            Self::Htlc => &[1],
            Self::Returned => &[2],
            Self::ExitReturned => &[3],
        }
    }

    fn parse(code: &[u8]) -> Result<Self, EngineError> {
        match code {
            [] => Ok(Self::Plain),
            [1] => Ok(Self::Htlc),
            [2] => Ok(Self::Returned),
            [3] => Ok(Self::ExitReturned),
            _ => Err(EngineError::Malformed("stored maturity")),
        }
    }
}

impl Released {
    fn encode(&self) -> Vec<u8> {
        [self.sighash.as_slice(), &self.owner, &self.version.to_be_bytes(), self.terms.code()].concat()
    }

    fn decode(bytes: &[u8]) -> Result<Self, EngineError> {
        let malformed = || EngineError::Malformed("stored maturity");
        let (sighash, rest) = bytes.split_first_chunk::<32>().ok_or_else(malformed)?;
        let (owner, rest) = rest.split_first_chunk::<33>().ok_or_else(malformed)?;
        let (version, terms) = rest.split_first_chunk::<8>().ok_or_else(malformed)?;
        Ok(Self {
            sighash: *sighash,
            owner: *owner,
            version: u64::from_be_bytes(*version),
            terms: Terms::parse(terms)?,
        })
    }
}

/// Bytes of a maturity that name the output, and of the step after them ([`Maturity::to_bytes`]).
const OUTPUT: usize = 36;
const STEP: usize = 2;

pub(super) fn released(txn: &Txn<'_>, maturity: Maturity) -> Result<Option<Released>, EngineError> {
    match txn.record(&key(b"maturity/", &maturity.to_bytes()))? {
        Some(bytes) => Ok(Some(Released::decode(&bytes)?)),
        None => Ok(None),
    }
}

/// Whether what was signed for this output and came back would be valid earlier than at this maturity: completed by a
/// preimage or an exit transaction, it would beat whatever is signed for now (D6).
pub(super) fn returned_below(txn: &Txn<'_>, maturity: Maturity) -> Result<bool, EngineError> {
    let bytes = maturity.to_bytes();
    // Steps of one output lie together, in order.
    let (output, rest) = bytes.split_at(OUTPUT);
    for (name, record) in txn.scan_records(&key(b"maturity/", output))? {
        let step = name.len().checked_sub(rest.len()).and_then(|from| name.get(from..)).unwrap_or_default();
        let earlier = step.get(..STEP) < rest.get(..STEP);
        let terms = Released::decode(&record)?.terms;
        if earlier && matches!(terms, Terms::Returned | Terms::ExitReturned) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether `later` is the record of a maturity `known` whose HTLC came back.
pub(super) fn returned_since(known: &[u8], later: &[u8]) -> Result<bool, EngineError> {
    let (known, later) = (Released::decode(known)?, Released::decode(later)?);
    Ok(known.terms == Terms::Htlc && later == Released { terms: Terms::Returned, ..known })
}

pub(super) fn put_released(txn: &mut Txn<'_>, maturity: Maturity, released: &Released) {
    txn.put_record(&key(b"maturity/", &maturity.to_bytes()), released.encode());
}

/// Phase of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Voted YES.
    Prepared,
    /// Shares went out; ABORT is impossible.
    Released,
    /// Signed ABORT or NO.
    Refused,
    /// A proof of commit was applied, of a conditional operation the second decision, too.
    Applied,
    /// A proof of abort was applied.
    Aborted,
    /// A conditional operation after the proof of commit of its first decision (D8).
    Pending,
    /// Its second decision gave the leaves back.
    Returned,
}

impl Phase {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Prepared, "prepared"),
        (Self::Released, "released"),
        (Self::Refused, "refused"),
        (Self::Applied, "applied"),
        (Self::Aborted, "aborted"),
        (Self::Pending, "pending"),
        (Self::Returned, "returned"),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(p, _)| *p == self).map_or("", |(_, n)| n)
    }

    fn parse(name: &str) -> Result<Self, EngineError> {
        let found = Self::ALL.iter().find(|(_, n)| *n == name);
        found.map(|(p, _)| *p).ok_or(EngineError::Malformed("stored phase"))
    }
}

/// One attempt as the signer remembers it.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) phase: Phase,
    /// The canonical request with its ciphertexts: while undecided only.
    pub(super) request: Vec<u8>,
    /// SHA-256 of it, for ever; zeros for an attempt that was refused unseen.
    pub(super) digest: [u8; 32],
    pub(super) opened: Vec<wire::OpenedLeaf>,
    /// The first vote: YES, NO, or the ABORT of an attempt that was never seen.
    pub(super) vote: peer::Vote,
    /// ABORT after a YES. The YES stays: a proof of commit that it helped to dominates the ABORT (D1).
    pub(super) abort: Option<peer::Vote>,
    pub(super) proof: Option<peer::ProofOfCommit>,
}

impl Attempt {
    /// The signer's last word.
    pub(super) fn word(&self) -> &peer::Vote {
        self.abort.as_ref().unwrap_or(&self.vote)
    }
}

fn attempt_key(operation: &OperationId, attempt: u32) -> Vec<u8> {
    [b"op/".as_slice(), operation.as_bytes(), &attempt.to_be_bytes()].concat()
}

pub(super) fn attempt(
    txn: &Txn<'_>,
    operation: &OperationId,
    attempt: u32,
) -> Result<Option<Attempt>, EngineError> {
    let Some(bytes) = txn.record(&attempt_key(operation, attempt))? else { return Ok(None) };
    let entry = wire::JournalEntry::decode(bytes.as_slice())?;
    let digest = txn.record(&[b"digest/".as_slice(), &attempt_key(operation, attempt)].concat())?;
    let digest = digest.and_then(|d| d.try_into().ok()).unwrap_or([0; 32]);
    let opened = txn.record(&[b"opened/".as_slice(), &attempt_key(operation, attempt)].concat())?;
    let opened = match opened {
        Some(bytes) => wire::PrepareResponse::decode(bytes.as_slice())?.opened,
        None => Vec::new(),
    };
    let abort = txn.record(&[b"abort/".as_slice(), &attempt_key(operation, attempt)].concat())?;
    let abort = abort.map(|bytes| peer::Vote::decode(bytes.as_slice())).transpose()?;
    Ok(Some(Attempt {
        phase: Phase::parse(&entry.kind)?,
        request: entry.operation,
        digest,
        opened,
        vote: entry.vote.ok_or(EngineError::Malformed("stored vote"))?,
        abort,
        proof: entry.proof,
    }))
}

pub(super) fn put_attempt(txn: &mut Txn<'_>, operation: &OperationId, number: u32, attempt: &Attempt) {
    let entry = wire::JournalEntry {
        sequence: 0,
        kind: attempt.phase.name().to_owned(),
        operation_id: operation.as_bytes().to_vec(),
        attempt: number,
        vote: Some(attempt.vote.clone()),
        proof: attempt.proof.clone(),
        operation: attempt.request.clone(),
        ..wire::JournalEntry::default()
    };
    txn.put_record(&attempt_key(operation, number), entry.encode_to_vec());
    txn.put_record(
        &[b"digest/".as_slice(), &attempt_key(operation, number)].concat(),
        attempt.digest.to_vec(),
    );
    if let Some(abort) = &attempt.abort {
        txn.put_record(
            &[b"abort/".as_slice(), &attempt_key(operation, number)].concat(),
            abort.encode_to_vec(),
        );
    }
    let opened = wire::PrepareResponse { vote: None, opened: attempt.opened.clone() };
    txn.put_record(
        &[b"opened/".as_slice(), &attempt_key(operation, number)].concat(),
        opened.encode_to_vec(),
    );
}
