//! Metrics of prefill ahead of need.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::speculation::{Cancelled, Counts};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

/// What is known of it.
#[derive(Default)]
pub(super) struct SpeculationMetrics {
    begun: Counter,
    needless: Counter,
    started: Counter,
    finished: Counter,
    cancelled: Family<ByReason, Counter>,
    tokens: Counter,
    hit_tokens: Counter,
}

impl SpeculationMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "speculations",
            "Turns after which the next prompt was to be prepared",
            self.begun.clone(),
        );
        r.register("speculations_needless", "Those whose worker lacked nothing", self.needless.clone());
        r.register("speculations_started", "Those that a worker began to compute", self.started.clone());
        r.register("speculations_finished", "Those that it computed to the end", self.finished.clone());
        r.register("speculations_cancelled", "Those given up, by reason", self.cancelled.clone());
        r.register("speculated_tokens", "Prompt tokens computed ahead of need", self.tokens.clone());
        r.register(
            "speculated_hit_tokens",
            "Those of them that the session's next request found",
            self.hit_tokens.clone(),
        );
    }

    pub(super) fn collect(&self, counts: &Counts) {
        let store = |counter: &Counter, cell: &AtomicU64| counter.inner().store(cell.load(Relaxed), Relaxed);
        store(&self.begun, &counts.begun);
        store(&self.needless, &counts.needless);
        store(&self.started, &counts.started);
        store(&self.finished, &counts.finished);
        store(&self.tokens, &counts.tokens);
        store(&self.hit_tokens, &counts.hit_tokens);
        for why in Cancelled::ALL {
            let label = ByReason { reason: why.as_str() };
            self.cancelled.get_or_create(&label).inner().store(counts.cancelled(why), Relaxed);
        }
    }
}
