//! Picks the less loaded of two candidates that the view's seed draws.

use pointsman_sdk::{Columns, Pick, Policy, Random, RouteView, export, within};
use serde::Deserialize;

/// Settings.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Candidates drawn. 1 is chance alone.
    pub choices: usize,
    /// What a prompt token that waits to be computed weighs.
    pub queued_weight: f32,
    /// What a token that a running sequence holds weighs.
    pub active_weight: f32,
    /// Only candidates whose score is within this of the highest are drawn from; all where it is not set.
    pub score_tolerance: Option<f32>,
}

impl Default for Config {
    fn default() -> Self {
        Self { choices: 2, queued_weight: 1.0, active_weight: 1.0, score_tolerance: None }
    }
}

/// The policy; it keeps no state.
pub struct TwoChoices(Config);

impl Policy for TwoChoices {
    type Config = Config;
    const WISHES: &'static [(&'static str, &'static str)] = &[("stateless", "true")];

    fn new(config: Config) -> Result<Self, String> {
        within("choices", config.choices, 1..=64)?;
        within("queued_weight", config.queued_weight, 0.0..=1e6)?;
        within("active_weight", config.active_weight, 0.0..=1e6)?;
        within("score_tolerance", config.score_tolerance.unwrap_or(0.0), 0.0..=1e6)?;
        Ok(Self(config))
    }
}

impl TwoChoices {
    /// The rows that may be drawn.
    fn eligible(&self, scores: &[f32]) -> Vec<u32> {
        let rows = 0..scores.len() as u32;
        let Some(tolerance) = self.0.score_tolerance else { return rows.collect() };
        let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        rows.filter(|row| scores[*row as usize] >= highest - tolerance).collect()
    }
}

impl Pick for TwoChoices {
    const CANDIDATE: Columns = Columns::numbers(&["queued_tokens", "active_tokens"]);

    fn pick(&mut self, view: &RouteView<'_>, scores: &[f32]) -> Option<u32> {
        let (queued, active) =
            (view.candidates.column("queued_tokens"), view.candidates.column("active_tokens"));
        let Config { queued_weight, active_weight, choices, .. } = self.0;
        let load = |row: u32| {
            let row = row as usize;
            queued_weight * queued[row] + active_weight * active[row]
        };
        let better = |one: u32, other: u32| {
            let (here, there) = (load(one), load(other));
            here < there || here == there && scores[one as usize] > scores[other as usize]
        };
        let mut rows = self.eligible(scores);
        let mut random = Random::new(view.frame.seed);
        let mut best = None;
        // The beginning of a shuffle: nobody is drawn twice.
        for drawn in 0..choices.min(rows.len()) {
            let other = drawn + random.below(rows.len() - drawn);
            rows.swap(drawn, other);
            let row = rows[drawn];
            if best.is_none_or(|best| better(row, best)) {
                best = Some(row);
            }
        }
        best
    }
}

export!(TwoChoices: pick);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{RouteCase, laws, policy, try_policy};

    /// How often each candidate is picked, in so many seeds.
    fn picks(config: &str, queued: &[f32], scores: &[f32], seeds: u64) -> Vec<u32> {
        let mut case = RouteCase::new(queued.len()).candidates("queued_tokens", queued);
        case.scores = scores.to_vec();
        let mut policy = policy::<TwoChoices>(config);
        let mut picked = vec![0; queued.len()];
        for seed in 0..seeds {
            case.frame.seed = seed;
            picked[case.pick(&mut policy).expect("there are candidates") as usize] += 1;
        }
        picked
    }

    #[test]
    fn the_busiest_is_never_picked_and_the_idlest_most_often() {
        let picked = picks("{}", &[0.0, 10.0, 20.0, 30.0], &[0.0; 4], 6000);
        assert_eq!(picked[3], 0, "{picked:?}");
        // Of six pairs three have the first, two the second as their best, one the third.
        for (picked, expected) in picked.iter().zip([3000, 2000, 1000]) {
            assert!(picked.abs_diff(expected) < 200, "{picked} instead of {expected}");
        }
    }

    #[test]
    fn equals_share_evenly() {
        let picked = picks("{}", &[5.0; 3], &[0.5; 3], 6000);
        assert!(picked.iter().all(|picked| picked.abs_diff(2000) < 200), "{picked:?}");
    }

    #[test]
    fn of_two_with_equal_load_the_higher_score_wins() {
        assert_eq!(picks("{}", &[5.0; 2], &[0.2, 0.9], 100), [0, 100]);
    }

    #[test]
    fn as_many_choices_as_candidates_find_the_least_loaded() {
        assert_eq!(picks(r#"{"choices": 64}"#, &[9.0, 1.0, 5.0], &[1.0, 0.0, 1.0], 100), [0, 100, 0]);
    }

    #[test]
    fn one_choice_is_chance_alone() {
        let picked = picks(r#"{"choices": 1}"#, &[0.0, 900.0], &[0.0; 2], 2000);
        assert!(picked[1].abs_diff(1000) < 150, "{picked:?}");
    }

    #[test]
    fn only_good_scores_are_drawn_from_when_asked() {
        let picked = picks(r#"{"score_tolerance": 0.1}"#, &[0.0, 50.0, 20.0], &[0.1, 1.0, 0.95], 100);
        assert_eq!(picked, [0, 0, 100]);
        assert_eq!(picks(r#"{"score_tolerance": 0}"#, &[0.0, 50.0], &[0.9, 1.0], 100), [0, 100]);
    }

    #[test]
    fn a_weight_of_zero_ignores_its_tokens() {
        assert_eq!(picks(r#"{"queued_weight": 0}"#, &[9.0, 0.0], &[1.0, 0.0], 100), [100, 0]);
    }

    /// Bins that only get what two choices give them stay far closer together than by chance alone.
    #[test]
    fn load_stays_even() {
        let fullest = |config: &str| {
            let mut policy = policy::<TwoChoices>(config);
            let mut queued = vec![0.0_f32; 64];
            for seed in 0..640 {
                let mut case = RouteCase::new(64).candidates("queued_tokens", &queued);
                case.frame.seed = seed;
                queued[case.pick(&mut policy).expect("there are candidates") as usize] += 1.0;
            }
            queued.into_iter().fold(0.0, f32::max)
        };
        let (two, one) = (fullest("{}"), fullest(r#"{"choices": 1}"#));
        assert!(two <= 13.0, "{two} where 10 would be even");
        assert!(one > two + 2.0, "{one} by chance, {two} by two choices");
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for (config, field) in [
            (r#"{"choices": 0}"#, "choices"),
            (r#"{"active_weight": -1}"#, "active_weight"),
            (r#"{"score_tolerance": -0.5}"#, "score_tolerance"),
        ] {
            let refusal = try_policy::<TwoChoices>(config).err().expect("it is out of range");
            assert!(refusal.contains(field), "{refusal}");
        }
    }

    #[test]
    fn it_keeps_the_laws_of_its_slot() {
        laws::pick::<TwoChoices>("{}");
        laws::pick::<TwoChoices>(r#"{"choices": 5, "score_tolerance": 0.3, "active_weight": 0}"#);
    }
}
