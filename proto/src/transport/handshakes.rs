//! How many handshakes a listener makes at a time: they cost far more than the calls on a connection that is open, and
//! where the key is in a token they are made by the device that also signs.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Limits of one listener. Who comes too early waits, within the time that a handshake may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// At the same time.
    pub concurrent: usize,
    /// In the long run.
    pub per_second: u32,
    /// At once after a quiet time.
    pub burst: u32,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self { concurrent: 256, per_second: 1000, burst: 1000 }
    }
}

/// Where handshakes wait.
pub(super) struct Gate {
    places: Semaphore,
    pace: Mutex<Pace>,
}

impl Gate {
    pub(super) fn new(limits: HandshakeLimits) -> Self {
        Self {
            places: Semaphore::new(limits.concurrent),
            pace: Mutex::new(Pace::new(limits, Instant::now())),
        }
    }

    /// Waits for a place and for its time. Only who has a place books a time, so that a crowd that gives up leaves no
    /// queue behind.
    pub(super) async fn enter(&self) -> Option<SemaphorePermit<'_>> {
        // Closed never.
        let place = self.places.acquire().await.ok();
        let wait = self.pace.lock().unwrap_or_else(PoisonError::into_inner).book(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        place
    }
}

struct Pace {
    interval: Duration,
    saved: Duration,
    next: Instant,
}

impl Pace {
    fn new(limits: HandshakeLimits, now: Instant) -> Self {
        let interval = Duration::from_secs(1) / limits.per_second.max(1);
        let saved = interval.saturating_mul(limits.burst.saturating_sub(1));
        Self { interval, saved, next: now.checked_sub(saved).unwrap_or(now) }
    }

    /// How long the next one waits.
    fn book(&mut self, now: Instant) -> Duration {
        let earliest = now.checked_sub(self.saved).unwrap_or(now);
        let turn = self.next.max(earliest);
        self.next = turn.checked_add(self.interval).unwrap_or(turn);
        turn.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_pace_holds() {
        let limits = HandshakeLimits { concurrent: 1, per_second: 10, burst: 3 };
        let start = Instant::now() + Duration::from_secs(3600);
        let mut pace = Pace::new(limits, start);
        let tenths = |n| Duration::from_millis(100) * n;
        for _ in 0..3 {
            assert_eq!(pace.book(start), Duration::ZERO);
        }
        assert_eq!(pace.book(start), tenths(1));
        assert_eq!(pace.book(start), tenths(2));
        assert_eq!(pace.book(start + tenths(1)), tenths(2));
        // Quiet times do not add up beyond the burst.
        let later = start + Duration::from_secs(60);
        assert_eq!(
            (0..4).map(|_| pace.book(later)).collect::<Vec<_>>(),
            [tenths(0), tenths(0), tenths(0), tenths(1)]
        );
    }
}
