//! Care for the devices while the signer runs: one that was away joins again, one that retires is cleared.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use spark_signer::{
    engine::DeviceReport,
    vault::{DeviceId, DeviceState, Devices, RootToken, TokenError},
};
use tokio::{task::JoinHandle, time::MissedTickBehavior};

use crate::{
    config::Config,
    metrics::HsmMetrics,
    token::{DeleteClaim, Observed, Pkcs11Token, RootDevice},
    worker::Worker,
};

/// Between two looks at devices that are away.
const INTERVAL: Duration = Duration::from_secs(5);

/// A device as the configuration has it.
struct Configured {
    device: Arc<RootDevice>,
    /// Counts the calls.
    counted: Arc<dyn RootToken>,
    retire: bool,
}

/// The configured devices besides the first one.
pub struct Fleet {
    devices: BTreeMap<DeviceId, Configured>,
    first: Arc<RootDevice>,
    start_without: Vec<u8>,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.devices.keys()).finish()
    }
}

impl Fleet {
    /// Loads their modules. None of them needs to be there.
    pub fn load(config: &Config, first: &Pkcs11Token, metrics: &HsmMetrics) -> Result<Self, TokenError> {
        let mut devices = BTreeMap::new();
        for device in &config.token.devices {
            let loaded = Arc::new(RootDevice::load(device, config.token.security)?);
            let counted = Arc::new(Observed::new(Arc::clone(&loaded), metrics.clone()));
            let configured = Configured { device: loaded, counted, retire: device.retire };
            devices.insert(DeviceId(device.id), configured);
        }
        let start_without = config.token.start_without.clone();
        Ok(Self { devices, first: first.device(), start_without })
    }

    /// What the vault opens with.
    pub fn devices(&self, first: impl Into<Devices>) -> Devices {
        // Also one that retires: it is a member until its roots are gone.
        self.devices
            .iter()
            .fold(first.into(), |devices, (id, device)| devices.with(*id, Arc::clone(&device.counted)))
            .start_without(self.start_without.iter().copied().map(DeviceId))
    }

    /// What may be said of a destruction: the least that holds for any device.
    pub fn delete_claim(&self) -> DeleteClaim {
        let claims = self.devices.values().map(|device| device.device.profile().delete_claim);
        claims.fold(self.first.profile().delete_claim, DeleteClaim::least)
    }

    /// Cares until the engine ends.
    pub async fn tend(self, worker: Worker) {
        if self.devices.is_empty() {
            return;
        }
        let mut looks: BTreeMap<DeviceId, JoinHandle<Result<(), TokenError>>> = BTreeMap::new();
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (locked, reports) = match worker.care(|engine| (engine.is_locked(), engine.devices())).await {
                Ok((locked, Ok(reports))) => (locked, reports),
                Ok((_, Err(error))) => {
                    tracing::error!(%error, "devices");
                    continue;
                }
                Err(_) => return,
            };
            let retires = !locked && self.retire(&worker, &reports).await;
            let mut join = Vec::new();
            for report in reports.iter().filter(|report| report.status.state == DeviceState::Away) {
                if self.answers(report, &mut looks).await {
                    join.push(report.status.id);
                }
            }
            // The engine itself asks those that answer when it is unlocked.
            if !locked && (retires || !join.is_empty()) {
                match worker.care(move |engine| engine.heal_devices(&join)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::warn!(%error, "a device does not join"),
                    Err(_) => return,
                }
            }
        }
    }

    /// Begins what the configuration asks for. True if a device retires.
    async fn retire(&self, worker: &Worker, reports: &[DeviceReport]) -> bool {
        let mut any = false;
        for report in reports.iter().filter(|report| report.member) {
            let id = report.status.id;
            if !self.devices.get(&id).is_some_and(|device| device.retire) {
                continue;
            }
            any = true;
            if report.status.state != DeviceState::Retiring
                && let Ok(Err(error)) = worker.care(move |engine| engine.retire_device(id)).await
            {
                tracing::warn!(%error, device = %id, "a device does not retire");
            }
        }
        any
    }

    /// Whether a device that was away answers now. A library may hang, so each look has a thread of its own and is not
    /// repeated before it ends.
    async fn answers(
        &self,
        report: &DeviceReport,
        looks: &mut BTreeMap<DeviceId, JoinHandle<Result<(), TokenError>>>,
    ) -> bool {
        let id = report.status.id;
        let device = match self.devices.get(&id) {
            Some(device) if device.retire => return false,
            Some(device) => &device.device,
            None if id == DeviceId(0) => &self.first,
            None => return false,
        };
        if let Some(trouble) = &report.status.trouble {
            tracing::debug!(%trouble, device = %id, "device is away");
        }
        let look = looks.entry(id).or_insert_with(|| {
            let device = Arc::clone(device);
            tokio::task::spawn_blocking(move || device.revive())
        });
        match tokio::time::timeout(INTERVAL, &mut *look).await {
            Err(_) => false,
            Ok(result) => {
                looks.remove(&id);
                matches!(result, Ok(Ok(())))
            }
        }
    }
}
