//! What a run will do, checked.
//!
//! **Invariant:** whatever is made of arguments has its bounds; nobody behind this asks again.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::caller::Target;
use crate::conversation::Answers;
use crate::identity::Identity;

/// Most requests of a run: each keeps some hundred bytes for exact percentiles.
pub(crate) const REQUESTS_MAX: u64 = 1_000_000;

/// What a run will do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    /// None: the first that the server names.
    pub(crate) model: Option<String>,
    pub(crate) identity: Identity,
    /// Merged into each body.
    pub(crate) extra: Map<String, Value>,
    pub(crate) shape: Shape,
    pub(crate) bounds: Bounds,
    pub(crate) answers: Answers,
    pub(crate) pauses: Pauses,
    /// Limit of tokens of an answer, whatever the workload says.
    pub(crate) output_max: Option<u64>,
    pub(crate) tokens_per_word: Option<f64>,
    pub(crate) slo: Slo,
    pub(crate) seed: u64,
    pub(crate) threads: usize,
    pub(crate) json: Option<PathBuf>,
    pub(crate) html: Option<PathBuf>,
}

/// Who decides when requests begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shape {
    /// So many sessions at once; a session that ends makes room for the next.
    Closed { sessions: usize },
    /// So many sessions begin in a second.
    Sessions { per_second: f64, arrivals: Arrivals },
    /// So many requests begin in a second, each the next of the session that waits longest.
    Requests { per_second: f64, arrivals: Arrivals },
    /// Sessions begin when they did in the trace.
    Schedule { speedup: f64 },
}

/// How arrivals follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arrivals {
    /// As many people come who do not know of each other.
    Poisson,
    /// All equally far apart.
    Constant,
}

/// What `--rate` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RateOf {
    /// Sessions that begin.
    Sessions,
    /// Requests.
    Requests,
}

/// Where a run ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) warmup: Warmup,
    /// Counted requests.
    pub(crate) requests: u64,
    /// From the end of the warm-up.
    pub(crate) duration: Option<Duration>,
    /// How long requests that run at the end may go on.
    pub(crate) grace: Duration,
    /// Sessions, or requests, at once in an open loop.
    pub(crate) in_flight: usize,
}

/// What is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Warmup {
    Requests(u64),
    Time(Duration),
}

/// What becomes of the pauses between turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pauses {
    Ignored,
    AtMost(Duration),
}

/// What a good answer is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Slo {
    pub(crate) ttft_ms: Option<f64>,
    pub(crate) itl_ms: Option<f64>,
}

impl Plan {
    /// Whether `extra` limits the answers, so that nobody else does.
    pub(crate) fn says_max_tokens(&self) -> bool {
        ["max_tokens", "max_completion_tokens"].iter().any(|name| self.extra.contains_key(*name))
    }
}

impl Shape {
    /// Whether requests are due at times that the server cannot move: latencies count from there.
    pub(crate) fn is_open(self) -> bool {
        !matches!(self, Self::Closed { .. })
    }

    /// What the times of the workload are divided by.
    pub(crate) fn speedup(self) -> f64 {
        match self {
            Self::Schedule { speedup } => speedup,
            _ => 1.0,
        }
    }
}

impl Pauses {
    /// A pause of the workload as it is kept.
    pub(crate) fn kept(self, pause_ms: f64) -> Duration {
        match self {
            Self::Ignored => Duration::ZERO,
            Self::AtMost(most) => Duration::try_from_secs_f64(pause_ms / 1e3).unwrap_or(most).min(most),
        }
    }
}
