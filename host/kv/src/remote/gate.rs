//! A breaker that tasks share: leave to ask the store, which answers for itself when its task is dropped.
//!
//! **Invariant:** every leave is handed back once, whatever becomes of the task that has it.

use std::time::Duration;

use parking_lot::Mutex;

use super::Clock;
use super::breaker::{Bounds, Breaker, BreakerState, Pass};

pub(super) struct Gate {
    breaker: Mutex<Breaker>,
    clock: Clock,
}

/// Leave to ask the store once.
pub(super) struct Leave<'a> {
    gate: &'a Gate,
    pass: Pass,
    told: bool,
}

impl Gate {
    pub(super) fn new(bounds: Bounds, clock: Clock) -> Self {
        Self { breaker: Mutex::new(Breaker::new(bounds)), clock }
    }

    pub(super) fn leave(&self) -> Option<Leave<'_>> {
        let pass = self.breaker.lock().admit(self.now())?;
        Some(Leave { gate: self, pass, told: false })
    }

    /// Says whether somebody would get leave.
    pub(super) fn is_open_to_requests(&self) -> bool {
        self.breaker.lock().would_admit(self.now())
    }

    pub(super) fn state(&self) -> (BreakerState, u64) {
        let breaker = self.breaker.lock();
        (breaker.state(), breaker.openings())
    }

    fn now(&self) -> Duration {
        (self.clock)()
    }
}

impl Leave<'_> {
    pub(super) fn succeeded(mut self) {
        self.told = true;
        self.gate.breaker.lock().succeeded(&self.pass);
    }

    pub(super) fn failed(mut self) {
        self.told = true;
        self.gate.breaker.lock().failed(&self.pass, self.gate.now());
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.gate.breaker.lock().abandoned(&self.pass);
        }
    }
}
