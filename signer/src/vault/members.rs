//! Which devices take part: joining, retiring, losing one.
//!
//! A member is a device whose roots must be gone before anything counts as destroyed. The list is in the vault, not in
//! the configuration: a device that is left out there is not forgotten here.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::commit::{CommitError, Committed};
use super::devices::{Device, DeviceState, DeviceStatus};
use super::error::OpenError;
use super::open::Vault;
use super::token::{DeviceId, RootToken, TokenError};
use super::tree::OpenPages;
use super::txn::Changes;

const PREFIX: &[u8] = b"device/";

fn key(device: DeviceId) -> Vec<u8> {
    [PREFIX, &[device.0]].concat()
}

/// Record of a member: the epoch in which it joined. It holds no earlier root.
pub(super) fn member(device: DeviceId, epoch: u64) -> (Vec<u8>, Vec<u8>) {
    (key(device), epoch.to_be_bytes().to_vec())
}

impl Vault {
    pub(super) fn scan_members(&self) -> Result<BTreeSet<DeviceId>, OpenError> {
        let mut members = BTreeSet::new();
        self.store.scan(PREFIX, None, &mut |key, _| {
            members.extend(key.get(PREFIX.len()).copied().map(DeviceId));
            true
        })?;
        Ok(members)
    }

    /// Devices whose roots must be gone before anything counts as destroyed, and the epoch in which each joined.
    pub fn members(&self) -> Result<Vec<(DeviceId, u64)>, super::VaultError> {
        let joined = |id: &DeviceId| {
            let epoch =
                self.record(&key(*id))?.and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
            Ok((*id, epoch.ok_or(super::VaultError::Damaged("device record"))?))
        };
        self.members.iter().map(joined).collect()
    }

    /// How the devices stand. A member that is not configured is away.
    pub fn devices(&self) -> Vec<DeviceStatus> {
        let unknown = self.members.iter().filter(|id| self.device(**id).is_none());
        let away = |id: &DeviceId| DeviceStatus { id: *id, state: DeviceState::Away, trouble: None };
        let mut all: Vec<_> = self.devices.iter().map(Device::status).chain(unknown.map(away)).collect();
        all.sort_unstable_by_key(|device| device.id);
        all
    }

    fn device(&self, id: DeviceId) -> Option<&Device> {
        self.devices.iter().find(|device| device.id == id)
    }

    /// Offers a device, new or known, that [`Self::heal`] may let join. One that is there already is left alone.
    pub fn offer(&mut self, id: DeviceId, token: Arc<dyn RootToken>) {
        if self.device(id).is_none() {
            self.devices.push(Device::away(id, token, None));
        }
    }

    /// Lets these devices join, as far as they were away and answer again, and clears those that retire. True if one
    /// joined. What still keeps a device away is in its [`DeviceStatus`].
    pub fn heal(&mut self, join: &[DeviceId]) -> Result<bool, CommitError> {
        if !self.witnessed || self.cut_off {
            return Ok(false);
        }
        let current = self.head.root;
        let mut joined = Vec::new();
        for device in &mut self.devices {
            let result = match device.state {
                DeviceState::Serving => continue,
                DeviceState::Away if !join.contains(&device.id) => continue,
                DeviceState::Away => device.join(&current).map(|()| joined.push(device.id)),
                DeviceState::Retiring => device.destroy_all_but(&current, None).map(|_| ()),
            };
            device.trouble = result.err();
        }
        if joined.is_empty() {
            return Ok(false);
        }
        let new = joined.iter().filter(|id| !self.members.contains(id));
        let records =
            new.map(|id| member(*id, current.epoch)).map(|(key, value)| (key, Some(value))).collect();
        if let Err(error) = self.commit_records(records) {
            // No header names them yet, and none may before their record is there.
            let undone = |device: &&mut Device| joined.contains(&device.id) && device.is_serving();
            self.devices.iter_mut().filter(undone).for_each(|d| d.leave(TokenError::DeviceAway(d.id)));
            return Err(error);
        }
        // One that failed again in the commit is a member all the same: it may hold a root.
        self.members.extend(joined);
        Ok(true)
    }

    /// Ends a device's part: from now on the store does not open by it, and [`Self::heal`] destroys its roots. It stays
    /// a member until [`Self::forget`].
    pub fn retire(&mut self, id: DeviceId) -> Result<(), CommitError> {
        let others = self.devices.iter().filter(|device| device.id != id && device.is_serving()).count();
        let Some(device) = self.devices.iter_mut().find(|device| device.id == id) else { return Ok(()) };
        if device.state == DeviceState::Retiring {
            return Ok(());
        }
        if others == 0 {
            return Err(TokenError::DeviceAway(id).into());
        }
        device.leave(TokenError::DeviceAway(id));
        device.state = DeviceState::Retiring;
        // A header that it does not open, before its roots go.
        self.commit_records(Vec::new()).map(|_| ())
    }

    /// Ends a device's membership: its roots are confirmed to be gone, or a person says what became of it.
    pub fn forget(&mut self, id: DeviceId) -> Result<bool, CommitError> {
        if !self.members.contains(&id) || self.device(id).is_some_and(Device::is_serving) {
            return Ok(false);
        }
        self.commit_records(vec![(key(id), None)])?;
        self.members.remove(&id);
        self.devices.retain(|device| device.id != id);
        Ok(true)
    }

    fn commit_records(&mut self, records: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<Committed, CommitError> {
        let changes = Changes { records: records.into_iter().collect(), ..Changes::default() };
        self.commit(changes, &OpenPages::none())
    }
}
