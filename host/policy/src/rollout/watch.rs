//! What a generation may break before it is taken back.
//!
//! Reads the counters of its plugins now and then; nothing here is on the path of a request.
//! **Invariant:** a plugin is judged by its own calls since it was put in, by enough of them, and no harder than it
//! was before.

use crate::generation::Generation;
use crate::seat::Seat;
use crate::stats::{Counts, Outcome, SlotCounts};
use std::collections::BTreeMap;
use std::time::Duration;

/// Calls are judged in spans of so long, so that a healthy hour does not hide a bad minute.
const SPAN_NS: u64 = 10_000_000_000;
/// A plugin that did not change may fail so much more often than before.
const BEFORE_FACTOR: f64 = 2.0;

/// What a breach is called, for labels.
pub const BREACHES: [&str; 4] = ["trap_rate", "deadline_rate", "bad_answer_rate", "clipped_rate"];

/// When a generation is taken back. A rate is a share of the calls that a plugin was asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WatchLimits {
    /// Calls that trapped, panicked, or broke a limit.
    pub trap_rate_max: f64,
    /// Calls that spent their time.
    pub deadline_rate_max: f64,
    /// Answers against the laws of a slot.
    pub bad_answer_rate_max: f64,
    /// Values of answers that were clamped, a call. At 1 it is off.
    pub clipped_rate_max: f64,
    /// Calls of a plugin, missed ones included, before it is judged.
    pub calls_min: u64,
    /// How long a newly active generation is watched; zero switches it off.
    pub probation: Duration,
    /// How long a canary runs without a breach before it is promoted; zero leaves that to operators.
    pub promote_after: Duration,
    /// How often all this is looked at.
    pub tick: Duration,
}

impl Default for WatchLimits {
    /// 1 % of 20 calls and more, for a minute, looked at five times a second. Chosen: a healthy policy fails never.
    fn default() -> Self {
        Self {
            trap_rate_max: 0.01,
            deadline_rate_max: 0.01,
            bad_answer_rate_max: 0.01,
            clipped_rate_max: 1.0,
            calls_min: 20,
            probation: Duration::from_secs(60),
            promote_after: Duration::ZERO,
            tick: Duration::from_millis(200),
        }
    }
}

impl WatchLimits {
    fn rates_max(&self) -> [f64; 4] {
        [self.trap_rate_max, self.deadline_rate_max, self.bad_answer_rate_max, self.clipped_rate_max]
    }
}

/// A limit that was exceeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Breach {
    /// One of [`BREACHES`].
    pub(crate) kind: &'static str,
    /// The same with numbers.
    pub(crate) why: String,
}

/// One generation under watch.
#[derive(Debug, Default)]
pub(crate) struct Watched(BTreeMap<String, Span>);

#[derive(Debug)]
struct Span {
    base: Counts,
    since_ns: u64,
    before: [f64; 4],
}

impl Watched {
    /// From here on. `before` is the generation whose place it takes.
    pub(crate) fn new(
        generation: &Generation,
        before: &Generation,
        limits: &WatchLimits,
        now_ns: u64,
    ) -> Self {
        let span = |(name, seat): (&String, &std::sync::Arc<Seat>)| {
            let same = |old: &&std::sync::Arc<Seat>| {
                old.compiled.digest == seat.compiled.digest && old.spec.config == seat.spec.config
            };
            let total = before.seats().get(name).filter(same).map(|old| old.stats.read().total());
            let known = total.filter(|total| total.calls() >= limits.calls_min);
            let before = known.map_or([0.0; 4], |total| rates(&total));
            (name.clone(), Span { base: seat.stats.read(), since_ns: now_ns, before })
        };
        Self(generation.seats().iter().map(span).collect())
    }

    /// The first limit that a plugin exceeds, if one does.
    pub(crate) fn look(
        &mut self,
        generation: &Generation,
        limits: &WatchLimits,
        now_ns: u64,
    ) -> Option<Breach> {
        self.0.iter_mut().find_map(|(name, span)| {
            let counts = generation.seats().get(name)?.stats.read();
            let total = counts.clone().since(&span.base).total();
            if total.calls() < limits.calls_min.max(1) {
                return None;
            }
            let breach = judge(name, &total, span.before, limits);
            if now_ns.saturating_sub(span.since_ns) >= SPAN_NS {
                (span.base, span.since_ns) = (counts, now_ns);
            }
            breach
        })
    }
}

fn judge(plugin: &str, total: &SlotCounts, before: [f64; 4], limits: &WatchLimits) -> Option<Breach> {
    let rates = rates(total).into_iter().zip(limits.rates_max()).zip(before).zip(BREACHES);
    let exceeded = rates.map(|(((rate, max), before), kind)| (rate, max.max(before * BEFORE_FACTOR), kind));
    let (rate, max, kind) = exceeded.into_iter().find(|(rate, max, _)| rate > max)?;
    let (words, calls, max) = (kind.replace('_', " "), total.calls(), (max * 1e4).round() / 1e4);
    Some(Breach { kind, why: format!("{words} {rate:.2} > {max} over {calls} calls of plugin `{plugin}`") })
}

/// Shares of the calls that were made, in the order of [`BREACHES`]. A call that an open breaker kept away is none.
fn rates(total: &SlotCounts) -> [f64; 4] {
    let asked = total.calls() - total.of(Outcome::FellBack);
    if asked == 0 {
        // Nobody could be asked at all: what is kept away for its faults goes on being faulty.
        return [f64::from(u8::from(total.calls() > 0)), 0.0, 0.0, 0.0];
    }
    let share = |count: u64| (count as f64 / asked as f64).min(1.0);
    let faults =
        [Outcome::Trapped, Outcome::OverDeadline, Outcome::BadAnswer].map(|outcome| total.of(outcome));
    [share(faults[0]), share(faults[1]), share(faults[2]), share(total.clipped)]
}
