//! How a run went over time.
//!
//! **Invariant:** bins are equally wide and cover the window; there are a hundred of them at most.

use serde::Serialize;

use super::quantile;
use crate::tally::Sample;

const BINS_MAX: f64 = 100.0;
/// Chosen: below, a bin of a slow server would hold a request or none.
const WIDTH_MIN_S: f64 = 0.1;

/// A span of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Bin {
    /// Its middle, from the first counted request on.
    pub(crate) at_s: f64,
    /// Answers that ended in it.
    pub(crate) requests_per_s: f64,
    /// Their tokens.
    pub(crate) output_tokens_per_s: f64,
    /// Of requests whose latency counts from within it; null if there are none.
    pub(crate) ttft_ms_p50: Option<f64>,
    pub(crate) ttft_ms_p95: Option<f64>,
}

/// The bins of a window.
pub(crate) fn bins(samples: &[Sample]) -> Vec<Bin> {
    let Some(begun) = samples.iter().map(|sample| sample.from).min() else { return Vec::new() };
    let seconds = |at: std::time::Duration| at.saturating_sub(begun).as_secs_f64();
    let window_s = samples.iter().map(|sample| seconds(sample.end)).fold(0.0, f64::max);
    let width_s = (window_s / BINS_MAX).max(WIDTH_MIN_S);
    let count = (window_s / width_s).ceil().max(1.0) as usize;
    let bin = |at_s: f64| ((at_s / width_s) as usize).min(count - 1);
    let mut ttft: Vec<Vec<f64>> = vec![Vec::new(); count];
    let mut ended = vec![(0_u64, 0_u64); count];
    for sample in samples {
        ttft[bin(seconds(sample.from))].extend(sample.ttft_ms());
        let (requests, tokens) = &mut ended[bin(seconds(sample.end))];
        *requests += 1;
        *tokens += sample.output_tokens;
    }
    let row = |(place, (mut ttft, (requests, tokens))): (usize, (Vec<f64>, (u64, u64)))| {
        ttft.sort_unstable_by(f64::total_cmp);
        let at = |share| (!ttft.is_empty()).then(|| quantile(&ttft, share));
        Bin {
            at_s: (place as f64 + 0.5) * width_s,
            requests_per_s: requests as f64 / width_s,
            output_tokens_per_s: tokens as f64 / width_s,
            ttft_ms_p50: at(0.5),
            ttft_ms_p95: at(0.95),
        }
    };
    ttft.into_iter().zip(ended).enumerate().map(row).collect()
}
