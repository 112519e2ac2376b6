//! A worker: one executor, its KV pages, its waiting and running sequences, its own OS thread.
//!
//! The journey starts sequences here and receives their tokens; routing reads the published [`Load`].
//! **Invariant:** only the worker's thread touches its executor and its pool; everybody else sees numbers.

mod conversation;
mod drafter;
mod executors;
mod handoff;
pub mod inspect;
mod peers;
mod sequence;
mod step;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use decide::Reading;
use kv::{BlockPool, PrefixIndex};
use parking_lot::Mutex;
use policy::Generations;

pub use drafter::{DraftSource, draft_step_tokens_max};
pub use executors::{Executors, Make};
pub use handoff::{Giver, Handoff, Handoffs, Taker, handoff};
use peers::Peer;
pub use peers::Peers;
pub(crate) use sequence::NO_SALT;
pub use sequence::{Event, Finish, SequenceHints, Start};
use step::StepLoop;

use crate::config::{Kv, Role, Schedule, Speculation};
use crate::ctx::{Ctx, name_id};
use crate::speculation::Counts;
use crate::tiers::Tiers;

/// What a worker is made of.
pub struct Parts {
    /// Its place in the list of workers and in the prefix index.
    pub index: usize,
    /// Name in logs, metrics and response headers.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// What computes.
    pub executors: Executors,
    /// Makes others, once those are lost.
    pub make: Make,
    /// Who goes on with its sequences then.
    pub peers: Arc<Peers>,
    /// Who has which block.
    pub prefixes: Arc<PrefixIndex>,
    /// Asked for the order of waiting sequences.
    pub generations: Arc<Generations>,
    /// Budgets of a step.
    pub schedule: Schedule,
    /// Bounds on what is kept of the cache.
    pub kv: Kv,
    /// Bounds on what is computed ahead of need.
    pub ahead: Speculation,
    /// How that goes.
    pub speculation: Arc<Counts>,
    /// What lies below its own memory.
    pub tiers: Option<Arc<Tiers>>,
    /// Clock and seeds.
    pub ctx: Ctx,
}

/// What a worker's thread is told.
enum Message {
    /// A sequence comes in.
    Start(Box<Start>),
    /// A sequence comes from a worker that cannot go on with it.
    TakeOver(Box<sequence::Sequence>),
    /// Something that it waits for has happened.
    Wake,
    /// An operator asks.
    Ask(inspect::Question),
}

/// Where it is told so; empty once the worker is to stop.
type Sender = Arc<Mutex<Option<mpsc::Sender<Message>>>>;

/// The handle of a running worker.
pub struct Worker {
    /// Its place in the list of workers.
    pub index: usize,
    /// Its name.
    pub name: Arc<str>,
    /// A stable id for policies.
    pub id: u64,
    /// What it does.
    pub role: Role,
    /// What computes for it.
    pub device: Arc<str>,
    /// What it published last.
    pub load: Arc<Load>,
    sender: Sender,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A worker's load, published after each step for routing and metrics.
#[derive(Debug, Default)]
pub struct Load {
    /// Sequences sent and not yet received by the step loop.
    pub in_transit: AtomicU32,
    /// Prompt tokens of those.
    pub in_transit_tokens: AtomicU64,
    /// Sequences waiting.
    pub waiting: AtomicU32,
    /// Tokens that waiting and running sequences have yet to prefill.
    pub queued_tokens: AtomicU64,
    /// Sequences running.
    pub running: AtomicU32,
    /// Tokens of running sequences.
    pub active_tokens: AtomicU64,
    /// Pages that exist.
    pub pages: AtomicU32,
    /// Pages referenced by running sequences.
    pub pages_pinned: AtomicU32,
    /// Pages that hold a cached block nobody references.
    pub pages_cached: AtomicU32,
    /// Pages that are to be kept for a time.
    pub pages_kept: AtomicU32,
    /// Blocks evicted so far.
    pub evictions: AtomicU64,
    /// Sequences put back to waiting for want of pages.
    pub preemptions: AtomicU64,
    /// Those of them whose blocks were moved to memory of the host.
    pub preemptions_swapped: AtomicU64,
    /// Tokens that were guessed, by [`DraftSource`].
    pub drafts: [Drafts; DraftSource::ALL.len()],
    /// Steps of the draft model.
    pub draft_steps: AtomicU64,
    /// Draft models that failed, and are not asked again.
    pub draft_failures: AtomicU64,
    /// Steps so far.
    pub steps: AtomicU64,
    /// Tokens computed in them, those tried in vain included.
    pub step_tokens: AtomicU64,
    /// Smoothed time to first token, in microseconds.
    pub ttft_us_ewma: AtomicU64,
    /// Smoothed time between tokens, in microseconds.
    pub itl_us_ewma: AtomicU64,
    /// Whether its executor is lost, and no other one is there yet.
    pub unhealthy: AtomicBool,
    /// Executors that were lost.
    pub executor_failures: AtomicU64,
    /// Executors that took the place of one that was lost.
    pub executor_restarts: AtomicU64,
    /// Sequences that another worker goes on with.
    pub sequences_moved: AtomicU64,
}

/// Guesses of one source.
#[derive(Debug, Default)]
pub struct Drafts {
    /// Tokens that were guessed.
    pub tokens: AtomicU64,
    /// Those of them that were right.
    pub accepted: AtomicU64,
}

impl Load {
    /// What a source guessed.
    pub fn drafts(&self, source: DraftSource) -> &Drafts {
        &self.drafts[source as usize]
    }

    /// Whether the worker can compute.
    pub fn is_healthy(&self) -> bool {
        !self.unhealthy.load(Ordering::Relaxed)
    }

    /// The load now.
    pub fn read(&self) -> Reading {
        let count = |cell: &AtomicU32| cell.load(Ordering::Relaxed);
        let tokens = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let (pages, pinned) = (count(&self.pages).max(1), count(&self.pages_pinned));
        Reading {
            queue_len: (count(&self.waiting) + count(&self.in_transit)) as f32,
            running: count(&self.running) as f32,
            queued_tokens: (tokens(&self.queued_tokens) + tokens(&self.in_transit_tokens)) as f32,
            active_tokens: tokens(&self.active_tokens) as f32,
            kv_used: pinned as f32 / pages as f32,
            kv_free_pages: pages.saturating_sub(pinned) as f32,
        }
    }
}

impl Worker {
    /// Starts the worker's thread.
    pub fn start(parts: Parts) -> std::io::Result<Self> {
        let caps = parts.executors.served.caps();
        let device: Arc<str> = caps.name.as_str().into();
        let load = Arc::new(Load::default());
        load.pages.store(caps.kv.pages, Ordering::Relaxed);
        let kv_mib = (u64::from(caps.kv.pages) * caps.kv.page_bytes) >> 20;
        tracing::info!(worker = %parts.name, %device, role = ?parts.role, pages = caps.kv.pages, kv_mib, "worker started");
        let pool = BlockPool::new(caps.kv.pages, caps.kv.block_tokens)
            .with_keep_bounds(parts.kv.retain_bounds().keep(caps.kv.pages));
        let (sender, received) = mpsc::channel();
        let sender = Arc::new(Mutex::new(Some(sender)));
        let (index, name, role) = (parts.index, parts.name.clone(), parts.role);
        parts.peers.join(Peer { index, role, load: Arc::clone(&load), sender: Arc::clone(&sender) });
        let step_loop = StepLoop::new(parts, pool, Arc::clone(&load), (Arc::clone(&sender), received));
        let ends = Ends(Arc::clone(&load));
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            let _ends = ends;
            step_loop.run();
        })?;
        Ok(Self {
            index,
            id: name_id(&name),
            role,
            device,
            name: name.into(),
            load,
            sender,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Hands a sequence over; its events come through its channel. False once the worker has stopped.
    pub fn submit(&self, start: Start) -> bool {
        let tokens = start.load_tokens();
        let sender = self.sender.lock();
        let Some(sender) = sender.as_ref() else { return false };
        if !start.ahead {
            self.load.in_transit.fetch_add(1, Ordering::Relaxed);
            self.load.in_transit_tokens.fetch_add(tokens, Ordering::Relaxed);
        }
        sender.send(Message::Start(Box::new(start))).is_ok()
    }

    /// Lets the step loop finish what it has and joins its thread.
    pub fn stop(&self) {
        drop(self.sender.lock().take());
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!(worker = %self.name, "worker thread panicked");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whatever ends a worker's thread, nobody is sent there any more.
struct Ends(Arc<Load>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.unhealthy.store(true, Ordering::Relaxed);
    }
}

/// Moves a smoothed value towards `sample` by an eighth of the way.
fn smooth(ewma: &AtomicU64, sample: u64) {
    let old = ewma.load(Ordering::Relaxed);
    let new = if old == 0 { sample } else { old - old / 8 + sample / 8 };
    ewma.store(new, Ordering::Relaxed);
}
