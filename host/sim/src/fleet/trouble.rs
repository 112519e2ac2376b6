//! Faults under way.

use super::Fleet;
use crate::fault::FaultKind;
use crate::sequence::Sequence;

/// What ails a worker: how many faults of each kind are under way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    crashes: u32,
    partitions: u32,
}

impl State {
    pub(super) fn is_down(self) -> bool {
        self.crashes > 0
    }

    pub(super) fn is_reachable(self) -> bool {
        self.crashes == 0 && self.partitions == 0
    }
}

impl Fleet<'_> {
    /// A fault begins or ends.
    pub(super) fn trouble(&mut self, fault: usize, begins: bool) {
        let fault = self.setup.faults[fault];
        let worker = fault.worker;
        match (fault.kind, begins) {
            (FaultKind::Slow { factor }, true) => self.workers[worker].slowness *= factor,
            (FaultKind::Slow { factor }, false) => self.workers[worker].slowness /= factor,
            (FaultKind::Crash, true) => {
                self.states[worker].crashes += 1;
                self.crash(worker);
            }
            (FaultKind::Crash, false) => {
                self.states[worker].crashes -= 1;
                self.unite(worker);
            }
            (FaultKind::Partition, true) => self.states[worker].partitions += 1,
            (FaultKind::Partition, false) => {
                self.states[worker].partitions -= 1;
                self.unite(worker);
            }
        }
    }

    /// A worker's cache is gone, and its sequences go on with whoever has the least to do.
    fn crash(&mut self, worker: usize) {
        // Whatever step it was in never ends.
        self.versions[worker] += 1;
        self.hear(worker);
        let orphans = self.workers[worker].crash(self.now);
        self.workers[worker].tiers.clear();
        self.workers[worker].news.clear();
        self.index.forget(worker);
        for s in orphans {
            self.adopt(s);
        }
    }

    fn adopt(&mut self, mut s: Sequence) {
        s.expected_tokens = 0;
        let able = (0..self.workers.len()).filter(|at| self.states[*at].is_reachable());
        let load = |at: &usize, fleet: &mut Self| {
            let reading = fleet.workers[*at].read(fleet.now);
            (reading.queued_tokens + reading.active_tokens) as u64
        };
        let able: Vec<usize> = able.collect();
        match able.into_iter().min_by_key(|at| load(at, self)) {
            Some(worker) => self.send(s, worker),
            None => self.stranded.push(s),
        }
    }

    /// A worker is back, or can be reached again: what it has to tell is heard, and who waited for anybody is placed.
    fn unite(&mut self, worker: usize) {
        if !self.states[worker].is_reachable() {
            return;
        }
        self.hear(worker);
        self.may_begin(worker);
        for s in std::mem::take(&mut self.stranded) {
            self.place(s);
        }
    }
}
