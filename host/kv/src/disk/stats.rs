//! Counts of the tier, and when it stops asking a disk that fails.

use std::time::{Duration, Instant};

/// What the tier holds, does and met. Counts are since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Blocks that are served.
    pub blocks: u64,
    /// Blocks that are kept until some time.
    pub kept: u64,
    /// Slots that exist, used or not.
    pub slots: u64,
    /// Bytes that the slabs take on disk, headers and free slots included.
    pub bytes: u64,
    /// Bytes of memory that the tier's bookkeeping takes, about.
    pub memory_bytes: u64,
    /// Most bytes that the slabs may take.
    pub bytes_max: u64,
    /// Blocks that are written but not yet known to be on the device.
    pub unsynced: u64,
    /// Demand reads that wait.
    pub demand_queue_len: usize,
    /// Writes that wait.
    pub write_queue_len: usize,
    /// Prefetches that wait.
    pub prefetch_queue_len: usize,
    /// Whether reads and writes go past the page cache.
    pub direct: bool,
    /// Whether writes are refused for a while, because they failed.
    pub writes_paused: bool,
    /// Whether reads are refused for a while, because they failed.
    pub reads_paused: bool,
    /// Reads that gave a block.
    pub hits: u64,
    /// Reads that did not, for whatever reason.
    pub misses: u64,
    /// Misses because the queue was full or reads are paused.
    pub declined_reads: u64,
    /// Blocks written.
    pub writes: u64,
    /// Blocks not taken because the queue was full.
    pub declined_busy: u64,
    /// Blocks not taken because everything there is worth more, or is in use.
    pub declined_worth: u64,
    /// Blocks not taken because writes are paused or failed.
    pub declined_fault: u64,
    /// Blocks that left for others that were to be dropped.
    pub evicted_dropped: u64,
    /// Blocks that left for others that nobody asked to keep.
    pub evicted_ordinary: u64,
    /// Blocks that left for others although they were to be kept.
    pub evicted_kept: u64,
    /// Blocks that were taken out by name or all at once.
    pub removed: u64,
    /// Blocks given up because their slot held something else than was written.
    pub corrupt: u64,
    /// Slots that are not used any more because they could not be read or cleared.
    pub quarantined: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Syncs that failed.
    pub sync_errors: u64,
    /// Slabs that could not be made: the disk is full, or fails.
    pub grow_errors: u64,
    /// Failures of the index, which is written afresh after the next start.
    pub index_errors: u64,
    /// Callbacks that panicked.
    pub callback_panics: u64,
    /// The words of the latest failure.
    pub last_error: Option<String>,
    /// Bytes of blocks read.
    pub bytes_read: u64,
    /// Bytes of blocks written.
    pub bytes_written: u64,
    /// Group commits made.
    pub syncs: u64,
    /// Time of reads that gave a block, from the call to its end.
    pub fetch: Latency,
}

/// How long something took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// `counts[i]` took less than 2^i microseconds and not less than 2^(i-1); the last one, longer too.
    pub counts: [u64; 24],
    /// Of all.
    pub sum_us: u64,
}

impl Latency {
    pub(super) fn add(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = (u64::BITS - us.leading_zeros()) as usize;
        self.counts[at.min(self.counts.len() - 1)] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }
}

/// The clock that the disk is measured by, and by which it is given time to recover. No decision about a block
/// depends on it.
#[allow(clippy::disallowed_methods, reason = "a disk takes real time, whoever owns the clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Failures in a row after which a disk is left alone. Chosen: one or two may be of one bad place.
const FAILURES_MAX: u32 = 4;

/// The longest pause, in first pauses.
const PAUSES_MAX: u32 = 64;

/// Stops asking what fails again and again; after a pause one failure is enough for the next one, twice as long.
#[derive(Debug)]
pub(super) struct Breaker {
    failures: u32,
    failures_max: u32,
    first: Duration,
    pause: Duration,
    until: Option<Instant>,
}

impl Breaker {
    pub(super) fn new(first: Duration) -> Self {
        Self { failures: 0, failures_max: FAILURES_MAX, first, pause: first, until: None }
    }

    /// One that pauses after the first failure.
    pub(super) fn strict(first: Duration) -> Self {
        Self { failures_max: 1, ..Self::new(first) }
    }

    pub(super) fn is_open(&mut self) -> bool {
        if self.until.is_some_and(|until| now() >= until) {
            self.until = None;
        }
        self.until.is_some()
    }

    pub(super) fn failed(&mut self) {
        self.failures += 1;
        if self.failures >= self.failures_max && self.until.is_none() {
            self.until = Some(now() + self.pause);
            self.pause = (self.pause * 2).min(self.first * PAUSES_MAX);
            self.failures = self.failures_max - 1;
        }
    }

    pub(super) fn succeeded(&mut self) {
        (self.failures, self.pause, self.until) = (0, self.first, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breaker_pauses_after_failures_in_a_row_and_tries_again() {
        let mut breaker = Breaker::new(Duration::from_millis(20));
        for _ in 0..3 {
            breaker.failed();
        }
        breaker.succeeded();
        for _ in 0..3 {
            breaker.failed();
        }
        assert!(!breaker.is_open());
        breaker.failed();
        assert!(breaker.is_open());
        std::thread::sleep(Duration::from_millis(30));
        assert!(!breaker.is_open(), "the pause is over");
        breaker.failed();
        assert!(breaker.is_open(), "one failure after a pause is enough");
    }

    #[test]
    fn a_latency_falls_into_its_power_of_two() {
        let mut latency = Latency::default();
        for us in [0, 1, 2, 3, 1000, u64::MAX] {
            latency.add(Duration::from_micros(us));
        }
        assert_eq!(latency.counts[..3], [1, 1, 2]);
        assert_eq!((latency.counts[10], latency.counts[23]), (1, 1));
    }
}
