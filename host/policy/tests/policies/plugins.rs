//! The plugins that come with the host, as components.

use crate::support::{Route, Schedule, faulty_plugin, frame, observe, runtime, start};
use pointsman_sdk::testing::RouteCase;
use policy::{
    CATALOGUE, ChainSpec, Effort, Frame, Hints, HintsView, OBSERVE_OUTCOME, ObserveView, Slot, Table, Way,
    builtin_plugin, default_chain,
};

#[test]
fn every_plugin_of_the_catalogue_answers_the_slot_in_its_name() {
    let names = CATALOGUE.iter().map(|(name, _)| *name);
    let plugins = names.map(|name| (name.to_owned(), builtin_plugin(name).expect("it is built in")));
    let generations = start(ChainSpec { plugins: plugins.collect(), ..ChainSpec::default() });
    assert_eq!(generations.plugins().len(), CATALOGUE.len());
    for plugin in generations.plugins() {
        assert_eq!(plugin.component, plugin.name);
        let slots: &[Slot] = match plugin.name.split('-').next() {
            Some("admit") => &[Slot::Admit],
            Some("hints") => &[Slot::Hints],
            Some("route") => &[Slot::Filter, Slot::Score, Slot::Pick, Slot::Route],
            Some("pick") => &[Slot::Pick],
            Some("schedule") => &[Slot::Schedule],
            Some("retain") => &[Slot::Retain],
            other => panic!("no slot is called {other:?}"),
        };
        let answers = slots.iter().any(|slot| plugin.slots.contains(slot));
        assert!(answers, "{} answers one of {slots:?}", plugin.name);
    }
}

#[test]
fn the_default_chain_weighs_overlap_against_load() {
    let generations = start(default_chain());
    let route = Route::new(&[0.0; 3], frame(1))
        .number("overlap_tokens", &[0.0, 900.0, 0.0])
        .number("queued_tokens", &[500.0, 500.0, 0.0]);
    let decision = generations.active().route(Way::default(), &route.view()).expect("a decision");
    assert_eq!((decision.candidate, &*decision.decided_by), (1, "pick-max-score"));
    let route = route.number("overlap_tokens", &[0.0, 100.0, 0.0]);
    assert_eq!(generations.active().route(Way::default(), &route.view()).expect("a decision").candidate, 2);
}

#[test]
fn a_session_returns_to_the_worker_that_served_it() {
    let generations = start(default_chain());
    let mut route = Route::new(&[0.0; 4], frame(1));
    route.request.ids_mut(0)[0] = 77;
    observe(&generations, frame(1), &[(3, 77)]);
    let decision = generations.active().route(Way::default(), &route.view()).expect("a decision");
    assert_eq!(decision.candidate, 2, "worker 3 is in row 2: {decision:?}");
}

#[test]
fn hints_of_a_caller_become_typed() {
    let generations = start(default_chain());
    let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let headers = [text("x-claude-code-session-id", "s1"), text("x-claude-code-request-class", "subagent")];
    let extensions = [text("nvext", r#"{"agent_hints":{"priority":5,"osl":80}}"#)];
    let view = HintsView {
        frame: frame(1),
        protocol: "anthropic-messages",
        headers: &headers,
        extensions: &extensions,
        prompt_tokens: 10,
        output_tokens_max: None,
    };
    let decision = generations.active().hints(Way::default(), &view, Hints::default()).expect("hints");
    assert_eq!(decision.by.len(), 1);
    assert_eq!(decision.hints.session.as_deref(), Some("s1"));
    assert_eq!(decision.hints.class.as_deref(), Some("subagent"));
    assert_eq!(decision.hints.priority, Some(5.0));
    assert_eq!(decision.hints.expected_output_tokens, Some(80));
}

#[test]
fn each_worker_has_a_scheduler_of_its_own() {
    let generations = start(default_chain());
    let mut schedule = Schedule::new(3, Frame { now_ms: 1_000, seed: 1 });
    // Strict tiers: the last arrival has the highest.
    schedule.waiting.numbers_mut(6).copy_from_slice(&[0.0, 0.0, 2.0]);
    for worker in [0, 1] {
        let decision = generations.active().schedule(worker, &schedule.view());
        assert_eq!((decision.plan.order[0], &*decision.decided_by), (2, "schedule-agent-priority"));
    }
    let beyond = generations.active().schedule(7, &schedule.view());
    assert_eq!((beyond.plan.order, &*beyond.decided_by), (vec![0, 1, 2], policy::BUILTIN));
}

#[test]
fn a_plugin_decides_the_same_natively_and_in_the_sandbox() {
    let spec = ChainSpec {
        plugins: [("it".to_owned(), builtin_plugin("route-least-load").expect("it is built in"))].into(),
        score: vec![("it".to_owned(), 1.0)],
        ..ChainSpec::default()
    };
    let generations = start(spec);
    for seed in 0..50u32 {
        let rows = 1 + (seed as usize % 7);
        let cells = |salt: u32| -> Vec<f32> {
            (0..rows as u32).map(|row| ((seed * 31 + row * 17 + salt) % 97) as f32).collect()
        };
        let (queued, active) = (cells(1), cells(2));
        let route = Route::new(&vec![0.0; rows], frame(1));
        let route = route.number("queued_tokens", &queued).number("active_tokens", &active);
        let case =
            RouteCase::new(rows).candidates("queued_tokens", &queued).candidates("active_tokens", &active);
        let mut native = pointsman_sdk::testing::policy::<route_least_load::LeastLoad>("{}");
        let decision = generations.active().route(Way::default(), &route.view()).expect("a decision");
        assert_eq!(Some(decision.scores), case.score(&mut native), "seed {seed}");
    }
}

/// The SDK names the same columns as the host.
#[test]
fn host_and_sdk_agree_on_the_columns() {
    let check = |host: &policy::Schema, sdk: pointsman_sdk::Columns| {
        assert_eq!((host.numbers, host.ids), (sdk.numbers, sdk.ids));
    };
    check(&policy::REQUEST, pointsman_sdk::REQUEST);
    check(&policy::ADMIT_FLEET, pointsman_sdk::FLEET);
    check(&policy::RETAIN_CACHE, pointsman_sdk::CACHE);
    check(&policy::RETAIN_SEGMENT, pointsman_sdk::SEGMENT);
    check(&policy::ROUTE_CANDIDATE, pointsman_sdk::CANDIDATE);
    check(&policy::SCHEDULE_BUDGET, pointsman_sdk::BUDGET);
    check(&policy::SCHEDULE_SEQUENCE, pointsman_sdk::SEQUENCE);
    check(&policy::OBSERVE_OUTCOME, pointsman_sdk::OUTCOME);
}

/// A bandit, as a component: outcomes teach it whom to score.
#[test]
fn the_bandit_learns_which_worker_answers_in_time() {
    let name = "route-thompson".to_owned();
    let spec = ChainSpec {
        plugins: [(name.clone(), builtin_plugin(&name).expect("it is built in"))].into(),
        score: vec![(name, 1.0)],
        ..ChainSpec::default()
    };
    let generations = start(spec);
    for (worker, ttft_ms) in [(1, 900.0), (2, 20.0)] {
        let mut outcomes = Table::new(&OBSERVE_OUTCOME, 30);
        outcomes.numbers_mut(1).fill(ttft_ms);
        outcomes.ids_mut(0).fill(worker);
        let view = ObserveView { frame: frame(1), outcomes: &outcomes };
        generations.active().observe(Way::default(), &view);
    }
    let quick = (1..=100).filter(|seed| {
        let route = Route::new(&[0.0; 2], frame(*seed));
        let decision = generations.active().route(Way::default(), &route.view()).expect("a decision");
        route.candidates.ids(0)[decision.candidate] == 2
    });
    assert!(quick.count() > 95, "it still sends requests to the worker that is late");
}

/// What `plugin check` asks of a stranger, asked of those that come with the host; and one that breaks a law is named.
#[test]
fn every_plugin_of_the_catalogue_passes_its_examination() {
    let effort = Effort { cases: 30, calls: 3 };
    for (name, _) in CATALOGUE {
        let spec = builtin_plugin(name).expect("it is built in");
        let found = policy::examine(&runtime(), name, &spec, effort).expect("it starts");
        assert!(found.is_lawful(), "{name}: {:?}", found.laws);
        assert!(!found.costs.is_empty() && found.fresh_us_p50 > 0.0, "{name}");
    }
    let found =
        policy::examine(&runtime(), "faulty", &faulty_plugin("wrong_length"), effort).expect("it starts");
    assert!(!found.is_lawful(), "an answer of the wrong length passed: {:?}", found.laws);
}
