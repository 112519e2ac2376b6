//! The remote tier: blocks in a store that many hosts share, named by what they are.
//!
//! Called by who moves blocks between tiers. Reads and writes run on threads of their own; callers never wait.
//!
//! ```text
//!  fetch ─► known absent? left alone? queue full? ─► reads ─► breaker ─► store ─► verified into a slot ─► done
//!  put   ─► known there?  left alone? queue full? ─► writes ─► breaker ─► store
//! ```
//!
//! **Invariant:** only what verified is served. A store that is slow, gone or full of garbage costs misses, and as many
//! requests as its breaker lets through; every queue, wait and retry is bounded.

mod breaker;
mod config;
mod gate;
mod meter;
mod presence;
mod reads;
mod record;
mod store;
mod writes;

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustc_hash::FxHashSet;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::{BlockName, Geometry, Slot, SlotMut};

pub use breaker::BreakerState;
pub use config::{Config, RemoteError};
pub use meter::RemoteStats;
pub use reads::{End, Fetched};

use breaker::Bounds;
use gate::Gate;
use meter::Meter;
use presence::{Presence, Seen};
use reads::Asker;
use store::Store;
use writes::Writing;

/// The time since some moment; it never goes back.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// How long dropping the tier waits for its threads. Chosen: an answer that is on its way comes within it; a file system
/// that hangs does not hold up the end of the host.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Files that are read or written at once by a store of files; a file system that hangs takes no more threads.
const FILE_THREADS_MAX: usize = 16;

/// What became of a request to the tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is being done.
    Accepted,
    /// There is nothing to do: the store has the block, or is being given it; or it has the first block not.
    Needless,
    /// Too much is being done already.
    Full,
    /// The store is left alone, since it failed.
    Open,
}

/// What is known of a block without asking the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// The store had it a short time ago.
    Present,
    /// The store had it not a short time ago.
    Absent,
    /// Nothing.
    Unknown,
}

/// A store of blocks, shared with other hosts. Dropping it ends what it does, within a bounded time.
pub struct Remote {
    shared: Arc<Shared>,
    /// Taken when the tier is dropped.
    runtime: Option<Runtime>,
}

/// What the tasks of a tier share.
struct Shared {
    store: Store,
    clock: Clock,
    seed: u64,
    reads: Gate,
    writes: Gate,
    presence: Mutex<Presence>,
    /// Names that are being written, or wait for it.
    writing: Mutex<FxHashSet<BlockName>>,
    /// Told when the last of them is done.
    written: Condvar,
    /// Room for fetches that wait or run.
    fetches: Arc<Semaphore>,
    reads_in_flight: Semaphore,
    writes_in_flight: Semaphore,
    meter: Meter,
    block_bytes: usize,
    fetches_max: usize,
    fetch_in_flight_max: usize,
    writes_max: usize,
    write_attempts_max: u32,
    read_timeout: Duration,
    fetch_timeout: Duration,
    write_timeout: Duration,
    present_ttl_ms: u64,
    absent_ttl_ms: u64,
}

impl Remote {
    /// Opens a store of blocks of one geometry. Nothing is asked of it: one that is not there fails later, as misses.
    ///
    /// `seed` differs between hosts, so that they do not try again together.
    /// Errors: a field of the configuration cannot be used, or the machine refuses threads or a folder.
    pub fn open(config: &Config, geometry: Geometry, clock: Clock, seed: u64) -> Result<Self, RemoteError> {
        let service = config.check()?;
        let store = Store::open(config, &service, geometry)?;
        let sweep = store::sweep(&service);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.threads)
            .max_blocking_threads(FILE_THREADS_MAX)
            .thread_name("kv-remote")
            .enable_all()
            .build()
            .map_err(RemoteError::Threads)?;
        runtime.spawn_blocking(sweep);
        let ms = Duration::from_millis;
        let bounds = Bounds {
            failures_max: config.failures_max,
            open_min: ms(config.open_ms_min),
            open_max: ms(config.open_ms_max),
        };
        let shared = Shared {
            store,
            seed,
            reads: Gate::new(bounds, Arc::clone(&clock)),
            writes: Gate::new(bounds, Arc::clone(&clock)),
            clock,
            presence: Mutex::new(Presence::new(config.known_max)),
            writing: Mutex::new(FxHashSet::default()),
            written: Condvar::new(),
            fetches: Arc::new(Semaphore::new(config.fetches_max)),
            reads_in_flight: Semaphore::new(config.in_flight_max),
            writes_in_flight: Semaphore::new(config.in_flight_max),
            meter: Meter::default(),
            block_bytes: geometry.block_bytes,
            fetches_max: config.fetches_max,
            fetch_in_flight_max: config.fetch_in_flight_max,
            writes_max: config.writes_max,
            write_attempts_max: config.write_attempts_max,
            read_timeout: ms(config.read_timeout_ms),
            fetch_timeout: ms(config.fetch_timeout_ms),
            write_timeout: ms(config.write_timeout_ms),
            present_ttl_ms: config.present_ttl_ms,
            absent_ttl_ms: config.absent_ttl_ms,
        };
        Ok(Self { shared: Arc::new(shared), runtime: Some(runtime) })
    }

    /// Has a block written, unless the store has it. The slot is held until that is done or given up.
    ///
    /// Cost: about a microsecond; never waits.
    pub fn put(&self, name: BlockName, slot: Slot) -> Outcome {
        let shared = &self.shared;
        assert!(slot.len() == shared.block_bytes, "a slot holds a block of the tier's geometry");
        let seen = shared.seen(name);
        if seen == Some(Seen::Present) {
            return Outcome::Needless;
        }
        if !shared.writes.is_open_to_requests() {
            shared.meter.declined_open.add(1);
            return Outcome::Open;
        }
        let mut writing = shared.writing.lock();
        if writing.contains(&name) {
            return Outcome::Needless;
        }
        if writing.len() >= shared.writes_max {
            shared.meter.declined_full.add(1);
            return Outcome::Full;
        }
        writing.insert(name);
        drop(writing);
        let write = Writing { shared: Arc::clone(shared), name };
        self.runtime().spawn(write.run(slot, seen == Some(Seen::Corrupt)));
        Outcome::Accepted
    }

    /// Reads the leading blocks of a chain of names into slots, as far as the store has them and there are slots.
    ///
    /// When the outcome is [`Outcome::Accepted`], `done` is called once, on a thread of the tier, which it does not hold
    /// up; else never. Slots that no block came into are free again before that.
    /// Cost: about a microsecond; never waits.
    pub fn fetch(
        &self,
        names: &[BlockName],
        slots: Vec<SlotMut>,
        done: impl FnOnce(Fetched) + Send + 'static,
    ) -> Outcome {
        let shared = &self.shared;
        for slot in &slots {
            assert!(slot.len() == shared.block_bytes, "a slot holds a block of the tier's geometry");
        }
        let (leading, present) = shared.leading(&names[..names.len().min(slots.len())]);
        if leading.is_empty() {
            shared.meter.misses_unasked.add(1);
            return Outcome::Needless;
        }
        if !shared.reads.is_open_to_requests() {
            shared.meter.declined_open.add(1);
            return Outcome::Open;
        }
        let Ok(room) = Arc::clone(&shared.fetches).try_acquire_owned() else {
            shared.meter.declined_full.add(1);
            return Outcome::Full;
        };
        let mut wanted: Vec<_> = leading.iter().copied().zip(slots).collect();
        wanted.shrink_to_fit();
        self.runtime().spawn(Arc::clone(shared).fetch(wanted, present.max(1), Asker::new(done), room));
        Outcome::Accepted
    }

    /// What is known of a block without asking the store. Cost: about 50 ns.
    pub fn known(&self, name: BlockName) -> Known {
        match self.shared.seen(name) {
            Some(Seen::Present) => Known::Present,
            Some(Seen::Absent | Seen::Corrupt) => Known::Absent,
            None => Known::Unknown,
        }
    }

    /// Forgets what is known of the store, which keeps its blocks: they are other hosts' too.
    pub fn forget(&self) {
        self.shared.presence.lock().clear();
    }

    /// Waits until no write is left, at most `limit`. Says whether none was. Not for a thread that serves.
    pub fn drain(&self, limit: Duration) -> bool {
        let mut writing = self.shared.writing.lock();
        let ended = self.shared.written.wait_while_for(&mut writing, |writing| !writing.is_empty(), limit);
        !ended.timed_out()
    }

    /// Counts since the start, and how the store does. Cost: about a microsecond.
    pub fn stats(&self) -> RemoteStats {
        let shared = &self.shared;
        let (reads_state, reads_openings) = shared.reads.state();
        let (writes_state, writes_openings) = shared.writes.state();
        RemoteStats {
            fetches: (shared.fetches_max - shared.fetches.available_permits()) as u64,
            writes: shared.writing.lock().len() as u64,
            reads_state,
            reads_openings,
            writes_state,
            writes_openings,
            ..shared.meter.stats()
        }
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is there until the tier is dropped")
    }
}

impl Shared {
    /// The leading names that are not known to be absent, and how many of them are known to be there.
    fn leading<'a>(&self, names: &'a [BlockName]) -> (&'a [BlockName], usize) {
        let now_ms = self.now_ms();
        let presence = self.presence.lock();
        let seen = |name: &BlockName| presence.get(*name, now_ms);
        let present = names.iter().take_while(|name| seen(name) == Some(Seen::Present)).count();
        let unknown =
            names[present..].iter().take_while(|name| matches!(seen(name), None | Some(Seen::Present)));
        (&names[..present + unknown.count()], present)
    }

    fn seen(&self, name: BlockName) -> Option<Seen> {
        self.presence.lock().get(name, self.now_ms())
    }

    fn saw(&self, name: BlockName, seen: Seen) {
        let ttl_ms = if seen == Seen::Absent { self.absent_ttl_ms } else { self.present_ttl_ms };
        self.presence.lock().put(name, seen, self.now_ms() + ttl_ms);
    }

    fn now_ms(&self) -> u64 {
        (self.clock)().as_millis() as u64
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        // On a thread of its own: a runtime must not end on a thread of another one, where a host may drop us.
        let (ended, end) = mpsc::channel::<()>();
        let closing = std::thread::Builder::new().name("kv-remote-end".to_owned()).spawn(move || {
            runtime.shutdown_timeout(CLOSE_MAX);
            drop(ended);
        });
        if closing.is_ok() {
            // It ends by the sender's end, or by the limit.
            let _ = end.recv_timeout(CLOSE_MAX * 2);
        }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
