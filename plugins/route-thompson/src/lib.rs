//! Scores workers by Thompson sampling: each has a chance to answer in time, learned from outcomes.

use pointsman_sdk::{
    Columns, Event, Observe, ObserveView, Policy, Random, RouteView, Score, State, export, state, within,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Workers remembered; the one not heard of for longest is forgotten first.
const WORKERS_MAX: usize = 4_096;

/// Settings.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A first token within this time is a success.
    pub ttft_ms_target: f32,
    /// Share of what is known that one more outcome replaces.
    pub forget: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { ttft_ms_target: 200.0, forget: 0.02 }
    }
}

/// What is known of a worker: successes and failures, the older ones fading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    successes: f64,
    failures: f64,
    heard_ms: u64,
}

/// The policy.
pub struct Thompson {
    config: Config,
    workers: BTreeMap<u64, Record>,
}

impl Policy for Thompson {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if !(config.ttft_ms_target > 0.0 && config.ttft_ms_target <= 1e7) {
            let target = config.ttft_ms_target;
            return Err(format!("`ttft_ms_target` is {target}; it lies above 0 and is at most 10,000,000"));
        }
        within("forget", config.forget, 0.0..=0.5)?;
        Ok(Self { config, workers: BTreeMap::new() })
    }
}

impl Thompson {
    fn learn(&mut self, worker: u64, now_ms: u64, success: bool) {
        if !self.workers.contains_key(&worker) && self.workers.len() >= WORKERS_MAX {
            let oldest = self.workers.iter().min_by_key(|(_, record)| record.heard_ms).map(|(id, _)| *id);
            oldest.map(|oldest| self.workers.remove(&oldest));
        }
        let record = self.workers.entry(worker).or_default();
        let keep = 1.0 - self.config.forget;
        record.successes = record.successes * keep + if success { 1.0 } else { 0.0 };
        record.failures = record.failures * keep + if success { 0.0 } else { 1.0 };
        record.heard_ms = now_ms;
    }
}

impl Score for Thompson {
    const CANDIDATE: Columns = Columns::NONE.ids(&["worker"]);

    /// A draw from the beta distribution of each worker's chance: uniform for one that nobody has tried.
    fn score(&mut self, view: &RouteView<'_>) -> Option<Vec<f32>> {
        let mut random = Random::new(view.frame.seed);
        let chance = |worker: &u64| {
            let record = self.workers.get(worker).copied().unwrap_or_default();
            beta(1.0 + record.successes, 1.0 + record.failures, &mut random) as f32
        };
        Some(view.candidates.ids("worker").iter().map(chance).collect())
    }
}

impl Observe for Thompson {
    const OUTCOME: Columns = Columns::numbers(&["event", "ttft_ms"]).ids(&["worker"]);

    /// A first token counts by its time, a failure before one against its worker.
    fn observe(&mut self, view: &ObserveView<'_>) {
        let (ttft_ms, workers) = (view.outcomes.column("ttft_ms"), view.outcomes.ids("worker"));
        for (row, event) in view.outcomes.column("event").iter().enumerate() {
            let success = match Event::of(*event) {
                Some(Event::FirstToken) => ttft_ms[row] <= self.config.ttft_ms_target,
                Some(Event::Failed) if ttft_ms[row] == 0.0 => false,
                _ => continue,
            };
            self.learn(workers[row], view.frame.now_ms, success);
        }
    }
}

impl State for Thompson {
    const SCHEMA: &'static str = "route-thompson/1";

    fn export_state(&self, schema: &str) -> Option<Vec<u8>> {
        state::expect::<Self>(schema).ok()?;
        state::to_bytes(&self.workers)
    }

    fn import_state(&mut self, schema: &str, bytes: &[u8]) -> Result<(), String> {
        state::expect::<Self>(schema)?;
        let workers: BTreeMap<u64, Record> = state::from_bytes(bytes)?;
        let sane = |record: &Record| record.successes >= 0.0 && record.failures >= 0.0;
        if workers.len() > WORKERS_MAX || !workers.values().all(sane) {
            return Err("the state has counts that no outcomes can have left".to_owned());
        }
        self.workers = workers;
        Ok(())
    }
}

/// A draw from the beta distribution, as a ratio of two gamma draws.
fn beta(a: f64, b: f64, random: &mut Random) -> f64 {
    let (one, other) = (gamma(a, random), gamma(b, random));
    one / (one + other)
}

/// A draw from the gamma distribution of a shape of at least 1 and scale 1.
///
/// Source: Marsaglia and Tsang, A simple method for generating gamma variables, ACM TOMS 26 (2000).
fn gamma(shape: f64, random: &mut Random) -> f64 {
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    // One draw in twenty is rejected at worst, so that the bound is never met in practice.
    for _ in 0..1_000 {
        let x = normal(random);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && unit(random).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
    d
}

/// A draw from the standard normal distribution (Box and Muller).
fn normal(random: &mut Random) -> f64 {
    let (one, other) = (unit(random), unit(random));
    (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos()
}

/// A number above 0 and below 1.
fn unit(random: &mut Random) -> f64 {
    ((random.next_u64() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
}

export!(Thompson: score, observe, state);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{ObserveCase, RouteCase, laws, policy, try_policy};

    fn tell(it: &mut Thompson, event: Event, worker: u64, ttft_ms: f32) {
        let case = ObserveCase::new(1).numbers("event", &[event.cell()]).numbers("ttft_ms", &[ttft_ms]);
        case.ids("worker", &[worker]).observe(it);
    }

    /// How often each of three workers has the highest score.
    fn wins(it: &mut Thompson, seeds: u64) -> [u32; 3] {
        let mut wins = [0; 3];
        for seed in 0..seeds {
            let mut case = RouteCase::new(3).candidate_ids("worker", &[1, 2, 3]);
            case.frame.seed = seed;
            let scores = case.score(it).expect("it always answers");
            let best = (0..3).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).expect("there are three");
            wins[best] += 1;
        }
        wins
    }

    #[test]
    fn workers_that_nobody_knows_are_equal() {
        let wins = wins(&mut policy("{}"), 3000);
        assert!(wins.iter().all(|wins| wins.abs_diff(1000) < 120), "{wins:?}");
    }

    #[test]
    fn the_worker_that_answers_in_time_wins_and_the_others_are_still_tried() {
        let mut it = policy("{}");
        for _ in 0..20 {
            tell(&mut it, Event::FirstToken, 1, 50.0);
            tell(&mut it, Event::FirstToken, 2, 900.0);
        }
        let wins = wins(&mut it, 1000);
        assert!(wins[0] > 800 && wins[1] < 5, "{wins:?}");
        assert!(wins[2] > 10, "an unknown worker is worth a try: {wins:?}");
    }

    #[test]
    fn a_failure_before_the_first_token_counts_and_one_after_it_does_not() {
        let mut it = policy::<Thompson>("{}");
        tell(&mut it, Event::Failed, 1, 0.0);
        tell(&mut it, Event::Failed, 2, 80.0);
        assert_eq!(it.workers.keys().copied().collect::<Vec<_>>(), [1]);
        assert_eq!(it.workers[&1].failures, 1.0);
    }

    #[test]
    fn a_worker_that_became_slow_is_left() {
        let mut it = policy(r#"{"forget": 0.1}"#);
        (0..100).for_each(|_| tell(&mut it, Event::FirstToken, 1, 50.0));
        (0..30).for_each(|_| tell(&mut it, Event::FirstToken, 1, 900.0));
        (0..30).for_each(|_| tell(&mut it, Event::FirstToken, 2, 50.0));
        let wins = wins(&mut it, 500);
        assert!(wins[1] > 400 && wins[0] < 10, "{wins:?}");
    }

    #[test]
    fn draws_have_the_mean_of_the_distribution() {
        let random = &mut Random::new(7);
        for (a, b) in [(1.0, 1.0), (5.0, 2.0), (30.0, 90.0)] {
            let mean = (0..20_000).map(|_| beta(a, b, random)).sum::<f64>() / 20_000.0;
            assert!((mean - a / (a + b)).abs() < 0.01, "beta({a}, {b}): {mean}");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for config in [r#"{"ttft_ms_target": 0}"#, r#"{"forget": 0.9}"#] {
            assert!(try_policy::<Thompson>(config).is_err(), "{config}");
        }
    }

    #[test]
    fn it_keeps_the_laws_of_its_slots() {
        laws::score::<Thompson>("{}");
        laws::observe::<Thompson>("{}");
        laws::state::<Thompson, _>("{}", |it, seed| {
            ObserveCase::random(seed).observe(it);
            RouteCase::random(seed).score(it)
        });
    }
}
