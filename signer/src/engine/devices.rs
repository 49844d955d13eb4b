//! The devices of this signer while it runs, and what each of them has destroyed.

use std::{collections::BTreeSet, sync::Arc};

use super::{Engine, EngineError, deletion_log};
use crate::vault::{CommitError, DeviceId, DeviceState, DeviceStatus, RootToken, Vault};

/// Devices whose part a person has ended. It outlives the restart and the membership, so that an entry that is left in
/// the configuration does not bring one back.
const RETIRED: &[u8] = b"device-retired/";

fn retired_key(device: DeviceId) -> Vec<u8> {
    [RETIRED, &[device.0]].concat()
}

pub(super) fn retired(vault: &Vault) -> BTreeSet<DeviceId> {
    // It was read a moment ago, when the vault was opened.
    let records = vault.scan_records(RETIRED, None, usize::MAX).unwrap_or_default();
    records.iter().filter_map(|(key, _)| key.last().copied().map(DeviceId)).collect()
}

/// One device, and how far its destructions are confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    /// How it stands.
    pub status: DeviceStatus,
    /// Whether nothing counts as destroyed before its roots are gone.
    pub member: bool,
    /// Whether a person has ended its part.
    pub retired: bool,
    /// Epoch before which every root is confirmed to be gone from it.
    pub destroyed_before: u64,
}

fn failed(error: CommitError) -> EngineError {
    EngineError::Commit(error.to_string())
}

impl Engine {
    /// All devices.
    pub fn devices(&mut self) -> Result<Vec<DeviceReport>, EngineError> {
        let txn = self.vault.begin();
        let members = deletion_log::members(&txn)?;
        let report = |status: DeviceStatus| {
            let destroyed_before = members.iter().find(|(id, _)| *id == status.id).map(|(_, epoch)| *epoch);
            DeviceReport {
                member: destroyed_before.is_some(),
                retired: self.shared.retired.contains(&status.id),
                destroyed_before: destroyed_before.unwrap_or(0),
                status,
            }
        };
        Ok(txn.committed().devices().into_iter().map(report).collect())
    }

    /// Begins to end a device's part; it goes on over a restart. One device must stay that serves.
    pub fn retire_device(&mut self, id: DeviceId) -> Result<(), EngineError> {
        self.shared.heard()?;
        let devices = self.vault.devices();
        if !devices.iter().any(|device| device.id == id) {
            return Err(EngineError::Device(id, "cannot retire"));
        }
        let serves = |device: &DeviceStatus| device.id != id && device.state == DeviceState::Serving;
        if !devices.iter().any(serves) {
            return Err(EngineError::Device(id, "is the last one that serves"));
        }
        if !self.shared.retired.contains(&id) {
            let mut txn = self.vault.begin();
            txn.put_record(&retired_key(id), vec![1]);
            txn.commit().map_err(failed)?;
            self.shared.retired.insert(id);
        }
        self.vault.retire(id).map_err(failed)
    }

    /// Lets a new device, or one that was retired and forgotten, join while the signer runs. Receipts say `claim` from
    /// now on, also if it joins later than in this call. Repeated, it changes nothing.
    pub fn add_device(
        &mut self,
        id: DeviceId,
        token: Arc<dyn RootToken>,
        claim: &str,
    ) -> Result<(), EngineError> {
        self.shared.heard()?;
        self.set_delete_claim(claim);
        if self.vault.devices().iter().any(|of| of.id == id && of.state == DeviceState::Retiring) {
            return Err(EngineError::Device(id, "is retiring"));
        }
        if self.shared.retired.contains(&id) {
            let mut txn = self.vault.begin();
            txn.delete_record(&retired_key(id));
            txn.commit().map_err(failed)?;
            self.shared.retired.remove(&id);
        }
        self.vault.offer(id, token);
        self.heal_devices(&[id])
    }

    /// What receipts say from now on of a destroyed key.
    pub fn set_delete_claim(&mut self, claim: &str) {
        claim.clone_into(&mut self.shared.delete_claim);
    }

    /// Lets these devices join that answer again, clears those that retire, and forgets these once their last root is
    /// confirmed to be gone. Nothing happens while the signer is locked.
    pub fn heal_devices(&mut self, join: &[DeviceId]) -> Result<(), EngineError> {
        if self.is_locked() {
            return Ok(());
        }
        self.vault.heal(join).map_err(failed)?;
        for report in self.devices()? {
            if report.status.state == DeviceState::Retiring && report.destroyed_before == u64::MAX {
                let mut txn = self.vault.begin();
                deletion_log::forget_device(&mut txn, report.status.id);
                txn.commit().map_err(failed)?;
                self.vault.forget(report.status.id).map_err(failed)?;
            }
        }
        self.note_devices();
        Ok(())
    }

    /// Raises or ends the alarms that speak of devices.
    pub(super) fn note_devices(&mut self) {
        if self.vault.destroy_pending().is_empty() {
            self.shared.alarms.end("destroy_pending");
        }
        let retired = &self.shared.retired;
        let away = |device: DeviceStatus| device.state == DeviceState::Away && !retired.contains(&device.id);
        let away = self.vault.devices().into_iter().any(away);
        if away && !self.is_locked() {
            self.shared.alarm("device_away");
        } else {
            self.shared.alarms.end("device_away");
        }
    }
}
