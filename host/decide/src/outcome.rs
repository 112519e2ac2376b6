//! What became of a request, as the `observe` slot is told.

use policy::{Event, OBSERVE_OUTCOME, Table};

use crate::{SequenceHints, fill_row};

/// How a request went, as far as it got.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Time to first token.
    pub ttft_ms: f32,
    /// Mean time between tokens.
    pub itl_ms: f32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Those found in the cache.
    pub cached_tokens: u32,
    /// Tokens of the output so far.
    pub output_tokens: u32,
    /// Why it ended: 1 stop, 2 output limit, 3 tool calls; 0 if it has not.
    pub finish: u8,
    /// Id of the worker.
    pub worker: u64,
    /// Id of the sequence.
    pub sequence: u64,
}

/// The row of an outcome.
pub fn outcome(event: Event, outcome: &Outcome, hints: &SequenceHints) -> Table {
    let mut table = Table::new(&OBSERVE_OUTCOME, 1);
    let numbers = [
        event as u8 as f32,
        outcome.ttft_ms,
        outcome.itl_ms,
        outcome.prompt_tokens as f32,
        outcome.cached_tokens as f32,
        outcome.output_tokens as f32,
        f32::from(outcome.finish),
        f32::from(u8::from(hints.session_final)),
    ];
    let ids = [outcome.worker, hints.session, outcome.sequence, hints.class, hints.tenant, hints.parent];
    fill_row(&mut table, &numbers, &ids);
    table
}
