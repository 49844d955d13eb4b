//! A token whose calls run on threads of their own, each with a deadline: one that hangs instead of failing holds
//! nobody up for longer, and is left behind like one that fails.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use spark_signer::vault::{RootId, RootToken, TokenError};
use zeroize::Zeroizing;

use super::device::RootDevice;

/// Longest time that one call may take; a token that is slower serves nobody.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// The same while a thread is inside a call that was given up already: as many as there are threads may follow it, and
/// who asks must not wait so long for each.
const SHORT: Duration = Duration::from_secs(2);

/// A call that no thread has begun.
const WAITING: u8 = 0;
/// A thread is inside.
const INSIDE: u8 = 1;
/// Given up before it began, so it never does.
const CANCELLED: u8 = 2;

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
    threads: usize,
    given_up: Mutex<GivenUp>,
}

/// Threads that are inside calls which were given up.
#[derive(Default)]
struct GivenUp {
    /// True once it came out.
    inside: Vec<Arc<AtomicBool>>,
    /// Since when all threads are.
    all_since: Option<Instant>,
}

impl GivenUp {
    /// How many there are now.
    fn count(&mut self, threads: usize) -> usize {
        self.inside.retain(|ended| !ended.load(Ordering::SeqCst));
        if self.inside.len() < threads {
            self.all_since = None;
        } else {
            self.all_since.get_or_insert_with(Instant::now);
        }
        self.inside.len()
    }
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
    /// Starts its threads, which end with this value, or with the call that hangs: a thread whose call was given up takes
    /// up work again if the call comes back, and calls are refused only while all of them are lost. Up to `waiting` calls may wait for
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
        Ok(Self { device, jobs, threads, given_up: Mutex::default() })
    }

    /// What it is, without asking it anything.
    pub fn inner(&self) -> &D {
        &self.device
    }

    /// Threads inside calls that were given up.
    fn lost(&self) -> usize {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner).count(self.threads)
    }

    /// For how long every thread has been inside a call that does not come back; none while one can work.
    pub(super) fn stuck_for(&self) -> Option<Duration> {
        let mut given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        given_up.count(self.threads);
        given_up.all_since.map(|since| since.elapsed())
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
        let deadline = match self.lost() {
            0 => deadline,
            some if some < self.threads => deadline.min(SHORT),
            _ => return Err(hangs()),
        };
        let (reply, answer) = sync_channel(1);
        let (ended, state) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU8::new(WAITING)));
        let (over, begun) = (Arc::clone(&ended), Arc::clone(&state));
        let job = Box::new(move |device: Arc<D>| {
            let begins = begun.compare_exchange(WAITING, INSIDE, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            let result = if begins { call(&device) } else { Err(hangs()) };
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
                // One that nobody waits for any more must not begin, and holds no thread.
                let cancelled =
                    state.compare_exchange(WAITING, CANCELLED, Ordering::SeqCst, Ordering::SeqCst);
                if cancelled.is_err() {
                    let mut given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
                    given_up.inside.push(Arc::clone(&ended));
                    given_up.count(self.threads);
                    drop(given_up);
                    self.device.note_hang(ended);
                }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    struct Nothing;

    impl Hangs for Nothing {
        fn note_hang(&self, _: Arc<AtomicBool>) {}
    }

    fn apart(threads: usize) -> Apart<Nothing> {
        Apart::start(Arc::new(Nothing), threads, 8).unwrap()
    }

    /// A call that hangs until what is returned is dropped.
    fn lose(apart: &Apart<Nothing>) -> Sender<()> {
        let (release, wait) = channel::<()>();
        let given_up = apart.run(Duration::from_millis(1), move |_| {
            let _ = wait.recv();
            Ok(())
        });
        assert!(matches!(given_up, Err(TokenError::Unavailable(_))));
        release
    }

    /// Loses one more thread; a call that was given up before it began holds none.
    fn lose_thread(apart: &Apart<Nothing>) -> Sender<()> {
        let before = apart.lost();
        loop {
            let release = lose(apart);
            if apart.lost() > before {
                return release;
            }
        }
    }

    #[test]
    fn one_call_that_hangs_costs_one_thread() {
        let apart = apart(2);
        let first = lose_thread(&apart);
        assert_eq!(apart.call(|_| Ok(7)).unwrap(), 7, "the other thread works on");
        assert_eq!(apart.stuck_for(), None);

        let second = lose_thread(&apart);
        assert!(matches!(apart.call(|_| Ok(8)), Err(TokenError::Unavailable(_))), "none is left");
        let stuck = apart.stuck_for().unwrap();
        assert!(apart.stuck_for().unwrap() >= stuck, "it is one stay, not a new one at each look");

        drop(second);
        while apart.stuck_for().is_some() {
            thread::yield_now();
        }
        assert_eq!(apart.call(|_| Ok(9)).unwrap(), 9, "a thread that is back takes up work");
        drop(first);
    }

    #[test]
    fn what_was_given_up_before_it_began_never_begins() {
        let apart = apart(1);
        let (release, wait) = channel::<()>();
        let (inside, begun) = channel::<()>();
        let ran = Arc::new(AtomicBool::new(false));
        thread::scope(|scope| {
            let busy = scope.spawn(|| {
                apart.run(DEADLINE, move |_| {
                    inside.send(()).unwrap();
                    let _ = wait.recv();
                    Ok(())
                })
            });
            begun.recv().unwrap();
            let run = Arc::clone(&ran);
            let waited = apart.run(Duration::from_millis(1), move |_| {
                run.store(true, Ordering::SeqCst);
                Ok(())
            });
            assert!(matches!(waited, Err(TokenError::Unavailable(_))));
            assert_eq!(apart.lost(), 0, "the thread is busy, not lost");
            drop(release);
            busy.join().unwrap().unwrap();
        });
        apart.call(|_| Ok(())).unwrap();
        assert!(!ran.load(Ordering::SeqCst));
    }
}
