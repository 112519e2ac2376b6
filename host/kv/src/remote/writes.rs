//! Writes: behind everybody's back, a few tries each.
//!
//! **Invariant:** a name has one write at most at a time; its slot is free again when the write has ended, however.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Shared;
use super::presence::Seen;
use super::store::{Failed, Wrote};
use crate::{BlockName, Slot};

/// The wait before the second try; each further one waits twice as long, up to [`BACKOFF_MAX`]. Chosen: longer than a
/// server needs to accept the next connection, far shorter than a write may take.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// The longest wait between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// A name that is being written, until this is dropped.
pub(super) struct Writing {
    pub shared: Arc<Shared>,
    pub name: BlockName,
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut writing = self.shared.writing.lock();
        writing.remove(&self.name);
        if writing.is_empty() {
            self.shared.written.notify_all();
        }
    }
}

impl Writing {
    /// Runs one write to its end.
    pub(super) async fn run(self, slot: Slot, replace: bool) {
        let (shared, name) = (&*self.shared, self.name);
        let Ok(_turn) = shared.writes_in_flight.acquire().await else { return };
        for attempt in 1..=shared.write_attempts_max {
            let Some(leave) = shared.writes.leave() else { break };
            let started = Instant::now();
            match timeout(shared.write_timeout, shared.store.write(name, &slot, replace)).await {
                Ok(Ok(wrote)) => {
                    leave.succeeded();
                    shared.saw(name, Seen::Present);
                    if wrote == Wrote::AlreadyThere {
                        shared.meter.puts_present.add(1);
                    } else {
                        shared.meter.puts.add(1);
                        shared.meter.bytes_out.add(slot.len() as u64);
                        shared.meter.write_us.observe(started.elapsed());
                    }
                    return;
                }
                Ok(Err(Failed { again })) => {
                    leave.failed();
                    shared.meter.write_errors.add(1);
                    if !again {
                        break;
                    }
                }
                Err(_) => {
                    leave.failed();
                    shared.meter.write_timeouts.add(1);
                }
            }
            if attempt < shared.write_attempts_max {
                sleep(backoff(attempt, shared.seed ^ name.0 as u64)).await;
            }
        }
        shared.meter.puts_failed.add(1);
    }
}

/// The wait after a try that failed: from half of the step to all of it, so that hosts do not come back together.
fn backoff(attempt: u32, seed: u64) -> Duration {
    let step = BACKOFF_MIN.saturating_mul(2u32.saturating_pow(attempt - 1)).min(BACKOFF_MAX);
    // The finaliser of splitmix64.
    let mut mixed = seed.wrapping_add(u64::from(attempt).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    step / 2 + step.mul_f64((mixed >> 40) as f64 / (1u64 << 25) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_between_tries_grow_to_a_bound_and_differ_between_hosts() {
        for attempt in 1..40 {
            let step = BACKOFF_MIN.saturating_mul(1 << (attempt - 1).min(10)).min(BACKOFF_MAX);
            for seed in 0..100 {
                let wait = backoff(attempt, seed);
                assert!(wait >= step / 2 && wait <= step, "{attempt} {seed} {wait:?}");
            }
        }
        assert_ne!(backoff(1, 1), backoff(1, 2));
    }
}
