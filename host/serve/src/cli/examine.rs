//! `pointsman plugin check` and `bench`: what a component is, whether it keeps its laws, what its calls cost.
//!
//! **Invariant:** needs no running host and touches none.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use policy::{Effort, Examination, Limits, PluginSpec, Runtime, RuntimeConfig, examine};

/// Calls behind a quantile of `check` and of `bench`. Chosen: a second or two for a compiled language.
const CALLS_CHECK: usize = 1_000;
const CALLS_BENCH: usize = 20_000;

#[derive(Debug, Args)]
pub(super) struct ExamineArgs {
    /// The component, or `builtin:NAME`.
    component: String,
    /// Its settings, as JSON.
    #[arg(long, default_value = "{}")]
    config: String,
    /// CPU time of one call, in microseconds: what the configuration would give it.
    #[arg(long, default_value_t = 2_000)]
    deadline_us: u64,
    /// Random views a slot.
    #[arg(long, default_value_t = 300)]
    cases: u64,
    /// Print JSON instead of a report.
    #[arg(long)]
    json: bool,
}

/// Examines a component; `bench` asks few questions about laws and many about time. Errors: a law is broken.
pub(super) fn run(args: &ExamineArgs, bench: bool) -> anyhow::Result<()> {
    let (bytes, origin) = match args.component.strip_prefix("builtin:") {
        Some(name) => match policy::builtin_component(name) {
            Some(bytes) => (bytes.to_vec(), args.component.clone()),
            None => bail!("no plugin is built in as `{name}`; there are {}", builtins()),
        },
        None => {
            let path = PathBuf::from(&args.component);
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            (bytes, args.component.clone())
        }
    };
    let config = serde_json::from_str(&args.config).context("--config is no JSON")?;
    let limits = Limits { deadline: Duration::from_micros(args.deadline_us), ..Limits::default() };
    let spec = PluginSpec { config, limits, ..PluginSpec::new(bytes, origin) };
    let runtime = Runtime::new(RuntimeConfig::default())?;
    let effort = match bench {
        true => Effort { cases: 20, calls: CALLS_BENCH },
        false => Effort { cases: args.cases, calls: CALLS_CHECK },
    };
    let found = examine(&runtime, &args.component, &spec, effort)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else if bench {
        print_costs(&found);
    } else {
        print_report(&found);
    }
    match found.laws.iter().find_map(|law| Some((&law.of, law.broken.as_ref()?))) {
        Some((slot, why)) => bail!("it breaks a law of `{slot}`: {why}"),
        None => Ok(()),
    }
}

fn builtins() -> String {
    policy::CATALOGUE.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn print_report(found: &Examination) {
    println!("{} {}", found.component, found.version);
    println!("  digest     sha256:{}", found.digest);
    println!("  size       {:.1} KiB", found.component_bytes as f64 / 1024.0);
    println!("  imports    {}", if found.wasi { "WASI, of which nothing is granted" } else { "no WASI" });
    println!("  compile    {:.1} ms, start {:.2} ms", found.compile_ms, found.start_ms);
    println!("  memory     {:.2} MiB an instance", found.memory_bytes as f64 / f64::from(1 << 20));
    println!("  state      {}", found.state.as_deref().unwrap_or("not carried over a swap"));
    for slot in &found.slots {
        println!("  slot       {slot}");
        for input in found.inputs.iter().filter(|input| input.slot == slot.as_str()) {
            if !input.columns.is_empty() {
                println!("    {:<8} {}", input.table, input.columns.join(", "));
            }
        }
    }
    println!("\n  laws");
    for law in &found.laws {
        match &law.broken {
            Some(why) => println!("    {:<10} BROKEN  {why}", law.of),
            None => println!("    {:<10} kept    {} views, {} abstained", law.of, law.cases, law.abstained),
        }
    }
    if !found.costs.is_empty() {
        println!();
        print_costs(found);
    }
}

fn print_costs(found: &Examination) {
    println!("  {:<12} {:>6} {:>12} {:>12}", "call", "rows", "p50 us", "p99 us");
    for cost in &found.costs {
        println!("  {:<12} {:>6} {:>12.2} {:>12.2}", cost.slot, cost.rows, cost.us_p50, cost.us_p99);
    }
}
