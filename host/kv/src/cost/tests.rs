//! Decisions against a search over all of them, and what is learned against what was true.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const RUN: Run = Run {
    tier: Tier::Remote,
    blocks: 64,
    block_bytes: 1 << 20,
    block_tokens: 16,
    context_tokens: 0,
    queue_bytes: 0,
    waiting_tokens: 0,
};

fn model(latency_us: f64, bytes_per_s: f64, tokens_per_s: f64) -> CostModel {
    CostModel::new(&Priors {
        tiers: [(latency_us, bytes_per_s); TIERS],
        prefill_tokens_per_s: tokens_per_s,
        ..Priors::default()
    })
}

fn check(model: &CostModel, run: &Run, expected: u32) {
    let decision = model.clone().decide(run);
    let chosen = if decision.explores { 0 } else { decision.fetch_blocks };
    assert_eq!(chosen, expected, "{decision:?}");
}

#[test]
fn a_fast_tier_is_fetched_from_and_a_slow_one_is_not() {
    // 64 blocks are 1024 tokens: 100 ms to compute; 64 MiB: 67 ms at 1 GB/s.
    check(&model(1_000.0, 1e9, 10_000.0), &RUN, 64);
    check(&model(50_000.0, 1e9, 10_000.0), &RUN, 0);
    check(&model(1_000.0, 1e8, 10_000.0), &RUN, 0);
    check(&model(1_000.0, 1e8, 1_000.0), &RUN, 64);
}

#[test]
fn what_comes_while_the_executor_is_busy_is_fetched() {
    // A block takes 10.5 ms to fetch and 1.6 ms to compute; 1000 waiting tokens take 100 ms.
    check(&model(1_000.0, 1e8, 10_000.0), &Run { waiting_tokens: 1_000, ..RUN }, 9);
    let queued = Run { waiting_tokens: 1_000, queue_bytes: 5 << 20, ..RUN };
    check(&model(1_000.0, 1e8, 10_000.0), &queued, 4);
}

#[test]
fn a_long_context_makes_fetching_worth_more() {
    let model = model(1_000.0, 500e6, 10_000.0);
    check(&model, &RUN, 0);
    check(&model, &Run { context_tokens: 30_000, ..RUN }, 64);
}

#[test]
fn an_empty_run_decides_nothing() {
    let mut model = model(1.0, 1e12, 1.0);
    let decision = model.decide(&Run { blocks: 0, ..RUN });
    assert_eq!((decision.fetch_blocks, decision.explores, decision.expected_us), (0, false, 0.0));
    assert_eq!(model.stats(), CostStats::default());
}

#[test]
fn what_is_measured_replaces_what_was_believed() {
    let mut model = model(50_000.0, 1e8, 10_000.0);
    check(&model, &RUN, 0);
    for blocks in (1u64..=8).cycle().take(400) {
        let bytes = blocks << 20;
        model.fetched(Tier::Remote, bytes, 2_000 + bytes / 1_000, (blocks as u32, blocks as u32));
        model.computed(512, 2_048, 150_000);
    }
    let (latency_us, bytes_per_s) = model.tier(Tier::Remote);
    assert!((1_500.0..2_500.0).contains(&latency_us), "{latency_us}");
    assert!((0.95e9..1.05e9).contains(&bytes_per_s), "{bytes_per_s}");
    // 512 tokens after 2048 are worth 551 without a context.
    assert!((3_600.0..3_750.0).contains(&model.prefill_tokens_per_s()), "{}", model.prefill_tokens_per_s());
    check(&model, &RUN, 64);
}

#[test]
fn transfers_of_one_size_move_the_whole_line() {
    let mut model = model(1_000.0, 1e9, 10_000.0);
    for _ in 0..100 {
        model.fetched(Tier::Disk, 1 << 20, 20_000, (1, 1));
    }
    let us = model.tiers[Tier::Disk as usize].fetch_us(&Run { tier: Tier::Disk, ..RUN }, 1);
    assert!((us - 20_000.0).abs() < 1.0, "{us}");
}

#[test]
fn a_tier_that_loses_what_it_is_asked_for_is_asked_less() {
    let mut model = model(1_000.0, 1e9, 10_000.0);
    check(&model, &RUN, 64);
    for _ in 0..10 {
        model.fetched(Tier::Remote, 64 << 20, 68_000, (0, 64));
    }
    check(&model, &RUN, 0);
}

#[test]
fn a_tier_that_was_slow_once_is_tried_again() {
    let mut model = model(1_000.0, 1e9, 10_000.0);
    for _ in 0..10 {
        model.fetched(Tier::Remote, 64 << 20, 5_000_000, (64, 64));
    }
    let mut tried = 0;
    for _ in 0..2_000 {
        let decision = model.decide(&RUN);
        if decision.fetch_blocks > 0 {
            // It is well again.
            let bytes = u64::from(decision.fetch_blocks) << 20;
            model.fetched(Tier::Remote, bytes, 1_000 + bytes / 1_000, (1, 1));
            tried += 1;
        }
    }
    assert!(tried > 1_000, "tried {tried} times: {:?} {:?}", model.tier(Tier::Remote), model.stats());
    assert_eq!(model.decide(&RUN).fetch_blocks, 64);
}

#[test]
fn regret_is_what_the_other_way_would_have_saved() {
    let mut model = model(1_000.0, 1e9, 10_000.0);
    let decision = model.decide(&RUN);
    assert_eq!(decision.fetch_blocks, 64);
    model.happened(&decision, decision.compute_us as u64 + 1_000);
    model.happened(&decision, decision.compute_us as u64 - 1_000);
    let stats = model.stats();
    assert_eq!((stats.decisions, stats.fetch_blocks, stats.regrets), (1, 64, 1));
    assert!((stats.regret_us - 1_000.0).abs() <= 1.0 && (stats.saved_us - 1_000.0).abs() <= 1.0, "{stats:?}");
}

#[test]
#[ignore = "measures; run it with --release"]
fn a_decision_is_fast() {
    let mut model = model(1_000.0, 1e9, 10_000.0);
    let (count, mut blocks) = (10_000_000u32, 0u64);
    let started = tokio::time::Instant::now();
    for at in 0..count {
        let run = Run { blocks: at % 100 + 1, waiting_tokens: u64::from(at % 1_000), ..RUN };
        blocks += u64::from(model.decide(std::hint::black_box(&run)).fetch_blocks);
    }
    let ns = started.elapsed().as_nanos() as f64 / f64::from(count);
    println!("{ns:.1} ns a decision ({blocks} blocks)");
    assert!(ns <= 200.0, "{ns:.1} ns a decision");
}

prop_compose! {
    fn any_run()(
        tier in 0usize..TIERS, blocks in 0u32..200, block_bytes in 1u64..4_000_000, block_tokens in 1u32..256,
        context_tokens in 0u32..100_000, queue_bytes in 0u64..1_000_000_000, waiting_tokens in 0u64..20_000,
        idle: bool,
    ) -> Run {
        let tier = [Tier::Host, Tier::Disk, Tier::Remote][tier];
        let (queue_bytes, waiting_tokens) = if idle { (0, 0) } else { (queue_bytes, waiting_tokens) };
        Run { tier, blocks, block_bytes, block_tokens, context_tokens, queue_bytes, waiting_tokens }
    }
}

prop_compose! {
    fn any_model()(
        latency_us in 0.0f64..200_000.0, bytes_per_s in 1e6f64..2e10, tokens_per_s in 10.0f64..100_000.0,
        lost in 0u32..9,
    ) -> CostModel {
        let mut model = model(latency_us, bytes_per_s, tokens_per_s);
        for tier in &mut model.tiers {
            tier.delivered = 1.0 - f64::from(lost) / 9.0;
        }
        model
    }
}

proptest! {
    /// No number of blocks would have been better: neither none nor all.
    #[test]
    fn the_best_of_all_numbers_is_chosen(mut model in any_model(), run in any_run()) {
        let chosen = model.total_us(&run, model.best(&run));
        let least = (0..=run.blocks).map(|blocks| model.total_us(&run, blocks)).fold(f64::INFINITY, f64::min);
        prop_assert!(chosen <= least * (1.0 + 1e-9), "{chosen} {least}");
        let decision = model.decide(&run);
        prop_assert!(decision.fetch_blocks <= run.blocks);
        if !decision.explores {
            prop_assert!(decision.expected_us <= decision.fetch_us.min(decision.compute_us));
        }
    }

    /// A tier that is slower in any respect is not asked for more.
    #[test]
    fn a_slower_tier_is_asked_for_no_more(
        model in any_model(), run in any_run(), latency_us in 0.0f64..50_000.0, slower in 1.0f64..3.0, lost in 0.5f64..1.0,
    ) {
        let mut slow = model.clone();
        for tier in &mut slow.tiers {
            tier.latency_us += latency_us;
            tier.us_per_byte *= slower;
            tier.delivered *= lost;
        }
        let (fast, slow) = (model.best(&run), slow.best(&run));
        // Equal but for rounding: either may be chosen.
        let tie = (model.total_us(&run, fast) - model.total_us(&run, slow)).abs() <= 1e-9 * model.total_us(&run, fast);
        prop_assert!(slow <= fast || tie, "{slow} {fast}");
    }

    /// What is learned stays a line that is neither negative nor infinite, through whatever was measured.
    #[test]
    fn beliefs_stay_sane(measures in vec((0u64..1 << 32, 0u64..100_000_000, 0u32..9), 0..60)) {
        let mut model = CostModel::new(&Priors::default());
        for (bytes, us, came) in measures {
            model.fetched(Tier::Disk, bytes, us, (came, 8));
            model.computed(came, 7, us);
            let tier = model.tiers[Tier::Disk as usize];
            prop_assert!(tier.latency_us.is_finite() && tier.latency_us >= 0.0, "{tier:?}");
            prop_assert!(tier.us_per_byte.is_finite() && tier.us_per_byte >= 0.0, "{tier:?}");
            prop_assert!((DELIVERED_MIN..=1.0).contains(&tier.delivered), "{tier:?}");
            prop_assert!(model.us_per_token.is_finite() && model.us_per_token > 0.0);
        }
    }

    /// Explorations add no more than their share to what is expected, and are rare.
    #[test]
    fn exploration_is_bounded(mut model in any_model(), runs in vec(any_run(), 1..300)) {
        let (mut best_us, mut extra_us, mut explored) = (0.0, 0.0, 0u32);
        for run in &runs {
            let best = model.total_us(run, model.best(run));
            let decision = model.decide(run);
            best_us += best;
            if decision.explores {
                explored += 1;
                extra_us += (decision.expected_us - best).clamp(0.0, EXPLORE_CREDIT_US_MAX);
            }
        }
        prop_assert!(extra_us <= best_us * EXPLORE_SHARE * (1.0 + 1e-9), "{extra_us} of {best_us}");
        prop_assert!(explored <= runs.len() as u32 / EXPLORE_EVERY + TIERS as u32, "{explored} of {}", runs.len());
    }
}
