//! Time, seeds and processor time of this process, and alarms that are exact to some ten microseconds.
//!
//! **Invariant:** no other module of the crate reads a clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;
use trace::mix;

/// A point in time, as the span since the load began.
pub(crate) type Moment = Duration;

/// The clock of one run. Copies agree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    #[allow(clippy::disallowed_methods, reason = "this is the clock that everybody else asks")]
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Moment {
        self.0.elapsed()
    }
}

/// A seed that differs from run to run.
#[allow(clippy::disallowed_methods, reason = "this is where seeds come from")]
pub(crate) fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Half of the bits, so that it is short enough to be typed again.
    mix(since.as_nanos() as u64) >> 32
}

/// Processor time that this process has used, all threads.
pub(crate) fn cpu() -> Duration {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), spent.tv_nsec.unsigned_abs() as u32)
}

/// Wakes tasks at their moments.
///
/// The runtime's own timers count whole milliseconds, rounded up. In an open loop latency counts from the moment
/// when a request was due, so that rounding would be part of every figure. Cost: one thread that sleeps.
#[derive(Clone, Debug)]
pub(crate) struct Alarms(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    clock: Clock,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// By moment, then by the order of asking. As many as there are sessions, at most.
    waiting: BTreeMap<(Moment, u64), oneshot::Sender<()>>,
    asked: u64,
    closed: bool,
}

impl Alarms {
    /// Starts the thread that sleeps for everybody. Errors: no thread can be had.
    pub(crate) fn start(clock: Clock) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        thread::Builder::new().name("alarms".to_owned()).spawn(move || theirs.ring(clock))?;
        Ok(Self(Arc::new(Handle { clock, shared })))
    }

    /// Comes back at a moment, at once if it has passed.
    pub(crate) async fn until(&self, at: Moment) {
        if at <= self.0.clock.now() {
            return;
        }
        let rung = self.0.shared.ask(at);
        // Whoever rings has dropped the other end only when the run is over.
        let _ = rung.await;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn ask(&self, at: Moment) -> oneshot::Receiver<()> {
        let (ring, rung) = oneshot::channel();
        let mut queue = self.queue.lock();
        queue.asked += 1;
        let key = (at, queue.asked);
        queue.waiting.insert(key, ring);
        let is_next = queue.waiting.first_key_value().is_some_and(|(first, _)| *first == key);
        drop(queue);
        if is_next {
            self.changed.notify_one();
        }
        rung
    }

    fn ring(&self, clock: Clock) {
        let mut queue = self.queue.lock();
        while !queue.closed {
            let now = clock.now();
            match queue.waiting.first_key_value().map(|((at, _), _)| *at) {
                None => self.changed.wait(&mut queue),
                Some(at) if at > now => drop(self.changed.wait_for(&mut queue, at - now)),
                Some(_) => {
                    // Who waited may be gone.
                    let _ = queue.waiting.pop_first().map(|(_, ring)| ring.send(()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn alarms_ring_in_their_order_and_not_before_their_time() {
        let clock = Clock::start();
        let alarms = Alarms::start(clock).expect("a thread can be had");
        let late = async {
            alarms.until(Duration::from_millis(40)).await;
            clock.now()
        };
        let soon = async {
            alarms.until(Duration::from_millis(10)).await;
            clock.now()
        };
        let (late, soon) = tokio::join!(late, soon);
        assert!(soon >= Duration::from_millis(10), "{soon:?}");
        assert!(late >= Duration::from_millis(40), "{late:?}");
        assert!(soon < late, "{soon:?} {late:?}");
    }
}
