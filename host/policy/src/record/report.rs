//! What a replay found, as a table for people and as JSON for programs.
//!
//! **Invariant:** everything but the times is the same in every run over the same log.

use super::compare::Comparison;
use crate::slot::Slot;
use crate::stats::{Counts, Outcome, SlotCounts, Stats};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// What a replay found.
#[derive(Clone, Debug, Serialize)]
pub struct ReplayReport {
    /// Who decided: `the recorded chain`, or what took its place.
    pub against: String,
    /// Whether every component was the recorded one.
    pub as_recorded: bool,
    /// Files of the log.
    pub files: usize,
    /// Decisions and batches of outcomes.
    pub records: u64,
    /// What was decided beside what is decided again.
    pub comparison: Comparison,
    /// Each plugin's calls.
    pub calls: Vec<CallCost>,
    /// Calls that missed a deadline when they were recorded, and were made to miss it again.
    pub missed_again: u64,
    /// The digest of each state at the end, by plugin.
    pub states: BTreeMap<String, Vec<String>>,
    /// States whose digest the log has for a moment after its beginning.
    pub states_checked: u64,
    /// Those that were the same.
    pub states_equal: u64,
    /// Plugins whose recorded answers follow from more than the log has, and why.
    pub unknown: BTreeMap<String, String>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// What one plugin's calls in one slot came to, and what they cost.
#[derive(Clone, Debug, Serialize)]
pub struct CallCost {
    /// Its name in the chain.
    pub plugin: String,
    /// The slot.
    pub slot: Slot,
    /// Calls that were made.
    pub calls: u64,
    /// What they came to.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Fuel of a call, on average.
    pub fuel: u64,
    /// Time of a call: differs from run to run.
    pub time_us: CallTime,
}

/// Time of a call in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CallTime {
    /// On average.
    pub mean: f64,
    /// 99th percentile.
    pub p99: f64,
}

/// What a replay of the recorded chain came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayVerdict {
    /// Every answer is the same to the bit.
    Identical,
    /// So many are not.
    Different(u64),
    /// So many are not, and nobody can tell why: some plugins' recorded answers follow from more than the log has.
    Unknown(u64),
}

impl ReplayReport {
    /// Calls that trapped, went over their budget or broke a law of their slot, beside those that the log has too.
    pub fn broken_laws(&self) -> u64 {
        self.broken().values().sum::<u64>().saturating_sub(self.missed_again)
    }

    fn broken(&self) -> BTreeMap<Outcome, u64> {
        let mut broken = BTreeMap::new();
        for outcome in [Outcome::Trapped, Outcome::OverDeadline, Outcome::BadAnswer] {
            let of = |call: &CallCost| call.outcomes.get(&outcome).copied().unwrap_or(0);
            broken.insert(outcome, self.calls.iter().map(of).sum());
        }
        broken
    }

    /// Whether the answers are those of the log.
    pub fn verdict(&self) -> ReplayVerdict {
        match self.comparison.decisions() - self.comparison.identical() {
            0 => ReplayVerdict::Identical,
            different if self.unknown.is_empty() => ReplayVerdict::Different(different),
            different => ReplayVerdict::Unknown(different),
        }
    }

    /// Whether an operator can be content. Errors: a law is broken; or answers of the recorded chain, or with
    /// `expect_identical` of any, are not those of the log.
    pub fn passes(&self, expect_identical: bool) -> Result<(), String> {
        let broken = self.broken_laws();
        if broken > 0 {
            return Err(format!("{broken} calls broke a law of their slot"));
        }
        match self.verdict() {
            ReplayVerdict::Different(answers) if self.as_recorded || expect_identical => {
                let first = self.comparison.first_difference.as_deref().unwrap_or("none");
                Err(format!("{answers} answers are not those of the log; the first: {first}"))
            }
            ReplayVerdict::Unknown(answers) if expect_identical => Err(format!(
                "{answers} answers are not those of the log, which does not have all that they follow from"
            )),
            _ => Ok(()),
        }
    }
}

/// The calls of all instances, by plugin and slot.
pub(super) fn sum_calls(stats: &[(String, Arc<Stats>)]) -> Vec<CallCost> {
    let mut sums = BTreeMap::<&str, Counts>::new();
    for (plugin, stats) in stats {
        sums.entry(plugin).or_default().add(stats.read());
    }
    let of_slot = |plugin: &str, (slot, counts): (Slot, SlotCounts)| {
        let calls = counts.times.count();
        let outcomes = Outcome::ALL.into_iter().map(|outcome| (outcome, counts.of(outcome)));
        CallCost {
            plugin: plugin.to_owned(),
            slot,
            calls,
            outcomes: outcomes.filter(|(_, count)| *count > 0).collect(),
            fuel: counts.fuel / calls.max(1),
            time_us: CallTime {
                mean: counts.times.sum_seconds() * 1e6 / calls.max(1) as f64,
                p99: counts.times.quantile_us(0.99),
            },
        }
    };
    let all = sums.into_iter().flat_map(|(plugin, counts)| counts.used().map(move |of| of_slot(plugin, of)));
    all.collect()
}

fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        // Rounded down: only all is 100 %.
        _ => format!("{:.2} %", (part as f64 / whole as f64 * 10_000.0).floor() / 100.0),
    }
}

impl fmt::Display for ReplayReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = &self.comparison;
        writeln!(f, "replayed {} records of {} files against {}", self.records, self.files, self.against)?;
        self.agreement(f)?;
        self.effects(f)?;
        self.costs(f)?;
        for (plugin, digests) in &self.states {
            let short = digests.iter().map(|digest| &digest[..12]).collect::<Vec<_>>().join(" ");
            writeln!(f, "state of {plugin:<24} {short}")?;
        }
        if self.states_checked > 0 && self.as_recorded {
            writeln!(f, "states equal to the log's {} of {}", self.states_equal, self.states_checked)?;
        }
        for (plugin, why) in &self.unknown {
            writeln!(f, "note: `{plugin}` {why}: its answers cannot be told from those of the log")?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        match self.verdict() {
            ReplayVerdict::Identical => writeln!(f, "every answer is the recorded one, bit for bit"),
            ReplayVerdict::Different(_) => match &all.first_difference {
                Some(first) => writeln!(f, "first difference: {first}"),
                None => Ok(()),
            },
            ReplayVerdict::Unknown(answers) => writeln!(
                f,
                "{answers} answers differ; whether a component changed cannot be told from this log"
            ),
        }
    }
}

impl ReplayReport {
    fn agreement(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = &self.comparison;
        let row = |f: &mut fmt::Formatter<'_>, slot: &str, [decisions, agreed, identical]: [u64; 3]| {
            let (agreed, identical) = (percent(agreed, decisions), percent(identical, decisions));
            writeln!(f, "{slot:<28} {decisions:>12} {agreed:>12} {identical:>12}")
        };
        writeln!(f, "\n{:<28} {:>12} {:>12} {:>12}", "slot", "decisions", "agreement", "bit for bit")?;
        row(f, "admit", [all.admit.decisions, all.admit.agreed, all.admit.identical])?;
        row(f, "route", [all.route.decisions, all.route.agreed, all.route.identical])?;
        row(f, "schedule", [all.schedule.decisions, all.schedule.agreed, all.schedule.identical])?;
        row(f, "retain", [all.retain.decisions, all.retain.agreed, all.retain.identical])?;
        row(f, "all", [all.decisions(), all.agreed(), all.identical()])
    }

    fn effects(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = &self.comparison;
        writeln!(f, "\n{:<42} {:>12} {:>12}", "effect", "recorded", "replayed")?;
        let row = |f: &mut fmt::Formatter<'_>, name: &str, values: [String; 2]| {
            writeln!(f, "{name:<42} {:>12} {:>12}", values[0], values[1])
        };
        row(f, "predicted hit tokens", all.route.hit_tokens.map(|it| it.to_string()))?;
        row(f, "load: variation of tokens to compute", all.route.load_cv.map(|it| format!("{it:.4}")))?;
        row(f, "routes that fell back", all.route.fell_back.map(|it| it.to_string()))?;
        row(f, "routes refused by a failure", all.route.refused.map(|it| it.to_string()))?;
        for (change, count) in &all.admit.changes {
            writeln!(f, "verdicts {change:<33} {:>12} {count:>12}", "")?;
        }
        if all.schedule.ordered > 0 {
            let tau = all.schedule.tau_sum / all.schedule.ordered as f64;
            let first = percent(all.schedule.first_agreed, all.schedule.ordered);
            writeln!(f, "plans of two and more: same first {first}, Kendall's tau {tau:.4}")?;
        }
        if !self.as_recorded {
            writeln!(f, "(counterfactual: caches and queues are those that the recorded decisions led to)")?;
        }
        Ok(())
    }

    fn costs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = ["plugin", "slot", "calls", "fuel/call", "us mean", "us p99"];
        let [plugin, slot, calls, fuel, mean, p99] = columns;
        writeln!(f, "\n{plugin:<28} {slot:<9} {calls:>8} {fuel:>10} {mean:>8} {p99:>8}  outcomes")?;
        for call in &self.calls {
            let outcomes = call.outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}"));
            let outcomes = outcomes.collect::<Vec<_>>().join(", ");
            let CallCost { plugin, slot, calls, fuel, time_us, .. } = call;
            let (slot, CallTime { mean, p99 }) = (slot.as_str(), time_us);
            writeln!(f, "{plugin:<28} {slot:<9} {calls:>8} {fuel:>10} {mean:>8.1} {p99:>8.1}  {outcomes}")?;
        }
        let broken = self.broken();
        let words = broken.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect::<Vec<_>>();
        writeln!(f, "\nbroken laws: {} ({})", self.broken_laws(), words.join(", "))?;
        if self.missed_again > 0 {
            writeln!(f, "calls that missed their deadline, as in the log: {}", self.missed_again)?;
        }
        Ok(())
    }
}
