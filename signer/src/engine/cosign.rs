//! Witness of the other operators' deletion logs: follows each entry by entry, cosigns its head, and stops to trust an
//! operator whose own signatures contradict each other (D16, C2SP tlog-cosignature).
//!
//! Only what the operator signed counts as evidence. A host that relays wrong entries gets no cosignature, and that is
//! all it gets.

use prost::Message as _;
use sha2::{Digest as _, Sha256};
use spark_proto::{peer::v1::Receipt, signer::v1 as wire};
use spark_rules::{
    checkpoint::{Checkpoint, Contradiction},
    ids::{KeyshareId, OperatorIndex},
    receipt,
    witness::{self, Frontier},
};

use super::{EngineError, Shared, deletion_log::MAX_ENTRIES, ledger, repair};
use crate::vault::Txn;

/// A version that is retired twice, or never was.
const VERSION_REPEATED: &str = "VERSION_REPEATED";

fn key(prefix: &[u8], operator: OperatorIndex) -> Vec<u8> {
    [prefix, &operator.get().to_be_bytes()].concat()
}

/// Why this signer trusts an operator's log no more. A person who settles that takes it away.
pub(super) fn distrust(
    txn: &Txn<'_>,
    operator: OperatorIndex,
) -> Result<Option<wire::Distrust>, EngineError> {
    let Some(bytes) = txn.record(&key(b"log-distrust/", operator))? else { return Ok(None) };
    Ok(Some(wire::Distrust::decode(bytes.as_slice())?))
}

/// Names the evidence, for the person who settles it.
pub(super) fn evidence_id(evidence: &wire::Distrust) -> [u8; 32] {
    Sha256::digest(evidence.encode_to_vec()).into()
}

/// What is remembered of a log, decoded.
pub(super) struct Watched {
    pub(super) frontier: Frontier,
    pub(super) head: Option<(String, Checkpoint)>,
    root_epoch: u64,
    pub(super) life: u64,
    incarnation: Vec<u8>,
}

impl Shared {
    /// Evidence against operators that no person has settled here.
    pub(super) fn distrusted(
        &self,
        txn: &Txn<'_>,
    ) -> Result<Vec<(OperatorIndex, wire::Distrust)>, EngineError> {
        let mut found = Vec::new();
        for operator in self.federation.indices() {
            if let Some(evidence) = distrust(txn, operator)? {
                found.push((operator, evidence));
            }
        }
        Ok(found)
    }

    /// Refuses what an operator coordinates whose log contradicts itself.
    pub(super) fn trusted(&self, txn: &Txn<'_>, operator: OperatorIndex) -> Result<(), EngineError> {
        match distrust(txn, operator)? {
            Some(_) => Err(EngineError::Distrusted(operator.get())),
            None => Ok(()),
        }
    }

    /// Follows the log up to the checkpoint and cosigns that, or says from where on it must be shown more.
    pub(super) fn cosign_log(
        &mut self,
        txn: &mut Txn<'_>,
        request: &wire::CosignLogRequest,
    ) -> Result<wire::CosignLogResponse, EngineError> {
        self.unlocked()?;
        let operator = OperatorIndex::from_wire(request.operator)?;
        if operator == self.me {
            return Err(EngineError::Malformed("operator"));
        }
        self.unproven.acts(operator);
        let mut watched = self.watched(txn, operator)?;
        if let Some(evidence) = distrust(txn, operator)? {
            return Ok(refused(watched.frontier.size(), &evidence));
        }
        if let Some(approved) = self.approved.get(&operator)
            && watched.incarnation != approved.incarnation.as_bytes()
        {
            // A repaired signer's log begins anew, and the person who approved the repair said so.
            let life = watched.life.saturating_add(1);
            let incarnation = approved.incarnation.as_bytes().to_vec();
            let anew =
                wire::WatchedLog { life, incarnation: incarnation.clone(), ..wire::WatchedLog::default() };
            txn.put_record(&key(b"log-watched/", operator), anew.encode_to_vec());
            self.unproven.forget(operator);
            watched = Watched { frontier: Frontier::default(), head: None, root_epoch: 0, life, incarnation };
        }
        let head = Checkpoint::verify(&request.checkpoint, &self.federation, operator)?;
        if let Some((before, known)) = &watched.head
            && let Some(contradiction) = Contradiction::between(known, &head)
        {
            let evidence = wire::Distrust {
                reason: contradiction.reason().to_owned(),
                before: before.clone(),
                after: head.signed.clone(),
                entry: None,
                life: watched.life,
            };
            return Ok(self.condemn(txn, operator, watched.frontier.size(), &evidence));
        }
        let size = watched.frontier.size();
        let missing = head.size.checked_sub(size);
        let late = |(_, known): &(String, Checkpoint)| head.extension.is_older_than(&known.extension);
        // The newest head that was seen is the one to hold against later ones.
        let late = watched.head.as_ref().is_some_and(late);
        if late || request.from != size || missing != Some(request.entries.len() as u64) {
            return Ok(wire::CosignLogResponse { size, ..wire::CosignLogResponse::default() });
        }
        if request.entries.len() as u64 > MAX_ENTRIES {
            return Err(EngineError::Malformed("entries"));
        }
        for entry in &request.entries {
            bounded(entry)?;
            watched.frontier.push(&receipt::leaf(entry));
        }
        if watched.frontier.root() != head.root {
            return Err(EngineError::LogDiffers(operator.get()));
        }
        // From here on the operator's signature stands behind the entries.
        for (index, entry) in (size..).zip(&request.entries) {
            let Some(reason) = self.follow(txn, operator, &mut watched, entry)? else { continue };
            let evidence = wire::Distrust {
                reason: reason.to_owned(),
                before: watched.head.map(|(note, _)| note).unwrap_or_default(),
                after: head.signed,
                // Index and state are not in what was signed.
                entry: Some(Receipt { log_index: index, state: String::new(), ..entry.clone() }),
                life: watched.life,
            };
            return Ok(self.condemn(txn, operator, size, &evidence));
        }
        let record = wire::WatchedLog {
            size: head.size,
            frontier: watched.frontier.roots(),
            checkpoint: head.signed.clone(),
            root_epoch: watched.root_epoch,
            life: watched.life,
            incarnation: watched.incarnation,
        };
        // A head that only is signed anew needs no write.
        let says_more = watched.head.as_ref().is_none_or(|(_, known)| {
            head.size > known.size || head.extension.destroyed_before > known.extension.destroyed_before
        });
        if says_more {
            txn.put_record(&key(b"log-watched/", operator), record.encode_to_vec());
        }
        let time = self.now;
        let signature = self.token.sign_federation(&witness::cosigned_message(&head.text, time))?;
        let public = self.token.federation_public_key();
        let cosignature = witness::line(&self.federation, self.me, &public, time, &signature)
            .ok_or(EngineError::Malformed("cosignature"))?;
        Ok(wire::CosignLogResponse { size: head.size, cosignature, ..wire::CosignLogResponse::default() })
    }

    /// A person has settled the evidence: what was seen before is forgotten, and the log is followed from its beginning.
    pub(super) fn settle(&mut self, txn: &mut Txn<'_>, operator: OperatorIndex) -> Result<(), EngineError> {
        self.unproven.forget(operator);
        let watched = self.watched(txn, operator)?;
        let anew = wire::WatchedLog {
            life: watched.life.saturating_add(1),
            incarnation: watched.incarnation,
            ..wire::WatchedLog::default()
        };
        txn.delete_record(&key(b"log-distrust/", operator));
        txn.put_record(&key(b"log-watched/", operator), anew.encode_to_vec());
        Ok(())
    }

    pub(super) fn watched(&self, txn: &Txn<'_>, operator: OperatorIndex) -> Result<Watched, EngineError> {
        let Some(bytes) = txn.record(&key(b"log-watched/", operator))? else {
            return Ok(Watched {
                frontier: Frontier::default(),
                head: None,
                root_epoch: 0,
                life: 0,
                incarnation: Vec::new(),
            });
        };
        let record = wire::WatchedLog::decode(bytes.as_slice())?;
        let frontier = Frontier::new(record.size, &record.frontier);
        // Of an earlier federation file it may be: then it says nothing here.
        let head = Checkpoint::verify(&record.checkpoint, &self.federation, operator).ok();
        Ok(Watched {
            frontier: frontier.ok_or(EngineError::Malformed("stored frontier"))?,
            head: head.map(|head| (record.checkpoint, head)),
            root_epoch: record.root_epoch,
            life: record.life,
            incarnation: record.incarnation,
        })
    }

    pub(super) fn condemn(
        &mut self,
        txn: &mut Txn<'_>,
        operator: OperatorIndex,
        size: u64,
        evidence: &wire::Distrust,
    ) -> wire::CosignLogResponse {
        self.alarm("log_distrusted");
        self.unproven.forget(operator);
        txn.put_record(&key(b"log-distrust/", operator), evidence.encode_to_vec());
        refused(size, evidence)
    }

    /// Checks one entry against everything before it: epochs never go back, and each version of a key is retired once.
    fn follow(
        &self,
        txn: &mut Txn<'_>,
        operator: OperatorIndex,
        watched: &mut Watched,
        entry: &Receipt,
    ) -> Result<Option<&'static str>, EngineError> {
        if entry.root_epoch_before < watched.root_epoch || entry.root_epoch_after < entry.root_epoch_before {
            return Ok(Some(Contradiction::EpochWentBack.reason()));
        }
        let same_root = entry.root_epoch_after == entry.root_epoch_before;
        watched.root_epoch = entry.root_epoch_before;
        if entry.phase == receipt::UNUSED {
            // Names of keys that no keyshare depends on: there is nothing to remember of them.
            return match receipt::is_of_unused_keys(entry) {
                true => Ok(same_root.then_some(Contradiction::EpochWentBack.reason())),
                false => Err(EngineError::Malformed("entry of unused package keys")),
            };
        }
        let keyshare = KeyshareId::parse(&entry.keyshare_id)?;
        let live_key = [
            key(b"log-version/", operator).as_slice(),
            &watched.life.to_be_bytes(),
            b"/",
            keyshare.as_bytes(),
        ]
        .concat();
        let known = txn.record(&live_key)?.map(|bytes| decode_live(&bytes)).transpose()?;
        let (live, sealed) = known.unzip();
        // Every key is made by all signers: what is recorded of others stays in proportion to one's own keys.
        if live.is_none()
            && matches!(entry.phase.as_str(), "dkg" | receipt::REPAIR)
            && ledger::keyshare(txn, &keyshare)?.is_none()
        {
            // A repaired signer does not know the keys that its repair left out: so many, and no more.
            let count_key =
                [key(b"log-left-out/", operator).as_slice(), &watched.life.to_be_bytes()].concat();
            let seen = match txn.record(&count_key)? {
                Some(bytes) => u64::from_be_bytes(
                    bytes.as_slice().try_into().map_err(|_| EngineError::Malformed("stored count"))?,
                ),
                None => 0,
            };
            if seen >= repair::left_out(txn)? {
                return Err(EngineError::Unknown("keyshare of an entry"));
            }
            txn.put_record(&count_key, seen.saturating_add(1).to_be_bytes().to_vec());
        }
        let (retired, new) = (entry.retired_version, entry.new_version);
        let fits = match (entry.phase.as_str(), live) {
            ("dkg", None) => new == 0,
            // Only a staged tweak dies.
            ("abort", Some(live)) => retired == live && new == live,
            // Made again by the others: the life of this log begins with it.
            (receipt::REPAIR, None) => retired == new,
            ("dkg" | "abort" | receipt::REPAIR, _) | (_, None) => false,
            (_, Some(live)) => retired == live && live.checked_add(1) == Some(new),
        };
        if !fits || entry.live_versions != [new] {
            return Ok(Some(VERSION_REPEATED));
        }
        // A version dies with the root that sealed it, which is not older than the version. What was staged may have died
        // in the batch that another one's destruction ended.
        let destroys = !matches!(entry.phase.as_str(), "dkg" | receipt::REPAIR | "abort");
        if destroys && (same_root || sealed.is_some_and(|sealed| entry.root_epoch_before < sealed)) {
            return Ok(Some(Contradiction::EpochWentBack.reason()));
        }
        // An aborted attempt seals nothing anew.
        let sealed = if entry.phase == "abort" { sealed.unwrap_or_default() } else { entry.root_epoch_after };
        txn.put_record(&live_key, encode_live(new, sealed));
        Ok(None)
    }
}

/// What is remembered of a key in somebody else's log: its live version, and the epoch that sealed it at the earliest.
fn encode_live(version: u64, sealed: u64) -> Vec<u8> {
    [version.to_be_bytes(), sealed.to_be_bytes()].concat()
}

/// The reverse. Stores that were written before epochs were remembered hold the version alone.
fn decode_live(bytes: &[u8]) -> Result<(u64, u64), EngineError> {
    let malformed = || EngineError::Malformed("stored version");
    let (version, sealed) = bytes.split_first_chunk::<8>().ok_or_else(malformed)?;
    let sealed = match sealed {
        [] => 0,
        sealed => u64::from_be_bytes(sealed.try_into().map_err(|_| malformed())?),
    };
    Ok((u64::from_be_bytes(*version), sealed))
}

/// What no honest signer exceeds: entries of others are hashed, and may be kept as evidence.
fn bounded(entry: &Receipt) -> Result<(), EngineError> {
    let short = |bytes: &[u8]| bytes.len() <= 64;
    let fits = short(&entry.salt)
        && short(&entry.incarnation)
        && short(&entry.keyshare_id)
        && short(entry.leaf_id.as_bytes())
        && short(&entry.operation_id)
        && short(entry.phase.as_bytes())
        && short(&entry.retired_public_share)
        && short(&entry.new_public_share)
        && short(&entry.tweak_commitment)
        && short(&entry.root_id_before)
        && short(entry.delete_claim.as_bytes())
        && short(entry.package_kind.as_bytes())
        && entry.live_versions.len() <= 64
        && entry.package_keys.len() <= receipt::MAX_PACKAGE_KEYS
        && entry.package_keys.iter().all(|id| short(id));
    if fits { Ok(()) } else { Err(EngineError::Malformed("entry")) }
}

fn refused(size: u64, evidence: &wire::Distrust) -> wire::CosignLogResponse {
    wire::CosignLogResponse {
        size,
        cosignature: String::new(),
        distrust: evidence.reason.clone(),
        evidence: hex::encode(evidence_id(evidence)),
    }
}
