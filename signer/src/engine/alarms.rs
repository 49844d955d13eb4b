//! Alarms: what a person must look at, and what a person has said of it.
//!
//! An alarm that speaks of this signer's own history is kept over a restart until somebody acknowledges it. One that
//! ends with its cause cannot be acknowledged. Evidence against an operator's log stops votes for that operator, and
//! only its acknowledgement lets them go on.

use std::collections::BTreeMap;

use prost::Message as _;
use spark_proto::signer::v1 as wire;
use spark_rules::ids::OperatorIndex;

use super::{ALARMS, Engine, EngineError, cosign};
use crate::vault::{Txn, Vault};

/// They end with their cause.
const CONDITIONS: [&str; 3] = ["destroy_pending", "device_away", "rolled_back"];
/// They are known to this process only, so they must be written down.
const KEPT: [&str; 3] = ["abort_after_release", "both_proofs", "confirmer_differs"];
const DISTRUST: &str = "log_distrusted";

const RAISED: &[u8] = b"alarm/";
const EVIDENCE: &[u8] = b"alarm-evidence/";
const ACKNOWLEDGED: &[u8] = b"alarm-acknowledged/";
/// Most bytes of evidence that are kept of one alarm: a proof of commit with the most leaves is smaller.
const MOST_EVIDENCE: usize = 512 << 10;
/// Most bytes of a name and of a reason that a person gives.
const MOST_NAME: usize = 128;
const MOST_REASON: usize = 1024;

fn raised_key(kind: &str) -> Vec<u8> {
    [RAISED, kind.as_bytes()].concat()
}

/// The evidence of a kind, while its alarm is active.
fn evidence_key(kind: &str) -> Vec<u8> {
    [EVIDENCE, kind.as_bytes()].concat()
}

fn known(kind: &str) -> Option<&'static str> {
    ALARMS.iter().copied().find(|known| *known == kind)
}

/// One alarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// Stable name.
    pub kind: &'static str,
    /// Names this very one: the id of the evidence, or when it was raised.
    pub id: String,
    /// When it was raised, as this process knows; 0 if before it started.
    pub since: u64,
    /// Whom it speaks of.
    pub operator: Option<OperatorIndex>,
    /// What evidence says.
    pub reason: String,
    /// Both statements that contradict each other, as they were signed, where there are any; of `both_proofs` the proof
    /// that came second, hex.
    pub statements: Vec<String>,
    /// Whether a person can acknowledge it; otherwise it ends with its cause.
    pub acknowledgeable: bool,
}

/// What a person says of an alarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledge {
    /// Stable name.
    pub kind: String,
    /// As the list of alarms says.
    pub id: String,
    /// Whom it speaks of.
    pub operator: Option<u16>,
    /// Who, by name.
    pub by: String,
    /// The user that the system says it was.
    pub uid: u32,
    /// Why it is over.
    pub reason: String,
}

/// Active alarms with the time at which each was raised, and how many of each kind were acknowledged.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    active: BTreeMap<&'static str, u64>,
    acknowledged: BTreeMap<&'static str, u64>,
    /// To be written down with the next batch that becomes durable, each with its evidence.
    unwritten: BTreeMap<&'static str, Vec<u8>>,
}

impl Alarms {
    /// Those of earlier processes.
    pub(super) fn of(vault: &Vault) -> Self {
        let mut alarms = Self::default();
        // It was read a moment ago, when the vault was opened.
        for (key, value) in vault.scan_records(RAISED, None, usize::MAX).unwrap_or_default() {
            let kind = key.strip_prefix(RAISED).and_then(|kind| std::str::from_utf8(kind).ok());
            if let (Some(kind), Ok(since)) = (kind.and_then(known), value.as_slice().try_into()) {
                alarms.active.insert(kind, u64::from_be_bytes(since));
            }
        }
        for (_, value) in vault.scan_records(ACKNOWLEDGED, None, usize::MAX).unwrap_or_default() {
            if let Ok(said) = wire::AlarmAcknowledgement::decode(value.as_slice()) {
                alarms.count(&said);
            }
        }
        alarms
    }

    fn count(&mut self, said: &wire::AlarmAcknowledgement) {
        if let Some(kind) = known(&said.kind) {
            let count = self.acknowledged.entry(kind).or_default();
            *count = count.saturating_add(1);
        }
    }

    pub(super) fn raise(&mut self, kind: &'static str, now: u64) {
        self.raise_over(kind, now, Vec::new());
    }

    /// With the message that shows it, encoded; none if empty. The first one is kept while the alarm is active, and none
    /// that is larger than [`MOST_EVIDENCE`].
    pub(super) fn raise_over(&mut self, kind: &'static str, now: u64, evidence: Vec<u8>) {
        if self.active.contains_key(kind) {
            return;
        }
        self.active.insert(kind, now);
        if KEPT.contains(&kind) {
            let kept = if evidence.len() <= MOST_EVIDENCE { evidence } else { Vec::new() };
            self.unwritten.insert(kind, kept);
        }
    }

    pub(super) fn end(&mut self, kind: &str) {
        self.active.remove(kind);
        self.unwritten.remove(kind);
    }

    pub(super) fn kinds(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.active.keys().copied()
    }

    /// Writes down what must outlive the process. It can wait while the vault is read-only.
    pub(super) fn keep(&self, txn: &mut Txn<'_>) {
        if !txn.committed().is_witnessed() {
            return;
        }
        for (kind, evidence) in &self.unwritten {
            if let Some(since) = self.active.get(kind) {
                txn.put_record(&raised_key(kind), since.to_be_bytes().to_vec());
            }
            // What an earlier alarm of the kind left is not evidence of this one.
            if evidence.is_empty() {
                txn.delete_record(&evidence_key(kind));
            } else {
                txn.put_record(&evidence_key(kind), evidence.clone());
            }
        }
    }

    /// What [`Self::keep`] wrote is durable.
    pub(super) fn kept(&mut self) {
        self.unwritten.clear();
    }
}

impl Engine {
    /// All active alarms; of distrusted logs one for each operator.
    pub fn list_alarms(&mut self) -> Result<Vec<Alarm>, EngineError> {
        let txn = self.vault.begin();
        let evidence = |kind: &str| Ok::<_, EngineError>(txn.record(&evidence_key(kind))?.map(hex::encode));
        let mut list: Vec<Alarm> = self
            .shared
            .alarms
            .active
            .iter()
            .filter(|(kind, _)| **kind != DISTRUST)
            .map(|(kind, since)| {
                Ok(Alarm {
                    kind,
                    id: since.to_string(),
                    since: *since,
                    operator: None,
                    reason: String::new(),
                    statements: evidence(kind)?.into_iter().collect(),
                    acknowledgeable: !CONDITIONS.contains(kind),
                })
            })
            .collect::<Result<_, EngineError>>()?;
        for (operator, evidence) in self.shared.distrusted(&txn)? {
            list.push(Alarm {
                kind: DISTRUST,
                id: hex::encode(cosign::evidence_id(&evidence)),
                since: self.shared.alarms.active.get(DISTRUST).copied().unwrap_or(0),
                operator: Some(operator),
                statements: [evidence.before, evidence.after].into_iter().filter(|s| !s.is_empty()).collect(),
                reason: evidence.reason,
                acknowledgeable: true,
            });
        }
        Ok(list)
    }

    /// What persons have said, in the order in which they did.
    pub fn acknowledgements(&self) -> Result<Vec<wire::AlarmAcknowledgement>, EngineError> {
        let records = self.vault.scan_records(ACKNOWLEDGED, None, usize::MAX)?;
        records.iter().map(|(_, value)| Ok(wire::AlarmAcknowledgement::decode(value.as_slice())?)).collect()
    }

    /// How many alarms of each kind were acknowledged since the ceremony.
    pub fn acknowledged(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.shared.alarms.acknowledged.iter().map(|(kind, count)| (*kind, *count))
    }

    /// Records that a person has dealt with an alarm, and ends it; votes for an operator whose log was distrusted go
    /// on. Repeated, it gives the first answer.
    pub fn acknowledge(
        &mut self,
        said: Acknowledge,
        now: u64,
    ) -> Result<wire::AlarmAcknowledgement, EngineError> {
        self.shared.heard()?;
        let plain = |text: &str, most: usize| {
            !text.trim().is_empty() && text.len() <= most && !text.chars().any(char::is_control)
        };
        if !plain(&said.by, MOST_NAME) {
            return Err(EngineError::Malformed("by"));
        }
        if !plain(&said.reason, MOST_REASON) {
            return Err(EngineError::Malformed("reason"));
        }
        let kind = known(&said.kind).ok_or(EngineError::Malformed("kind"))?;
        let operator = said.operator.map(u32::from);
        let active = self.list_alarms()?.into_iter().find(|alarm| {
            alarm.kind == kind && alarm.id == said.id && alarm.operator.map(|of| of.get()) == said.operator
        });
        let Some(found) = active else {
            let same = |known: &wire::AlarmAcknowledgement| {
                known.kind == kind && known.id == said.id && known.operator == operator
            };
            return self.acknowledgements()?.into_iter().find(same).ok_or(EngineError::NoAlarm(kind));
        };
        if !found.acknowledgeable {
            return Err(EngineError::AlarmLasts(kind));
        }
        let mut record = wire::AlarmAcknowledgement {
            kind: kind.to_owned(),
            id: said.id,
            operator,
            raised_unix_seconds: found.since,
            unix_seconds: now,
            by: said.by,
            uid: said.uid,
            reason: said.reason,
            evidence: None,
        };
        let mut txn = self.vault.begin();
        if let Some(operator) = found.operator {
            record.evidence = cosign::distrust(&txn, operator)?;
            self.shared.settle(&mut txn, operator)?;
        }
        let name = [ACKNOWLEDGED, &now.to_be_bytes(), b"/", kind.as_bytes(), b"/", record.id.as_bytes()];
        txn.put_record(&name.concat(), record.encode_to_vec());
        txn.delete_record(&raised_key(kind));
        txn.delete_record(&evidence_key(kind));
        txn.commit().map_err(|error| EngineError::Commit(error.to_string()))?;
        self.shared.alarms.count(&record);
        if found.operator.is_none() || self.shared.distrusted(&self.vault.begin())?.is_empty() {
            self.shared.alarms.end(kind);
        }
        Ok(record)
    }
}
