//! The door of the fleet: the `admit` slot, who is inside, and who waits to be asked about again.
//!
//! **Invariant:** as in the host, a request comes in or is refused within the longest deferral, whatever policies say.

use std::collections::BTreeMap;

use decide::{House, Reading};
use policy::{AdmitView, Slot, Verdict};

use super::{Fleet, Happening, Question};
use crate::results::Status;
use crate::sequence::Sequence;
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
    /// Whether one more request is refused before anybody is asked.
    pub(super) fn is_house_full(&self) -> bool {
        let max = self.setup.door.requests_max as usize;
        max > 0 && self.door.len() >= max
    }

    /// A request is at the door. Where nobody ever minds it, it is placed at once.
    pub(super) fn knocks(&mut self, s: Sequence) {
        match self.minds_door {
            true => self.decide_entry(s),
            false => self.place(s),
        }
    }

    /// Somebody who waits is asked about again.
    pub(super) fn knocks_again(&mut self, call: u32) {
        if let Some(s) = self.door.take(call) {
            self.decide_entry(s);
        }
    }

    fn decide_entry(&mut self, mut s: Sequence) {
        s.waited = self.now.moment().saturating_sub(s.arrived);
        match self.ask_to_admit(&s) {
            Verdict::Admit => {
                self.door.enter(s.call, s.hints.tenant);
                self.place(s);
            }
            Verdict::Reject { .. } => self.over(s.call, Status::Rejected),
            Verdict::DeferUntil(until_ms) => self.defer(s, until_ms),
        }
    }

    fn ask_to_admit(&mut self, s: &Sequence) -> Verdict {
        if !self.pin(s.call).asks(Slot::Admit) {
            return Verdict::Admit;
        }
        let now = self.now;
        let loads: Vec<Reading> = self.workers.iter_mut().map(|worker| worker.read(now)).collect();
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
        let fleet = decide::fleet(&house, &loads);
        let request = self.request_row(s);
        let frame = frame(now, Question::Admit.about(s.call));
        let view = AdmitView { frame, request: &request, fleet: &fleet };
        match self.pin(s.call).admit(&view) {
            Ok(decision) => decision.verdict,
            // A policy failed that nothing stands in for.
            Err(rejected) => Verdict::Reject { retry_after_ms: 0, reason: rejected.to_string() },
        }
    }

    fn defer(&mut self, s: Sequence, until_ms: u64) {
        let limits = &self.setup.door;
        // Who waits already has a place.
        let is_full = s.waited.is_zero() && self.door.waiting.len() >= limits.deferred_max as usize;
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
