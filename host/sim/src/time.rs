//! Virtual time: whole nanoseconds since the start of a simulation.

use std::time::Duration;

use decide::Moment;
use policy::Frame;

/// A point in virtual time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Ns(pub(crate) u64);

impl Ns {
    pub(crate) fn of(moment: Moment) -> Self {
        Self(moment.as_nanos() as u64)
    }

    pub(crate) fn of_ms(ms: f64) -> Self {
        Self((ms * 1e6).round() as u64)
    }

    /// What policies call so many milliseconds since the Unix epoch.
    pub(crate) fn of_unix_ms(ms: u64) -> Self {
        Self(ms.saturating_sub(EPOCH_MS).saturating_mul(1_000_000))
    }

    pub(crate) fn moment(self) -> Moment {
        Duration::from_nanos(self.0)
    }

    pub(crate) fn ms(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// So many nanoseconds later.
    pub(crate) fn after(self, ns: f64) -> Self {
        Self(self.0 + ns.round() as u64)
    }

    /// Nanoseconds since an earlier point.
    pub(crate) fn since(self, earlier: Self) -> f64 {
        self.0.saturating_sub(earlier.0) as f64
    }
}

/// What a policy is told of time and chance. Seeds differ from question to question, and are those of every run.
pub(crate) fn frame(now: Ns, salt: u64) -> Frame {
    Frame { now_ms: EPOCH_MS + now.0 / 1_000_000, seed: trace::mix(now.0.wrapping_add(trace::mix(salt))) }
}

/// When simulations begin, for policies. Chosen: not 0, which marks trial calls.
const EPOCH_MS: u64 = 1_700_000_000_000;
