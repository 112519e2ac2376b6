//! A trait a slot. A policy implements [`Policy`] and any of the others.

use crate::columns::Columns;
use crate::hints::Hints;
use crate::view::{HintsView, ObserveView, RouteView, ScheduleView};
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

/// Slot `schedule`: orders a worker's waiting sequences.
pub trait Schedule: Policy {
    /// Columns wanted of the step's budgets.
    const BUDGET: Columns = Columns::NONE;
    /// Columns wanted of each sequence, waiting or running.
    const SEQUENCE: Columns;

    /// A permutation of the rows of `view.waiting`: who is started first.
    fn order(&mut self, view: &ScheduleView<'_>) -> Option<Vec<u32>>;
}

/// Slot `observe`: learns from outcomes.
pub trait Observe: Policy {
    /// Columns wanted of each outcome.
    const OUTCOME: Columns;

    /// Takes note.
    fn observe(&mut self, view: &ObserveView<'_>);
}
