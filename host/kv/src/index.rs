//! Which worker has which block: what routing asks before it sends a prompt anywhere.
//!
//! Shared by all workers, which apply what their pools report, and by routing, which reads.
//! The index keeps half of a name. A collision (one in 2^64 a pair) gives a wrong overlap, which routes a
//! request less well; it never touches KV, since a worker matches whole names.
//! **Invariant:** after each batch, what a worker has is closed under "parent of", because pools evict
//! children first. So overlaps are found by bisection.

use parking_lot::RwLock;
use rustc_hash::FxHashMap;

use crate::{BlockName, KvEvent};

/// Most workers of one index: one bit each.
pub const WORKERS_MAX: usize = 64;

/// Which worker has which block.
///
/// One lock: a batch is applied under it in microseconds, and readers hold it for a lookup's few probes.
/// Size: 19 to 37 bytes a distinct block, however many workers have it.
#[derive(Debug)]
pub struct PrefixIndex {
    workers_max: usize,
    blocks: RwLock<Blocks>,
}

/// Half of a name → the workers that have the block.
type Blocks = FxHashMap<u64, u64>;

impl PrefixIndex {
    /// An empty index for workers `0..workers_max`, at most [`WORKERS_MAX`].
    pub fn new(workers_max: usize) -> Self {
        assert!(workers_max <= WORKERS_MAX, "a worker is one bit of a word");
        Self { workers_max, blocks: RwLock::default() }
    }

    /// Workers that the index has room for.
    pub fn workers_max(&self) -> usize {
        self.workers_max
    }

    /// Applies what a worker's pool reported, in its order; readers see all of it or nothing.
    pub fn apply(&self, worker: usize, events: impl IntoIterator<Item = KvEvent>) {
        assert!(worker < self.workers_max, "the index was made for its workers");
        let mut events = events.into_iter().peekable();
        // Most steps change nothing; they do not stop the readers.
        if events.peek().is_none() {
            return;
        }
        let bit = 1u64 << worker;
        let mut blocks = self.blocks.write();
        for event in events {
            match event {
                KvEvent::Stored { name, .. } => *blocks.entry(key(name)).or_default() |= bit,
                KvEvent::Removed { name } => {
                    if let std::collections::hash_map::Entry::Occupied(mut entry) = blocks.entry(key(name)) {
                        *entry.get_mut() &= !bit;
                        if *entry.get() == 0 {
                            entry.remove();
                        }
                    }
                }
            }
        }
    }

    /// Drops all that a worker had: it left, or it starts afresh.
    ///
    /// Cost: reads the whole index.
    pub fn forget(&self, worker: usize) {
        assert!(worker < self.workers_max, "the index was made for its workers");
        self.blocks.write().retain(|_, workers| {
            *workers &= !(1 << worker);
            *workers != 0
        });
    }

    /// Distinct blocks that some worker has.
    pub fn len(&self) -> usize {
        self.blocks.read().len()
    }

    /// Whether no worker has anything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For each worker the number of leading blocks that it has; `out[w]` belongs to worker `w`.
    ///
    /// Cost: one probe when nobody has the first block, two when all who have it have everything;
    /// otherwise O(log names) for each distinct overlap.
    pub fn overlap(&self, names: &[BlockName], out: &mut [u32]) {
        assert!(out.len() <= self.workers_max, "the index was made for its workers");
        out.fill(0);
        let (Some(&first), Some(&last)) = (names.first(), names.last()) else { return };
        let blocks = self.blocks.read();
        let at_first = workers(&blocks, first);
        if at_first == 0 {
            return;
        }
        let at_last = workers(&blocks, last) & at_first;
        settle(at_last, names.len(), out);
        bisect(&blocks, names, (0, at_first), (names.len() - 1, at_last), out);
    }
}

/// Half of a name.
fn key(name: BlockName) -> u64 {
    name.0 as u64
}

fn workers(blocks: &Blocks, name: BlockName) -> u64 {
    blocks.get(&key(name)).copied().unwrap_or(0)
}

/// Finds where each worker stops that has block `low` and lacks block `high`. Depth: log2 of their distance.
fn bisect(blocks: &Blocks, names: &[BlockName], low: (usize, u64), high: (usize, u64), out: &mut [u32]) {
    let stopping = low.1 & !high.1;
    if stopping == 0 {
        return;
    }
    if high.0 - low.0 == 1 {
        return settle(stopping, high.0, out);
    }
    let mid = low.0 + (high.0 - low.0) / 2;
    let at_mid = workers(blocks, names[mid]) & low.1 | high.1;
    bisect(blocks, names, low, (mid, at_mid), out);
    bisect(blocks, names, (mid, at_mid), high, out);
}

/// Notes an overlap for a set of workers.
fn settle(mut workers: u64, blocks: usize, out: &mut [u32]) {
    while workers != 0 {
        if let Some(slot) = out.get_mut(workers.trailing_zeros() as usize) {
            *slot = blocks as u32;
        }
        workers &= workers - 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::{BlockPool, Fingerprint};

    fn names(tokens: &[u32]) -> Vec<BlockName> {
        BlockName::names(Fingerprint(1), 0, tokens, 1)
    }

    /// Overlaps of `prompt` when worker `w` has `has[w]`.
    fn check(has: &[&[u32]], prompt: &[u32], expected: &[u32]) {
        let index = PrefixIndex::new(has.len());
        for (worker, tokens) in has.iter().enumerate() {
            index.apply(worker, names(tokens).into_iter().map(|name| KvEvent::Stored { name, parent: None }));
        }
        let mut out = vec![9; has.len()];
        index.overlap(&names(prompt), &mut out);
        assert_eq!(out, expected);
    }

    #[test]
    fn overlap_counts_leading_blocks() {
        check(&[&[1, 2, 3], &[1, 2], &[1], &[2, 3], &[]], &[1, 2, 3, 4], &[3, 2, 1, 0, 0]);
    }

    #[test]
    fn a_whole_prompt_can_be_resident() {
        check(&[&[1, 2, 3, 4], &[1, 2, 3]], &[1, 2, 3], &[3, 3]);
    }

    #[test]
    fn an_empty_prompt_overlaps_nothing() {
        check(&[&[1], &[]], &[], &[0, 0]);
    }

    #[test]
    fn a_forgotten_worker_has_nothing() {
        let index = PrefixIndex::new(2);
        let stored = |_| names(&[1, 2]).into_iter().map(|name| KvEvent::Stored { name, parent: None });
        index.apply(0, stored(0));
        index.apply(1, stored(1));
        index.forget(0);
        let mut out = [0; 2];
        index.overlap(&names(&[1, 2, 3]), &mut out);
        assert_eq!((out, index.len()), ([0, 2], 2));
        index.forget(1);
        assert!(index.is_empty());
    }

    proptest! {
        /// Fed by real pools, the index agrees with plain sets of names.
        #[test]
        fn the_index_matches_the_model(
            prompts in vec((0usize..5, vec(0u32..3, 1..12)), 1..40),
            asked in vec(vec(0u32..3, 0..14), 1..20),
            pages in 1u32..20,
        ) {
            let index = PrefixIndex::new(5);
            let mut pools: Vec<_> = (0..5).map(|_| BlockPool::new(pages, 1)).collect();
            let mut model = vec![BTreeSet::new(); 5];
            for (worker, tokens) in &prompts {
                let (pool, names) = (&mut pools[*worker], names(tokens));
                let mut held = pool.pin_prefix(&names);
                let lent = held.len().saturating_sub(1);
                for at in held.len()..names.len() {
                    let Ok(page) = pool.allocate(1) else { break };
                    pool.seal(page[0], names[at], at.checked_sub(1).map(|up| names[up]));
                    held.extend(page);
                }
                pool.release(&held[lent..]);
                let events: Vec<_> = pool.drain_events().collect();
                for event in &events {
                    match event {
                        KvEvent::Stored { name, .. } => model[*worker].insert(*name),
                        KvEvent::Removed { name } => model[*worker].remove(name),
                    };
                }
                index.apply(*worker, events);
            }
            for tokens in &asked {
                let names = names(tokens);
                let mut out = [7; 5];
                index.overlap(&names, &mut out);
                let expected: Vec<_> = model
                    .iter()
                    .map(|has| names.iter().take_while(|name| has.contains(name)).count() as u32)
                    .collect();
                prop_assert_eq!(&out[..], &expected[..]);
            }
            let distinct: BTreeSet<_> = model.iter().flatten().collect();
            prop_assert_eq!(index.len(), distinct.len());
        }
    }
}
