//! Scores by all ten columns of a candidate, shown as JSON and answered as JSON: what the flat columns of the contract
//! are compared with in benchmarks. It answers the slot `hints`, the only one that carries text.

use pointsman_sdk::{Hints, HintsView, Interpret, NoConfig, Policy, export};

/// The policy; it has neither settings nor state.
pub struct Jsonic;

impl Policy for Jsonic {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }
}

impl Interpret for Jsonic {
    /// The row with the highest score, as the class.
    fn interpret(&mut self, view: &HintsView<'_>, so_far: Hints) -> Option<Hints> {
        let candidates: Vec<Vec<f32>> = serde_json::from_str(view.extension("candidates")?).ok()?;
        let score = |row: &Vec<f32>| 1.0 / (1.0 + row.iter().sum::<f32>());
        let scores: Vec<f32> = candidates.iter().map(score).collect();
        let best = (0..scores.len()).max_by(|one, other| scores[*one].total_cmp(&scores[*other]))?;
        Some(Hints { class: Some(serde_json::to_string(&best).ok()?), ..so_far })
    }
}

export!(Jsonic: hints);
