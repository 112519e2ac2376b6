//! Time, randomness and tasks: everything a simulation has to own.
//!
//! **Invariant:** no other module of the host reads a clock, draws a number or spawns a task.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use policy::name_id;
use tokio_util::task::TaskTracker;

/// Clock, seeds and tasks of one host.
#[derive(Clone, Debug)]
pub struct Ctx(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    started_unix: Duration,
    seeds: AtomicU64,
    tasks: TaskTracker,
}

/// A point in time, as the span since the host started.
pub type Moment = Duration;

impl Ctx {
    /// The machine's clock, and seeds that differ from start to start.
    #[allow(clippy::disallowed_methods, reason = "this is the clock that everybody else asks")]
    pub fn system() -> Self {
        let started_unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(Arc::new(Inner {
            started: Instant::now(),
            started_unix,
            seeds: AtomicU64::new(mix(started_unix.as_nanos() as u64)),
            tasks: TaskTracker::new(),
        }))
    }

    /// Time since the host started; never goes back.
    pub fn now(&self) -> Moment {
        self.0.started.elapsed()
    }

    /// Milliseconds since the Unix epoch, moving with [`Ctx::now`].
    pub fn unix_ms(&self) -> u64 {
        (self.0.started_unix + self.now()).as_millis() as u64
    }

    /// When the host started, in seconds since the Unix epoch.
    pub fn started_unix_s(&self) -> u64 {
        self.0.started_unix.as_secs()
    }

    /// A fresh seed.
    pub fn seed(&self) -> u64 {
        mix(self.0.seeds.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed))
    }

    /// Runs a task that a drain waits for.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.tasks.spawn(task);
    }

    /// Runs a task that ends with the process; a drain does not wait for it.
    #[allow(clippy::disallowed_methods, reason = "this is where tasks are spawned")]
    pub fn spawn_detached(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(tokio::spawn(task));
    }

    /// Waits until every spawned task has ended, at most `limit`. Says whether all had.
    pub async fn drain(&self, limit: Duration) -> bool {
        self.0.tasks.close();
        tokio::time::timeout(limit, self.0.tasks.wait()).await.is_ok()
    }
}

/// Spreads the bits of a counter (the finaliser of splitmix64).
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
