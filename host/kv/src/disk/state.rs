//! What the tier knows and what waits to be done, under one lock.
//!
//! Called by the tier's methods, its workers and its keeper; holds no lock itself and touches no file.
//!
//! ```text
//!           room_for              publish                     evict, remove
//!   free ──────────────► writing ─────────► resident ◄─► read ─────────────► free
//!     ▲                     │                                  wiped first, if removed
//!     └──── failed: last ───┘
//! ```
//!
//! **Invariant:** a slot is free, in one worker's hands, holds one resident block, waits to be wiped, or is
//! quarantined. What a worker brings back counts only while the epoch of its job is the tier's, and for a read while
//! the slot's generation is that of the read.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashMap;

use super::layout::{Place, Record};
use super::media::SlabFile;
use super::residents::{Entry, Placed, Residents, class};
use super::slabs::Slabs;
use super::stats::{Breaker, DiskStats};
use super::{Block, Config, Done};
use crate::Geometry;
use crate::{BlockName, KvEvent, Retention, Slot, SlotMut};

/// A block that is to be read.
pub(super) struct Read {
    pub(super) name: BlockName,
    pub(super) slot: u32,
    pub(super) generation: u64,
    pub(super) epoch: u64,
    pub(super) place: Place,
    pub(super) file: Arc<dyn SlabFile>,
    pub(super) into: SlotMut,
    pub(super) done: Done,
    pub(super) asked: Instant,
}

/// A block that is to be written.
pub(super) struct Write {
    pub(super) name: BlockName,
    pub(super) parent: Option<BlockName>,
    pub(super) payload: Slot,
    pub(super) ticket: u64,
    pub(super) epoch: u64,
}

/// A slot whose header is to be cleared, so that no start finds what was in it.
pub(super) struct Wipe {
    pub(super) slot: u32,
    pub(super) ticket: u64,
    pub(super) epoch: u64,
}

/// A slot that a worker writes.
pub(super) struct Reserved {
    pub(super) slot: u32,
    pub(super) generation: u64,
    pub(super) place: Place,
    pub(super) file: Arc<dyn SlabFile>,
    /// On the caller's clock, like the next.
    pub(super) retention: Retention,
    pub(super) created_ms: u64,
}

/// What becomes of a write that looks for a slot.
pub(super) enum Room {
    Slot(Reserved),
    /// A slab of so many slots, under this number, first.
    Grow {
        number: u32,
        slots: u32,
    },
    /// Not this one.
    Declined,
}

/// A block on its way, which is not found yet.
pub(super) struct Pending {
    retention: Retention,
    /// It was removed meanwhile.
    removed: bool,
}

/// Rounds of group commit. Everything written before a round begins is on the device when it is done.
#[derive(Default)]
pub(super) struct Rounds {
    pub(super) wanted: u64,
    pub(super) begun: u64,
    pub(super) done: u64,
    /// The latest that failed, and why.
    pub(super) failed: Option<(u64, String)>,
}

/// The caller's clock, and what it was set back by: the tier's own never goes back, so that nothing is kept longer
/// than it was wished for.
#[derive(Clone, Copy, Default)]
pub(super) struct Clock {
    told_ms: u64,
    ahead_ms: u64,
}

impl Clock {
    pub(super) fn at(told_ms: u64) -> Self {
        Self { told_ms, ahead_ms: 0 }
    }

    fn tell(&mut self, now_ms: u64) {
        let back = self.told_ms.saturating_sub(now_ms);
        self.ahead_ms = self.ahead_ms.saturating_add(back);
        self.told_ms = now_ms;
    }

    fn here(&self, retention: Retention) -> Retention {
        let until_ms = match retention.until_ms {
            0 => 0,
            until => until.saturating_add(self.ahead_ms),
        };
        Retention { until_ms, ..retention }
    }

    pub(super) fn there(&self, retention: Retention) -> Retention {
        let until_ms = match retention.until_ms {
            0 => 0,
            until => until.saturating_sub(self.ahead_ms).max(1),
        };
        Retention { until_ms, ..retention }
    }
}

pub(super) struct State {
    pub(super) residents: Residents,
    pub(super) slabs: Slabs,
    /// Used from the back; slots that failed come in at the front.
    pub(super) free: VecDeque<u32>,
    pub(super) pending: FxHashMap<BlockName, Pending>,
    pub(super) demand: VecDeque<Read>,
    pub(super) writes: VecDeque<Write>,
    pub(super) prefetch: VecDeque<Read>,
    pub(super) wipes: Vec<Wipe>,
    /// Writes and wipes that are not done.
    pub(super) outstanding: BTreeSet<u64>,
    pub(super) tickets: u64,
    /// Slots written since the last commit, with their generation.
    pub(super) unsynced: Vec<(u32, u64)>,
    /// Numbers of slabs written since the last commit.
    pub(super) unsynced_slabs: BTreeSet<u32>,
    pub(super) rounds: Rounds,
    /// Counts writes and uses, and so gives generations.
    pub(super) uses: u64,
    pub(super) clock: Clock,
    pub(super) events: Vec<KvEvent>,
    pub(super) events_lost: bool,
    pub(super) counts: DiskStats,
    /// Goes up when everything is dropped.
    pub(super) epoch: u64,
    pub(super) closing: bool,
    pub(super) workers_left: usize,
    pub(super) writing: Breaker,
    pub(super) reading: Breaker,
    pub(super) growing: Breaker,
}

/// Fewest events kept for `drain_events`. Chosen: reaching it, or four for each slot, means that nobody drains.
const EVENTS_MAX_MIN: usize = 1 << 20;

impl State {
    pub(super) fn new(config: &Config, residents: Residents, slabs: Slabs, clock: Clock) -> Self {
        Self {
            residents,
            slabs,
            free: VecDeque::new(),
            pending: FxHashMap::default(),
            demand: VecDeque::new(),
            writes: VecDeque::new(),
            prefetch: VecDeque::new(),
            wipes: Vec::new(),
            outstanding: BTreeSet::new(),
            tickets: 0,
            unsynced: Vec::new(),
            unsynced_slabs: BTreeSet::new(),
            rounds: Rounds::default(),
            uses: 0,
            clock,
            events: Vec::new(),
            events_lost: false,
            counts: DiskStats { bytes_max: config.bytes_max, ..DiskStats::default() },
            epoch: 0,
            closing: false,
            workers_left: config.threads,
            writing: Breaker::new(config.retry_after),
            reading: Breaker::new(config.retry_after),
            growing: Breaker::strict(config.retry_after),
        }
    }

    /// The next number of the count of writes and uses.
    pub(super) fn use_once(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    pub(super) fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.outstanding.insert(self.tickets);
        self.tickets
    }

    /// Queues a block that is neither here nor coming.
    pub(super) fn enqueue(&mut self, block: Block, payload: Slot) {
        let Block { name, parent, retention } = block;
        let (ticket, epoch) = (self.ticket(), self.epoch);
        let retention = self.clock.here(retention);
        self.pending.insert(name, Pending { retention, removed: false });
        self.writes.push_back(Write { name, parent, payload, ticket, epoch });
    }

    /// Finds a slot for a write: a free one, one of a slab to come, or one whose block is worth no more.
    ///
    /// The parent adopts the block, so that it is not what makes room.
    pub(super) fn room_for(&mut self, write: &Write, geometry: &Geometry, bytes_max: u64) -> Room {
        let Some(pending) = self.pending.get(&write.name).filter(|_| write.epoch == self.epoch) else {
            return Room::Declined;
        };
        let (retention, removed) = (pending.retention, pending.removed);
        if removed {
            return Room::Declined;
        }
        if self.writing.is_open() {
            self.counts.declined_fault += 1;
            return Room::Declined;
        }
        if self.free.is_empty()
            && !self.growing.is_open()
            && let Some(slots) = self.slabs.growth(geometry, bytes_max)
        {
            return Room::Grow { number: self.slabs.next_number(), slots };
        }
        self.residents.adopt(write.parent);
        let Some(slot) = self.free.pop_back().or_else(|| self.evict(class(retention))) else {
            self.residents.disown(write.parent);
            self.counts.declined_worth += 1;
            return Room::Declined;
        };
        let generation = self.use_once();
        let (slab, place) = self.slabs.locate(slot);
        let (file, retention) = (Arc::clone(&slab.file), self.clock.there(retention));
        Room::Slot(Reserved { slot, generation, place, file, retention, created_ms: self.clock.told_ms })
    }

    /// Empties the slot of the block that leaves first, if it is of `class_max` or less.
    fn evict(&mut self, class_max: u16) -> Option<u32> {
        let (slot, class) = self.residents.first_to_leave().filter(|(_, class)| *class <= class_max)?;
        match class >> 8 {
            0 => self.counts.evicted_dropped += 1,
            1 => self.counts.evicted_ordinary += 1,
            _ => self.counts.evicted_kept += 1,
        }
        let name = self.residents.leave(slot);
        self.record(KvEvent::Removed { name });
        Some(slot)
    }

    /// A write came to nothing before it had a slot.
    pub(super) fn give_up(&mut self, write: &Write) {
        self.outstanding.remove(&write.ticket);
        if write.epoch == self.epoch {
            self.pending.remove(&write.name);
        }
    }

    /// A slot is written: its block is found from here on, unless it was removed meanwhile.
    pub(super) fn publish(&mut self, write: &Write, reserved: &Reserved, written: std::io::Result<()>) {
        self.outstanding.remove(&write.ticket);
        if write.epoch != self.epoch {
            return;
        }
        let pending =
            self.pending.remove(&write.name).expect("a block on its way is pending until it is here");
        if let Err(error) = written {
            self.counts.write_errors += 1;
            self.counts.declined_fault += 1;
            self.counts.last_error = Some(format!("write to slab {}: {error}", reserved.place.slab));
            self.writing.failed();
            self.residents.disown(write.parent);
            self.free.push_front(reserved.slot);
            return;
        }
        self.writing.succeeded();
        self.unsynced_slabs.insert(reserved.place.slab);
        let placed = Placed {
            name: write.name,
            parent: write.parent,
            retention: pending.retention,
            generation: reserved.generation,
            used: reserved.generation,
        };
        if pending.removed || !self.residents.place(reserved.slot, placed) {
            self.residents.disown(write.parent);
            self.wipe(reserved.slot);
            return;
        }
        self.counts.writes += 1;
        self.counts.bytes_written += write.payload.len() as u64;
        self.unsynced.push((reserved.slot, reserved.generation));
        self.record(KvEvent::Stored { name: write.name, parent: write.parent });
    }

    /// Has the header of a slot cleared that holds nothing any more.
    pub(super) fn wipe(&mut self, slot: u32) {
        let (ticket, epoch) = (self.ticket(), self.epoch);
        self.wipes.push(Wipe { slot, ticket, epoch });
    }

    /// Takes a resident block out.
    pub(super) fn drop_resident(&mut self, slot: u32) {
        let name = self.residents.leave(slot);
        self.record(KvEvent::Removed { name });
    }

    /// Takes a block out by name, here or on its way. Whether there was one.
    pub(super) fn remove(&mut self, name: &BlockName) -> bool {
        if let Some(pending) = self.pending.get_mut(name) {
            return !std::mem::replace(&mut pending.removed, true);
        }
        let Some(slot) = self.residents.find(name) else { return false };
        self.counts.removed += 1;
        self.drop_resident(slot);
        self.wipe(slot);
        true
    }

    /// Says what a block is worth, here or on its way. Whether there was one.
    pub(super) fn retain(&mut self, name: &BlockName, retention: Retention) -> bool {
        let retention = self.clock.here(if retention.drop { Retention::DROPPED } else { retention });
        if let Some(pending) = self.pending.get_mut(name) {
            pending.retention = retention;
            return !pending.removed;
        }
        let Some(slot) = self.residents.find(name) else { return false };
        self.residents.retain(slot, retention);
        true
    }

    /// Takes the time, and ends what was to be kept until now.
    pub(super) fn expire(&mut self, now_ms: u64) {
        self.clock.tell(now_ms);
        self.residents.expire(self.clock.told_ms.saturating_add(self.clock.ahead_ms));
    }

    /// What the index is to know of a slot: `None` if it holds nothing.
    pub(super) fn record_of(&self, slot: u32) -> Option<Record> {
        let entry: &Entry = self.residents.entry(slot);
        entry.is_resident().then(|| Record {
            generation: entry.generation(),
            name: entry.name(),
            parent: entry.parent(),
            retention: self.clock.there(entry.retention()),
            used: entry.used(),
            noted_ms: self.clock.told_ms,
        })
    }

    pub(super) fn record(&mut self, event: KvEvent) {
        let events_max = EVENTS_MAX_MIN.max(self.slabs.slots() as usize * 4);
        if self.events.len() >= events_max || self.events_lost {
            self.events_lost = true;
            self.events = Vec::new();
            return;
        }
        self.events.push(event);
    }

    /// The counts with what is so at this moment.
    pub(super) fn stats(&mut self, geometry: &Geometry) -> DiskStats {
        DiskStats {
            blocks: self.residents.len() as u64,
            kept: self.residents.kept() as u64,
            slots: u64::from(self.slabs.slots()),
            bytes: self.slabs.bytes(geometry),
            memory_bytes: (self.residents.heap_bytes() + self.free.capacity() * size_of::<u32>()) as u64,
            unsynced: self.unsynced.len() as u64,
            demand_queue_len: self.demand.len(),
            write_queue_len: self.writes.len() + self.wipes.len(),
            prefetch_queue_len: self.prefetch.len(),
            direct: self.slabs.iter().all(|slab| slab.file.is_direct()),
            writes_paused: self.writing.is_open(),
            reads_paused: self.reading.is_open(),
            ..self.counts.clone()
        }
    }
}
