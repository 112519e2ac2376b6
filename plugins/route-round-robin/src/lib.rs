//! Picks workers in turn, whatever they hold and whatever they have to do.
//!
//! **Invariant:** while candidates stay the same, no worker is picked twice before each other one is picked once.

use pointsman_sdk::{Columns, NoConfig, Pick, Policy, RouteView, State, export, state};
use serde::{Deserialize, Serialize};

/// The policy: whose turn it was, for who answers and for who computes a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundRobin {
    // Ids of workers; 0 before the first turn. An id outlives rows: they move when workers come and go.
    last_answers: u64,
    last_prefills: u64,
}

impl Policy for RoundRobin {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Result<Self, String> {
        Ok(Self::default())
    }
}

impl Pick for RoundRobin {
    const REQUEST: Columns = Columns::numbers(&["stage"]);
    const CANDIDATE: Columns = Columns::NONE.ids(&["worker"]);

    /// The lowest id above the last one, else the lowest of all.
    fn pick(&mut self, view: &RouteView<'_>, _: &[f32]) -> Option<u32> {
        // One turn for both stages would have the same few workers follow each other for ever.
        let last = match view.request.value("stage") == 1.0 {
            true => &mut self.last_prefills,
            false => &mut self.last_answers,
        };
        let workers = view.candidates.ids("worker");
        let place = |worker: u64| (worker <= *last, worker);
        let row = (0..workers.len()).min_by_key(|row| place(workers[*row]))?;
        *last = workers[row];
        Some(row as u32)
    }
}

impl State for RoundRobin {
    const SCHEMA: &'static str = "route-round-robin/1";

    fn export_state(&self, schema: &str) -> Option<Vec<u8>> {
        state::expect::<Self>(schema).ok()?;
        state::to_bytes(self)
    }

    fn import_state(&mut self, schema: &str, bytes: &[u8]) -> Result<(), String> {
        state::expect::<Self>(schema)?;
        *self = state::from_bytes(bytes)?;
        Ok(())
    }
}

export!(RoundRobin: pick, state);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{RouteCase, laws, policy};

    /// Ids of the workers picked in so many turns, among these candidates.
    fn turns(it: &mut RoundRobin, workers: &[u64], turns: usize) -> Vec<u64> {
        let case = RouteCase::new(workers.len()).candidate_ids("worker", workers);
        let turn = |_| workers[case.pick(it).expect("there are candidates") as usize];
        (0..turns).map(turn).collect()
    }

    #[test]
    fn workers_take_turns_by_their_ids() {
        assert_eq!(turns(&mut policy("{}"), &[30, 10, 20], 7), [10, 20, 30, 10, 20, 30, 10]);
    }

    #[test]
    fn a_worker_that_leaves_costs_nobody_a_turn() {
        let mut it = policy("{}");
        assert_eq!(turns(&mut it, &[1, 2, 3, 4], 2), [1, 2]);
        assert_eq!(turns(&mut it, &[1, 3, 4], 4), [3, 4, 1, 3]);
    }

    #[test]
    fn a_worker_that_comes_waits_for_its_turn() {
        let mut it = policy("{}");
        assert_eq!(turns(&mut it, &[1, 2, 4], 2), [1, 2]);
        assert_eq!(turns(&mut it, &[1, 2, 3, 4], 4), [3, 4, 1, 2]);
    }

    #[test]
    fn the_order_of_rows_does_not_matter() {
        let mut it = policy("{}");
        let picked: Vec<u64> =
            [[3, 1, 2], [2, 3, 1], [1, 2, 3]].iter().flat_map(|rows| turns(&mut it, rows, 1)).collect();
        assert_eq!(picked, [1, 2, 3]);
    }

    #[test]
    fn who_computes_prompts_has_turns_of_its_own() {
        let mut it: RoundRobin = policy("{}");
        let mut ask = |stage: f32, workers: &[u64]| {
            let case = RouteCase::new(workers.len()).candidate_ids("worker", workers);
            workers[case.request("stage", stage).pick(&mut it).expect("there are candidates") as usize]
        };
        let picked: Vec<(u64, u64)> = (0..4).map(|_| (ask(0.0, &[3, 4]), ask(1.0, &[1, 2]))).collect();
        assert_eq!(picked, [(3, 1), (4, 2), (3, 1), (4, 2)]);
    }

    #[test]
    fn trial_calls_leave_no_mark() {
        let mut it = policy::<RoundRobin>("{}");
        assert_eq!(turns(&mut it, &[0; 64], 2), [0, 0]);
        assert_eq!(it, RoundRobin::default());
    }

    #[test]
    fn nobody_is_picked_of_none() {
        assert_eq!(RouteCase::new(0).pick(&mut policy::<RoundRobin>("{}")), None);
    }

    #[test]
    fn a_state_of_other_fields_is_refused_and_changes_nothing() {
        let mut it = policy("{}");
        turns(&mut it, &[1, 2], 1);
        let before = it;
        assert!(it.import_state(RoundRobin::SCHEMA, br#"{"last_answers": 7, "turn": 1}"#).is_err());
        assert_eq!(it, before);
    }

    #[test]
    fn it_keeps_the_laws_of_its_slot() {
        laws::pick::<RoundRobin>("{}");
        laws::state::<RoundRobin, _>("{}", |it, seed| RouteCase::random(seed).pick(it));
    }
}
