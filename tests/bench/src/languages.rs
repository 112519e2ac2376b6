//! What each guest language costs: the template's scorer, built and asked in the same host.
//!
//! A language whose toolchain is not on the path is left out, by name. Calls and compiling are measured in CPU time of
//! their thread, which is also what a deadline counts: an interpreter's call is long enough to be interrupted by others.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use plugin_tool::{Lang, NewPlugin, ToolError};
use policy::{
    ChainSpec, Frame, Generations, Limits, PluginSpec, REQUEST, ROUTE_CANDIDATE, RouteView, Runtime,
    RuntimeConfig, Table, Way,
};

use crate::table::{Bar, head, median, quantile, row, us};

const ROWS: [usize; 3] = [8, 64, 512];
/// A language's calls at one size. Chosen: p99 has 30 samples above it, and Python is done in seconds.
const CALLS: u64 = 3000;
/// Instances whose memory is measured together.
const INSTANCES: u32 = 16;
/// An interpreter takes longer than the default of 2 ms for 512 candidates on a busy machine.
const DEADLINE: Duration = Duration::from_millis(200);
/// Chosen: the allocator gives memory back within a fraction of it.
const SETTLE: Duration = Duration::from_millis(300);
/// Chosen: the allocator has settled well before the middle one.
const LOOKS: usize = 9;

pub(crate) fn run() -> anyhow::Result<()> {
    let workshop = tempfile::tempdir()?;
    for lang in Lang::ALL {
        match build(lang, workshop.path()) {
            Ok((component, took)) => measure(lang, &component, took)?,
            Err(error) => match error.downcast_ref() {
                Some(ToolError::Missing { .. }) => println!("\n{lang}: left out: {error}"),
                _ => return Err(error),
            },
        }
    }
    Ok(())
}

/// Builds the template's scorer with four declared columns, of which it reads one. The time is that of a second build,
/// as an author meets it.
fn build(lang: Lang, workshop: &Path) -> anyhow::Result<(PathBuf, Duration)> {
    let plugin = NewPlugin { name: &format!("bench-{lang}"), lang, slot: "score", dir: workshop };
    let root = plugin_tool::new(&plugin)?;
    let source = root.join(plugin_tool::Manifest::read(&root)?.source);
    let text = std::fs::read_to_string(&source)?;
    plugin_tool::build(&root)?;
    let four = "\"queue_len\", \"running\", \"kv_used\", \"overlap_tokens\"";
    std::fs::write(&source, text.replacen("\"queue_len\"", four, 1))?;
    let begun = Instant::now();
    let built = plugin_tool::build(&root)?;
    Ok((built.component, begun.elapsed()))
}

fn measure(lang: Lang, component: &Path, build: Duration) -> anyhow::Result<()> {
    let bytes = std::fs::read(component)?;
    let runtime = Runtime::new(RuntimeConfig::default())?;
    let mut spec = PluginSpec::new(bytes.clone(), "bench");
    spec.limits = Limits { deadline: DEADLINE, ..spec.limits };
    let begun = cpu_time();
    let one = start(&runtime, spec.clone())?;
    let cold = cpu_time() - begun;
    let memory = memory(&runtime, spec)?;
    head(&format!("{lang}: the template's scorer, 4 columns of f32"));
    row("build, s", build.as_secs_f64(), None, Bar::None);
    row("component, KiB", bytes.len() as f64 / 1024.0, None, Bar::None);
    row("cold start: compile, describe, configure, try; CPU ms", cold.as_secs_f64() * 1e3, None, Bar::None);
    row("memory of one more instance, KiB", memory, None, Bar::None);
    for rows in ROWS {
        let mut samples = calls(&one, rows)?;
        row(
            &format!("score of {rows} candidates, p50, CPU us"),
            quantile(&mut samples, 0.5),
            None,
            Bar::None,
        );
        row(
            &format!("score of {rows} candidates, p99, CPU us"),
            quantile(&mut samples, 0.99),
            None,
            Bar::None,
        );
    }
    Ok(())
}

fn start(runtime: &Arc<Runtime>, plugin: PluginSpec) -> anyhow::Result<Arc<Generations>> {
    let chain = ChainSpec {
        plugins: [("scorer".to_owned(), plugin)].into(),
        score: vec![("scorer".to_owned(), 1.0)],
        ..ChainSpec::default()
    };
    Ok(Generations::start(Arc::clone(runtime), chain, 1)?)
}

/// Memory of one more instance. What compiling took is given back meanwhile, so that one look would not do.
fn memory(runtime: &Arc<Runtime>, mut spec: PluginSpec) -> anyhow::Result<f64> {
    spec.limits.instances = INSTANCES;
    let mut looks = Vec::new();
    for _ in 0..LOOKS {
        let before = resident_kib()?;
        let many = start(runtime, spec.clone())?;
        looks.push((resident_kib()? - before) / f64::from(INSTANCES));
        drop(many);
        std::thread::sleep(SETTLE);
    }
    Ok(median(looks))
}

/// Times of whole route decisions with this one scorer; the built-in picker and the clock add half a microsecond.
fn calls(generations: &Arc<Generations>, rows: usize) -> anyhow::Result<Vec<f64>> {
    let request = Table::new(&REQUEST, 1);
    let mut candidates = Table::new(&ROUTE_CANDIDATE, rows);
    for column in 0..ROUTE_CANDIDATE.numbers.len() {
        let cells = candidates.numbers_mut(column).iter_mut().enumerate();
        cells.for_each(|(at, cell)| *cell = ((at * 37 + column * 11) % 97) as f32);
    }
    let mut samples = Vec::new();
    for call in 0..CALLS + CALLS / 10 {
        let frame = Frame { now_ms: 1_700_000_000_000, seed: call + 1 };
        let view = RouteView { frame, request: &request, candidates: &candidates };
        let begun = cpu_time();
        let decision = generations.active().route(Way::default(), &view)?;
        let took = us(cpu_time() - begun);
        anyhow::ensure!(!decision.fell_back, "the scorer gave no answer");
        if call >= CALLS / 10 {
            samples.push(took);
        }
    }
    Ok(samples)
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

fn resident_kib() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("there is no VmRSS")?;
    Ok(line.split_whitespace().next().context("VmRSS has a number")?.parse()?)
}
