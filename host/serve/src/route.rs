//! The `route` slots: which worker serves a request.
//!
//! **Invariant:** candidates are the host's; a policy only chooses among them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use kv::PrefixIndex;
use policy::{Frame, Pin, ROUTE_CANDIDATE, RouteView, Table};

use crate::request::{Prompt, Refusal};
use crate::worker::Worker;

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

/// Shows the workers to the chain and takes its choice. `request` is the row of the request.
pub fn choose(
    pin: &Pin,
    (workers, prefixes): (&[Worker], &PrefixIndex),
    (prompt, request): (&Prompt, &Table),
    block_tokens: u32,
    frame: Frame,
) -> Result<Routed, Refusal> {
    let mut overlap = vec![0u32; workers.len()];
    prefixes.overlap(&prompt.blocks, &mut overlap);
    let mut candidates = Table::new(&ROUTE_CANDIDATE, workers.len());
    for (row, worker) in workers.iter().enumerate() {
        let cells = candidate(worker, overlap[row] * block_tokens);
        for (column, cell) in cells.into_iter().enumerate() {
            candidates.numbers_mut(column)[row] = cell;
        }
        candidates.ids_mut(0)[row] = worker.id;
    }
    let view = RouteView { frame, request, candidates: &candidates };
    let decision = pin.route(&view).map_err(|e| Refusal::Policy(e.to_string()))?;
    Ok(Routed {
        worker: decision.candidate,
        decided_by: decision.decided_by,
        overlap_tokens: overlap[decision.candidate] * block_tokens,
    })
}

fn candidate(worker: &Worker, overlap_tokens: u32) -> [f32; 10] {
    let load = worker.load.read();
    [
        overlap_tokens as f32,
        load.queue_len,
        load.running,
        load.queued_tokens,
        load.active_tokens,
        load.kv_used,
        load.kv_free_pages,
        if worker.load.unhealthy.load(Relaxed) { 0.0 } else { 1.0 },
        worker.load.ttft_us_ewma.load(Relaxed) as f32 / 1e3,
        worker.load.itl_us_ewma.load(Relaxed) as f32 / 1e3,
    ]
}
