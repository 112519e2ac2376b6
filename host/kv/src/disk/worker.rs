//! Threads that read and write slots: demand reads first, then wipes and writes, then prefetches.
//!
//! Started by the tier and joined when it is dropped, after all that was queued is done.
//! **Invariant:** no lock is held while a file is touched or a caller is called.

use std::io::{Error, ErrorKind, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::layout::{HEADER_BYTES, SlabHeader, SlotHeader};
use super::slabs;
use super::state::{Read, Reserved, Room, State, Wipe, Write};
use super::stats::now;
use super::{Miss, Shared};
use crate::{KvEvent, Slot, SlotMut};

enum Job {
    Read(Read),
    Wipe(Wipe),
    Write(Write),
}

/// Works until the tier closes and nothing is left to do.
pub(super) fn run(shared: &Shared, mut page: SlotMut) {
    while let Some(job) = next(shared) {
        match job {
            Job::Read(read) => serve(shared, &mut page, read),
            Job::Wipe(wipe) => clear(shared, &mut page, &wipe),
            Job::Write(write) => store(shared, &mut page, &write),
        }
    }
    let mut state = shared.state.lock();
    state.workers_left -= 1;
    drop(state);
    shared.keeper.notify_one();
}

/// What is most urgent; waits for it. `None` when the tier closes.
fn next(shared: &Shared) -> Option<Job> {
    let mut state = shared.state.lock();
    loop {
        if let Some(read) = state.demand.pop_front() {
            return Some(Job::Read(read));
        }
        if let Some(wipe) = state.wipes.pop() {
            return Some(Job::Wipe(wipe));
        }
        if let Some(write) = state.writes.pop_front() {
            return Some(Job::Write(write));
        }
        if let Some(read) = state.prefetch.pop_front() {
            return Some(Job::Read(read));
        }
        if state.closing {
            return None;
        }
        shared.work.wait(&mut state);
    }
}

/// What a slot was found to hold.
enum Found {
    Block,
    SomethingElse,
    Nothing(Error),
}

fn serve(shared: &Shared, page: &mut SlotMut, mut read: Read) {
    let geometry = &shared.geometry;
    let padded = geometry.padded_bytes();
    let offset = geometry.offset(read.place.index);
    let found = match read.file.read(offset, page, &mut read.into.padded_mut()[..padded]) {
        Err(error) => Found::Nothing(error),
        Ok(()) => {
            let header = SlotHeader::decode(page, read.place, geometry);
            let is_it = header.is_some_and(|header| {
                header.name == read.name
                    && header.generation == read.generation
                    && header.payload_crc == crc32fast::hash(&read.into[..geometry.block_bytes])
            });
            if is_it { Found::Block } else { Found::SomethingElse }
        }
    };
    let outcome = settle(&mut shared.state.lock(), geometry.block_bytes, &read, found);
    shared.work.notify_one();
    let Read { into, done, .. } = read;
    let given = outcome.map(|()| into.freeze());
    call(shared, done, given);
}

/// Calls a caller back. One that panics must not take a thread with it.
pub(super) fn call(shared: &Shared, done: super::Done, given: std::result::Result<Slot, Miss>) {
    if catch_unwind(AssertUnwindSafe(|| done(given))).is_err() {
        shared.state.lock().counts.callback_panics += 1;
    }
}

/// What a reading means for the block: a slot that holds something else is given up.
fn settle(state: &mut State, bytes: usize, read: &Read, found: Found) -> std::result::Result<(), Miss> {
    let is_current = read.epoch == state.epoch && {
        let entry = state.residents.entry(read.slot);
        entry.is_resident() && entry.generation() == read.generation
    };
    if !is_current {
        state.counts.misses += 1;
        return Err(Miss::Absent);
    }
    state.residents.unpin(read.slot, read.generation);
    match found {
        Found::Block => {
            state.reading.succeeded();
            let used = state.use_once();
            state.residents.touch(read.slot, used);
            state.counts.hits += 1;
            state.counts.bytes_read += bytes as u64;
            state.counts.fetch.add(now().saturating_duration_since(read.asked));
            Ok(())
        }
        Found::SomethingElse => {
            state.counts.misses += 1;
            state.counts.corrupt += 1;
            state.counts.last_error =
                Some(format!("slab {} slot {} is damaged", read.place.slab, read.place.index));
            state.drop_resident(read.slot);
            state.wipe(read.slot);
            Err(Miss::Corrupt)
        }
        Found::Nothing(error) => {
            state.counts.misses += 1;
            state.counts.read_errors += 1;
            state.counts.last_error = Some(format!("read of slab {}: {error}", read.place.slab));
            state.reading.failed();
            // A file that ends is not a device that hiccups: nothing will ever be read there.
            let is_gone = error.kind() == ErrorKind::UnexpectedEof;
            if state.residents.note_failure(read.slot) || is_gone {
                state.counts.quarantined += 1;
                state.drop_resident(read.slot);
            }
            Err(Miss::Failed)
        }
    }
}

fn clear(shared: &Shared, page: &mut SlotMut, wipe: &Wipe) {
    let target = {
        let state = shared.state.lock();
        (wipe.epoch == state.epoch).then(|| {
            let (slab, place) = state.slabs.locate(wipe.slot);
            (Arc::clone(&slab.file), place)
        })
    };
    let written = target.as_ref().map(|(file, place)| {
        page.fill(0);
        file.write(shared.geometry.offset(place.index), page, &[])
    });
    let mut state = shared.state.lock();
    state.outstanding.remove(&wipe.ticket);
    if let (Some((_, place)), Some(written)) = (target, written)
        && wipe.epoch == state.epoch
    {
        match written {
            Ok(()) => {
                state.unsynced_slabs.insert(place.slab);
                state.free.push_back(wipe.slot);
            }
            Err(error) => {
                // Its old block may be found after a crash, which the caller of `sync` has to hear.
                let text = format!("clearing slab {} slot {}: {error}", place.slab, place.index);
                state.counts.write_errors += 1;
                state.counts.quarantined += 1;
                state.counts.last_error = Some(text.clone());
                state.rounds.failed = Some((state.rounds.begun + 1, text));
            }
        }
    }
    drop(state);
    shared.waiters.notify_all();
}

fn store(shared: &Shared, page: &mut SlotMut, write: &Write) {
    match room(shared, write) {
        None => shared.state.lock().give_up(write),
        Some(reserved) => {
            let written = write_slot(shared, page, write, &reserved);
            let mut state = shared.state.lock();
            state.publish(write, &reserved, written);
        }
    }
    shared.work.notify_one();
    shared.waiters.notify_all();
}

fn write_slot(shared: &Shared, page: &mut SlotMut, write: &Write, reserved: &Reserved) -> Result<()> {
    let geometry = &shared.geometry;
    assert_eq!(page.len(), HEADER_BYTES, "a page holds a header");
    let header = SlotHeader {
        generation: reserved.generation,
        name: write.name,
        parent: write.parent,
        retention: reserved.retention,
        created_ms: reserved.created_ms,
        payload_crc: crc32fast::hash(&write.payload[..geometry.block_bytes]),
    };
    header.encode(reserved.place, geometry, page);
    let payload = &write.payload.padded()[..geometry.padded_bytes()];
    reserved.file.write(geometry.offset(reserved.place.index), page, payload)
}

/// Attempts at a slot for one write: other threads may take what a growth brings.
const GROWTHS_MAX: u32 = 8;

fn room(shared: &Shared, write: &Write) -> Option<Reserved> {
    for _ in 0..GROWTHS_MAX {
        let (number, slots) = match find(shared, write) {
            Room::Slot(reserved) => return Some(reserved),
            Room::Declined => return None,
            Room::Grow { number, slots } => (number, slots),
        };
        let growing = shared.growing.lock();
        // Somebody else may have grown while we waited for the lock.
        if shared.state.lock().slabs.next_number() == number {
            grow(shared, SlabHeader { slab: number, slots });
        }
        drop(growing);
    }
    None
}

fn find(shared: &Shared, write: &Write) -> Room {
    shared.state.lock().room_for(write, &shared.geometry, shared.config.bytes_max)
}

/// Adds a slab, or lets the tier go on with what it has for a while.
fn grow(shared: &Shared, header: SlabHeader) {
    let epoch = shared.state.lock().epoch;
    let made = slabs::make(&*shared.media, &shared.config.folder, &shared.geometry, header);
    let mut state = shared.state.lock();
    match made {
        // Everything was dropped meanwhile; that was another cache.
        Ok(_) if state.epoch != epoch => {
            let _gone = std::fs::remove_file(slabs::path_of(&shared.config.folder, header.slab));
        }
        Ok(file) => {
            state.growing.succeeded();
            let base = state.slabs.slots();
            state.slabs.add(header.slab, header.slots, file);
            state.residents.add_slots(header.slots);
            for slot in base..base + header.slots {
                state.free.push_front(slot);
            }
        }
        Err(error) => {
            state.counts.grow_errors += 1;
            state.counts.last_error = Some(format!("making slab {}: {error}", header.slab));
            state.growing.failed();
        }
    }
}

/// Takes everything out: names are gone at once, files when this returns.
pub(super) fn drop_all(shared: &Shared) -> Result<()> {
    let _growing = shared.growing.lock();
    let taken = {
        let mut state = shared.state.lock();
        state.epoch += 1;
        let names: Vec<_> = state.residents.iter().map(|(_, entry)| entry.name()).collect();
        state.counts.removed += names.len() as u64;
        for name in names {
            state.record(KvEvent::Removed { name });
        }
        state.residents = super::Residents::new(shared.slots_max());
        state.free.clear();
        state.pending.clear();
        state.unsynced.clear();
        state.unsynced_slabs.clear();
        state.slabs.take()
    };
    let mut outcome = Ok(());
    for slab in taken {
        // All are tried, whatever becomes of one.
        outcome = outcome.and(std::fs::remove_file(slabs::path_of(&shared.config.folder, slab.number)));
    }
    outcome.and_then(|()| super::media::sync_folder(&shared.config.folder))
}
