//! Prefers the worker with the shortest queue.

use pointsman_sdk::{Columns, NoConfig, Policy, RouteView, Score, export};

/// The policy; it has neither settings nor state.
pub struct ShortestQueue;

impl Policy for ShortestQueue {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }
}

impl Score for ShortestQueue {
    const CANDIDATE: Columns = Columns::numbers(&["queue_len"]);

    fn score(&mut self, view: &RouteView<'_>) -> Option<Vec<f32>> {
        let queue_len = view.candidates.column("queue_len");
        Some(queue_len.iter().map(|len| 1.0 / (1.0 + len)).collect())
    }
}

export!(ShortestQueue: score);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{RouteCase, laws, policy};

    #[test]
    fn the_shortest_queue_scores_best() {
        let case = RouteCase::new(3).candidates("queue_len", &[3.0, 0.0, 1.0]);
        assert_eq!(case.score(&mut policy::<ShortestQueue>("{}")), Some(vec![0.25, 1.0, 0.5]));
    }

    #[test]
    fn it_keeps_the_laws_of_its_slot() {
        laws::score::<ShortestQueue>("{}");
    }
}
