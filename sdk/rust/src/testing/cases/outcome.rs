//! What policies learn from.

use crate::columns::OUTCOME;
use crate::random::Random;
use crate::slot::Observe;
use crate::testing::rows::{Rows, frame};
use crate::view::{Frame, ObserveView, Table};

/// What became of requests.
#[derive(Clone, Debug)]
pub struct ObserveCase {
    /// Clock and seed.
    pub frame: Frame,
    /// A row a request.
    pub outcomes: Rows,
}

impl ObserveCase {
    /// So many outcomes with all columns 0.
    pub fn new(rows: usize) -> Self {
        Self { frame: Frame::default(), outcomes: Rows::new(OUTCOME, rows) }
    }

    /// The case of a seed: up to 8 outcomes.
    pub fn random(seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let rows = random.below(9);
        Self { outcomes: Rows::drawn(OUTCOME, rows, random), frame: frame(random) }
    }

    /// Sets a column of numbers.
    #[track_caller]
    pub fn numbers(mut self, name: &str, values: &[f32]) -> Self {
        self.outcomes = self.outcomes.numbers(name, values);
        self
    }

    /// Sets a column of ids.
    #[track_caller]
    pub fn ids(mut self, name: &str, values: &[u64]) -> Self {
        self.outcomes = self.outcomes.ids(name, values);
        self
    }

    /// Tells an observer.
    pub fn observe<P: Observe>(&self, policy: &mut P) {
        let (mut numbers, mut ids) = (vec![], vec![]);
        self.outcomes.project(P::OUTCOME, &mut numbers, &mut ids);
        let outcomes = Table::new(P::OUTCOME, self.outcomes.rows(), &numbers, &ids);
        policy.observe(&ObserveView { frame: self.frame, outcomes });
    }
}
