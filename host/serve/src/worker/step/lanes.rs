//! The step loop's sequences and pages, as a step is filled from them.

use std::sync::atomic::Ordering;

use decide::{Lanes, Order, Victim, pages_for};

use super::StepLoop;
use crate::speculation::Cancelled;
use crate::worker::sequence::{Event, Sequence};

impl Lanes for StepLoop {
    type Sequence = Sequence;

    fn running(&self) -> &[Sequence] {
        &self.running
    }

    fn needed(&self) -> usize {
        Self::needed(self)
    }

    fn waiting(&self) -> &[Sequence] {
        &self.waiting
    }

    fn start(&mut self, at: usize, tokens_max: usize) -> Option<usize> {
        let next = &mut self.waiting[at];
        let counted = next.cached_tokens;
        next.take_cached(&mut self.pool, self.block_tokens);
        let missing = pages_for(next.len(), self.block_tokens) - next.pages.len();
        if missing > self.pool.available() as usize && !self.running.is_empty() {
            next.release(&mut self.pool);
            // It did not start: what it will find in the cache is counted when it does.
            next.cached_tokens = counted;
            return None;
        }
        self.take_loads(at);
        let next = &mut self.waiting[at];
        let tokens = if next.loads.is_empty() { next.left().min(tokens_max) } else { 0 };
        next.announce();
        // From here on it is known what it has.
        next.start.expected_tokens = 0;
        self.running.push(self.waiting.remove(at));
        self.changed = true;
        Some(tokens)
    }

    fn grow(&mut self, at: usize, tokens: usize) -> bool {
        let s = &self.running[at];
        let wanted = pages_for(s.computed + tokens, self.block_tokens).saturating_sub(s.pages.len());
        let Ok(pages) = self.pool.allocate(wanted as u32) else { return false };
        self.running[at].pages.extend(pages);
        true
    }

    fn drop_unneeded(&mut self) -> bool {
        self.cancel_ahead(Cancelled::Pages)
    }

    fn order(&self) -> &Order {
        &self.order
    }

    fn preempt(&mut self, victim: Victim) {
        let mut s = self.running.remove(victim.at);
        s.flush();
        let pages = self.pool.stats().pages as usize;
        let fits = pages_for(s.len(), self.block_tokens) <= pages;
        if fits {
            self.swap_out(&s);
        }
        self.want_saved(&s);
        s.release(&mut self.pool);
        s.preemptions_planned += u32::from(victim.planned);
        self.load.preemptions.fetch_add(1, Ordering::Relaxed);
        self.changed = true;
        if !fits {
            // It had every page of the worker and needs more: waiting would not help it.
            let reason = format!("the worker's {pages} KV pages cannot hold this sequence");
            let _ = s.start.events.try_send(Event::Failed(reason));
        } else {
            // One that was alone comes back too: two that computed the same prefix side by side leave a block that
            // nobody holds and that cannot go before its children; a fresh start finds it in the cache.
            self.waiting.insert(0, s);
        }
    }
}
