//! A token whose calls run on threads of their own, each with a deadline: one that hangs instead of failing holds
//! nobody up for longer, and is left behind like one that fails.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

use spark_signer::vault::{RootId, RootToken, TokenError};
use zeroize::Zeroizing;

use super::device::RootDevice;

/// Longest time that one call may take; a token that is slower serves nobody.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// What calls can be given up of.
pub trait Hangs: Send + Sync + 'static {
    /// A call into its library does not come back before `ended` is true.
    fn note_hang(&self, ended: Arc<AtomicBool>);
}

type Job<D> = Box<dyn FnOnce(Arc<D>) + Send>;

/// A token, apart from the threads that ask it. With one thread, calls come one after the other, so that what a late
/// one changed is there when the next one looks.
pub struct Apart<D> {
    device: Arc<D>,
    jobs: SyncSender<Job<D>>,
    /// Calls that were given up, as far as they may still be inside; true once they are not.
    given_up: Mutex<Vec<Arc<AtomicBool>>>,
}

impl<D: fmt::Debug> fmt::Debug for Apart<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.device, f)
    }
}

fn hangs() -> TokenError {
    TokenError::Unavailable("a call does not come back".into())
}

impl<D: Hangs> Apart<D> {
    /// Starts its threads, which end with this value, or with the call that hangs. Up to `waiting` calls may wait for
    /// a thread.
    pub(super) fn start(device: Arc<D>, threads: usize, waiting: usize) -> Result<Self, TokenError> {
        let (jobs, queue) = sync_channel::<Job<D>>(waiting);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            // The token's sessions must end with this value: a thread that closed them later could do so while the
            // process ends, after the library.
            let (there, queue) = (Arc::downgrade(&device), Arc::clone(&queue));
            thread::Builder::new()
                .name("token".into())
                .spawn(move || {
                    while let Some(job) = next(&queue) {
                        if let Some(device) = there.upgrade() {
                            job(device);
                        }
                    }
                })
                .map_err(|error| TokenError::Failed(format!("thread of a token: {error}")))?;
        }
        Ok(Self { device, jobs, given_up: Mutex::default() })
    }

    /// What it is, without asking it anything.
    pub(super) fn inner(&self) -> &D {
        &self.device
    }

    /// Whether a call that was given up is still inside.
    fn hangs(&self) -> bool {
        let mut given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        given_up.retain(|ended| !ended.load(Ordering::SeqCst));
        !given_up.is_empty()
    }

    pub(super) fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&D) -> Result<T, TokenError> + Send + 'static,
    ) -> Result<T, TokenError> {
        self.run(DEADLINE, call)
    }

    /// As [`Self::call`], for 32 bytes that must not stay where they were on their way: what goes through the channel is
    /// their place, which is wiped.
    pub(super) fn call_for_secret(
        &self,
        call: impl FnOnce(&D) -> Result<Zeroizing<[u8; 32]>, TokenError> + Send + 'static,
    ) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        let there = self.call(move |device| call(device).map(Box::new))?;
        let mut here = Zeroizing::new([0; 32]);
        here.copy_from_slice(&**there);
        Ok(here)
    }

    pub(super) fn run<T: Send + 'static>(
        &self,
        deadline: Duration,
        call: impl FnOnce(&D) -> Result<T, TokenError> + Send + 'static,
    ) -> Result<T, TokenError> {
        if self.hangs() {
            return Err(hangs());
        }
        let (reply, answer) = sync_channel(1);
        let (ended, cancelled) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (over, off) = (Arc::clone(&ended), Arc::clone(&cancelled));
        let job = Box::new(move |device: Arc<D>| {
            // One that nobody waits for any more must not begin.
            let result = if off.load(Ordering::SeqCst) { Err(hangs()) } else { call(&device) };
            drop(device);
            over.store(true, Ordering::SeqCst);
            // Who asked may have given up.
            let _ = reply.send(result);
        });
        match self.jobs.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(hangs()),
            Err(TrySendError::Disconnected(_)) => {
                return Err(TokenError::Failed("token has no thread".into()));
            }
        }
        match answer.recv_timeout(deadline) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => {
                cancelled.store(true, Ordering::SeqCst);
                self.given_up.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&ended));
                self.device.note_hang(ended);
                Err(hangs())
            }
            Err(RecvTimeoutError::Disconnected) => Err(TokenError::Failed("token's thread ended".into())),
        }
    }
}

fn next<D>(queue: &Mutex<Receiver<Job<D>>>) -> Option<Job<D>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

impl Apart<RootDevice> {
    /// Starts the device's thread.
    pub fn new(device: Arc<RootDevice>) -> Result<Self, TokenError> {
        Self::start(device, 1, 1)
    }

    /// As [`RootDevice::revive`].
    pub fn revive(&self) -> Result<(), TokenError> {
        self.run(3 * DEADLINE, RootDevice::revive)
    }

    /// As [`RootDevice::revive_now`].
    pub fn revive_now(&self) -> Result<(), TokenError> {
        self.run(3 * DEADLINE, RootDevice::revive_now)
    }
}

impl RootToken for Apart<RootDevice> {
    fn create_root(&self, root: &RootId) -> Result<(), TokenError> {
        let root = *root;
        self.call(move |device| device.create_root(&root))
    }

    fn roots(&self) -> Result<Vec<RootId>, TokenError> {
        self.call(RootToken::roots)
    }

    fn derive(&self, root: &RootId, context: &[u8]) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        let (root, context) = (*root, context.to_vec());
        self.call_for_secret(move |device| device.derive(&root, &context))
    }

    fn destroy_root(&self, root: &RootId) -> Result<(), TokenError> {
        let root = *root;
        self.call(move |device| device.destroy_root(&root))
    }

    fn sync(&self) -> Result<(), TokenError> {
        self.call(RootToken::sync)
    }

    fn fingerprint(&self) -> Result<[u8; 32], TokenError> {
        self.call(RootToken::fingerprint)
    }
}
