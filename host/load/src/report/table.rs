//! The report as text.
//!
//! **Invariant:** a figure that nobody knows is `-`, never 0.

use std::fmt::Write;

use super::{Distribution, Report, Turns};

pub(super) fn table(report: &Report) -> String {
    let mut text = String::new();
    // Writing into a string does not fail.
    let _ = head(report, &mut text);
    let _ = latencies(report, &mut text);
    let _ = turns(report, &mut text);
    let _ = generator(report, &mut text);
    let _ = troubles(report, &mut text);
    text
}

fn head(report: &Report, text: &mut String) -> std::fmt::Result {
    let Report { load, requests, throughput, tokens, sessions, .. } = report;
    writeln!(text, "{} of {} ({})", report.model, report.url, report.api)?;
    writeln!(text, "{}, {}, seed {}", pace(report), load.workload, load.seed)?;
    writeln!(text)?;
    let ended = requests.succeeded + requests.failed;
    writeln!(
        text,
        "requests       {ended} in {:.1} s: {} answered, {} failed; {} to warm up; {} unfinished",
        report.window_s, requests.succeeded, requests.failed, requests.warmup, requests.unfinished
    )?;
    writeln!(
        text,
        "sessions       {} begun, {} finished, {} broken; {:.1} requests in flight, {} at most",
        sessions.begun, sessions.finished, sessions.broken, report.in_flight.mean, report.in_flight.max
    )?;
    writeln!(
        text,
        "throughput     {:.1} requests/s, {:.0} output tokens/s, {:.0} input tokens/s",
        throughput.requests_per_s, throughput.output_tokens_per_s, throughput.input_tokens_per_s
    )?;
    writeln!(text, "cached         {} of {} input tokens", percent(tokens.cached_share), tokens.input)?;
    if let Some(goodput) = report.goodput {
        let (share, rate) = (percent(Some(goodput.share)), goodput.requests_per_s);
        writeln!(text, "goodput        {share} of requests, {rate:.1} requests/s")?;
    }
    writeln!(text)
}

fn pace(report: &Report) -> String {
    let load = &report.load;
    let rate = load.rate_per_s.unwrap_or(0.0);
    match load.mode {
        "closed" => format!("{} sessions at once", load.concurrency.unwrap_or(0)),
        "open_sessions" => format!("{rate} sessions/s"),
        "open_requests" => format!("{rate} requests/s"),
        _ => format!("as scheduled, {} times as fast", load.speedup.unwrap_or(1.0)),
    }
}

fn latencies(report: &Report, text: &mut String) -> std::fmt::Result {
    let columns = ["mean", "p50", "p90", "p95", "p99", "max"];
    writeln!(text, "{:<14} {}", "ms", columns.map(|name| format!("{name:>10}")).concat())?;
    let rows = [
        ("TTFT", report.ttft_ms),
        ("ITL, gaps", report.itl_ms),
        ("ITL, means", report.itl_mean_ms),
        ("E2E", report.e2e_ms),
    ];
    for (name, of) in rows {
        writeln!(text, "{name:<14} {}", cells(of))?;
    }
    writeln!(text)
}

fn cells(of: Option<Distribution>) -> String {
    let values = of.map(|d| [d.mean, d.p50, d.p90, d.p95, d.p99, d.max]);
    match values {
        Some(values) => values.map(|value| format!("{value:>10.2}")).concat(),
        None => format!("{:>10}", "-").repeat(6),
    }
}

fn turns(report: &Report, text: &mut String) -> std::fmt::Result {
    let columns = ["requests", "TTFT p50", "TTFT p95", "E2E p50", "input", "cached"];
    writeln!(text, "{:<14} {}", "turn", columns.map(|name| format!("{name:>10}")).concat())?;
    let rows = [("first", &report.first_turn), ("later", &report.later_turns)];
    for (name, turns) in rows {
        if let Some(turns) = turns {
            writeln!(text, "{name:<14} {}", turn_cells(turns))?;
        }
    }
    writeln!(text)
}

fn turn_cells(turns: &Turns) -> String {
    let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
    [
        turns.requests.to_string(),
        ms(turns.ttft_ms.map(|d| d.p50)),
        ms(turns.ttft_ms.map(|d| d.p95)),
        ms(turns.e2e_ms.map(|d| d.p50)),
        format!("{:.0}", turns.input_tokens_mean),
        percent(turns.cached_share),
    ]
    .map(|cell| format!("{cell:>10}"))
    .concat()
}

fn generator(report: &Report, text: &mut String) -> std::fmt::Result {
    let generator = &report.generator;
    let lag = generator
        .lag_ms
        .map_or_else(|| "-".to_owned(), |lag| format!("{:.2} ms p50, {:.2} ms p99", lag.p50, lag.p99));
    writeln!(
        text,
        "generator      {:.1} us of CPU a request, {:.0} % of {} thread(s); late by {lag}",
        generator.cpu_us_per_request,
        generator.cpu_share * 100.0,
        generator.threads
    )
}

fn troubles(report: &Report, text: &mut String) -> std::fmt::Result {
    for (what, errors) in [("failed", &report.errors), ("failed to warm", &report.warmup_errors)] {
        for error in errors {
            writeln!(text, "{what:<14} {} by {}: {}", error.count, error.kind, error.example)?;
        }
    }
    report.notes.iter().try_for_each(|note| writeln!(text, "note           {note}"))
}

pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}
