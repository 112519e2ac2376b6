//! A candidate beside the active generation: shadow, canary, promotion, and what is taken back by itself.

use crate::support::{
    Admission, Route, chain_of, count, deadline, faulty_plugin, first_plugin, frame, keeper, runtime, start,
};
use policy::{
    Candidate, ChainSpec, GenerationId, GenerationState, Generations, Match, Mode, OBSERVE_OUTCOME,
    ObserveView, Outcome, Pin, PluginSpec, PolicyMetric, RolloutError, RolloutReport, RolloutState, Slot,
    Subject, Table, WatchLimits,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const QUEUES: [f32; 2] = [0.0, 5.0];

fn first() -> PluginSpec {
    PluginSpec::new(first_plugin(), "test")
}

fn canary(percent: f64) -> Mode {
    Mode::Canary { percent, matches: Match::default() }
}

fn plugin(component: Arc<[u8]>) -> Candidate {
    Candidate::Plugin { name: "it".to_owned(), component, origin: "elsewhere".to_owned() }
}

/// A scorer that traps whenever the seed is not 0; time is no matter.
fn trapping() -> ChainSpec {
    chain_of(Slot::Score, PluginSpec { limits: deadline(2_000), ..faulty_plugin("trap") })
}

/// Limits that a test can reach, and no clock in the way.
fn limits() -> WatchLimits {
    // A loaded machine may hold up a call: that is not what is tested here.
    WatchLimits { deadline_rate_max: 1.0, probation: Duration::from_secs(600), ..WatchLimits::default() }
}

fn pin(generations: &Generations, session: u64) -> Pin {
    generations.pin_for(&Subject::default(), |_| session)
}

/// Routes by a pin; the first of two candidates has the shorter queue.
fn route(pin: &Pin, seed: u64) -> policy::RouteDecision {
    pin.route(&Route::new(&QUEUES, frame(seed)).view()).expect("a decision")
}

/// Routes that a live generation decides, slowly enough that a shadow keeps up.
fn decide(generations: &Generations, decisions: u64, seed: u64) {
    for session in 0..decisions {
        let decision = route(&pin(generations, session), seed);
        assert_eq!((decision.candidate, decision.fell_back), (0, false), "the live side is what it was");
        if session % 50 == 49 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The report, once the shadow has seen so many decisions of a slot.
fn compared(generations: &Generations, slot: Slot, decisions: u64) -> RolloutReport {
    for _ in 0..3_000 {
        let report = generations.rollout().expect("there is one");
        if report.shadow.get(&slot).is_some_and(|seen| seen.compared >= decisions) {
            return report;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the shadow never saw them: {:?}", generations.rollout());
}

fn observe(pin: &Pin) {
    let outcomes = Table::new(&OBSERVE_OUTCOME, 1);
    pin.observe(&ObserveView { frame: frame(0), outcomes: &outcomes });
}

fn state_of(generations: &Generations, id: GenerationId) -> GenerationState {
    generations.history().into_iter().find(|report| report.id == id).expect("it is remembered").state
}

/// What the learner counted itself, in the active generation.
fn observed(generations: &Generations) -> Option<PolicyMetric> {
    let plugins = generations.plugins();
    plugins.iter().find(|plugin| plugin.name == "learner")?.metrics.get("observed").copied()
}

#[test]
fn a_shadow_of_the_same_scorer_agrees_with_every_decision() {
    let generations = start(chain_of(Slot::Score, first()));
    let id = generations.start_rollout(plugin(first_plugin()), Mode::Shadow).expect("it can be tried");
    assert_eq!(state_of(&generations, id), GenerationState::Shadow);
    decide(&generations, 200, 7);
    let report = compared(&generations, Slot::Route, 200);
    let seen = &report.shadow[&Slot::Route];
    assert_eq!((seen.decisions, seen.agreed, seen.dropped), (200, 200, 0));
    assert_eq!((seen.agreement, seen.compared_share), (1.0, 1.0));
    let deltas = seen.route.expect("routes were compared");
    assert_eq!(
        (deltas.score_delta_max, deltas.queue_len_delta, deltas.overlap_tokens_delta),
        (0.0, 0.0, 0.0)
    );
    assert_eq!(count(&generations, Slot::Score, Outcome::Ok), 200, "a shadow's calls are not the plugin's");
    assert_eq!(report.calls["it"][&Slot::Score].outcomes[&Outcome::Ok], 200);
}

#[test]
fn a_shadow_that_chooses_otherwise_is_measured_and_changes_nothing() {
    let generations = start(chain_of(Slot::Score, first()));
    generations.start_rollout(plugin(faulty_plugin("ok").component), Mode::Shadow).expect("it can be tried");
    decide(&generations, 100, 7);
    let report = compared(&generations, Slot::Route, 100);
    let seen = &report.shadow[&Slot::Route];
    assert_eq!((seen.agreed, seen.agreement, seen.rejected), (0, 0.0, 0));
    let deltas = seen.route.expect("routes were compared");
    assert_eq!(deltas.queue_len_delta, 5.0, "it likes the longer queue");
    // Live scores are 1 and 1/6, the candidate's 1/2 and 1.
    assert!((deltas.score_delta_max - 5.0 / 6.0).abs() < 1e-5, "{deltas:?}");
    assert!((deltas.score_delta_mean - (0.5 + 5.0 / 6.0) / 2.0).abs() < 1e-5, "{deltas:?}");
}

#[test]
fn a_shadow_that_traps_leaves_the_live_side_untouched() {
    let generations = start(chain_of(Slot::Score, first()));
    generations.start_rollout(Candidate::Chain(trapping()), Mode::Shadow).expect("it can be tried");
    decide(&generations, 100, 1);
    let report = compared(&generations, Slot::Route, 100);
    assert!(report.calls["it"][&Slot::Score].outcomes[&Outcome::Trapped] >= 1, "{report:?}");
    assert_eq!(report.shadow[&Slot::Route].route.expect("there were routes").fell_back, 100);
    assert_eq!(count(&generations, Slot::Score, Outcome::Ok), 100);
    assert_eq!(count(&generations, Slot::Score, Outcome::Trapped), 0);
}

#[test]
fn a_shadow_that_traps_is_given_up_with_the_reason() {
    let generations = start(chain_of(Slot::Score, first()));
    generations.set_watch_limits(limits());
    let id = generations.start_rollout(Candidate::Chain(trapping()), Mode::Shadow).expect("it can be tried");
    decide(&generations, 40, 1);
    compared(&generations, Slot::Route, 40);
    generations.watch();
    let report = generations.rollout().expect("it is remembered");
    let why = report.why.expect("there is a reason");
    assert_eq!(report.state, RolloutState::RolledBack);
    assert!(why.starts_with("trap rate 1.00 > 0.01 over ") && why.ends_with("calls of plugin `it`"), "{why}");
    assert_eq!(generations.active().id(), GenerationId(1));
    let note = generations.history().into_iter().find(|it| it.id == id).expect("it is remembered").note;
    assert_eq!(note, Some(format!("rolled_back: {why}")));
}

#[test]
fn a_canary_decides_for_its_share_and_sessions_stay() {
    let generations = start(chain_of(Slot::Score, first()));
    let candidate = plugin(faulty_plugin("ok").component);
    let id = generations.start_rollout(candidate, canary(25.0)).expect("it can be tried");
    assert_eq!(state_of(&generations, id), GenerationState::Canary);
    let side = |session| {
        let pin = pin(&generations, session);
        let row = route(&pin, 7).candidate;
        assert_eq!(row == 1, pin.id() == id, "each side decides by its own scorer");
        pin.id() == id
    };
    let sides: Vec<bool> = (0..2_000).map(side).collect();
    let taken = sides.iter().filter(|taken| **taken).count();
    assert!((400..600).contains(&taken), "{taken} of 2000 are no quarter");
    assert!((0..200).all(|session| side(session) == sides[session as usize]), "a session changed sides");
    let requests = generations.rollout().expect("it runs").requests;
    assert_eq!(requests.active + requests.candidate, 2_200);
    generations.set_mode(canary(100.0)).expect("a larger share");
    assert!((0..100).all(side));
    assert_eq!(generations.pin(&Subject::default()).id(), GenerationId(1), "who has no session stays");
}

#[test]
fn a_canary_gets_only_what_it_matches() {
    let generations = start(chain_of(Slot::Score, first()));
    let matches = Match { tenants: vec!["acme".to_owned()], ..Match::default() };
    let mode = Mode::Canary { percent: 100.0, matches };
    let id = generations.start_rollout(plugin(first_plugin()), mode).expect("it can be tried");
    let of = |tenant| generations.pin_for(&Subject { tenant, ..Subject::default() }, |_| 1).id();
    assert_eq!((of("acme"), of("other")), (id, GenerationId(1)));
}

#[test]
fn a_share_out_of_range_is_refused_and_nothing_begins() {
    let generations = start(chain_of(Slot::Score, first()));
    for percent in [0.0, -3.0, 100.5, f64::NAN] {
        let error = generations.start_rollout(plugin(first_plugin()), canary(percent)).expect_err("no share");
        assert!(
            matches!(error, RolloutError::Percent(_)) && error.to_string().contains("`percent`"),
            "{error}"
        );
    }
    assert!(generations.rollout().is_none());
    assert_eq!(generations.history().len(), 1);
}

#[test]
fn a_candidate_that_cannot_serve_is_no_rollout() {
    let generations = start(chain_of(Slot::Score, first()));
    let error =
        generations.start_rollout(plugin(b"nonsense".as_slice().into()), Mode::Shadow).expect_err("no");
    assert!(matches!(error, RolloutError::Prepare(_)) && !error.is_busy(), "{error}");
    assert!(generations.rollout().is_none());
}

#[test]
fn a_promoted_candidate_is_active_and_keeps_what_it_learned_as_a_shadow() {
    let mut chain = chain_of(Slot::Score, first());
    chain.plugins.insert("learner".to_owned(), faulty_plugin("ok"));
    let generations = start(chain);
    let id = generations.start_rollout(plugin(faulty_plugin("ok").component), Mode::Shadow).expect("tried");
    (0..7).for_each(|session| observe(&pin(&generations, session)));
    assert_eq!(observed(&generations), Some(PolicyMetric::Gauge(7.0)));
    compared(&generations, Slot::Observe, 7);
    generations.set_mode(canary(50.0)).expect("it moves on");
    // Outcomes of the active side are told to both, in whatever mode.
    (0..20).for_each(|session| observe(&pin(&generations, session)));
    let to_active = generations.rollout().expect("it runs").requests.active;
    compared(&generations, Slot::Observe, 7 + to_active);
    let held = pin(&generations, 1);
    assert_eq!(generations.promote().expect("it can be promoted"), id);
    assert_eq!(generations.active().id(), id);
    assert_eq!(observed(&generations), Some(PolicyMetric::Gauge(27.0)), "it was told everything");
    assert_eq!(route(&pin(&generations, 1), 7).candidate, 1);
    drop(held);
    let report = generations.rollout().expect("it is remembered");
    assert_eq!((report.state, report.candidate), (RolloutState::Promoted, id));
    assert_eq!(state_of(&generations, GenerationId(1)), GenerationState::Ready);
    assert_eq!(generations.rollback().expect("there is one before"), GenerationId(1));
}

#[test]
fn state_is_copied_to_a_candidate_and_carried_on_by_its_promotion() {
    let keeping = |config| chain_of(Slot::Score, PluginSpec { config, ..PluginSpec::new(keeper(), "test") });
    let generations = start(keeping(serde_json::json!({})));
    let counted = || generations.plugins()[0].metrics.get("count").copied();
    let ask = |times: u64| (0..times).for_each(|session| _ = route(&pin(&generations, session), 7));
    ask(4);
    let candidate = Candidate::Chain(keeping(serde_json::json!({ "hoard_bytes": 1 })));
    generations.start_rollout(candidate, Mode::Shadow).expect("it can be tried");
    ask(3);
    compared(&generations, Slot::Route, 3);
    assert_eq!(counted(), Some(PolicyMetric::Gauge(7.0)), "the shadow's calls are not the live one's");
    generations.promote().expect("it can be promoted");
    ask(1);
    assert_eq!(counted(), Some(PolicyMetric::Gauge(8.0)), "four copied, three as a shadow, one of its own");
}

#[test]
fn verdicts_of_a_shadow_are_compared_too() {
    let generations = start(chain_of(Slot::Admit, faulty_plugin("ok")));
    let candidate = Candidate::Chain(chain_of(Slot::Admit, faulty_plugin("ok")));
    generations.start_rollout(candidate, Mode::Shadow).expect("it can be tried");
    for session in 0..10 {
        pin(&generations, session).admit(&Admission::new(frame(7)).view()).expect("a verdict");
    }
    let seen = &compared(&generations, Slot::Admit, 10).shadow[&Slot::Admit];
    assert_eq!((seen.decisions, seen.agreed, seen.agreement), (10, 10, 1.0));
}

#[test]
fn an_aborted_candidate_ends_with_its_last_request() {
    let generations = start(chain_of(Slot::Score, first()));
    let id = generations.start_rollout(plugin(first_plugin()), canary(100.0)).expect("it can be tried");
    let held = pin(&generations, 1);
    assert_eq!(held.id(), id);
    generations.abort("a test").expect("it runs");
    assert_eq!(route(&held, 7).candidate, 0, "a request keeps the candidate that it began with");
    assert_eq!(state_of(&generations, id), GenerationState::Draining);
    assert_eq!(pin(&generations, 1).id(), GenerationId(1));
    drop(held);
    for _ in 0..200 {
        if state_of(&generations, id) == GenerationState::Retired {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(state_of(&generations, id), GenerationState::Retired);
    let report = generations.rollout().expect("it is remembered");
    assert_eq!((report.state, report.why.as_deref()), (RolloutState::Aborted, Some("a test")));
    assert!(matches!(generations.abort("again"), Err(RolloutError::NoRollout)));
    assert!(matches!(generations.promote(), Err(RolloutError::NoRollout)));
    assert!(matches!(generations.set_mode(canary(1.0)), Err(RolloutError::NoRollout)));
}

#[test]
fn while_one_is_tried_every_other_change_is_told_which() {
    let generations = start(chain_of(Slot::Score, first()));
    let id = generations.start_rollout(plugin(first_plugin()), canary(10.0)).expect("it can be tried");
    let second = generations.start_rollout(plugin(first_plugin()), Mode::Shadow).expect_err("one is enough");
    let refusals = [
        (second.is_busy(), second.to_string()),
        generations.replace_plugin("it", first_plugin(), String::new()).map_err(told).expect_err("no swap"),
        generations.apply(chain_of(Slot::Score, first())).map_err(told).expect_err("no other chain"),
        generations.rollback().map_err(told).expect_err("no way back"),
    ];
    for (busy, message) in refusals {
        assert!(busy, "{message}");
        for words in [format!("generation {id} (canary)"), "promote it or abort it".to_owned()] {
            assert!(message.contains(&words), "`{words}` is missing in `{message}`");
        }
    }
    let back = generations.set_mode(Mode::Shadow).expect_err("it decides already");
    assert!(back.to_string().contains("`mode`"), "{back}");
    generations.abort("a test").expect("it runs");
    generations.replace_plugin("it", first_plugin(), String::new()).expect("nothing is in the way");
}

fn told(error: policy::PrepareError) -> (bool, String) {
    (error.is_busy(), error.to_string())
}

#[test]
fn a_canary_that_traps_is_rolled_back_and_says_why() {
    let generations = start(chain_of(Slot::Score, first()));
    generations.set_watch_limits(limits());
    generations.start_rollout(Candidate::Chain(trapping()), canary(50.0)).expect("it can be tried");
    for session in 0..100 {
        // Whatever the candidate does, each request gets its decision.
        route(&pin(&generations, session), 1);
        std::thread::sleep(Duration::from_millis(1));
    }
    generations.watch();
    let report = generations.rollout().expect("it is remembered");
    assert_eq!(report.state, RolloutState::RolledBack, "{report:?}");
    assert!(report.why.as_deref().is_some_and(|why| why.contains("trap rate 1.00 > 0.01")), "{report:?}");
    assert!((0..50).all(|session| pin(&generations, session).id() == GenerationId(1)));
    assert_eq!(generations.rollout_totals().rollbacks["trap_rate"], 1);
    assert_eq!(generations.rollbacks()[0].to, GenerationId(1));
}

#[test]
fn a_swap_that_traps_is_taken_back_and_says_why() {
    let generations = start(chain_of(Slot::Score, first()));
    generations.set_watch_limits(limits());
    let id = generations.apply(trapping()).expect("it behaves until it is asked");
    assert_eq!(generations.probation().map(|it| it.generation), Some(id));
    let ask = |times: u64| (0..times).for_each(|session| _ = route(&pin(&generations, session), 1));
    ask(10);
    generations.watch();
    assert_eq!(generations.active().id(), id, "ten calls are too few to judge");
    ask(30);
    generations.watch();
    assert_eq!(generations.active().id(), GenerationId(1));
    let taken_back = generations.rollbacks();
    assert_eq!((taken_back.len(), taken_back[0].generation, taken_back[0].to), (1, id, GenerationId(1)));
    assert!(taken_back[0].why.starts_with("trap rate 1.00 > 0.01 over 40 calls"), "{taken_back:?}");
    assert!(generations.probation().is_none());
    ask(40);
    generations.watch();
    assert_eq!(generations.active().id(), GenerationId(1));
}

#[test]
fn a_promoted_candidate_that_breaks_is_taken_back_and_its_rollout_says_so() {
    let generations = start(chain_of(Slot::Score, first()));
    generations.set_watch_limits(limits());
    generations.start_rollout(Candidate::Chain(trapping()), Mode::Shadow).expect("it can be tried");
    generations.promote().expect("nobody asked it yet");
    (0..40).for_each(|session| _ = route(&pin(&generations, session), 1));
    generations.watch();
    assert_eq!(generations.active().id(), GenerationId(1));
    let report = generations.rollout().expect("it is remembered");
    assert_eq!(report.state, RolloutState::RolledBack);
    assert!(report.why.is_some_and(|why| why.contains("trap rate")));
}

#[test]
fn without_probation_or_a_generation_before_nothing_is_taken_back() {
    let broken = |generations: &Generations| {
        (0..40).for_each(|session| _ = route(&pin(generations, session), 1));
        generations.watch();
        generations.active().id()
    };
    let generations = start(trapping());
    generations.set_watch_limits(limits());
    assert_eq!(broken(&generations), GenerationId(1), "the first has none before it");
    let generations = start(chain_of(Slot::Score, first()));
    generations.set_watch_limits(WatchLimits { probation: Duration::ZERO, ..limits() });
    let id = generations.apply(trapping()).expect("it behaves until it is asked");
    assert_eq!(broken(&generations), id, "probation is off");
}

#[test]
fn a_plugin_that_failed_before_a_swap_of_another_is_no_reason_to_go_back() {
    let mut chain = trapping();
    chain.plugins.insert("other".to_owned(), first());
    chain.score.push(("other".to_owned(), 1.0));
    let generations = start(chain);
    generations.set_watch_limits(limits());
    let ask = || (0..40).for_each(|session| _ = route(&pin(&generations, session), 1));
    ask();
    let swapped = generations.replace_plugin("other", faulty_plugin("ok").component, String::new());
    let id = swapped.expect("it can be swapped in");
    ask();
    generations.watch();
    assert_eq!(generations.active().id(), id);
}

#[test]
fn a_canary_without_a_breach_is_promoted_when_that_is_wanted() {
    let generations = start(chain_of(Slot::Score, first()));
    generations.set_watch_limits(WatchLimits { promote_after: Duration::from_millis(1), ..limits() });
    let id = generations.start_rollout(plugin(first_plugin()), canary(100.0)).expect("it can be tried");
    std::thread::sleep(Duration::from_millis(5));
    generations.watch();
    assert_eq!(generations.active().id(), GenerationId(1), "nobody has asked it yet");
    (0..30).for_each(|session| _ = route(&pin(&generations, session), 7));
    generations.watch();
    assert_eq!(generations.active().id(), id);
}

#[test]
fn the_watch_looks_by_itself() {
    let generations = start(chain_of(Slot::Score, first()));
    let tick = Duration::from_millis(5);
    generations.keep_watch(WatchLimits { tick, ..limits() }).expect("a thread starts");
    generations.apply(trapping()).expect("it behaves until it is asked");
    for session in 0..5_000 {
        route(&pin(&generations, session), 1);
        if generations.active().id() == GenerationId(1) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("nobody took it back");
}

#[test]
fn of_two_swaps_at_once_one_wins_and_the_other_is_told() {
    let generations = start(chain_of(Slot::Score, first()));
    let (won, told) = std::thread::scope(|scope| {
        let swaps: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| generations.replace_plugin("it", first_plugin(), "race".to_owned())))
            .collect();
        let results: Vec<_> = swaps.into_iter().map(|swap| swap.join().expect("no panic")).collect();
        let busy = |result: &&Result<_, policy::PrepareError>| result.as_ref().is_err_and(|e| e.is_busy());
        (results.iter().filter(|result| result.is_ok()).count(), results.iter().filter(busy).count())
    });
    assert!(won >= 1, "one wins");
    assert_eq!(won + told, 8, "nobody fails for another reason");
    assert_eq!(generations.active().id(), GenerationId(1 + won as u64));
}

#[test]
fn the_diff_of_two_generations_names_what_changed() {
    let mut chain = chain_of(Slot::Score, first());
    let generations = start(chain.clone());
    chain.plugins.insert("it".to_owned(), PluginSpec { limits: deadline(9), ..faulty_plugin("ok") });
    chain.plugins.insert("more".to_owned(), first());
    chain.score = vec![("more".to_owned(), 2.0), ("it".to_owned(), 1.0)];
    let id = generations.apply(chain).expect("it can be prepared");
    let diff = generations.diff(GenerationId(1), id).expect("both are remembered");
    let json = serde_json::to_value(&diff).expect("plain data");
    assert_eq!((&diff.added, diff.removed.len()), (&vec!["more".to_owned()], 0));
    assert_eq!(json["changed"][0]["config"], serde_json::json!(["fault"]), "settings are named, not shown");
    assert_eq!(json["changed"][0]["limits"], serde_json::json!(["deadline"]));
    assert!(diff.changed[0].digest.is_some() && diff.changed.len() == 1, "{json}");
    let slots = serde_json::json!([{ "chain": "default", "slot": "score",
        "before": [{ "plugin": "it", "weight": 1.0 }],
        "after": [{ "plugin": "more", "weight": 2.0 }, { "plugin": "it", "weight": 1.0 }] },
        { "chain": "default", "slot": "observe", "before": [], "after": [{ "plugin": "it" }] }]);
    assert_eq!(json["slots"], slots);
    let same = generations.diff(id, id).expect("it is remembered");
    assert!(same.changed.is_empty() && same.slots.is_empty());
    assert_eq!(generations.diff(id, GenerationId(99)), Err(GenerationId(99)));
}

#[test]
fn rollouts_under_load_fail_nobody() {
    let generations = start(chain_of(Slot::Score, first()));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let (generations, done) = (&generations, &done);
            scope.spawn(move || {
                let mut session = thread;
                while !done.load(Ordering::Relaxed) {
                    let decision = route(&pin(generations, session), 7);
                    assert!(!decision.fell_back && decision.candidate < 2);
                    session += 2;
                }
            });
        }
        for round in 0..12 {
            let component = if round % 2 == 0 { faulty_plugin("ok").component } else { first_plugin() };
            generations.start_rollout(plugin(component), Mode::Shadow).expect("it can be tried");
            generations.set_mode(canary(50.0)).expect("it moves on");
            match round % 3 {
                0 => generations.abort("a test").expect("it runs"),
                _ => generations.promote().expect("it runs"),
            };
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").expect("Linux tells it");
    let pages = status.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number");
    pages * 4096
}

#[test]
fn a_thousand_swaps_and_rollouts_leave_no_memory_behind() {
    let generations = start(chain_of(Slot::Score, first()));
    let round = |round: u64| {
        let component = if round.is_multiple_of(2) { faulty_plugin("ok").component } else { first_plugin() };
        if round.is_multiple_of(10) {
            generations.start_rollout(plugin(component), Mode::Shadow).expect("it can be tried");
            route(&pin(&generations, round), 7);
            generations.promote().expect("it runs");
        } else {
            generations.replace_plugin("it", component, "round".to_owned()).expect("it can be swapped in");
        }
        route(&pin(&generations, round), 7);
    };
    // Pools, caches and the way back fill up first.
    (0..200).for_each(round);
    let before = resident_bytes();
    (200..1_200).for_each(round);
    let grown = resident_bytes().saturating_sub(before);
    // One generation is 300 KiB and more: a thousand of them would be hundreds of MiB. Other tests of this process
    // run beside this one and take some.
    assert!(grown < 96 << 20, "{} MiB more after 1,000 swaps", grown >> 20);
    let _shared = runtime();
}
