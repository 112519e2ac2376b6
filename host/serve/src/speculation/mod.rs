//! Prefill ahead of need: while a caller runs its tools, the prefix of its next prompt is computed.
//!
//! ```text
//! turn ends → render what follows, as the caller will echo it → the turn's worker computes what it lacks, at the
//! lowest rank → the session's next request finds it, or ends it
//! ```
//!
//! Templates render an answer in another way than the model wrote it, or leave parts of it out, so that the KV of what was
//! generated is not that of the next prompt.
//! **Invariant:** at most one prompt a session is prepared at a time, and none once its next request is there; a hint
//! that says no wins.

mod echo;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use decide::Wishes;
use kv::BlockName;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::mpsc;

use self::echo::Echo;
use crate::answer::FinishReason;
use crate::app::App;
use crate::config::When;
use crate::prompt::OutputEvent;
use crate::render;
use crate::request::{Input, Prompt, Request};
use crate::worker::{Event, SequenceHints, Start};

/// Chosen: more sessions than are in the middle of a turn; who prepared longest ago is forgotten first.
const SESSIONS_MAX: usize = 1024;

/// Why a prompt was not prepared to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// A request waited for the worker.
    Load,
    /// The worker prepared as many as it may.
    Full,
    /// Pages were short.
    Pages,
    /// The session's next request came.
    NextTurn,
    /// The session, or what follows it, cannot be rendered or does not fit.
    Unrenderable,
    /// The worker's executor was lost.
    Lost,
}

impl Cancelled {
    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::Load, Self::Full, Self::Pages, Self::NextTurn, Self::Unrenderable, Self::Lost];

    /// Its word, as in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Full => "full",
            Self::Pages => "pages",
            Self::NextTurn => "next_turn",
            Self::Unrenderable => "unrenderable",
            Self::Lost => "lost",
        }
    }
}

/// How it went so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Turns after which the next prompt was to be prepared.
    pub begun: AtomicU64,
    /// Those of them whose worker lacked nothing.
    pub needless: AtomicU64,
    /// Prompts of which a worker began to compute what it lacked.
    pub started: AtomicU64,
    /// Those of them that came to their end.
    pub finished: AtomicU64,
    /// Tokens computed ahead.
    pub tokens: AtomicU64,
    /// Those of them that the session's next request found in the cache.
    pub hit_tokens: AtomicU64,
    cancelled: [AtomicU64; Cancelled::ALL.len()],
}

impl Counts {
    /// Notes an end before the end.
    pub fn cancel(&self, why: Cancelled) {
        self.cancelled[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many were cancelled for this reason.
    pub fn cancelled(&self, why: Cancelled) -> u64 {
        self.cancelled[why as usize].load(Ordering::Relaxed)
    }
}

/// What is prepared, by session.
#[derive(Debug, Default)]
pub struct Speculation {
    /// How it went so far; shared with the workers.
    pub counts: Arc<Counts>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    sessions: FxHashMap<u64, Pending>,
    /// Sessions in the order in which they came, with the number of what they prepared.
    order: VecDeque<(u64, u64)>,
    number: u64,
}

#[derive(Debug)]
struct Pending {
    number: u64,
    /// What a worker was given; `None` until then.
    given: Option<Given>,
}

#[derive(Debug)]
struct Given {
    blocks: Arc<[BlockName]>,
    /// Dropping it ends the sequence.
    events: mpsc::Receiver<Event>,
}

/// What was prepared for a request that came.
#[derive(Debug)]
pub struct Prepared {
    blocks: Arc<[BlockName]>,
    /// Tokens of it that the worker had before.
    known_tokens: u32,
}

impl Kept {
    fn put(&mut self, session: u64) -> u64 {
        self.number += 1;
        self.sessions.insert(session, Pending { number: self.number, given: None });
        self.order.push_back((session, self.number));
        while self.order.len() > SESSIONS_MAX {
            let Some((oldest, number)) = self.order.pop_front() else { break };
            if self.sessions.get(&oldest).is_some_and(|pending| pending.number == number) {
                self.sessions.remove(&oldest);
            }
        }
        self.number
    }
}

impl Speculation {
    /// A session's request is there: whatever was prepared for it ends now. What was computed stays in the cache.
    pub fn arrived(&self, session: u64) -> Option<Prepared> {
        if session == 0 {
            return None;
        }
        let Some(Given { blocks, mut events }) = self.kept.lock().sessions.remove(&session)?.given else {
            // It was not handed over yet, and will not be.
            self.counts.cancel(Cancelled::NextTurn);
            return None;
        };
        let mut known_tokens = None;
        loop {
            match events.try_recv() {
                Ok(Event::Started { cached_tokens }) => known_tokens = Some(cached_tokens),
                Ok(Event::Finished { .. }) | Err(mpsc::error::TryRecvError::Disconnected) => break,
                Ok(_) => {}
                Err(mpsc::error::TryRecvError::Empty) => {
                    self.counts.cancel(Cancelled::NextTurn);
                    break;
                }
            }
        }
        Some(Prepared { blocks, known_tokens: known_tokens? })
    }

    /// Nothing will be prepared under this number.
    fn forget(&self, session: u64, number: u64) {
        let mut kept = self.kept.lock();
        if kept.sessions.get(&session).is_some_and(|pending| pending.number == number) {
            kept.sessions.remove(&session);
        }
    }

    /// Counts what a request found in the cache of what was prepared for it.
    pub fn found(&self, prepared: &Prepared, prompt: &Prompt, cached_tokens: u32, block_tokens: u32) {
        let shared = prepared.blocks.iter().zip(prompt.blocks.iter()).take_while(|(a, b)| a == b).count();
        let found = cached_tokens.min(shared as u32 * block_tokens);
        let useful = found.saturating_sub(prepared.known_tokens);
        self.counts.hit_tokens.fetch_add(useful.into(), Ordering::Relaxed);
    }
}

/// A turn whose successor may be prepared.
#[derive(Debug)]
pub struct Next {
    request: Request,
    echo: Echo,
    hints: SequenceHints,
    /// Whether it was asked for, however the turn ends.
    asked: bool,
}

impl Next {
    /// The turn of a request; `None` where nothing is to be prepared after it.
    pub fn of(app: &App, request: &Request, wishes: &Wishes) -> Option<Box<Self>> {
        let when = app.config.speculation.when;
        let asked = wishes.hints.speculative_prefill;
        let may = match asked {
            Some(asked) => asked && when != When::Off,
            None => when == When::ToolCalls && request.tools.is_some(),
        };
        let is_turn = request.input == Input::Conversation
            && request.choices == 1
            && request.output_tokens_max != Some(0)
            && !wishes.numbers.session_final;
        (may && is_turn).then(|| {
            Box::new(Self {
                echo: Echo::of(request),
                request: request.clone(),
                hints: wishes.numbers,
                asked: asked == Some(true),
            })
        })
    }

    /// The answer gained something.
    pub fn heard(&mut self, pieces: &[OutputEvent]) {
        self.echo.add(pieces);
    }

    /// The turn has ended: the worker that computed its prompt is to compute what comes next, if that can be told.
    pub fn begin(self: Box<Self>, app: &Arc<App>, worker: usize, finish: FinishReason) {
        if !(self.asked || finish == FinishReason::ToolCalls) || app.draining() {
            return;
        }
        if !app.workers[worker].role.prefills() {
            return;
        }
        let speculation = &app.speculation;
        speculation.counts.begun.fetch_add(1, Ordering::Relaxed);
        if app.workers[worker].load.read().queue_len > 0.0 {
            // Rendering, too, would take time from those who wait.
            return speculation.counts.cancel(Cancelled::Load);
        }
        if !app.workers[worker].load.is_healthy() {
            return speculation.counts.cancel(Cancelled::Lost);
        }
        // Without a session nobody comes for it by name; it has a place of its own until it is forgotten.
        let session = if self.hints.session == 0 { app.ctx.seed() } else { self.hints.session };
        let number = speculation.kept.lock().put(session);
        let app = Arc::clone(app);
        app.clone().ctx.spawn(async move { self.prepare(&app, worker, (session, number)) });
    }

    fn prepare(mut self, app: &App, worker: usize, (session, number): (u64, u64)) {
        let counts = &app.speculation.counts;
        let echoed = app.prompts.followed_by(self.request.messages.clone(), self.echo.messages().into());
        let prompt = echoed.and_then(|messages| {
            self.request.messages = messages;
            render::prefix(app, &self.request, echo::MARK)
        });
        let Ok(Some(prompt)) = prompt else {
            app.speculation.forget(session, number);
            return counts.cancel(Cancelled::Unrenderable);
        };
        // Room for the start and the end.
        let (events, received) = mpsc::channel(2);
        let mut kept = app.speculation.kept.lock();
        let pending = kept.sessions.get_mut(&session).filter(|pending| pending.number == number);
        // Its next request was faster.
        let Some(pending) = pending else { return };
        pending.given = Some(Given { blocks: Arc::clone(&prompt.blocks), events: received });
        drop(kept);
        app.workers[worker].submit(Start {
            id: app.next_sequence(),
            tokens: prompt.tokens,
            blocks: prompt.blocks,
            salt: prompt.salt,
            expected_tokens: 0,
            adapter: prompt.adapter,
            constraint: None,
            sampling: self.request.sampling,
            output_tokens_max: 0,
            stop_tokens: Arc::clone(&app.model.stop_tokens),
            hints: self.hints,
            attributes: Default::default(),
            turn: None,
            announced: true,
            handoff: None,
            resumed: None,
            ahead: true,
            arrived: app.ctx.now(),
            events,
        });
    }
}

#[cfg(test)]
mod tests;
