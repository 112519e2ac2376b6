//! Scores by all ten columns of a candidate: the widest call there is, for benchmarks.

use pointsman_sdk::{CANDIDATE, Columns, NoConfig, Policy, RouteView, Score, export};

const COLUMNS: &[&str] = CANDIDATE.numbers;

/// The policy; it has neither settings nor state.
pub struct Wide;

impl Policy for Wide {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }
}

impl Score for Wide {
    const CANDIDATE: Columns = Columns::numbers(COLUMNS);

    fn score(&mut self, view: &RouteView<'_>) -> Option<Vec<f32>> {
        let mut cost = vec![0.0; view.candidates.rows()];
        for column in COLUMNS {
            for (cost, cell) in cost.iter_mut().zip(view.candidates.column(column)) {
                *cost += cell;
            }
        }
        cost.iter_mut().for_each(|cost| *cost = 1.0 / (1.0 + *cost));
        Some(cost)
    }
}

export!(Wide: score);
