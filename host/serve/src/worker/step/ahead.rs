//! Sequences that are computed ahead of need: what is left of a step, and nothing while anybody waits.
//!
//! They stand behind all others of the batch, no policy is shown them, and they are not load.
//! **Invariant:** none is in the batch when a sequence is started or gives way.

use std::sync::atomic::Ordering;

use decide::pages_for;

use super::StepLoop;
use crate::speculation::Cancelled;
use crate::worker::sequence::{Finish, Sequence, Start};

impl StepLoop {
    /// How many of the batch somebody waits for; the rest is computed ahead.
    pub(super) fn needed(&self) -> usize {
        self.running.iter().position(|s| s.start.ahead).unwrap_or(self.running.len())
    }

    /// Whether somebody waits for this worker.
    fn is_awaited(&self) -> bool {
        self.waiting.iter().any(|s| !s.awaits_handoff())
    }

    /// Takes a prompt in, unless there is nothing to do for it, or too much already.
    pub(super) fn enqueue_ahead(&mut self, start: Start) {
        let fingerprint = self.parts.executors.served.caps().fingerprint_of(start.adapter);
        let mut s = Sequence::new(start, fingerprint, self.block_tokens);
        let counts = &self.parts.speculation;
        let in_flight = self.ahead.len() + self.running.len() - self.needed();
        if self.pool.resident_prefix(&s.start.blocks) == s.start.blocks.len() {
            counts.needless.fetch_add(1, Ordering::Relaxed);
            s.finish(Finish::Length);
        } else if self.is_awaited() {
            counts.cancel(Cancelled::Load);
        } else if in_flight >= self.parts.ahead.in_flight_max {
            counts.cancel(Cancelled::Full);
        } else {
            self.ahead.push_back(s);
        }
    }

    /// Gives everything up while somebody waits or pages are short, and what nobody wants any more.
    pub(super) fn yield_ahead(&mut self) {
        if self.is_awaited() {
            self.cancel_ahead(Cancelled::Load);
        } else if self.pool.available() < self.spare_pages() {
            self.cancel_ahead(Cancelled::Pages);
        }
        // Who dropped it has counted why.
        self.ahead.retain(|s| !s.cancelled());
        for at in (self.needed()..self.running.len()).rev() {
            if self.running[at].cancelled() {
                self.running.remove(at).release(&mut self.pool);
            }
        }
    }

    /// Gives up all of them. What they computed stays findable. Says whether there were any in the batch.
    pub(super) fn cancel_ahead(&mut self, why: Cancelled) -> bool {
        let started: Vec<Sequence> = self.running.drain(self.needed()..).collect();
        let any = !started.is_empty();
        for mut s in started.into_iter().chain(self.ahead.drain(..)) {
            s.release(&mut self.pool);
            if !s.cancelled() {
                self.parts.speculation.cancel(why);
            }
        }
        any
    }

    /// Gives them what the others leave of a step. `rows` has a place for each of `running`.
    pub(super) fn fill_ahead(&mut self, rows: &mut Vec<usize>, budget: usize) {
        let needed = self.needed();
        let busy = rows.iter().any(|new| *new > 0);
        if needed > 0 && !busy {
            // A plan holds everybody back: the host goes on with the first, not with us.
            return;
        }
        let bounds = &self.parts.ahead;
        let tokens_max = if busy { bounds.beside_tokens_max } else { bounds.idle_tokens_max };
        let mut budget = budget.min(tokens_max as usize);
        for (row, s) in rows.iter_mut().zip(&self.running).skip(needed) {
            *row = s.left().min(budget);
            budget -= *row;
        }
        while budget > 0 && self.running.len() < self.parts.schedule.step_rows_max as usize {
            let Some(mut s) = self.ahead.pop_front() else { break };
            s.take_cached(&mut self.pool, self.block_tokens);
            let missing = pages_for(s.len(), self.block_tokens) - s.pages.len();
            if missing as u32 + self.spare_pages() > self.pool.available() {
                s.release(&mut self.pool);
                self.parts.speculation.cancel(Cancelled::Pages);
                continue;
            }
            self.parts.speculation.started.fetch_add(1, Ordering::Relaxed);
            s.announce();
            rows.push(s.left().min(budget));
            budget -= s.left().min(budget);
            self.running.push(s);
        }
    }

    /// Pages that are left to others.
    fn spare_pages(&self) -> u32 {
        (self.parts.ahead.spare_share_min * f64::from(self.pool.stats().pages)) as u32
    }
}
