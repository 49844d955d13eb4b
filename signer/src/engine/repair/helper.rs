//! The helpers' part: weighted shares split among them, and the sums for the repaired signer.

use std::collections::BTreeMap;

use rand_core::OsRng;
use spark_proto::signer::v1 as wire;
use spark_rules::{ids::OperatorIndex, point};
use zeroize::Zeroizing;

use super::{
    DELTAS, Helping, PROGRESS, SUM, agreement::commitments, delta_transcript, deltas_payload,
    progress_payload, sum_payload,
};
use crate::{
    ecies,
    engine::{
        EngineError, Shared,
        prepare::{keyshare_secret, read_scalar},
    },
    repair::Commitments,
    secret::SecretScalar,
    vault::Txn,
};

/// The scalars of one message: exactly `keys` of 32 bytes.
pub(in crate::engine) fn scalars(
    bytes: &Zeroizing<Vec<u8>>,
    keys: usize,
) -> Result<Vec<SecretScalar>, EngineError> {
    if Some(bytes.len()) != keys.checked_mul(32) {
        return Err(EngineError::Repair("a message has not one scalar per key"));
    }
    bytes
        .chunks_exact(32)
        .map(|chunk| {
            let mut fixed = Zeroizing::new([0u8; 32]);
            fixed.copy_from_slice(chunk);
            Ok(SecretScalar::from_bytes(&fixed)?)
        })
        .collect()
}

impl Shared {
    fn session(&mut self, id: &[u8]) -> Result<&mut Helping, EngineError> {
        let now = self.now;
        let mut sessions = self.repairs.helping.values_mut();
        let found = sessions.find(|session| session.ticket.session_id == id && now < session.ends);
        found.ok_or(EngineError::Repair("session is unknown"))
    }

    pub(in crate::engine) fn repair_split(
        &mut self,
        txn: &Txn<'_>,
        set: wire::RepairListingSet,
    ) -> Result<wire::RepairDeltas, EngineError> {
        self.unlocked()?;
        let session = self.session(&set.session_id)?;
        let (ticket, own) = (session.ticket.clone(), session.listing.clone());
        let listings = self.check_listings(&ticket, set.messages)?;
        if listings.get(&self.me) != Some(&own) {
            return Err(EngineError::Repair("own listing was altered"));
        }
        let agreed = self.agree(&ticket, &listings)?;
        let session = self.session(&set.session_id)?;
        if let Some((known, answer)) = &session.split {
            return if known.digest() == agreed.digest() {
                Ok(answer.clone())
            } else {
                Err(EngineError::Differs)
            };
        }
        if session.encryption.is_none() {
            return Err(EngineError::Repair("this signer is no helper"));
        }
        let helpers = self.helpers(&ticket)?;
        let mut points = Vec::new();
        let mut plain: BTreeMap<OperatorIndex, Zeroizing<Vec<u8>>> = BTreeMap::new();
        for to in helpers.operators() {
            plain.insert(*to, Zeroizing::new(Vec::with_capacity(agreed.keys.len().saturating_mul(32))));
        }
        for key in &agreed.keys {
            // Enough others agree on it; a helper whose own record differs does not lend its share to it.
            if !own.items.iter().any(|item| item.key == key.id.as_bytes() && item.value == key.value) {
                return Err(EngineError::Repair("own record differs from the others'"));
            }
            let share = read_scalar(txn, &keyshare_secret(&key.id, key.version))?;
            let split = helpers.split(self.me, &share, &mut OsRng)?;
            points.extend(split.commitments.values().map(|point| point.serialize().to_vec()));
            for (to, delta) in &split.deltas {
                if let Some(bytes) = plain.get_mut(to) {
                    bytes.extend_from_slice(&*delta.to_bytes());
                }
            }
        }
        let mut ciphertexts = BTreeMap::new();
        for (to, bytes) in &plain {
            let listing = listings.get(to).ok_or(EngineError::Repair("listings are not complete"))?;
            let key = point::parse("encryption_key", &listing.encryption_key)?;
            ciphertexts.insert(u32::from(to.get()), ecies::seal(&key, bytes, &mut OsRng)?);
        }
        let position = self.committed_position(txn);
        let mut answer = wire::RepairDeltas {
            session_id: ticket.session_id,
            sender: self.me.get().into(),
            agreement: agreed.digest().to_vec(),
            commitments: points,
            ciphertexts,
            position: Some(position.to_wire()),
            signature: Vec::new(),
        };
        answer.signature = self.sign_statement(&position, DELTAS, &deltas_payload(&answer))?;
        self.session(&set.session_id)?.split = Some((agreed, answer.clone()));
        Ok(answer)
    }

    pub(in crate::engine) fn repair_sum(
        &mut self,
        txn: &Txn<'_>,
        set: wire::RepairDeltaSet,
    ) -> Result<wire::RepairSum, EngineError> {
        self.unlocked()?;
        let session = self.session(&set.session_id)?;
        let ticket = session.ticket.clone();
        let split = session.split.clone();
        let (agreed, own) = split.ok_or(EngineError::Repair("session is not that far"))?;
        let deltas = self.check_deltas(&ticket, &agreed, set.messages)?;
        if deltas.get(&self.me) != Some(&own) {
            return Err(EngineError::Repair("own deltas were altered"));
        }
        let transcript = delta_transcript(&agreed, &deltas);
        let session = self.session(&set.session_id)?;
        if let Some(answer) = &session.sum {
            return if answer.transcript == transcript {
                Ok(answer.clone())
            } else {
                Err(EngineError::Differs)
            };
        }
        let helpers = self.helpers(&ticket)?;
        let me = self.me;
        let mut points: Vec<BTreeMap<OperatorIndex, Commitments>> = vec![BTreeMap::new(); agreed.keys.len()];
        let mut received: Vec<BTreeMap<OperatorIndex, SecretScalar>> =
            agreed.keys.iter().map(|_| BTreeMap::new()).collect();
        let encryption = self.session(&set.session_id)?.encryption.as_ref();
        let encryption = encryption.ok_or(EngineError::Repair("session is over"))?;
        for (sender, message) in &deltas {
            let parsed = commitments(message, helpers.operators(), agreed.keys.len())?;
            for ((key, points), parsed) in agreed.keys.iter().zip(&mut points).zip(parsed) {
                helpers.check_commitments(*sender, key.public_share(*sender)?, &parsed)?;
                points.insert(*sender, parsed);
            }
            let ciphertext = message.ciphertexts.get(&u32::from(me.get()));
            let ciphertext = ciphertext.ok_or(EngineError::Repair("deltas are not complete"))?;
            let plain = ecies::Envelope::parse(ciphertext)?.open(encryption)?;
            for (received, delta) in received.iter_mut().zip(scalars(&plain, agreed.keys.len())?) {
                received.insert(*sender, delta);
            }
        }
        let mut sums = Zeroizing::new(Vec::with_capacity(agreed.keys.len().saturating_mul(32)));
        for (received, points) in received.iter().zip(&points) {
            sums.extend_from_slice(&*helpers.sum(me, received, points)?.to_bytes());
        }
        let key = point::parse("encryption_key", &ticket.encryption_key)?;
        let position = self.committed_position(txn);
        let mut answer = wire::RepairSum {
            session_id: ticket.session_id,
            sender: me.get().into(),
            transcript: transcript.to_vec(),
            ciphertext: ecies::seal(&key, &sums, &mut OsRng)?,
            position: Some(position.to_wire()),
            signature: Vec::new(),
        };
        answer.signature = self.sign_statement(&position, SUM, &sum_payload(&answer))?;
        let session = self.session(&set.session_id)?;
        // The key that opens the deltas dies here (D14); what is left repeats the answer.
        session.encryption = None;
        session.sum = Some(answer.clone());
        Ok(answer)
    }

    /// The repaired signer stored the page: the leaves are free, the session is forgotten. A repeat is no error.
    pub(in crate::engine) fn repair_close(
        &mut self,
        progress: &wire::RepairProgress,
    ) -> Result<wire::RepairCloseResponse, EngineError> {
        let lost = self.known(progress.lost)?;
        let payload = progress_payload(progress);
        self.approved(lost, progress.position.as_ref(), PROGRESS, &payload, &progress.signature)?;
        if self.repairs.helping.get(&lost).is_some_and(|s| s.ticket.session_id == progress.session_id) {
            self.repairs.helping.remove(&lost);
        }
        Ok(wire::RepairCloseResponse {})
    }
}
