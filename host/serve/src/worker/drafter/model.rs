//! Guesses of a draft model: a smaller one of the same vocabulary says what may come next, token by token.
//!
//! A guess is drawn as the token itself will be: with its seed, position, penalties and mask. What is random is then the
//! same for both models, so that they often agree where a text may go on in many ways, too.
//! The step loop asks before a step, for sequences that have no other guesses; all of them share each step of the draft
//! model. One whose draft lags behind catches up first, a bounded number of tokens before each step.
//! **Invariant:** it touches no page of the served model and fails no request: what goes wrong here costs guesses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::{EngineError, Executor, Row, SampleSpec, Sampled, StepPlan};
use kv::{BlockName, BlockPool};

use super::super::Load;
use super::super::sequence::Sequence;
use super::odds::{Prices, Share};
use super::track::{Standing, Track};
use crate::ctx::{Ctx, Moment};

/// Most tokens before a step that are computed of sequences whose draft lags behind. Chosen: of a model a tenth of the served
/// one's size they take about as long as a step of that.
const CATCH_UP_TOKENS_MAX: usize = 64;
/// A sequence that is behind by no more has but been out of step with its guesses, and is not said to lag.
const BEHIND_MAX: usize = 8;
/// Tokens that are not guessed before guesses that were not worth their price are tried again, and how many then. Chosen: a
/// text that becomes easy is noticed soon, and trying costs a few hundredths where it stays hard.
const SKIPPED_MAX: u32 = 32;
const RETRIED_MAX: usize = 4;
/// What may be missing of a sequence that tries again. Chosen: what others guessed meanwhile, and no prompt.
const RETRIED_BEHIND_MAX: usize = 4 * CATCH_UP_TOKENS_MAX;
/// When no further masks are computed before a step. Chosen: as for other guesses.
const MASKS_MAX: Duration = Duration::from_millis(1);

/// Most tokens of a step of the draft model with so many rows: some catch up, and the others are a few behind.
pub fn step_tokens_max(rows: u32) -> u32 {
    CATCH_UP_TOKENS_MAX as u32 + rows.saturating_mul(BEHIND_MAX as u32)
}

/// The draft model of a worker.
pub(in crate::worker) struct DraftModel {
    executor: Box<dyn Executor>,
    pool: BlockPool,
    tracks: BTreeMap<u64, Track>,
    prices: Prices,
    share: Share,
    load: Arc<Load>,
    ctx: Ctx,
}

/// A sequence that guesses are wanted for.
pub(in crate::worker) struct Asked<'a> {
    /// It has no drafts, and knows what its next draw may give.
    pub(in crate::worker) s: &'a mut Sequence,
    /// Most tokens to guess.
    pub(in crate::worker) tokens_max: usize,
}

/// Bounds of one step.
#[derive(Clone, Copy, Debug)]
pub(in crate::worker) struct Room {
    /// Guesses of all sequences together.
    pub(in crate::worker) guesses: usize,
    /// Tokens of those that catch up.
    pub(in crate::worker) tokens: usize,
    /// Sequences of the step.
    pub(in crate::worker) rows: usize,
    /// Token ids of the served model.
    pub(in crate::worker) vocab: u32,
}

/// How far one that was asked for has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It may guess so many tokens, whether or not they are worth it.
    Tries(usize),
    /// It may guess so many tokens as long as they are.
    Weighs(usize),
    Done,
}

/// A row of a step of the draft model.
struct Part {
    /// Which of those that were asked for.
    at: usize,
    tokens: usize,
    /// Whether it draws a guess.
    draws: bool,
}

impl DraftModel {
    pub(in crate::worker) fn new(executor: Box<dyn Executor>, load: Arc<Load>, ctx: Ctx) -> Self {
        let shape = executor.caps().kv;
        Self {
            pool: BlockPool::new(shape.pages, shape.block_tokens),
            executor,
            tracks: BTreeMap::new(),
            prices: Prices::default(),
            share: Share::default(),
            load,
            ctx,
        }
    }

    /// Guesses tokens of these sequences, the first ones first where there is no room for all. Errors: those of the executor;
    /// it is not to be asked again.
    pub(in crate::worker) fn guess(
        &mut self,
        asked: &mut [Asked<'_>],
        mut room: Room,
    ) -> Result<(), EngineError> {
        let mut turns: Vec<Turn> = asked.iter_mut().map(|one| self.begin(one)).collect();
        self.weigh(asked, &mut turns, room.rows);
        room.tokens = room.tokens.min(CATCH_UP_TOKENS_MAX);
        let (mut masks, mut outcome) = (Duration::ZERO, Ok(()));
        // Each round lays a token behind every row of it, or ends its turn.
        loop {
            let parts = self.parts(asked, &mut turns, &mut room);
            if parts.is_empty() {
                break;
            }
            let sampled = match self.step(asked, &parts) {
                Ok(sampled) => sampled,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            };
            self.take(asked, &mut turns, (&parts, sampled), (room.vocab, &mut masks));
            self.weigh(asked, &mut turns, room.rows);
        }
        asked.iter_mut().for_each(|one| one.s.end_drafts());
        outcome
    }

    /// Finds a sequence in the draft's KV, or brings it in.
    fn begin(&mut self, one: &mut Asked<'_>) -> Turn {
        let caps = self.executor.caps();
        let (s, pool) = (&mut *one.s, &mut self.pool);
        let tries = s.begin_drafts();
        let id = s.start.id;
        let share = self.share;
        let track = self.tracks.entry(id).or_insert_with(|| Track::begin(s, share, caps.vocab, pool));
        let pages = s.len().div_ceil(pool.block_tokens() as usize) as u32;
        match track.standing {
            // It comes back when there is room for it twice, so that two do not take turns.
            Standing::Out if pages <= pool.available() / 2 => track.come_in(s, pool),
            Standing::Out | Standing::Never => return Turn::Done,
            Standing::In => track.agree(s, pool),
        }
        // The last guess is drawn, and not computed.
        let left = (caps.context_max as usize + 1).saturating_sub(s.len());
        if left == 0 {
            self.put_out(id, Standing::Never);
            return Turn::Done;
        }
        match tries {
            true => Turn::Weighs(one.tokens_max.min(left)),
            false => Turn::Done,
        }
    }

    /// Ends the turns of those whose next guess is worth less than it costs, but for some that try again.
    fn weigh(&mut self, asked: &[Asked<'_>], turns: &mut [Turn], rows: usize) {
        let mut weighed = Vec::new();
        let mut chances = Vec::new();
        for (at, (one, turn)) in asked.iter().zip(&*turns).enumerate() {
            if let (Turn::Weighs(_), Some(track)) = (turn, self.tracks.get(&one.s.start.id)) {
                weighed.push(at);
                chances.push(track.share.chance(one.s.drafts.len()));
            }
        }
        for (at, worth) in weighed.into_iter().zip(self.prices.worth(&chances, rows)) {
            let s = &asked[at].s;
            let Some(track) = self.tracks.get_mut(&s.start.id) else { continue };
            if worth {
                track.skipped = 0;
            } else if s.drafts.is_empty() && track.skipped >= SKIPPED_MAX {
                track.skipped = 0;
                turns[at] = match turns[at] {
                    Turn::Weighs(most) => Turn::Tries(most.min(RETRIED_MAX)),
                    other => other,
                };
            } else {
                track.skipped += u32::from(s.drafts.is_empty());
                turns[at] = Turn::Done;
            }
        }
    }

    /// The rows of the next step, with pages for them.
    fn parts(&mut self, asked: &[Asked<'_>], turns: &mut [Turn], room: &mut Room) -> Vec<Part> {
        let mut parts = Vec::new();
        for (at, one) in asked.iter().enumerate() {
            let (most, behind_max) = match turns[at] {
                Turn::Tries(most) => (most, RETRIED_BEHIND_MAX),
                Turn::Weighs(most) => (most, CATCH_UP_TOKENS_MAX),
                Turn::Done => continue,
            };
            let part = match one.s.drafts.len() < most && room.guesses > 0 {
                true => self.part(one.s, room, behind_max),
                false => None,
            };
            match part {
                Some((tokens, draws)) => {
                    room.guesses -= usize::from(draws);
                    parts.push(Part { at, tokens, draws });
                }
                None => turns[at] = Turn::Done,
            }
        }
        // Those that came later may have taken the pages of those that came first.
        parts.retain(|part| {
            let track = self.tracks.get(&asked[part.at].s.start.id);
            let stays = track.is_some_and(|track| track.standing == Standing::In);
            if !stays {
                turns[part.at] = Turn::Done;
            }
            stays
        });
        parts
    }

    /// Tokens of a sequence in the next step, and whether it draws. One that lacks more than `behind_max` has to be worth it.
    fn part(&mut self, s: &Sequence, room: &mut Room, behind_max: usize) -> Option<(usize, bool)> {
        let vocab = self.executor.caps().vocab;
        let track = self.tracks.get(&s.start.id)?;
        let from = track.computed();
        let missing = s.len() - from;
        if missing > behind_max {
            let hinted = (s.start.hints.expected_output_tokens as usize).saturating_sub(s.output.len());
            // What is not known is believed to be half over.
            let to_come = hinted.max(s.output.len());
            if !self.prices.worth_catching_up(track.share, missing, to_come) {
                return None;
            }
        }
        let tokens = match missing <= BEHIND_MAX {
            true => missing,
            false => missing.min(room.tokens),
        };
        if tokens == 0 {
            return None;
        }
        let unknown = (from..from + tokens).any(|place| s.token(place) >= vocab);
        if unknown {
            self.put_out(s.start.id, Standing::Never);
            return None;
        }
        let draws = tokens == missing;
        if draws && s.next_mask().is_some_and(|mask| mask.tokens(vocab).next().is_none()) {
            return None;
        }
        if !self.reserve(s.start.id, from + tokens) {
            return None;
        }
        room.tokens = room.tokens.saturating_sub(if missing > BEHIND_MAX { tokens } else { 0 });
        Some((tokens, draws))
    }

    /// Gets a sequence pages. When there are none left, whoever made least of its guesses goes without; false if that is
    /// this one.
    fn reserve(&mut self, id: u64, tokens: usize) -> bool {
        let block_tokens = self.pool.block_tokens() as usize;
        // Each turn of the loop takes all pages from one of them.
        loop {
            let Some(track) = self.tracks.get_mut(&id) else { return false };
            if let Ok(pages) = self.pool.allocate(track.lacks(tokens, block_tokens)) {
                track.extend(pages);
                return true;
            }
            let accepted = track.accepted;
            let others =
                self.tracks.iter().filter(|(other, track)| **other != id && !track.pages().is_empty());
            let least = others.map(|(other, track)| (track.accepted, *other)).min();
            match least {
                Some((least, other)) if least < accepted => self.put_out(other, Standing::Out),
                _ => {
                    self.put_out(id, Standing::Out);
                    return false;
                }
            }
        }
    }

    fn put_out(&mut self, id: u64, standing: Standing) {
        if let Some(track) = self.tracks.get_mut(&id) {
            track.release(&mut self.pool);
            track.standing = standing;
        }
    }

    fn step(&mut self, asked: &[Asked<'_>], parts: &[Part]) -> Result<Vec<Sampled>, EngineError> {
        let (mut rows, mut tokens, mut pages, mut samples) = (vec![], vec![], vec![], vec![]);
        for part in parts {
            let s = &*asked[part.at].s;
            let track = &self.tracks[&s.start.id];
            let (token_start, page_start, sample_start) =
                (tokens.len() as u32, pages.len() as u32, samples.len() as u32);
            let from = track.computed();
            s.copy_tokens(from..from + part.tokens, &mut tokens);
            pages.extend_from_slice(track.pages());
            if part.draws {
                samples.push(SampleSpec { params: &track.params, ..s.sample_spec(s.drafts.len()) });
            }
            rows.push(Row {
                tokens: token_start..tokens.len() as u32,
                position: from as u32,
                pages: page_start..pages.len() as u32,
                samples: sample_start..samples.len() as u32,
                // Of the served model alone.
                adapter: None,
            });
        }
        let plan = StepPlan { rows: &rows, tokens: &tokens, pages: &pages, samples: &samples };
        let ticket = self.executor.submit(&plan)?;
        let out = self.executor.poll(ticket, true)?;
        let out = out.ok_or_else(|| EngineError::Plan("a blocking poll gave no result".into()))?;
        self.prices.draft_took(tokens.len(), out.took);
        self.load.draft_steps.fetch_add(1, Ordering::Relaxed);
        tracing::trace!(rows = rows.len(), tokens = tokens.len(), took = ?out.took, "draft step");
        Ok(out.sampled)
    }

    /// Lays what was drawn behind the sequences. `masks`: time that masks took so far.
    fn take(
        &mut self,
        asked: &mut [Asked<'_>],
        turns: &mut [Turn],
        (parts, sampled): (&[Part], Vec<Sampled>),
        (vocab, masks): (u32, &mut Duration),
    ) {
        let mut sampled = sampled.into_iter();
        for part in parts {
            let s = &mut *asked[part.at].s;
            let said = s.len() - s.drafts.len();
            if let Some(track) = self.tracks.get_mut(&s.start.id) {
                track.advance(part.tokens, (&*s, said), &mut self.pool);
            }
            let drawn = if part.draws { sampled.next() } else { None };
            let goes_on = drawn.is_some_and(|drawn| {
                let begun = self.ctx.now();
                let laid =
                    (s.start.constraint.is_none() || *masks <= MASKS_MAX) && s.add_draft(drawn.token, vocab);
                *masks += self.ctx.now().saturating_sub(begun);
                laid
            });
            if !goes_on {
                turns[part.at] = Turn::Done;
            }
        }
    }

    /// Learns how many guesses of a sequence were right.
    pub(in crate::worker) fn tried(&mut self, id: u64, guesses: usize, right: usize) {
        self.share.note_of_many(guesses, right);
        if let Some(track) = self.tracks.get_mut(&id) {
            track.share.note(guesses, right);
            track.accepted += right as u64;
        }
    }

    /// Learns what a step of the served model took that computed no prompt.
    pub(in crate::worker) fn served_took(&mut self, tokens: usize, took: Moment) {
        self.prices.served_took(tokens, took);
    }

    /// Gives back the pages of sequences that are not among these.
    pub(in crate::worker) fn forget_all_but(&mut self, running: &[Sequence]) {
        let pool = &mut self.pool;
        self.tracks.retain(|id, track| {
            let runs = running.iter().any(|s| s.start.id == *id);
            if !runs {
                track.release(pool);
            }
            runs
        });
        // Nobody wants to know.
        self.pool.drain_events().for_each(drop);
    }

    /// Gives up all blocks that nobody uses.
    pub(in crate::worker) fn flush(&mut self) {
        self.pool.flush();
    }

    /// Gives up these blocks, as far as nobody uses them.
    pub(in crate::worker) fn remove(&mut self, names: &[BlockName]) {
        self.pool.remove_last(names);
    }

    /// Its pages.
    #[cfg(test)]
    pub(in crate::worker) fn pool(&self) -> &BlockPool {
        &self.pool
    }
}
