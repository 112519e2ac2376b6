//! The report as one page that needs nothing else: no script, no file, no network.
//!
//! **Invariant:** every tag is closed, and no text of a server is taken for one.

use super::chart::{Chart, Scale, Series};
use super::timeline::Bin;
use super::{Report, Turns};

const STYLE: &str = "\
:root{color-scheme:light dark}body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1180px;padding:0 1rem}\
h1{font-size:1.3rem}h2{font-size:1rem;margin:0 0 .3rem}pre{overflow-x:auto;padding:1rem;border:1px solid #8884;border-radius:6px}\
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(480px,1fr));gap:1.5rem}figure{margin:0}svg{width:100%}\
svg text{font:11px system-ui,sans-serif;fill:currentColor;opacity:.75}.grid{stroke:#8884}\
figcaption span{margin-right:1rem}figcaption i{display:inline-block;width:.8em;height:.8em;margin-right:.4em;border-radius:2px}";

pub(super) fn page(report: &Report) -> String {
    let title = escaped(&format!("{} of {}", report.model, report.url));
    let charts: String = charts(report).iter().map(Chart::svg).collect();
    let table = escaped(&report.table());
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><title>{title}</title><style>{STYLE}</style></head>\
         <body><h1>{title}</h1><pre>{table}</pre><main>{charts}</main></body></html>\n"
    )
}

fn charts(report: &Report) -> [Chart; 6] {
    let over_time =
        |title, y, series: Vec<Series>| Chart { title, x: "seconds", y, scale: Scale::Linear, series };
    let line = |name, of: fn(&Bin) -> Option<f64>| Series {
        name,
        points: report.timeline.iter().filter_map(|bin| Some((bin.at_s, of(bin)?))).collect(),
    };
    let by_turn = |name, of: fn(&Turns) -> Option<f64>| Series {
        name,
        points: report.turns.iter().filter_map(|t| Some((f64::from(t.turn?), of(t)?))).collect(),
    };
    let turns = |title, y, series| Chart { title, x: "turn", y, scale: Scale::Linear, series };
    [
        over_time(
            "Time to first token, over time",
            "ms",
            vec![line("p50", |bin| bin.ttft_ms_p50), line("p95", |bin| bin.ttft_ms_p95)],
        ),
        percentiles(report),
        over_time("Requests", "per second", vec![line("answered", |bin| Some(bin.requests_per_s))]),
        over_time("Output tokens", "per second", vec![line("tokens", |bin| Some(bin.output_tokens_per_s))]),
        turns(
            "Cached share of the prompt, by turn",
            "percent",
            vec![by_turn("cached", |t| t.cached_share.map(|share| share * 100.0))],
        ),
        turns(
            "Time to first token, by turn",
            "ms",
            vec![by_turn("p50", |t| t.ttft_ms.map(|d| d.p50)), by_turn("p95", |t| t.ttft_ms.map(|d| d.p95))],
        ),
    ]
}

fn percentiles(report: &Report) -> Chart {
    let curve = |name, values: &[f64]| {
        let last = (values.len().max(2) - 1) as f64;
        let points = values.iter().enumerate().map(|(at, ms)| (at as f64 / last * 100.0, *ms)).collect();
        Series { name, points }
    };
    let curves = &report.curves;
    let series = vec![
        curve("TTFT", &curves.ttft_ms),
        curve("ITL, gaps", &curves.itl_ms),
        curve("E2E", &curves.e2e_ms),
    ];
    Chart { title: "Percentiles", x: "percentile", y: "ms", scale: Scale::Logarithmic, series }
}

/// Text that is no tag.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
