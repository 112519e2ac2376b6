//! Marks each request in `hints` with its configured stamp and traps in `score` if it finds another.
//!
//! The host pins a request to one generation, so both must agree however often the chain is swapped in between.

use pointsman_sdk::{Columns, Hints, HintsView, Interpret, Policy, RouteView, Score, export};
use serde::Deserialize;

/// Settings.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The mark of this generation.
    pub stamp: u16,
}

/// The policy.
pub struct Stamp(f32);

impl Policy for Stamp {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        Ok(Self(config.stamp.into()))
    }
}

impl Interpret for Stamp {
    fn interpret(&mut self, _: &HintsView<'_>, so_far: Hints) -> Option<Hints> {
        Some(Hints { priority: Some(self.0), ..so_far })
    }
}

impl Score for Stamp {
    const REQUEST: Columns = Columns::numbers(&["priority"]);
    const CANDIDATE: Columns = Columns::numbers(&["queue_len"]);

    fn score(&mut self, view: &RouteView<'_>) -> Option<Vec<f32>> {
        // Trial calls come with a clock of 0, and without hints.
        if view.frame.now_ms > 0 {
            assert!(
                view.request.value("priority") == self.0,
                "this request's hints are of another generation"
            );
        }
        None
    }
}

export!(Stamp: hints, score);
