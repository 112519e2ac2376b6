//! Our index, as benchmarks drive it. Also part of the package that measures peers.

use kv::{Batch, BlockName, Change, HolderTier, IndexLimits, Overlaps, PrefixIndex, Receipt};

use super::corpus::{Corpus, Event};

/// Most distinct blocks. Chosen: more than any trace has, and room as a large fleet would give it.
const BLOCKS_MAX: usize = 1 << 22;

/// Events and requests with names as our index takes them.
pub(crate) struct Replay {
    events: Vec<Own>,
    pub(crate) requests: Vec<Vec<BlockName>>,
    workers: usize,
}

struct Own {
    worker: u16,
    sequence: u64,
    parent: Option<BlockName>,
    names: Vec<BlockName>,
    stores: bool,
}

impl Replay {
    pub(crate) fn new(corpus: &Corpus, workers: usize) -> Self {
        let name = |half: u64| BlockName(u128::from(half));
        let mut sequences = vec![0; workers];
        let events = corpus.events.iter().map(|event| {
            let (worker, parent, names, stores) = match event {
                Event::Stored { worker, parent, blocks } => {
                    (*worker, parent.map(name), blocks.iter().map(|block| name(block.0)).collect(), true)
                }
                Event::Removed { worker, blocks } => {
                    (*worker, None, blocks.iter().copied().map(name).collect(), false)
                }
            };
            let sequence = sequences[usize::from(worker)];
            sequences[usize::from(worker)] += 1;
            Own { worker, sequence, parent, names, stores }
        });
        let requests = corpus.requests.iter().map(|r| r.names.iter().copied().map(name).collect());
        Self { events: events.collect(), requests: requests.collect(), workers }
    }

    pub(crate) fn index(&self) -> PrefixIndex {
        PrefixIndex::with_limits(IndexLimits { workers_max: self.workers, blocks_max: BLOCKS_MAX })
    }

    /// Applies every event, each as a batch of its own.
    pub(crate) fn apply(&self, index: &PrefixIndex) {
        for event in &self.events {
            let names = event.names.as_slice();
            let change = match event.stores {
                true => Change::Stored { tier: HolderTier::Hbm, parent: event.parent, names },
                false => Change::Removed { tier: HolderTier::Hbm, names },
            };
            let (worker, sequence) = (event.worker, event.sequence);
            let receipt = index.apply(&Batch { worker, epoch: 1, sequence, changes: &[change] });
            assert_eq!(receipt, Receipt::Applied, "batches come in order");
        }
    }

    /// Workers and leading blocks of a request.
    pub(crate) fn ask(&self, index: &PrefixIndex, request: usize, overlaps: &mut Overlaps) -> usize {
        index.lookup(&self.requests[request], 1, overlaps);
        overlaps.len()
    }
}
