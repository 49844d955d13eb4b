//! Independent confirmation that roots are destroyed.
//!
//! A library may show an object as gone while it is not: its own view of a failed destruction is worth nothing. A
//! process of its own starts the library afresh for every look, and what it sees is what the receipts rest on. One look
//! covers all epochs before the oldest root that is left, so that it need not follow every batch.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use spark_signer::{
    engine::{Reply, Request},
    vault::{DeviceId, RootId, TokenError},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    process::{Child, Command},
    sync::watch,
    time::timeout,
};
use zeroize::Zeroizing;

use crate::{
    config::Config,
    starter::Starter,
    token::{PinSource, RootsView},
    worker::{Progress, Worker},
};

/// Longest time that one look may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks, so that a busy signer does not look at every batch.
const INTERVAL: Duration = Duration::from_millis(500);
/// After a failure.
const BACK_OFF: Duration = Duration::from_secs(5);

/// What the process says of one look, one line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Look {
    /// Fingerprint of the device, and its roots, hex.
    Roots(String, Vec<String>),
    /// The PIN is wrong: another try would bring it nearer to being locked.
    PinRefused,
    Error(String),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ConfirmerError {
    /// The process does not start or is gone.
    #[error("confirmer: {0}")]
    Process(#[from] std::io::Error),
    /// It does not answer.
    #[error("confirmer does not answer")]
    Deadline,
    /// It says something else.
    #[error("confirmer answers nonsense")]
    Nonsense,
    /// The device refuses the PIN.
    #[error("confirmer: token refused the PIN")]
    PinRefused,
    /// It cannot look.
    #[error("confirmer: {0}")]
    Look(String),
}

/// The process's side: reads lines of a device's number and its PIN up to an empty line, and then looks at the device
/// that a line names, until the input ends.
pub fn serve(config: &Config) -> anyhow::Result<()> {
    let mut input = std::io::stdin().lock();
    let mut devices = BTreeMap::new();
    loop {
        let mut line = Zeroizing::new(String::with_capacity(512));
        input.read_line(&mut line)?;
        let Some((id, pin)) = line.trim_end_matches('\n').split_once('\t') else { break };
        // The configuration may have changed since the signer read it: a device that is not there is not looked at.
        let known = id.parse::<u8>().ok().and_then(|id| config.token.device(id).cloned());
        if let Some(mut device) = known {
            device.roots.pin = PinSource::Held(Zeroizing::new(pin.to_owned()));
            devices.insert(device.id, (device, None));
        }
    }
    let mut line = String::new();
    while input.read_line(&mut line)? > 0 {
        let device = line.trim().parse::<u8>().ok().and_then(|id| devices.get_mut(&id));
        line.clear();
        let look = match device {
            Some((device, view)) => match look(view, || RootsView::open(device, config.token.security)) {
                Ok((device, roots)) => {
                    Look::Roots(hex::encode(device), roots.iter().map(RootId::to_string).collect())
                }
                Err(TokenError::PinRefused | TokenError::PinLocked) => Look::PinRefused,
                Err(error) => Look::Error(error.to_string()),
            },
            None => Look::Error("no such device".to_owned()),
        };
        let mut output = std::io::stdout().lock();
        serde_json::to_writer(&mut output, &look)?;
        output.write_all(b"\n")?;
        output.flush()?;
    }
    Ok(())
}

fn look(
    view: &mut Option<RootsView>,
    open: impl FnOnce() -> Result<RootsView, TokenError>,
) -> Result<([u8; 32], Vec<RootId>), TokenError> {
    let open_view = match view {
        Some(view) => view,
        None => view.insert(open()?),
    };
    open_view.look()
}

/// The other process, from the signer's side. It ends with this value.
#[derive(Debug)]
pub struct Confirmer {
    _child: Option<Child>,
    input: OwnedWriteHalf,
    output: Lines<BufReader<OwnedReadHalf>>,
}

impl Confirmer {
    /// Starts `program confirmer --config path` and gives it the PIN of each device.
    pub async fn start(
        program: &Path,
        config: &Path,
        pins: &[(DeviceId, Zeroizing<String>)],
    ) -> Result<Self, ConfirmerError> {
        let (ours, theirs) = UnixStream::pair()?;
        let output = theirs.try_clone()?;
        let child = Command::new(program)
            .arg("--config")
            .arg(config)
            .arg("confirmer")
            .stdin(OwnedFd::from(theirs))
            .stdout(OwnedFd::from(output))
            .kill_on_drop(true)
            .spawn()?;
        Self::greet(Some(child), ours, pins).await
    }

    /// Has it started by the process that may.
    async fn order(recipe: &Recipe) -> Result<Self, ConfirmerError> {
        Self::greet(None, recipe.starter.confirmer()?, &recipe.pins.all()).await
    }

    async fn greet(
        child: Option<Child>,
        stream: UnixStream,
        pins: &[(DeviceId, Zeroizing<String>)],
    ) -> Result<Self, ConfirmerError> {
        stream.set_nonblocking(true)?;
        let (output, mut input) = tokio::net::UnixStream::from_std(stream)?.into_split();
        for (device, pin) in pins {
            let device = device.to_string();
            let mut line = Zeroizing::new(Vec::with_capacity(pin.len().saturating_add(device.len() + 2)));
            line.extend_from_slice(device.as_bytes());
            line.push(b'\t');
            line.extend_from_slice(pin.as_bytes());
            line.push(b'\n');
            input.write_all(&line).await?;
        }
        input.write_all(b"\n").await?;
        Ok(Self { _child: child, input, output: BufReader::new(output).lines() })
    }

    /// Which device it is, and the roots that it shows.
    pub async fn roots(&mut self, device: DeviceId) -> Result<([u8; 32], Vec<RootId>), ConfirmerError> {
        self.input.write_all(format!("{device}\n").as_bytes()).await?;
        let line =
            timeout(DEADLINE, self.output.next_line()).await.map_err(|_| ConfirmerError::Deadline)??;
        let line = line.ok_or(ConfirmerError::Nonsense)?;
        match serde_json::from_str(&line).map_err(|_| ConfirmerError::Nonsense)? {
            Look::Roots(device, roots) => {
                let mut fingerprint = [0u8; 32];
                hex::decode_to_slice(device, &mut fingerprint).map_err(|_| ConfirmerError::Nonsense)?;
                let parse = |text: &String| hex::decode(text).ok().and_then(|b| RootId::from_bytes(&b));
                let roots = roots.iter().map(parse).collect::<Option<_>>().ok_or(ConfirmerError::Nonsense)?;
                Ok((fingerprint, roots))
            }
            Look::PinRefused => Err(ConfirmerError::PinRefused),
            Look::Error(error) => Err(ConfirmerError::Look(error)),
        }
    }
}

/// How to start the other process.
pub struct Recipe {
    /// Who starts it.
    pub starter: Starter,
    /// The devices and their PINs.
    pub pins: Pins,
}

/// The devices and their PINs; devices come and go. Clones share everything.
#[derive(Clone, Default)]
pub struct Pins(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    pins: Vec<(DeviceId, Zeroizing<String>)>,
    /// Counts the changes.
    version: u64,
}

impl Pins {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the PIN of a device.
    pub fn set(&self, device: DeviceId, pin: Zeroizing<String>) {
        let mut known = self.known();
        known.pins.retain(|(of, _)| *of != device);
        known.pins.push((device, pin));
        known.version = known.version.wrapping_add(1);
    }

    fn all(&self) -> Vec<(DeviceId, Zeroizing<String>)> {
        self.known().pins.clone()
    }

    fn version(&self) -> u64 {
        self.known().version
    }

    fn devices(&self) -> Vec<DeviceId> {
        self.known().pins.iter().map(|(device, _)| *device).collect()
    }
}

impl std::fmt::Debug for Pins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.devices()).finish()
    }
}

impl std::fmt::Debug for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recipe").field("starter", &self.starter).finish_non_exhaustive()
    }
}

/// Confirms destructions as long as the engine lives. What cannot be confirmed stays pending and is tried again.
pub async fn run(recipe: Recipe, worker: Worker, mut progress: watch::Receiver<Progress>) {
    let mut confirmer = None;
    let mut version = recipe.pins.version();
    let mut devices = recipe.pins.devices();
    loop {
        let pending = match progress.wait_for(Progress::is_unconfirmed).await {
            Ok(progress) => progress.unconfirmed.clone(),
            Err(_) => return,
        };
        let mut pause = INTERVAL;
        if recipe.pins.version() != version {
            version = recipe.pins.version();
            devices = recipe.pins.devices();
            confirmer = None;
        }
        // A device that does not answer must not keep the others from being looked at.
        for device in pending {
            if !devices.contains(&device) {
                continue;
            }
            if let Err(error) = confirm(&recipe, &worker, &mut confirmer, device).await {
                tracing::warn!(%error, %device, "destruction is not confirmed");
                pause = BACK_OFF;
                if matches!(error, ConfirmerError::PinRefused) {
                    tracing::error!(%device, "nothing is confirmed there until the signer starts with the right PIN");
                    devices.retain(|known| *known != device);
                } else {
                    confirmer = None;
                }
            }
        }
        tokio::time::sleep(pause).await;
    }
}

async fn confirm(
    recipe: &Recipe,
    worker: &Worker,
    confirmer: &mut Option<Confirmer>,
    device: DeviceId,
) -> Result<(), ConfirmerError> {
    let open = match confirmer {
        Some(open) => open,
        None => confirmer.insert(Confirmer::order(recipe).await?),
    };
    let (fingerprint, roots) = open.roots(device).await?;
    match worker.call(Request::ConfirmDestruction(device, fingerprint, roots)).await {
        Ok(Ok(Reply::DestroyedBefore(epoch))) => {
            tracing::debug!(epoch, %device, "destruction confirmed");
            Ok(())
        }
        Ok(Ok(_)) => Err(ConfirmerError::Nonsense),
        Ok(Err(error)) => Err(ConfirmerError::Look(error.to_string())),
        Err(error) => Err(ConfirmerError::Look(error.to_string())),
    }
}
