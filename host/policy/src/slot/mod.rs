//! The slots: what each shows a policy, what it may answer, and the trait that a policy is.
//!
//! Built-in policies (plain Rust) and WebAssembly components implement the same traits.
//! **Invariant:** a view is everything a policy may know; clock and seed are in it.

mod admit;
mod hints;
mod middleware;
mod observe;
mod retain;
mod route;
mod schedule;

pub use admit::{ADMIT_FLEET, AdmitPolicy, AdmitView, Verdict};
pub use hints::{Attributes, Hints, HintsPolicy, HintsView, Value, name_id};
pub use middleware::{Action, Changes, Header, MiddlewarePolicy, MiddlewareView};
pub use observe::{Event, OBSERVE_OUTCOME, ObservePolicy, ObserveView};
pub use retain::{Clip, Keep, RETAIN_CACHE, RETAIN_SEGMENT, RetainPolicy, RetainView, Tier};
pub use route::{
    DecidePolicy, Decided, FilterPolicy, PickPolicy, REQUEST, ROUTE_CANDIDATE, RouteView, ScorePolicy,
};
pub use schedule::{SCHEDULE_BUDGET, SCHEDULE_SEQUENCE, SchedulePlan, SchedulePolicy, ScheduleView};

use serde::{Deserialize, Serialize};
use std::fmt;

/// The slots that a plugin can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// Lets requests pass as they came, changes or refuses them.
    Middleware,
    /// Interprets what callers say.
    Hints,
    /// Lets requests in.
    Admit,
    /// Says which candidates may serve.
    Filter,
    /// Says how well each would serve.
    Score,
    /// Takes one.
    Pick,
    /// Takes one of all candidates, in the place of scorers and a picker.
    Route,
    /// Plans what a worker computes next.
    Schedule,
    /// Says what of the cache is worth keeping.
    Retain,
    /// Learns from outcomes.
    Observe,
}

impl Slot {
    /// How many there are.
    pub const COUNT: usize = 10;

    /// Every slot, in the order of a request's journey.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Middleware,
        Self::Hints,
        Self::Admit,
        Self::Filter,
        Self::Score,
        Self::Pick,
        Self::Route,
        Self::Schedule,
        Self::Retain,
        Self::Observe,
    ];

    /// Its word, as in the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Middleware => "middleware",
            Self::Hints => "hints",
            Self::Admit => "admit",
            Self::Filter => "filter",
            Self::Score => "score",
            Self::Pick => "pick",
            Self::Route => "route",
            Self::Schedule => "schedule",
            Self::Retain => "retain",
            Self::Observe => "observe",
        }
    }

    /// Whether a worker asks it, and not a request: such a slot has one instance a worker.
    pub fn is_of_workers(self) -> bool {
        matches!(self, Self::Schedule | Self::Retain)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The clock and the randomness of one decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// Seed for whatever the policy wants to leave to chance.
    pub seed: u64,
}

/// A policy's answer: a decision, or none from this policy.
pub type Answer<T> = Option<T>;
