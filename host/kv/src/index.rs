//! Which worker has which block, in which tier: what routing asks before it sends a prompt anywhere.
//!
//! ```text
//!   own workers ── follow ──┐                        ┌── table: some names ─► page, depth
//!   other hosts ── apply ───┼─► writer, one batch ──►│   pages: names in order ─► run        ◄── lookup, overlap
//!                  replace ─┘   at a time            └── runs:  a tree, who has what
//! ```
//! Readers write nothing that is shared and wait for nobody but, when batches keep coming, for one of them. The index
//! keeps half of a name: a collision (one in 2^64 a pair) gives a wrong overlap, which routes a request less well; it
//! never touches KV, since a worker matches whole names.
//!
//! **Invariant:** an answer is that before or after some batch. What a holder has is closed under "parent of".

mod holder;
mod lookup;
mod names;
mod pages;
mod remove;
mod roster;
mod runs;
mod shared;
mod slab;
mod store;
mod stream;
mod table;
mod writer;

pub use holder::{Holder, HolderTier};
use lookup::{Dense, Sparse};
pub use lookup::{Overlap, Overlaps};
use parking_lot::{Mutex, MutexGuard};
use shared::Shared;
pub use stream::{Batch, Change, Receipt, Snapshot, SnapshotBlock};
use stream::{Progress, Verdict};
use table::{Table, key};
use writer::{Books, Writer};

use crate::{BlockName, KvEvent};

/// Most workers of one index. Chosen: a set of holders fits a chunk of storage, 8 KiB.
pub const WORKERS_MAX: usize = 16_384;

/// Most distinct blocks unless said otherwise. Chosen: 256 Mi tokens of 64 a block; about 60 MiB when all are there.
const BLOCKS_MAX: usize = 1 << 22;

/// Attempts of a reader before it waits for the writer. Chosen: a batch takes about as long as a few lookups.
const ATTEMPTS: usize = 8;

/// How large an index may become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexLimits {
    /// Workers are numbered from zero up to this, at most [`WORKERS_MAX`].
    pub workers_max: usize,
    /// Most distinct blocks. Beyond it, what was stored longest ago is given up. About 15 bytes each.
    pub blocks_max: usize,
}

/// Counts of an index, since its start where they only grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IndexStats {
    /// Distinct blocks that some holder has.
    pub blocks: u64,
    /// Blocks of all holders together.
    pub memberships: u64,
    /// Stretches of blocks between branchings.
    pub runs: u64,
    /// Bytes of the table, the pages and the runs.
    pub bytes: u64,
    /// Blocks that were left out because their parent was not there.
    pub orphans: u64,
    /// Removals of blocks that their holder did not have.
    pub unknown: u64,
    /// Blocks that were given up because there were too many.
    pub pruned: u64,
    /// Blocks that were left out because there was no room.
    pub dropped: u64,
}

/// Which holder has which block.
///
/// Size: about 12 bytes a distinct block, and 300 for each stretch between branchings. A holder more of a block that is
/// there costs nothing, or one bit or word a stretch.
#[derive(Debug)]
pub struct PrefixIndex {
    shared: Shared,
    ledger: Mutex<Ledger>,
    limits: IndexLimits,
}

/// What a batch needs besides what readers see.
#[derive(Debug)]
struct Ledger {
    books: Books,
    progress: Vec<Progress>,
}

impl PrefixIndex {
    /// An empty index for workers `0..workers_max`, at most [`WORKERS_MAX`], and four million blocks.
    pub fn new(workers_max: usize) -> Self {
        Self::with_limits(IndexLimits { workers_max, blocks_max: BLOCKS_MAX })
    }

    /// An empty index of a given size. Cost: about 0.1 bytes of memory for each block that there may be.
    pub fn with_limits(limits: IndexLimits) -> Self {
        assert!(limits.workers_max <= WORKERS_MAX, "a set of holders fits a chunk");
        let (shared, books) = Shared::new(limits);
        let progress = vec![Progress::default(); limits.workers_max];
        Self { shared, ledger: Mutex::new(Ledger { books, progress }), limits }
    }

    /// Workers that the index has room for.
    pub fn workers_max(&self) -> usize {
        self.limits.workers_max
    }

    /// Applies what the pool of one of our own workers reported, in its order and without loss, as a batch.
    ///
    /// Cost: some 120 ns a stretch of blocks that follow each other, and 5 ns a block in cache; with all that is not,
    /// traces take 11 to 17 ns a block (`bench -- index`). Nothing if there are no events.
    pub fn follow(&self, worker: usize, events: impl IntoIterator<Item = KvEvent>) {
        let code = self.holder(worker, HolderTier::Hbm).code();
        let mut events = events.into_iter().peekable();
        // Most steps change nothing; they do not stop the readers.
        if events.peek().is_none() {
            return;
        }
        self.change(|writer| {
            let mut keys = std::mem::take(&mut writer.books.keys);
            while let Some(event) = events.next() {
                keys.clear();
                // Events that continue each other are one stretch.
                match event {
                    KvEvent::Stored { name, parent } => {
                        keys.push(key(name));
                        let mut last = name;
                        while let Some(KvEvent::Stored { name, .. }) = events.next_if(
                            |next| matches!(next, KvEvent::Stored { parent, .. } if *parent == Some(last)),
                        ) {
                            keys.push(key(name));
                            last = name;
                        }
                        writer.store(code, parent.map(key), &keys);
                    }
                    KvEvent::Removed { name } => {
                        keys.push(key(name));
                        while let Some(KvEvent::Removed { name }) =
                            events.next_if(|next| matches!(next, KvEvent::Removed { .. }))
                        {
                            keys.push(key(name));
                        }
                        writer.remove(code, &mut keys);
                    }
                }
            }
            writer.books.keys = keys;
        });
    }

    /// Applies a batch that came over a network, if it is the next of its worker.
    ///
    /// Cost: as [`Self::follow`]. A branch from within a chain is looked for at the ends of what the worker used last,
    /// some 20 ns each. A block that the worker has not, as parent or removed, makes the writer read all names that the
    /// worker has: 40 to 100 us a batch where it has 65,536 blocks. A new epoch gives up all that the worker had.
    pub fn apply(&self, batch: &Batch<'_>) -> Receipt {
        self.holder(batch.worker.into(), HolderTier::Hbm);
        let mut ledger = self.ledger.lock();
        let progress = &mut ledger.progress[usize::from(batch.worker)];
        let verdict = progress.advance(batch.epoch, batch.sequence);
        let lost = progress.is_lost(batch.sequence);
        if let Verdict::Refused(receipt) = verdict {
            return receipt;
        }
        self.change_with(ledger, |writer| {
            if verdict == Verdict::Restarts {
                forget(writer, batch.worker);
            }
            if lost.is_none() {
                batch.changes.iter().for_each(|change| apply_change(writer, batch.worker, change));
            }
        });
        lost.unwrap_or(Receipt::Applied)
    }

    /// Replaces all that a worker has, unless the snapshot is older than what was applied.
    ///
    /// Cost: some 150 ns a block, and 300 when it is the first (measured, 65,536 blocks). Readers wait meanwhile.
    pub fn replace(&self, snapshot: &Snapshot<'_>) -> Receipt {
        self.holder(snapshot.worker.into(), HolderTier::Hbm);
        let mut ledger = self.ledger.lock();
        if !ledger.progress[usize::from(snapshot.worker)].renew(snapshot.epoch, snapshot.sequence) {
            return Receipt::Duplicate;
        }
        self.change_with(ledger, |writer| {
            forget(writer, snapshot.worker);
            let orphans = stream::chains(snapshot.blocks, |tier, parent, names| {
                apply_change(writer, snapshot.worker, &Change::Stored { tier, parent, names });
            });
            writer.books.stats.orphans += orphans as u64;
        });
        Receipt::Applied
    }

    /// Drops all that a worker had, in every tier: it left, or it starts afresh.
    ///
    /// Cost: some 2 ns a block (measured, 65,536 blocks). Its numbers of batches are forgotten too.
    pub fn forget(&self, worker: usize) {
        let holder = self.holder(worker, HolderTier::Hbm);
        let mut ledger = self.ledger.lock();
        ledger.progress[worker] = Progress::default();
        self.change_with(ledger, |writer| forget(writer, holder.worker));
    }

    /// Counts.
    pub fn stats(&self) -> IndexStats {
        let ledger = self.ledger.lock();
        let books = &ledger.books;
        let bytes = (Table::bytes(&books.table) + books.pages.bytes() + books.runs.bytes()) as u64;
        IndexStats { runs: books.runs.living as u64, bytes, ..books.stats }
    }

    /// Blocks that a holder has.
    pub fn held(&self, holder: Holder) -> u64 {
        self.holder(holder.worker.into(), holder.tier);
        self.ledger.lock().books.held(self.shared.layout, holder)
    }

    /// Distinct blocks that some holder has.
    pub fn len(&self) -> usize {
        self.ledger.lock().books.stats.blocks as usize
    }

    /// Whether no holder has anything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For each worker the number of leading blocks that its pages hold; `out[w]` belongs to worker `w`.
    ///
    /// Cost: see [`Self::lookup`].
    pub fn overlap(&self, names: &[BlockName], out: &mut [u32]) {
        assert!(out.len() <= self.limits.workers_max, "the index was made for its workers");
        self.read(|shared| {
            out.fill(0);
            let mut sink = Dense { out, layout: shared.layout };
            shared.walk(names.len(), |at| key(names[at]), 1, &mut sink);
        });
    }

    /// Finds each holder that has at least `at_least` leading blocks, and how many it has.
    ///
    /// Cost: a few probes, whatever the length; the runs from the deepest known block up; a few ns a holder found.
    pub fn lookup(&self, names: &[BlockName], at_least: u32, overlaps: &mut Overlaps) {
        self.read(|shared| {
            let mut sink = Sparse::new(overlaps, shared.layout, at_least);
            shared.walk(names.len(), |at| key(names[at]), at_least, &mut sink);
        });
    }

    fn holder(&self, worker: usize, tier: HolderTier) -> Holder {
        assert!(worker < self.limits.workers_max, "the index was made for its workers");
        Holder { worker: worker as u16, tier }
    }

    /// Reads until no batch came between; after some attempts none may.
    fn read(&self, mut read: impl FnMut(&Shared)) {
        for _ in 0..ATTEMPTS {
            if self.shared.read(|| read(&self.shared)).is_some() {
                return;
            }
            std::hint::spin_loop();
        }
        let _ledger = self.ledger.lock();
        read(&self.shared);
    }

    fn change(&self, change: impl FnOnce(&mut Writer<'_>)) {
        self.change_with(self.ledger.lock(), change);
    }

    /// One batch, as readers see it.
    fn change_with(&self, mut ledger: MutexGuard<'_, Ledger>, change: impl FnOnce(&mut Writer<'_>)) {
        let _change = self.shared.change();
        let mut writer = Writer { shared: &self.shared, books: &mut ledger.books };
        change(&mut writer);
        writer.prune(self.limits.blocks_max as u64);
    }
}

fn apply_change(writer: &mut Writer<'_>, worker: u16, change: &Change<'_>) {
    let mut keys = std::mem::take(&mut writer.books.keys);
    keys.clear();
    match *change {
        Change::Stored { tier, parent, names } => {
            keys.extend(names.iter().copied().map(key));
            writer.store(Holder { worker, tier }.code(), parent.map(key), &keys);
        }
        Change::Removed { tier, names } => {
            keys.extend(names.iter().copied().map(key));
            writer.remove(Holder { worker, tier }.code(), &mut keys);
        }
    }
    writer.books.keys = keys;
}

/// Takes all that a worker has in any tier.
fn forget(writer: &mut Writer<'_>, worker: u16) {
    for tier in [HolderTier::Hbm, HolderTier::Host, HolderTier::Disk] {
        let holder = Holder { worker, tier };
        if writer.books.held(writer.shared.layout, holder) > 0 {
            writer.forget(holder.code());
        }
    }
}

#[cfg(test)]
mod tests;
