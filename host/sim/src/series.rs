//! Figures over time, for plots and files.

use serde::Serialize;

use crate::results::{Results, Status, Times};
use crate::workload::Workload;

/// What happened in one stretch of a simulation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Bin {
    /// Where it begins, in seconds.
    pub at_s: f64,
    /// Requests that came in.
    pub arrivals: u64,
    /// Time to first token of those, in milliseconds.
    pub ttft_ms_p50: f64,
    /// 99 in a hundred are below.
    pub ttft_ms_p99: f64,
    /// Mean time between their tokens, in milliseconds.
    pub itl_ms: f64,
    /// Share of their prompt tokens that were found in a cache.
    pub reuse: f64,
    /// Requests that were being answered or waited, on average.
    pub in_flight: f64,
    /// Requests of the worker that had the most of them.
    pub in_flight_max: f64,
}

impl Results {
    /// The simulation in stretches of equal length.
    pub fn series(&self, workloads: &[Workload], bins: usize) -> Vec<Bin> {
        let span_ns = self.end.0.max(1) as f64;
        let width = span_ns / bins as f64;
        let place = |ns: u64| ((ns as f64 / width) as usize).min(bins - 1);
        let mut all: Vec<Gathered> = (0..bins).map(|_| Gathered::new(self.workers.len())).collect();
        for call in self.calls.iter().filter(|call| call.status == Status::Done) {
            let asked = &workloads[call.workload as usize].trace.requests[call.request as usize];
            let bin = &mut all[place(call.arrived.0)];
            bin.ttft.extend(call.ttft_ms());
            bin.itl.extend(call.itl_ms(asked.output_tokens));
            bin.prompt += u64::from(asked.prompt_tokens);
            bin.cached += u64::from(call.cached);
            for (at, bin) in
                all.iter_mut().enumerate().take(place(call.done.0) + 1).skip(place(call.arrived.0))
            {
                let (start, end) = (at as f64 * width, (at + 1) as f64 * width);
                let share = (call.done.0 as f64).min(end) - (call.arrived.0 as f64).max(start);
                bin.present[call.worker as usize] += share.max(0.0) / width;
            }
        }
        all.into_iter().enumerate().map(|(at, bin)| bin.told(at as f64 * width / 1e9)).collect()
    }
}

struct Gathered {
    ttft: Vec<f64>,
    itl: Vec<f64>,
    prompt: u64,
    cached: u64,
    present: Vec<f64>,
}

impl Gathered {
    fn new(workers: usize) -> Self {
        Self { ttft: Vec::new(), itl: Vec::new(), prompt: 0, cached: 0, present: vec![0.0; workers] }
    }

    fn told(self, at_s: f64) -> Bin {
        let arrivals = self.ttft.len() as u64;
        let times = Times::of(self.ttft);
        Bin {
            at_s,
            arrivals,
            ttft_ms_p50: times.p50,
            ttft_ms_p99: times.p99,
            itl_ms: Times::of(self.itl).mean,
            reuse: self.cached as f64 / self.prompt.max(1) as f64,
            in_flight: self.present.iter().sum(),
            in_flight_max: self.present.iter().copied().fold(0.0, f64::max),
        }
    }
}
