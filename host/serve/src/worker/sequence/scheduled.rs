//! A sequence as whoever schedules it sees it.

use decide::{Scheduled, SequenceHints};
use policy::Attributes;

use super::Sequence;
use crate::ctx::Moment;

impl Scheduled for Sequence {
    fn id(&self) -> u64 {
        self.start.id
    }

    fn arrived(&self) -> Moment {
        self.start.arrived
    }

    fn left(&self) -> usize {
        self.left()
    }

    fn left_here(&self) -> usize {
        if self.awaits_handoff() { 0 } else { self.left() }
    }

    fn cached_tokens(&self) -> u32 {
        self.cached_tokens.unwrap_or(0)
    }

    fn output_tokens(&self) -> usize {
        self.output.len()
    }

    fn pages(&self) -> usize {
        self.pages.len()
    }

    fn hints(&self) -> &SequenceHints {
        &self.start.hints
    }

    fn attributes(&self) -> &Attributes {
        &self.start.attributes
    }

    fn chunk_tokens(&self) -> Option<u32> {
        self.chunk_tokens
    }

    fn set_chunk_tokens(&mut self, tokens: Option<u32>) {
        self.chunk_tokens = tokens;
    }

    fn preemptions_planned(&self) -> u32 {
        self.preemptions_planned
    }

    fn is_ready(&self) -> bool {
        !self.is_fetching() && self.loads.is_empty()
    }
}
