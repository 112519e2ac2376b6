//! The names of columns: those that a host offers, and those that a policy declares.
//!
//! **Invariant:** within a contract version names are added, never changed or removed.

/// Columns of one table: what a policy declares, or what a host offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Columns of `f32`.
    pub numbers: &'static [&'static str],
    /// Columns of `u64`.
    pub ids: &'static [&'static str],
}

impl Columns {
    /// No columns.
    pub const NONE: Self = Self { numbers: &[], ids: &[] };

    /// These columns of `f32`.
    pub const fn numbers(numbers: &'static [&'static str]) -> Self {
        Self { numbers, ids: &[] }
    }

    /// And these columns of `u64`.
    pub const fn ids(self, ids: &'static [&'static str]) -> Self {
        Self { numbers: self.numbers, ids }
    }
}

/// The request of a route decision: one row. An id is a hash, and 0 where the caller gave none.
pub const REQUEST: Columns = Columns::numbers(&[
    "prompt_tokens",
    "prompt_blocks",
    "expected_output_tokens",
    "priority",
    "strict_tier",
    "deadline_ms",
])
.ids(&["session", "parent", "class"]);

/// The workers that could serve: a row each.
pub const CANDIDATE: Columns = Columns::numbers(&[
    "overlap_tokens",
    "queue_len",
    "running",
    "queued_tokens",
    "active_tokens",
    "kv_used",
    "kv_free_pages",
    "health",
    "ttft_ms_ewma",
    "itl_ms_ewma",
])
.ids(&["worker"]);

/// The sequences of a worker, waiting or running: a row each.
pub const SEQUENCE: Columns = Columns::numbers(&[
    "age_ms",
    "prefill_left_tokens",
    "cached_tokens",
    "output_tokens",
    "expected_output_tokens",
    "priority",
    "strict_tier",
    "deadline_ms",
    "kv_pages",
])
.ids(&["sequence", "session", "class"]);

/// The budgets of a step: one row.
pub const BUDGET: Columns = Columns::numbers(&["step_tokens", "free_pages", "free_rows"]).ids(&["worker"]);

/// What became of requests: a row each. `event` is one of [`crate::Event`].
pub const OUTCOME: Columns = Columns::numbers(&[
    "event",
    "ttft_ms",
    "itl_ms",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "finish",
])
.ids(&["worker", "session", "sequence", "class"]);
