//! Which devices take part: joining, retiring, losing one.
//!
//! A member is a device whose roots must be gone before anything counts as destroyed. The list is in the vault, not in
//! the configuration: a device that is left out there is not forgotten here.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::commit::{CommitError, Committed};
use super::devices::{Device, DeviceState, DeviceStatus};
use super::error::{OpenError, VaultError};
use super::open::Vault;
use super::token::{DeviceId, RootId, RootToken, TokenError};
use super::tree::OpenPages;
use super::txn::Changes;

const PREFIX: &[u8] = b"device/";

fn key(device: DeviceId) -> Vec<u8> {
    [PREFIX, &[device.0]].concat()
}

/// Which device it is; see [`RootToken::fingerprint`].
pub(super) type Fingerprint = [u8; 32];

/// Record of a member: the epoch in which it joined (it holds no earlier root) and which device it is.
pub(super) fn member(device: DeviceId, epoch: u64, fingerprint: &Fingerprint) -> (Vec<u8>, Vec<u8>) {
    (key(device), [epoch.to_be_bytes().as_slice(), fingerprint].concat())
}

fn decode(value: &[u8]) -> Option<(u64, Fingerprint)> {
    let (epoch, fingerprint) = value.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*epoch), fingerprint.try_into().ok()?))
}

/// The fingerprints of devices that are all there; one under two numbers is refused.
pub(super) fn distinct(
    devices: &[(DeviceId, Arc<dyn RootToken>)],
) -> Result<BTreeMap<DeviceId, Fingerprint>, TokenError> {
    let mut members = BTreeMap::new();
    for (id, device) in devices {
        let fingerprint = identify(&members, *id, &**device)?;
        members.insert(*id, fingerprint);
    }
    Ok(members)
}

/// The fingerprint of a device, if it is the one that bears its number.
fn identify(
    members: &BTreeMap<DeviceId, Fingerprint>,
    id: DeviceId,
    token: &dyn RootToken,
) -> Result<Fingerprint, TokenError> {
    let found = token.fingerprint()?;
    if members.get(&id).is_some_and(|known| *known != found) {
        return Err(TokenError::WrongAnswer("another device has this one's number"));
    }
    if members.iter().any(|(other, known)| *other != id && *known == found) {
        return Err(TokenError::WrongAnswer("one device has two numbers"));
    }
    Ok(found)
}

impl Vault {
    pub(super) fn scan_members(&self) -> Result<BTreeMap<DeviceId, Fingerprint>, OpenError> {
        let mut members = BTreeMap::new();
        let mut broken = false;
        self.store.scan(PREFIX, None, &mut |key, value| {
            match (key.get(PREFIX.len()..), decode(value)) {
                (Some([id]), Some((_, fingerprint))) => drop(members.insert(DeviceId(*id), fingerprint)),
                _ => broken = true,
            }
            true
        })?;
        if broken { Err(OpenError::RecordsBroken) } else { Ok(members) }
    }

    /// Whether those that serve are the devices that they are taken for.
    pub(super) fn check_devices(&mut self) -> Result<(), OpenError> {
        for device in self.devices.iter_mut().filter(|device| device.is_serving()) {
            match identify(&self.members, device.id, &*device.token) {
                Ok(_) => {}
                Err(error @ TokenError::WrongAnswer(_)) => return Err(error.into()),
                Err(error) => device.leave(error),
            }
        }
        Ok(())
    }

    /// Makes the vault writable and destroys the roots that a crash left behind: older ones to finish a
    /// deletion, a newer one because it was never committed. Call it only when every peer's witnessed
    /// position is at or below [`Self::position`]. Every device must answer, or a person must have said that the
    /// vault may go on without it: a copy of the store could go on elsewhere by a device that is not asked here.
    pub fn confirm_witnessed(&mut self) -> Result<(), TokenError> {
        if self.cut_off {
            // The header on disk may be a later one than that in memory, and its root must not be swept away.
            return Err(TokenError::Unavailable("store must be opened again".into()));
        }
        let away = |id: &DeviceId| self.devices.iter().all(|device| device.id != *id);
        if let Some(missing) = self.members.keys().find(|id| away(id) && !self.start_without.contains(id)) {
            return Err(TokenError::DeviceAway(*missing));
        }
        let current = self.head.root;
        for device in self.devices.iter_mut().filter(|device| self.members.contains_key(&device.id)) {
            let keep = device.wrapped.then_some(&current);
            let result = identify(&self.members, device.id, &*device.token).and_then(|_| {
                if device.is_serving() {
                    return device.finish(&current);
                }
                // What is on it is of the past, or of another copy of this store; unless the header opens by it.
                match device.destroy_all_but(&current, keep)? {
                    true => device.serve(),
                    false if device.wrapped => return Err(TokenError::RootMissing(current)),
                    false => device.trouble = None,
                }
                Ok(())
            });
            match result {
                Ok(()) => {}
                Err(TokenError::Unavailable(_)) if !self.start_without.contains(&device.id) => {
                    return Err(TokenError::DeviceAway(device.id));
                }
                Err(error) if !self.start_without.contains(&device.id) => return Err(error),
                Err(error) => device.leave(error),
            }
        }
        if !self.devices.iter().any(Device::is_serving) {
            return Err(TokenError::Unavailable("no device serves".into()));
        }
        self.witnessed = true;
        Ok(())
    }

    /// Devices whose roots must be gone before anything counts as destroyed, and the epoch in which each joined.
    pub fn members(&self) -> Result<Vec<(DeviceId, u64)>, VaultError> {
        let joined = |id: &DeviceId| {
            let member = self.record(&key(*id))?.and_then(|value| decode(&value));
            Ok((*id, member.ok_or(VaultError::Damaged("device record"))?.0))
        };
        self.members.keys().map(joined).collect()
    }

    /// Which device bears a number, for who looks at it from elsewhere.
    pub fn fingerprint_of(&self, id: DeviceId) -> Option<[u8; 32]> {
        self.members.get(&id).copied()
    }

    /// How the devices stand. A member that is not configured is away.
    pub fn devices(&self) -> Vec<DeviceStatus> {
        let unknown = self.members.keys().filter(|id| self.device(**id).is_none());
        let away = |id: &DeviceId| DeviceStatus { id: *id, state: DeviceState::Away, trouble: None };
        let mut all: Vec<_> = self.devices.iter().map(Device::status).chain(unknown.map(away)).collect();
        all.sort_unstable_by_key(|device| device.id);
        all
    }

    /// The roots that a device shows now.
    pub fn roots_on(&self, id: DeviceId) -> Result<Vec<RootId>, TokenError> {
        self.device(id).ok_or(TokenError::DeviceAway(id))?.token.roots()
    }

    fn device(&self, id: DeviceId) -> Option<&Device> {
        self.devices.iter().find(|device| device.id == id)
    }

    /// Offers a device as opening the vault with it would: [`Self::heal`] may let it join.
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
        let mut joined = BTreeMap::new();
        for device in &mut self.devices {
            let known = || identify(&self.members, device.id, &*device.token);
            let result = match device.state {
                DeviceState::Serving => continue,
                DeviceState::Away if !join.contains(&device.id) => continue,
                // The header must not open by it any more before its roots go.
                DeviceState::Retiring if device.wrapped => continue,
                DeviceState::Away => known().and_then(|fingerprint| {
                    device.join(&current)?;
                    joined.insert(device.id, fingerprint);
                    Ok(())
                }),
                DeviceState::Retiring => {
                    known().and_then(|_| device.destroy_all_but(&current, None).map(|_| ()))
                }
            };
            device.trouble = result.err();
        }
        if joined.is_empty() {
            return Ok(false);
        }
        let new = joined.iter().filter(|(id, _)| !self.members.contains_key(id));
        let records = new
            .map(|(id, fingerprint)| member(*id, current.epoch, fingerprint))
            .map(|(key, value)| (key, Some(value)))
            .collect();
        if let Err(error) = self.commit_records(records) {
            // No header names them yet, and none may before their record is there.
            let undone = |device: &&mut Device| joined.contains_key(&device.id) && device.is_serving();
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
        // A header that it does not open, before its roots go. If there is none, it is only away.
        self.commit_records(Vec::new())?;
        if let Some(device) = self.devices.iter_mut().find(|device| device.id == id && !device.wrapped) {
            device.state = DeviceState::Retiring;
        }
        Ok(())
    }

    /// Ends a device's membership. Only for one whose roots are confirmed to be gone.
    pub fn forget(&mut self, id: DeviceId) -> Result<bool, CommitError> {
        if !self.members.contains_key(&id) || self.device(id).is_some_and(Device::is_serving) {
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
