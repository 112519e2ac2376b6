//! Logs and replays: what was decided is decided again, bit for bit, or it is said why not.

use crate::support::{Route, Schedule, deadline, faulty_plugin, first_plugin, runtime, tally_component};
use policy::{
    ADMIT_FLEET, AdmitView, ChainSpec, Event, Frame, Generations, OBSERVE_OUTCOME, ObserveView, PluginSpec,
    REQUEST, RecordConfig, RecordError, Recorder, Replay, ReplayReport, ReplayVerdict, Runtime, Slot,
    Subject, Table, Value, builtin_plugin, default_chain,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

/// The sandbox of all replays here.
static FUEL: LazyLock<Arc<Runtime>> = LazyLock::new(|| Replay::runtime().expect("the sandbox starts"));
const NOW_MS: u64 = 1_700_000_000_000;

fn tally(config: serde_json::Value) -> PluginSpec {
    PluginSpec { config, ..PluginSpec::new(tally_component(), "test") }
}

/// The plugins that come with the host, and one whose answers follow from all that it was asked before.
fn chain(tally: PluginSpec) -> ChainSpec {
    let mut chain = default_chain();
    chain.hints.clear();
    chain.plugins.remove("hints-agent");
    chain.plugins.insert("tally".to_owned(), tally);
    chain.score.push(("tally".to_owned(), 1.0));
    chain.admit.push("tally".to_owned());
    chain
}

fn start(chain: ChainSpec) -> Arc<Generations> {
    Generations::start(runtime(), chain, 2).expect("the chain can be prepared")
}

/// One request's decisions and outcome, and a plan of each worker. All is made from the number alone.
fn turn(generations: &Generations, number: u64, seed: u64) {
    let frame = Frame { now_ms: NOW_MS + number * 7, seed };
    let pin = generations.pin(&Subject::default());
    let mut route = Route::new(&[1.0, (number % 5) as f32, 2.0], frame);
    route.request.numbers_mut(0)[0] = 500.0 + number as f32;
    route.request.ids_mut(0)[0] = number % 17 + 1;
    let attributes = vec![
        ("gold".to_owned(), Value::Number(number as f64 / 3.0)),
        ("plan".to_owned(), Value::Text(format!("plan {}", number % 3))),
    ];
    route.request.set_attributes(0, attributes.into());
    let overlap = [0.0, (number % 200) as f32, 64.0];
    let route = route.number("overlap_tokens", &overlap);
    let fleet = Table::new(&ADMIT_FLEET, 1);
    // A plugin that fails and may not be replaced is part of what can be decided.
    let _ = pin.admit(&AdmitView { frame, request: &route.request, fleet: &fleet });
    let chosen = pin.route(&route.view()).map_or(0, |decision| decision.candidate);
    for worker in 0..2 {
        generations.schedule(worker, &Schedule::new((number % 6) as usize, frame).view());
    }
    let mut outcomes = Table::new(&OBSERVE_OUTCOME, 1);
    outcomes.numbers_mut(0)[0] = Event::Finished as u8 as f32;
    outcomes.ids_mut(0)[0] = chosen as u64 + 1;
    outcomes.ids_mut(1)[0] = number % 17 + 1;
    pin.observe(&ObserveView { frame, outcomes: &outcomes });
}

fn turns(generations: &Generations, numbers: std::ops::Range<u64>) {
    numbers.for_each(|number| turn(generations, number, number + 1));
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("there is a place for temporary files")
}

fn record(generations: &Generations, folder: &Path, decide: impl FnOnce()) {
    let recorder = Recorder::start(generations, RecordConfig::new(folder)).expect("it starts");
    decide();
    let status = recorder.stop(generations);
    assert_eq!((status.dropped, status.error.as_deref()), (0, None));
    assert!(status.records > 0 && !status.on);
}

fn replay(log: &Path) -> ReplayReport {
    Replay::of_recorded(FUEL.clone(), BTreeMap::new()).run(log).expect("the log can be replayed")
}

fn replay_with(log: &Path, name: &str, component: Arc<[u8]>) -> Result<ReplayReport, policy::ReplayError> {
    let plugins = BTreeMap::from([(name.to_owned(), (component, "elsewhere".to_owned()))]);
    Replay::of_recorded(FUEL.clone(), plugins).run(log)
}

#[track_caller]
fn identical(report: &ReplayReport, decisions: u64) {
    assert_eq!(report.comparison.decisions(), decisions, "{report}");
    assert_eq!(report.verdict(), ReplayVerdict::Identical, "{report}");
    assert_eq!(report.states_equal, report.states_checked, "{report}");
}

#[test]
fn a_log_from_the_start_is_replayed_bit_for_bit() {
    let generations = start(chain(tally(serde_json::json!({ "export": false, "store": true }))));
    let folder = folder();
    record(&generations, folder.path(), || turns(&generations, 0..150));
    let report = replay(folder.path());
    identical(&report, 150 * 4);
    assert!(report.unknown.is_empty() && report.notes.is_empty(), "{report}");
    assert_eq!(report.passes(true), Ok(()));
    assert!(report.comparison.route.hit_tokens[0] > 0);
    assert!(report.calls.iter().all(|call| call.fuel > 0), "{report}");
    let text = |report: &ReplayReport| {
        let mut json = serde_json::to_value(report).expect("plain data");
        for call in json["calls"].as_array_mut().expect("a list") {
            call["time_us"] = serde_json::Value::Null;
        }
        json
    };
    assert_eq!(text(&report), text(&replay(folder.path())), "two runs say the same");
}

#[test]
fn a_log_that_begins_warm_goes_on_from_the_exported_states() {
    let generations = start(chain(tally(serde_json::json!({ "store": true }))));
    turns(&generations, 0..40);
    let folder = folder();
    record(&generations, folder.path(), || turns(&generations, 40..140));
    let report = replay(folder.path());
    // The plugin that learns sessions exports no state; its answers are the same only by what it learns again.
    assert!(report.states_checked > 0 && report.states_equal == report.states_checked, "{report}");
    let mut chain = chain(tally(serde_json::json!({ "store": true })));
    chain.plugins.remove("route-session-affinity");
    chain.score.retain(|(name, _)| name != "route-session-affinity");
    let generations = start(chain);
    turns(&generations, 0..40);
    let other = self::folder();
    record(&generations, other.path(), || turns(&generations, 40..140));
    identical(&replay(other.path()), 100 * 4);
}

#[test]
fn a_warm_plugin_without_state_is_not_blamed() {
    let generations = start(chain(tally(serde_json::json!({ "export": false }))));
    turns(&generations, 0..10);
    let folder = folder();
    record(&generations, folder.path(), || turns(&generations, 10..60));
    let report = replay(folder.path());
    assert!(matches!(report.verdict(), ReplayVerdict::Unknown(answers) if answers > 0), "{report}");
    assert!(report.unknown["tally"].contains("exports no state"), "{report}");
    assert_eq!(report.passes(false), Ok(()));
    assert!(report.passes(true).is_err());
}

#[test]
fn faults_and_breakers_are_replayed() {
    for fault in ["trap", "nan", "wrong_length"] {
        let mut chain = chain(tally(serde_json::json!({})));
        chain.plugins.insert("faulty".to_owned(), faulty_plugin(fault));
        chain.score.push(("faulty".to_owned(), 1.0));
        let generations = start(chain);
        let folder = folder();
        // It behaves where the seed is 0: faults come one by one, and in rows that open its breaker.
        let seed = |number: u64| if number % 13 < 6 { 0 } else { number };
        record(&generations, folder.path(), || (0..80).for_each(|it| turn(&generations, it, seed(it))));
        let report = replay(folder.path());
        identical(&report, 80 * 4);
        assert!(report.broken_laws() > 0, "{report}");
        assert!(report.comparison.route.fell_back[0] > 0, "{report}");
        assert!(report.passes(false).is_err());
    }
}

#[test]
fn a_missed_deadline_is_missed_again() {
    let mut chain = chain(tally(serde_json::json!({})));
    let looping = PluginSpec { limits: deadline(2), ..faulty_plugin("loop") };
    chain.plugins.insert("faulty".to_owned(), looping);
    chain.score.push(("faulty".to_owned(), 1.0));
    let generations = start(chain);
    let folder = folder();
    let seed = |number: u64| if number % 4 < 3 { 0 } else { number };
    record(&generations, folder.path(), || (0..16).for_each(|it| turn(&generations, it, seed(it))));
    let report = replay(folder.path());
    identical(&report, 16 * 4);
    assert!(report.missed_again >= 4, "{report}");
    assert_eq!(report.broken_laws(), 0, "a clock is no law: {report}");
}

#[test]
fn a_refusal_is_replayed() {
    let mut chain = chain(tally(serde_json::json!({})));
    let trapping = PluginSpec { on_failure: policy::OnFailure::Reject, ..faulty_plugin("trap") };
    chain.plugins.insert("faulty".to_owned(), trapping);
    chain.score.push(("faulty".to_owned(), 1.0));
    let generations = start(chain);
    let folder = folder();
    record(&generations, folder.path(), || (0..20).for_each(|it| turn(&generations, it, it % 4)));
    let report = replay(folder.path());
    identical(&report, 20 * 4);
    assert!(report.comparison.route.refused[0] > 0, "{report}");
}

#[test]
fn another_scorer_agrees_less_and_breaks_no_law() {
    let generations = start(chain(tally(serde_json::json!({}))));
    let folder = folder();
    record(&generations, folder.path(), || turns(&generations, 0..100));
    let report = replay_with(folder.path(), "tally", tally_component()).expect("the same");
    assert!(report.as_recorded);
    identical(&report, 400);

    let mut same_slots = chain(tally(serde_json::json!({})));
    same_slots.score = vec![("first".to_owned(), 1.0)];
    same_slots.plugins.insert("first".to_owned(), PluginSpec::new(first_plugin(), "test"));
    let other = Replay::of_chain(FUEL.clone(), "another".to_owned(), same_slots);
    let report = other.run(folder.path()).expect("it can decide");
    assert!(report.comparison.route.agreed < 100 && report.broken_laws() == 0, "{report}");
    assert_ne!(report.comparison.route.hit_tokens[0], report.comparison.route.hit_tokens[1]);
    assert!(matches!(report.verdict(), ReplayVerdict::Different(_)));
    assert_eq!(report.passes(false), Ok(()));
    assert!(report.passes(true).is_err());
    assert!(report.to_string().contains("counterfactual"), "{report}");
}

#[test]
fn a_replaced_component_is_compared_and_a_broken_one_is_named() {
    let mut chain = chain(tally(serde_json::json!({})));
    chain.plugins.remove("tally");
    chain.score.retain(|(name, _)| name != "tally");
    chain.admit.clear();
    let generations = start(chain);
    let folder = folder();
    record(&generations, folder.path(), || turns(&generations, 0..60));
    let report = replay_with(folder.path(), "route-least-load", first_plugin()).expect("it can decide");
    assert!(!report.as_recorded && report.broken_laws() == 0, "{report}");
    assert!(report.comparison.route.identical < 60, "{report}");
    assert!(report.against.contains("route-least-load from elsewhere"), "{report}");

    let error =
        replay_with(folder.path(), "route-least-load", Arc::from(*b"no component")).expect_err("junk");
    assert!(error.to_string().contains("route-least-load"), "{error}");
    let error = replay_with(folder.path(), "nobody", first_plugin()).expect_err("unknown");
    assert!(error.to_string().contains("nobody") && error.to_string().contains("pick-max-score"), "{error}");

    let mut trapping = default_chain();
    trapping.plugins.insert("faulty".to_owned(), faulty_plugin("trap"));
    trapping.score.push(("faulty".to_owned(), 1.0));
    let report = Replay::of_chain(FUEL.clone(), "trapping".to_owned(), trapping).run(folder.path());
    let report = report.expect("it can be prepared");
    assert!(report.broken_laws() > 0 && report.passes(false).is_err(), "{report}");
}

#[test]
fn decisions_of_many_threads_and_swaps_between_them_are_replayed() {
    let generations = start(chain(tally(serde_json::json!({ "store": true }))));
    let folder = folder();
    record(&generations, folder.path(), || {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let generations = &generations;
                scope.spawn(move || turns(generations, thread * 1000..thread * 1000 + 60));
            }
            let least_load = builtin_plugin("route-least-load").expect("it is built in").component;
            for component in [first_plugin(), least_load] {
                let swap = generations.replace_plugin("route-least-load", component, "swap".to_owned());
                swap.expect("it can be swapped in");
                turns(&generations, 5000..5010);
            }
            generations.rollback().expect("there is one before");
        });
        turns(&generations, 6000..6010);
    });
    identical(&replay(folder.path()), (4 * 60 + 30) * 4);
}

#[test]
fn a_recording_that_begins_among_decisions_begins_with_a_whole_state() {
    let mut chain = chain(tally(serde_json::json!({ "store": true })));
    chain.plugins.remove("route-session-affinity");
    chain.score.retain(|(name, _)| name != "route-session-affinity");
    let generations = start(chain);
    let folder = folder();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let generations = &generations;
            scope.spawn(move || turns(generations, thread * 1000..thread * 1000 + 600));
        }
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(10));
            let config = RecordConfig::new(folder.path());
            let recorder = Recorder::start(&generations, config).expect("it starts");
            std::thread::sleep(std::time::Duration::from_millis(10));
            recorder.stop(&generations);
        }
    });
    let report = replay(folder.path());
    assert_eq!(report.verdict(), ReplayVerdict::Identical, "{report}");
    assert!(report.states_checked > 0 && report.states_equal == report.states_checked, "{report}");
}

#[test]
fn files_rotate_within_their_total_and_each_replays_alone() {
    let mut chain = chain(tally(serde_json::json!({})));
    chain.plugins.remove("route-session-affinity");
    chain.score.retain(|(name, _)| name != "route-session-affinity");
    let generations = start(chain);
    let folder = folder();
    let config = RecordConfig {
        file_bytes_max: policy::FILE_BYTES_MIN,
        total_bytes_max: 3 * policy::FILE_BYTES_MIN,
        ..RecordConfig::new(folder.path())
    };
    let recorder = Recorder::start(&generations, config.clone()).expect("it starts");
    turns(&generations, 0..700);
    let status = recorder.stop(&generations);
    assert_eq!(status.dropped, 0);
    assert!(status.files > 4, "{status:?}");
    let mut files: Vec<_> = std::fs::read_dir(folder.path())
        .expect("it is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "plog"))
        .collect();
    files.sort();
    let size = |path: &std::path::PathBuf| path.metadata().expect("it is there").len();
    assert!(files.iter().all(|path| size(path) <= config.file_bytes_max));
    assert!(files.iter().map(size).sum::<u64>() <= config.total_bytes_max);
    assert!(!files[0].ends_with("decisions-000001.plog"), "the oldest left: {files:?}");
    let each: Vec<ReplayReport> = files.iter().map(|file| replay(file)).collect();
    each.iter().for_each(|report| assert_eq!(report.verdict(), ReplayVerdict::Identical, "{report}"));
    let all = replay(folder.path());
    identical(&all, each.iter().map(|report| report.comparison.decisions()).sum());
    assert!(all.notes.is_empty(), "{all}");

    // A cut file is replayed up to the cut, and says so.
    let last = files.last().expect("there are files");
    let bytes = std::fs::read(last).expect("it can be read");
    std::fs::write(last, &bytes[..bytes.len() - 40]).expect("it can be written");
    let report = replay(last);
    assert_eq!(report.verdict(), ReplayVerdict::Identical, "{report}");
    assert!(report.notes.iter().any(|note| note.contains("cut off")), "{report}");
}

#[test]
fn what_cannot_be_recorded_or_replayed_is_refused_with_the_reason() {
    let generations = start(ChainSpec::default());
    let folder = folder();
    let config = RecordConfig::new(folder.path());
    let refused = |config: RecordConfig| Recorder::start(&generations, config).err().map(|it| it.to_string());
    let hints = RecordConfig { slots: vec![Slot::Hints], ..config.clone() };
    assert!(refused(hints).expect("refused").contains("`hints`"));
    assert!(refused(RecordConfig { file_bytes_max: 10, ..config.clone() }).expect("refused").contains("10"));
    let small = RecordConfig { total_bytes_max: config.file_bytes_max, ..config.clone() };
    assert!(refused(small).expect("refused").contains("twice"));
    let file = folder.path().join("file");
    std::fs::write(&file, "x").expect("it can be written");
    let inside = RecordConfig::new(file.join("log"));
    assert!(matches!(Recorder::start(&generations, inside), Err(RecordError::Folder { .. })));

    let run = |log: &Path| Replay::of_recorded(FUEL.clone(), BTreeMap::new()).run(log);
    assert!(run(&file).expect_err("no log").to_string().contains("does not begin as a log"));
    assert!(run(folder.path()).expect_err("empty").to_string().contains("no decisions-"));
    assert!(run(&folder.path().join("absent")).expect_err("absent").to_string().contains("absent"));
}

#[test]
fn slots_that_are_left_out_are_told_apart_from_divergence() {
    let generations = start(chain(tally(serde_json::json!({}))));
    let folder = folder();
    let slots = vec![Slot::Route];
    let config = RecordConfig { slots, ..RecordConfig::new(folder.path()) };
    let recorder = Recorder::start(&generations, config).expect("it starts");
    turns(&generations, 0..30);
    recorder.stop(&generations);
    let report = replay(folder.path());
    assert_eq!(report.comparison.decisions(), 30);
    assert!(matches!(report.verdict(), ReplayVerdict::Unknown(_)), "{report}");
    assert!(report.unknown["tally"].contains("`admit`"), "{report}");
}

#[test]
fn a_request_table_has_what_the_contract_says() {
    // The turns above set these columns by place.
    assert_eq!((REQUEST.numbers[0], REQUEST.ids[0]), ("prompt_tokens", "session"));
    assert_eq!((OBSERVE_OUTCOME.ids[0], OBSERVE_OUTCOME.ids[1]), ("worker", "session"));
}
