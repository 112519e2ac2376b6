//! What a policy costs: one batched call, the default chain, and a call that never ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use policy::{
    Candidate, ChainSpec, Frame, Generation, Generations, Hints, HintsView, Limits, Mode, PluginSpec,
    REQUEST, ROUTE_CANDIDATE, RecordConfig, Recorder, RouteView, Runtime, RuntimeConfig, Slot, Subject,
    Table, Way, default_chain,
};

use crate::choices;
use crate::table::{Bar, head, median, quantile, row, us};

const TURNS: usize = 7;
const CALLS: u64 = 30_000;
const CANDIDATES: usize = 64;
/// Chosen: with a pause after each call a turn takes half a second.
const SHADOW_CALLS: u64 = 5_000;
/// Chosen: some thousand decisions a second, of three kilobytes each.
const PACED_CALLS: u64 = 2_000;
const PACE: Duration = Duration::from_micros(100);
/// Chosen: few enough that the breaker of a plugin that always fails stays closed for a generation each.
const LOOPS: usize = 15;
const DEADLINE: Duration = Duration::from_millis(2);

/// One decision's inputs.
struct Case {
    request: Table,
    candidates: Table,
    headers: Vec<(String, String)>,
    extensions: Vec<(String, String)>,
}

impl Case {
    fn new(rows: usize) -> Self {
        let mut request = Table::new(&REQUEST, 1);
        request.numbers_mut(0)[0] = 4000.0;
        request.ids_mut(0)[0] = 5;
        let mut candidates = Table::new(&ROUTE_CANDIDATE, rows);
        for column in 0..ROUTE_CANDIDATE.numbers.len() {
            for (i, cell) in candidates.numbers_mut(column).iter_mut().enumerate() {
                *cell = ((i * 37 + column * 11) % 97) as f32;
            }
        }
        for (i, cell) in candidates.ids_mut(0).iter_mut().enumerate() {
            *cell = i as u64 + 1;
        }
        let owned = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        Self {
            request,
            candidates,
            headers: vec![
                owned("x-claude-code-session-id", "6b1b1b1b-aaaa-bbbb-cccc-121212121212"),
                owned("x-claude-code-agent-id", "agent-1"),
            ],
            extensions: vec![owned("nvext", r#"{"agent_hints":{"priority":5,"osl":300}}"#)],
        }
    }

    fn route(&self, generation: &Generation, call: u64) -> anyhow::Result<bool> {
        let view = RouteView { frame: frame(call), request: &self.request, candidates: &self.candidates };
        Ok(generation.route(Way::default(), &view)?.fell_back)
    }

    /// As a request does: pinned, with whoever is told of the decision.
    fn pinned(&self, generations: &Generations, call: u64) -> anyhow::Result<()> {
        let view = RouteView { frame: frame(call), request: &self.request, candidates: &self.candidates };
        generations.pin(&Subject::default()).route(&view)?;
        Ok(())
    }

    fn hints(&self, generation: &Generation, call: u64) -> anyhow::Result<()> {
        let view = HintsView {
            frame: frame(call),
            protocol: "openai-chat",
            headers: &self.headers,
            extensions: &self.extensions,
            prompt_tokens: 4000,
            output_tokens_max: Some(100),
        };
        generation.hints(Way::default(), &view, Hints::default())?;
        Ok(())
    }
}

fn frame(call: u64) -> Frame {
    Frame { now_ms: 1_700_000_000_000 + call, seed: call + 1 }
}

/// p50 and p99 of a call in microseconds, in one turn.
fn turn(mut call: impl FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<(f64, f64)> {
    for i in 0..CALLS / 10 {
        call(i)?;
    }
    let mut samples = Vec::with_capacity(CALLS as usize);
    for i in 0..CALLS {
        let begun = Instant::now();
        call(i)?;
        samples.push(us(begun.elapsed()));
    }
    Ok((quantile(&mut samples, 0.5), quantile(&mut samples, 0.99)))
}

/// The same for calls that do not come back to back: whoever writes down what they say has to keep up.
fn paced(mut call: impl FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<(f64, f64)> {
    let mut samples = Vec::with_capacity(PACED_CALLS as usize);
    for i in 0..PACED_CALLS {
        let begun = Instant::now();
        call(i)?;
        samples.push(us(begun.elapsed()));
        std::thread::sleep(PACE);
    }
    Ok((quantile(&mut samples, 0.5), quantile(&mut samples, 0.99)))
}

fn scored_by(name: &str, spec: PluginSpec) -> ChainSpec {
    ChainSpec {
        plugins: [(name.to_owned(), spec)].into(),
        score: vec![(name.to_owned(), 1.0)],
        ..ChainSpec::default()
    }
}

/// The default chain with each of its scorers twice: eight plugins a request.
fn doubled_chain() -> ChainSpec {
    let mut chain = default_chain();
    for (name, weight) in chain.score.clone() {
        let twin = format!("{name}-twin");
        chain.plugins.insert(twin.clone(), chain.plugins[&name].clone());
        chain.score.push((twin, weight));
    }
    chain
}

pub(crate) fn run() -> anyhow::Result<()> {
    let runtime = Runtime::new(RuntimeConfig::default())?;
    let guests = crate::host::guests(&["wide", "faulty", "jsonic"])?;
    let start =
        |spec| -> anyhow::Result<Arc<Generations>> { Ok(Generations::start(Arc::clone(&runtime), spec, 1)?) };
    let native = start(ChainSpec::default())?;
    let wide = start(scored_by("wide", PluginSpec::new(std::fs::read(&guests[0])?, "guest")))?;
    let chain = start(default_chain())?;
    let eight = start(doubled_chain())?;
    let (case, large) = (Case::new(CANDIDATES), Case::new(1024));
    let json = choices::json_abi(&runtime, &std::fs::read(&guests[2])?, &case.candidates)?;
    let mut turns: [Vec<(f64, f64)>; 5] = Default::default();
    for _ in 0..TURNS {
        turns[0].push(turn(|i| case.route(&native.active(), i).map(drop))?);
        turns[1].push(turn(|i| case.route(&wide.active(), i).map(drop))?);
        turns[2].push(turn(|i| {
            let generation = chain.active();
            case.hints(&generation, i)?;
            case.route(&generation, i).map(drop)
        })?);
        turns[3].push(turn(|i| {
            let generation = eight.active();
            large.hints(&generation, i)?;
            large.route(&generation, i).map(drop)
        })?);
        turns[4].push(turn(|i| {
            let generation = eight.active();
            case.hints(&generation, i)?;
            case.route(&generation, i).map(drop)
        })?);
    }
    let p50 = |i: usize| median(turns[i].iter().map(|t| t.0).collect());
    let p99 = |i: usize| median(turns[i].iter().map(|t| t.1).collect());
    head("Policy calls, us (baseline: the built-in policy in plain Rust, same candidates, in turns)");
    row("score 64 candidates x 10 columns and pick, p50", p50(1), Some(p50(0)), Bar::AtMost(2.0));
    row("score 64 candidates x 10 columns and pick, p99", p99(1), Some(p99(0)), Bar::AtMost(5.0));
    row("default chain: hints + 3 scorers + pick, 64, p50", p50(2), Some(p50(0)), Bar::None);
    row("default chain: hints + 3 scorers + pick, 64, p99", p99(2), Some(p99(0)), Bar::AtMost(15.0));
    row("8 plugins, 64 candidates, p99", p99(4), None, Bar::AtMost(25.0));
    row("8 plugins, 1,024 candidates, p99", p99(3), None, Bar::AtMost(150.0));
    row("the first row's scorer, shown JSON instead of columns, p50", json, Some(p50(1)), Bar::None);
    choices::starts(&std::fs::read(&guests[0])?)?;
    shadow(&runtime, &case)?;
    recorded(&chain, &case)?;
    endless(&runtime, &std::fs::read(&guests[1])?, &case, p50(0))
}

/// What a shadow adds to the live path: the default chain with and without one, in pairs, one call after the other.
fn shadow(runtime: &Arc<Runtime>, case: &Case) -> anyhow::Result<()> {
    let start = || Generations::start(Arc::clone(runtime), default_chain(), 1);
    let (alone, shadowed) = (start()?, start()?);
    shadowed.start_rollout(Candidate::Chain(default_chain()), Mode::Shadow)?;
    let (mut added, mut base) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for i in 0..SHADOW_CALLS {
            // Who goes first changes, so that neither always finds the caches warm.
            for second in [i % 2 == 0, i % 2 == 1] {
                let begun = Instant::now();
                case.pinned(if second { &shadowed } else { &alone }, i)?;
                let took = us(begun.elapsed());
                if second { with.push(took) } else { without.push(took) }
            }
            // Requests do not come back to back: the shadow has to get its turn, or its queue fills and copies stop.
            std::thread::sleep(Duration::from_micros(20));
        }
        base.push(quantile(&mut without, 0.5));
        added.push(quantile(&mut with, 0.5) - base[base.len() - 1]);
    }
    let report = shadowed.rollout().and_then(|report| report.shadow.get(&Slot::Route).cloned());
    let seen = report.ok_or_else(|| anyhow::anyhow!("the shadow saw nothing"))?;
    head(
        "A shadow beside the default chain: live route call, 64 candidates, us (baseline: without it, in pairs)",
    );
    row("added by a shadow, p50", median(added), Some(median(base)), Bar::AtMost(2.0));
    row("share of decisions that the shadow was asked about too", seen.compared_share, None, Bar::None);
    Ok(())
}

/// What a decision log costs a decision: the same chain with and without, in turns.
fn recorded(chain: &Generations, case: &Case) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut turns: [Vec<(f64, f64)>; 2] = Default::default();
    let mut bytes = 0;
    for _ in 0..TURNS {
        let pin = chain.pin(&Subject::default());
        let route = |call: u64| -> anyhow::Result<()> {
            let (request, candidates) = (&case.request, &case.candidates);
            pin.route(&RouteView { frame: frame(call), request, candidates })?;
            Ok(())
        };
        turns[0].push(paced(route)?);
        let recorder = Recorder::start(chain, RecordConfig::new(folder.path()))?;
        turns[1].push(paced(route)?);
        let status = recorder.stop(chain);
        anyhow::ensure!(status.dropped == 0 && status.error.is_none(), "decisions were lost: {status:?}");
        bytes = status.bytes / status.records;
    }
    let p50 = |i: usize| median(turns[i].iter().map(|t| t.0).collect());
    let p99 = |i: usize| median(turns[i].iter().map(|t| t.1).collect());
    head("A decision with a log, us (baseline: the same chain without one, in turns)");
    row("route, 3 scorers + pick, 64 candidates, recorded, p50", p50(1), Some(p50(0)), Bar::None);
    row("route, 3 scorers + pick, 64 candidates, recorded, p99", p99(1), Some(p99(0)), Bar::None);
    row("bytes of a record", bytes as f64, None, Bar::None);
    Ok(())
}

/// A scorer that never returns: how long until the built-in has answered in its place.
fn endless(runtime: &Arc<Runtime>, component: &[u8], case: &Case, native: f64) -> anyhow::Result<()> {
    let mut samples = Vec::new();
    for i in 0..LOOPS {
        let mut spec = PluginSpec::new(component, "guest");
        spec.config = serde_json::json!({ "fault": "loop" });
        spec.limits = Limits { deadline: DEADLINE, ..spec.limits };
        let generations = Generations::start(Arc::clone(runtime), scored_by("faulty", spec), 1)?;
        let begun = Instant::now();
        let fell_back = case.route(&generations.active(), i as u64)?;
        samples.push(us(begun.elapsed()) / 1e3);
        anyhow::ensure!(fell_back, "the endless scorer answered");
    }
    let bar = (DEADLINE + Duration::from_millis(2)).as_secs_f64() * 1e3;
    head("A scorer in an endless loop, deadline 2 ms, answered by the built-in; ms");
    row("p50", quantile(&mut samples, 0.5), Some(native / 1e3), Bar::AtMost(bar));
    row("max", quantile(&mut samples, 1.0), Some(native / 1e3), Bar::AtMost(bar));
    Ok(())
}
