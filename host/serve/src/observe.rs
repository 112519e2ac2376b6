//! The `observe` slot: tells policies what became of a request.

use policy::{Event, Frame, OBSERVE_OUTCOME, ObserveView, Pin, Table};

use crate::row;
use crate::worker::SequenceHints;

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

/// Tells the chain that a request was pinned to.
pub fn tell(pin: &Pin, event: Event, outcome: &Outcome, hints: &SequenceHints, frame: Frame) {
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
    row::fill(&mut table, &numbers, &ids);
    pin.observe(&ObserveView { frame, outcomes: &table });
}
