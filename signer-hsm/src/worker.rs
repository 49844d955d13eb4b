//! One thread owns the engine, and with it every mutation of store and token. Calls that arrive while a batch
//! runs share the next one (group commit); on devices that ask for it, calls that destroy wait a moment for others.

mod held;

use std::{
    future::Future,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use held::{Held, Next};

use spark_signer::{
    engine::{DeviceReport, Engine, EngineError, Reply, Request},
    vault::{DeviceId, DeviceState},
};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot, watch},
};

use crate::metrics::Metrics;

/// Most calls of one batch.
const BATCH: usize = 256;
/// Calls that may wait; beyond it callers are told to come back.
const QUEUE: usize = 4096;

struct Call {
    request: Request,
    reply: oneshot::Sender<Result<Reply, EngineError>>,
}

type Care = Box<dyn FnOnce(Option<&mut Engine>) + Send>;

/// What the thread does next.
enum Job {
    Call(Box<Call>),
    /// Something between two batches; with nothing while the signer is sealed.
    Care(Care),
    /// Forgets the keys.
    Seal(oneshot::Sender<()>),
    /// Opens the vault again.
    Unseal(oneshot::Sender<anyhow::Result<()>>),
}

/// Opens the vault again as a start does.
pub type Reopen = Box<dyn FnMut() -> anyhow::Result<Engine> + Send>;

/// How long a call that destroys may wait for others, by the devices that serve. Nothing waits where it is zero.
pub type Pause = Box<dyn Fn(&[DeviceId]) -> Duration + Send>;

/// Where the vault stands, for who follows it from outside of the engine's thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Epoch of the present root.
    pub epoch: u64,
    /// Devices that have, or may have, an older root.
    pub unconfirmed: Vec<DeviceId>,
    /// Whether the vault takes no changes yet.
    pub locked: bool,
    /// Whether a person has closed the vault.
    pub sealed: bool,
}

impl Progress {
    /// Whether there is a destruction to confirm.
    pub const fn is_unconfirmed(&self) -> bool {
        !self.locked && !self.unconfirmed.is_empty()
    }

    fn of(engine: &mut Engine) -> Self {
        let epoch = engine.vault().epoch();
        let reports = engine.devices().unwrap_or_else(|error| {
            tracing::error!(%error, "what is confirmed");
            Vec::new()
        });
        // One that retires is looked at until it is seen to be empty.
        let shown = |report: &DeviceReport| match report.status.state {
            DeviceState::Retiring => report.destroyed_before == u64::MAX,
            DeviceState::Serving | DeviceState::Away => report.destroyed_before >= epoch,
        };
        let pending = reports.into_iter().filter(|report| report.member && !shown(report));
        let unconfirmed = pending.map(|report| report.status.id).collect();
        Self { epoch, unconfirmed, locked: engine.is_locked(), sealed: false }
    }
}

/// Handle to the engine's thread.
#[derive(Debug, Clone)]
pub struct Worker {
    calls: mpsc::Sender<Job>,
}

/// The engine's thread is gone or its queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("signer is overloaded or stopping")]
pub struct Overloaded;

/// Why something was not done between two batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    /// The engine's thread is gone or its queue is full.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// There is no engine.
    #[error("signer is sealed")]
    Sealed,
}

/// A handle that does not keep the engine's thread alive.
#[derive(Debug, Clone)]
pub struct WeakWorker(mpsc::WeakSender<Job>);

impl WeakWorker {
    /// The handle, for one call.
    pub fn upgrade(&self) -> Result<Worker, Overloaded> {
        self.0.upgrade().map(|calls| Worker { calls }).ok_or(Overloaded)
    }
}

impl Worker {
    /// Starts the thread. It ends when the last handle is dropped; the join handle gives the engine back, if there is
    /// one: a sealed signer has none.
    pub fn start(
        mut engine: Engine,
        reopen: Reopen,
        pause: Pause,
        metrics: Metrics,
    ) -> std::io::Result<(Self, watch::Receiver<Progress>, std::thread::JoinHandle<Option<Engine>>)> {
        let (calls, queue) = mpsc::channel(QUEUE);
        let (progress, seen) = watch::channel(Progress::of(&mut engine));
        let clock = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || keep(engine, reopen, queue, &Desk { pause, clock, metrics, progress }))?;
        Ok((Self { calls }, seen, thread))
    }

    /// Resolves when the engine's thread has ended by itself. Holds no handle.
    pub fn stopped(&self) -> impl Future<Output = ()> + 'static {
        let calls = self.calls.downgrade();
        async move {
            loop {
                match calls.upgrade() {
                    Some(calls) if !calls.is_closed() => drop(calls),
                    _ => return,
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }

    /// Runs one call; the answer comes after its batch is durable.
    pub async fn call(&self, request: Request) -> Result<Result<Reply, EngineError>, Overloaded> {
        let (reply, answer) = oneshot::channel();
        self.calls.try_send(Job::Call(Box::new(Call { request, reply }))).map_err(|_| Overloaded)?;
        answer.await.map_err(|_| Overloaded)
    }

    /// Does something with the engine between two batches.
    pub async fn care<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, NotDone> {
        let (reply, answer) = oneshot::channel();
        let job = Job::Care(Box::new(move |engine: Option<&mut Engine>| {
            // Who asked may have gone away.
            let _ = reply.send(engine.map(work));
        }));
        self.calls.try_send(job).map_err(|_| Overloaded)?;
        answer.await.map_err(|_| Overloaded)?.ok_or(NotDone::Sealed)
    }

    /// Closes the vault: every key of it is wiped from memory, with all nonces and sessions. Calls are refused until
    /// [`Self::unseal`]. Repeated, it changes nothing.
    pub async fn seal(&self) -> Result<(), Overloaded> {
        let (reply, answer) = oneshot::channel();
        self.calls.try_send(Job::Seal(reply)).map_err(|_| Overloaded)?;
        answer.await.map_err(|_| Overloaded)
    }

    /// Opens the vault again; it is locked then, as after a start. Does nothing if it is open.
    pub async fn unseal(&self) -> Result<anyhow::Result<()>, Overloaded> {
        let (reply, answer) = oneshot::channel();
        self.calls.try_send(Job::Unseal(reply)).map_err(|_| Overloaded)?;
        answer.await.map_err(|_| Overloaded)
    }

    /// A handle that does not keep the thread alive.
    pub fn weak(&self) -> WeakWorker {
        WeakWorker(self.calls.downgrade())
    }
}

/// What the thread has beside engine and queue.
struct Desk {
    pause: Pause,
    clock: Runtime,
    metrics: Metrics,
    progress: watch::Sender<Progress>,
}

impl Desk {
    /// How long what destroys waits now.
    fn pause(&self, engine: &Engine) -> Duration {
        let devices = engine.vault().devices().into_iter();
        let serving: Vec<_> = devices.filter(|d| d.state != DeviceState::Away).map(|d| d.id).collect();
        (self.pause)(&serving)
    }

    /// Runs calls as one batch. False if the engine is over.
    fn run(&self, engine: &mut Engine, calls: Vec<Call>) -> bool {
        let (requests, replies): (Vec<_>, Vec<_>) =
            calls.into_iter().map(|call| (call.request, call.reply)).unzip();
        let timer = self.metrics.batch_started(requests.len());
        #[cfg(feature = "failpoints")]
        let calls = crate::fail::calls(&requests);
        #[cfg(feature = "failpoints")]
        crate::fail::fail_point(&calls, crate::fail::Step::Received);
        let results = engine.run(requests, now());
        #[cfg(feature = "failpoints")]
        crate::fail::fail_point(&calls, crate::fail::Step::Committed);
        timer.observe_duration();
        self.metrics.engine(engine);
        for (reply, result) in replies.into_iter().zip(results) {
            // A caller that went away gets its answer when it asks again.
            let _ = reply.send(result);
        }
        settled(engine, &self.progress)
    }
}

/// Open and sealed in turn, until the handles are gone or a commit is cut off.
fn keep(
    mut engine: Engine,
    mut reopen: Reopen,
    mut queue: mpsc::Receiver<Job>,
    desk: &Desk,
) -> Option<Engine> {
    let (metrics, progress) = (&desk.metrics, &desk.progress);
    loop {
        let sealed = match serve(engine, &mut queue, desk) {
            End::Over(engine) => return Some(*engine),
            End::Sealed(sealed) => sealed,
        };
        metrics.sealed();
        progress.send_modify(|progress| {
            progress.unconfirmed.clear();
            progress.locked = true;
            progress.sealed = true;
        });
        tracing::warn!("the signer is sealed");
        // Who asked may have gone away.
        let _ = sealed.send(());
        let opened;
        (engine, opened) = wait(&mut queue, &mut reopen)?;
        metrics.engine(&mut engine);
        progress.send_replace(Progress::of(&mut engine));
        // After the progress: whoever asks for the status next, or does not wait, sees it.
        let _ = opened.send(Ok(()));
        tracing::warn!("the signer is unsealed; it works when its peers were heard");
    }
}

/// Refuses everything until the vault opens again, and says who waits for it. Nothing if the handles are gone.
fn wait(
    queue: &mut mpsc::Receiver<Job>,
    reopen: &mut Reopen,
) -> Option<(Engine, oneshot::Sender<anyhow::Result<()>>)> {
    loop {
        // Who asked may have gone away.
        match queue.blocking_recv()? {
            Job::Call(call) => {
                let _ = call.reply.send(Err(EngineError::SignerSealed));
            }
            Job::Care(work) => work(None),
            Job::Seal(reply) => {
                let _ = reply.send(());
            }
            Job::Unseal(reply) => match reopen() {
                Ok(engine) => return Some((engine, reply)),
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            },
        }
    }
}

/// Why an open vault is not served any more.
enum End {
    /// The handles are gone, or the engine is over.
    Over(Box<Engine>),
    /// A person closed it. The engine is gone.
    Sealed(oneshot::Sender<()>),
}

fn serve(mut engine: Engine, queue: &mut mpsc::Receiver<Job>, desk: &Desk) -> End {
    let mut held = Held::default();
    let mut next = None;
    loop {
        let job = match next.take().map_or_else(|| held.next(queue, &desk.clock), Next::Job) {
            Next::Job(job) => job,
            Next::Closed if held.is_empty() => break,
            Next::Closed | Next::Due => {
                if !desk.run(&mut engine, held.take()) {
                    break;
                }
                if queue.is_empty() {
                    engine.between_batches();
                }
                continue;
            }
        };
        let first = match job {
            Job::Call(call) => call,
            Job::Care(work) => {
                work(Some(&mut engine));
                desk.metrics.engine(&mut engine);
                if settled(&mut engine, &desk.progress) {
                    continue;
                }
                break;
            }
            // What was asked for before it is done before it.
            Job::Seal(reply) if !held.is_empty() => {
                next = Some(Job::Seal(reply));
                if desk.run(&mut engine, held.take()) {
                    continue;
                }
                break;
            }
            Job::Seal(reply) => {
                drop(engine);
                return End::Sealed(reply);
            }
            Job::Unseal(reply) => {
                let _ = reply.send(Ok(()));
                continue;
            }
        };
        let pause = desk.pause(&engine);
        let mut batch = Vec::new();
        let mut sort = |call: Call| {
            if pause.is_zero() || !call.request.may_destroy() {
                batch.push(call);
            } else {
                held.push(call, Instant::now(), pause);
            }
        };
        sort(*first);
        for _ in 1..BATCH {
            match queue.try_recv() {
                Ok(Job::Call(call)) => sort(*call),
                Ok(care) => {
                    next = Some(care);
                    break;
                }
                Err(_) => break,
            }
        }
        if !batch.is_empty() && !desk.run(&mut engine, batch) {
            break;
        }
        // Who waits does so for less if the next root is made beside its pages.
        if next.is_none() && queue.is_empty() && held.is_empty() {
            engine.between_batches();
        }
    }
    End::Over(Box::new(engine))
}

/// Says where the engine stands. False if it is over.
fn settled(engine: &mut Engine, progress: &watch::Sender<Progress>) -> bool {
    if engine.vault().must_reopen() {
        // What is durable shows only when the vault is opened again: a fresh process does that.
        tracing::error!("a commit was cut off: the signer stops, start it again");
        return false;
    }
    progress.send_replace(Progress::of(engine));
    true
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
