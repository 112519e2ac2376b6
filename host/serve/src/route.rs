//! The `route` slots: which worker serves a request, and where workers have roles, which one computes its prompt.
//!
//! **Invariant:** candidates are the host's, workers that can compute; a policy only chooses among them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use decide::Candidate;
use kv::PrefixIndex;
use policy::{Frame, Pin, ROUTE_CANDIDATE, RouteView, Table};

use crate::config::Role;
use crate::request::{Prompt, Refusal};
use crate::worker::Worker;

/// A route decision.
#[derive(Debug)]
pub struct Routed {
    /// Place of the worker that answers in the list.
    pub worker: usize,
    /// What another worker computes for it.
    pub prefill: Option<Prefill>,
    /// Policy that took it.
    pub decided_by: Arc<str>,
    /// Tokens of the prompt that its cache held when it was chosen.
    pub overlap_tokens: u32,
}

impl Routed {
    /// Place of the worker that computed the prompt, or most of it.
    pub fn prefilled_by(&self) -> usize {
        self.prefill.as_ref().map_or(self.worker, |prefill| prefill.worker)
    }
}

/// A part of a prompt that one worker computes for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefill {
    /// Place of the worker in the list.
    pub worker: usize,
    /// The blocks of the prompt that it hands over.
    pub blocks: Range<usize>,
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
    let fleet = Fleet { workers, overlap: &overlap, block_tokens };
    let ask = |request: &Table, (rows, decodes): (&[usize], Option<usize>)| {
        let candidates = fleet.table(rows, decodes);
        let view = RouteView { frame, request, candidates: &candidates };
        let decision = pin.route(&view).map_err(|e| Refusal::Policy(e.to_string()))?;
        Ok::<_, Refusal>((rows[decision.candidate], decision.decided_by))
    };
    let able = fleet.rows(Role::decodes);
    if able.is_empty() {
        return Err(Refusal::NoWorker);
    }
    let (worker, decided_by) = ask(request, (&able, None))?;
    let overlap_tokens = overlap[worker] * block_tokens;
    let lacking = fleet.lacking(prompt, worker);
    let others = fleet.rows(Role::prefills);
    let mut prefill = None;
    if fleet.has_roles() && !lacking.is_empty() && !others.is_empty() && others != [worker] {
        let mut request = request.clone();
        decide::set_prefill_stage(&mut request, prompt.tokens.len() as u32 - overlap_tokens);
        // Without an answer the prompt is computed where it is needed.
        let other = ask(&request, (&others, Some(worker))).map_or(worker, |(other, _)| other);
        prefill = (other != worker).then_some(Prefill { worker: other, blocks: lacking });
    }
    Ok(Routed { worker, prefill, decided_by, overlap_tokens })
}

/// The workers as a prompt finds them.
struct Fleet<'a> {
    workers: &'a [Worker],
    /// Leading blocks of the prompt that each of them has.
    overlap: &'a [u32],
    block_tokens: u32,
}

impl Fleet<'_> {
    fn has_roles(&self) -> bool {
        self.workers.iter().any(|worker| worker.role != Role::Both)
    }

    /// Those whose role allows it and that can compute.
    fn rows(&self, may: fn(Role) -> bool) -> Vec<usize> {
        let is_able = |worker: &Worker| may(worker.role) && worker.load.is_healthy();
        (0..self.workers.len()).filter(|&row| is_able(&self.workers[row])).collect()
    }

    /// Blocks that a worker can use of a prompt and does not have.
    fn lacking(&self, prompt: &Prompt, worker: usize) -> Range<usize> {
        // The last token is always computed by who answers.
        let usable = (prompt.tokens.len() - 1) / self.block_tokens as usize;
        self.overlap[worker] as usize..usable.min(prompt.blocks.len())
    }

    /// Some of them as candidates. `decodes`: the one that answers.
    fn table(&self, rows: &[usize], decodes: Option<usize>) -> Table {
        let mut table = Table::new(&ROUTE_CANDIDATE, 0);
        decide::candidates(&mut table, rows.iter().map(|&at| self.candidate(at, decodes == Some(at))));
        table
    }

    fn candidate(&self, at: usize, decodes: bool) -> Candidate {
        let Worker { id, load, .. } = &self.workers[at];
        Candidate {
            id: *id,
            overlap_tokens: self.overlap[at] * self.block_tokens,
            load: load.read(),
            is_healthy: load.is_healthy(),
            ttft_ms: load.ttft_us_ewma.load(Relaxed) as f32 / 1e3,
            itl_ms: load.itl_us_ewma.load(Relaxed) as f32 / 1e3,
            decodes,
        }
    }
}
