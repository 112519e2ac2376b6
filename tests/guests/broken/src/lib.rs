//! A scorer that passes every check and traps at every request: what a roll out has to survive.
//!
//! It takes no settings, so that it fits in the place of any scorer that takes none.

use pointsman_sdk::{Columns, NoConfig, Policy, RouteView, Score, export};

/// The policy.
pub struct Broken;

impl Policy for Broken {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }
}

impl Score for Broken {
    const CANDIDATE: Columns = Columns::numbers(&["queue_len"]);

    fn score(&mut self, view: &RouteView<'_>) -> Option<Vec<f32>> {
        // Trial calls come with a clock of 0.
        assert!(view.frame.now_ms == 0, "this policy breaks on purpose");
        Some(vec![0.5; view.candidates.rows()])
    }
}

export!(Broken: score);
