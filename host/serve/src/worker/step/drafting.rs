//! Which rows of a step try tokens behind the next one, and where they find room.
//!
//! A step reads all weights, however few its tokens are: a few more cost little.
//! **Invariant:** nobody gives way for what may be in vain, and no block that is cached; a page for it is held for one step.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kv::BlockPool;

use super::super::drafter::{Asked, Room};
use super::super::sequence::Sequence;
use decide::pages_for;

use super::StepLoop;

/// When nobody is helped to guesses any more in a step. Chosen: a step of a real model takes at least five.
const DRAFTING_MAX: Duration = Duration::from_millis(1);

impl StepLoop {
    /// Has sequences that draw one token try the next ones too, where a step has room for them.
    pub(super) fn draft(&mut self, rows: &[usize]) {
        let schedule = &self.parts.schedule;
        let begun = self.parts.ctx.now();
        let taken: usize = rows.iter().sum();
        let step_max = schedule.draft_step_tokens_max.min(schedule.step_tokens_max) as usize;
        let mut room = step_max.saturating_sub(taken);
        let vocab = self.parts.executors.served.caps().vocab;
        let in_time = || self.parts.ctx.now().saturating_sub(begun) <= DRAFTING_MAX;
        // Another one is the first at each step: there may not be room for all.
        let first = self.load.steps.load(Ordering::Relaxed) as usize;
        let mut unguessed = Vec::new();
        for turn in 0..rows.len() {
            let i = (first + turn) % rows.len();
            let s = &mut self.running[i];
            if rows[i] != 1 || s.left() != 1 || !s.is_prepared() || room == 0 {
                continue;
            }
            if !in_time() {
                break;
            }
            s.draft(room.min(schedule.draft_tokens_max as usize), vocab, &in_time);
            if s.drafts.is_empty() {
                unguessed.push(i);
            }
            room -= find_room(s, &mut self.pool, self.block_tokens);
        }
        self.ask_model(&unguessed, room, rows);
    }

    /// Has the draft model guess for those of whom nothing else can be told, in this order.
    fn ask_model(&mut self, unguessed: &[usize], room: usize, rows: &[usize]) {
        let Some(model) = self.draft_model.as_mut().filter(|_| room > 0) else { return };
        let schedule = &self.parts.schedule;
        let free_tokens = self.pool.stats().free as usize * self.block_tokens;
        let mut asked = Vec::with_capacity(unguessed.len());
        for (i, s) in self.running.iter_mut().enumerate() {
            let Some(turn) = unguessed.iter().position(|other| *other == i) else { continue };
            // Guesses that find no page are not even made.
            let held = s.pages.len() * self.block_tokens + free_tokens - s.len();
            let tokens_max = s.drafts_max(room.min(schedule.draft_tokens_max as usize)).min(held);
            if tokens_max > 0 {
                asked.push((turn, Asked { s, tokens_max }));
            }
        }
        asked.sort_by_key(|(turn, _)| *turn);
        let mut asked: Vec<Asked<'_>> = asked.into_iter().map(|(_, one)| one).collect();
        if asked.is_empty() {
            return;
        }
        let left = (schedule.step_tokens_max as usize).saturating_sub(rows.iter().sum());
        let drawing = rows.iter().filter(|new| **new > 0).count();
        let vocab = self.parts.executors.served.caps().vocab;
        let room = Room { guesses: room, tokens: left, rows: drawing, vocab };
        if let Err(error) = model.guess(&mut asked, room) {
            tracing::error!(worker = %self.parts.name, %error, "draft model failed and is not asked again");
            self.load.draft_failures.fetch_add(1, Ordering::Relaxed);
            self.draft_model = None;
        }
        for &i in unguessed {
            find_room(&mut self.running[i], &mut self.pool, self.block_tokens);
        }
    }

    /// Has the draft model forget whoever has left.
    pub(super) fn forget_drafts(&mut self) {
        if let Some(model) = &mut self.draft_model {
            model.forget_all_but(&self.running);
        }
    }
}

/// Gets the guesses of a sequence their pages, or drops those that find none. How many are left.
fn find_room(s: &mut Sequence, pool: &mut BlockPool, block_tokens: usize) -> usize {
    let pages = pages_for(s.len() + s.drafts.len(), block_tokens);
    let wanted = pages.saturating_sub(s.pages.len()) as u32;
    let free = if wanted <= pool.stats().free { wanted } else { 0 };
    s.pages.extend(pool.allocate(free).unwrap_or_default());
    s.drafts.truncate(s.pages.len() * block_tokens - s.len());
    s.drafts.len()
}

/// Gives back the pages that guesses had and that the sequence does not need: whoever else wants them need not wait.
pub(super) fn free_room(s: &mut Sequence, pool: &mut BlockPool, block_tokens: usize) {
    let needed = pages_for(s.len(), block_tokens);
    if let Some(spare) = s.pages.get(needed..) {
        pool.release(spare);
        s.pages.truncate(needed);
    }
}
