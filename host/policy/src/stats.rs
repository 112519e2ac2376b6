//! What became of policy calls: a counter an outcome, and how long calls took.
//!
//! **Invariant:** counting takes no lock.

use crate::slot::Slot;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What one policy call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A usable answer.
    Ok,
    /// No answer from this policy: nothing is wrong.
    Abstained,
    /// It trapped, panicked, or broke a limit other than its deadline.
    Trapped,
    /// It spent more CPU time than it may.
    OverDeadline,
    /// It answered against the laws of the slot.
    BadAnswer,
    /// It was not asked: its breaker is open, or no instance is ready.
    FellBack,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 6] =
        [Self::Ok, Self::Abstained, Self::Trapped, Self::OverDeadline, Self::BadAnswer, Self::FellBack];

    /// Its word, for labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Abstained => "abstained",
            Self::Trapped => "trapped",
            Self::OverDeadline => "over_deadline",
            Self::BadAnswer => "bad_answer",
            Self::FellBack => "fell_back",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Buckets of a histogram: four an octave from 64 ns, the last one open. 80 reach 67 ms.
const BUCKETS: usize = 80;
const FIRST_OCTAVE: u32 = 6;

fn bucket_of(ns: u64) -> usize {
    let ns = ns.max(1 << FIRST_OCTAVE);
    let octave = ns.ilog2();
    let quarter = (ns >> (octave - 2)) & 3;
    (((octave - FIRST_OCTAVE) * 4) as usize + quarter as usize).min(BUCKETS - 1)
}

/// Upper edge of a bucket in nanoseconds.
fn edge_of(bucket: usize) -> u64 {
    let (octave, quarter) = (bucket as u32 / 4 + FIRST_OCTAVE, bucket as u64 % 4);
    (5 + quarter) << (octave - 2)
}

/// Counters of one plugin in one slot.
#[derive(Debug)]
pub(crate) struct SlotStats {
    outcomes: [AtomicU64; 6],
    clipped: AtomicU64,
    fuel: AtomicU64,
    spent_ns: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Default for SlotStats {
    fn default() -> Self {
        Self {
            outcomes: Default::default(),
            clipped: AtomicU64::new(0),
            fuel: AtomicU64::new(0),
            spent_ns: AtomicU64::new(0),
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl SlotStats {
    /// Counts a call; returns how many came to this so far.
    pub(crate) fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize].fetch_add(1, Relaxed) + 1
    }

    pub(crate) fn took(&self, ns: u64) {
        self.spent_ns.fetch_add(ns, Relaxed);
        self.buckets[bucket_of(ns)].fetch_add(1, Relaxed);
    }

    pub(crate) fn clipped(&self, answers: u64) {
        self.clipped.fetch_add(answers, Relaxed);
    }

    /// Notes the fuel of a call; there is none where CPU time is metered.
    pub(crate) fn burnt(&self, fuel: u64) {
        if fuel > 0 {
            self.fuel.fetch_add(fuel, Relaxed);
        }
    }

    fn read(&self) -> SlotCounts {
        let read = |cell: &AtomicU64| cell.load(Relaxed);
        SlotCounts {
            outcomes: std::array::from_fn(|index| read(&self.outcomes[index])),
            clipped: read(&self.clipped),
            fuel: read(&self.fuel),
            times: CallTimes {
                spent_ns: read(&self.spent_ns),
                buckets: self.buckets.iter().map(read).collect(),
            },
        }
    }
}

/// Counters of one plugin.
#[derive(Debug, Default)]
pub(crate) struct Stats([SlotStats; Slot::COUNT]);

impl Stats {
    pub(crate) fn slot(&self, slot: Slot) -> &SlotStats {
        &self.0[slot as usize]
    }

    pub(crate) fn read(&self) -> Counts {
        Counts(self.0.iter().map(SlotStats::read).collect())
    }
}

/// A reading of a plugin's counters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts(Vec<SlotCounts>);

impl Counts {
    pub(crate) fn add(&mut self, other: Counts) {
        if self.0.is_empty() {
            *self = other;
            return;
        }
        self.0.iter_mut().zip(other.0).for_each(|(mine, theirs)| mine.add(&theirs));
    }

    /// What came after an earlier reading of the same counters.
    pub(crate) fn since(mut self, earlier: &Self) -> Self {
        self.0.iter_mut().zip(&earlier.0).for_each(|(now, then)| now.subtract(then));
        self
    }

    /// All slots together.
    pub(crate) fn total(&self) -> SlotCounts {
        let mut total = SlotCounts::default();
        self.0.iter().for_each(|slot| total.add(slot));
        total
    }

    /// The slots that were called or missed a call.
    pub(crate) fn used(self) -> impl Iterator<Item = (Slot, SlotCounts)> {
        let used = |counts: &SlotCounts| counts.outcomes.iter().any(|count| *count > 0);
        Slot::ALL.into_iter().zip(self.0).filter(move |(_, counts)| used(counts))
    }
}

/// A reading of one plugin in one slot.
#[derive(Clone, Debug, Default)]
pub struct SlotCounts {
    outcomes: [u64; 6],
    /// Answers that were clamped into range.
    pub clipped: u64,
    /// Fuel of all calls, where that is what is metered.
    pub fuel: u64,
    /// How long calls took.
    pub times: CallTimes,
}

impl SlotCounts {
    /// Calls that came to this.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    /// Calls, and those that were not even made.
    pub(crate) fn calls(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    fn subtract(&mut self, other: &Self) {
        let minus = |mine: &mut u64, theirs: u64| *mine = mine.saturating_sub(theirs);
        self.outcomes.iter_mut().zip(other.outcomes).for_each(|(mine, theirs)| minus(mine, theirs));
        minus(&mut self.clipped, other.clipped);
        minus(&mut self.times.spent_ns, other.times.spent_ns);
        self.times
            .buckets
            .iter_mut()
            .zip(&other.times.buckets)
            .for_each(|(mine, theirs)| minus(mine, *theirs));
    }

    fn add(&mut self, other: &Self) {
        self.outcomes.iter_mut().zip(other.outcomes).for_each(|(mine, theirs)| *mine += theirs);
        self.clipped += other.clipped;
        self.fuel += other.fuel;
        self.times.spent_ns += other.times.spent_ns;
        self.times.buckets.resize(BUCKETS, 0);
        self.times.buckets.iter_mut().zip(&other.times.buckets).for_each(|(mine, theirs)| *mine += theirs);
    }
}

/// A histogram of call times.
#[derive(Clone, Debug, Default)]
pub struct CallTimes {
    spent_ns: u64,
    buckets: Vec<u64>,
}

impl CallTimes {
    /// Calls measured.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Sum of all call times, in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.spent_ns as f64 / 1e9
    }

    /// Upper edge in seconds and count of each bucket, ascending; the last one has no upper edge.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let last = BUCKETS - 1;
        (self.buckets.iter().enumerate()).map(move |(index, count)| match index {
            _ if index == last => (f64::INFINITY, *count),
            _ => (edge_of(index) as f64 / 1e9, *count),
        })
    }

    /// Time in microseconds that this share of calls did not exceed, to a quarter of an octave.
    pub fn quantile_us(&self, share: f64) -> f64 {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return edge_of(index) as f64 / 1e3;
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_between_the_edges_of_its_bucket() {
        for ns in [64, 79, 80, 100, 127, 128, 1_000, 5_123, 999_999, 40_000_000] {
            let bucket = bucket_of(ns);
            assert!(ns < edge_of(bucket), "{ns} is below the upper edge {}", edge_of(bucket));
            assert!(bucket == 0 || ns >= edge_of(bucket - 1), "{ns} is not below bucket {bucket}");
        }
    }

    #[test]
    fn times_outside_the_edges_are_counted_at_the_ends() {
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_follow_the_counts() {
        let stats = SlotStats::default();
        (0..99).for_each(|_| stats.took(900));
        stats.took(1_000_000);
        let times = stats.read().times;
        assert_eq!(times.count(), 100);
        assert!((0.9..1.1).contains(&times.quantile_us(0.5)));
        assert!((0.9..1.1).contains(&times.quantile_us(0.99)));
        assert!(times.quantile_us(1.0) >= 1_000.0);
        assert_eq!(SlotStats::default().read().times.quantile_us(0.5), 0.0);
    }
}
