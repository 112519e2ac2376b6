//! What becomes of a worker whose executor is lost, and of its sequences.
//!
//! ```text
//!   lost ──► its sequences go on with other workers ──► another executor is made ──► it is asked for again
//!              └─ nobody else is well: they wait ──────────┴─ that fails: again, later and later
//! ```
//!
//! A sequence is its tokens and its seed, and draws by position: computed again elsewhere it goes on where it was.
//! **Invariant:** no page and no block of the lost executor is used again; a sequence outlives a bounded number of losses.

use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::EngineError;

use super::StepLoop;
use crate::ctx::Moment;
use crate::speculation::Cancelled;
use crate::worker::drafter::DraftModel;
use crate::worker::executors::{Executors, Gone, check_alike};
use crate::worker::sequence::{Awaited, Event, Sequence};

/// Losses that a sequence outlives. Chosen: it may be what breaks them, and must not take one worker after the other down.
const LOSSES_MAX: u32 = 3;
/// How long sequences wait for an executor where no other worker can take them. Chosen: resetting a GPU and loading weights of
/// some GiB onto it takes seconds, and callers wait longer than this for a first token.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time from the first attempt in vain to the next; it doubles, up to the longest. Chosen: a driver is back within moments or
/// needs somebody.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// An executor that computed for so long was well: what happens to it then is a new matter.
const STEADY: Duration = Duration::from_secs(60);
/// How often those who wait look for another worker.
const LOOK_AROUND: Duration = Duration::from_millis(50);

/// A time without an executor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    /// When those who wait are told that nobody is left.
    pub(super) gives_up_at: Moment,
    /// Attempts in vain, those before it included that held only for a moment.
    failures: u32,
    next_attempt: Moment,
}

/// When an executor took another one's place, and how many attempts that had taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Renewed {
    at: Moment,
    failures: u32,
}

impl Outage {
    fn begin(now: Moment, renewed: Option<Renewed>) -> Self {
        let recent = renewed.filter(|renewed| now.saturating_sub(renewed.at) < STEADY);
        let failures = recent.map_or(0, |renewed| renewed.failures + 1);
        Self { gives_up_at: now + PATIENCE, failures, next_attempt: now + pause(failures) }
    }

    fn failed(&mut self, now: Moment) {
        self.failures += 1;
        self.next_attempt = now + pause(self.failures);
    }

    /// How long there is nothing to do. `awaited`: somebody waits for the worker.
    pub(super) fn rest(&self, now: Moment, awaited: bool) -> Duration {
        let rest = self.next_attempt.saturating_sub(now);
        if awaited { rest.min(LOOK_AROUND) } else { rest }
    }
}

fn pause(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => RETRY_FIRST.saturating_mul(1 << doublings.min(16)).min(RETRY_MAX),
    }
}

impl StepLoop {
    /// The executor can compute nothing more: everything that it held is gone, and its sequences wait.
    pub(super) fn lose(&mut self, error: &EngineError) {
        tracing::error!(
            worker = %self.parts.name,
            device = %self.parts.executors.served.caps().name,
            %error,
            running = self.needed(),
            waiting = self.waiting.len(),
            "executor failed; another one is made"
        );
        self.load.unhealthy.store(true, Ordering::Relaxed);
        self.load.executor_failures.fetch_add(1, Ordering::Relaxed);
        let caps = self.parts.executors.served.caps().clone();
        // What it holds of the device has to be free before its successor is made.
        self.parts.executors.served = Box::new(Gone::new(caps, error.to_string()));
        self.draft_model = None;
        self.flying = None;
        self.cancel_ahead(Cancelled::Lost);
        let mut stranded = Vec::new();
        for mut s in self.running.drain(..) {
            s.release(&mut self.pool);
            s.start.expected_tokens = 0;
            if s.outlives_loss(LOSSES_MAX) {
                stranded.push(s);
            } else {
                s.fail(format!("the device was lost {} times while this was computed", LOSSES_MAX + 1));
            }
        }
        self.waiting.splice(0..0, stranded);
        self.pool.flush();
        let stats = self.pool.stats();
        assert!(stats.free == stats.pages, "no page of a lost executor is in use");
        if let Some(mover) = &mut self.mover {
            mover.forget_unsaved();
        }
        self.outage = Some(Outage::begin(self.parts.ctx.now(), self.renewed));
        self.changed = true;
    }

    /// One round without an executor: hands over who waits, and tries to get another one when it is time.
    pub(super) fn recover(&mut self) {
        self.cancel_ahead(Cancelled::Lost);
        // Who computes for another worker ends here: the other one computes what it lacks.
        self.waiting.retain(|s| !s.cancelled() && s.giver.is_none());
        self.hand_over_waiting();
        let Some(mut outage) = self.outage else { return };
        if outage.next_attempt <= self.parts.ctx.now() {
            match self.renew() {
                Ok(()) => {
                    self.renewed = Some(Renewed { at: self.parts.ctx.now(), failures: outage.failures });
                    self.outage = None;
                    return;
                }
                Err(error) => {
                    outage.failed(self.parts.ctx.now());
                    let retry_s = pause(outage.failures).as_secs_f32();
                    tracing::error!(worker = %self.parts.name, %error, retry_s, "no executor could be made");
                }
            }
        }
        self.outage = Some(outage);
        if outage.gives_up_at <= self.parts.ctx.now() {
            self.give_up_waiting();
        }
    }

    /// Ends everybody who waits: nothing is left that could compute.
    pub(super) fn give_up_waiting(&mut self) {
        for mut s in self.waiting.drain(..) {
            s.flush();
            let _ = s.start.events.try_send(Event::Stranded);
        }
    }

    /// Hands those who wait to workers that are well, as long as there are any.
    fn hand_over_waiting(&mut self) {
        let mut left = Vec::new();
        for mut s in self.waiting.drain(..) {
            if let Some(Awaited::Tiers(_)) = s.awaited {
                // Whoever takes it fetches what is lacking there.
                s.awaited = None;
            }
            s.chunk_tokens = None;
            match self.parts.peers.take_over(self.parts.index, s) {
                None => {
                    self.load.sequences_moved.fetch_add(1, Ordering::Relaxed);
                }
                Some(s) => left.push(s),
            }
        }
        self.waiting = left;
    }

    /// Takes a sequence that another worker cannot go on with.
    pub(super) fn take_over(&mut self, mut s: Sequence) {
        self.load.in_transit.fetch_sub(1, Ordering::Relaxed);
        self.load.in_transit_tokens.fetch_sub(s.prompt_len() as u64, Ordering::Relaxed);
        // What another worker had of it is not here.
        s.start.expected_tokens = 0;
        match s.awaited.take() {
            Some(Awaited::Handoff(taker)) => self.await_handoff(&mut s, taker),
            _ => self.fetch(&mut s),
        }
        self.waiting.push(s);
        self.changed = true;
    }

    /// Gets another executor.
    fn renew(&mut self) -> Result<(), EngineError> {
        let Executors { served, draft } = (self.parts.make)()?;
        check_alike(self.parts.executors.served.caps(), served.caps())?;
        self.parts.executors.served = served;
        self.draft_model =
            draft.map(|draft| DraftModel::new(draft, self.load.clone(), self.parts.ctx.clone()));
        self.pin();
        self.load.executor_restarts.fetch_add(1, Ordering::Relaxed);
        self.load.unhealthy.store(false, Ordering::Relaxed);
        self.changed = true;
        tracing::info!(
            worker = %self.parts.name,
            device = %self.parts.executors.served.caps().name,
            waiting = self.waiting.len(),
            "executor restarted"
        );
        Ok(())
    }

    /// Tells the executor of the memory that blocks are saved to. Without that they move all the same.
    pub(super) fn pin(&mut self) {
        let Some(mover) = &self.mover else { return };
        if let Err(error) = self.parts.executors.served.pin(mover.tiers().arena()) {
            tracing::warn!(worker = %self.parts.name, %error, "memory of the host is not pinned; blocks move slower");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_further_and_further_apart_until_one_holds() {
        let seconds = |s: u64| Duration::from_secs(s);
        let mut outage = Outage::begin(seconds(100), None);
        assert_eq!(outage.rest(seconds(100), false), Duration::ZERO, "the first comes at once");
        let mut rests = Vec::new();
        for _ in 0..10 {
            outage.failed(seconds(100));
            rests.push(outage.rest(seconds(100), false).as_millis());
        }
        assert_eq!(rests, [250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(outage.rest(seconds(100), true), LOOK_AROUND);
        let renewed = Some(Renewed { at: seconds(200), failures: 3 });
        assert_eq!(Outage::begin(seconds(201), renewed).failures, 4, "it held for a moment only");
        assert_eq!(Outage::begin(seconds(300), renewed).failures, 0);
    }
}
