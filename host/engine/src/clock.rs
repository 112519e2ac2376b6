//! The one clock of this crate: how long a step took.

use std::time::{Duration, Instant};

/// Measures the time since it was started.
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    #[allow(clippy::disallowed_methods, reason = "a computed step takes real time, whoever owns the clock")]
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}
