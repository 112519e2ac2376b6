//! Picks the candidate with the highest score; equals are drawn by the view's seed.

use pointsman_sdk::{Pick, Policy, Random, RouteView, export, within};
use serde::Deserialize;

/// Settings.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Scores within this of the highest count as equal to it. 0 takes the highest only.
    pub tolerance: f32,
}

/// The policy; it keeps no state.
pub struct MaxScore(Config);

impl Policy for MaxScore {
    type Config = Config;
    const WISHES: &'static [(&'static str, &'static str)] = &[("stateless", "true")];

    fn new(config: Config) -> Result<Self, String> {
        within("tolerance", config.tolerance, 0.0..=1e6)?;
        Ok(Self(config))
    }
}

impl Pick for MaxScore {
    fn pick(&mut self, view: &RouteView<'_>, scores: &[f32]) -> Option<u32> {
        let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut equals = scores.iter().enumerate().filter(|(_, score)| **score >= highest - self.0.tolerance);
        let count = equals.clone().count();
        let drawn = match count {
            0 => return None,
            1 => 0,
            _ => Random::new(view.frame.seed).below(count),
        };
        equals.nth(drawn).map(|(row, _)| row as u32)
    }
}

export!(MaxScore: pick);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{RouteCase, laws, policy, try_policy};

    fn picks(config: &str, scores: &[f32], seed: u64) -> Option<u32> {
        let mut case = RouteCase::new(scores.len());
        case.scores = scores.to_vec();
        case.frame.seed = seed;
        case.pick(&mut policy::<MaxScore>(config))
    }

    #[test]
    fn the_highest_score_wins_whatever_the_seed() {
        (0..20).for_each(|seed| assert_eq!(picks("{}", &[0.1, 0.9, 0.3], seed), Some(1)));
    }

    #[test]
    fn equals_share_evenly() {
        let mut drawn = [0; 3];
        (0..3000).for_each(|seed| drawn[picks("{}", &[1.0, 0.0, 1.0], seed).unwrap_or(1) as usize] += 1);
        assert_eq!(drawn[1], 0);
        assert!((1300..1700).contains(&drawn[0]), "{drawn:?}");
    }

    #[test]
    fn scores_within_the_tolerance_are_equal() {
        let drawn = |seed| picks(r#"{"tolerance": 0.1}"#, &[0.95, 1.0, 0.5], seed);
        assert!((0..50).any(|seed| drawn(seed) == Some(0)));
        assert!((0..50).all(|seed| drawn(seed) != Some(2)));
    }

    #[test]
    fn a_negative_tolerance_is_refused() {
        assert!(try_policy::<MaxScore>(r#"{"tolerance": -0.5}"#).is_err());
    }

    #[test]
    fn it_keeps_the_laws_of_its_slot() {
        laws::pick::<MaxScore>("{}");
        laws::pick::<MaxScore>(r#"{"tolerance": 0.3}"#);
    }
}
