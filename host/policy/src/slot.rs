//! The slots: what each shows a policy, what it may answer, and the trait that a policy is.
//!
//! Built-in policies (plain Rust) and WebAssembly components implement the same traits.
//! **Invariant:** a view is everything a policy may know; clock and seed are in it.

use crate::table::{Schema, Table};
use serde::Serialize;
use std::fmt;

/// The slots that a plugin can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// Interprets what callers say.
    Hints,
    /// Says which candidates may serve.
    Filter,
    /// Says how well each would serve.
    Score,
    /// Takes one.
    Pick,
    /// Orders waiting sequences.
    Schedule,
    /// Learns from outcomes.
    Observe,
}

impl Slot {
    /// Every slot, in the order of a request's journey.
    pub const ALL: [Self; 6] =
        [Self::Hints, Self::Filter, Self::Score, Self::Pick, Self::Schedule, Self::Observe];

    /// Its word, as in the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hints => "hints",
            Self::Filter => "filter",
            Self::Score => "score",
            Self::Pick => "pick",
            Self::Schedule => "schedule",
            Self::Observe => "observe",
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The clock and the randomness of one decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// Seed for whatever the policy wants to leave to chance.
    pub seed: u64,
}

/// A policy's answer: a decision, or none from this policy.
pub type Answer<T> = Option<T>;

// --- hints -------------------------------------------------------------------------------------

/// What a caller said about a request, raw.
#[derive(Clone, Copy, Debug)]
pub struct HintsView<'a> {
    /// Clock and seed.
    pub frame: Frame,
    /// `openai-chat` and the like.
    pub protocol: &'a str,
    /// Allow-listed headers, names in lower case.
    pub headers: &'a [(String, String)],
    /// Extension objects of the body by name (`nvext`, `metadata`, …), each as JSON text.
    pub extensions: &'a [(String, String)],
    /// Tokens of the rendered prompt.
    pub prompt_tokens: u32,
    /// Output limit that the caller asked for, if any.
    pub output_tokens_max: Option<u32>,
}

/// What a request's caller wishes, typed. Advice: the host bounds every field.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hints {
    /// Session that the request belongs to.
    pub session: Option<String>,
    /// Session or agent that started this one.
    pub parent: Option<String>,
    /// `main`, `subagent`, `background`, … free text, at most 64 bytes.
    pub class: Option<String>,
    /// Head start in seconds of waiting; may be negative.
    pub priority: Option<f32>,
    /// Strict tier: a higher one always goes first.
    pub strict_tier: Option<u32>,
    /// Milliseconds from arrival within which the answer is useful.
    pub deadline_ms: Option<u32>,
    /// Output tokens that the caller expects.
    pub expected_output_tokens: Option<u32>,
    /// Whether the prompt may be computed ahead of need.
    pub speculative_prefill: Option<bool>,
    /// Whether the session ends with this request.
    pub session_final: Option<bool>,
    /// Hints that the contract has no field for, by name. Later policies see them.
    pub attributes: Vec<(String, Value)>,
}

/// Value of an open attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Yes or no.
    Flag(bool),
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

/// Interprets what callers say.
pub trait HintsPolicy: Send {
    /// The hints after this policy: `so_far` completed or overruled. `None` leaves them as they are.
    fn interpret(&mut self, view: &HintsView<'_>, so_far: &Hints) -> Answer<Hints>;
}

// --- route -------------------------------------------------------------------------------------

/// Columns that describe the one request of a route decision.
pub static ROUTE_REQUEST: Schema = Schema {
    numbers: &[
        "prompt_tokens",
        "prompt_blocks",
        "expected_output_tokens",
        "priority",
        "strict_tier",
        "deadline_ms",
    ],
    // A hash of each name; 0 where the caller gave none.
    ids: &["session", "parent", "class"],
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
    ],
    // Stable over the life of the worker.
    ids: &["worker"],
};

/// One request and the workers that could serve it.
#[derive(Clone, Copy, Debug)]
pub struct RouteView<'a> {
    /// Clock and seed.
    pub frame: Frame,
    /// One row of [`ROUTE_REQUEST`].
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

// --- schedule ----------------------------------------------------------------------------------

/// Columns of a sequence, waiting or running.
pub static SCHEDULE_SEQUENCE: Schema = Schema {
    numbers: &[
        "age_ms",
        "prefill_left_tokens",
        "cached_tokens",
        "output_tokens",
        "expected_output_tokens",
        "priority",
        "strict_tier",
        "deadline_ms",
        "kv_pages",
    ],
    ids: &["sequence", "session", "class"],
};

/// Columns of the step's budgets: one row.
pub static SCHEDULE_BUDGET: Schema =
    Schema { numbers: &["step_tokens", "free_pages", "free_rows"], ids: &["worker"] };

/// A worker's sequences before a step.
#[derive(Clone, Copy, Debug)]
pub struct ScheduleView<'a> {
    /// Clock and seed.
    pub frame: Frame,
    /// One row of [`SCHEDULE_BUDGET`].
    pub budget: &'a Table,
    /// Rows of [`SCHEDULE_SEQUENCE`], in order of arrival.
    pub waiting: &'a Table,
    /// Rows of [`SCHEDULE_SEQUENCE`], in order of admission to the batch.
    pub running: &'a Table,
}

/// Orders a worker's waiting sequences.
pub trait SchedulePolicy: Send {
    /// A permutation of the rows of `waiting`: who is started first.
    fn order(&mut self, view: &ScheduleView<'_>) -> Answer<Vec<u32>>;
}

// --- observe -----------------------------------------------------------------------------------

/// Columns of an outcome.
pub static OBSERVE_OUTCOME: Schema = Schema {
    numbers: &["event", "ttft_ms", "itl_ms", "prompt_tokens", "cached_tokens", "output_tokens", "finish"],
    ids: &["worker", "session", "sequence", "class"],
};

/// Value of the `event` column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first token is out.
    FirstToken = 0,
    /// The request ended well.
    Finished = 1,
    /// The request failed or its client left.
    Failed = 2,
}

/// What became of requests: a batch.
#[derive(Clone, Copy, Debug)]
pub struct ObserveView<'a> {
    /// Clock and seed.
    pub frame: Frame,
    /// Rows of [`OBSERVE_OUTCOME`].
    pub outcomes: &'a Table,
}

/// Learns from outcomes.
pub trait ObservePolicy: Send {
    /// Takes note; there is nothing to answer.
    fn observe(&mut self, view: &ObserveView<'_>) -> Answer<()>;
}
