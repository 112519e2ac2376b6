//! Swapping: whole, pinned, counted, and back again.

use crate::support::{
    Route, chain_of, count, faulty_plugin, first_plugin, frame, let_the_janitor_work, observe, runtime, start,
};
use policy::{
    BUILTIN, ChainSpec, GenerationId, GenerationState, Generations, Outcome, PluginSpec, PolicyMetric, Slot,
    Stage, Way,
};
use std::sync::atomic::{AtomicBool, Ordering};

fn first() -> PluginSpec {
    PluginSpec::new(first_plugin(), "test")
}

/// The candidate that the active generation takes of two: the first has the shorter queue.
fn choice(generations: &Generations) -> usize {
    let route = Route::new(&[0.0, 5.0], frame(7));
    generations.active().route(Way::default(), &route.view()).expect("a decision").candidate
}

/// Replaces the shortest-queue scorer by one that likes the last candidate best.
fn swap(generations: &Generations) -> GenerationId {
    let faulty = faulty_plugin("ok").component;
    generations.replace_plugin("it", faulty, "elsewhere".to_owned()).expect("it can be swapped in")
}

#[test]
fn an_empty_chain_decides_by_the_built_in_policies() {
    let generations = start(ChainSpec::default());
    let route = Route::new(&[0.0; 3], frame(1)).number("queued_tokens", &[900.0, 0.0, 900.0]);
    let decision = generations.active().route(Way::default(), &route.view()).expect("a decision");
    assert_eq!((decision.candidate, &*decision.decided_by, decision.fell_back), (1, BUILTIN, false));
    assert!(generations.plugins().is_empty());
}

#[test]
fn a_swap_acts_at_once_and_a_roll_back_undoes_it() {
    let generations = start(chain_of(Slot::Score, first()));
    assert_eq!(choice(&generations), 0);
    assert_eq!(swap(&generations), GenerationId(2));
    assert_eq!(choice(&generations), 1);
    assert_eq!(generations.rollback().expect("there is one before"), GenerationId(1));
    assert_eq!(choice(&generations), 0);
    let error = generations.rollback().expect_err("there is none before");
    assert_eq!((error.stage, error.plugin), (Stage::Fetched, None));
    assert_eq!(swap(&generations), GenerationId(3), "numbers are not used again");
}

#[test]
fn a_request_keeps_the_generation_that_it_began_with() {
    let generations = start(chain_of(Slot::Score, first()));
    let pinned = generations.active();
    swap(&generations);
    let route = Route::new(&[0.0, 5.0], frame(7));
    assert_eq!(pinned.route(Way::default(), &route.view()).expect("a decision").candidate, 0);
    assert_eq!(choice(&generations), 1);
    let history = generations.history();
    let state = |index: usize| (history[index].state, history[index].pinned_requests);
    assert_eq!(state(0), (GenerationState::Draining, 1));
    assert_eq!(state(1), (GenerationState::Active, 0));
    drop(pinned);
    assert_eq!(generations.history()[0].state, GenerationState::Ready);
}

#[test]
fn the_active_generation_counts_the_requests_that_hold_it() {
    let generations = start(chain_of(Slot::Score, first()));
    let held = [generations.active(), generations.active()];
    assert_eq!(generations.history()[0].pinned_requests, 2);
    drop(held);
    assert_eq!(generations.history()[0].pinned_requests, 0);
}

#[test]
fn a_generation_left_by_roll_back_is_retired_when_its_last_request_ends() {
    let generations = start(chain_of(Slot::Score, first()));
    swap(&generations);
    let pinned = generations.active();
    generations.rollback().expect("there is one before");
    assert_eq!(generations.history()[1].state, GenerationState::Draining);
    drop(pinned);
    assert_eq!(generations.history()[1].state, GenerationState::Retired);
}

#[test]
fn eight_generations_stay_ready_and_older_ones_are_retired() {
    let generations = start(chain_of(Slot::Score, first()));
    for round in 0..10 {
        let component = if round % 2 == 0 { faulty_plugin("ok").component } else { first_plugin() };
        generations.replace_plugin("it", component, format!("round {round}")).expect("it can be swapped in");
    }
    let states: Vec<_> = generations.history().iter().map(|report| report.state).collect();
    let of = |state| states.iter().filter(|it| **it == state).count();
    assert_eq!(of(GenerationState::Retired), 2);
    assert_eq!(of(GenerationState::Ready), 8);
    assert_eq!(of(GenerationState::Active), 1);
}

#[test]
fn a_plugin_that_did_not_change_keeps_what_it_learned() {
    let mut chain = chain_of(Slot::Score, first());
    chain.plugins.insert("learner".to_owned(), faulty_plugin("ok"));
    let generations = start(chain);
    let learned = || {
        let plugins = generations.plugins();
        let learner = plugins.iter().find(|plugin| plugin.name == "learner").expect("it is there");
        (learner.generation, learner.metrics.get("observed").copied())
    };
    observe(&generations, frame(0), &[(1, 1), (2, 2)]);
    assert_eq!(learned(), (GenerationId(1), Some(PolicyMetric::Gauge(2.0))));
    swap(&generations);
    observe(&generations, frame(0), &[(1, 1)]);
    assert_eq!(learned(), (GenerationId(1), Some(PolicyMetric::Gauge(3.0))));
}

#[test]
fn counters_of_a_name_never_fall() {
    let generations = start(chain_of(Slot::Score, first()));
    (0..3).for_each(|_| _ = choice(&generations));
    swap(&generations);
    (0..2).for_each(|_| _ = choice(&generations));
    assert_eq!(count(&generations, Slot::Score, Outcome::Ok), 5);
    generations.rollback().expect("there is one before");
    let_the_janitor_work();
    assert_eq!(count(&generations, Slot::Score, Outcome::Ok), 5);
    let report = &generations.plugins()[0];
    assert_eq!(report.calls[&Slot::Score].outcomes[&Outcome::Ok], 3, "a report counts its own component");
}

#[test]
fn an_unknown_plugin_is_not_replaced() {
    let generations = start(chain_of(Slot::Score, first()));
    let error = generations.replace_plugin("nobody", first_plugin(), String::new()).expect_err("unknown");
    assert_eq!((error.stage, error.plugin.as_deref()), (Stage::Fetched, Some("nobody")));
}

#[test]
fn reports_name_the_plugin_its_version_weight_and_digest() {
    let generations = start(chain_of(Slot::Score, first()));
    let json = serde_json::to_value(generations.history()).expect("plain data");
    let link = &json[0]["chains"]["score"][0];
    assert_eq!((&link["plugin"], &link["weight"]), (&"it".into(), &1.0.into()));
    assert_eq!(link["version"], env!("CARGO_PKG_VERSION"));
    let digest = link["digest"].as_str().expect("a text");
    assert_eq!((&digest[..7], digest.len()), ("sha256:", 7 + 64));
    let plugins = serde_json::to_value(generations.plugins()).expect("plain data");
    assert_eq!(plugins[0]["component"], "first-plugin");
    assert_eq!(plugins[0]["origin"], "test");
}

#[test]
fn a_pool_serves_many_threads_at_once() {
    let limits = policy::Limits { instances: 3, ..policy::Limits::default() };
    let generations = start(chain_of(Slot::Score, PluginSpec { limits, ..first() }));
    std::thread::scope(|scope| {
        (0..4).for_each(|_| {
            scope.spawn(|| (0..500).for_each(|_| assert_eq!(choice(&generations), 0)));
        });
    });
    assert_eq!(count(&generations, Slot::Score, Outcome::Ok), 2000);
}

#[test]
fn swapping_under_load_fails_nobody_and_mixes_nothing() {
    let generations = start(chain_of(Slot::Score, first()));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let generation = generations.active();
                    let route = Route::new(&[0.0, 5.0], frame(0));
                    let decisions =
                        [0; 3].map(|_| generation.route(Way::default(), &route.view()).expect("a decision"));
                    let expected = usize::from(generation.id().0.is_multiple_of(2));
                    assert!(decisions.iter().all(|it| it.candidate == expected && !it.fell_back));
                }
            });
        }
        for round in 0..40 {
            let component = if round % 2 == 0 { faulty_plugin("ok").component } else { first_plugin() };
            generations.replace_plugin("it", component, "round".to_owned()).expect("it can be swapped in");
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn instances_return_to_the_pool_when_generations_retire() {
    let generations = start(chain_of(Slot::Score, first()));
    // More generations than the pool has room for at once.
    for round in 0..1200 {
        let component = if round % 2 == 0 { faulty_plugin("ok").component } else { first_plugin() };
        if let Err(error) = generations.replace_plugin("it", component, "round".to_owned()) {
            panic!("round {round}: {error}");
        }
    }
    let _shared = runtime();
}
