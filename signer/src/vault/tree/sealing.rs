//! Sealing and writing what a batch makes anew. No page needs another one's seal, only its key: so pages are sealed and
//! written while the next ones are laid out, in runs, as they lie in the store.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use super::Place;
use crate::vault::{
    cores,
    error::VaultError,
    seal::{self, Buffer, DataKey, SealBroken},
    store::{Extent, SealedStore},
};

/// Pages that are written together.
const RUN: usize = 64;

/// A page or node in the clear, and the key that it is to be sealed under.
pub(super) struct Unsealed {
    place: Place,
    /// Until it is sealed.
    key: Option<DataKey>,
    page: Buffer,
    /// So many bytes stay in the clear; they are associated data.
    clear: usize,
}

impl Unsealed {
    /// Give `page` room for the tag.
    pub(super) const fn new(place: Place, key: DataKey, page: Buffer, clear: usize) -> Self {
        Self { place, key: Some(key), page, clear }
    }

    fn seal(&mut self) -> Result<(), SealBroken> {
        let Some(key) = &self.key else { return Ok(()) };
        let (open, text) = self.page.split_at_mut_checked(self.clear).ok_or(SealBroken)?;
        let tag = self.place.bind(open, |context| seal::seal_in_place(key.expose(), context, text))?;
        self.page.extend_from_slice(&tag);
        self.key = None;
        Ok(())
    }

    /// What the store gets.
    fn sealed(&self) -> Result<(Extent, &[u8]), SealBroken> {
        if self.key.is_some() { Err(SealBroken) } else { Ok((self.place.at, self.page.as_slice())) }
    }
}

/// Takes pages and nodes as they are laid out.
pub(super) struct Press {
    run: Vec<Unsealed>,
    runs: Sender<Vec<Unsealed>>,
}

impl Press {
    pub(super) fn push(&mut self, page: Unsealed) {
        self.run.push(page);
        if self.run.len() == RUN {
            self.next();
        }
    }

    fn end(mut self) {
        if !self.run.is_empty() {
            self.next();
        }
    }

    fn next(&mut self) {
        let run = std::mem::replace(&mut self.run, Vec::with_capacity(RUN));
        // The other end is there as long as this one.
        let _ = self.runs.send(run);
    }
}

/// Seals and writes, durably, what `lay_out` gives to the press: meanwhile, if that may be `many` pages.
pub(super) fn press<T>(
    store: &dyn SealedStore,
    many: usize,
    lay_out: impl FnOnce(&mut Press) -> Result<T, VaultError>,
) -> Result<T, VaultError> {
    let (runs, waiting) = channel();
    let waiting = Mutex::new(waiting);
    let (written, unsynced) = channel();
    let (written, unsynced) = (Mutex::new(Some(written)), Mutex::new(unsynced));
    let write = || -> Result<(), VaultError> {
        while let Some(run) = next(&waiting) {
            seal_and_write(run, store)?;
            let _ = lock(&written).as_ref().map(|written| written.send(()));
        }
        Ok(())
    };
    // The disk gets what is there while the rest is made. The last time begins when all of it was written.
    let sync = || -> Result<(), VaultError> {
        let unsynced = lock(&unsynced);
        while unsynced.recv().is_ok() {
            while unsynced.try_recv().is_ok() {}
            store.sync_pages()?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let (writers, syncer) = if many < RUN {
            (Vec::new(), None)
        } else {
            let writers = (0..cores::helpers(many)).filter_map(|_| cores::help(scope, write));
            (writers.collect(), cores::help(scope, sync))
        };
        let mut press = Press { run: Vec::with_capacity(RUN), runs };
        let laid_out = lay_out(&mut press);
        press.end();
        let mut all_written = write();
        for writer in writers {
            all_written = all_written.and(writer.join().unwrap_or(Err(CUT_SHORT)));
        }
        *lock(&written) = None;
        let synced = syncer.map_or_else(sync, |syncer| syncer.join().unwrap_or(Err(CUT_SHORT)));
        all_written.and(synced).and(laid_out)
    })
}

const CUT_SHORT: VaultError = VaultError::Damaged("a thread ended");

fn seal_and_write(mut run: Vec<Unsealed>, store: &dyn SealedStore) -> Result<(), VaultError> {
    run.iter_mut().try_for_each(Unsealed::seal).map_err(super::unsealable)?;
    let sealed: Result<Vec<_>, _> = run.iter().map(Unsealed::sealed).collect();
    store.write_pages(&sealed.map_err(super::unsealable)?)?;
    // No secret any more, so not to be wiped.
    run.iter_mut().for_each(|page| drop(page.page.take()));
    Ok(())
}

fn next(waiting: &Mutex<Receiver<Vec<Unsealed>>>) -> Option<Vec<Unsealed>> {
    lock(waiting).recv().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
