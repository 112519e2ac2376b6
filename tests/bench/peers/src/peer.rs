//! The peer's index behind its own pool of one event thread, as its documentation runs it.

use dynamo_kv_router::indexer::{KvIndexerInterface, SyncIndexer};
use dynamo_kv_router::protocols::{
    ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData, KvCacheStoreData,
    KvCacheStoredBlockData, LocalBlockHash, RouterEvent, compute_seq_hash_for_block,
};
use dynamo_kv_router::{ConcurrentRadixTreeCompressed, ThreadPoolIndexer};
use tokio::runtime::Runtime;

use crate::index::corpus::{Corpus, Event};

/// Threads that apply events.
const EVENT_THREADS: usize = 1;
/// Tokens of a block.
const BLOCK_TOKENS: u32 = 64;

/// Names of blocks by their contents, as the peer computes them.
pub(crate) fn names(contents: &[u64]) -> Vec<u64> {
    compute_seq_hash_for_block(&local(contents))
}

fn local(contents: &[u64]) -> Vec<LocalBlockHash> {
    contents.iter().copied().map(LocalBlockHash).collect()
}

pub(crate) fn requests(corpus: &Corpus) -> Vec<Vec<LocalBlockHash>> {
    corpus.requests.iter().map(|request| local(&request.contents)).collect()
}

pub(crate) fn events(corpus: &Corpus) -> Vec<RouterEvent> {
    let data = |event: &Event| match event {
        Event::Stored { worker, parent, blocks } => {
            let blocks = blocks.iter().map(|(name, content)| KvCacheStoredBlockData {
                block_hash: ExternalSequenceBlockHash(*name),
                tokens_hash: LocalBlockHash(*content),
                mm_extra_info: None,
            });
            let data = KvCacheStoreData {
                parent_hash: parent.map(ExternalSequenceBlockHash),
                start_position: None,
                blocks: blocks.collect(),
            };
            (*worker, KvCacheEventData::Stored(data))
        }
        Event::Removed { worker, blocks } => {
            let block_hashes = blocks.iter().copied().map(ExternalSequenceBlockHash).collect();
            (*worker, KvCacheEventData::Removed(KvCacheRemoveData { block_hashes }))
        }
    };
    let all = corpus.events.iter().enumerate().map(|(at, event)| {
        let (worker, data) = data(event);
        RouterEvent::new(worker.into(), KvCacheEvent { event_id: at as u64, dp_rank: 0, data })
    });
    all.collect()
}

pub(crate) struct Peer {
    index: ThreadPoolIndexer<ConcurrentRadixTreeCompressed>,
    tree: std::sync::Arc<ConcurrentRadixTreeCompressed>,
    runtime: Runtime,
}

impl Peer {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let index = ThreadPoolIndexer::new(ConcurrentRadixTreeCompressed::new(), EVENT_THREADS, BLOCK_TOKENS);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { tree: index.backend_arc(), index, runtime })
    }

    pub(crate) fn send(&mut self, event: RouterEvent) {
        self.index.enqueue_event(event).expect("the pool of the peer runs");
    }

    /// Waits until all events are applied.
    pub(crate) fn flush(&mut self) {
        self.runtime.block_on(self.index.flush());
    }

    pub(crate) fn ask(&self, request: &[LocalBlockHash]) -> usize {
        self.tree.find_matches(request, false).scores.len()
    }

    /// Workers and leading blocks of a request, in the order of workers.
    pub(crate) fn found(&self, request: &[LocalBlockHash]) -> Vec<(u64, u32)> {
        let scores = self.tree.find_matches(request, false).scores;
        let mut found: Vec<_> = scores
            .iter()
            .map(|(worker, blocks)| (worker.worker_id, *blocks))
            .filter(|found| found.1 > 0)
            .collect();
        found.sort_unstable();
        found
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.index.shutdown();
    }
}
