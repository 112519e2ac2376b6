//! Takes the worker that costs least by the cost function of NVIDIA Dynamo's router: blocks to compute and blocks held.
//!
//! **Invariant:** with the published defaults a decision differs from the original's only by what the two know of a
//! worker; the README says which column stands for which of its inputs.

use pointsman_sdk::{Columns, Policy, Random, Route, RouteDecision, RouteView, export, within};
use serde::Deserialize;

/// Settings. Names and defaults are the original's, apart from `block_tokens` and `overlap_active_share`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Tokens of a block, the unit of cost.
    pub block_tokens: f64,
    /// Blocks that a block of overlap takes off the prefill cost.
    pub overlap_score_credit: f64,
    /// How quickly that credit fades with the backlog of a worker above the least; 0 lets it stay.
    pub overlap_score_credit_decay: f64,
    /// Share of the overlap, from 0 to 1, that running sequences are taken to hold already.
    pub overlap_active_share: f64,
    /// What a block to compute weighs beside a block held.
    pub prefill_load_scale: f64,
    /// Blocks that a sequence costs beside what it holds.
    pub decode_active_request_weight: f64,
    /// 0 takes the least cost; above it a worker is drawn, and the more evenly the higher it is.
    pub router_temperature: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            block_tokens: 16.0,
            overlap_score_credit: 1.0,
            overlap_score_credit_decay: 0.0,
            overlap_active_share: 0.0,
            prefill_load_scale: 1.0,
            decode_active_request_weight: 0.0,
            router_temperature: 0.0,
        }
    }
}

/// The policy; it keeps no state.
pub struct DynamoCost(Config);

impl Policy for DynamoCost {
    type Config = Config;
    const WISHES: &'static [(&'static str, &'static str)] = &[("stateless", "true")];

    fn new(config: Config) -> Result<Self, String> {
        within("block_tokens", config.block_tokens, 1.0..=4096.0)?;
        within("overlap_active_share", config.overlap_active_share, 0.0..=1.0)?;
        within("overlap_score_credit", config.overlap_score_credit, 0.0..=1e6)?;
        within("overlap_score_credit_decay", config.overlap_score_credit_decay, 0.0..=1e6)?;
        within("prefill_load_scale", config.prefill_load_scale, 0.0..=1e6)?;
        within("decode_active_request_weight", config.decode_active_request_weight, 0.0..=1e6)?;
        within("router_temperature", config.router_temperature, 0.0..=1e6)?;
        Ok(Self(config))
    }
}

impl DynamoCost {
    /// The cost of each candidate, in blocks.
    fn costs(&self, view: &RouteView<'_>) -> Vec<f64> {
        let prompt = f64::from(view.request.value("prompt_tokens"));
        let Config { block_tokens, prefill_load_scale, decode_active_request_weight, .. } = self.0;
        let active_share = self.0.overlap_active_share;
        let column = |name| view.candidates.column(name);
        let (overlap, queued) = (column("overlap_tokens"), column("queued_tokens"));
        let (waiting, running) = (column("queue_len"), column("running"));
        let (active, used, free) = (column("active_tokens"), column("kv_used"), column("kv_free_pages"));
        let least_queued = queued.iter().copied().fold(f32::INFINITY, f32::min);
        let cost = |row: usize| {
            let [overlap, queued, active] = [overlap, queued, active].map(|column| f64::from(column[row]));
            let credit = self.credit(prompt, queued - f64::from(least_queued)) * overlap;
            let prefill = ((queued + prompt - credit) / block_tokens).max(0.0);
            // The original books blocks when it sends a prompt. Sequences that wait hold no pages here: what they have
            // yet to compute stands for their blocks.
            let booked = if waiting[row] > 0.0 { queued } else { 0.0 };
            let held = held_blocks(used[row], free[row]).unwrap_or(active / block_tokens);
            let shared = (active_share * overlap / block_tokens).min(held);
            let decode = held + (booked + prompt) / block_tokens - shared;
            let requests = f64::from(running[row] + waiting[row]);
            prefill_load_scale * prefill + decode + decode_active_request_weight * requests
        };
        (0..overlap.len()).map(cost).collect()
    }

    /// What a block of overlap is credited with at a worker that has so many more tokens queued than the least busy one.
    fn credit(&self, prompt: f64, excess_tokens: f64) -> f64 {
        let Config { block_tokens, overlap_score_credit, overlap_score_credit_decay, .. } = self.0;
        let request_blocks = (prompt / block_tokens).ceil().max(1.0);
        let excess = excess_tokens / block_tokens / request_blocks;
        overlap_score_credit / (1.0 + overlap_score_credit_decay * excess)
    }
}

impl Route for DynamoCost {
    const REQUEST: Columns = Columns::numbers(&["prompt_tokens"]);
    const CANDIDATE: Columns = Columns::numbers(&[
        "overlap_tokens",
        "queued_tokens",
        "queue_len",
        "running",
        "active_tokens",
        "kv_used",
        "kv_free_pages",
    ]);

    fn decide(&mut self, view: &RouteView<'_>) -> Option<RouteDecision> {
        let costs = self.costs(view);
        let mut random = Random::new(view.frame.seed);
        let row = match self.0.router_temperature {
            0.0 => least(&costs, &mut random),
            temperature => sampled(&costs, temperature, &mut random),
        }?;
        let reason = Some(format!("cost {:.1} blocks", costs[row]));
        Some(RouteDecision { candidate: row as u32, reason })
    }
}

/// Blocks that running sequences hold, one that they share counted once, from the share of pages that they are and the
/// number of the others. `None` where there are no others, or nothing is said of pages.
fn held_blocks(used: f32, free: f32) -> Option<f64> {
    let (used, free) = (f64::from(used), f64::from(free));
    (0.0 < used && used < 1.0).then(|| free * used / (1.0 - used))
}

/// The row of the least cost, one of equals at random.
fn least(costs: &[f64], random: &mut Random) -> Option<usize> {
    let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
    let equals: Vec<usize> = (0..costs.len()).filter(|row| costs[*row] == least).collect();
    (!equals.is_empty()).then(|| equals[random.below(equals.len())])
}

/// A row drawn by the softmax of costs that were brought into [0, 1]: the least has the best chance.
fn sampled(costs: &[f64], temperature: f64, random: &mut Random) -> Option<usize> {
    let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
    let range = costs.iter().copied().fold(f64::NEG_INFINITY, f64::max) - least;
    let weight = |cost: &f64| match range > 0.0 {
        true => (-(cost - least) / range / temperature).exp(),
        false => 1.0,
    };
    let weights: Vec<f64> = costs.iter().map(weight).collect();
    let mut left = f64::from(random.unit()) * weights.iter().sum::<f64>();
    let drawn = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    // Rounding may leave a little beyond the last row.
    drawn.or_else(|| costs.len().checked_sub(1))
}

export!(DynamoCost: route);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{RouteCase, laws, policy, try_policy};

    /// A request of 1,600 tokens, 100 blocks, and workers with an overlap each.
    fn case(overlaps: &[f32]) -> RouteCase {
        let case = RouteCase::new(overlaps.len()).request("prompt_tokens", 1600.0);
        case.candidates("overlap_tokens", overlaps)
    }

    fn decided(config: &str, case: &RouteCase) -> RouteDecision {
        case.decide(&mut policy::<DynamoCost>(config)).expect("there are candidates")
    }

    /// How often each candidate is taken, in so many seeds.
    fn taken(config: &str, case: &RouteCase, seeds: u64) -> Vec<u32> {
        let (mut case, mut taken) = (case.clone(), vec![0; case.candidates.rows()]);
        for seed in 0..seeds {
            case.frame.seed = seed;
            taken[decided(config, &case).candidate as usize] += 1;
        }
        taken
    }

    /// The cost that the decision for a single worker gives as its reason.
    fn check_cost(config: &str, case: RouteCase, expected: &str) {
        assert_eq!(decided(config, &case).reason.as_deref(), Some(expected));
    }

    #[test]
    fn a_cost_is_blocks_to_compute_and_blocks_held() {
        // 100 - 30 + 40 to compute, 25 held and 100 of the prompt itself.
        let busy = case(&[480.0]).candidates("queued_tokens", &[640.0]).candidates("active_tokens", &[400.0]);
        check_cost("{}", busy.clone(), "cost 235.0 blocks");
        check_cost(r#"{"prefill_load_scale": 2}"#, busy.clone(), "cost 345.0 blocks");
        check_cost(r#"{"overlap_score_credit": 0.5}"#, busy.clone(), "cost 250.0 blocks");
        check_cost(r#"{"block_tokens": 32}"#, busy, "cost 117.5 blocks");
    }

    #[test]
    fn prompts_that_wait_are_held_blocks_too() {
        let waiting = case(&[0.0]).candidates("queued_tokens", &[160.0]).candidates("queue_len", &[1.0]);
        check_cost("{}", waiting, "cost 220.0 blocks");
    }

    #[test]
    fn a_block_that_sequences_share_is_held_once() {
        // Of 400 pages a quarter is held, whatever the sum of what the sequences hold.
        let shared = case(&[0.0]).candidates("active_tokens", &[8000.0]);
        let shared = shared.candidates("kv_used", &[0.25]).candidates("kv_free_pages", &[300.0]);
        check_cost("{}", shared.clone(), "cost 300.0 blocks");
        // Without a free page their number cannot be told.
        let full = shared.candidates("kv_used", &[1.0]).candidates("kv_free_pages", &[0.0]);
        check_cost("{}", full, "cost 700.0 blocks");
    }

    #[test]
    fn overlap_that_runs_adds_no_blocks_where_it_is_taken_to() {
        // 50 blocks to compute, 80 held, and 100 of the prompt, of which 50 may be among those held.
        let sibling = case(&[800.0]).candidates("active_tokens", &[1280.0]);
        check_cost("{}", sibling.clone(), "cost 230.0 blocks");
        check_cost(r#"{"overlap_active_share": 1}"#, sibling, "cost 180.0 blocks");
        // Nothing runs, so nothing is held.
        check_cost(r#"{"overlap_active_share": 1}"#, case(&[800.0]), "cost 150.0 blocks");
    }

    #[test]
    fn sequences_cost_only_if_asked() {
        let many = case(&[0.0]).candidates("running", &[3.0]).candidates("queue_len", &[2.0]);
        check_cost("{}", many.clone(), "cost 200.0 blocks");
        check_cost(r#"{"decode_active_request_weight": 4}"#, many, "cost 220.0 blocks");
    }

    #[test]
    fn a_credit_beyond_what_is_to_compute_is_lost() {
        check_cost(r#"{"overlap_score_credit": 2}"#, case(&[1600.0]), "cost 100.0 blocks");
    }

    #[test]
    fn overlap_wins_until_its_worker_holds_as_much_more() {
        let with = |active: f32| case(&[800.0, 0.0]).candidates("active_tokens", &[active, 0.0]);
        assert_eq!(taken("{}", &with(784.0), 20), [20, 0]);
        assert_eq!(taken("{}", &with(816.0), 20), [0, 20]);
    }

    #[test]
    fn a_backlog_fades_the_credit_where_it_may() {
        // Both have 100 blocks to compute: the one behind a backlog of 100 has all of the prompt.
        let even = case(&[1600.0, 0.0]).candidates("queued_tokens", &[1600.0, 0.0]);
        let even = even.candidates("active_tokens", &[0.0, 16.0]);
        assert_eq!(taken("{}", &even, 20), [20, 0]);
        assert_eq!(taken(r#"{"overlap_score_credit_decay": 0.1}"#, &even, 20), [0, 20]);
    }

    #[test]
    fn equals_share_evenly() {
        let taken = taken("{}", &case(&[160.0, 0.0, 160.0]), 4000);
        assert_eq!(taken[1], 0);
        assert!(taken[0].abs_diff(2000) < 150, "{taken:?}");
    }

    #[test]
    fn a_temperature_draws_by_cost() {
        // Costs of 0, 0.5 and 1 of their range.
        let costs = case(&[1600.0, 800.0, 0.0]);
        let taken = taken(r#"{"router_temperature": 0.5}"#, &costs, 6000);
        let weights = [1.0, (-1.0_f64).exp(), (-2.0_f64).exp()];
        for (taken, weight) in taken.iter().zip(weights) {
            let expected = 6000.0 * weight / weights.iter().sum::<f64>();
            assert!((f64::from(*taken) - expected).abs() < 200.0, "{taken} instead of {expected}");
        }
    }

    #[test]
    fn a_temperature_leaves_equals_even_and_extremes_possible() {
        let taken_even = taken(r#"{"router_temperature": 0.2}"#, &case(&[0.0; 2]), 2000);
        assert!(taken_even[0].abs_diff(1000) < 150, "{taken_even:?}");
        assert_eq!(taken(r#"{"router_temperature": 1e-3}"#, &case(&[160.0, 0.0]), 200), [200, 0]);
    }

    #[test]
    fn nobody_is_taken_of_none() {
        for config in ["{}", r#"{"router_temperature": 1}"#] {
            assert_eq!(case(&[]).decide(&mut policy::<DynamoCost>(config)), None);
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for (config, field) in [
            (r#"{"block_tokens": 0}"#, "block_tokens"),
            (r#"{"overlap_active_share": 2}"#, "overlap_active_share"),
            (r#"{"router_temperature": -1}"#, "router_temperature"),
            (r#"{"host_cache_hit_weight": 0.75}"#, "host_cache_hit_weight"),
        ] {
            let refusal = try_policy::<DynamoCost>(config).err().expect("it is refused");
            assert!(refusal.contains(field), "{refusal}");
        }
    }

    #[test]
    fn it_keeps_the_laws_of_its_slot() {
        laws::route::<DynamoCost>("{}");
        laws::route::<DynamoCost>(r#"{"router_temperature": 0.4, "overlap_score_credit_decay": 1}"#);
    }
}
