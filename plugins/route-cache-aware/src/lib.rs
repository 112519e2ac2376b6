//! Takes the worker with the longest prefix while load is balanced, and the least loaded one while it is not: the
//! cache-aware policy of SGLang's router.

use pointsman_sdk::{Columns, Policy, Random, Route, RouteDecision, RouteView, export, within};
use serde::Deserialize;

/// Settings. Names and defaults are the original's, apart from `unmatched`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Share of the prompt, from 0 to 1, above which the longest match decides.
    pub cache_threshold: f32,
    /// Load is unbalanced if the most and the least differ by more than this many sequences,
    pub balance_abs_threshold: f32,
    /// and the most is more than this many times the least.
    pub balance_rel_threshold: f32,
    /// Who takes a prompt that nobody has much of.
    pub unmatched: Unmatched,
}

/// Who takes a prompt that nobody has much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unmatched {
    /// The least loaded worker, as the original does.
    LeastLoad,
    /// The worker with the most pages that no running sequence holds, as the original is described.
    MostRoom,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cache_threshold: 0.3,
            balance_abs_threshold: 64.0,
            balance_rel_threshold: 1.5,
            unmatched: Unmatched::LeastLoad,
        }
    }
}

/// The policy; it keeps no state.
pub struct CacheAware(Config);

impl Policy for CacheAware {
    type Config = Config;
    const WISHES: &'static [(&'static str, &'static str)] = &[("stateless", "true")];

    fn new(config: Config) -> Result<Self, String> {
        within("cache_threshold", config.cache_threshold, 0.0..=1.0)?;
        within("balance_abs_threshold", config.balance_abs_threshold, 0.0..=1e6)?;
        within("balance_rel_threshold", config.balance_rel_threshold, 1.0..=1e6)?;
        Ok(Self(config))
    }
}

impl CacheAware {
    fn is_unbalanced(&self, loads: &[f32]) -> bool {
        let least = loads.iter().copied().fold(f32::INFINITY, f32::min);
        let most = loads.iter().copied().fold(0.0, f32::max);
        most - least > self.0.balance_abs_threshold && most > least * self.0.balance_rel_threshold
    }
}

impl Route for CacheAware {
    const REQUEST: Columns = Columns::numbers(&["prompt_tokens"]);
    const CANDIDATE: Columns = Columns::numbers(&["overlap_tokens", "running", "queue_len", "kv_free_pages"]);

    fn decide(&mut self, view: &RouteView<'_>) -> Option<RouteDecision> {
        let column = |name| view.candidates.column(name);
        let (overlaps, pages) = (column("overlap_tokens"), column("kv_free_pages"));
        let loads: Vec<f32> = column("running")
            .iter()
            .zip(column("queue_len"))
            .map(|(running, queued)| running + queued)
            .collect();
        let idlest = |row: usize| -loads[row];
        let mut random = Random::new(view.frame.seed);
        let mut best = |rank: &dyn Fn(usize) -> (f32, f32)| highest(loads.len(), rank, &mut random);

        if self.is_unbalanced(&loads) {
            return decision(best(&|row| (idlest(row), overlaps[row]))?, "load is unbalanced");
        }
        let longest = overlaps.iter().copied().fold(0.0, f32::max);
        if longest > view.request.value("prompt_tokens") * self.0.cache_threshold {
            return decision(best(&|row| (overlaps[row], idlest(row)))?, "longest match");
        }
        match self.0.unmatched {
            Unmatched::LeastLoad => decision(best(&|row| (idlest(row), pages[row]))?, "least load"),
            Unmatched::MostRoom => decision(best(&|row| (pages[row], idlest(row)))?, "most room"),
        }
    }
}

fn decision(row: usize, reason: &str) -> Option<RouteDecision> {
    Some(RouteDecision { candidate: row as u32, reason: Some(reason.to_owned()) })
}

/// The row of the highest rank, one of equals at random. `None` where there are no rows.
fn highest(rows: usize, rank: &dyn Fn(usize) -> (f32, f32), random: &mut Random) -> Option<usize> {
    let mut equals: Vec<usize> = vec![];
    for row in 0..rows {
        match equals.first().map(|best| (rank(row), rank(*best))) {
            Some((here, best)) if here < best => continue,
            Some((here, best)) if here > best => equals.clear(),
            _ => {}
        }
        equals.push(row);
    }
    (!equals.is_empty()).then(|| equals[random.below(equals.len())])
}

export!(CacheAware: route);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{RouteCase, laws, policy, try_policy};

    const MOST_ROOM: &str = r#"{"unmatched": "most_room"}"#;

    /// A request of 1,000 tokens, and workers with an overlap and so many sequences each.
    fn case(overlaps: &[f32], running: &[f32]) -> RouteCase {
        let case = RouteCase::new(overlaps.len()).request("prompt_tokens", 1000.0);
        case.candidates("overlap_tokens", overlaps).candidates("running", running)
    }

    /// Whatever the seed, this one is taken for this reason.
    fn check(config: &str, mut case: RouteCase, row: u32, reason: &str) {
        for seed in 0..20 {
            case.frame.seed = seed;
            let decision = case.decide(&mut policy::<CacheAware>(config)).expect("there are candidates");
            assert_eq!(decision, RouteDecision { candidate: row, reason: Some(reason.to_owned()) });
        }
    }

    #[test]
    fn the_longest_match_wins_while_load_is_balanced() {
        check("{}", case(&[400.0, 900.0, 0.0], &[0.0, 64.0, 3.0]), 1, "longest match");
    }

    #[test]
    fn the_least_loaded_wins_while_it_is_not() {
        check("{}", case(&[400.0, 900.0, 0.0], &[1.0, 65.0, 0.0]), 2, "load is unbalanced");
    }

    #[test]
    fn sequences_that_wait_are_load() {
        let waiting = case(&[0.0, 900.0], &[0.0, 1.0]).candidates("queue_len", &[0.0, 64.0]);
        check("{}", waiting, 0, "load is unbalanced");
    }

    #[test]
    fn a_difference_that_is_small_beside_the_load_is_balanced() {
        check("{}", case(&[900.0, 0.0], &[300.0, 200.0]), 0, "longest match");
        check("{}", case(&[900.0, 0.0], &[301.0, 200.0]), 1, "load is unbalanced");
        check(r#"{"balance_rel_threshold": 2}"#, case(&[900.0, 0.0], &[301.0, 200.0]), 0, "longest match");
    }

    #[test]
    fn a_match_has_to_exceed_its_share() {
        check("{}", case(&[300.0, 0.0], &[2.0, 1.0]), 1, "least load");
        check("{}", case(&[301.0, 0.0], &[2.0, 1.0]), 0, "longest match");
        check(r#"{"cache_threshold": 0}"#, case(&[16.0, 0.0], &[2.0, 1.0]), 0, "longest match");
    }

    #[test]
    fn a_prompt_that_nobody_has_goes_to_the_most_room_if_asked() {
        let rooms = case(&[0.0; 3], &[0.0, 1.0, 2.0]).candidates("kv_free_pages", &[10.0, 30.0, 20.0]);
        check(MOST_ROOM, rooms.clone(), 1, "most room");
        check("{}", rooms, 0, "least load");
    }

    #[test]
    fn of_equal_matches_the_less_loaded_wins() {
        check("{}", case(&[900.0, 900.0, 0.0], &[7.0, 2.0, 0.0]), 1, "longest match");
    }

    #[test]
    fn equals_share_evenly() {
        let (mut case, mut taken) = (case(&[0.0; 3], &[1.0, 5.0, 1.0]), [0_u32; 3]);
        for seed in 0..2000 {
            case.frame.seed = seed;
            let decision = case.decide(&mut policy::<CacheAware>("{}")).expect("there are candidates");
            taken[decision.candidate as usize] += 1;
        }
        assert_eq!(taken[1], 0);
        assert!(taken[0].abs_diff(1000) < 150, "{taken:?}");
    }

    #[test]
    fn nobody_is_taken_of_none() {
        for config in ["{}", MOST_ROOM] {
            assert_eq!(case(&[], &[]).decide(&mut policy::<CacheAware>(config)), None);
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for (config, field) in [
            (r#"{"cache_threshold": 1.5}"#, "cache_threshold"),
            (r#"{"balance_abs_threshold": -1}"#, "balance_abs_threshold"),
            (r#"{"balance_rel_threshold": 0.5}"#, "balance_rel_threshold"),
            (r#"{"unmatched": "random"}"#, "random"),
        ] {
            let refusal = try_policy::<CacheAware>(config).err().expect("it is refused");
            assert!(refusal.contains(field), "{refusal}");
        }
    }

    #[test]
    fn it_keeps_the_laws_of_its_slot() {
        laws::route::<CacheAware>("{}");
        laws::route::<CacheAware>(r#"{"balance_abs_threshold": 3, "unmatched": "most_room"}"#);
    }
}
