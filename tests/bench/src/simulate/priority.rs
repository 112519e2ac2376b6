//! Priority under load: a few short requests of people beside long ones in the background, on two workers.
//!
//! The bars and the peer's figures (377 and 599 ms, with priorities and its router's queue) are for the same load.

use std::path::Path;

use policy::{ChainSpec, builtin_plugin};
use sim::{Chain, PromptsSetting, Scenario, Summary, WorkloadSetting};

use crate::table::{Bar, head, row};

/// Seconds of virtual time that count. Chosen: some thousand steps.
const SPAN_S: f64 = 300.0;

pub(super) fn run() -> anyhow::Result<()> {
    head("Priority: 3 short requests a second beside 48 long ones at once, 2 workers");
    let plain = simulate("first come", first_come())?;
    for (name, spec) in [("agent priority", sim::baseline("default")?), ("interactive first", short_steps())]
    {
        let one = simulate(name, spec)?;
        let label = |what: &str| format!("{name}: {what}");
        let is_best = name == "interactive first";
        let bar = |bar| if is_best { bar } else { Bar::None };
        let ttft = |of: &Run| of.interactive.ttft_ms;
        row(
            &label("interactive TTFT p50, ms"),
            ttft(&one).p50,
            Some(ttft(&plain).p50),
            bar(Bar::AtMost(220.0)),
        );
        row(
            &label("interactive TTFT p99, ms"),
            ttft(&one).p99,
            Some(ttft(&plain).p99),
            bar(Bar::AtMost(350.0)),
        );
        let lost = 100.0 * (1.0 - one.background_per_s / plain.background_per_s);
        row(&label("background loss, %"), lost, None, bar(Bar::AtMost(2.0)));
    }
    Ok(())
}

struct Run {
    interactive: Summary,
    background_per_s: f64,
}

fn simulate(name: &str, spec: ChainSpec) -> anyhow::Result<Run> {
    let prompts = |requests, prompt_tokens, output_tokens| {
        Some(PromptsSetting { requests, prompt_tokens, output_tokens })
    };
    let background = WorkloadSetting {
        name: "background".to_owned(),
        arrivals: sim::ArrivalsKind::Closed,
        concurrency: 48,
        prompts: prompts(2_000, 24_000, 128),
        ..WorkloadSetting::default()
    };
    let interactive = WorkloadSetting {
        name: "interactive".to_owned(),
        arrivals: sim::ArrivalsKind::Rate,
        per_s: 3.0,
        priority: 10.0,
        prompts: prompts((3.0 * SPAN_S) as u32, 800, 16),
        ..WorkloadSetting::default()
    };
    let scenario = Scenario {
        workers: 2,
        cost: "polynomial".to_owned(),
        // In the order of the peer's run, where the background is there first.
        workload: vec![background, interactive],
        ..Scenario::default()
    };
    let (setup, workloads) = scenario.prepare(Path::new(""))?;
    let results = sim::simulate(&setup, &workloads, &Chain::new(name, spec, setup.workers)?)?;
    let background_per_s = results.answered_within(0, SPAN_S) as f64 / SPAN_S;
    Ok(Run { interactive: results.summary(&workloads, Some(1)), background_per_s })
}

/// The default chain, with the scheduler that has no plugin.
fn first_come() -> ChainSpec {
    ChainSpec { schedule: None, ..policy::default_chain() }
}

/// The default chain, with a scheduler that keeps the steps of urgent prompts short.
fn short_steps() -> ChainSpec {
    let mut spec = policy::default_chain();
    let name = "schedule-interactive-first";
    let plugin = builtin_plugin(name).expect("it is in the catalogue");
    spec.plugins.insert(name.to_owned(), plugin);
    spec.schedule = Some(name.to_owned());
    spec
}
