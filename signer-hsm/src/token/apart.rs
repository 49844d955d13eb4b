//! A device whose calls run on a thread of their own, each with a deadline: one that hangs instead of failing is left
//! behind like one that fails.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

use spark_signer::vault::{RootId, RootToken, TokenError};
use zeroize::Zeroizing;

use super::device::RootDevice;

/// Longest time that one call may take; a device that is slower serves nobody.
const DEADLINE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce(&RootDevice) + Send>;

/// A device, apart from the engine's thread. Calls come one after the other, so that what a late one changed is there
/// when the next one looks.
pub struct Apart {
    device: Arc<RootDevice>,
    jobs: SyncSender<Job>,
    /// Number of the last call that was given up.
    given_up: AtomicU64,
    next: AtomicU64,
    /// Number of the last call that ended.
    ended: Arc<AtomicU64>,
}

impl fmt::Debug for Apart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.device, f)
    }
}

fn hangs() -> TokenError {
    TokenError::Unavailable("a call does not come back".into())
}

impl Apart {
    /// Starts its thread, which ends with this value, or with the call that hangs.
    pub fn new(device: Arc<RootDevice>) -> Result<Self, TokenError> {
        let (jobs, queue) = sync_channel::<Job>(1);
        let there = Arc::clone(&device);
        thread::Builder::new()
            .name("device".into())
            .spawn(move || queue.iter().for_each(|job| job(there.as_ref())))
            .map_err(|error| TokenError::Failed(format!("thread of a device: {error}")))?;
        Ok(Self { device, jobs, given_up: AtomicU64::new(0), next: AtomicU64::new(1), ended: Arc::default() })
    }

    /// As [`RootDevice::revive`].
    pub fn revive(&self) -> Result<(), TokenError> {
        self.run(3 * DEADLINE, RootDevice::revive)
    }

    /// As [`RootDevice::revive_now`].
    pub fn revive_now(&self) -> Result<(), TokenError> {
        self.run(3 * DEADLINE, RootDevice::revive_now)
    }

    fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&RootDevice) -> Result<T, TokenError> + Send + 'static,
    ) -> Result<T, TokenError> {
        self.run(DEADLINE, call)
    }

    fn run<T: Send + 'static>(
        &self,
        deadline: Duration,
        call: impl FnOnce(&RootDevice) -> Result<T, TokenError> + Send + 'static,
    ) -> Result<T, TokenError> {
        if self.given_up.load(Ordering::SeqCst) > self.ended.load(Ordering::SeqCst) {
            return Err(hangs());
        }
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let (reply, answer) = sync_channel(1);
        let cancelled = Arc::new(AtomicBool::new(false));
        let (ended, off) = (Arc::clone(&self.ended), Arc::clone(&cancelled));
        let job = Box::new(move |device: &RootDevice| {
            // One that nobody waits for any more must not begin.
            let result = if off.load(Ordering::SeqCst) { Err(hangs()) } else { call(device) };
            ended.fetch_max(number, Ordering::SeqCst);
            // Who asked may have given up.
            let _ = reply.send(result);
        });
        match self.jobs.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(hangs()),
            Err(TrySendError::Disconnected(_)) => {
                return Err(TokenError::Failed("device has no thread".into()));
            }
        }
        match answer.recv_timeout(deadline) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => {
                cancelled.store(true, Ordering::SeqCst);
                self.given_up.fetch_max(number, Ordering::SeqCst);
                self.device.note_hang(Arc::clone(&self.ended), number);
                Err(hangs())
            }
            Err(RecvTimeoutError::Disconnected) => Err(TokenError::Failed("device's thread ended".into())),
        }
    }
}

impl RootToken for Apart {
    fn create_root(&self, root: &RootId) -> Result<(), TokenError> {
        let root = *root;
        self.call(move |device| device.create_root(&root))
    }

    fn roots(&self) -> Result<Vec<RootId>, TokenError> {
        self.call(RootToken::roots)
    }

    fn derive(&self, root: &RootId, context: &[u8]) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        let (root, context) = (*root, context.to_vec());
        self.call(move |device| device.derive(&root, &context))
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
