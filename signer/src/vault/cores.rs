//! Work on many pages at once, on as many cores as there are.

use std::{
    slice::ChunksMut,
    sync::{Mutex, OnceLock, PoisonError},
    thread::{self, Builder, Scope, ScopedJoinHandle},
};

/// A thread costs about as much as sealing this many pages.
const WORTH_A_THREAD: usize = 32;
/// Threads beyond this many would wait for the store, which one thread reads and writes.
const MOST_THREADS: usize = 4;
/// Items that a thread takes at a time.
const PORTION: usize = 16;
/// Bytes; locked in memory like everything else.
const STACK: usize = 128 * 1024;

/// Does something to each item. Where no thread is to be had, this one does it all.
pub(super) fn each<T: Send>(items: &mut [T], work: impl Fn(&mut T) + Sync) {
    let helpers = helpers(items.len());
    let queue = Mutex::new(items.chunks_mut(PORTION));
    let take_part = || {
        while let Some(portion) = next(&queue) {
            portion.iter_mut().for_each(&work);
        }
    };
    thread::scope(|scope| {
        for _ in 0..helpers {
            help(scope, take_part);
        }
        take_part();
    });
}

/// How many threads may help with so much work, which begins with nothing done.
pub(super) fn helpers(items: usize) -> usize {
    (items / WORTH_A_THREAD).min(cores().saturating_sub(1))
}

/// A thread that helps, if one is to be had.
pub(super) fn help<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Option<ScopedJoinHandle<'scope, T>> {
    Builder::new().stack_size(STACK).spawn_scoped(scope, work).ok()
}

/// Does two things at once, `aside` on a thread of its own; one after the other where none is to be had.
pub(super) fn both<A: Send, B>(aside: impl FnOnce() -> A + Send, here: impl FnOnce() -> B) -> (Option<A>, B) {
    let state = Mutex::new((Some(aside), None));
    let take = || {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(work) = state.0.take() {
            state.1 = Some(work());
        }
    };
    let here = thread::scope(|scope| {
        // What a device's library needs of a stack is its own business: as much as any thread has.
        let thread = Builder::new().spawn_scoped(scope, take);
        let here = here();
        if thread.is_err() {
            take();
        }
        here
    });
    (state.into_inner().unwrap_or_else(PoisonError::into_inner).1, here)
}

fn next<'a, T>(queue: &Mutex<ChunksMut<'a, T>>) -> Option<&'a mut [T]> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).next()
}

fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(1, |cores| cores.get().min(MOST_THREADS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_done() {
        let (mut aside, mut here) = (1, 1);
        assert_eq!(
            both(
                || {
                    aside += 1;
                    aside
                },
                || {
                    here += 2;
                    here
                }
            ),
            (Some(2), 3)
        );
    }

    #[test]
    fn every_item_is_done_once() {
        for count in [0, 1, PORTION, WORTH_A_THREAD * 5 + 3] {
            let mut items: Vec<usize> = (0..count).collect();
            each(&mut items, |item| *item += 1);
            assert_eq!(items, (1..=count).collect::<Vec<_>>());
        }
    }
}
