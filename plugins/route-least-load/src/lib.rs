//! Scores workers by how little they have to do.

use pointsman_sdk::{Columns, Policy, RouteView, Score, export, within};
use serde::Deserialize;

/// Settings: what a token of each kind weighs.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A prompt token that waits to be computed.
    pub queued_weight: f32,
    /// A token that a running sequence holds.
    pub active_weight: f32,
}

impl Default for Config {
    fn default() -> Self {
        Self { queued_weight: 1.0, active_weight: 1.0 }
    }
}

/// The policy; it keeps no state.
pub struct LeastLoad(Config);

impl Policy for LeastLoad {
    type Config = Config;
    const WISHES: &'static [(&'static str, &'static str)] = &[("stateless", "true")];

    fn new(config: Config) -> Result<Self, String> {
        within("queued_weight", config.queued_weight, 0.0..=1e6)?;
        within("active_weight", config.active_weight, 0.0..=1e6)?;
        Ok(Self(config))
    }
}

impl Score for LeastLoad {
    const CANDIDATE: Columns = Columns::numbers(&["queued_tokens", "active_tokens"]);

    /// 1 for an idle worker, 0 for the one with the highest load; the same for all when all are idle.
    fn score(&mut self, view: &RouteView<'_>) -> Option<Vec<f32>> {
        let (queued, active) =
            (view.candidates.column("queued_tokens"), view.candidates.column("active_tokens"));
        let Config { queued_weight, active_weight } = self.0;
        let mut scores: Vec<f32> = (queued.iter().zip(active))
            .map(|(queued, active)| queued_weight * queued + active_weight * active)
            .collect();
        let most = scores.iter().copied().fold(0.0, f32::max);
        for score in &mut scores {
            *score = if most > 0.0 { 1.0 - *score / most } else { 1.0 };
        }
        Some(scores)
    }
}

export!(LeastLoad: score);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{RouteCase, laws, policy, try_policy};

    fn check(config: &str, queued: &[f32], active: &[f32], expected: &[f32]) {
        let case = RouteCase::new(queued.len());
        let case = case.candidates("queued_tokens", queued).candidates("active_tokens", active);
        assert_eq!(case.score(&mut policy::<LeastLoad>(config)).as_deref(), Some(expected));
    }

    #[test]
    fn the_idle_worker_scores_one_and_the_busiest_zero() {
        check("{}", &[0.0, 100.0, 50.0], &[0.0, 100.0, 0.0], &[1.0, 0.0, 0.75]);
    }

    #[test]
    fn idle_workers_are_equal() {
        check("{}", &[0.0, 0.0], &[0.0, 0.0], &[1.0, 1.0]);
    }

    #[test]
    fn a_weight_of_zero_ignores_its_tokens() {
        check(r#"{"active_weight": 0}"#, &[0.0, 10.0], &[900.0, 0.0], &[1.0, 0.0]);
    }

    #[test]
    fn a_negative_weight_is_refused_by_name() {
        for name in ["queued_weight", "active_weight"] {
            let config = format!(r#"{{"{name}": -1}}"#);
            let refusal = try_policy::<LeastLoad>(&config).err().expect("it is out of range");
            assert_eq!(refusal, format!("`{name}` is -1; it lies between 0 and 1,000,000"));
        }
    }

    #[test]
    fn it_keeps_the_laws_of_its_slot() {
        laws::score::<LeastLoad>("{}");
        laws::score::<LeastLoad>(r#"{"queued_weight": 0, "active_weight": 3}"#);
    }
}
