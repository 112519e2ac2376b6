//! The door of the fleet: the `admit` slot, who is inside, and who waits to be asked about again.
//!
//! **Invariant:** as in the host, a request comes in or is refused within the longest deferral, whatever policies say.

use std::collections::BTreeMap;

use decide::{House, set_waited};
use policy::{AdmitView, Slot, Verdict};

use super::{Fleet, Happening, Question};
use crate::results::Status;
use crate::sequence::Sequence;
use crate::setup::SimError;
use crate::time::{Ns, frame};

/// Who is where.
#[derive(Default)]
pub(super) struct Door {
    /// Tenants of requests that were let in and not yet answered.
    inside: BTreeMap<u32, u64>,
    /// Those that wait.
    waiting: BTreeMap<u32, Sequence>,
    /// Of each tenant, those inside and those that wait.
    tenants: BTreeMap<u64, [u32; 2]>,
}

/// Chosen, as in the host: a policy that defers to the present must not spin.
const STEP_MIN_NS: f64 = 1e6;
/// Places in the counts of a tenant.
const INSIDE: usize = 0;
const WAITING: usize = 1;

impl Door {
    fn enter(&mut self, call: u32, tenant: u64) {
        self.inside.insert(call, tenant);
        self.tenants.entry(tenant).or_default()[INSIDE] += 1;
    }

    /// A request is over, wherever it was.
    pub(super) fn leave(&mut self, call: u32) {
        if let Some(tenant) = self.inside.remove(&call) {
            self.uncount(tenant, INSIDE);
        }
    }

    fn wait(&mut self, s: Sequence) {
        self.tenants.entry(s.hints.tenant).or_default()[WAITING] += 1;
        self.waiting.insert(s.call, s);
    }

    fn take(&mut self, call: u32) -> Option<Sequence> {
        let s = self.waiting.remove(&call)?;
        self.uncount(s.hints.tenant, WAITING);
        Some(s)
    }

    fn uncount(&mut self, tenant: u64, place: usize) {
        if let Some(counts) = self.tenants.get_mut(&tenant) {
            counts[place] -= 1;
            if *counts == [0, 0] {
                self.tenants.remove(&tenant);
            }
        }
    }

    fn len(&self) -> usize {
        self.inside.len() + self.waiting.len()
    }
}

impl Fleet<'_> {
    /// A request is at the door. Where nobody minds it, it is placed at once.
    pub(super) fn knocks(&mut self, s: Sequence) -> Result<(), SimError> {
        let limits = &self.setup.door;
        if limits.requests_max == 0 && !self.pin(s.call).asks(Slot::Admit) {
            return self.place(s);
        }
        if limits.requests_max > 0 && self.door.len() >= limits.requests_max as usize {
            self.over(s.call, Status::Rejected);
            return Ok(());
        }
        self.decide_entry(s, false)
    }

    /// Somebody who waits is asked about again.
    pub(super) fn knocks_again(&mut self, call: u32) -> Result<(), SimError> {
        match self.door.take(call) {
            Some(s) => self.decide_entry(s, true),
            None => Ok(()),
        }
    }

    fn decide_entry(&mut self, mut s: Sequence, has_waited: bool) -> Result<(), SimError> {
        s.waited = self.now.moment().saturating_sub(s.arrived);
        match self.ask_to_admit(&s)? {
            Verdict::Admit => {
                self.door.enter(s.call, s.hints.tenant);
                self.place(s)
            }
            Verdict::Reject { .. } => {
                self.over(s.call, Status::Rejected);
                Ok(())
            }
            Verdict::DeferUntil(until_ms) => {
                self.defer(s, until_ms, has_waited);
                Ok(())
            }
        }
    }

    fn ask_to_admit(&mut self, s: &Sequence) -> Result<Verdict, SimError> {
        if !self.pin(s.call).asks(Slot::Admit) {
            return Ok(Verdict::Admit);
        }
        self.read_loads();
        let own = self.door.tenants.get(&s.hints.tenant).copied().unwrap_or_default();
        let house = House {
            running: self.door.inside.len() as u32,
            requests_max: match self.setup.door.requests_max {
                0 => u32::MAX,
                max => max,
            },
            deferred: self.door.waiting.len() as u32,
            tenant_running: own[INSIDE],
            tenant_deferred: own[WAITING],
        };
        let fleet = decide::fleet(&house, &self.loads);
        let mut request = self.request_row(s);
        set_waited(&mut request, s.waited);
        let frame = frame(self.now, Question::Admit.about(s.call));
        let view = AdmitView { frame, request: &request, fleet: &fleet };
        let decision = self.pin(s.call).admit(&view).map_err(|rejected| self.refused(&rejected))?;
        Ok(decision.verdict)
    }

    fn defer(&mut self, s: Sequence, until_ms: u64, has_waited: bool) {
        let limits = &self.setup.door;
        let is_full = !has_waited && self.door.waiting.len() >= limits.deferred_max as usize;
        let left_ns = limits.defer_ms_max as f64 * 1e6 - s.waited.as_nanos() as f64;
        if is_full || left_ns <= 0.0 {
            return self.over(s.call, Status::Rejected);
        }
        let wanted_ns = Ns::of_unix_ms(until_ms).since(self.now);
        let at = self.now.after(wanted_ns.max(STEP_MIN_NS).min(left_ns));
        self.heap.push(std::cmp::Reverse((at, Happening::Knocks { call: s.call })));
        self.door.wait(s);
    }
}
