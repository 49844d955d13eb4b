//! What a commit does on the devices before its commit point.

use super::commit::CommitError;
use super::devices::{Device, Refusal, derive_checked};
use super::error::VaultError;
use super::failpoint::{FailPoint, Step};
use super::header::Head;
use super::seal::DataKey;
use super::token::{DeviceId, RootId, TokenError};

/// Why a commit goes no further.
pub(super) enum Stop {
    /// Nothing has changed.
    Failed(CommitError),
    /// The vault must be opened again.
    Over(CommitError),
}

impl From<VaultError> for Stop {
    fn from(error: VaultError) -> Self {
        Self::Failed(error.into())
    }
}

/// Who wants to know of every step, if anybody does.
#[derive(Clone, Copy)]
pub(super) struct Hook<'a>(Option<&'a dyn FailPoint>);

impl<'a> Hook<'a> {
    pub(super) const fn new(hook: Option<&'a dyn FailPoint>) -> Self {
        Self(hook)
    }

    pub(super) fn step(self, step: Step) -> Result<(), Stop> {
        match self.0 {
            Some(hook) if !hook.reached(step) => Err(Stop::Over(CommitError::CutOff(step))),
            _ => Ok(()),
        }
    }
}

/// The devices, for one commit. It may work on a thread of its own, but always alone.
pub(super) struct Hand<'a> {
    pub(super) devices: &'a mut [Device],
    pub(super) hook: Hook<'a>,
}

impl Hand<'_> {
    /// The key that every serving device's root makes of the head: of a new root, if the batch supersedes the `former`
    /// one.
    pub(super) fn header_keys(
        &mut self,
        head: &Head,
        former: Option<RootId>,
    ) -> Result<Vec<(DeviceId, DataKey)>, Stop> {
        self.hook.step(Step::DevicesAsked)?;
        if let Some(former) = former {
            self.on_serving(Some(Step::RootCreated), |device| device.next_root(&former, head.root))?;
        }
        let mut keys = Vec::with_capacity(self.devices.len());
        self.on_serving(None, |device| {
            let key = derive_checked(&*device.token, head).map_err(|error| match error {
                // It was there when this copy of the store was opened: another copy destroyed it.
                TokenError::RootMissing(_) => Refusal::TakenOver(Some(error)),
                error => Refusal::Failed(error),
            })?;
            keys.push((device.id, key));
            Ok(())
        })?;
        self.hook.step(Step::KeyDerived)?;
        if former.is_some() {
            self.on_serving(None, |device| Ok(device.token.sync()?))?;
            self.hook.step(Step::TokenSynced)?;
        }
        keys.retain(|(id, _)| self.devices.iter().any(|device| device.id == *id && device.is_serving()));
        Ok(keys)
    }

    /// Does something on every serving device, and passes a step after each. Those that fail are left behind, unless
    /// all do: then nothing has changed.
    fn on_serving(
        &mut self,
        step: Option<Step>,
        mut work: impl FnMut(&mut Device) -> Result<(), Refusal>,
    ) -> Result<(), Stop> {
        let mut failed: Vec<(&mut Device, TokenError)> = Vec::new();
        let mut served = false;
        for device in self.devices.iter_mut().filter(|device| device.is_serving()) {
            match work(device) {
                Ok(()) => {
                    served = true;
                    step.map_or(Ok(()), |step| self.hook.step(step))?;
                }
                Err(Refusal::Failed(error)) => failed.push((device, error)),
                Err(Refusal::TakenOver(error)) => {
                    return Err(Stop::Over(error.map_or(CommitError::MustReopen, CommitError::Token)));
                }
            }
        }
        if !served {
            let error = failed.into_iter().next().map(|(_, error)| error);
            let error = error.unwrap_or_else(|| TokenError::Unavailable("no device serves".into()));
            return Err(Stop::Failed(error.into()));
        }
        failed.into_iter().for_each(|(device, error)| device.leave(error));
        Ok(())
    }
}
