//! Orders waiting sequences by strict tier, then by age with a head start for priority and a handicap for size.

use pointsman_sdk::{Columns, Policy, Schedule, ScheduleView, export, within};
use serde::Deserialize;

/// Settings. Times are in milliseconds of waiting.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Head start for each unit of priority.
    pub priority_ms: f32,
    /// The most that priority gives or takes.
    pub priority_ms_max: f32,
    /// Handicap for each token that the sequence is expected to put out. 0 ignores length.
    pub output_token_ms: f32,
    /// Handicap for each prompt token that is still to be computed.
    pub prefill_token_ms: f32,
    /// The most that size takes.
    pub size_ms_max: f32,
    /// Expected output where nobody said.
    pub expected_output_tokens: f32,
    /// A sequence that waited so long goes before all others, of whatever tier.
    pub starving_ms: f32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            priority_ms: 1_000.0,
            priority_ms_max: 60_000.0,
            output_token_ms: 2.0,
            prefill_token_ms: 0.05,
            size_ms_max: 5_000.0,
            expected_output_tokens: 256.0,
            starving_ms: 120_000.0,
        }
    }
}

/// The policy; it keeps no state.
pub struct AgentPriority(Config);

impl Policy for AgentPriority {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        within("priority_ms", config.priority_ms, 0.0..=1e9)?;
        within("priority_ms_max", config.priority_ms_max, 0.0..=1e9)?;
        within("output_token_ms", config.output_token_ms, 0.0..=1e9)?;
        within("prefill_token_ms", config.prefill_token_ms, 0.0..=1e9)?;
        within("size_ms_max", config.size_ms_max, 0.0..=1e9)?;
        within("expected_output_tokens", config.expected_output_tokens, 0.0..=1e9)?;
        within("starving_ms", config.starving_ms, 0.0..=1e9)?;
        Ok(Self(config))
    }
}

/// Where a sequence stands: compared field by field, higher first.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Rank {
    /// Milliseconds beyond the bound of waiting; 0 below it.
    starved_ms: f32,
    tier: f32,
    /// Age with head start and handicap.
    standing_ms: f32,
}

impl Schedule for AgentPriority {
    const SEQUENCE: Columns = Columns::numbers(&[
        "age_ms",
        "prefill_left_tokens",
        "expected_output_tokens",
        "priority",
        "strict_tier",
    ]);

    fn order(&mut self, view: &ScheduleView<'_>) -> Option<Vec<u32>> {
        let config = &self.0;
        let column = |name| view.waiting.column(name);
        let (age, prefill, output) =
            (column("age_ms"), column("prefill_left_tokens"), column("expected_output_tokens"));
        let (priority, tier) = (column("priority"), column("strict_tier"));
        let rank = |row: usize| {
            let head_start = config.priority_ms * priority[row];
            let expected = if output[row] > 0.0 { output[row] } else { config.expected_output_tokens };
            let size = config.output_token_ms * expected + config.prefill_token_ms * prefill[row];
            Rank {
                starved_ms: if age[row] >= config.starving_ms {
                    1.0 + age[row] - config.starving_ms
                } else {
                    0.0
                },
                tier: tier[row],
                standing_ms: age[row] + head_start.clamp(-config.priority_ms_max, config.priority_ms_max)
                    - size.min(config.size_ms_max),
            }
        };
        let mut ranked: Vec<(Rank, u32)> =
            (0..view.waiting.rows()).map(|row| (rank(row), row as u32)).collect();
        // Stable: equals stay in order of arrival.
        ranked.sort_by(|(one, _), (other, _)| other.partial_cmp(one).unwrap_or(std::cmp::Ordering::Equal));
        Some(ranked.into_iter().map(|(_, row)| row).collect())
    }
}

export!(AgentPriority: schedule);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{ScheduleCase, laws, policy, try_policy};

    fn check(config: &str, columns: &[(&str, &[f32])], expected: &[u32]) {
        let mut case = ScheduleCase::new(columns[0].1.len(), 0);
        for (name, values) in columns {
            case = case.waiting(name, values);
        }
        assert_eq!(case.order(&mut policy::<AgentPriority>(config)).as_deref(), Some(expected));
    }

    #[test]
    fn equals_go_in_order_of_arrival() {
        check("{}", &[("age_ms", &[5.0, 5.0, 5.0])], &[0, 1, 2]);
    }

    #[test]
    fn without_hints_the_oldest_goes_first() {
        check("{}", &[("age_ms", &[30.0, 20.0, 10.0])], &[0, 1, 2]);
        check("{}", &[("age_ms", &[10.0, 20.0, 30.0])], &[2, 1, 0]);
    }

    #[test]
    fn a_strict_tier_goes_before_any_priority() {
        let tiers: (&str, &[f32]) = ("strict_tier", &[0.0, 1.0]);
        check("{}", &[("age_ms", &[9_000.0, 0.0]), ("priority", &[50.0, -50.0]), tiers], &[1, 0]);
    }

    #[test]
    fn priority_is_a_head_start_in_seconds() {
        let priority: (&str, &[f32]) = ("priority", &[0.0, 3.0]);
        check("{}", &[("age_ms", &[2_900.0, 0.0]), priority], &[1, 0]);
        check("{}", &[("age_ms", &[3_100.0, 0.0]), priority], &[0, 1]);
    }

    #[test]
    fn priority_is_bounded() {
        let priority: (&str, &[f32]) = ("priority", &[0.0, 1e9]);
        check("{}", &[("age_ms", &[60_001.0, 0.0]), priority], &[0, 1]);
    }

    #[test]
    fn the_shorter_answer_goes_first() {
        check("{}", &[("expected_output_tokens", &[1000.0, 10.0])], &[1, 0]);
        check("{}", &[("prefill_left_tokens", &[50_000.0, 100.0])], &[1, 0]);
    }

    #[test]
    fn a_starving_sequence_goes_before_every_tier() {
        check("{}", &[("age_ms", &[0.0, 120_000.0]), ("strict_tier", &[9.0, 0.0])], &[1, 0]);
    }

    #[test]
    fn nobody_waits_for_ever() {
        // Against newcomers of every kind, a sequence is first once it has starved for longest.
        let mut policy = policy::<AgentPriority>("{}");
        for seed in 0..200 {
            let mut case = ScheduleCase::random(seed);
            let rows = case.waiting.rows();
            if rows == 0 {
                continue;
            }
            let mut age: Vec<f32> = (0..rows).map(|row| row as f32).collect();
            age[rows / 2] = 1e8;
            case = case.waiting("age_ms", &age);
            assert_eq!(case.order(&mut policy).map(|order| order[0]), Some(rows as u32 / 2), "seed {seed}");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for config in [r#"{"starving_ms": -1}"#, r#"{"priority_ms": 1e12}"#] {
            assert!(try_policy::<AgentPriority>(config).is_err(), "{config}");
        }
    }

    #[test]
    fn it_keeps_the_laws_of_its_slot() {
        laws::schedule::<AgentPriority>("{}");
        laws::schedule::<AgentPriority>(r#"{"output_token_ms": 0, "starving_ms": 1000}"#);
    }

    /// With everything but age switched off it is the built-in: first come, first served.
    #[test]
    fn without_weights_it_is_first_come_first_served() {
        let config = r#"{"priority_ms": 0, "output_token_ms": 0, "prefill_token_ms": 0}"#;
        for seed in 0..100 {
            let case = ScheduleCase::random(seed);
            let rows = case.waiting.rows();
            let age: Vec<f32> = (0..rows).map(|row| (rows - row) as f32).collect();
            let case = case.waiting("age_ms", &age).waiting("strict_tier", &vec![0.0; rows]);
            let arrival: Vec<u32> = (0..rows as u32).collect();
            assert_eq!(case.order(&mut policy::<AgentPriority>(config)), Some(arrival), "seed {seed}");
        }
    }
}
