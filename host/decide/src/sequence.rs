//! A sequence as whoever schedules it sees it.

use std::time::Duration;

use policy::Attributes;

use crate::{Moment, SequenceHints};

/// A sequence that waits or runs.
pub trait Scheduled {
    /// Unique over the host; grows with time.
    fn id(&self) -> u64;
    /// When its request came in.
    fn arrived(&self) -> Moment;
    /// Tokens without KV. One of them is left to a decode step; more is prefill.
    fn left(&self) -> usize;
    /// The same, of what its own worker computes.
    fn left_here(&self) -> usize {
        self.left()
    }
    /// Prompt tokens that were found in the cache when it was started first.
    fn cached_tokens(&self) -> u32;
    /// Tokens of its output so far.
    fn output_tokens(&self) -> usize;
    /// Pages that it holds.
    fn pages(&self) -> usize;
    /// What its caller said.
    fn hints(&self) -> &SequenceHints;
    /// What its caller said that has no field there.
    fn attributes(&self) -> &Attributes;
    /// Most prompt tokens of a step that the last plan gives it; `None` leaves them to the host.
    fn chunk_tokens(&self) -> Option<u32>;
    /// Notes it.
    fn set_chunk_tokens(&mut self, tokens: Option<u32>);
    /// How often a plan made it give its pages back.
    fn preemptions_planned(&self) -> u32;
    /// Whether it can compute: it waits for no block from elsewhere.
    fn is_ready(&self) -> bool {
        true
    }

    /// Whether it waited for longer than a policy may have it wait.
    fn starves(&self, now: Moment, bound: Duration) -> bool {
        now.saturating_sub(self.arrived()) > bound
    }
}
