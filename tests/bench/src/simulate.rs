//! The simulator: how fast it is, how near to a peer's, and what chains do to traces.

mod dynosim;
mod priority;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use sim::{Arrivals, CallerHints, Chain, CostModel, Scenario, Setup, Summary, Workload, WorkloadSetting};

use crate::table::{Bar, head, median, row};
use dynosim::DynoSim;

/// Interleaved rounds of whatever is timed.
const ROUNDS: usize = 5;
const WORKERS: usize = 8;
const BLOCKS: u32 = 16_384;
/// Conversations at once in the agentic trace.
const LANES: u32 = 32;

/// A trace with what the best peer makes of it.
struct Known {
    file: &'static str,
    /// Least share of prompt tokens that our best chain has to find.
    reuse_min: f64,
    is_sessions: bool,
}

const KNOWN: [Known; 4] = [
    Known { file: "conversation_trace.jsonl", reuse_min: 0.345, is_sessions: false },
    Known { file: "synthetic_trace.jsonl", reuse_min: 0.640, is_sessions: false },
    Known { file: "toolagent_like.jsonl", reuse_min: 0.515, is_sessions: false },
    Known { file: "weka", reuse_min: 0.946, is_sessions: true },
];

/// The trace whose speed has a bar.
const TIMED: &str = "toolagent_like.jsonl";

struct Options {
    traces: Option<PathBuf>,
    dynosim: Option<DynoSim>,
}

/// `--traces FOLDER` has files of [`KNOWN`]; `--dynosim PYTHON` has ai-dynamo-runtime.
pub(crate) fn run() -> anyhow::Result<()> {
    let options = options()?;
    generated()?;
    if let Some(folder) = &options.traces {
        let dynosim = options.dynosim.as_ref();
        for known in KNOWN.iter().filter(|known| folder.join(known.file).exists()) {
            trace(&folder.join(known.file), known, dynosim)?;
        }
    }
    priority::run()
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options { traces: None, dynosim: None };
    let mut given = std::env::args().skip(2);
    while let Some(flag) = given.next() {
        let value = given.next();
        match (flag.as_str(), value) {
            ("--traces", Some(folder)) => options.traces = Some(PathBuf::from(folder)),
            ("--dynosim", Some(python)) => options.dynosim = Some(DynoSim::new(PathBuf::from(python))?),
            _ => anyhow::bail!("usage: bench simulate [--traces FOLDER] [--dynosim PYTHON]"),
        }
    }
    Ok(options)
}

fn chains(names: &[&str]) -> anyhow::Result<Vec<Chain>> {
    names.iter().map(|name| Ok(Chain::new(*name, sim::baseline(name)?, WORKERS)?)).collect()
}

/// Sessions that are made here, on 64 workers: simulated requests a minute.
fn generated() -> anyhow::Result<()> {
    let agents = sim::AgentsSetting { sessions: 400, ..sim::AgentsSetting::default() };
    let workload = WorkloadSetting {
        agents: Some(agents),
        arrivals: sim::ArrivalsKind::Sessions,
        ..WorkloadSetting::default()
    };
    let scenario = Scenario { workers: 64, workload: vec![workload], ..Scenario::default() };
    let (setup, workloads) = scenario.prepare(Path::new(""))?;
    let requests = workloads[0].trace.requests.len();
    head(&format!("M requests a minute: {requests} of generated agents, 64 workers"));
    for chain in &chains(&["builtin", "default", "expected-ttft"])? {
        for (cores, bar) in [(1, Bar::None), (2, Bar::AtLeast(1.0))] {
            let minutes = (0..ROUNDS).map(|_| Ok(at_once(cores, (&setup, &workloads), chain)? / 60.0));
            let minutes = median(minutes.collect::<anyhow::Result<_>>()?);
            let cores_said = if cores == 1 { "one core" } else { "two cores" };
            let rate = (cores * requests) as f64 / minutes / 1e6;
            row(&format!("{}, {cores_said}", chain.name()), rate, None, bar);
        }
    }
    Ok(())
}

/// Seconds that so many simulations take at once, as those of several chains do.
fn at_once(count: usize, of: (&Setup, &[Workload]), chain: &Chain) -> anyhow::Result<f64> {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..count).map(|_| scope.spawn(|| sim::simulate(of.0, of.1, chain))).collect();
        all.into_iter().try_for_each(|one| match one.join() {
            Ok(result) => result.map(drop).map_err(anyhow::Error::from),
            Err(_) => anyhow::bail!("a simulation panicked"),
        })
    })?;
    Ok(begun.elapsed().as_secs_f64())
}

fn timed(setup: &Setup, workloads: &[Workload], chain: &Chain) -> anyhow::Result<(Summary, f64)> {
    let begun = Instant::now();
    let results = sim::simulate(setup, workloads, chain)?;
    let took_s = begun.elapsed().as_secs_f64();
    Ok((results.summary(workloads, None), took_s))
}

/// One trace: how near to the peer by the same rule, how fast, and what chains do.
fn trace(path: &Path, known: &Known, dynosim: Option<&DynoSim>) -> anyhow::Result<()> {
    let begun = Instant::now();
    let trace = Arc::new(trace::read(path)?);
    let read_s = begun.elapsed().as_secs_f64();
    let arrivals = match known.is_sessions {
        true => Arrivals::Sessions { lanes: LANES, speedup: 1.0 },
        false => Arrivals::Recorded { speedup: 1.0 },
    };
    let block_tokens = trace.block_tokens;
    let workloads = [Workload {
        name: trace.name.clone(),
        trace: Arc::clone(&trace),
        arrivals,
        hints: CallerHints::default(),
    }];
    let setup = Setup {
        workers: WORKERS,
        blocks: BLOCKS,
        block_tokens,
        cost: CostModel::polynomial(f64::from(BLOCKS * block_tokens)),
        ..Setup::default()
    };
    let run = Trial { path, known, dynosim, setup: &setup, workloads: &workloads };
    head(&format!(
        "{}: {} requests on {WORKERS} workers; {:.1} % in an unbounded cache; read in {read_s:.3} s; baseline: DynoSim",
        trace.name,
        trace.requests.len(),
        100.0 * trace.ceiling()
    ));
    run.in_turn()?;
    run.by_cache()
}

struct Trial<'a> {
    path: &'a Path,
    known: &'a Known,
    dynosim: Option<&'a DynoSim>,
    setup: &'a Setup,
    workloads: &'a [Workload],
}

impl Trial<'_> {
    /// Round robin on both sides: the same rule, so the same figures.
    fn in_turn(&self) -> anyhow::Result<()> {
        let chain = &chains(&["round-robin"])?[0];
        let (mut ours, mut theirs, mut summary) = (Vec::new(), Vec::new(), Summary::default());
        let mut told = None;
        for _ in 0..ROUNDS {
            let (found, took_s) = timed(self.setup, self.workloads, chain)?;
            summary = found;
            ours.push(took_s);
            if let Some(dynosim) = self.dynosim {
                let other = dynosim.replay(self.path, self.known.is_sessions, "round_robin")?;
                theirs.push(other.wall_s);
                told = Some(other);
            }
        }
        let bar = if self.known.file == TIMED { Bar::AtMost(0.5) } else { Bar::None };
        let wall = (!theirs.is_empty()).then(|| median(theirs));
        row("round robin: simulated in, s", median(ours), wall, bar);
        row("round robin: reuse, %", 100.0 * summary.reuse, told.map(|it| 100.0 * it.reuse), Bar::None);
        row("round robin: TTFT mean, ms", summary.ttft_ms.mean, told.map(|it| it.ttft_ms_mean), Bar::None);
        if let Some(told) = told {
            // Who is first among equals is drawn there; for sessions that changes who goes where.
            let bar = if self.known.is_sessions { Bar::None } else { Bar::AtMost(1.0) };
            let apart = |one: f64, other: f64| 100.0 * (one / other - 1.0).abs();
            row("round robin: reuse apart, %", apart(summary.reuse, told.reuse), None, bar);
            row("round robin: TTFT mean apart, %", apart(summary.ttft_ms.mean, told.ttft_ms_mean), None, bar);
        }
        Ok(())
    }

    /// Chains that know caches, beside the peer's router.
    fn by_cache(&self) -> anyhow::Result<()> {
        let mut peers = Vec::new();
        for _ in 0..ROUNDS {
            if let Some(dynosim) = self.dynosim {
                peers.push(dynosim.replay(self.path, self.known.is_sessions, "kv_router")?);
            }
        }
        let peer = |of: fn(&dynosim::Told) -> f64| {
            (!peers.is_empty()).then(|| median(peers.iter().map(of).collect()))
        };
        let tail = peer(|it| it.ttft_ms_p99);
        for chain in &chains(&["builtin", "default", "dynamo-cost", "cache-aware", "expected-ttft"])? {
            let mut walls = Vec::new();
            let mut summary = Summary::default();
            for _ in 0..ROUNDS {
                let (found, took_s) = timed(self.setup, self.workloads, chain)?;
                (summary, _) = (found, walls.push(took_s));
            }
            let is_best = chain.name() == "expected-ttft";
            let name = |what: &str| format!("{}: {what}", chain.name());
            let bar = if is_best { Bar::AtLeast(100.0 * self.known.reuse_min) } else { Bar::None };
            row(&name("reuse, %"), 100.0 * summary.reuse, peer(|it| 100.0 * it.reuse), bar);
            row(&name("TTFT mean, ms"), summary.ttft_ms.mean, peer(|it| it.ttft_ms_mean), Bar::None);
            let bar = tail.filter(|_| is_best).map_or(Bar::None, Bar::AtMost);
            row(&name("TTFT p99, ms"), summary.ttft_ms.p99, tail, bar);
            let bar = if is_best && self.known.file == TIMED { Bar::AtMost(0.5) } else { Bar::None };
            row(&name("simulated in, s"), median(walls), peer(|it| it.wall_s), bar);
        }
        Ok(())
    }
}
