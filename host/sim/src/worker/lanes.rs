//! A simulated worker's sequences and pages, as a step is filled from them.

use decide::{Lanes, Order, Scheduled as _, Victim, pages_for};

use super::{News, Worker};
use crate::sequence::Sequence;

impl Lanes for Worker {
    type Sequence = Sequence;

    fn running(&self) -> &[Sequence] {
        &self.running
    }

    fn waiting(&self) -> &[Sequence] {
        &self.waiting
    }

    fn start(&mut self, at: usize, tokens_max: usize) -> Option<usize> {
        let next = &mut self.waiting[at];
        let left = u64::from(next.prefill_left());
        next.take_cached(&mut self.pool);
        let missing = pages_for(next.len() as usize, self.kind.block_tokens as usize) - next.pages.len();
        if missing > self.pool.available() as usize && !self.running.is_empty() {
            next.release(&mut self.pool);
            return None;
        }
        self.tiers.load(next, &mut self.pool);
        let found = next.computed.min(next.prompt_tokens);
        next.cached.get_or_insert(found);
        let tokens = next.left().min(tokens_max);
        self.waiting_tokens -= left;
        self.running.push(self.waiting.remove(at));
        self.changed = true;
        Some(tokens)
    }

    fn grow(&mut self, at: usize, tokens: usize) -> bool {
        let s = &self.running[at];
        let wanted = pages_for(s.computed as usize + tokens, self.kind.block_tokens as usize);
        let Ok(pages) = self.pool.allocate(wanted.saturating_sub(s.pages.len()) as u32) else { return false };
        self.running[at].pages.extend(pages);
        true
    }

    fn order(&self) -> &Order {
        &self.order
    }

    fn preempt(&mut self, victim: Victim) {
        let mut s = self.running.remove(victim.at);
        s.release(&mut self.pool);
        s.give_way(victim.planned);
        self.preemptions += 1;
        self.changed = true;
        if pages_for(s.len() as usize, self.kind.block_tokens as usize) > self.kind.pages as usize {
            self.news.push(News::TooLong { sequence: Box::new(s) });
            return;
        }
        s.expected_tokens = 0;
        self.waiting_tokens += u64::from(s.prefill_left());
        self.waiting.insert(0, s);
    }
}
