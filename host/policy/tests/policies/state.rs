//! What outlives an instance: state carried over a swap, and the store of a plugin.

use crate::support::{Route, chain_of, frame, keeper, runtime, start};
use policy::{ChainSpec, Generations, Limits, PluginSpec, PolicyMetric, Setup, Slot, Way};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

/// A chain in which the keeper scores with these settings.
fn keeping(config: Value) -> ChainSpec {
    keeping_within(config, Limits::default())
}

fn keeping_within(config: Value, limits: Limits) -> ChainSpec {
    chain_of(Slot::Score, PluginSpec { config, limits, ..PluginSpec::new(keeper(), "test") })
}

/// Has the active generation decide so often.
fn ask(generations: &Generations, times: usize) {
    for _ in 0..times {
        let route = Route::new(&[0.0, 1.0], frame(1));
        let decision = generations.active().route(Way::default(), &route.view()).expect("a decision");
        assert!(!decision.fell_back);
    }
}

/// What the keeper says of itself; `None` before it was asked.
fn said(generations: &Generations, what: &str) -> Option<f64> {
    match generations.plugins()[0].metrics.get(what) {
        Some(PolicyMetric::Gauge(value)) => Some(*value),
        Some(PolicyMetric::Counter(_)) | None => None,
    }
}

/// Swaps in a keeper after four decisions: it goes on counting, or begins anew, and serves in any case.
fn check(old: ChainSpec, new: ChainSpec, carried: bool) {
    let generations = start(old);
    ask(&generations, 4);
    assert_eq!(said(&generations, "count"), Some(4.0));
    generations.apply(new).expect("it can be swapped in");
    ask(&generations, 1);
    let expected = if carried { 5.0 } else { 1.0 };
    assert_eq!(said(&generations, "count"), Some(expected));
    assert!(generations.rollback().is_ok());
    ask(&generations, 1);
    assert!(said(&generations, "count").is_some(), "the one before it still serves");
}

#[test]
fn a_count_goes_on_over_a_swap() {
    check(keeping(json!({})), keeping(json!({ "hoard_bytes": 1 })), true);
}

#[test]
fn a_state_as_large_as_the_limit_is_carried_and_a_larger_one_starts_cold() {
    // `[4,"…"]`: six bytes besides the padding.
    let limits = Limits { state_bytes_max: 100_006, ..Limits::default() };
    let new = || keeping_within(json!({}), limits);
    check(keeping(json!({ "padding_bytes": 100_000 })), new(), true);
    check(keeping(json!({ "padding_bytes": 100_001 })), new(), false);
    check(keeping(json!({ "padding_bytes": 5_000_000 })), new(), false);
}

#[test]
fn a_state_in_another_form_starts_cold() {
    check(keeping(json!({ "export": "foreign" })), keeping(json!({})), false);
}

#[test]
fn a_state_that_is_cut_off_starts_cold() {
    check(keeping(json!({ "export": "torn" })), keeping(json!({})), false);
}

#[test]
fn a_state_that_is_refused_starts_cold_and_leaves_nothing_behind() {
    check(keeping(json!({})), keeping(json!({ "import": "refuse" })), false);
}

#[test]
fn an_heir_that_traps_on_its_state_is_replaced_by_a_cold_one() {
    check(keeping(json!({})), keeping(json!({ "import": "panic" })), false);
}

#[test]
fn one_that_traps_when_it_gives_up_its_state_is_followed_by_a_cold_one() {
    check(keeping(json!({ "export": "panic" })), keeping(json!({})), false);
}

#[test]
fn a_component_without_state_has_none_to_give() {
    let first = PluginSpec::new(crate::support::first_plugin(), "test");
    let generations = start(chain_of(Slot::Score, first));
    generations.apply(keeping(json!({}))).expect("it can be swapped in");
    ask(&generations, 1);
    assert_eq!(said(&generations, "count"), Some(1.0));
}

#[test]
fn each_instance_inherits_from_its_own() {
    let limits = Limits { instances: 2, ..Limits::default() };
    let generations = start(keeping_within(json!({}), limits));
    // Calls take turns: two for each instance.
    ask(&generations, 4);
    assert_eq!((said(&generations, "count"), said(&generations, "stored")), (Some(2.0), Some(4.0)));
    generations.apply(keeping_within(json!({ "hoard_bytes": 1 }), limits)).expect("it can be swapped in");
    for stored in [5.0, 6.0] {
        ask(&generations, 1);
        assert_eq!((said(&generations, "count"), said(&generations, "stored")), (Some(3.0), Some(stored)));
    }
}

#[test]
fn more_instances_than_before_begin_with_the_state_of_the_first() {
    let generations = start(keeping(json!({})));
    ask(&generations, 4);
    let limits = Limits { instances: 3, ..Limits::default() };
    generations.apply(keeping_within(json!({}), limits)).expect("it can be swapped in");
    for _ in 0..3 {
        ask(&generations, 1);
        assert_eq!(said(&generations, "count"), Some(5.0));
    }
}

#[test]
fn trials_and_warm_ups_leave_no_trace_in_the_store() {
    let generations = start(keeping(json!({})));
    ask(&generations, 1);
    assert_eq!(said(&generations, "stored"), Some(1.0));
    generations.apply(keeping(json!({ "hoard_bytes": 1 }))).expect("it can be swapped in");
    ask(&generations, 1);
    assert_eq!(said(&generations, "stored"), Some(2.0));
}

#[test]
fn a_value_over_the_quota_is_refused_and_the_old_one_stays() {
    // `count` takes 13 bytes, `hoard` 5 and its value.
    let limits = |bytes| Limits { store_bytes_max: bytes, ..Limits::default() };
    let generations = start(keeping_within(json!({ "hoard_bytes": 100 }), limits(118)));
    ask(&generations, 2);
    let reading = |generations: &Generations| {
        ["refused", "hoard", "stored"].map(|what| said(generations, what).unwrap_or_default())
    };
    assert_eq!(reading(&generations), [0.0, 100.0, 2.0]);
    generations
        .apply(keeping_within(json!({ "hoard_bytes": 101 }), limits(118)))
        .expect("it can be swapped in");
    ask(&generations, 2);
    assert_eq!(reading(&generations), [1.0, 100.0, 4.0], "the old value is there, and other keys go on");
}

#[test]
fn a_store_without_room_is_refused_and_the_policy_serves() {
    let limits = Limits { store_bytes_max: 0, ..Limits::default() };
    let generations = start(keeping_within(json!({}), limits));
    ask(&generations, 3);
    assert_eq!(said(&generations, "stored"), Some(1.0), "nothing stays");
}

#[test]
fn a_generation_rolled_back_to_sees_its_own_store() {
    let generations = start(keeping(json!({})));
    ask(&generations, 3);
    generations.apply(keeping(json!({ "hoard_bytes": 1 }))).expect("it can be swapped in");
    ask(&generations, 5);
    assert_eq!(said(&generations, "stored"), Some(8.0), "it began with what was there");
    generations.rollback().expect("there is one before");
    ask(&generations, 1);
    assert_eq!(said(&generations, "stored"), Some(4.0), "nothing of the other's is in it");
}

/// Generations whose stores are kept in a folder.
fn start_in(folder: &std::path::Path, chain: ChainSpec) -> Arc<Generations> {
    let setup = Setup { workers: 1, store_folder: Some(PathBuf::from(folder)) };
    Generations::start_with(runtime(), chain, setup).expect("the chain can be prepared")
}

fn folder(test: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("pointsman-{test}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

#[test]
fn a_store_is_there_after_a_restart_and_within_its_quota() {
    let folder = folder("restart");
    let generations = start_in(&folder, keeping(json!({ "hoard_bytes": 100 })));
    ask(&generations, 3);
    generations.save_stores();
    drop(generations);
    let generations = start_in(&folder, keeping(json!({ "hoard_bytes": 100 })));
    ask(&generations, 1);
    assert_eq!((said(&generations, "stored"), said(&generations, "hoard")), (Some(4.0), Some(100.0)));
    generations.save_stores();
    // A smaller quota has room for the first keys only.
    let limits = Limits { store_bytes_max: 50, ..Limits::default() };
    let generations = start_in(&folder, keeping_within(json!({ "hoard_bytes": 100 }), limits));
    ask(&generations, 1);
    assert_eq!((said(&generations, "stored"), said(&generations, "hoard")), (Some(5.0), Some(0.0)));
    std::fs::remove_dir_all(folder).expect("it is the test's own");
}

#[test]
fn what_a_swap_carried_over_is_saved_although_nobody_wrote_since() {
    let folder = folder("swap");
    let generations = start_in(&folder, keeping(json!({})));
    ask(&generations, 3);
    // Not saved before the swap: only the new generation's store holds it now.
    generations.apply(keeping(json!({ "padding_bytes": 1 }))).expect("it can be swapped in");
    generations.save_stores();
    let generations = start_in(&folder, keeping(json!({})));
    ask(&generations, 1);
    assert_eq!(said(&generations, "stored"), Some(4.0));
    std::fs::remove_dir_all(folder).expect("it is the test's own");
}

#[test]
fn after_a_roll_back_the_folder_has_the_store_that_is_in_use() {
    let folder = folder("rollback");
    let generations = start_in(&folder, keeping(json!({})));
    ask(&generations, 3);
    generations.save_stores();
    generations.apply(keeping(json!({ "padding_bytes": 1 }))).expect("it can be swapped in");
    ask(&generations, 5);
    generations.save_stores();
    generations.rollback().expect("there is one before");
    generations.save_stores();
    let generations = start_in(&folder, keeping(json!({})));
    ask(&generations, 1);
    assert_eq!(said(&generations, "stored"), Some(4.0));
    std::fs::remove_dir_all(folder).expect("it is the test's own");
}
