//! The thread that makes durable what was written, all at once every few milliseconds, and tells the index.
//!
//! Started by the tier and joined when it is dropped, after its last round.
//! **Invariant:** a block is counted as synced after its slab was synced that held it; the index hears of it later.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::MutexGuard;

use super::Shared;
use super::layout::{Place, Record};
use super::media::SlabFile;
use super::meta::{Digest, MetaError, MetaStore};
use super::state::State;

/// Records that go to the index in one batch, taken under the lock at once.
const RECORDS_MAX: usize = 1024;

/// Rounds from one flush of the index to the next. Chosen: what it adds to the headers is worth a second.
const ROUNDS_A_FLUSH: u64 = 20;

/// Works until the tier closes and its workers are done; then marks the index as complete.
pub(super) fn run(shared: &Shared, mut index: Option<Box<dyn MetaStore>>) {
    loop {
        let mut state = shared.state.lock();
        if state.rounds.wanted <= state.rounds.begun && !state.closing {
            let _timed_out = shared.keeper.wait_for(&mut state, shared.config.sync_every);
        }
        let is_last = state.closing && state.workers_left == 0;
        if state.closing && !is_last {
            let _timed_out = shared.keeper.wait_for(&mut state, shared.config.sync_every);
            continue;
        }
        let is_asked = state.rounds.wanted > state.rounds.begun;
        let round = commit(shared, state);
        let flush = is_asked || is_last || round.is_multiple_of(ROUNDS_A_FLUSH);
        let noted = index.as_mut().map(|index| note(shared, &mut **index, flush));
        if let Some(Err(error)) = noted {
            fail(shared, &error);
            index = None;
        }
        let mut state = shared.state.lock();
        state.rounds.done = round;
        drop(state);
        shared.waiters.notify_all();
        if is_last {
            close(shared, index);
            return;
        }
    }
}

/// One round of syncing; gives its number.
fn commit(shared: &Shared, mut state: MutexGuard<'_, State>) -> u64 {
    state.rounds.begun += 1;
    let (round, epoch) = (state.rounds.begun, state.epoch);
    let written = std::mem::take(&mut state.unsynced);
    let numbers = std::mem::take(&mut state.unsynced_slabs);
    let in_use = state.slabs.iter().filter(|slab| numbers.contains(&slab.number));
    let files: Vec<(u32, Arc<dyn SlabFile>)> =
        in_use.map(|slab| (slab.number, Arc::clone(&slab.file))).collect();
    drop(state);
    if files.is_empty() {
        return round;
    }
    let mut failed = BTreeSet::new();
    let mut error = None;
    for (number, file) in files {
        if let Err(source) = file.sync() {
            failed.insert(number);
            error = Some(format!("sync of slab {number}: {source}"));
        }
    }
    let mut state = shared.state.lock();
    state.counts.syncs += 1;
    if let Some(text) = error
        && epoch == state.epoch
    {
        state.counts.sync_errors += 1;
        state.counts.last_error = Some(text.clone());
        state.rounds.failed = Some((round, text));
        for (slot, generation) in written {
            if failed.contains(&state.slabs.locate(slot).1.slab) {
                state.unsynced.push((slot, generation));
            }
        }
        state.unsynced_slabs.extend(failed);
    }
    round
}

/// Brings the index up to date, in batches.
fn note(shared: &Shared, index: &mut dyn MetaStore, flush: bool) -> Result<(), MetaError> {
    loop {
        let changes: Vec<(Place, Option<Record>)> = {
            let mut state = shared.state.lock();
            let slots = state.residents.take_changed(RECORDS_MAX);
            slots.into_iter().map(|slot| (state.slabs.locate(slot).1, state.record_of(slot))).collect()
        };
        if changes.is_empty() {
            break;
        }
        index.apply(&changes)?;
    }
    if flush { index.flush() } else { Ok(()) }
}

/// The last act: the index is complete, so that the next start need not read headers.
fn close(shared: &Shared, index: Option<Box<dyn MetaStore>>) {
    let Some(mut index) = index else { return };
    let digest = {
        let state = shared.state.lock();
        // What is not on the device is not vouched for, nor is a slot whose old header could not be cleared.
        if !state.unsynced.is_empty() || state.epoch > 0 {
            return;
        }
        let mut digest = Digest::default();
        for (slot, entry) in state.residents.iter() {
            digest.add(state.slabs.locate(slot).1, entry.generation(), entry.name());
        }
        digest
    };
    if let Err(error) = index.mark(Some(digest)) {
        fail(shared, &error);
    }
}

fn fail(shared: &Shared, error: &MetaError) {
    let mut state = shared.state.lock();
    state.counts.index_errors += 1;
    state.counts.last_error = Some(error.to_string());
}
