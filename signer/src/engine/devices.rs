//! The devices of this signer while it runs, and what each of them has destroyed.

use super::{Engine, EngineError, deletion_log};
use crate::vault::{CommitError, DeviceId, DeviceState, DeviceStatus};

/// One device, and how far its destructions are confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    /// How it stands.
    pub status: DeviceStatus,
    /// Whether nothing counts as destroyed before its roots are gone.
    pub member: bool,
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
                destroyed_before: destroyed_before.unwrap_or(0),
                status,
            }
        };
        Ok(txn.committed().devices().into_iter().map(report).collect())
    }

    /// Begins to end a device's part.
    pub fn retire_device(&mut self, id: DeviceId) -> Result<(), EngineError> {
        self.vault.retire(id).map_err(failed)
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
            self.shared.alarms.remove("destroy_pending");
        }
        let away = self.vault.devices().into_iter().any(|device| device.state == DeviceState::Away);
        if away && !self.is_locked() {
            self.shared.alarm("device_away");
        } else {
            self.shared.alarms.remove("device_away");
        }
    }
}
