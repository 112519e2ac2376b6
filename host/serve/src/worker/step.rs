//! The step loop: receive, plan, admit, compute one step, hand out tokens; again.
//!
//! **Invariant:** every sequence that came in leaves exactly once, finished, failed or cancelled, and its
//! pages go back then.

mod ahead;
mod compute;
mod drafting;
mod lanes;
mod moving;
mod outage;
mod overlap;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use decide::{Asking, LowerTiers, Order, Planner, Retainer, StepBudget, Terms};
use engine::EngineError;
use kv::BlockPool;
use policy::Frame;

use self::moving::Mover;
use self::outage::{Outage, Renewed};
use self::overlap::Flying;
use super::conversation;
use super::drafter::DraftModel;
use super::handoff::Handoff;
use super::inspect::{self, Question};
use super::sequence::{Finish, Sequence, Start};
use super::{Load, Message, Parts, Sender};
use crate::ctx::{Ctx, Moment, name_id};
use crate::prompt::Next;

/// State of one worker's loop; it lives on that worker's thread.
pub(super) struct StepLoop {
    parts: Parts,
    pool: BlockPool,
    load: Arc<Load>,
    received: Receiver<Message>,
    /// For those who are to wake it.
    sender: Sender,
    /// In the order in which they are to be started.
    waiting: Vec<Sequence>,
    /// In order of admission; behind them those that are computed ahead of need.
    running: Vec<Sequence>,
    /// Those that are to be computed ahead of need.
    ahead: VecDeque<Sequence>,
    order: Order,
    planner: Arc<dyn Planner>,
    retainer: Retainer,
    mover: Option<Mover>,
    draft_model: Option<DraftModel>,
    /// The step that was submitted ahead.
    flying: Option<Flying>,
    /// Why the executor can compute nothing more; seen to before the turn ends.
    lost: Option<EngineError>,
    /// Since when there is no executor.
    outage: Option<Outage>,
    renewed: Option<Renewed>,
    /// Whether `waiting` or `running` has other members than at the last schedule decision.
    changed: bool,
    block_tokens: usize,
    last_token_at: Moment,
}

impl StepLoop {
    pub(super) fn new(
        mut parts: Parts,
        pool: BlockPool,
        load: Arc<Load>,
        (sender, received): (Sender, Receiver<Message>),
    ) -> Self {
        let planner = Arc::clone(&parts.generations) as Arc<dyn Planner>;
        let order = Order::new(parts.index, name_id(&parts.name));
        let named = (parts.index, name_id(&parts.name));
        let retainer =
            Retainer::new(named, parts.kv.retain_bounds().rules(parts.kv.block_tokens, pool.stats().pages));
        let shape = parts.executors.served.caps().kv;
        let tiers = parts.tiers.as_ref();
        let keeps = parts.kv.has_tiers();
        let mover = tiers.map(|tiers| Mover::new(Arc::clone(tiers), (shape.block_bytes, shape.pages), keeps));
        let block_tokens = shape.block_tokens as usize;
        let draft = parts.executors.draft.take();
        let draft_model = draft.map(|draft| DraftModel::new(draft, Arc::clone(&load), parts.ctx.clone()));
        Self {
            parts,
            pool,
            load,
            received,
            sender,
            mover,
            draft_model,
            flying: None,
            lost: None,
            outage: None,
            renewed: None,
            waiting: Vec::new(),
            running: Vec::new(),
            ahead: VecDeque::new(),
            order,
            planner,
            retainer,
            changed: false,
            block_tokens,
            last_token_at: Moment::ZERO,
        }
    }

    /// Runs until every sender is gone and every sequence has left.
    pub(super) fn run(mut self) {
        self.pin();
        while self.turn() {}
    }

    /// One round of the loop. False at the end.
    fn turn(&mut self) -> bool {
        if !self.receive() {
            return false;
        }
        if self.outage.is_some() {
            self.recover();
            self.publish();
            return true;
        }
        self.review_cache();
        self.drop_cancelled();
        self.yield_ahead();
        self.plan();
        let busy = self.land() || self.next_step();
        if self.lost.is_none() {
            self.move_some(busy);
        }
        if let Some(error) = self.lost.take() {
            self.lose(&error);
        }
        self.forget_drafts();
        self.publish();
        true
    }

    /// Plans a step and computes it. False when there is nothing to compute.
    fn next_step(&mut self) -> bool {
        let mut rows = self.admit();
        self.prepare_draws(&mut rows);
        let busy = rows.iter().any(|new| *new > 0);
        if busy {
            self.flush_before_prefill(&rows);
            self.draft(&rows);
            self.step(&rows);
        }
        busy
    }

    /// Takes what has come in; sleeps when there is nothing to do. False at the end.
    fn receive(&mut self) -> bool {
        if let Some(rest) = self.rest() {
            let received = match rest {
                Some(time) => {
                    self.received.recv_timeout(time).map_err(|e| e == RecvTimeoutError::Disconnected)
                }
                None => self.received.recv().map_err(|_| true),
            };
            match received {
                Ok(message) => self.take(message),
                Err(true) if self.outage.is_some() => {
                    self.give_up_waiting();
                    return false;
                }
                // Whatever was fetched is there by then.
                Err(ended) => return !ended || !self.waiting.is_empty() || !self.running.is_empty(),
            }
        }
        while let Ok(message) = self.received.try_recv() {
            self.take(message);
        }
        true
    }

    /// How long there is nothing to do: `Some(None)` until somebody comes.
    fn rest(&mut self) -> Option<Option<Duration>> {
        if let Some(outage) = &self.outage {
            return Some(Some(outage.rest(self.parts.ctx.now(), !self.waiting.is_empty())));
        }
        if !self.is_idle() {
            return None;
        }
        let stalled = self.mover.as_mut().is_some_and(Mover::take_stalled) || !self.running.is_empty();
        Some(stalled.then_some(STALLED))
    }

    /// Whether there is nothing to do until somebody comes in or something is there.
    fn is_idle(&self) -> bool {
        let waits_for_slot = |s: &Sequence| s.stalled.is_some() && s.left() == 0;
        self.flying.is_none()
            && self.running.iter().all(waits_for_slot)
            && self.ahead.is_empty()
            && self.waiting.iter().all(Sequence::is_fetching)
            && !self.mover.as_ref().is_some_and(Mover::is_busy)
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Start(start) => self.enqueue(*start),
            Message::TakeOver(s) => self.take_over(*s),
            // Somebody may be started who could not be when the last plan was made.
            Message::Wake => self.changed = true,
            Message::Ask(question) => self.answer(question),
        }
    }

    /// Whoever asked may have left.
    fn answer(&mut self, question: Question) {
        match question {
            Question::Held(answer) => {
                let held = inspect::held(self.retainer.memory(), &self.pool, self.parts.ctx.unix_ms());
                let _ = answer.send(held);
            }
            Question::Drop(session, answer) => {
                let names = self.retainer.forget(session);
                if let Some(names) = &names {
                    self.pool.remove_last(names);
                    self.draft_model.iter_mut().for_each(|model| model.remove(names));
                }
                let _ = answer.send(names);
            }
            Question::Flush(answer) => {
                self.draft_model.iter_mut().for_each(DraftModel::flush);
                let _ = answer.send(self.pool.flush());
            }
        }
    }

    fn enqueue(&mut self, mut start: Start) {
        if start.ahead {
            return self.enqueue_ahead(start);
        }
        let handoff = start.handoff.take();
        self.load.in_transit.fetch_sub(1, Ordering::Relaxed);
        self.load.in_transit_tokens.fetch_sub(start.load_tokens(), Ordering::Relaxed);
        let fingerprint = self.parts.executors.served.caps().fingerprint_of(start.adapter);
        let mut s = Sequence::new(start, fingerprint, self.block_tokens);
        if !s.output.is_empty() && goes_no_further(&mut s) {
            return;
        }
        match handoff {
            Some(Handoff::Take(taker)) => self.await_handoff(&mut s, taker),
            Some(Handoff::Give(giver)) => {
                s.giver = Some(giver);
                self.fetch(&mut s);
            }
            None => self.fetch(&mut s),
        }
        self.waiting.push(s);
        self.changed = true;
    }

    /// A client that left frees its sequences before the next step.
    fn drop_cancelled(&mut self) {
        let before = self.waiting.len() + self.running.len();
        self.waiting.retain(|s| !s.cancelled());
        for i in (0..self.needed()).rev() {
            if self.running[i].cancelled() {
                self.commit(i);
            }
        }
        self.changed |= before != self.waiting.len() + self.running.len();
    }

    /// Asks who is next, if there are others than at the last decision.
    fn plan(&mut self) {
        let changed = std::mem::take(&mut self.changed) || self.order.is_outdated(&*self.planner);
        let needed = self.needed();
        if !changed || (self.waiting.is_empty() && needed == 0) {
            return;
        }
        let schedule = &self.parts.schedule;
        let ctx = &self.parts.ctx;
        let terms = Terms {
            now: ctx.now(),
            frame: frame(ctx),
            tokens: schedule.step_tokens_max,
            pages: self.pool.available(),
            rows: schedule.step_rows_max.saturating_sub(needed as u32),
            starvation: self.starvation(),
        };
        self.order.decide(&*self.planner, (&mut self.waiting, &mut self.running[..needed]), &terms);
    }

    fn starvation(&self) -> Duration {
        Duration::from_millis(self.parts.schedule.starvation_ms_max)
    }

    /// Fills a step and gets it its pages. Returns new tokens for each of `running`.
    fn admit(&mut self) -> Vec<usize> {
        let schedule = &self.parts.schedule;
        let budget = StepBudget {
            now: self.parts.ctx.now(),
            tokens_max: schedule.step_tokens_max as usize,
            rows_max: schedule.step_rows_max as usize,
            starvation: self.starvation(),
        };
        let (mut rows, left) = decide::fill(self, &budget);
        self.fill_ahead(&mut rows, left);
        decide::reserve(self, &mut rows);
        if rows.iter().all(|new| *new == 0) {
            // A plan holds everybody back, or preemption left only those that it holds: the host goes on.
            rows = decide::first_anyway(self, &budget);
            decide::reserve(self, &mut rows);
        }
        rows
    }

    /// Has constrained rows that draw in this step know what they may draw. When that took its time, the others sit
    /// this step out, another one at each step. One whose grammar fails leaves alone.
    fn prepare_draws(&mut self, rows: &mut Vec<usize>) {
        let begun = self.parts.ctx.now();
        let first = self.load.steps.load(Ordering::Relaxed) as usize;
        let vocab = self.parts.executors.served.caps().vocab;
        let mut failed = Vec::new();
        for turn in 0..rows.len() {
            let i = (first + turn) % rows.len();
            let s = &mut self.running[i];
            if rows[i] == 0 || rows[i] < s.left() || s.start.constraint.is_none() {
                continue;
            }
            let spent = self.parts.ctx.now().saturating_sub(begun);
            if spent > MASKS_PER_STEP_MAX && !s.is_prepared() {
                rows[i] = 0;
            } else if let Err(reason) = s.prepare_draw(vocab) {
                tracing::warn!(worker = %self.parts.name, seq = s.start.id, error = %reason, "sequence failed");
                s.fail(reason);
                failed.push(i);
            }
        }
        failed.sort_unstable();
        for i in failed.into_iter().rev() {
            self.commit(i);
            rows.remove(i);
            self.changed = true;
        }
    }

    /// A prefill may take long: no token that is ready waits for it.
    fn flush_before_prefill(&mut self, rows: &[usize]) {
        if rows.iter().any(|&new| new > 1) {
            self.running.iter_mut().for_each(Sequence::flush);
        }
    }

    /// A sequence leaves: what it computed stays findable, and is worth what the `retain` slot says.
    fn commit(&mut self, running: usize) {
        let mut s = self.running.remove(running);
        if s.start.ahead {
            self.parts.speculation.finished.fetch_add(1, Ordering::Relaxed);
            return s.release(&mut self.pool);
        }
        // What the tiers keep of a prompt is decided when it was answered.
        let mut tiers = self.mover.as_ref().map(Mover::tiers).filter(|_| s.giver.is_none());
        let mut with = Asking {
            pool: &mut self.pool,
            tiers: tiers.as_mut().map(|tiers| tiers as &mut dyn LowerTiers),
            generations: &self.parts.generations,
            frame: frame(&self.parts.ctx),
        };
        let turn = |now_ms| conversation::of(&s, now_ms);
        self.retainer.committed(turn, s.cached_tokens.unwrap_or(0), &mut with);
        self.want_saved(&s);
        s.release(&mut self.pool);
    }

    fn want_saved(&mut self, s: &Sequence) {
        if let Some(mover) = &mut self.mover {
            mover.want_saved(s);
        }
    }

    fn review_cache(&mut self) {
        if self.retainer.in_force() {
            let frame = frame(&self.parts.ctx);
            let mut tiers = self.mover.as_ref().map(Mover::tiers);
            let tiers = tiers.as_mut().map(|tiers| tiers as &mut dyn LowerTiers);
            let mut with =
                Asking { pool: &mut self.pool, tiers, generations: &self.parts.generations, frame };
            self.retainer.before_step(&mut with);
        }
    }

    fn publish(&mut self) {
        self.parts.prefixes.follow(self.parts.index, self.pool.drain_events());
        let stats = self.pool.stats();
        let load = &self.load;
        let set =
            |cell: &std::sync::atomic::AtomicU32, value: usize| cell.store(value as u32, Ordering::Relaxed);
        let left = |s: &Sequence| s.prefill_left() as u64;
        let running = &self.running[..self.needed()];
        set(&load.waiting, self.waiting.iter().filter(|s| !s.awaits_handoff()).count());
        set(&load.running, running.len());
        set(&load.pages_pinned, stats.pinned as usize);
        set(&load.pages_cached, stats.evictable as usize);
        set(&load.pages_kept, stats.kept as usize);
        let store = |cell: &AtomicU64, value: u64| cell.store(value, Ordering::Relaxed);
        store(&load.queued_tokens, self.waiting.iter().chain(running).map(left).sum());
        store(&load.active_tokens, running.iter().map(|s| s.len() as u64).sum());
        store(&load.evictions, stats.evictions);
        load.steps.fetch_add(1, Ordering::Relaxed);
        if let Some(mover) = &self.mover {
            mover.tiers().tick(self.parts.ctx.unix_ms());
        }
    }
}

/// How long a worker that has nothing else to do waits for slots to become free. Chosen: a disk writes some blocks.
const STALLED: Duration = Duration::from_millis(2);

/// When no further masks are computed for a step. Chosen: a mask takes about 20 us, seldom some milliseconds; a step
/// of a real model takes at least five, and rows without a grammar wait no longer than this and one mask.
const MASKS_PER_STEP_MAX: Duration = Duration::from_millis(2);

/// Has what there is of an output looked at as if it had been drawn. True when that is all of it.
fn goes_no_further(s: &mut Sequence) -> bool {
    for at in 0..s.output.len() {
        match s.follow(s.output[at]) {
            Ok(Next::More) => {}
            Ok(Next::Complete) => {
                s.announce();
                s.finish(Finish::Stop);
                return true;
            }
            Err(reason) => {
                s.fail(reason);
                return true;
            }
        }
    }
    let full = s.output.len() >= s.start.output_tokens_max as usize;
    if full {
        s.announce();
        s.finish(Finish::Length);
    }
    full
}

fn frame(ctx: &Ctx) -> Frame {
    Frame { now_ms: ctx.unix_ms(), seed: ctx.seed() }
}

#[cfg(test)]
mod tests;
