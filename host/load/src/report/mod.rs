//! What a run has shown, as figures; [`table`] and [`page`] show them to people.
//!
//! **Invariant:** fields of the JSON keep their names and units; `schema` counts changes that break readers.

mod chart;
mod page;
mod table;
mod timeline;

use std::time::Duration;

use serde::Serialize;

use crate::calibrate::{Calibrated, Known};
use crate::clock::Moment;
use crate::failure::ErrorKind;
use crate::gate::Ended;
use crate::histogram::Histogram;
use crate::plan::{Plan, Shape};
use crate::run::Run;
use crate::tally::{Sample, Sessions, Tally, ms};
use timeline::Bin;

/// Turns that have a row of their own. Chosen: later ones are all alike.
const TURNS_MAX: u32 = 64;
/// Points of a curve of percentiles.
const CURVE_POINTS: u32 = 200;

/// The report of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    schema: u32,
    url: String,
    api: &'static str,
    model: String,
    load: Load,
    ended_by: Ended,
    /// From the first counted request to the end of the load's duration, else to the end of the last request.
    window_s: f64,
    requests: Requests,
    sessions: SessionCounts,
    tokens: Tokens,
    throughput: Throughput,
    ttft_ms: Option<Distribution>,
    itl_ms: Option<Distribution>,
    itl_mean_ms: Option<Distribution>,
    e2e_ms: Option<Distribution>,
    first_turn: Option<Turns>,
    later_turns: Option<Turns>,
    turns: Vec<Turns>,
    goodput: Option<Goodput>,
    errors: Vec<ErrorKind>,
    warmup_errors: Vec<ErrorKind>,
    in_flight: Flights,
    generator: Generator,
    timeline: Vec<Bin>,
    notes: Vec<String>,
    #[serde(skip)]
    curves: Curves,
}

/// How the load was made.
#[derive(Clone, Debug, Serialize)]
struct Load {
    mode: &'static str,
    concurrency: Option<usize>,
    rate_per_s: Option<f64>,
    speedup: Option<f64>,
    workload: String,
    seed: u64,
    tokens_per_word: f64,
    tokens_per_word_is: Known,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Requests {
    succeeded: u64,
    failed: u64,
    warmup: u64,
    warmup_failed: u64,
    unfinished: u64,
    turned_away: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct SessionCounts {
    begun: u64,
    finished: u64,
    broken: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Tokens {
    input: u64,
    cached: u64,
    output: u64,
    /// Of input tokens whose requests said how many were cached; null if none did.
    cached_share: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Throughput {
    requests_per_s: f64,
    input_tokens_per_s: f64,
    output_tokens_per_s: f64,
}

/// Values by rank.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Distribution {
    count: u64,
    mean: f64,
    min: f64,
    p50: f64,
    p90: f64,
    p95: f64,
    p99: f64,
    max: f64,
}

/// Requests that stood at one place in their session, or at several.
#[derive(Clone, Debug, Serialize)]
struct Turns {
    /// From 1 on; the last row may stand for all that follow. Null for rows of several.
    turn: Option<u32>,
    requests: u64,
    input_tokens_mean: f64,
    cached_share: Option<f64>,
    ttft_ms: Option<Distribution>,
    e2e_ms: Option<Distribution>,
}

/// Answers that kept what was asked of them.
#[derive(Clone, Copy, Debug, Serialize)]
struct Goodput {
    ttft_slo_ms: Option<f64>,
    itl_slo_ms: Option<f64>,
    /// Of all counted requests, failed ones included.
    share: f64,
    requests_per_s: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Flights {
    mean: f64,
    max: u64,
}

/// What the generator itself cost, and how late it was.
#[derive(Clone, Copy, Debug, Serialize)]
struct Generator {
    threads: usize,
    cpu_us_per_request: f64,
    /// Of the time of its threads.
    cpu_share: f64,
    /// From when a request was due to when it was sent.
    lag_ms: Option<Distribution>,
}

#[derive(Clone, Debug, Default)]
struct Curves {
    ttft_ms: Vec<f64>,
    itl_ms: Vec<f64>,
    e2e_ms: Vec<f64>,
}

/// What is known of a run besides its samples.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) ended: Ended,
    /// When it was stopped; none if it ran until its requests had ended.
    pub(crate) stopped: Option<Moment>,
    pub(crate) took: Duration,
    pub(crate) cpu: Duration,
    pub(crate) unfinished: usize,
    pub(crate) in_flight_max: usize,
    pub(crate) calibrated: Calibrated,
    pub(crate) model: String,
}

impl Report {
    pub(crate) fn new(run: &Run, tally: &Tally, seen: Seen) -> Self {
        let Run { plan, source, .. } = run;
        Self::of(plan, source.workload.name(), tally, seen)
    }

    fn of(plan: &Plan, workload: String, tally: &Tally, seen: Seen) -> Self {
        let samples = &tally.samples;
        let window = Window::of(samples, seen.stopped);
        let window_s = window.seconds();
        let values = |of: fn(&Sample) -> Option<f64>| samples.iter().filter_map(of).collect::<Vec<f64>>();
        let (ttft_ms, e2e_ms) = (values(Sample::ttft_ms), values(|s| Some(s.e2e_ms())));
        let tokens = Tokens::of(samples.iter());
        Self {
            schema: 1,
            url: plan.target.base.clone(),
            api: plan.target.api.name(),
            model: seen.model.clone(),
            load: Load::of(plan, workload, seen.calibrated),
            ended_by: seen.ended,
            window_s,
            requests: requests(tally, &seen),
            sessions: tally.sessions.into(),
            tokens,
            throughput: Throughput::of(samples, window),
            ttft_ms: Distribution::of(ttft_ms.clone()),
            itl_ms: Distribution::of_gaps(&tally.gaps),
            itl_mean_ms: Distribution::of(values(Sample::itl_ms)),
            e2e_ms: Distribution::of(e2e_ms.clone()),
            first_turn: Turns::of(None, samples.iter().filter(|s| s.turn == 0)),
            later_turns: Turns::of(None, samples.iter().filter(|s| s.turn > 0)),
            turns: by_turn(samples),
            goodput: Goodput::of(plan, tally, window),
            errors: tally.failures.list(),
            warmup_errors: tally.warm_failures.list(),
            in_flight: Flights { mean: window.in_flight(samples), max: seen.in_flight_max as u64 },
            generator: Generator::of(plan, tally, &seen),
            timeline: timeline::bins(samples),
            notes: notes(plan, tally, &seen),
            curves: Curves {
                ttft_ms: curve(ttft_ms),
                itl_ms: curve_of_gaps(&tally.gaps),
                e2e_ms: curve(e2e_ms),
            },
        }
    }

    /// Whether nothing was answered at all, warm-up included.
    pub fn all_failed(&self) -> bool {
        self.requests.succeeded + self.requests.warmup == 0
    }

    /// Why, in a line: what most requests failed by.
    pub fn failure(&self) -> String {
        let most = self.errors.first().or(self.warmup_errors.first());
        most.map_or_else(
            || "no request was sent".to_owned(),
            |most| format!("every request failed, most by `{}`: {}", most.kind, most.example),
        )
    }

    /// As JSON, with a line feed at its end.
    pub fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("figures and names are JSON");
        text.push('\n');
        text
    }

    /// As text for a terminal.
    pub fn table(&self) -> String {
        table::table(self)
    }

    /// As a page that needs nothing else.
    pub fn page(&self) -> String {
        page::page(self)
    }
}

/// The time that throughput is of.
#[derive(Clone, Copy, Debug)]
struct Window {
    from: Moment,
    end: Moment,
}

impl Window {
    /// Answers that come after a load was stopped are no throughput: there is nobody left who would ask for more.
    fn of(samples: &[Sample], stopped: Option<Moment>) -> Self {
        let from = samples.iter().map(|sample| sample.from).min().unwrap_or_default();
        let last = samples.iter().map(|sample| sample.end).max().unwrap_or(from);
        let end = stopped.unwrap_or(last).min(last).max(from);
        Self { from, end }
    }

    fn seconds(self) -> f64 {
        (self.end - self.from).as_secs_f64()
    }

    /// How much of something there was in a second.
    fn rate(self, count: f64) -> f64 {
        if self.end > self.from { count / self.seconds() } else { 0.0 }
    }

    /// Requests that were in flight, on average.
    fn in_flight(self, samples: &[Sample]) -> f64 {
        let within = |sample: &Sample| sample.end.min(self.end).saturating_sub(sample.sent.max(self.from));
        self.rate(samples.iter().map(within).sum::<Moment>().as_secs_f64())
    }
}

fn requests(tally: &Tally, seen: &Seen) -> Requests {
    Requests {
        succeeded: tally.samples.len() as u64,
        failed: tally.failures.count(),
        warmup: tally.warm,
        warmup_failed: tally.warm_failures.count(),
        unfinished: seen.unfinished as u64,
        turned_away: tally.turned_away,
    }
}

fn by_turn(samples: &[Sample]) -> Vec<Turns> {
    let last = samples.iter().map(|sample| sample.turn).max().unwrap_or(0).min(TURNS_MAX - 1);
    let at = |turn: u32| samples.iter().filter(move |sample| sample.turn.min(TURNS_MAX - 1) == turn);
    (0..=last).filter_map(|turn| Turns::of(Some(turn + 1), at(turn))).collect()
}

/// What a reader has to know to read the figures right.
fn notes(plan: &Plan, tally: &Tally, seen: &Seen) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |is_so: bool, text: &str| {
        if is_so {
            notes.push(text.to_owned());
        }
    };
    note(seen.ended == Ended::Unreachable, "nobody listened, so the load was given up");
    note(seen.ended == Ended::Interrupted, "the load was interrupted; figures are of what had ended");
    note(seen.unfinished > 0, "requests that were in flight at the end were cut, and are in no figure");
    note(
        tally.turned_away > 0,
        "arrivals were turned away at --in-flight-max: the server was slower than the rate",
    );
    note(tally.samples.is_empty(), "no counted request was answered");
    let untold = tally.samples.iter().any(|sample| !sample.is_output_told);
    note(untold, "the server did not count tokens of all answers; events of the stream count instead");
    let uncached = tally.samples.iter().all(|sample| sample.cached_tokens.is_none());
    note(!tally.samples.is_empty() && uncached, "the server does not say what its cache saved");
    note(seen.calibrated.how == Known::Assumed, "the server counted no tokens: a word was taken for one");
    let lag = lags(tally);
    let late = Distribution::of(lag).is_some_and(|lag| lag.p99 > 5.0);
    note(late && plan.shape.is_open(), "the generator was late by more than 5 ms at p99: see its lag");
    let busy = cpu_share(plan, seen) > 0.8;
    note(busy, "the generator used more than 80 % of its threads: --threads, or latencies are its own");
    notes
}

fn lags(tally: &Tally) -> Vec<f64> {
    tally.samples.iter().map(|sample| ms(sample.sent.saturating_sub(sample.due))).collect()
}

fn cpu_share(plan: &Plan, seen: &Seen) -> f64 {
    seen.cpu.as_secs_f64() / seen.took.as_secs_f64().max(1e-9) / plan.threads as f64
}

fn curve(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let point = |at: u32| quantile(&values, f64::from(at) / f64::from(CURVE_POINTS));
    if values.is_empty() { Vec::new() } else { (0..=CURVE_POINTS).map(point).collect() }
}

fn curve_of_gaps(gaps: &Histogram) -> Vec<f64> {
    let point = |at: u32| gaps.quantile_us(f64::from(at) / f64::from(CURVE_POINTS)) / 1e3;
    if gaps.count() == 0 { Vec::new() } else { (0..=CURVE_POINTS).map(point).collect() }
}

/// The least value that `share` of all do not exceed (nearest rank). `sorted` has a value.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = ((share * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
    sorted[rank - 1]
}

impl Distribution {
    /// None for no values.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let at = |share| quantile(&values, share);
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let (p50, p90, p95, p99) = (at(0.5), at(0.9), at(0.95), at(0.99));
        Some(Self { count: values.len() as u64, mean, min, p50, p90, p95, p99, max })
    }

    fn of_gaps(gaps: &Histogram) -> Option<Self> {
        let at = |share| gaps.quantile_us(share) / 1e3;
        (gaps.count() > 0).then(|| Self {
            count: gaps.count(),
            mean: gaps.mean_us() / 1e3,
            min: at(0.0),
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            max: at(1.0),
        })
    }
}

impl Tokens {
    fn of<'a>(samples: impl Iterator<Item = &'a Sample>) -> Self {
        let mut tokens = Self::default();
        let mut told = 0;
        for sample in samples {
            let input = sample.input_tokens.unwrap_or(0);
            tokens.input += input;
            tokens.output += sample.output_tokens;
            if let Some(cached) = sample.cached_tokens {
                tokens.cached += cached;
                told += input;
            }
        }
        tokens.cached_share = (told > 0).then(|| tokens.cached as f64 / told as f64);
        tokens
    }
}

impl Throughput {
    fn of(samples: &[Sample], window: Window) -> Self {
        let ended = samples.iter().filter(|sample| sample.end <= window.end);
        let tokens = Tokens::of(ended.clone());
        Self {
            requests_per_s: window.rate(ended.count() as f64),
            input_tokens_per_s: window.rate(tokens.input as f64),
            output_tokens_per_s: window.rate(tokens.output as f64),
        }
    }
}

impl Turns {
    fn of<'a>(turn: Option<u32>, samples: impl Iterator<Item = &'a Sample> + Clone) -> Option<Self> {
        let requests = samples.clone().count() as u64;
        let tokens = Tokens::of(samples.clone());
        (requests > 0).then(|| Self {
            turn,
            requests,
            input_tokens_mean: tokens.input as f64 / requests as f64,
            cached_share: tokens.cached_share,
            ttft_ms: Distribution::of(samples.clone().filter_map(Sample::ttft_ms).collect()),
            e2e_ms: Distribution::of(samples.map(Sample::e2e_ms).collect()),
        })
    }
}

impl Goodput {
    fn of(plan: &Plan, tally: &Tally, window: Window) -> Option<Self> {
        let slo = plan.slo;
        if slo.ttft_ms.is_none() && slo.itl_ms.is_none() {
            return None;
        }
        // An answer of one token has no gap that could be too long.
        let keeps =
            |value: Option<f64>, most: Option<f64>| most.is_none_or(|most| value.unwrap_or(0.0) <= most);
        let is_good = |s: &&Sample| keeps(s.ttft_ms(), slo.ttft_ms) && keeps(s.itl_ms(), slo.itl_ms);
        let good = tally.samples.iter().filter(is_good);
        let in_time = good.clone().filter(|sample| sample.end <= window.end).count() as f64;
        let good = good.count() as f64;
        let all = tally.samples.len() as f64 + tally.failures.count() as f64;
        Some(Self {
            ttft_slo_ms: slo.ttft_ms,
            itl_slo_ms: slo.itl_ms,
            share: if all > 0.0 { good / all } else { 0.0 },
            requests_per_s: window.rate(in_time),
        })
    }
}

impl Generator {
    fn of(plan: &Plan, tally: &Tally, seen: &Seen) -> Self {
        let ended = tally.samples.len() as u64 + tally.warm;
        let failed = tally.failures.count() + tally.warm_failures.count();
        Self {
            threads: plan.threads,
            cpu_us_per_request: ms(seen.cpu) * 1e3 / (ended + failed).max(1) as f64,
            cpu_share: cpu_share(plan, seen),
            lag_ms: Distribution::of(lags(tally)),
        }
    }
}

impl Load {
    fn of(plan: &Plan, workload: String, calibrated: Calibrated) -> Self {
        let (mode, concurrency, rate_per_s, speedup) = match plan.shape {
            Shape::Closed { sessions } => ("closed", Some(sessions), None, None),
            Shape::Sessions { per_second, .. } => ("open_sessions", None, Some(per_second), None),
            Shape::Requests { per_second, .. } => ("open_requests", None, Some(per_second), None),
            Shape::Schedule { speedup } => ("schedule", None, None, Some(speedup)),
        };
        Self {
            mode,
            concurrency,
            rate_per_s,
            speedup,
            workload,
            seed: plan.seed,
            tokens_per_word: calibrated.tokens_per_word,
            tokens_per_word_is: calibrated.how,
        }
    }
}

impl From<Sessions> for SessionCounts {
    fn from(of: Sessions) -> Self {
        Self { begun: of.begun, finished: of.finished, broken: of.broken }
    }
}

#[cfg(test)]
mod tests;
