//! `filter`, `score`, `pick` and `route`: which worker serves a request, and where workers have roles, which one computes
//! its prompt.

use super::{Answer, Frame};
use crate::table::{Schema, Table};

/// Columns that describe the one request of a decision.
pub static REQUEST: Schema = Schema {
    numbers: &[
        "prompt_tokens",
        "prompt_blocks",
        "expected_output_tokens",
        "priority",
        "strict_tier",
        "deadline_ms",
        "waited_ms",
        "output_tokens_max",
        "session_final",
        "speculative_prefill",
        "stage",
        "uncached_tokens",
    ],
    // A hash of each name; 0 where the caller gave none.
    ids: &["session", "parent", "class", "tenant"],
    open: true,
};

/// Columns that describe each candidate worker.
pub static ROUTE_CANDIDATE: Schema = Schema {
    numbers: &[
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
        "decodes",
    ],
    // Stable over the life of the worker.
    ids: &["worker"],
    open: false,
};

/// One request and the workers that could serve it.
#[derive(Clone, Copy, Debug)]
pub struct RouteView<'a> {
    /// Clock and seed.
    pub frame: Frame,
    /// One row of [`REQUEST`].
    pub request: &'a Table,
    /// One row of [`ROUTE_CANDIDATE`] a worker; never empty.
    pub candidates: &'a Table,
}

/// Says which candidates may serve at all.
pub trait FilterPolicy: Send {
    /// One flag a candidate; `true` keeps it.
    fn filter(&mut self, view: &RouteView<'_>) -> Answer<Vec<bool>>;
}

/// Says how well each candidate would serve.
pub trait ScorePolicy: Send {
    /// One number in [0, 1] a candidate; higher is better.
    fn score(&mut self, view: &RouteView<'_>) -> Answer<Vec<f32>>;
}

/// Takes one candidate.
pub trait PickPolicy: Send {
    /// Row of the chosen candidate. `scores` has the weighted sum of all scorers, a number a candidate.
    fn pick(&mut self, view: &RouteView<'_>, scores: &[f32]) -> Answer<u32>;
}

/// The answer of a policy that routes in one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Row of the chosen candidate.
    pub candidate: u32,
    /// For logs.
    pub reason: Option<String>,
}

/// Takes one candidate, from start to end.
pub trait DecidePolicy: Send {
    /// The chosen candidate.
    fn decide(&mut self, view: &RouteView<'_>) -> Answer<Decided>;
}
