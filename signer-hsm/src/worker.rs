//! One thread owns the engine, and with it every mutation of store and token. Calls that arrive while a batch
//! runs share the next one (group commit).

use std::{
    future::Future,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use spark_signer::{
    engine::{Engine, EngineError, Reply, Request},
    vault::DeviceId,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::metrics::Metrics;

/// Most calls of one batch.
const BATCH: usize = 256;
/// Calls that may wait; beyond it callers are told to come back.
const QUEUE: usize = 4096;

struct Call {
    request: Request,
    reply: oneshot::Sender<Result<Reply, EngineError>>,
}

/// What the thread does next.
enum Job {
    Call(Box<Call>),
    /// Something between two batches.
    Care(Box<dyn FnOnce(&mut Engine) + Send>),
}

/// Where the vault stands, for who follows it from outside of the engine's thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Epoch of the present root.
    pub epoch: u64,
    /// Devices that have, or may have, an older root.
    pub unconfirmed: Vec<DeviceId>,
    /// Whether the vault takes no changes yet.
    pub locked: bool,
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
        let pending = reports.into_iter().filter(|report| report.member && report.destroyed_before < epoch);
        let unconfirmed = pending.map(|report| report.status.id).collect();
        Self { epoch, unconfirmed, locked: engine.is_locked() }
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

impl Worker {
    /// Starts the thread. It ends when the last handle is dropped; the join handle gives the engine back.
    pub fn start(
        mut engine: Engine,
        metrics: Metrics,
    ) -> std::io::Result<(Self, watch::Receiver<Progress>, std::thread::JoinHandle<Engine>)> {
        let (calls, queue) = mpsc::channel(QUEUE);
        let (progress, seen) = watch::channel(Progress::of(&mut engine));
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || serve(engine, queue, &metrics, &progress))?;
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
    ) -> Result<T, Overloaded> {
        let (reply, answer) = oneshot::channel();
        let job = Job::Care(Box::new(move |engine| {
            // Who asked may have gone away.
            let _ = reply.send(work(engine));
        }));
        self.calls.try_send(job).map_err(|_| Overloaded)?;
        answer.await.map_err(|_| Overloaded)
    }
}

fn serve(
    mut engine: Engine,
    mut queue: mpsc::Receiver<Job>,
    metrics: &Metrics,
    progress: &watch::Sender<Progress>,
) -> Engine {
    let mut next = None;
    while let Some(job) = next.take().or_else(|| queue.blocking_recv()) {
        let first = match job {
            Job::Call(call) => call,
            Job::Care(work) => {
                work(&mut engine);
                metrics.engine(&mut engine);
                if settled(&mut engine, progress) {
                    continue;
                }
                break;
            }
        };
        let mut requests = vec![first.request];
        let mut replies = vec![first.reply];
        while requests.len() < BATCH {
            match queue.try_recv() {
                Ok(Job::Call(call)) => {
                    requests.push(call.request);
                    replies.push(call.reply);
                }
                Ok(care) => {
                    next = Some(care);
                    break;
                }
                Err(_) => break,
            }
        }
        let timer = metrics.batch_started(requests.len());
        #[cfg(feature = "failpoints")]
        let calls = crate::fail::calls(&requests);
        #[cfg(feature = "failpoints")]
        crate::fail::fail_point(&calls, crate::fail::Step::Received);
        let results = engine.run(requests, now());
        #[cfg(feature = "failpoints")]
        crate::fail::fail_point(&calls, crate::fail::Step::Committed);
        timer.observe_duration();
        metrics.engine(&mut engine);
        for (reply, result) in replies.into_iter().zip(results) {
            // A caller that went away gets its answer when it asks again.
            let _ = reply.send(result);
        }
        if !settled(&mut engine, progress) {
            break;
        }
        engine.between_batches();
    }
    engine
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

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
