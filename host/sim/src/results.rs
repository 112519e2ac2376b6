//! What came of a simulation: every request, and what is said of all of them.

use std::collections::BTreeMap;

use policy::{CallReport, Generations, Outcome, Slot};
use serde::Serialize;

use crate::time::Ns;
use crate::workload::Workload;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It never came in, or never ended.
    #[default]
    Pending,
    /// It was answered.
    Done,
    /// No worker has the pages for it.
    TooLong,
    /// There was no worker.
    NoWorker,
    /// It was sent away: at the door, or since a policy failed that nothing stands in for.
    Rejected,
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) workload: u16,
    pub(crate) request: u32,
    pub(crate) worker: u16,
    pub(crate) status: Status,
    pub(crate) arrived: Ns,
    pub(crate) first: Option<Ns>,
    pub(crate) done: Ns,
    pub(crate) cached: u32,
    pub(crate) preemptions: u32,
}

impl Call {
    pub(crate) fn new(workload: u16, request: u32) -> Self {
        Self {
            workload,
            request,
            worker: 0,
            status: Status::Pending,
            arrived: Ns::default(),
            first: None,
            done: Ns::default(),
            cached: 0,
            preemptions: 0,
        }
    }

    pub(crate) fn ttft_ms(&self) -> Option<f64> {
        self.first.map(|first| first.since(self.arrived) / 1e6)
    }

    /// Mean time between its tokens.
    pub(crate) fn itl_ms(&self, output_tokens: u32) -> Option<f64> {
        let gaps = output_tokens.checked_sub(1).filter(|gaps| *gaps > 0)?;
        let first = self.first?;
        (self.done > first).then(|| self.done.since(first) / 1e6 / f64::from(gaps))
    }
}

/// Times between tokens: counts by size, five in a hundred wide.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Gaps {
    counts: Vec<u64>,
    count: u64,
    sum_ns: f64,
}

/// Bounds of a size lie this far apart.
const GAP_STEP: f64 = 1.05;

impl Gaps {
    pub(crate) fn add(&mut self, ns: f64, count: u64) {
        let size = (ns.max(1.0).ln() / GAP_STEP.ln()) as usize;
        if self.counts.len() <= size {
            self.counts.resize(size + 1, 0);
        }
        self.counts[size] += count;
        self.count += count;
        self.sum_ns += ns * count as f64;
    }

    /// Milliseconds below which `share` of them lie, to five in a hundred.
    fn quantile_ms(&self, share: f64) -> f64 {
        let wanted = (share * self.count as f64) as u64;
        let mut seen = 0;
        for (size, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen > wanted {
                return GAP_STEP.powf(size as f64 + 0.5) / 1e6;
            }
        }
        0.0
    }

    fn mean_ms(&self) -> f64 {
        self.sum_ns / self.count.max(1) as f64 / 1e6
    }
}

/// What a worker did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WorkerResult {
    /// Seconds in steps.
    pub busy_s: f64,
    /// Steps.
    pub steps: u64,
    /// Sequences that gave their pages back.
    pub preemptions: u64,
    /// Blocks that left its cache.
    pub evictions: u64,
    /// Tokens that came from slower tiers.
    pub fetched_tokens: u64,
}

/// Calls of a plugin in one slot, of which some came to nothing: the built-in policy of the slot decided in its place, or
/// nobody did, as its `on_failure` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failures {
    /// Its name in the chain.
    pub plugin: String,
    /// The slot.
    pub slot: Slot,
    /// All of its calls.
    pub calls: u64,
    /// How many failed, by what became of them.
    pub failed: BTreeMap<Outcome, u64>,
}

impl Failures {
    /// Those of all plugins of a chain.
    pub(crate) fn of(generations: &Generations) -> Vec<Self> {
        let of_slot = |plugin: &str, slot: Slot, report: CallReport| {
            let calls = report.outcomes.values().sum();
            let is_failure = |outcome: &Outcome| !matches!(outcome, Outcome::Ok | Outcome::Abstained);
            let failed: BTreeMap<Outcome, u64> = report
                .outcomes
                .into_iter()
                .filter(|(outcome, count)| is_failure(outcome) && *count > 0)
                .collect();
            (!failed.is_empty()).then(|| Self { plugin: plugin.to_owned(), slot, calls, failed })
        };
        let mut all = Vec::new();
        for plugin in generations.plugins() {
            all.extend(
                plugin.calls.into_iter().filter_map(|(slot, report)| of_slot(&plugin.name, slot, report)),
            );
        }
        all
    }
}

/// All that came of a simulation.
#[derive(Clone, Debug)]
pub struct Results {
    /// Who decided.
    pub chain: String,
    /// What each worker did.
    pub workers: Vec<WorkerResult>,
    /// Plugins that failed.
    pub failures: Vec<Failures>,
    pub(crate) end: Ns,
    pub(crate) calls: Vec<Call>,
    pub(crate) gaps: Gaps,
}

/// Middle and tail of some times, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Times {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// Nine in ten are below.
    pub p90: f64,
    /// 95 in a hundred are below.
    pub p95: f64,
    /// 99 in a hundred are below.
    pub p99: f64,
}

impl Times {
    /// Of times in any order.
    pub(crate) fn of(mut all: Vec<f64>) -> Self {
        if all.is_empty() {
            return Self::default();
        }
        all.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| all[((all.len() - 1) as f64 * share).round() as usize];
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        Self { mean, p50: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99) }
    }
}

/// What is said of a simulation, or of one workload in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Who decided.
    pub chain: String,
    /// Of which requests; empty for all.
    pub workload: String,
    /// Requests.
    pub requests: u64,
    /// Those that were answered.
    pub answered: u64,
    /// Those that were sent away.
    pub rejected: u64,
    /// Share of prompt tokens that were found in a cache.
    pub reuse: f64,
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Seconds from the start to the last event.
    pub span_s: f64,
    /// Time to first token, in milliseconds.
    pub ttft_ms: Times,
    /// Time between tokens, in milliseconds: of all gaps of all workloads, to five in a hundred.
    pub itl_ms: Times,
    /// From arrival to the last token, in milliseconds.
    pub e2e_ms: Times,
    /// Share of the time that workers were in steps.
    pub busy: f64,
    /// The busiest worker's time in steps over the mean one's.
    pub imbalance: f64,
    /// Sequences that gave their pages back.
    pub preemptions: u64,
}

impl Results {
    /// Requests of a workload that were answered in the first seconds.
    pub fn answered_within(&self, workload: usize, seconds: f64) -> u64 {
        let end = Ns::of_ms(seconds * 1e3);
        let of = |call: &&Call| call.workload as usize == workload && call.status == Status::Done;
        self.calls.iter().filter(of).filter(|call| call.done <= end).count() as u64
    }

    /// Of all requests, or of one workload's.
    pub fn summary(&self, workloads: &[Workload], of: Option<usize>) -> Summary {
        let asked = |call: &Call| &workloads[call.workload as usize].trace.requests[call.request as usize];
        let calls = || self.calls.iter().filter(|call| of.is_none_or(|of| of == call.workload as usize));
        let answered = || calls().filter(|call| call.status == Status::Done);
        let sum = |of: fn(&trace::Request) -> u32| answered().map(|call| u64::from(of(asked(call)))).sum();
        let prompt_tokens: u64 = sum(|request| request.prompt_tokens);
        let cached: u64 = answered().map(|call| u64::from(call.cached)).sum();
        let busy: f64 = self.workers.iter().map(|worker| worker.busy_s).sum();
        let busiest = self.workers.iter().map(|worker| worker.busy_s).fold(0.0, f64::max);
        let span_s = self.end.ms() / 1e3;
        let count = self.workers.len().max(1) as f64;
        let quantile = |share| self.gaps.quantile_ms(share);
        Summary {
            chain: self.chain.clone(),
            workload: of.map_or_else(String::new, |of| workloads[of].name.clone()),
            requests: calls().count() as u64,
            answered: answered().count() as u64,
            rejected: calls().filter(|call| call.status == Status::Rejected).count() as u64,
            reuse: cached as f64 / prompt_tokens.max(1) as f64,
            prompt_tokens,
            output_tokens: sum(|request| request.output_tokens),
            span_s,
            ttft_ms: Times::of(calls().filter_map(Call::ttft_ms).collect()),
            itl_ms: Times {
                mean: self.gaps.mean_ms(),
                p50: quantile(0.5),
                p90: quantile(0.9),
                p95: quantile(0.95),
                p99: quantile(0.99),
            },
            e2e_ms: Times::of(answered().map(|call| call.done.since(call.arrived) / 1e6).collect()),
            busy: if span_s > 0.0 { busy / span_s / count } else { 0.0 },
            imbalance: if busy > 0.0 { busiest / (busy / count) } else { 1.0 },
            preemptions: self.workers.iter().map(|worker| worker.preemptions).sum(),
        }
    }
}
