//! A broken policy costs one fallback, never a request.

use crate::support::{
    Admission, Route, Schedule, Segments, chain_of, count, deadline, faulty_plugin, frame,
    let_the_janitor_work, observe, start, start_faulty,
};
use policy::{BUILTIN, Frame, Hints, HintsView, Limits, OnFailure, Outcome, PluginSpec, Slot, Way};
use std::time::Duration;

/// Asks a chain with a faulty plugin in one slot three times: well, faulty, and well again.
/// Each time there must be a decision, and the plugin's must be used in the good ones.
fn check(slot: Slot, fault: &str, expected: Outcome) {
    // Whatever is not about time has plenty of it, so that a slow machine changes nothing.
    let limits = if expected == Outcome::OverDeadline { Limits::default() } else { deadline(2_000) };
    let generations = start(chain_of(slot, PluginSpec { limits, ..faulty_plugin(fault) }));
    let generation = generations.active();
    let by_plugin = |seed: u64| -> bool {
        let frame = frame(seed);
        match slot {
            Slot::Hints => generation
                .hints(Way::default(), &hints(frame), Hints::default())
                .expect("hints")
                .hints
                .session
                .is_some(),
            Slot::Admit => {
                let decided = generation.admit(Way::default(), &Admission::new(frame).view());
                &*decided.expect("a verdict").decided_by != BUILTIN
            }
            Slot::Retain => {
                let decision = generation.retain(0, &Segments::new(3, frame).view());
                assert_eq!(decision.keeps.len(), 3);
                &*decision.decided_by != BUILTIN
            }
            Slot::Schedule => &*generation.schedule(0, &Schedule::new(5, frame).view()).decided_by != BUILTIN,
            Slot::Observe => {
                let before = count(&generations, slot, Outcome::Ok);
                observe(&generations, frame, &[(1, 1)]);
                count(&generations, slot, Outcome::Ok) > before
            }
            _ => {
                let decision = generation
                    .route(Way::default(), &Route::new(&[0.0; 4], frame).view())
                    .expect("a decision");
                assert!(decision.candidate < 4);
                assert!(decision.scores.iter().all(|score| !score.is_nan()));
                match slot {
                    Slot::Pick | Slot::Route => &*decision.decided_by != BUILTIN,
                    _ => !decision.fell_back,
                }
            }
        }
    };
    assert!(by_plugin(0), "{slot}: it answers before the fault");
    assert!(!by_plugin(1), "{slot}, {fault}: the built-in answers in its place");
    let calls = &generations.plugins()[0].calls;
    assert_eq!(count(&generations, slot, expected), 1, "{slot}, {fault} is {expected}: {calls:?}");
    assert!(by_plugin(0), "{slot}, {fault}: the next call works");
    assert_eq!(count(&generations, slot, Outcome::Ok), 2);
}

fn hints(frame: Frame) -> HintsView<'static> {
    HintsView {
        frame,
        protocol: "openai-chat",
        headers: &[],
        extensions: &[],
        prompt_tokens: 10,
        output_tokens_max: None,
    }
}

fn check_all(fault: &str, expected: Outcome, slots: &[Slot]) {
    slots.iter().for_each(|slot| check(*slot, fault, expected));
}

/// The slots of our own contract: middleware has another one.
fn ours() -> Vec<Slot> {
    Slot::ALL.into_iter().filter(|slot| *slot != Slot::Middleware).collect()
}

#[test]
fn a_trap_costs_one_fallback() {
    check_all("trap", Outcome::Trapped, &ours());
}

#[test]
fn a_panic_costs_one_fallback() {
    check_all("panic", Outcome::Trapped, &ours());
}

#[test]
fn an_endless_loop_costs_one_fallback() {
    check_all("loop", Outcome::OverDeadline, &ours());
}

#[test]
fn memory_without_end_costs_one_fallback() {
    let expected = [Outcome::Trapped, Outcome::OverDeadline];
    let generations = start_faulty(Slot::Score, "allocate", OnFailure::Fallback);
    let decision = generations.active().route(Way::default(), &Route::new(&[0.0; 4], frame(1)).view());
    assert!(decision.expect("a decision").fell_back);
    let counted: u64 = expected.map(|outcome| count(&generations, Slot::Score, outcome)).iter().sum();
    assert_eq!(counted, 1);
}

#[test]
fn a_tight_memory_limit_is_kept() {
    let limits = Limits { memory_bytes: 4 << 20, deadline: Duration::from_secs(5), ..Limits::default() };
    let plugin = PluginSpec { limits, ..faulty_plugin("allocate") };
    let generations = start(chain_of(Slot::Score, plugin));
    let decision = generations.active().route(Way::default(), &Route::new(&[0.0; 4], frame(1)).view());
    assert!(decision.expect("a decision").fell_back);
    assert_eq!(count(&generations, Slot::Score, Outcome::Trapped), 1);
}

#[test]
fn a_flood_of_an_answer_costs_one_fallback() {
    let slots = ours().into_iter().filter(|slot| !matches!(slot, Slot::Pick | Slot::Observe));
    check_all("flood", Outcome::Trapped, &slots.collect::<Vec<_>>());
}

#[test]
fn numbers_that_are_none_are_a_bad_answer() {
    check_all("nan", Outcome::BadAnswer, &[Slot::Hints, Slot::Score]);
}

#[test]
fn a_wrong_length_is_a_bad_answer() {
    let slots = ours().into_iter().filter(|slot| !matches!(slot, Slot::Pick | Slot::Observe));
    check_all("wrong_length", Outcome::BadAnswer, &slots.collect::<Vec<_>>());
}

#[test]
fn rows_out_of_range_are_a_bad_answer() {
    let slots = [Slot::Hints, Slot::Admit, Slot::Pick, Slot::Route, Slot::Schedule];
    check_all("out_of_range", Outcome::BadAnswer, &slots);
}

#[test]
fn a_repeated_row_is_a_bad_answer() {
    check_all("drop_all", Outcome::BadAnswer, &[Slot::Schedule]);
}

#[test]
fn a_filter_that_drops_everybody_is_not_heard() {
    check_all("drop_all", Outcome::BadAnswer, &[Slot::Filter]);
}

#[test]
fn scores_out_of_range_are_clamped_and_counted() {
    let generations = start_faulty(Slot::Score, "out_of_range", OnFailure::Fallback);
    let decision = generations
        .active()
        .route(Way::default(), &Route::new(&[0.0; 4], frame(1)).view())
        .expect("a decision");
    assert_eq!(decision.scores, [0.0, 1.0, 1.0, 1.0]);
    assert!(!decision.fell_back);
    let counts = generations.metrics();
    assert_eq!(counts["it"].slots[&Slot::Score].clipped, 4);
}

#[test]
fn endless_log_lines_end_with_the_deadline() {
    let generations = start_faulty(Slot::Score, "chatter", OnFailure::Fallback);
    generations.active().route(Way::default(), &Route::new(&[0.0; 4], frame(1)).view()).expect("a decision");
    assert_eq!(count(&generations, Slot::Score, Outcome::OverDeadline), 1);
}

#[test]
fn an_abstention_is_no_failure() {
    let generations = start_faulty(Slot::Pick, "abstain", OnFailure::Reject);
    let decision = generations
        .active()
        .route(Way::default(), &Route::new(&[0.0; 4], frame(1)).view())
        .expect("a decision");
    assert_eq!((&*decision.decided_by, decision.fell_back), (BUILTIN, false));
    assert_eq!(count(&generations, Slot::Pick, Outcome::Abstained), 1);
}

#[test]
fn an_endless_loop_ends_within_its_deadline_and_two_milliseconds() {
    let generations = start_faulty(Slot::Score, "loop", OnFailure::Fallback);
    let generation = generations.active();
    // CPU time, because other tests share the cores; the best of several, because a tick can come late.
    let mut best = Duration::MAX;
    for _ in 0..4 {
        let before = thread_cpu();
        assert!(
            generation
                .route(Way::default(), &Route::new(&[0.0; 4], frame(1)).view())
                .expect("a decision")
                .fell_back
        );
        best = best.min(thread_cpu() - before);
        let_the_janitor_work();
    }
    assert!(best <= Duration::from_millis(4), "it took {best:?} of CPU time");
    assert!(best >= Duration::from_millis(1), "it had its time: {best:?}");
}

fn thread_cpu() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}

#[test]
fn skip_counts_a_failed_scorer_as_silent() {
    let generations = start_faulty(Slot::Score, "trap", OnFailure::Skip);
    let decision = generations
        .active()
        .route(Way::default(), &Route::new(&[0.0; 4], frame(1)).view())
        .expect("a decision");
    assert!(!decision.fell_back);
}

#[test]
fn reject_refuses_the_request_and_names_the_policy() {
    for slot in [Slot::Hints, Slot::Admit, Slot::Filter, Slot::Score, Slot::Pick, Slot::Route] {
        let generations = start_faulty(slot, "trap", OnFailure::Reject);
        let generation = generations.active();
        let refused = match slot {
            Slot::Hints => generation.hints(Way::default(), &hints(frame(1)), Hints::default()).map(drop),
            Slot::Admit => generation.admit(Way::default(), &Admission::new(frame(1)).view()).map(drop),
            _ => generation.route(Way::default(), &Route::new(&[0.0; 4], frame(1)).view()).map(drop),
        };
        let refused = refused.expect_err("the operator asked for it");
        assert_eq!((&*refused.plugin, refused.slot, refused.outcome), ("it", slot, Outcome::Trapped));
        assert!(
            generations.active().hints(Way::default(), &hints(frame(0)), Hints::default()).is_ok(),
            "the next one is served"
        );
    }
}

#[test]
fn a_policy_that_faults_again_and_again_is_left_alone_for_a_while() {
    let generations = start_faulty(Slot::Score, "trap", OnFailure::Fallback);
    let generation = generations.active();
    let ask = |now_ms: u64, seed: u64| {
        let frame = Frame { now_ms, seed };
        generation.route(Way::default(), &Route::new(&[0.0; 4], frame).view()).expect("a decision").fell_back
    };
    (0..20).for_each(|_| {
        assert!(ask(1_000, 1));
        std::thread::sleep(Duration::from_millis(2));
    });
    assert!(count(&generations, Slot::Score, Outcome::Trapped) <= 5, "it is not asked every time");
    let_the_janitor_work();
    assert!(ask(1_500, 0), "it is left alone although it would answer");
    assert!(!ask(10_000_000, 0), "it is asked again after the cool-down");
    assert!(!ask(10_000_000, 0), "and stays");
}

#[test]
fn many_threads_share_one_faulty_policy_and_all_are_answered() {
    let generations = start_faulty(Slot::Score, "panic", OnFailure::Fallback);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let generation = generations.active();
            scope.spawn(move || {
                for call in 0..200 {
                    let frame = Frame { now_ms: 1 + call * 10_000, seed: (call + thread) % 5 };
                    let decision = generation.route(Way::default(), &Route::new(&[0.0; 4], frame).view());
                    assert!(decision.expect("a decision").candidate < 4);
                }
            });
        }
    });
    let counted: u64 = Outcome::ALL.iter().map(|outcome| count(&generations, Slot::Score, *outcome)).sum();
    assert_eq!(counted, 800, "every call is counted once");
}
