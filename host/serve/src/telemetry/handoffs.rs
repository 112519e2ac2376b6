//! Metrics of prompts that one worker computed for another.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use crate::worker::Handoffs;

/// What is known of them.
#[derive(Default)]
pub(super) struct HandoffMetrics {
    ended: Counter,
    short: Counter,
    blocks: Counter,
}

impl HandoffMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register("handoffs", "Prompts that one worker computed for another", self.ended.clone());
        r.register("handoffs_short", "Those of which blocks were missing", self.short.clone());
        r.register("handoff_blocks", "Blocks that were handed over", self.blocks.clone());
    }

    pub(super) fn collect(&self, counts: &Handoffs) {
        let store = |counter: &Counter, cell: &AtomicU64| counter.inner().store(cell.load(Relaxed), Relaxed);
        store(&self.ended, &counts.ended);
        store(&self.short, &counts.short);
        store(&self.blocks, &counts.blocks);
    }
}
