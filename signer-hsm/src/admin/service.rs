//! The calls.

use std::{sync::Arc, time::Duration};

use spark_proto::{
    admin::signer::v1::{self as wire, signer_admin_server::SignerAdmin},
    signer::v1 as signer,
};
use spark_signer::{
    engine::{self, DeviceReport, Engine, EngineError, Marks, Reply},
    vault::{DeviceId, DeviceState},
};
use tokio::{sync::watch, time::timeout};
use tonic::{Code, Request, Response, Status, transport::server::UdsConnectInfo};

use crate::{
    devices::{self, Fleet},
    service::{status, with_reason},
    worker::{NotDone, Overloaded, Progress, WeakWorker, now},
};

/// Longest wait that a caller may ask for.
const MOST_WAIT: u32 = 120;
/// Most entries of the log in one answer.
const MOST_ENTRIES: u64 = 4096;

/// `admin.signer.v1.SignerAdmin` over the engine's thread.
#[derive(Debug, Clone)]
pub struct Admin {
    operator: u16,
    worker: WeakWorker,
    progress: watch::Receiver<Progress>,
    fleet: Arc<Fleet>,
}

fn overloaded(error: Overloaded) -> Status {
    with_reason(Status::resource_exhausted(error.to_string()), "OVERLOADED")
}

fn not_done(error: NotDone) -> Status {
    match error {
        NotDone::Overloaded(error) => overloaded(error),
        NotDone::Sealed => status(&EngineError::SignerSealed),
    }
}

fn wait(seconds: u32) -> Duration {
    Duration::from_secs(seconds.min(MOST_WAIT).into())
}

fn device(report: &DeviceReport) -> wire::Device {
    wire::Device {
        id: report.status.id.0.into(),
        state: report.status.state.as_str().to_owned(),
        member: report.member,
        retired: report.retired,
        destroyed_before: report.destroyed_before,
        trouble: report.status.trouble.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

fn acknowledgement(said: signer::AlarmAcknowledgement) -> wire::Acknowledgement {
    wire::Acknowledgement {
        kind: said.kind,
        id: said.id,
        operator: said.operator,
        raised_unix_seconds: said.raised_unix_seconds,
        unix_seconds: said.unix_seconds,
        by: said.by,
        uid: said.uid,
        reason: said.reason,
    }
}

fn alarm(alarm: engine::Alarm) -> wire::Alarm {
    wire::Alarm {
        kind: alarm.kind.to_owned(),
        id: alarm.id,
        since_unix_seconds: alarm.since,
        operator: alarm.operator.map(|operator| operator.get().into()),
        reason: alarm.reason,
        statements: alarm.statements,
        acknowledgeable: alarm.acknowledgeable,
    }
}

fn marks(marks: Marks) -> wire::Marks {
    let seen = marks.seen.iter().map(|mark| wire::Seen {
        operator: mark.position.signer.get().into(),
        incarnation: hex::encode(mark.position.incarnation.as_bytes()),
        epoch: mark.position.root_epoch,
        sequence: mark.position.sequence,
    });
    wire::Marks {
        operator: marks.position.signer.get().into(),
        incarnation: hex::encode(marks.position.incarnation.as_bytes()),
        epoch: marks.position.root_epoch,
        sequence: marks.position.sequence,
        journal: marks.journal,
        destroyed_before: marks.destroyed_before,
        log_size: marks.log_size,
        seen: seen.collect(),
        checkpoint: marks.checkpoint,
    }
}

fn device_id(number: u32) -> Result<DeviceId, Status> {
    let id = u8::try_from(number).map(DeviceId);
    id.map_err(|_| with_reason(Status::invalid_argument("device must be below 256"), "FIELD_INVALID"))
}

impl Admin {
    /// Serves `worker`, and holds no handle that keeps it.
    pub const fn new(
        operator: u16,
        worker: WeakWorker,
        progress: watch::Receiver<Progress>,
        fleet: Arc<Fleet>,
    ) -> Self {
        Self { operator, worker, progress, fleet }
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, Status> {
        let worker = self.worker.upgrade().map_err(overloaded)?;
        worker.care(work).await.map_err(not_done)?.map_err(|error| status(&error))
    }

    async fn devices(&self) -> Result<Vec<wire::Device>, Status> {
        let reports = self.with(Engine::devices).await?;
        Ok(reports.iter().map(device).collect())
    }

    async fn status(&self) -> Result<wire::Status, Status> {
        let progress = self.progress.borrow().clone();
        let operator = self.operator.into();
        let sealed = wire::Status {
            operator,
            sealed: true,
            locked: true,
            epoch: progress.epoch,
            ..wire::Status::default()
        };
        if progress.sealed {
            return Ok(sealed);
        }
        let fleet = Arc::clone(&self.fleet);
        let read = move |engine: &mut Engine| {
            let reports = engine.devices()?;
            let serving = reports.iter().map(|report| &report.status);
            let serving = serving.filter(|status| status.state != DeviceState::Away).map(|status| status.id);
            let min_batch = fleet.min_batch(&serving.collect::<Vec<_>>());
            let devices = reports.iter().map(device).collect();
            let (destroyed_before, log_size) = (engine.destroyed_before()?, engine.log_size()?);
            let vault = engine.vault();
            Ok(wire::Status {
                operator,
                sealed: false,
                locked: engine.is_locked(),
                epoch: vault.epoch(),
                sequence: vault.sequence(),
                incarnation: hex::encode(vault.incarnation().as_bytes()),
                destroyed_before,
                log_size,
                secrets: vault.secret_count(),
                alarms: engine.alarms().map(str::to_owned).collect(),
                devices,
                min_batch_ms: min_batch.as_millis().try_into().unwrap_or(u64::MAX),
            })
        };
        self.with(read).await
    }

    fn audit<T>(&self, request: &Request<T>, what: &str) -> u32 {
        let info = request.extensions().get::<UdsConnectInfo>();
        let user = info.and_then(|info| info.peer_cred.as_ref()).map_or(u32::MAX, |user| user.uid());
        tracing::warn!(user, what, "administration");
        user
    }
}

#[tonic::async_trait]
impl SignerAdmin for Admin {
    async fn get_status(&self, _: Request<wire::GetStatusRequest>) -> Result<Response<wire::Status>, Status> {
        Ok(Response::new(self.status().await?))
    }

    async fn rotate_root(
        &self,
        request: Request<wire::RotateRootRequest>,
    ) -> Result<Response<wire::RotateRootResponse>, Status> {
        self.audit(&request, "rotate root");
        let request = request.into_inner();
        let rotated = self.with(move |engine| engine.rotate_root(request.epoch)).await?;
        // The old root is gone from every device when all roots before the next epoch are.
        let old_is_gone = |devices: &[wire::Device]| {
            devices.iter().all(|device| !device.member || device.destroyed_before > rotated.before)
        };
        let mut progress = self.progress.clone();
        let confirmed = async {
            loop {
                let devices = self.devices().await?;
                if old_is_gone(&devices) {
                    return Ok(devices);
                }
                if progress.changed().await.is_err() {
                    return Err(overloaded(Overloaded));
                }
            }
        };
        let devices = match timeout(wait(request.wait_seconds), confirmed).await {
            Ok(devices) => devices?,
            Err(_) => self.devices().await?,
        };
        Ok(Response::new(wire::RotateRootResponse {
            epoch_before: rotated.before,
            epoch_after: rotated.after,
            confirmed: rotated.after > rotated.before && old_is_gone(&devices),
            devices,
        }))
    }

    async fn seal(&self, request: Request<wire::SealRequest>) -> Result<Response<wire::Status>, Status> {
        self.audit(&request, "seal");
        self.worker.upgrade().map_err(overloaded)?.seal().await.map_err(overloaded)?;
        Ok(Response::new(self.status().await?))
    }

    async fn unseal(&self, request: Request<wire::UnsealRequest>) -> Result<Response<wire::Status>, Status> {
        self.audit(&request, "unseal");
        let worker = self.worker.upgrade().map_err(overloaded)?;
        worker.unseal().await.map_err(overloaded)?.map_err(|error| {
            tracing::error!("the vault does not open: {error:#}");
            with_reason(Status::new(Code::FailedPrecondition, format!("{error:#}")), "UNSEAL_FAILED")
        })?;
        drop(worker);
        let mut progress = self.progress.clone();
        // The operator carries the question to the peers by itself.
        let heard = progress.wait_for(|progress| !progress.locked);
        let _ = timeout(wait(request.into_inner().wait_seconds), heard).await;
        Ok(Response::new(self.status().await?))
    }

    async fn list_alarms(
        &self,
        _: Request<wire::ListAlarmsRequest>,
    ) -> Result<Response<wire::ListAlarmsResponse>, Status> {
        let read = |engine: &mut Engine| Ok((engine.list_alarms()?, engine.acknowledgements()?));
        let (active, acknowledged) = self.with(read).await?;
        Ok(Response::new(wire::ListAlarmsResponse {
            active: active.into_iter().map(alarm).collect(),
            acknowledged: acknowledged.into_iter().map(acknowledgement).collect(),
        }))
    }

    async fn acknowledge_alarm(
        &self,
        request: Request<wire::AcknowledgeAlarmRequest>,
    ) -> Result<Response<wire::Acknowledgement>, Status> {
        let uid = self.audit(&request, "acknowledge alarm");
        let request = request.into_inner();
        let operator = request.operator.map(u16::try_from).transpose();
        let said = engine::Acknowledge {
            operator: operator.map_err(|_| status(&EngineError::Malformed("operator")))?,
            kind: request.kind,
            id: request.id,
            by: request.by,
            uid,
            reason: request.reason,
        };
        let record = self.with(move |engine| engine.acknowledge(said, now())).await?;
        Ok(Response::new(acknowledgement(record)))
    }

    async fn list_devices(
        &self,
        _: Request<wire::ListDevicesRequest>,
    ) -> Result<Response<wire::ListDevicesResponse>, Status> {
        Ok(Response::new(wire::ListDevicesResponse { devices: self.devices().await? }))
    }

    async fn add_device(
        &self,
        request: Request<wire::AddDeviceRequest>,
    ) -> Result<Response<wire::ListDevicesResponse>, Status> {
        self.audit(&request, "add device");
        let id = device_id(request.into_inner().device)?;
        let worker = self.worker.upgrade().map_err(overloaded)?;
        devices::add(&self.fleet, &worker, id).await.map_err(|error| {
            with_reason(Status::new(Code::FailedPrecondition, error.to_string()), error.reason())
        })?;
        Ok(Response::new(wire::ListDevicesResponse { devices: self.devices().await? }))
    }

    async fn retire_device(
        &self,
        request: Request<wire::RetireDeviceRequest>,
    ) -> Result<Response<wire::ListDevicesResponse>, Status> {
        self.audit(&request, "retire device");
        let id = device_id(request.into_inner().device)?;
        self.with(move |engine| engine.retire_device(id)).await?;
        Ok(Response::new(wire::ListDevicesResponse { devices: self.devices().await? }))
    }

    async fn get_marks(&self, _: Request<wire::GetMarksRequest>) -> Result<Response<wire::Marks>, Status> {
        Ok(Response::new(marks(self.with(Engine::marks).await?)))
    }

    async fn read_log(
        &self,
        request: Request<wire::ReadLogRequest>,
    ) -> Result<Response<wire::LogPage>, Status> {
        let wire::ReadLogRequest { from, until } = request.into_inner();
        let until = until.min(from.saturating_add(MOST_ENTRIES));
        let read = engine::Request::ReadLog(signer::ReadLogRequest { from, until });
        let worker = self.worker.upgrade().map_err(overloaded)?;
        match worker.call(read).await.map_err(overloaded)?.map_err(|error| status(&error))? {
            Reply::Log(log) => Ok(Response::new(wire::LogPage {
                entries: log.entries.iter().map(prost::Message::encode_to_vec).collect(),
            })),
            _ => Err(Status::internal("reply of another kind")),
        }
    }
}
