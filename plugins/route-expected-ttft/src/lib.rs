//! Scores workers by when a first token would come, from what they have to do and what they would have to compute.
//!
//! **Invariant:** of the workers whose first token would come within the slack of the earliest, exactly those with the
//! largest overlap, and of these the fewest active tokens, score 1.

use pointsman_sdk::{Columns, Policy, RouteView, Score, export, within};
use serde::Deserialize;

/// What a worker within the slack scores that another one there beats. Chosen: a scorer beside this one has its say
/// with a weight of a hundredth, and `f32` tells the two apart in any sum.
const BEATEN: f32 = 0.99;

/// Settings: what tokens and steps cost a worker.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Microseconds to compute a prompt token, without its attention.
    pub prefill_us_per_token: f32,
    /// Nanoseconds for a prompt token to attend to one before it.
    pub attention_ns_per_pair: f32,
    /// Microseconds that a step costs whatever it computes.
    pub step_us: f32,
    /// Tokens that a step computes at most.
    pub step_tokens: f32,
    /// Nanoseconds that a token held by a running sequence adds to each step.
    pub decode_ns_per_token: f32,
    /// Share of the time between later tokens that counts like time to the first one.
    pub answer_weight: f32,
    /// Tokens of an answer, where hints say nothing.
    pub output_tokens: f32,
    /// Milliseconds that a first token may come later for the sake of a warm cache.
    pub slack_ms: f32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            prefill_us_per_token: 40.0,
            attention_ns_per_pair: 1.0,
            step_us: 5_000.0,
            step_tokens: 8_192.0,
            decode_ns_per_token: 50.0,
            answer_weight: 0.2,
            output_tokens: 256.0,
            slack_ms: 150.0,
        }
    }
}

/// The policy; it keeps no state.
pub struct ExpectedTtft(Config);

impl Policy for ExpectedTtft {
    type Config = Config;
    const WISHES: &'static [(&'static str, &'static str)] = &[("stateless", "true")];

    fn new(config: Config) -> Result<Self, String> {
        within("prefill_us_per_token", config.prefill_us_per_token, 0.001..=1e6)?;
        within("step_tokens", config.step_tokens, 1.0..=1e6)?;
        within("attention_ns_per_pair", config.attention_ns_per_pair, 0.0..=1e6)?;
        within("step_us", config.step_us, 0.0..=1e6)?;
        within("decode_ns_per_token", config.decode_ns_per_token, 0.0..=1e6)?;
        within("answer_weight", config.answer_weight, 0.0..=1e6)?;
        within("output_tokens", config.output_tokens, 0.0..=1e6)?;
        within("slack_ms", config.slack_ms, 0.0..=1e6)?;
        Ok(Self(config))
    }
}

/// What is known of a request.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    prompt_tokens: f32,
    output_tokens: f32,
}

/// What is known of a worker.
#[derive(Clone, Copy, Debug)]
struct Found {
    overlap_tokens: f32,
    queued_tokens: f32,
    active_tokens: f32,
    running: f32,
}

impl ExpectedTtft {
    /// Milliseconds until the first token, and what counts of the time to the last one.
    fn time_ms(&self, wanted: Wanted, found: Found) -> f32 {
        let c = &self.0;
        // The last token of a prompt is always computed.
        let own = (wanted.prompt_tokens - found.overlap_tokens).max(1.0);
        let tokens = found.queued_tokens + own;
        let pairs = own * (found.overlap_tokens + own / 2.0);
        let compute_us = tokens * c.prefill_us_per_token + pairs * c.attention_ns_per_pair / 1e3;

        let decode_us =
            found.running * c.prefill_us_per_token + found.active_tokens * c.decode_ns_per_token / 1e3;
        let steps = (tokens / c.step_tokens).max(1.0);
        let answer_us = c.answer_weight * wanted.output_tokens * decode_us;
        (compute_us + steps * (c.step_us + decode_us) + answer_us) / 1e3
    }
}

impl Score for ExpectedTtft {
    const REQUEST: Columns = Columns::numbers(&["prompt_tokens", "expected_output_tokens"]);
    const CANDIDATE: Columns =
        Columns::numbers(&["overlap_tokens", "queued_tokens", "active_tokens", "running"]);

    /// 1 for the best within the slack of the earliest first token, a little less for others there, and
    /// the less the later beyond it.
    fn score(&mut self, view: &RouteView<'_>) -> Option<Vec<f32>> {
        let output_tokens = match view.request.value("expected_output_tokens") {
            said if said > 0.0 => said,
            _ => self.0.output_tokens,
        };
        let wanted = Wanted { prompt_tokens: view.request.value("prompt_tokens"), output_tokens };
        let column = |name| view.candidates.column(name);
        let (overlap, active) = (column("overlap_tokens"), column("active_tokens"));
        let (queued, running) = (column("queued_tokens"), column("running"));
        let found = |row: usize| Found {
            overlap_tokens: overlap[row],
            queued_tokens: queued[row],
            active_tokens: active[row],
            running: running[row],
        };
        let times: Vec<f32> = (0..overlap.len()).map(|row| self.time_ms(wanted, found(row))).collect();
        let bound = times.iter().copied().fold(f32::INFINITY, f32::min) + self.0.slack_ms;
        let rank = |row: usize| (overlap[row], -active[row]);
        let within = (0..times.len()).filter(|row| times[*row] <= bound);
        let best = within.map(rank).reduce(|best, rank| if rank > best { rank } else { best });
        let score = |row: usize| match times[row] <= bound {
            true if Some(rank(row)) == best => 1.0,
            true => BEATEN,
            false => BEATEN * bound / times[row],
        };
        Some((0..times.len()).map(score).collect())
    }
}

export!(ExpectedTtft: score);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{RouteCase, laws, policy, try_policy};

    /// A request of 10,000 tokens, and workers with an overlap each.
    fn case(overlaps: &[f32]) -> RouteCase {
        let case = RouteCase::new(overlaps.len()).request("prompt_tokens", 10_000.0);
        case.candidates("overlap_tokens", overlaps)
    }

    fn scores(config: &str, case: &RouteCase) -> Vec<f32> {
        case.score(&mut policy::<ExpectedTtft>(config)).expect("it always answers")
    }

    fn check_near(actual: &[f32], expected: &[f32]) {
        let near = actual.iter().zip(expected).all(|(actual, expected)| (actual - expected).abs() < 1e-3);
        assert!(near && actual.len() == expected.len(), "{actual:?} instead of {expected:?}");
    }

    /// Milliseconds until the first token, as a score shows them: beside a worker that needs none.
    fn time_ms(config: &str, wanted: Wanted, found: Found) -> f32 {
        policy::<ExpectedTtft>(config).time_ms(wanted, found)
    }

    const IDLE: Found = Found { overlap_tokens: 0.0, queued_tokens: 0.0, active_tokens: 0.0, running: 0.0 };
    const WANTED: Wanted = Wanted { prompt_tokens: 8_000.0, output_tokens: 100.0 };

    #[test]
    fn a_time_is_what_is_computed_first_and_what_steps_cost() {
        // 320 ms of tokens, 32 ms of 32 million pairs, a step of 5 ms.
        check_near(&[time_ms("{}", WANTED, IDLE)], &[357.0]);
        // Half of the tokens, 24 million pairs.
        check_near(&[time_ms("{}", WANTED, Found { overlap_tokens: 4_000.0, ..IDLE })], &[189.0]);
        // As much again waits, which makes two steps, less a little.
        let queued = Found { queued_tokens: 8_384.0, ..IDLE };
        check_near(&[time_ms("{}", WANTED, queued)], &[357.0 + 335.36 + 5.0]);
    }

    #[test]
    fn those_that_run_slow_a_step_down_and_the_answer_with_it() {
        // A step is longer by 10 * 0.04 + 20,000 * 0.00005 ms, twenty tokens of the answer count.
        let busy = Found { running: 10.0, active_tokens: 20_000.0, ..IDLE };
        check_near(&[time_ms("{}", WANTED, busy)], &[357.0 + 21.0 * 1.4]);
        check_near(&[time_ms(r#"{"answer_weight": 0}"#, WANTED, busy)], &[357.0 + 1.4]);
    }

    #[test]
    fn hints_say_how_long_an_answer_is() {
        let busy = case(&[0.0, 0.0]).candidates("running", &[0.0, 30.0]);
        let busy = busy.candidates("active_tokens", &[0.0, 3_000.0]);
        let short = scores("{}", &busy.clone().request("expected_output_tokens", 8.0));
        let long = scores("{}", &busy.request("expected_output_tokens", 4_000.0));
        assert!(short[1] == BEATEN && long[1] < 0.6, "{short:?}, {long:?}");
    }

    #[test]
    fn workers_of_an_idle_fleet_are_equal() {
        assert_eq!(scores("{}", &case(&[0.0; 5])), [1.0; 5]);
    }

    #[test]
    fn a_warm_worker_wins_on_an_idle_fleet() {
        let scores = scores("{}", &case(&[0.0, 9_000.0, 0.0]));
        assert!(scores[1] == 1.0 && scores[0] < 0.6 && scores[0] == scores[2], "{scores:?}");
    }

    #[test]
    fn a_little_later_loses_against_a_warmer_cache() {
        // 2,500 tokens more are queued than the 2,000 that the overlap saves: 20 ms later, less attention.
        let case = case(&[2_000.0, 0.0]).candidates("queued_tokens", &[2_500.0, 0.0]);
        assert_eq!(scores("{}", &case), [1.0, BEATEN]);
        let without = scores(r#"{"slack_ms": 0}"#, &case);
        assert!(without[1] == 1.0 && without[0] < BEATEN, "{without:?}");
    }

    #[test]
    fn much_later_wins_against_no_cache() {
        let case = case(&[2_000.0, 0.0]).candidates("queued_tokens", &[9_000.0, 0.0]);
        let scores = scores("{}", &case);
        assert!(scores[1] == 1.0 && scores[0] < BEATEN, "{scores:?}");
    }

    #[test]
    fn of_equal_overlaps_the_fewest_active_tokens_win() {
        let case = case(&[500.0, 500.0, 400.0]).candidates("active_tokens", &[300.0, 200.0, 0.0]);
        assert_eq!(scores("{}", &case), [BEATEN, 1.0, BEATEN]);
    }

    #[test]
    fn twice_as_late_scores_half() {
        let case = case(&[0.0, 0.0]).candidates("queued_tokens", &[0.0, 100_000.0]);
        let [first, second] = scores(r#"{"slack_ms": 0, "step_us": 0}"#, &case)[..] else {
            panic!("two scores")
        };
        assert_eq!(first, 1.0);
        // 450 ms alone, and 4 s of others before.
        check_near(&[second], &[BEATEN * 450.0 / 4_450.0]);
    }

    /// Where one worker has the whole cache, others get their share once it has enough to do, and not before.
    #[test]
    fn one_warm_worker_does_not_get_everything() {
        let (mut running, mut overlaps) = ([0.0_f32; 8], [0.0_f32; 8]);
        overlaps[3] = 9_000.0;
        let mut served = vec![];
        for _ in 0..400 {
            let active = running.map(|running| running * 10_000.0);
            let case = case(&overlaps).candidates("running", &running).candidates("active_tokens", &active);
            let row = scores("{}", &case).iter().position(|score| *score == 1.0).expect("somebody is best");
            running[row] += 1.0;
            overlaps[row] = 9_000.0;
            served.push(row);
        }
        assert_eq!(served[..10], [3; 10], "a warm worker that does little gets what fits it");
        assert!(running.iter().all(|running| (40.0..=60.0).contains(running)), "{running:?}");
    }

    /// Decisions of a fleet of 1,000 that all start alike fall on all of them alike.
    #[test]
    fn a_thousand_workers_share_what_nobody_has() {
        let (mut queued, mut it) = (vec![0.0_f32; 1_000], policy::<ExpectedTtft>("{}"));
        for _ in 0..2_000 {
            let case =
                case(&[0.0; 1_000]).candidates("queued_tokens", &queued).candidates("active_tokens", &queued);
            let scores = case.score(&mut it).expect("it always answers");
            queued[scores.iter().position(|score| *score == 1.0).expect("somebody is best")] += 10_000.0;
        }
        assert!(queued.iter().all(|queued| *queued == 20_000.0));
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for (config, field) in [
            (r#"{"prefill_us_per_token": 0}"#, "prefill_us_per_token"),
            (r#"{"step_tokens": 0}"#, "step_tokens"),
            (r#"{"slack_ms": -1}"#, "slack_ms"),
            (r#"{"slack": 1}"#, "slack"),
        ] {
            let refusal = try_policy::<ExpectedTtft>(config).err().expect("it is refused");
            assert!(refusal.contains(field), "{refusal}");
        }
    }

    #[test]
    fn it_keeps_the_laws_of_its_slot() {
        laws::score::<ExpectedTtft>("{}");
        laws::score::<ExpectedTtft>(r#"{"slack_ms": 0, "step_us": 0, "answer_weight": 1}"#);
        laws::score::<ExpectedTtft>(r#"{"prefill_us_per_token": 0.001, "attention_ns_per_pair": 0}"#);
    }
}
