//! Slots besides `route` and `schedule`: their policies decide in a simulation what they decide in a host.

use policy::{Match, NamedChain, PluginSpec, builtin_plugin};
use serde_json::{Value, json};

use super::*;

/// A chain of built-in plugins with their configuration, put into slots.
fn chain(plugins: &[(&str, Value)], place: impl FnOnce(&mut ChainSpec)) -> Chain {
    let mut spec = ChainSpec::default();
    for (name, config) in plugins {
        let plugin = PluginSpec { config: config.clone(), ..builtin_plugin(name).unwrap() };
        spec.plugins.insert((*name).to_owned(), plugin);
    }
    place(&mut spec);
    Chain::new("tried", spec, 8).unwrap()
}

/// One that says what is worth keeping.
pub(super) static RETAINS: LazyLock<Chain> = LazyLock::new(|| {
    chain(&[("retain-expected-reuse", Value::Null)], |spec| {
        spec.retain = Some("retain-expected-reuse".into())
    })
});

/// A workload of so many requests that all come at once and share nothing.
fn crowd(name: &str, requests: u32, hints: CallerHints) -> Workload {
    let rows: Vec<(f64, u32, u32, &[u64])> = (0..requests).map(|_| (0.0, 160, 4, &[] as &[u64])).collect();
    Workload { name: name.into(), hints, ..workload(trace(&rows), RECORDED) }
}

#[test]
fn a_plugin_makes_hints_of_the_headers_and_extensions_of_a_scenario() {
    let header = |name: &str, text: &str| vec![(name.to_owned(), text.to_owned())];
    let urgent = |hints: CallerHints| [crowd("many", 12, CallerHints::default()), crowd("one", 1, hints)];
    let slots = |spec: &mut ChainSpec| {
        spec.hints.push("hints-agent".into());
        spec.schedule = Some("schedule-agent-priority".into());
    };
    let plugins = [("hints-agent", Value::Null), ("schedule-agent-priority", Value::Null)];
    let (deaf, hears) = (
        chain(&plugins[1..], |spec| spec.schedule = Some("schedule-agent-priority".into())),
        chain(&plugins, slots),
    );
    let narrow = Setup { step_tokens_max: 160, step_rows_max: 2, ..setup(1) };
    let first_ms = |chain: &Chain, hints: CallerHints| {
        let w = urgent(hints);
        simulate(&narrow, &w, chain).unwrap().summary(&w, Some(1)).ttft_ms.mean
    };
    let by_header =
        CallerHints { headers: header("x-dynamo-request-priority", "30"), ..CallerHints::default() };
    let by_body = CallerHints {
        extensions: header("nvext", r#"{"agent_hints":{"priority":30}}"#),
        ..CallerHints::default()
    };
    let last = first_ms(&hears, CallerHints::default());
    assert_eq!(first_ms(&deaf, by_header.clone()), last, "nobody reads headers, so that it comes last");
    for urgent in [by_header, by_body] {
        assert!(first_ms(&hears, urgent) < last / 2.0, "{last}");
    }
}

#[test]
fn a_plugin_has_requests_wait_at_the_door_and_sends_them_away() {
    let config = json!({ "default": { "requests_per_minute": 0, "running_max": 1 }, "wait_ms_max": 100_000 });
    let quota = chain(&[("admit-tenant-quota", config)], |spec| spec.admit.push("admit-tenant-quota".into()));
    let tenant = |name: &str| CallerHints { tenant: name.into(), ..CallerHints::default() };
    let w = [crowd("a", 5, tenant("a")), crowd("b", 2, tenant("b"))];
    let results = simulate(&setup(1), &w, &quota).unwrap();
    assert_eq!(results.summary(&w, None).answered, 7);
    for workload in 0..2 {
        let mut ends: Vec<(f64, f64)> = results
            .calls
            .iter()
            .filter(|call| call.workload == workload)
            .map(|call| {
                let first = call.first.unwrap().ms();
                (first, call.done.ms())
            })
            .collect();
        ends.sort_by(|one, other| one.0.total_cmp(&other.0));
        assert!(ends.windows(2).all(|two| two[0].1 <= two[1].0), "one of a tenant at a time: {ends:?}");
    }
    let limits = DoorLimits { deferred_max: 2, defer_ms_max: 25, ..DoorLimits::default() };
    let strict = simulate(&Setup { door: limits, ..setup(1) }, &w, &quota).unwrap().summary(&w, None);
    // Of each tenant one comes in at once. Two wait, and are let in within their 25 ms, or not at all.
    assert_eq!((strict.answered + strict.rejected, strict.rejected >= 3), (7, true), "{strict:?}");
    let full = DoorLimits { requests_max: 4, ..DoorLimits::default() };
    let full = run(&Setup { door: full, ..setup(1) }, &w).summary(&w, None);
    assert_eq!((full.answered, full.rejected), (4, 3), "a bound of the house needs no plugin");
}

#[test]
fn of_several_chains_that_of_the_caller_decides() {
    let config = json!({ "default": { "requests_per_minute": 0, "running_max": 1 }, "wait_ms_max": 100_000 });
    let strict = chain(&[("admit-tenant-quota", config)], |spec| {
        spec.named.push(NamedChain {
            name: "strict".into(),
            matches: Match { tenants: vec!["a*".into()], ..Match::default() },
            middleware: vec![],
            hints: vec![],
            admit: vec!["admit-tenant-quota".into()],
            filter: vec![],
            score: vec![],
            pick: None,
            route: None,
        });
    });
    let tenant = |name: &str| CallerHints { tenant: name.into(), ..CallerHints::default() };
    let w = [crowd("a", 3, tenant("acme")), crowd("b", 3, tenant("bolt"))];
    let results = simulate(&setup(1), &w, &strict).unwrap();
    let firsts = |workload: u16| {
        let own = results.calls.iter().filter(move |call| call.workload == workload);
        own.map(|call| call.first.unwrap()).collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!((firsts(0), firsts(1)), (3, 1), "one at a time, and all at once");
}

/// Conversations that go on for long, and others that never do, in a cache that holds few of them.
fn returning() -> [Workload; 1] {
    let mut builder = Builder::new("t", BLOCK);
    let told = || Session { parent: None, is_named: true };
    let regulars = [0u64, 1].map(|_| builder.session(told()));
    for round in 0..30u64 {
        for (at, &session) in regulars.iter().enumerate() {
            let due_ms = round as f64 * 1000.0 + at as f64 * 20.0;
            let entry = Entry {
                session,
                due_ms,
                prompt_tokens: 320,
                output_tokens: 2,
                stop: trace::Stop::Tools,
                ..Entry::default()
            };
            builder.request(entry, (0..20).map(|block| (at as u64) << 32 | block));
        }
        for visitor in 0..3u64 {
            let session = builder.session(told());
            let due_ms = round as f64 * 1000.0 + 300.0 + visitor as f64 * 100.0;
            let entry = Entry {
                session,
                due_ms,
                prompt_tokens: 320,
                output_tokens: 2,
                stop: trace::Stop::Answer,
                ..Entry::default()
            };
            builder.request(entry, (0..20).map(|block| (1000 + round * 3 + visitor) << 32 | block));
        }
    }
    let hints = CallerHints { session_final: true, ..CallerHints::default() };
    [Workload { hints, ..workload(Arc::new(builder.finish()), RECORDED) }]
}

#[test]
fn a_plugin_says_what_of_a_cache_is_worth_keeping() {
    let w = returning();
    let retains = &*RETAINS;
    let reuse = |setup: &Setup, chain: &Chain| simulate(setup, &w, chain).unwrap().summary(&w, None).reuse;
    let small = Setup { blocks: 70, ..setup(1) };
    let (recent, kept) = (reuse(&small, &BUILTIN), reuse(&small, retains));
    assert_eq!(recent, 0.0, "three visitors push everybody out");
    assert!(kept > 0.3, "those who said that they are done go first: {kept}");
    // A host tier is told, too.
    let host = TierKind { tier: Tier::Host, blocks: 70, bytes_per_s: 25e9, latency_us: 20.0 };
    let cost = CostModel::linear(0.0, 1000.0, 10.0);
    let tiny = Setup { blocks: 25, tiers: vec![host], cost, ..small };
    let (recent, kept) = (reuse(&tiny, &BUILTIN), reuse(&tiny, retains));
    assert!(kept > recent + 0.05, "{recent} {kept}");
    assert_eq!(kept, reuse(&tiny, retains), "to the bit");
}
