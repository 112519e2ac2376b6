//! The table that every benchmark prints, and the statistics in it.

use std::time::Duration;

/// A bar: what the project holds itself to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bar {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// Only told.
    None,
}

/// Prints the head of a table.
pub(crate) fn head(title: &str) {
    println!("\n{title}\n{:<58} {:>12} {:>12} {:>12}", "", "value", "baseline", "bar");
}

/// Prints a row; `baseline` comes from the same run.
pub(crate) fn row(what: &str, value: f64, baseline: Option<f64>, bar: Bar) {
    let baseline = baseline.map_or_else(|| "-".into(), number);
    let (bar, verdict) = match bar {
        Bar::AtMost(max) => (format!("<= {}", number(max)), if value <= max { "  ok" } else { "  short" }),
        Bar::AtLeast(min) => (format!(">= {}", number(min)), if value >= min { "  ok" } else { "  short" }),
        Bar::None => ("-".into(), ""),
    };
    println!("{what:<58} {:>12} {baseline:>12} {bar:>12}{verdict}", number(value));
}

fn number(value: f64) -> String {
    if value == 0.0 || value.abs() >= 1000.0 {
        format!("{value:.0}")
    } else if value.abs() >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}

/// The value below which `share` of the samples lie. Sorts them.
pub(crate) fn quantile(samples: &mut [f64], share: f64) -> f64 {
    if samples.is_empty() {
        return f64::NAN;
    }
    samples.sort_by(f64::total_cmp);
    samples[((samples.len() - 1) as f64 * share).round() as usize]
}

/// The middle of a few figures.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    quantile(&mut figures, 0.5)
}

/// Microseconds.
pub(crate) fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
