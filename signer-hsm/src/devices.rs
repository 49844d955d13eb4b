//! The devices with roots, while the signer runs: one that was away joins again, one that retires is cleared,
//! a new one is loaded.

mod fleet;
mod keys;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use spark_signer::{
    engine::{DeviceReport, Engine, EngineError},
    vault::{DeviceId, DeviceState, TokenError},
};
use tokio::{task::JoinHandle, time::MissedTickBehavior};

pub use fleet::{Condition, DeviceError, Fleet, hold_pins};
pub use keys::{KeysStuck, tend_keys};

use crate::worker::{NotDone, Worker};

/// Between two looks at devices that are away.
const INTERVAL: Duration = Duration::from_secs(5);

/// Cares until the engine ends.
pub async fn tend(fleet: Arc<Fleet>, worker: Worker) {
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
            Err(NotDone::Sealed) => continue,
            Err(NotDone::Overloaded(_)) => return,
        };
        let retires = !locked && retire(&fleet, &worker, &reports).await;
        let mut join = Vec::new();
        for report in reports.iter().filter(|report| report.status.state == DeviceState::Away) {
            if !report.retired && answers(&fleet, report, &mut looks).await {
                join.push(report.status.id);
            }
        }
        // The engine itself asks those that answer when it is unlocked.
        if !locked && (retires || !join.is_empty()) {
            // One that is loaded later may claim less than the others.
            let claim = fleet.delete_claim().as_str();
            let heal = move |engine: &mut Engine| {
                engine.set_delete_claim(claim);
                engine.heal_devices(&join)
            };
            match worker.care(heal).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "a device does not join"),
                Err(NotDone::Sealed) => {}
                Err(NotDone::Overloaded(_)) => return,
            }
        }
    }
}

/// Begins, or goes on with, what the configuration or a person asks for. True if a device retires.
async fn retire(fleet: &Fleet, worker: &Worker, reports: &[DeviceReport]) -> bool {
    let mut any = false;
    for report in reports.iter().filter(|report| report.member) {
        let id = report.status.id;
        if !report.retired && !fleet.retires(id) {
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
    fleet: &Fleet,
    report: &DeviceReport,
    looks: &mut BTreeMap<DeviceId, JoinHandle<Result<(), TokenError>>>,
) -> bool {
    let id = report.status.id;
    let Some(look) = fleet.look(id).filter(|_| !fleet.retires(id)) else { return false };
    if let Some(trouble) = &report.status.trouble {
        tracing::debug!(%trouble, device = %id, "device is away");
    }
    let look = looks.entry(id).or_insert_with(|| tokio::task::spawn_blocking(look));
    match tokio::time::timeout(INTERVAL, &mut *look).await {
        Err(_) => false,
        Ok(result) => {
            looks.remove(&id);
            matches!(result, Ok(Ok(())))
        }
    }
}

/// Why a device does not join the running signer.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// It is not loaded.
    #[error(transparent)]
    Load(#[from] DeviceError),
    /// It does not answer.
    #[error("device {0} does not answer: {1}")]
    Silent(DeviceId, String),
    /// The engine does not take it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine cannot be asked.
    #[error(transparent)]
    NotDone(#[from] NotDone),
}

impl AddError {
    /// Stable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Load(error) => error.condition.reason(),
            Self::Silent(..) => "DEVICE_AWAY",
            Self::Engine(error) => error.reason(),
            Self::NotDone(NotDone::Sealed) => "SIGNER_SEALED",
            Self::NotDone(NotDone::Overloaded(_)) => "OVERLOADED",
        }
    }
}

/// Loads a device that the configuration names by now and lets it join.
pub async fn add(fleet: &Arc<Fleet>, worker: &Worker, id: DeviceId) -> Result<(), AddError> {
    let silent = |error: &dyn std::fmt::Display| AddError::Silent(id, error.to_string());
    let loader = Arc::clone(fleet);
    // Libraries may be slow.
    let (device, counted) = tokio::task::spawn_blocking(move || loader.load_again(id))
        .await
        .map_err(|error| silent(&error))??;
    let look = tokio::task::spawn_blocking(move || device.revive_now());
    let look = tokio::time::timeout(6 * INTERVAL, look).await.map_err(|_| silent(&"it hangs"))?;
    look.map_err(|error| silent(&error))?.map_err(|error| silent(&error))?;
    let claim = fleet.delete_claim().as_str();
    worker.care(move |engine| engine.add_device(id, counted, claim)).await??;
    Ok(())
}
