//! Places for streams to wallets: a few for each identity, of which the oldest gives way, and so many in all.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::oneshot;

use crate::status::{Reason, Refused};

/// The places of one kind of stream. Clones share them.
#[derive(Debug, Clone)]
pub struct Places {
    taken: Arc<Mutex<Taken>>,
    per_identity: usize,
    in_all: usize,
}

#[derive(Debug, Default)]
struct Taken {
    of: HashMap<[u8; 33], VecDeque<(u64, oneshot::Sender<()>)>>,
    count: usize,
    next: u64,
}

/// A place that a stream has until it is dropped or must give way.
#[derive(Debug)]
pub struct Place {
    places: Places,
    identity: [u8; 33],
    number: u64,
    gone: oneshot::Receiver<()>,
}

impl Places {
    /// None is taken.
    pub fn new(per_identity: usize, in_all: usize) -> Self {
        Self { taken: Arc::default(), per_identity, in_all }
    }

    /// Streams now.
    pub fn count(&self) -> usize {
        self.taken().count
    }

    /// A place for a stream of this identity.
    ///
    /// # Errors
    /// When all are taken.
    pub fn take(&self, identity: [u8; 33]) -> Result<Place, Refused> {
        let mut taken = self.taken();
        let own = taken.of.get(&identity).map_or(0, VecDeque::len);
        if own < self.per_identity && taken.count >= self.in_all {
            return Err(Refused::new(Reason::Draining, "too many streams; subscribe at another operator"));
        }
        let (stays, gone) = oneshot::channel();
        let number = taken.next;
        taken.next = number.wrapping_add(1);
        let places = taken.of.entry(identity).or_default();
        places.push_back((number, stays));
        if own < self.per_identity {
            taken.count = taken.count.saturating_add(1);
        } else {
            // The one whose sender goes away here sees that.
            places.pop_front();
        }
        drop(taken);
        Ok(Place { places: self.clone(), identity, number, gone })
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Resolves when a newer stream of the same identity needs the place.
    pub async fn gone(&mut self) {
        let _ = (&mut self.gone).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        let Some(places) = taken.of.get_mut(&self.identity) else { return };
        let before = places.len();
        places.retain(|(number, _)| *number != self.number);
        let freed = before.saturating_sub(places.len());
        if places.is_empty() {
            taken.of.remove(&self.identity);
        }
        taken.count = taken.count.saturating_sub(freed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_oldest_of_an_identity_gives_way_and_nobody_elses() {
        let places = Places::new(2, 3);
        let mut first = places.take([1; 33]).unwrap();
        let mut second = places.take([1; 33]).unwrap();
        let mut other = places.take([2; 33]).unwrap();
        assert!(first.gone().now_or_never().is_none());
        let third = places.take([1; 33]).unwrap();
        first.gone().await;
        assert!(second.gone().now_or_never().is_none() && other.gone().now_or_never().is_none());
        assert_eq!(places.count(), 3);
        // A place that was lost frees none.
        drop(first);
        assert_eq!(places.count(), 3);
        assert_eq!(places.take([3; 33]).unwrap_err().reason, Reason::Draining);
        drop((third, second));
        assert_eq!(places.count(), 1);
        let _again = places.take([3; 33]).unwrap();
    }
}
