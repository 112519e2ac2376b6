//! Whole simulations, small enough to be worked out by hand or walked through.

mod slots;

use std::sync::{Arc, LazyLock};

use kv::cost::Tier;
use proptest::prelude::*;
use trace::{Agents, Builder, Entry, Session, Trace};

use super::*;
use crate::results::Call;

static BUILTIN: LazyLock<Chain> = LazyLock::new(|| {
    Chain::new("builtin", ChainSpec::default(), 64).expect("no component, nothing to compile")
});

const BLOCK: u32 = 16;

/// Requests: when, how long, and what is in the blocks of the prompt.
fn trace(requests: &[(f64, u32, u32, &[u64])]) -> Arc<Trace> {
    let mut builder = Builder::new("t", BLOCK);
    for &(due_ms, prompt_tokens, output_tokens, contents) in requests {
        let session = builder.session(Session::default());
        let entry = Entry { session, due_ms, prompt_tokens, output_tokens, ..Entry::default() };
        builder.request(entry, contents.iter().copied());
    }
    Arc::new(builder.finish())
}

fn workload(trace: Arc<Trace>, arrivals: Arrivals) -> Workload {
    Workload { name: "w".into(), trace, arrivals, hints: CallerHints::default() }
}

const RECORDED: Arrivals = Arrivals::Recorded { speedup: 1.0 };

/// Ten milliseconds for a step with prompts, one for a step with answers.
fn setup(workers: usize) -> Setup {
    let cost = CostModel::fixed(10_000.0, 1_000.0);
    Setup { workers, blocks: 64, block_tokens: BLOCK, cost, ..Setup::default() }
}

fn run(setup: &Setup, workloads: &[Workload]) -> Results {
    simulate(setup, workloads, &BUILTIN).unwrap()
}

/// When each request had its first token and its last one, in milliseconds.
fn times(results: &Results) -> Vec<(f64, f64)> {
    let ms = |call: &Call| (call.first.unwrap().ms(), call.done.ms());
    results.calls.iter().map(ms).collect()
}

#[test]
fn a_request_alone_takes_its_prompt_and_its_tokens() {
    let w = [workload(trace(&[(5.0, 40, 4, &[1, 2, 3])]), RECORDED)];
    let results = run(&setup(1), &w);
    assert_eq!(times(&results), [(15.0, 18.0)]);
    let summary = results.summary(&w, None);
    assert_eq!((summary.answered, summary.reuse, summary.ttft_ms.p50), (1, 0.0, 10.0));
    assert!((summary.itl_ms.mean - 1.0).abs() < 1e-9 && (summary.e2e_ms.mean - 13.0).abs() < 1e-9);
}

#[test]
fn whoever_comes_in_joins_the_next_step() {
    let w = [workload(trace(&[(0.0, 40, 20, &[1, 2, 3]), (12.5, 20, 2, &[7, 8])]), RECORDED)];
    // Its step begins when the one under way ends, at 13 ms, and draws a token of the other one, too.
    assert_eq!(times(&run(&setup(1), &w)), [(10.0, 39.0), (24.0, 25.0)]);
}

#[test]
fn a_prefix_is_found_and_the_last_block_is_computed_again() {
    let w = [workload(
        trace(&[(0.0, 48, 1, &[1, 2, 3]), (50.0, 48, 1, &[1, 2, 3]), (90.0, 50, 1, &[1, 2, 3, 4])]),
        RECORDED,
    )];
    let results = run(&setup(2), &w);
    let cached: Vec<u32> = results.calls.iter().map(|call| call.cached).collect();
    assert_eq!(cached, [0, 32, 48]);
    assert!(
        results.calls.iter().all(|call| call.worker == results.calls[0].worker),
        "it goes where its prefix is"
    );
}

#[test]
fn a_closed_loop_keeps_so_many_at_once() {
    let all: Vec<(f64, u32, u32, &[u64])> = (0..9).map(|_| (0.0, 20, 3, &[] as &[u64])).collect();
    let results = run(&setup(1), &[workload(trace(&all), Arrivals::Closed { concurrency: 2 })]);
    let mut ends: Vec<_> =
        results.calls.iter().flat_map(|call| [(call.arrived.0, 1), (call.done.0, -1)]).collect();
    ends.sort_unstable();
    let mut now = 0;
    let most = ends
        .iter()
        .map(|(_, step)| {
            now += step;
            now
        })
        .max();
    assert_eq!((most, results.calls.len()), (Some(2), 9));
}

#[test]
fn a_turn_waits_for_the_answer_before_it_and_a_parent_for_its_subagent() {
    let agents = Agents {
        sessions: 6,
        turns_max: 12,
        subagent_share: 0.3,
        context_tokens: 60_000,
        ..Agents::default()
    };
    let trace = Arc::new(agents.trace().unwrap());
    let w = [workload(Arc::clone(&trace), Arrivals::Sessions { lanes: 3, speedup: 50.0 })];
    let results = run(&Setup { blocks: 60_000, block_tokens: 64, ..setup(2) }, &w);
    let mut ended = vec![0; trace.sessions.len()];
    for (call, request) in results.calls.iter().zip(&trace.requests) {
        assert!(call.arrived.0 >= ended[request.session as usize], "turns of a session follow each other");
        ended[request.session as usize] = call.done.0;
    }
    assert_eq!(results.summary(&w, None).answered, trace.requests.len() as u64);
}

#[test]
fn answers_return_where_they_are_said_to() {
    let mut builder = Builder::new("t", BLOCK);
    let session = builder.session(Session { parent: None, is_named: true });
    let entry = |due_ms, prompt_tokens, output_tokens| Entry {
        session,
        due_ms,
        prompt_tokens,
        output_tokens,
        ..Entry::default()
    };
    builder.request(entry(0.0, 32, 40), [1, 2].into_iter());
    builder.request(entry(500.0, 80, 1), [1, 2, 3, 4, 5].into_iter());
    let w = [workload(Arc::new(builder.finish()), RECORDED)];
    let cached = |answers_return| run(&Setup { answers_return, ..setup(1) }, &w).calls[1].cached;
    assert_eq!((cached(false), cached(true)), (32, 64), "71 of the 72 tokens have KV");
}

#[test]
fn a_slower_tier_gives_back_what_was_evicted() {
    let rows: Vec<(f64, u32, u32, Vec<u64>)> = (0..20u64)
        .map(|at| (at as f64 * 100.0, 480, 1, (0..30).map(|b| at % 4 * 100 + b).collect()))
        .collect();
    let rows: Vec<_> =
        rows.iter().map(|(at, prompt, output, blocks)| (*at, *prompt, *output, blocks.as_slice())).collect();
    let w = [workload(trace(&rows), RECORDED)];
    let small = Setup { blocks: 40, cost: CostModel::linear(0.0, 100.0, 10.0), ..setup(1) };
    let host = TierKind { tier: Tier::Host, blocks: 1000, bytes_per_s: 25e9, latency_us: 20.0 };
    let without = run(&small, &w).summary(&w, None);
    let with = run(&Setup { tiers: vec![host], ..small }, &w).summary(&w, None);
    assert_eq!(without.reuse, 0.0);
    assert!(with.reuse > 0.7 && with.ttft_ms.mean < without.ttft_ms.mean / 2.0, "{with:?}");
}

#[test]
fn who_gives_way_comes_to_its_end_all_the_same() {
    let rows: Vec<(f64, u32, u32, &[u64])> = (0..4).map(|_| (0.0, 100, 400, &[] as &[u64])).collect();
    let w = [workload(trace(&rows), RECORDED)];
    let results = run(&setup(1), &w);
    let summary = results.summary(&w, None);
    assert!(summary.preemptions > 0 && summary.answered == 4, "{summary:?}");
    let too_long = [workload(trace(&[(0.0, 1000, 100, &[])]), RECORDED)];
    assert_eq!(run(&setup(1), &too_long).calls[0].status, Status::TooLong);
}

fn faulty(kind: FaultKind, at_s: f64, for_s: f64) -> Setup {
    Setup { faults: vec![Fault { worker: 0, kind, at_s, for_s }], ..setup(2) }
}

fn many() -> [Workload; 1] {
    let rows: Vec<(f64, u32, u32, &[u64])> =
        (0..200).map(|at| (f64::from(at) * 5.0, 60, 20, &[1u64] as &[u64])).collect();
    [workload(trace(&rows), RECORDED)]
}

#[test]
fn a_crash_costs_time_and_no_answer() {
    let w = many();
    let whole = run(&setup(2), &w).summary(&w, None);
    let results = run(&faulty(FaultKind::Crash, 0.3, 0.4), &w);
    let summary = results.summary(&w, None);
    assert_eq!((summary.answered, summary.requests), (200, 200));
    assert!(summary.e2e_ms.mean > whole.e2e_ms.mean);
    let down = |call: &&Call| call.worker == 0 && (0.3..0.7).contains(&(call.arrived.ms() / 1e3));
    assert_eq!(results.calls.iter().filter(down).count(), 0, "nobody is sent to a worker that is down");
    let alone = Setup { workers: 1, ..faulty(FaultKind::Crash, 0.3, 0.4) };
    assert_eq!(run(&alone, &w).summary(&w, None).answered, 200, "where there is no other, they wait");
}

#[test]
fn a_slow_worker_is_slow_while_it_lasts() {
    let w = many();
    let mean = |setup: &Setup| run(setup, &w).summary(&w, None).e2e_ms.mean;
    assert!(mean(&faulty(FaultKind::Slow { factor: 5.0 }, 0.2, 0.6)) > mean(&setup(2)));
    assert_eq!(mean(&faulty(FaultKind::Slow { factor: 1.0 }, 0.2, 0.6)), mean(&setup(2)));
}

#[test]
fn answers_of_a_worker_that_nobody_reaches_come_when_it_is_reached() {
    let w = many();
    let results = run(&faulty(FaultKind::Partition, 0.3, 0.4), &w);
    assert_eq!(results.summary(&w, None).answered, 200);
    let within = |ms: f64| ms > 300.0 && ms < 700.0;
    let told = |call: &&Call| call.worker == 0 && (within(call.done.ms()) || within(call.arrived.ms()));
    assert_eq!(results.calls.iter().filter(told).count(), 0);
    let late = |call: &&Call| call.worker == 0 && call.done.ms() == 700.0;
    assert!(results.calls.iter().filter(late).count() > 0, "those that it had are told at once");
}

#[test]
fn fleets_that_cannot_be_are_refused_by_field() {
    let refused = |setup: &Setup, expected: &str| {
        let error = simulate(setup, &many(), &BUILTIN).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    };
    refused(&Setup { workers: 0, ..setup(1) }, "`workers` is 0; it lies between 1 and 4096");
    refused(&Setup { block_tokens: 24, ..setup(1) }, "`block_tokens` is 24; blocks of 16 tokens");
    refused(&Setup { blocks: 0, ..setup(1) }, "`blocks` is 0;");
    let costs = CostModel { attend_us: -1.0, ..CostModel::ZERO };
    refused(&Setup { cost: costs, ..setup(1) }, "`cost.attend_us` is no cost;");
    let fault = |worker, for_s| Setup {
        faults: vec![Fault { worker, kind: FaultKind::Crash, at_s: 0.0, for_s }],
        ..setup(2)
    };
    refused(&fault(2, 1.0), "`fault.0.worker` is 2; workers are 0 to 1");
    refused(&fault(1, f64::NAN), "`fault.0.for_s` is NaN;");
}

#[test]
fn scenarios_say_by_field_what_is_wrong() {
    let told = |scenario: Scenario| scenario.prepare(std::path::Path::new("")).unwrap_err().to_string();
    let prompts = PromptsSetting { requests: 1, prompt_tokens: 10, output_tokens: 1 };
    let one = WorkloadSetting { prompts: Some(prompts), ..WorkloadSetting::default() };
    let with = |workload: WorkloadSetting| Scenario { workload: vec![workload], ..Scenario::default() };
    assert!(told(Scenario::default()).starts_with("`workload` is empty;"));
    assert!(told(with(WorkloadSetting::default())).starts_with("`workload.0` is unclear;"));
    assert!(
        told(with(WorkloadSetting { arrivals: ArrivalsKind::Closed, ..one.clone() }))
            .starts_with("`workload.0.concurrency`")
    );
    assert!(
        told(with(WorkloadSetting { speedup: Some(0.0), ..one.clone() }))
            .starts_with("`workload.0.speedup` is 0;")
    );
    assert!(told(Scenario { cost: "h100".into(), ..with(one.clone()) }).starts_with("`cost` is h100; it is"));
    let measured = told(Scenario { cost: "measured".into(), ..with(one.clone()) });
    assert!(measured.starts_with("`cost` is measured;") && measured.contains("`[costs]`"), "{measured}");
    let tier = TierSetting { name: "tape".into(), blocks: 1, gb_per_s: 1.0, latency_us: 0.0 };
    assert!(told(Scenario { tier: vec![tier], ..with(one.clone()) }).starts_with("`tier.0.name` is tape;"));
    let (setup, workloads) = with(one).prepare(std::path::Path::new("")).unwrap();
    assert_eq!((setup.block_tokens, workloads[0].trace.requests.len()), (64, 1));
}

#[test]
fn a_chain_is_no_better_than_itself_and_plots_are_whole() {
    let w = many();
    let results = run(&setup(2), &w);
    let same = compare((&results, &results), &w);
    assert!(
        [same.reuse, same.ttft_ms_mean, same.ttft_ms_p99].iter().all(|it| it.low == 0.0 && it.high == 0.0)
    );
    let slow = run(&faulty(FaultKind::Slow { factor: 4.0 }, 0.0, 10.0), &w);
    let worse = compare((&results, &slow), &w).ttft_ms_mean;
    assert!(
        worse.low > 0.0 && worse.low <= worse.value - worse.base && worse.value - worse.base <= worse.high,
        "{worse:?}"
    );
    let series = results.series(&w, 20);
    assert_eq!(series.iter().map(|bin| bin.arrivals).sum::<u64>(), 200);
    let svg = plot("a < b", &[("one", series)]);
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("a &lt; b"));
    assert_eq!(svg.matches("<polyline").count(), 4);
}

/// The same fleet and requests, by runs and step by step.
///
/// A policy that retains has longer between requests, sessions to remember, and steps of whole microseconds: it is told the
/// time to a millisecond, which must not differ by what is rounded.
fn both(seed: u64, (workers, blocks): (usize, u32), retains: bool) -> (Results, Results) {
    let mut draw = trace::Draw::new(seed);
    let mut at = 0.0;
    let mut rows = Vec::new();
    for _ in 0..30 {
        at += draw.exponential(if retains { 120.0 } else { 15.0 });
        let (prompt, output) = (1 + draw.below(120) as u32, 1 + draw.below(60) as u32);
        let family = draw.below(4);
        rows.push((
            at,
            prompt,
            output,
            (0..prompt.div_ceil(BLOCK)).map(|b| family << 32 | u64::from(b)).collect::<Vec<_>>(),
        ));
    }
    let rows: Vec<_> = rows.iter().map(|(at, p, o, blocks)| (*at, *p, *o, blocks.as_slice())).collect();
    let hints = CallerHints { inferred_sessions: retains, ..CallerHints::default() };
    let w = [Workload { hints, ..workload(trace(&rows), RECORDED) }];
    let whole = CostModel::linear(700.0, 60.0, 90.0);
    let cost = if retains { whole } else { CostModel { decode_context_us: [3.0, 0.001], ..whole } };
    let chain = if retains { &*slots::RETAINS } else { &*BUILTIN };
    let base = Setup { blocks, cost, ..setup(workers) };
    let run = |walks: bool| simulate(&Setup { walks, ..base.clone() }, &w, chain).unwrap();
    (run(false), run(true))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Steps that are taken together give what they give one by one: the same cache, and times to a nanosecond a step.
    #[test]
    fn runs_are_the_same_as_walking(seed in 0u64..1_000_000, workers in 1usize..4, blocks in 12u32..60, retains: bool) {
        let (runs, walks) = both(seed, (workers, blocks), retains);
        for (one, other) in runs.calls.iter().zip(&walks.calls) {
            prop_assert_eq!((one.worker, one.cached, one.preemptions), (other.worker, other.cached, other.preemptions));
            prop_assert!(one.done.0.abs_diff(other.done.0) < 5_000, "{} {}", one.done.0, other.done.0);
        }
        prop_assert_eq!(runs.calls.len(), walks.calls.len());
    }
}
