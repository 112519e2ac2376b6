//! A circuit breaker: a store that fails again and again is left alone for a while.
//!
//! ```text
//!             failures_max in a row              the wait is over: one probe
//!   Closed ──────────────────────────► Open ◄──────────────────────────────► HalfOpen
//!     ▲                                         it fails, and the wait doubles   │
//!     └──────────────────────────────────────────────────────────────────────────┘ it succeeds
//! ```
//!
//! **Invariant:** while open nothing is asked of the store; while half open one thing is. What was asked before a
//! change of state does not change the next one.

use std::time::Duration;

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bounds {
    /// Failures in a row that open it.
    pub failures_max: u32,
    /// The first wait; each failed probe doubles it.
    pub open_min: Duration,
    /// The longest wait.
    pub open_max: Duration,
}

/// Successes after which a store counts as well, in failures that opened the breaker: a store that answers a probe and
/// fails again waits as long as before. Chosen; larger keeps long waits for a store that is well.
const WELL_AFTER: u32 = 4;

/// Whether a store is asked at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BreakerState {
    /// It is.
    #[default]
    Closed,
    /// It is not, until a wait is over.
    Open,
    /// One thing is asked, to see.
    HalfOpen,
}

/// Leave to ask the store once. It is handed back with what came of it.
#[derive(Debug)]
pub(super) struct Pass {
    epoch: u64,
}

#[derive(Debug)]
pub(super) struct Breaker {
    bounds: Bounds,
    state: State,
    /// Counts changes of state.
    epoch: u64,
    /// How often the wait has doubled.
    level: u32,
    openings: u64,
}

#[derive(Debug)]
enum State {
    Closed { failures: u32, successes: u32 },
    Open { until: Duration },
    HalfOpen,
}

impl Breaker {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, state: State::CLOSED, epoch: 0, level: 0, openings: 0 }
    }

    /// Leave to ask the store, if it is asked at all.
    pub(super) fn admit(&mut self, now: Duration) -> Option<Pass> {
        if !self.would_admit(now) {
            return None;
        }
        if let State::Open { .. } = self.state {
            self.enter(State::HalfOpen);
        }
        Some(Pass { epoch: self.epoch })
    }

    /// Says whether [`Breaker::admit`] would.
    pub(super) fn would_admit(&self, now: Duration) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until } => now >= until,
            State::HalfOpen => false,
        }
    }

    pub(super) fn succeeded(&mut self, pass: &Pass) {
        if pass.epoch != self.epoch {
            return;
        }
        match &mut self.state {
            State::Closed { failures, successes } => {
                *failures = 0;
                *successes = successes.saturating_add(1);
                if *successes >= self.bounds.failures_max.saturating_mul(WELL_AFTER) {
                    self.level = 0;
                }
            }
            State::HalfOpen => self.enter(State::CLOSED),
            State::Open { .. } => unreachable!("nobody has leave of an open breaker"),
        }
    }

    pub(super) fn failed(&mut self, pass: &Pass, now: Duration) {
        if pass.epoch != self.epoch {
            return;
        }
        match &mut self.state {
            State::Closed { failures, successes } => {
                *failures += 1;
                *successes = 0;
                if *failures >= self.bounds.failures_max {
                    self.open(now);
                }
            }
            State::HalfOpen => self.open(now),
            State::Open { .. } => unreachable!("nobody has leave of an open breaker"),
        }
    }

    /// Nobody will know what came of it; the next to ask is the probe.
    pub(super) fn abandoned(&mut self, pass: &Pass) {
        if pass.epoch == self.epoch
            && let State::HalfOpen = self.state
        {
            self.enter(State::Open { until: Duration::ZERO });
        }
    }

    pub(super) fn state(&self) -> BreakerState {
        match self.state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen => BreakerState::HalfOpen,
        }
    }

    /// How often it opened because of failures.
    pub(super) fn openings(&self) -> u64 {
        self.openings
    }

    fn open(&mut self, now: Duration) {
        let Bounds { open_min, open_max, .. } = self.bounds;
        let wait = open_min.saturating_mul(2u32.saturating_pow(self.level)).min(open_max);
        self.level = self.level.saturating_add(1).min(31);
        self.openings += 1;
        self.enter(State::Open { until: now.saturating_add(wait) });
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
    }
}

impl State {
    const CLOSED: Self = Self::Closed { failures: 0, successes: 0 };
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds =
        Bounds { failures_max: 3, open_min: Duration::from_secs(1), open_max: Duration::from_secs(10) };

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn fail(breaker: &mut Breaker, ms: u64) {
        let pass = breaker.admit(at(ms)).expect("it is asked");
        breaker.failed(&pass, at(ms));
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_does_not() {
        let mut breaker = Breaker::new(BOUNDS);
        fail(&mut breaker, 0);
        fail(&mut breaker, 0);
        let pass = breaker.admit(at(0)).expect("it is closed");
        breaker.succeeded(&pass);
        fail(&mut breaker, 0);
        fail(&mut breaker, 0);
        assert_eq!(breaker.state(), BreakerState::Closed);
        fail(&mut breaker, 5);
        assert_eq!((breaker.state(), breaker.openings()), (BreakerState::Open, 1));
        assert!(breaker.admit(at(1004)).is_none());
    }

    #[test]
    fn one_probe_decides_and_each_that_fails_doubles_the_wait_up_to_a_bound() {
        let mut breaker = Breaker::new(BOUNDS);
        (0..3).for_each(|_| fail(&mut breaker, 0));
        let mut now = 0;
        for wait in [1000, 2000, 4000, 8000, 10_000, 10_000] {
            assert!(!breaker.would_admit(at(now + wait - 1)), "{wait}");
            now += wait;
            let probe = breaker.admit(at(now)).expect("the wait is over");
            assert!(breaker.admit(at(now)).is_none(), "there is one probe");
            breaker.failed(&probe, at(now));
        }
        now += 10_000;
        let probe = breaker.admit(at(now)).expect("the wait is over");
        breaker.succeeded(&probe);
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn a_store_that_fails_right_after_its_probe_waits_as_long_as_before() {
        let mut breaker = Breaker::new(BOUNDS);
        (0..3).for_each(|_| fail(&mut breaker, 0));
        let probe = breaker.admit(at(1000)).expect("the wait is over");
        breaker.succeeded(&probe);
        (0..3).for_each(|_| fail(&mut breaker, 1000));
        assert!(!breaker.would_admit(at(2999)));
        let probe = breaker.admit(at(3000)).expect("the wait is over");
        breaker.succeeded(&probe);
        for _ in 0..12 {
            let pass = breaker.admit(at(3000)).expect("it is closed");
            breaker.succeeded(&pass);
        }
        (0..3).for_each(|_| fail(&mut breaker, 3000));
        assert!(breaker.would_admit(at(4000)), "a store that was well waits little");
    }

    #[test]
    fn what_was_asked_before_a_change_does_not_count_after_it() {
        let mut breaker = Breaker::new(BOUNDS);
        let old: Vec<Pass> = (0..4).filter_map(|_| breaker.admit(at(0))).collect();
        (0..3).for_each(|_| fail(&mut breaker, 0));
        breaker.succeeded(&old[0]);
        breaker.failed(&old[1], at(0));
        assert_eq!((breaker.state(), breaker.openings()), (BreakerState::Open, 1));
        let probe = breaker.admit(at(1000)).expect("the wait is over");
        breaker.failed(&old[2], at(1000));
        breaker.abandoned(&old[3]);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        breaker.abandoned(&probe);
        assert!(breaker.admit(at(1000)).is_some(), "another probe goes in its place");
    }

    proptest! {
        /// Whatever happens, an opening waits at least the first and at most the longest wait, and then lets one in.
        #[test]
        fn waits_are_bounded(outcomes in vec((0u8..3, 0u64..3000), 1..200)) {
            let (mut breaker, mut now, mut opened) = (Breaker::new(BOUNDS), 0, None);
            for (outcome, passed) in outcomes {
                now += passed;
                let Some(pass) = breaker.admit(at(now)) else {
                    let since = now - opened.expect("it opened before it refused");
                    prop_assert!(since < 10_000);
                    continue;
                };
                if let Some(opened) = opened.take() {
                    prop_assert!(now - opened >= 1000);
                }
                match outcome {
                    0 => breaker.succeeded(&pass),
                    1 => breaker.abandoned(&pass),
                    _ => breaker.failed(&pass, at(now)),
                }
                if breaker.state() == BreakerState::Open && outcome == 2 {
                    opened = Some(now);
                }
            }
        }
    }
}
