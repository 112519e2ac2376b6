//! Scores workers by the share of the prompt whose KV they hold.

use pointsman_sdk::{Columns, Policy, RouteView, Score, export, within};
use serde::Deserialize;

/// Settings.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Tokens of overlap below which it counts as none: a common system prompt attracts nobody.
    pub overlap_tokens_min: f32,
    /// Power of the share: above 1 favours long overlaps, below 1 short ones.
    pub exponent: f32,
}

impl Default for Config {
    fn default() -> Self {
        Self { overlap_tokens_min: 0.0, exponent: 1.0 }
    }
}

/// The policy; it keeps no state.
pub struct PrefixAffinity(Config);

impl Policy for PrefixAffinity {
    type Config = Config;
    const WISHES: &'static [(&'static str, &'static str)] = &[("stateless", "true")];

    fn new(config: Config) -> Result<Self, String> {
        within("overlap_tokens_min", config.overlap_tokens_min, 0.0..=1e9)?;
        within("exponent", config.exponent, 0.1..=10.0)?;
        Ok(Self(config))
    }
}

impl Score for PrefixAffinity {
    const REQUEST: Columns = Columns::numbers(&["prompt_tokens"]);
    const CANDIDATE: Columns = Columns::numbers(&["overlap_tokens"]);

    /// `(overlap_tokens / prompt_tokens) ^ exponent`; nothing to say where nobody has any overlap.
    fn score(&mut self, view: &RouteView<'_>) -> Option<Vec<f32>> {
        let prompt = view.request.value("prompt_tokens");
        let overlaps = view.candidates.column("overlap_tokens");
        let Config { overlap_tokens_min, exponent } = self.0;
        let counts = |overlap: f32| overlap > 0.0 && overlap >= overlap_tokens_min;
        if prompt <= 0.0 || !overlaps.iter().any(|overlap| counts(*overlap)) {
            return None;
        }
        let share = |overlap: f32| if counts(overlap) { (overlap / prompt).min(1.0) } else { 0.0 };
        // `powf` costs more than all the rest.
        match exponent == 1.0 {
            true => Some(overlaps.iter().map(|overlap| share(*overlap)).collect()),
            false => Some(overlaps.iter().map(|overlap| share(*overlap).powf(exponent)).collect()),
        }
    }
}

export!(PrefixAffinity: score);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{RouteCase, laws, policy, try_policy};

    fn check(config: &str, prompt: f32, overlap: &[f32], expected: Option<&[f32]>) {
        let case = RouteCase::new(overlap.len());
        let case = case.request("prompt_tokens", prompt).candidates("overlap_tokens", overlap);
        assert_eq!(case.score(&mut policy::<PrefixAffinity>(config)).as_deref(), expected);
    }

    #[test]
    fn a_score_is_the_share_of_the_prompt() {
        check("{}", 200.0, &[0.0, 50.0, 200.0], Some(&[0.0, 0.25, 1.0]));
    }

    #[test]
    fn without_any_overlap_it_abstains() {
        check("{}", 200.0, &[0.0, 0.0], None);
        check("{}", 0.0, &[10.0], None);
    }

    #[test]
    fn short_overlaps_can_be_ignored() {
        check(r#"{"overlap_tokens_min": 60}"#, 200.0, &[50.0, 100.0], Some(&[0.0, 0.5]));
        check(r#"{"overlap_tokens_min": 60}"#, 200.0, &[50.0], None);
    }

    #[test]
    fn the_exponent_favours_long_overlaps() {
        check(r#"{"exponent": 2}"#, 100.0, &[50.0, 100.0], Some(&[0.25, 1.0]));
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for config in [r#"{"exponent": 0}"#, r#"{"overlap_tokens_min": -1}"#, r#"{"weight": 1}"#] {
            assert!(try_policy::<PrefixAffinity>(config).is_err(), "{config}");
        }
    }

    #[test]
    fn it_keeps_the_laws_of_its_slot() {
        laws::score::<PrefixAffinity>("{}");
        laws::score::<PrefixAffinity>(r#"{"exponent": 0.5, "overlap_tokens_min": 10000}"#);
    }
}
