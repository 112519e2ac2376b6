//! The tables that `pointsman simulate` prints.

use sim::{Comparison, Difference, Results, Setup, Summary, Workload};

/// What is simulated.
pub(super) fn fleet(setup: &Setup, workloads: &[Workload]) {
    let room = f64::from(setup.blocks) * f64::from(setup.block_tokens) / 1e6;
    println!(
        "{} workers, each with {} blocks of {} tokens ({room:.2} M tokens)",
        setup.workers, setup.blocks, setup.block_tokens
    );
    for workload in workloads {
        let trace = &workload.trace;
        println!(
            "{}: {} requests of {} sessions, {:.1} M prompt tokens, {:.1} % of them in an unbounded cache",
            workload.name,
            trace.requests.len(),
            trace.sessions.len(),
            trace.prompt_tokens() as f64 / 1e6,
            100.0 * trace.ceiling()
        );
    }
}

/// A line for each chain, and each workload of it where there are several.
pub(super) fn summaries(all: &[Summary]) {
    println!(
        "\n{:<24} {:>9} {:>7} {:>28} {:>22} {:>10} {:>6} {:>6}",
        "",
        "answered",
        "reuse",
        "TTFT ms mean / p50 / p99",
        "ITL ms mean / p99",
        "E2E s mean",
        "busy",
        "worst"
    );
    for one in all {
        let name = match one.workload.as_str() {
            "" => one.chain.clone(),
            workload => format!("  {workload}"),
        };
        println!(
            "{:<24} {:>9} {:>6.2}% {:>9.1} / {:>7.1} / {:>7.1} {:>13.2} / {:>6.2} {:>10.2} {:>5.1}% {:>5.2}x",
            shortened(&name),
            told(one),
            100.0 * one.reuse,
            one.ttft_ms.mean,
            one.ttft_ms.p50,
            one.ttft_ms.p99,
            one.itl_ms.mean,
            one.itl_ms.p99,
            one.e2e_ms.mean / 1e3,
            100.0 * one.busy,
            one.imbalance,
        );
    }
}

/// Plugins that failed, whose chain is then not what was compared.
pub(super) fn failures(of: &Results) {
    for one in &of.failures {
        let kinds: Vec<String> = one.failed.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        println!(
            "remark: {}: `{}` failed in {} of {} calls of `{}` ({})",
            of.chain,
            one.plugin,
            one.failed.values().sum::<u64>(),
            one.calls,
            one.slot,
            kinds.join(", ")
        );
    }
}

/// Answered requests, with those that were not.
fn told(one: &Summary) -> String {
    match one.requests - one.answered {
        0 => one.answered.to_string(),
        lost => format!("{} -{lost}", one.answered),
    }
}

/// What the first chain's figures become with each other one, with the interval that holds 95 in a hundred.
pub(super) fn comparisons(all: &[Comparison]) {
    let Some(first) = all.first() else { return };
    println!("\nagainst {} (difference, and where it lies 95 times in a hundred)", first.base);
    println!("{:<24} {:>26} {:>30} {:>30}", "", "reuse, points", "TTFT mean, ms", "TTFT p99, ms");
    for one in all {
        println!(
            "{:<24} {:>26} {:>30} {:>30}",
            shortened(&one.chain),
            interval(&one.reuse, 100.0),
            interval(&one.ttft_ms_mean, 1.0),
            interval(&one.ttft_ms_p99, 1.0)
        );
    }
}

fn interval(of: &Difference, scale: f64) -> String {
    let (by, low, high) = ((of.value - of.base) * scale, of.low * scale, of.high * scale);
    format!("{by:+.2} [{low:+.2}, {high:+.2}]")
}

/// How fast it was simulated.
pub(super) fn speed(runs: &[(&str, f64)], workloads: &[Workload]) {
    let requests: usize = workloads.iter().map(|workload| workload.trace.requests.len()).sum();
    println!();
    for (chain, took_s) in runs {
        let per_minute = requests as f64 / took_s.max(1e-9) * 60.0 / 1e6;
        println!("{:<24} simulated in {took_s:.3} s, {per_minute:.2} M requests a minute", shortened(chain));
    }
}

/// The end of a long name: files differ there.
fn shortened(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    match letters.len() {
        0..=24 => name.to_owned(),
        long => format!("…{}", letters[long - 23..].iter().collect::<String>()),
    }
}
