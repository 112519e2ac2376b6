//! A trait a slot. A policy implements [`Policy`] and any of the others.

use crate::columns::Columns;
use crate::hints::Hints;
use crate::view::{AdmitView, Frame, HintsView, ObserveView, RetainView, RouteView, ScheduleView};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// What every policy has: a configuration, and a way to start from it.
pub trait Policy: Sized + 'static {
    /// The operator's settings, from JSON. `#[serde(deny_unknown_fields, default)]` is a good habit.
    type Config: DeserializeOwned;
    /// Wishes to the host, such as `("stateless", "true")`.
    const WISHES: &'static [(&'static str, &'static str)] = &[];

    /// Starts from its settings. An error refuses the plugin and shows the operator why.
    fn new(config: Self::Config) -> Result<Self, String>;
}

/// Settings of a policy that has none: the empty object.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}

/// Slot `hints`: interprets what callers say.
pub trait Interpret: Policy {
    /// `so_far`, completed or overruled. `None` leaves it as it is.
    fn interpret(&mut self, view: &HintsView<'_>, so_far: Hints) -> Option<Hints>;
}

/// Slot `admit`: lets a request in, has it wait, or turns it away.
pub trait Admit: Policy {
    /// Columns wanted of the request.
    const REQUEST: Columns = Columns::NONE;
    /// Columns wanted of the load of all workers.
    const FLEET: Columns;

    /// What becomes of the request. One that waited is asked about again.
    fn admit(&mut self, view: &AdmitView<'_>) -> Option<Verdict>;
}

/// What becomes of a request at the door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Admit,
    /// It waits.
    DeferUntil {
        /// Milliseconds since the Unix epoch, like `view.frame.now_ms`; later than that.
        ms: u64,
    },
    /// It is refused.
    Reject {
        /// Milliseconds after which it may come again.
        retry_after_ms: u32,
        /// Shown to the caller: at most 256 bytes.
        reason: String,
    },
}

/// Slot `filter`: says which candidates may serve at all.
pub trait Filter: Policy {
    /// Columns wanted of the request.
    const REQUEST: Columns = Columns::NONE;
    /// Columns wanted of each candidate.
    const CANDIDATE: Columns;

    /// One flag a candidate; `true` keeps it.
    fn filter(&mut self, view: &RouteView<'_>) -> Option<Vec<bool>>;
}

/// Slot `score`: says how well each candidate would serve.
pub trait Score: Policy {
    /// Columns wanted of the request.
    const REQUEST: Columns = Columns::NONE;
    /// Columns wanted of each candidate.
    const CANDIDATE: Columns;

    /// One number in [0, 1] a candidate; higher is better.
    fn score(&mut self, view: &RouteView<'_>) -> Option<Vec<f32>>;
}

/// Slot `pick`: takes one candidate.
pub trait Pick: Policy {
    /// Columns wanted of the request.
    const REQUEST: Columns = Columns::NONE;
    /// Columns wanted of each candidate.
    const CANDIDATE: Columns = Columns::NONE;

    /// Row of the candidate chosen. `scores` has the weighted sum of all scorers.
    fn pick(&mut self, view: &RouteView<'_>, scores: &[f32]) -> Option<u32>;
}

/// Slot `route`: the whole route decision, in the place of scorers and a picker.
pub trait Route: Policy {
    /// Columns wanted of the request.
    const REQUEST: Columns = Columns::NONE;
    /// Columns wanted of each candidate.
    const CANDIDATE: Columns;

    /// The candidate that serves.
    fn decide(&mut self, view: &RouteView<'_>) -> Option<RouteDecision>;
}

/// The candidate that a [`Route`] policy chose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteDecision {
    /// Its row.
    pub candidate: u32,
    /// For logs, at most 128 bytes.
    pub reason: Option<String>,
}

/// Slot `schedule`: orders a worker's waiting sequences.
pub trait Schedule: Policy {
    /// Columns wanted of the step's budgets.
    const BUDGET: Columns = Columns::NONE;
    /// Columns wanted of each sequence, waiting or running.
    const SEQUENCE: Columns;

    /// A permutation of the rows of `view.waiting`: who is started first.
    fn order(&mut self, view: &ScheduleView<'_>) -> Option<Vec<u32>>;
}

/// Slot `schedule` too, in the place of [`Schedule`]: plans order, chunk sizes and preemption victims.
pub trait Plan: Policy {
    /// Columns wanted of the step's budgets.
    const BUDGET: Columns = Columns::NONE;
    /// Columns wanted of each sequence, waiting or running.
    const SEQUENCE: Columns;

    /// The plan of the next steps.
    fn plan(&mut self, view: &ScheduleView<'_>) -> Option<SchedulePlan>;
}

/// A worker's next steps, planned by a [`Plan`] policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchedulePlan {
    /// A permutation of the rows of `view.waiting`: who is started first.
    pub order: Vec<u32>,
    /// Most prompt tokens that a step may compute of each sequence, those that wait first, then those that run; 0 holds
    /// it back, within the host's bound of starvation. An empty list leaves sizes to the host.
    pub chunk_tokens: Vec<u32>,
    /// Rows of `view.running`, each at most once: who gives its pages back first when there are too few. Whoever is
    /// not named comes after, the last admitted first.
    pub victims: Vec<u32>,
}

/// Slot `retain`: says what of the KV cache is worth keeping.
pub trait Retain: Policy {
    /// Columns wanted of the cache.
    const CACHE: Columns = Columns::NONE;
    /// Columns wanted of each segment.
    const SEGMENT: Columns;

    /// One answer a segment.
    fn retain(&mut self, view: &RetainView<'_>) -> Option<Vec<Keep>>;

    /// Told what the host clipped of its last answer, before the next question.
    fn clipped(&mut self, frame: Frame, clips: &[Clip]) {
        let _ = (frame, clips);
    }
}

/// What becomes of one segment. The default is what a segment has that nobody spoke for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// 0 to 100: a lower one leaves first.
    pub priority: u8,
    /// Milliseconds from now for which the host is asked to hold on to it; 0 asks for nothing.
    pub ttl_ms: u32,
    /// The slowest tier that it may fall to while that time runs.
    pub tier_floor: Option<Tier>,
    /// It may go at once: nobody will come for it.
    pub drop: bool,
}

impl Default for Keep {
    fn default() -> Self {
        Self { priority: 50, ttl_ms: 0, tier_floor: None, drop: false }
    }
}

/// Where KV lives, the fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Memory of the accelerator.
    Hbm,
    /// Memory of the host.
    Host,
    /// A disk of the host.
    Disk,
    /// Another machine.
    Remote,
}

/// What the host made of an answer that asked for too much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clip {
    /// Row of the segment.
    pub row: u32,
    /// What the segment got.
    pub got: Keep,
    /// The bound that it met: `priority`, `ttl`, `pinned-share`, `tenant-share`, `tier`.
    pub bound: String,
}

/// Slot `observe`: learns from outcomes.
pub trait Observe: Policy {
    /// Columns wanted of each outcome.
    const OUTCOME: Columns;

    /// Takes note.
    fn observe(&mut self, view: &ObserveView<'_>);
}

/// State that the host carries to the component that takes this one's place. No slot: it answers no decision.
///
/// [`crate::state`] reads and writes it as JSON.
pub trait State: Policy {
    /// The form in which it reads and writes its state: a name and a version, such as `sessions/2`.
    const SCHEMA: &'static str;

    /// Its state in a form that its successor asked for; `None` where it cannot write that form, and the successor
    /// starts cold.
    fn export_state(&self, schema: &str) -> Option<Vec<u8>>;

    /// Takes over a state, after [`Policy::new`] and before the first decision. An error starts it cold, and must
    /// leave it as it was.
    fn import_state(&mut self, schema: &str, state: &[u8]) -> Result<(), String>;
}
