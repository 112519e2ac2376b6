//! KV blocks on a local disk: slots of slab files, each with a header that says what it holds and a checksum of it.
//!
//! A worker gives blocks that leave its memory and asks for those it lacks; both return at once, and threads of the
//! tier do the work between a file and a slot of an [`Arena`](crate::Arena), without a copy.
//! **Invariant:** a block is served as it was given, or not at all, whatever the disk does and whenever the process
//! ends. A failure of the disk costs hits, never a request. What was synced and has not left is there after a crash.

mod expiry;
mod keeper;
mod layout;
mod media;
mod meta;
mod order;
mod paged;
mod recovery;
mod residents;
mod slabs;
mod state;
mod stats;
mod table;
mod worker;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::{BlockName, Geometry, KvEvent, Retention, Slot, SlotMut};
use media::{Media, SystemMedia};
use meta::OpenMeta;
use recovery::{Recovery, Start};
use residents::Residents;
use state::{Read, State};

pub use stats::{DiskStats, Latency};

/// Where the tier lies and how much of it there may be.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder; made if it is not there. It belongs to one tier at a time.
    pub folder: PathBuf,
    /// Most bytes of all slabs, headers included. The index comes on top, at about a thousandth.
    pub bytes_max: u64,
    /// Threads that read and write, at least one.
    pub threads: usize,
    /// From one group commit to the next.
    pub sync_every: Duration,
    /// Most jobs that wait in each queue.
    pub queue_max: usize,
    /// How long a disk that fails is left alone at first; up to 64 times as long when it goes on failing.
    pub retry_after: Duration,
}

impl Config {
    /// A tier in `folder` of at most `bytes_max`, with what suits most disks.
    pub fn new(folder: impl Into<PathBuf>, bytes_max: u64) -> Self {
        Self {
            folder: folder.into(),
            bytes_max,
            // Measured on a virtual disk: 4 threads write 3 times and read twice as much as one, 8 hardly more.
            threads: 4,
            // Chosen: what a crash may cost is little, and a sync costs a few milliseconds.
            sync_every: Duration::from_millis(50),
            queue_max: 256,
            retry_after: Duration::from_secs(1),
        }
    }
}

/// A block that is given to the tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// The block.
    pub name: BlockName,
    /// The block before it, if it is not a first block. It need not be on disk.
    pub parent: Option<BlockName>,
    /// What it is worth; the time is on the clock of [`DiskTier::expire`].
    pub retention: Retention,
}

/// What became of a block that was given to the tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    /// It will be written, if there is room among what is worth more and the disk takes it.
    Queued,
    /// It is there, or on its way.
    Present,
    /// As many writes wait as may, or writes are paused after failures.
    Declined,
}

/// How urgent a read is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Urgency {
    /// A sequence waits for it: before all writes.
    Demand,
    /// Somebody may come for it: after all writes.
    Prefetch,
}

/// Why a read gave no block. The caller computes it, or asks elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Miss {
    /// It is not there, or was taken out while it was read.
    #[error("the block is not on disk")]
    Absent,
    /// As many reads wait as may, or reads are paused after failures.
    #[error("the disk tier takes no more reads at the moment")]
    Declined,
    /// Its slot was damaged; the block is given up.
    #[error("the block is damaged on disk")]
    Corrupt,
    /// The disk failed.
    #[error("the block could not be read from disk")]
    Failed,
}

/// Is called once with the block or the reason why not: on a thread of the tier, or at once on the caller's.
pub type Done = Box<dyn FnOnce(Result<Slot, Miss>) + Send>;

/// What a tier found when it opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Recovered {
    /// Blocks that are served.
    pub blocks: u64,
    /// Slots whose header was damaged, whose file was cut, or that were one too many for the quota.
    pub dropped: u64,
    /// Bytes of slabs that were given up: of another geometry or version, or beyond the quota.
    pub reclaimed_bytes: u64,
    /// Whether all headers were read, because the last end was not a clean one or the index did not agree.
    pub rebuilt: bool,
}

/// Why a tier cannot be opened or synced.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The folder or a file in it cannot be used.
    #[error("the disk cache cannot use {}: {source}; it has to be a folder that may be written", path.display())]
    Folder {
        /// The folder, or the file in it.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another tier has the folder.
    #[error("the disk cache in {} is in use by another process; give each its own folder", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The quota holds no block.
    #[error("{bytes_max} bytes of disk cache hold no block; one takes {bytes_min}")]
    TooSmall {
        /// The quota.
        bytes_max: u64,
        /// What one block takes.
        bytes_min: u64,
    },
    /// No thread, or no memory for one.
    #[error("the disk cache cannot start its threads: {source}")]
    Threads {
        /// Why.
        source: std::io::Error,
    },
    /// Not everything is on the device.
    #[error("the disk cache could not be synced: {what}")]
    Sync {
        /// What failed.
        what: String,
    },
}

/// What the tier's threads share.
struct Shared {
    config: Config,
    geometry: Geometry,
    media: Arc<dyn Media>,
    state: Mutex<State>,
    /// Held while a slab is made, so that one is made at a time. Taken before `state`.
    growing: Mutex<()>,
    /// Something waits for a worker.
    work: Condvar,
    /// Something waits for the keeper.
    keeper: Condvar,
    /// Something that `sync` waits for is done.
    waiters: Condvar,
    /// Locked while a thread of the tier lives.
    _lock: File,
}

impl Shared {
    fn slots_max(&self) -> u64 {
        self.config.bytes_max / self.geometry.stride()
    }
}

/// Blocks on a local disk. See the module.
///
/// Cost: no method but `open`, `flush` and `sync` waits for the disk; each takes one short lock.
pub struct DiskTier {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl DiskTier {
    /// Opens the tier in a folder, with the blocks that are in it. `now_ms` is the clock of [`expire`](Self::expire).
    ///
    /// Cost: after a clean end the index is read; after any other end a header of each slot.
    /// Errors: the folder cannot be used, or is in use; the quota holds no block.
    pub fn open(config: Config, geometry: Geometry, now_ms: u64) -> Result<(Self, Recovered), DiskError> {
        Self::open_on(Arc::new(SystemMedia), meta::open_sled, config, geometry, now_ms)
    }

    fn open_on(
        media: Arc<dyn Media>,
        open_index: OpenMeta,
        config: Config,
        geometry: Geometry,
        now_ms: u64,
    ) -> Result<(Self, Recovered), DiskError> {
        assert!(geometry.block_bytes > 0, "a block holds something");
        assert!(config.threads > 0 && config.queue_max > 0, "a tier works");
        let bytes_min = geometry.slab_bytes(1);
        if config.bytes_max < bytes_min {
            return Err(DiskError::TooSmall { bytes_max: config.bytes_max, bytes_min });
        }
        let lock = lock(&config.folder)?;
        let recovery = Recovery { media: &*media, open_index, config: &config, geometry: &geometry, now_ms };
        let Start { state, index, recovered } = recovery.start()?;
        let shared = Arc::new(Shared {
            config,
            geometry,
            media,
            state: Mutex::new(state),
            growing: Mutex::new(()),
            work: Condvar::new(),
            keeper: Condvar::new(),
            waiters: Condvar::new(),
            _lock: lock,
        });
        let mut tier = Self { shared, threads: Vec::new() };
        tier.start_threads(index).map_err(|source| DiskError::Threads { source })?;
        Ok((tier, recovered))
    }

    /// On an error those that started end when the tier is dropped.
    fn start_threads(&mut self, index: Option<Box<dyn meta::MetaStore>>) -> std::io::Result<()> {
        for number in 0..self.shared.config.threads {
            let page = slabs::header_page()?;
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name(format!("kv-disk-{number}"));
            self.threads.push(thread.spawn(move || worker::run(&shared, page))?);
        }
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("kv-disk-sync".to_owned());
        self.threads.push(thread.spawn(move || keeper::run(&shared, index))?);
        Ok(())
    }

    /// Whether a block is on disk.
    pub fn contains(&self, name: &BlockName) -> bool {
        self.shared.state.lock().residents.find(name).is_some()
    }

    /// How many leading blocks are on disk. A block may be there without its parent, so the rest may hold some too.
    ///
    /// Cost: a probe for each of them.
    pub fn resident_prefix(&self, names: &[BlockName]) -> usize {
        let state = self.shared.state.lock();
        names.iter().take_while(|name| state.residents.find(name).is_some()).count()
    }

    /// Gives a block to the tier; its slot is the caller's again when the last who has it drops it.
    pub fn put(&self, block: Block, payload: Slot) -> Put {
        assert!(payload.len() >= self.shared.geometry.block_bytes, "a slot holds a whole block");
        assert!(block.retention.priority <= Retention::PRIORITY_MAX, "a priority is 0 to 100");
        let mut state = self.shared.state.lock();
        if state.residents.find(&block.name).is_some() || state.pending.contains_key(&block.name) {
            return Put::Present;
        }
        if state.writing.is_open() {
            state.counts.declined_fault += 1;
            return Put::Declined;
        }
        if state.writes.len() >= self.shared.config.queue_max {
            state.counts.declined_busy += 1;
            return Put::Declined;
        }
        state.enqueue(block, payload);
        drop(state);
        self.shared.work.notify_one();
        Put::Queued
    }

    /// Reads a block into a slot, and has `done` called with it. The block stays on disk until then at least.
    pub fn get(&self, name: &BlockName, into: SlotMut, urgency: Urgency, done: Done) {
        assert!(into.len() >= self.shared.geometry.block_bytes, "a slot holds a whole block");
        let mut state = self.shared.state.lock();
        match self.reserve_read(&mut state, name, urgency) {
            Ok((slot, generation)) => {
                let (slab, place) = state.slabs.locate(slot);
                let (file, epoch) = (Arc::clone(&slab.file), state.epoch);
                let (name, asked) = (*name, stats::now());
                let read = Read { name, slot, generation, epoch, place, file, into, done, asked };
                match urgency {
                    Urgency::Demand => state.demand.push_back(read),
                    Urgency::Prefetch => state.prefetch.push_back(read),
                }
                drop(state);
                self.shared.work.notify_one();
            }
            Err(miss) => {
                state.counts.misses += 1;
                state.counts.declined_reads += u64::from(miss == Miss::Declined);
                drop(state);
                // The slot is free before the caller hears of it.
                drop(into);
                worker::call(&self.shared, done, Err(miss));
            }
        }
    }

    fn reserve_read(
        &self,
        state: &mut State,
        name: &BlockName,
        urgency: Urgency,
    ) -> Result<(u32, u64), Miss> {
        let slot = state.residents.find(name).ok_or(Miss::Absent)?;
        let waiting = match urgency {
            Urgency::Demand => state.demand.len(),
            Urgency::Prefetch => state.prefetch.len(),
        };
        let is_full = waiting >= self.shared.config.queue_max;
        if is_full || state.reading.is_open() || !state.residents.pin(slot) {
            return Err(Miss::Declined);
        }
        Ok((slot, state.residents.entry(slot).generation()))
    }

    /// Says what a block is worth from here on. Whether it is there, or on its way.
    pub fn retain(&self, name: &BlockName, retention: Retention) -> bool {
        assert!(retention.priority <= Retention::PRIORITY_MAX, "a priority is 0 to 100");
        self.shared.state.lock().retain(name, retention)
    }

    /// What a block is worth that is on disk; the time is rounded up to a second.
    pub fn retention(&self, name: &BlockName) -> Option<Retention> {
        let state = self.shared.state.lock();
        let slot = state.residents.find(name)?;
        Some(state.clock.there(state.residents.entry(slot).retention()))
    }

    /// Takes the caller's time, in Unix milliseconds, and ends what was to be kept until now.
    ///
    /// A clock that is set back takes nothing from the time that has passed.
    pub fn expire(&self, now_ms: u64) {
        self.shared.state.lock().expire(now_ms);
    }

    /// Takes a block out. No start finds it once [`sync`](Self::sync) has returned. Whether it was there.
    pub fn remove(&self, name: &BlockName) -> bool {
        let removed = self.shared.state.lock().remove(name);
        self.shared.work.notify_one();
        removed
    }

    /// Takes everything out and gives its space back; reads on their way are misses.
    ///
    /// Errors: a file could not be removed. Nothing of it is served by this tier, but a later start may find it.
    pub fn flush(&self) -> Result<(), DiskError> {
        let flushed = worker::drop_all(&self.shared);
        let path = || self.shared.config.folder.clone();
        flushed.map_err(|source| DiskError::Folder { path: path(), source })
    }

    /// Returns when what was given and removed before is on the device.
    ///
    /// Errors: something is not; the tier tries again with each group commit.
    pub fn sync(&self) -> Result<(), DiskError> {
        let mut state = self.shared.state.lock();
        let before = state.tickets;
        while state.outstanding.first().is_some_and(|&ticket| ticket <= before) {
            self.shared.waiters.wait(&mut state);
        }
        let wanted = state.rounds.begun + 1;
        state.rounds.wanted = state.rounds.wanted.max(wanted);
        self.shared.keeper.notify_one();
        while state.rounds.done < wanted {
            self.shared.waiters.wait(&mut state);
        }
        match &state.rounds.failed {
            Some((round, what)) if *round >= wanted => Err(DiskError::Sync { what: what.clone() }),
            _ => Ok(()),
        }
    }

    /// Counts.
    pub fn stats(&self) -> DiskStats {
        self.shared.state.lock().stats(&self.shared.geometry)
    }

    /// What changed since the last call, in order; `None` if some of it was lost, because nobody asked for too long:
    /// then [`names`](Self::names) is the whole truth.
    ///
    /// A block may be stored before its parent, and removed before its children.
    pub fn drain_events(&self) -> Option<Vec<KvEvent>> {
        let mut state = self.shared.state.lock();
        let events = std::mem::take(&mut state.events);
        (!state.events_lost).then_some(events)
    }

    /// All blocks that are on disk with their parents. Events begin after this.
    ///
    /// Cost: O(slots), under the lock.
    pub fn names(&self) -> Vec<(BlockName, Option<BlockName>)> {
        let mut state = self.shared.state.lock();
        state.events.clear();
        state.events_lost = false;
        state.residents.iter().map(|(_, entry)| (entry.name(), entry.parent())).collect()
    }
}

impl Drop for DiskTier {
    /// Finishes what is queued, syncs it, and closes the index.
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.work.notify_all();
        self.shared.keeper.notify_all();
        let this = std::thread::current().id();
        if self.threads.iter().any(|thread| thread.thread().id() == this) {
            // A callback held the last reference to the tier. Its thread cannot wait for itself, nor for the keeper,
            // which waits for all; they end by themselves, and the folder is locked until then.
            return;
        }
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

impl std::fmt::Debug for DiskTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskTier").field("folder", &self.shared.config.folder).finish_non_exhaustive()
    }
}

/// Makes the folder and takes it for this process.
fn lock(folder: &Path) -> Result<File, DiskError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| DiskError::Folder { path, source }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let path = folder.join("lock");
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = options.map_err(failed(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DiskError::InUse { path: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(&path)(source)),
    }
}

#[cfg(test)]
mod tests;
