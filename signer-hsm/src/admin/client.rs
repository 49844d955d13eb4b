//! The command's side.

use std::{path::Path, time::Duration};

use hyper_util::rt::TokioIo;
use spark_proto::admin::signer::v1::{self as wire, signer_admin_client::SignerAdminClient};
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::{MAX_MESSAGE, socket::address};
use crate::service::REASON;

/// Longer than the longest call.
const DEADLINE: Duration = Duration::from_secs(200);

/// Why a running signer did not do it.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody listens there, or it is not for this user.
    #[error("no signer answers at {0}: does it run, and is this its user or root? ({1})")]
    NotReached(String, String),
    /// It refuses.
    #[error("{reason}: {message}")]
    Refused {
        /// Stable reason.
        reason: String,
        /// In words.
        message: String,
    },
}

/// A connection to the running signer.
#[derive(Debug)]
pub struct AdminClient {
    runtime: Runtime,
    client: SignerAdminClient<Channel>,
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident: $request:ident -> $reply:ident;)*) => {
        impl AdminClient {
            $($(#[$doc])*
            pub fn $name(&mut self, request: wire::$request) -> Result<wire::$reply, AdminError> {
                let call = self.client.$name(request);
                self.runtime.block_on(call).map(tonic::Response::into_inner).map_err(|status| refused(&status))
            })*
        }
    };
}

fn refused(status: &Status) -> AdminError {
    let reason = status.metadata().get(REASON).and_then(|reason| reason.to_str().ok());
    AdminError::Refused {
        reason: reason.map_or_else(|| format!("{:?}", status.code()), str::to_owned),
        message: status.message().to_owned(),
    }
}

impl AdminClient {
    /// Connects.
    pub fn connect(path: &Path) -> Result<Self, AdminError> {
        let failed = |error: &dyn std::fmt::Display| {
            AdminError::NotReached(path.display().to_string(), error.to_string())
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(&error))?;
        let (_folder, short) = address(path).map_err(|error| failed(&error))?;
        let stream = runtime.block_on(UnixStream::connect(short)).map_err(|error| failed(&error))?;
        let mut stream = Some(TokioIo::new(stream));
        // One connection is all there is: the name is of no account.
        let connector = tower::service_fn(move |_: tonic::transport::Uri| {
            let stream = stream.take();
            async move { stream.ok_or_else(|| std::io::Error::other("connection is over")) }
        });
        let endpoint = Endpoint::from_static("http://signer").timeout(DEADLINE);
        let channel =
            runtime.block_on(endpoint.connect_with_connector(connector)).map_err(|error| failed(&error))?;
        let client = SignerAdminClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Ok(Self { runtime, client })
    }
}

calls! {
    /// Where the signer stands.
    get_status: GetStatusRequest -> Status;
    /// A new root.
    rotate_root: RotateRootRequest -> RotateRootResponse;
    /// Forgets the store's keys.
    seal: SealRequest -> Status;
    /// Opens the store again.
    unseal: UnsealRequest -> Status;
    /// Active and acknowledged alarms.
    list_alarms: ListAlarmsRequest -> ListAlarmsResponse;
    /// A person has dealt with one.
    acknowledge_alarm: AcknowledgeAlarmRequest -> Acknowledgement;
    /// The devices.
    list_devices: ListDevicesRequest -> ListDevicesResponse;
    /// One more.
    add_device: AddDeviceRequest -> ListDevicesResponse;
    /// One less.
    retire_device: RetireDeviceRequest -> ListDevicesResponse;
    /// Numbers for a backup.
    get_marks: GetMarksRequest -> Marks;
    /// Entries of the log.
    read_log: ReadLogRequest -> LogPage;
}
