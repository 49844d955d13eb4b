//! Calls that destroy something and wait for others: on a device whose flash wears, or which is slow, they share a root.

use std::time::{Duration, Instant};

use tokio::{runtime::Runtime, sync::mpsc, time};

use super::{BATCH, Call, Job};

/// What comes next.
pub(super) enum Next {
    /// A job.
    Job(Job),
    /// What was held has waited long enough.
    Due,
    /// Nobody is there to ask for anything.
    Closed,
}

/// Since the first of them, at most the pause of the slowest device.
#[derive(Default)]
pub(super) struct Held {
    calls: Vec<Call>,
    due: Option<Instant>,
}

impl Held {
    /// Keeps a call.
    pub(super) fn push(&mut self, call: Call, now: Instant, pause: Duration) {
        self.calls.push(call);
        let due = *self.due.get_or_insert_with(|| now.checked_add(pause).unwrap_or(now));
        if self.calls.len() >= BATCH {
            self.due = Some(due.min(now));
        }
    }

    /// All of them, in the order in which they came.
    pub(super) fn take(&mut self) -> Vec<Call> {
        self.due = None;
        std::mem::take(&mut self.calls)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// Waits for what comes first.
    pub(super) fn next(&self, queue: &mut mpsc::Receiver<Job>, clock: &Runtime) -> Next {
        let Some(due) = self.due else { return queue.blocking_recv().map_or(Next::Closed, Next::Job) };
        // First: who asks without end keeps nothing from being due.
        if self.is_due(Instant::now()) {
            return Next::Due;
        }
        match clock.block_on(async { time::timeout_at(due.into(), queue.recv()).await }) {
            Ok(job) => job.map_or(Next::Closed, Next::Job),
            Err(_) => Next::Due,
        }
    }
}

#[cfg(test)]
mod tests {
    use spark_proto::signer::v1 as wire;
    use spark_signer::engine::Request;
    use tokio::sync::oneshot;

    use super::*;

    fn call(size: u64) -> Call {
        let request = wire::ReadLogRequest { from: size, until: 0 };
        Call { request: Request::ReadLog(request), reply: oneshot::channel().0 }
    }

    fn clock() -> Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn the_first_says_when_all_are_due() {
        let (start, pause) = (Instant::now() + Duration::from_secs(60), Duration::from_secs(2));
        let mut held = Held::default();
        assert!(!held.is_due(start));
        held.push(call(0), start, pause);
        held.push(call(1), start + Duration::from_secs(1), pause);
        assert!(!held.is_due(start + Duration::from_millis(1999)));
        assert!(held.is_due(start + pause));
        assert_eq!(held.take().len(), 2);
        assert!(held.is_empty() && !held.is_due(start + pause));
        held.push(call(2), start + pause, pause);
        assert!(!held.is_due(start + pause));
    }

    #[test]
    fn a_full_batch_waits_no_longer() {
        let (start, pause) = (Instant::now(), Duration::from_secs(3600));
        let mut held = Held::default();
        for n in 1..BATCH as u64 {
            held.push(call(n), start, pause);
        }
        assert!(!held.is_due(start));
        held.push(call(0), start, pause);
        assert!(held.is_due(start));
    }

    #[test]
    fn others_are_served_meanwhile_and_nobody_waits_for_ever() {
        let (jobs, mut queue) = mpsc::channel(4);
        let (now, clock) = (Instant::now(), clock());
        let mut held = Held::default();
        held.push(call(0), now, Duration::from_secs(3600));
        jobs.try_send(Job::Call(Box::new(call(1)))).ok().unwrap();
        assert!(matches!(held.next(&mut queue, &clock), Next::Job(Job::Call(_))));
        held.take();
        held.push(call(0), now, Duration::ZERO);
        jobs.try_send(Job::Call(Box::new(call(1)))).ok().unwrap();
        assert!(matches!(held.next(&mut queue, &clock), Next::Due), "although somebody asks");
        held.take();
        assert!(matches!(held.next(&mut queue, &clock), Next::Job(_)));
        drop(jobs);
        held.push(call(0), now, Duration::from_secs(3600));
        assert!(matches!(held.next(&mut queue, &clock), Next::Closed));
    }
}
