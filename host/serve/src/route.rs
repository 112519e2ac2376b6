//! The `route` slots: which worker serves a request.
//!
//! **Invariant:** candidates are the host's; a policy only chooses among them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use kv::PrefixIndex;
use policy::{Frame, Pin, REQUEST, ROUTE_CANDIDATE, RouteView, Table};

use crate::request::{Prompt, Refusal};
use crate::worker::{SequenceHints, Worker};

/// A route decision.
#[derive(Debug)]
pub struct Routed {
    /// Place of the worker in the list.
    pub worker: usize,
    /// Policy that took it.
    pub decided_by: Arc<str>,
    /// Tokens of the prompt that its cache held when it was chosen.
    pub overlap_tokens: u32,
}

/// Shows the workers to the chain and takes its choice.
pub fn choose(
    pin: &Pin,
    (workers, prefixes): (&[Worker], &PrefixIndex),
    (prompt, hints, parent): (&Prompt, &SequenceHints, u64),
    block_tokens: u32,
    frame: Frame,
) -> Result<Routed, Refusal> {
    let mut overlap = vec![0u32; workers.len()];
    prefixes.overlap(&prompt.blocks, &mut overlap);
    let request = request_row(prompt, hints, parent);
    let mut candidates = Table::new(&ROUTE_CANDIDATE, workers.len());
    for (row, worker) in workers.iter().enumerate() {
        let cells = candidate(worker, overlap[row] * block_tokens);
        for (column, cell) in cells.into_iter().enumerate() {
            candidates.numbers_mut(column)[row] = cell;
        }
        candidates.ids_mut(0)[row] = worker.id;
    }
    let view = RouteView { frame, request: &request, candidates: &candidates };
    let decision = pin.route(&view).map_err(|e| Refusal::Policy(e.to_string()))?;
    Ok(Routed {
        worker: decision.candidate,
        decided_by: decision.decided_by,
        overlap_tokens: overlap[decision.candidate] * block_tokens,
    })
}

fn request_row(prompt: &Prompt, hints: &SequenceHints, parent: u64) -> Table {
    let mut row = Table::new(&REQUEST, 1);
    let numbers = [
        prompt.tokens.len() as f32,
        prompt.blocks.len() as f32,
        hints.expected_output_tokens as f32,
        hints.priority,
        hints.strict_tier as f32,
        hints.deadline_ms as f32,
        0.0,
        0.0,
    ];
    assert_eq!(numbers.len(), REQUEST.numbers.len(), "one value for each column of the contract");
    for (column, value) in numbers.into_iter().enumerate() {
        row.numbers_mut(column)[0] = value;
    }
    for (column, id) in [hints.session, parent, hints.class, hints.tenant].into_iter().enumerate() {
        row.ids_mut(column)[0] = id;
    }
    row
}

fn candidate(worker: &Worker, overlap_tokens: u32) -> [f32; 10] {
    let load = &worker.load;
    let pages = load.pages.load(Relaxed).max(1);
    let pinned = load.pages_pinned.load(Relaxed);
    [
        overlap_tokens as f32,
        (load.waiting.load(Relaxed) + load.in_transit.load(Relaxed)) as f32,
        load.running.load(Relaxed) as f32,
        (load.queued_tokens.load(Relaxed) + load.in_transit_tokens.load(Relaxed)) as f32,
        load.active_tokens.load(Relaxed) as f32,
        pinned as f32 / pages as f32,
        pages.saturating_sub(pinned) as f32,
        if load.unhealthy.load(Relaxed) { 0.0 } else { 1.0 },
        load.ttft_us_ewma.load(Relaxed) as f32 / 1e3,
        load.itl_us_ewma.load(Relaxed) as f32 / 1e3,
    ]
}
