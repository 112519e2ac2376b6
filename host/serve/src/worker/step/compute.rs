//! One step: what its rows try, compute and draw, and what becomes of that.
//!
//! **Invariant:** KV counts as computed only for tokens that were drawn; what was tried in vain is written over.

use std::sync::atomic::Ordering;

use engine::{EngineError, Row, Sampled, StepPlan, Ticket};

use super::super::drafter::{DraftModel, DraftSource};
use super::super::executors::is_fatal;
use super::super::sequence::{Event, Finish, Sequence};
use super::super::{Load, smooth};
use super::StepLoop;
use super::drafting::free_room;
use crate::ctx::Moment;
use crate::prompt::Next;

impl StepLoop {
    /// Computes one step and hands out what it drew.
    pub(super) fn step(&mut self, rows: &[usize]) {
        let sampled = self.execute(rows);
        self.settle_step(rows, sampled);
    }

    /// Hands out what a step drew, or sees to why it did not.
    pub(super) fn settle_step(&mut self, rows: &[usize], sampled: Result<Vec<Sampled>, EngineError>) {
        match sampled {
            Ok(sampled) => self.apply(rows, sampled),
            Err(error) if is_fatal(&error) => self.lost = Some(error),
            Err(error) => {
                tracing::error!(worker = %self.parts.name, %error, "step refused");
                self.forget_flying();
                for mut s in self.running.drain(..) {
                    s.release(&mut self.pool);
                    let _ = s.start.events.try_send(Event::Failed(error.to_string()));
                }
                self.changed = true;
            }
        }
    }

    fn execute(&mut self, rows: &[usize]) -> Result<Vec<Sampled>, EngineError> {
        self.running.iter_mut().for_each(Sequence::lay_drafts);
        let sampled = self.compute(rows);
        self.running.iter_mut().for_each(Sequence::lift_drafts);
        sampled
    }

    fn compute(&mut self, rows: &[usize]) -> Result<Vec<Sampled>, EngineError> {
        let (mut plan_rows, mut tokens, mut pages, mut samples) = (vec![], vec![], vec![], vec![]);
        for (s, &new) in self.running.iter().zip(rows).filter(|(_, new)| **new > 0) {
            let (token_start, page_start) = (tokens.len() as u32, pages.len() as u32);
            let new = new + s.drafts.len();
            s.next_tokens(new, &mut tokens);
            pages.extend_from_slice(&s.pages);
            let first = samples.len() as u32;
            if new == s.left() && !s.is_prompt_only() {
                samples.extend((0..=s.drafts.len()).map(|tried| s.sample_spec(tried)));
            }
            plan_rows.push(Row {
                tokens: token_start..tokens.len() as u32,
                position: s.computed as u32,
                pages: page_start..pages.len() as u32,
                samples: first..samples.len() as u32,
                adapter: s.start.adapter,
            });
        }
        let plan = StepPlan { rows: &plan_rows, tokens: &tokens, pages: &pages, samples: &samples };
        let ticket = self.parts.executors.served.submit(&plan)?;
        let followed = self.follow(rows);
        // Read in any case: the executor holds a step until then.
        let sampled = self.poll_step(ticket, &plan_rows)?;
        self.flying = followed?;
        Ok(sampled)
    }

    /// Waits for a step, and notes what it cost.
    pub(super) fn poll_step(&mut self, ticket: Ticket, rows: &[Row]) -> Result<Vec<Sampled>, EngineError> {
        let out = self.parts.executors.served.poll(ticket, true)?;
        let out = out.ok_or_else(|| EngineError::Plan("a blocking poll gave no result".into()))?;
        let tokens = rows.last().map_or(0, |row| row.tokens.end);
        self.load.step_tokens.fetch_add(tokens.into(), Ordering::Relaxed);
        if let Some(mover) = &self.mover {
            mover.computed(rows, out.took);
        }
        let decodes = rows.iter().all(|row| row.samples.len() == row.tokens.len());
        if let Some(model) = self.draft_model.as_mut().filter(|_| decodes) {
            model.served_took(tokens as usize, out.took);
        }
        tracing::trace!(worker = %self.parts.name, rows = rows.len(), tokens, took = ?out.took, "step");
        Ok(out.sampled)
    }

    fn apply(&mut self, rows: &[usize], sampled: Vec<Sampled>) {
        let mut sampled = sampled.into_iter();
        let now = self.parts.ctx.now();
        let needed = self.needed();
        let mut gone = Vec::new();
        let (mut drew, mut handed_out) = (0, 0);
        for (i, &new) in rows.iter().enumerate() {
            let s = &mut self.running[i];
            let draws = new > 0 && new == s.left();
            s.advance(new, &mut self.pool, self.block_tokens);
            if s.start.ahead {
                self.parts.speculation.tokens.fetch_add(new as u64, Ordering::Relaxed);
            }
            if !draws {
                continue;
            }
            if s.giver.is_some() {
                // It stays until its blocks are handed over.
                continue;
            }
            if s.is_prompt_only() {
                s.finish(Finish::Length);
                gone.push(i);
                continue;
            }
            let drafts = std::mem::take(&mut s.drafts);
            let drawn: Vec<Sampled> = sampled.by_ref().take(1 + drafts.len()).collect();
            if s.output.is_empty() {
                // Whoever planned around its prompt plans anew.
                self.changed = true;
                smooth(&self.load.ttft_us_ewma, now.saturating_sub(s.start.arrived).as_micros() as u64);
            }
            let right = drafts.iter().zip(&drawn).take_while(|(draft, drawn)| **draft == drawn.token).count();
            if !drafts.is_empty() {
                learn(s, (drafts.len(), right), &self.load, self.draft_model.as_mut());
            }
            drew += 1;
            for (place, token) in drawn.into_iter().take(right + 1).enumerate() {
                if place > 0 {
                    // The draft before it was right, and its KV with it.
                    s.advance(1, &mut self.pool, self.block_tokens);
                }
                handed_out += 1;
                if hand_out(s, token, now) {
                    gone.push(i);
                    break;
                }
            }
            if !drafts.is_empty() {
                free_room(s, &mut self.pool, self.block_tokens);
            }
        }
        if needed > 0 {
            let step_us = now.saturating_sub(self.last_token_at).as_micros() as u64;
            // A row that guessed right has several tokens of one step.
            smooth(&self.load.itl_us_ewma, (step_us * drew.max(1) / handed_out.max(1)).max(1));
            self.last_token_at = now;
        }
        for &i in gone.iter().rev() {
            self.commit(i);
            self.changed = true;
        }
    }
}

/// Counts guesses and those that were right, and tells whoever made them.
fn learn(s: &mut Sequence, (guesses, right): (usize, usize), load: &Load, model: Option<&mut DraftModel>) {
    let source = s.tried(guesses, right);
    let counts = load.drafts(source);
    counts.tokens.fetch_add(guesses as u64, Ordering::Relaxed);
    counts.accepted.fetch_add(right as u64, Ordering::Relaxed);
    if let (DraftSource::Model, Some(model)) = (source, model) {
        model.tried(s.start.id, guesses, right);
    }
}

/// Takes a drawn token in and reports it. True when the sequence has ended.
fn hand_out(s: &mut Sequence, sampled: Sampled, now: Moment) -> bool {
    if s.start.stop_tokens.contains(&sampled.token) {
        s.finish(Finish::Stop);
        return true;
    }
    let token = sampled.token;
    s.push(sampled, now);
    let full = s.output.len() >= s.start.output_tokens_max as usize;
    match s.follow(token) {
        Ok(Next::Complete) => s.finish(Finish::Stop),
        Ok(Next::More) if full => s.finish(Finish::Length),
        Ok(Next::More) => return false,
        Err(reason) => s.fail(reason),
    }
    true
}
