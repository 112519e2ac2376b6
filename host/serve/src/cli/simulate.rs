//! `pointsman simulate`: what chains of policies would do to a fleet, in virtual time.

mod cost;
mod measure;
mod shape;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;
use sim::{ArrivalsKind, Chain, Comparison, Results, Scenario, Setup, Summary, Workload, WorkloadSetting};

use crate::config::{Config, chain_spec};
use cost::CostArgs;

#[derive(Debug, Args)]
pub(super) struct SimulateArgs {
    /// A scenario: a TOML file with the fleet, what it is asked, and what goes wrong. Flags overrule it.
    #[arg(long)]
    scenario: Option<PathBuf>,
    /// What the fleet is asked: a Mooncake trace, a file or a folder of agents' conversations, or a decision log.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Ask it what so many generated sessions of agents ask.
    #[arg(long, value_name = "SESSIONS", conflicts_with = "trace")]
    agents: Option<u32>,
    /// Chains to compare, the first one with each of the others: names (see `--list`), or configuration files.
    #[arg(long, value_delimiter = ',', default_value = "default")]
    chains: Vec<String>,
    /// Show the chains that have a name.
    #[arg(long)]
    list: bool,
    /// Workers.
    #[arg(long)]
    workers: Option<usize>,
    /// KV blocks of each worker.
    #[arg(long)]
    blocks: Option<u32>,
    /// Tokens of a block; those of the trace if it is not said.
    #[arg(long)]
    block_tokens: Option<u32>,
    #[command(flatten)]
    cost: CostArgs,
    /// When requests come in.
    #[arg(long, value_enum)]
    arrivals: Option<ArrivalsArg>,
    /// Most conversations at once, for `sessions`.
    #[arg(long)]
    lanes: Option<u32>,
    /// So many times as fast as the trace says.
    #[arg(long)]
    speedup: Option<f64>,
    /// Requests at once, for `closed`.
    #[arg(long)]
    concurrency: Option<u32>,
    /// Requests a second, for `rate`.
    #[arg(long)]
    per_s: Option<f64>,
    /// Only the first so many requests of each workload.
    #[arg(long, value_name = "REQUESTS")]
    limit: Option<usize>,
    /// Write summaries, comparisons and figures over time as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw figures over time, as SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ArrivalsArg {
    /// When the trace says.
    Recorded,
    /// Not before the trace says, nor before the last answer of the session.
    Sessions,
    /// So many at once.
    Closed,
    /// So many a second.
    Rate,
}

/// Stretches of figures over time. Chosen: a plot has few pixels more.
const BINS: usize = 240;
/// Simulations at once. Chosen: each takes a core, and memory for its caches.
const THREADS_MAX: usize = 8;

/// One chain's simulation.
struct Run {
    results: Results,
    took_s: f64,
}

pub(super) fn simulate(args: &SimulateArgs) -> anyhow::Result<()> {
    if args.list {
        sim::BASELINES.iter().for_each(|(name, what)| println!("{name:<16} {what}"));
        return Ok(());
    }
    let (mut scenario, folder) = args.scenario()?;
    let measured = args.cost.settle(&mut scenario, &folder)?;
    let (mut setup, workloads) = scenario.prepare(&folder)?;
    let chains: Vec<Chain> =
        args.chains.iter().map(|name| chain(name, setup.workers)).collect::<anyhow::Result<_>>()?;
    ensure!(!chains.is_empty(), "`--chains` names no chain");
    if measured {
        // Last of all, since it takes its time.
        setup.cost = args.cost.measure(&setup)?;
        scenario.costs = Some(setup.cost);
    }
    let runs = run_all(&setup, &workloads, &chains)?;
    let summaries = summaries(&runs, &workloads);
    table::fleet(&setup, &workloads);
    table::summaries(&summaries);
    runs.iter().for_each(|run| table::failures(&run.results));
    let (base, others) = runs.split_first().context("there is a chain")?;
    let comparisons: Vec<Comparison> =
        others.iter().map(|run| sim::compare((&base.results, &run.results), &workloads)).collect();
    table::comparisons(&comparisons);
    table::speed(
        &runs.iter().map(|run| (run.results.chain.as_str(), run.took_s)).collect::<Vec<_>>(),
        &workloads,
    );
    let series: Vec<(&str, Vec<sim::Bin>)> =
        runs.iter().map(|run| (run.results.chain.as_str(), run.results.series(&workloads, BINS))).collect();
    if let Some(path) = &args.plot {
        write(path, &sim::plot(&title(&setup, &workloads), &series))?;
    }
    if let Some(path) = &args.json {
        let workers = |run: &Run| json!({ "chain": run.results.chain, "workers": run.results.workers });
        let failures = |run: &Run| json!({ "chain": run.results.chain, "plugins": run.results.failures });
        let over_time = |(chain, bins): &(&str, Vec<sim::Bin>)| json!({ "chain": chain, "bins": bins });
        let told = json!({
            "version": 1,
            "scenario": scenario,
            "summaries": summaries,
            "comparisons": comparisons,
            "workers": runs.iter().map(workers).collect::<Vec<_>>(),
            "failures": runs.iter().map(failures).collect::<Vec<_>>(),
            "over_time": series.iter().map(over_time).collect::<Vec<_>>(),
        });
        write(path, &serde_json::to_string_pretty(&told)?)?;
    }
    Ok(())
}

impl SimulateArgs {
    /// The scenario, and the folder that its paths are relative to.
    fn scenario(&self) -> anyhow::Result<(Scenario, PathBuf)> {
        let (mut scenario, folder) = match &self.scenario {
            None => (Scenario::default(), PathBuf::new()),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                let scenario: Scenario = toml::from_str(&text).with_context(|| path.display().to_string())?;
                (scenario, path.parent().unwrap_or(Path::new("")).to_owned())
            }
        };
        if let Some(trace) = &self.trace {
            let path = std::path::absolute(trace).with_context(|| trace.display().to_string())?;
            scenario.workload = vec![WorkloadSetting { trace: Some(path), ..WorkloadSetting::default() }];
        }
        if let Some(sessions) = self.agents {
            let agents = sim::AgentsSetting { sessions, ..sim::AgentsSetting::default() };
            let arrivals = ArrivalsKind::Sessions;
            scenario.workload =
                vec![WorkloadSetting { agents: Some(agents), arrivals, ..WorkloadSetting::default() }];
        }
        scenario.workers = self.workers.unwrap_or(scenario.workers);
        scenario.blocks = self.blocks.unwrap_or(scenario.blocks);
        scenario.block_tokens = self.block_tokens.unwrap_or(scenario.block_tokens);
        scenario.workload.iter_mut().for_each(|workload| self.overrule(workload));
        Ok((scenario, folder))
    }

    fn overrule(&self, workload: &mut WorkloadSetting) {
        if let Some(arrivals) = self.arrivals {
            workload.arrivals = match arrivals {
                ArrivalsArg::Recorded => ArrivalsKind::Recorded,
                ArrivalsArg::Sessions => ArrivalsKind::Sessions,
                ArrivalsArg::Closed => ArrivalsKind::Closed,
                ArrivalsArg::Rate => ArrivalsKind::Rate,
            };
        }
        workload.lanes = self.lanes.unwrap_or(workload.lanes);
        workload.speedup = self.speedup.or(workload.speedup);
        workload.concurrency = self.concurrency.unwrap_or(workload.concurrency);
        workload.per_s = self.per_s.unwrap_or(workload.per_s);
        workload.requests_max = self.limit.unwrap_or(workload.requests_max);
    }
}

/// A chain with a name, or the chains of a configuration file.
fn chain(name: &str, workers: usize) -> anyhow::Result<Chain> {
    let spec = match name.ends_with(".toml") {
        true => chain_spec(&Config::load(Path::new(name))?)?,
        false => sim::baseline(name)?,
    };
    Ok(Chain::new(name, spec, workers)?)
}

/// Has each chain work through the workloads, as many at once as there are cores.
fn run_all(setup: &Setup, workloads: &[Workload], chains: &[Chain]) -> anyhow::Result<Vec<Run>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let next = Mutex::new(chains.iter().enumerate());
    let done: Mutex<Vec<(usize, Result<Run, sim::SimError>)>> = Mutex::new(Vec::new());
    let ctx = crate::ctx::Ctx::system();
    std::thread::scope(|scope| {
        for _ in 0..cores.min(THREADS_MAX).min(chains.len()) {
            scope.spawn(|| {
                loop {
                    let taken = next.lock().ok().and_then(|mut next| next.next());
                    let Some((at, chain)) = taken else { return };
                    let begun = ctx.now();
                    let run = sim::simulate(setup, workloads, chain).map(|results| {
                        let took_s = ctx.now().saturating_sub(begun).as_secs_f64();
                        Run { results, took_s }
                    });
                    if let Ok(mut done) = done.lock() {
                        done.push((at, run));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().map_err(|_| anyhow::anyhow!("a simulation panicked"))?;
    ensure!(done.len() == chains.len(), "a simulation panicked");
    done.sort_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, run)| run).collect::<Result<_, _>>()?)
}

/// Of each chain, and where there are several workloads, of each of those.
fn summaries(runs: &[Run], workloads: &[Workload]) -> Vec<Summary> {
    let of = |run: &Run| {
        let single = (0..workloads.len()).filter(|_| workloads.len() > 1);
        let parts: Vec<Summary> =
            single.map(|workload| run.results.summary(workloads, Some(workload))).collect();
        [run.results.summary(workloads, None)].into_iter().chain(parts).collect::<Vec<_>>()
    };
    runs.iter().flat_map(of).collect()
}

fn title(setup: &Setup, workloads: &[Workload]) -> String {
    let names: Vec<&str> = workloads.iter().map(|workload| workload.name.as_str()).collect();
    format!("{} on {} workers", names.join(", "), setup.workers)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
