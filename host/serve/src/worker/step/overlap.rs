//! Steps that are submitted before the one before them has been read: their rows go on with the tokens that that one draws.
//!
//! ```text
//! host     submit N ── submit N + 1 ── read N, hand out ── submit N + 2 ── read N + 1, hand out
//! device   │ N                 │ N + 1                         │ N + 2
//! ```
//!
//! Only where the executor computes beside its caller, all that run decode, and nobody waits to join them; a newcomer waits for one
//! step more. A token that turns out to be the last has had a row in vain.
//! **Invariant:** what a row in flight computes is taken or written over; it is never sealed before its token is known.

use decide::pages_for;
use engine::{EngineError, Row, SampleSpec, Sampled, StepPlan, Ticket, drawn};

use super::super::sequence::Sequence;
use super::StepLoop;

/// A step that was submitted ahead.
pub(super) struct Flying {
    ticket: Ticket,
    /// Ids of its sequences, in the order of its rows.
    members: Vec<u64>,
    rows: Vec<Row>,
}

impl Flying {
    /// Its new tokens of each of `running`, and the places of its rows whose sequences are among them. Both have their
    /// order: nobody joins while a step is in flight.
    fn rows_of(&self, running: &[Sequence]) -> (Vec<usize>, Vec<usize>) {
        let (mut stayed, mut next) = (Vec::new(), 0);
        let mut row_of = |s: &Sequence| {
            let ahead = self.members[next..].iter().position(|id| *id == s.start.id);
            stayed.extend(ahead.map(|ahead| next + ahead));
            next = ahead.map_or(next, |ahead| next + ahead + 1);
            usize::from(ahead.is_some())
        };
        let rows = running.iter().map(&mut row_of).collect();
        (rows, stayed)
    }
}

impl StepLoop {
    /// Submits the step that follows the one just submitted, whose new tokens of each of `running` are `rows`; none where
    /// that has to wait.
    pub(super) fn follow(&mut self, rows: &[usize]) -> Result<Option<Flying>, EngineError> {
        if !self.may_follow(rows) {
            return Ok(None);
        }
        let mut members = Vec::new();
        for (i, sample) in drawing(rows) {
            let s = &mut self.running[i];
            if s.output.len() + 1 >= s.start.output_tokens_max as usize {
                // Its last token is being drawn.
                continue;
            }
            let wanted = pages_for(s.len() + 1, self.block_tokens).saturating_sub(s.pages.len());
            let Ok(pages) = self.pool.allocate(wanted as u32) else { return Ok(None) };
            s.pages.extend(pages);
            members.push((i, sample));
        }
        if members.is_empty() {
            return Ok(None);
        }
        let flying = self.submit_ahead(&members)?;
        members.iter().for_each(|(i, _)| self.running[*i].pass_draft());
        Ok(Some(flying))
    }

    /// Whether all that run draw one token each in a way that needs nothing but the token before, and nobody waits.
    fn may_follow(&self, rows: &[usize]) -> bool {
        let drafts_max = self.parts.schedule.draft_tokens_max as usize;
        let draws = |(s, new): (&Sequence, &usize)| {
            *new == 0 || (*new == s.left() && s.drafts.is_empty() && s.goes_on_blindly(drafts_max))
        };
        self.parts.executors.served.caps().overlaps
            && self.waiting.is_empty()
            && self.ahead.is_empty()
            && self.needed() == self.running.len()
            && self.draft_model.is_none()
            && self.running.iter().zip(rows).all(draws)
    }

    /// Submits a row for each (place in `running`, sample of the step before).
    fn submit_ahead(&mut self, members: &[(usize, u32)]) -> Result<Flying, EngineError> {
        let (mut rows, mut tokens, mut pages, mut samples) = (vec![], vec![], vec![], vec![]);
        for (row, (i, sample)) in (0..).zip(members) {
            let s = &self.running[*i];
            let first = pages.len() as u32;
            pages.extend_from_slice(&s.pages);
            tokens.push(drawn(*sample));
            samples.push(SampleSpec {
                params: &s.start.sampling,
                position: s.len() as u32 + 1,
                prompt: &[],
                output: &[],
                mask: None,
            });
            rows.push(Row {
                tokens: row..row + 1,
                position: s.len() as u32,
                pages: first..pages.len() as u32,
                samples: row..row + 1,
                adapter: s.start.adapter,
            });
        }
        let plan = StepPlan { rows: &rows, tokens: &tokens, pages: &pages, samples: &samples };
        let ticket = self.parts.executors.served.submit(&plan)?;
        Ok(Flying { ticket, members: members.iter().map(|(i, _)| self.running[*i].start.id).collect(), rows })
    }

    /// Reads the step in flight and hands out what it drew, to those who are still there. False when there is none.
    pub(super) fn land(&mut self) -> bool {
        let Some(flying) = self.flying.take() else { return false };
        let (rows, stayed) = flying.rows_of(&self.running);
        let sampled = self.read(&flying, (&rows, &stayed));
        self.settle_step(&rows, sampled);
        true
    }

    /// Lets a step in flight end without being read.
    pub(super) fn forget_flying(&mut self) {
        if let Some(flying) = self.flying.take() {
            // Whatever it says is of no use to anybody.
            let _ = self.parts.executors.served.poll(flying.ticket, true);
        }
    }

    /// Submits what follows, and reads a step in flight.
    fn read(
        &mut self,
        flying: &Flying,
        (rows, stayed): (&[usize], &[usize]),
    ) -> Result<Vec<Sampled>, EngineError> {
        // Whoever left still has its sample: places are those of that step.
        let followed = if stayed.len() == flying.members.len() { self.follow(rows) } else { Ok(None) };
        // Read in any case: the executor holds a step until then.
        let sampled = self.poll_step(flying.ticket, &flying.rows)?;
        self.flying = followed?;
        let mut stayed = stayed.iter().peekable();
        let of_stayed = |(place, _): &(usize, Sampled)| stayed.next_if_eq(&place).is_some();
        Ok(sampled.into_iter().enumerate().filter(of_stayed).map(|(_, sampled)| sampled).collect())
    }
}

/// Places of rows that draw, and of their samples.
fn drawing(rows: &[usize]) -> impl Iterator<Item = (usize, u32)> {
    rows.iter().enumerate().filter(|(_, new)| **new > 0).map(|(i, _)| i).zip(0..)
}
