//! Scores who computes a prompt by how much it delays everybody.

use pointsman_sdk::{Columns, Policy, RouteView, Score, export, within};
use serde::Deserialize;

/// Settings: what tokens cost.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Microseconds to compute a prompt token.
    pub prefill_us_per_token: f32,
    /// Microseconds to move a token from worker to worker.
    pub transfer_us_per_token: f32,
    /// Share of a prefill that a running answer loses by it.
    pub interruption: f32,
}

impl Default for Config {
    fn default() -> Self {
        Self { prefill_us_per_token: 100.0, transfer_us_per_token: 2.0, interruption: 1.0 }
    }
}

/// The policy; it keeps no state.
pub struct PrefillDelay(Config);

impl Policy for PrefillDelay {
    type Config = Config;
    const WISHES: &'static [(&'static str, &'static str)] = &[("stateless", "true")];

    fn new(config: Config) -> Result<Self, String> {
        within("prefill_us_per_token", config.prefill_us_per_token, 0.001..=1e6)?;
        within("transfer_us_per_token", config.transfer_us_per_token, 0.0..=1e6)?;
        within("interruption", config.interruption, 0.0..=1e3)?;
        Ok(Self(config))
    }
}

impl Score for PrefillDelay {
    const REQUEST: Columns = Columns::numbers(&["stage", "prompt_tokens", "uncached_tokens"]);
    const CANDIDATE: Columns = Columns::numbers(&["overlap_tokens", "queued_tokens", "running", "decodes"]);

    /// 1 for the least delay, 0.5 for twice as much. Abstains where the question is who answers.
    fn score(&mut self, view: &RouteView<'_>) -> Option<Vec<f32>> {
        if view.request.value("stage") != 1.0 {
            return None;
        }
        let (prompt, uncached) = (view.request.value("prompt_tokens"), view.request.value("uncached_tokens"));
        let column = |name| view.candidates.column(name);
        let Config { prefill_us_per_token, transfer_us_per_token, interruption } = self.0;
        let cells = column("overlap_tokens").iter().zip(column("queued_tokens"));
        let rows = cells.zip(column("running")).zip(column("decodes"));
        let delays: Vec<f32> = rows
            .map(|(((overlap, queued), running), decodes)| {
                let own = (prompt - overlap).max(1.0);
                let moved = if *decodes == 1.0 { 0.0 } else { uncached * transfer_us_per_token };
                (queued + own * (1.0 + running * interruption)) * prefill_us_per_token + moved
            })
            .collect();
        let least = delays.iter().copied().fold(f32::INFINITY, f32::min);
        Some(delays.iter().map(|delay| least / delay).collect())
    }
}

export!(PrefillDelay: score);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{RouteCase, laws, policy, try_policy};

    /// Scores of the worker that answers and of one beside it, for a prompt of 1,000 tokens.
    fn scores(overlaps: &[f32], queued: &[f32], running: &[f32]) -> Vec<f32> {
        let case = RouteCase::new(2).request("stage", 1.0).request("prompt_tokens", 1000.0);
        let case =
            case.request("uncached_tokens", 1000.0 - overlaps[0]).candidates("overlap_tokens", overlaps);
        let case = case.candidates("queued_tokens", queued).candidates("running", running);
        let case = case.candidates("decodes", &[1.0, 0.0]);
        case.score(&mut policy::<PrefillDelay>("{}")).expect("it scores")
    }

    #[test]
    fn whoever_answers_computes_while_nobody_else_is_there() {
        let [here, there] = scores(&[0.0, 0.0], &[0.0, 0.0], &[0.0, 0.0])[..] else { panic!("two scores") };
        assert!(here == 1.0 && (0.97..1.0).contains(&there), "moving costs a little: {there}");
    }

    #[test]
    fn answers_that_run_send_a_prompt_elsewhere() {
        let [here, there] = scores(&[0.0, 0.0], &[0.0, 0.0], &[1.0, 0.0])[..] else { panic!("two scores") };
        assert!(there == 1.0 && (0.5..0.6).contains(&here), "{here}");
    }

    #[test]
    fn a_short_rest_stays_where_the_prefix_is() {
        let [here, there] = scores(&[960.0, 0.0], &[0.0, 0.0], &[3.0, 0.0])[..] else { panic!("two scores") };
        assert!(here == 1.0 && there < 0.2, "{there}");
    }

    #[test]
    fn a_queue_sends_it_back() {
        let [here, there] = scores(&[0.0, 0.0], &[0.0, 9000.0], &[2.0, 0.0])[..] else {
            panic!("two scores")
        };
        assert!(here == 1.0 && there < 0.5, "{there}");
    }

    #[test]
    fn who_answers_is_left_to_others() {
        assert_eq!(RouteCase::new(3).score(&mut policy::<PrefillDelay>("{}")), None);
    }

    #[test]
    fn a_price_of_nothing_is_refused() {
        assert!(try_policy::<PrefillDelay>(r#"{"prefill_us_per_token": 0}"#).is_err());
        assert!(try_policy::<PrefillDelay>(r#"{"transfer_us_per_token": -1}"#).is_err());
    }

    #[test]
    fn it_keeps_the_laws_of_its_slot() {
        laws::score::<PrefillDelay>("{}");
        laws::score::<PrefillDelay>(r#"{"interruption": 0, "transfer_us_per_token": 0}"#);
    }
}
