//! What the remote tier counts.
//!
//! **Invariant:** counters only grow; nothing is decided by them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::breaker::BreakerState;

/// Counts since the start, and how the store does at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RemoteStats {
    /// Blocks that fetches gave.
    pub hits: u64,
    /// Fetches that ended at a block which the store had not.
    pub misses: u64,
    /// Fetches and blocks of fetches that ended without asking the store, because it was known or out of order.
    pub misses_unasked: u64,
    /// Values that were not the block of their key. Each was a miss.
    pub corrupt: u64,
    /// Blocks written.
    pub puts: u64,
    /// Writes that found the block there.
    pub puts_present: u64,
    /// Writes that failed for good.
    pub puts_failed: u64,
    /// Fetches and writes that were refused because their queue was full.
    pub declined_full: u64,
    /// Fetches and writes that were refused because the store is left alone.
    pub declined_open: u64,
    /// Reads that took too long, and fetches that did.
    pub read_timeouts: u64,
    /// Reads that failed, each try.
    pub read_errors: u64,
    /// Tries of writes that took too long.
    pub write_timeouts: u64,
    /// Tries of writes that failed.
    pub write_errors: u64,
    /// Bytes of blocks that fetches gave.
    pub bytes_in: u64,
    /// Bytes of blocks written.
    pub bytes_out: u64,
    /// Time that reads of blocks took, summed.
    pub read_us_sum: u64,
    /// Time that writes took, summed.
    pub write_us_sum: u64,
    /// Time that the read of a block takes: each one moves it by an eighth. 0 before the first.
    pub read_us_ewma: u64,
    /// Time that a write takes, likewise.
    pub write_us_ewma: u64,
    /// Fetches that wait or run.
    pub fetches: u64,
    /// Writes that wait or run.
    pub writes: u64,
    /// Whether the store is read.
    pub reads_state: BreakerState,
    /// How often it came to be left alone because of its reads.
    pub reads_openings: u64,
    /// Whether the store is written.
    pub writes_state: BreakerState,
    /// How often it came to be left alone because of its writes.
    pub writes_openings: u64,
}

/// The counters behind [`RemoteStats`], by the same names.
#[derive(Debug, Default)]
pub(super) struct Meter {
    pub hits: Count,
    pub misses: Count,
    pub misses_unasked: Count,
    pub corrupt: Count,
    pub puts: Count,
    pub puts_present: Count,
    pub puts_failed: Count,
    pub declined_full: Count,
    pub declined_open: Count,
    pub read_timeouts: Count,
    pub read_errors: Count,
    pub write_timeouts: Count,
    pub write_errors: Count,
    pub bytes_in: Count,
    pub bytes_out: Count,
    pub read_us: Times,
    pub write_us: Times,
}

/// A number that grows.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long things took.
#[derive(Debug, Default)]
pub(super) struct Times {
    us_sum: Count,
    us_ewma: AtomicU64,
}

impl Times {
    pub(super) fn observe(&self, took: Duration) {
        let us = (took.as_micros() as u64).max(1);
        self.us_sum.add(us);
        let moved = |old: u64| if old == 0 { us } else { (old * 7 + us).div_ceil(8) };
        // Two that meet here lose one of both, which an average survives.
        let old = self.us_ewma.load(Ordering::Relaxed);
        self.us_ewma.store(moved(old), Ordering::Relaxed);
    }
}

impl Meter {
    pub(super) fn stats(&self) -> RemoteStats {
        RemoteStats {
            hits: self.hits.get(),
            misses: self.misses.get(),
            misses_unasked: self.misses_unasked.get(),
            corrupt: self.corrupt.get(),
            puts: self.puts.get(),
            puts_present: self.puts_present.get(),
            puts_failed: self.puts_failed.get(),
            declined_full: self.declined_full.get(),
            declined_open: self.declined_open.get(),
            read_timeouts: self.read_timeouts.get(),
            read_errors: self.read_errors.get(),
            write_timeouts: self.write_timeouts.get(),
            write_errors: self.write_errors.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            read_us_sum: self.read_us.us_sum.get(),
            write_us_sum: self.write_us.us_sum.get(),
            read_us_ewma: self.read_us.us_ewma.load(Ordering::Relaxed),
            write_us_ewma: self.write_us.us_ewma.load(Ordering::Relaxed),
            ..RemoteStats::default()
        }
    }
}
