//! Work on many pages at once, on as many cores as there are.

use std::{
    slice::ChunksMut,
    sync::{Mutex, OnceLock, PoisonError},
    thread::{self, Builder},
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
    let helpers = (items.len() / WORTH_A_THREAD).min(cores().saturating_sub(1));
    let queue = Mutex::new(items.chunks_mut(PORTION));
    let take_part = || {
        while let Some(portion) = next(&queue) {
            portion.iter_mut().for_each(&work);
        }
    };
    thread::scope(|scope| {
        for _ in 0..helpers {
            let _ = Builder::new().stack_size(STACK).spawn_scoped(scope, take_part);
        }
        take_part();
    });
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
    fn every_item_is_done_once() {
        for count in [0, 1, PORTION, WORTH_A_THREAD * 5 + 3] {
            let mut items: Vec<usize> = (0..count).collect();
            each(&mut items, |item| *item += 1);
            assert_eq!(items, (1..=count).collect::<Vec<_>>());
        }
    }
}
