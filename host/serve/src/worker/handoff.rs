//! The blocks of a prompt on their way from the worker that computes it to the one that answers.
//!
//! ```text
//!   prefill worker: computes ─ saves each block that is full ─┐ slots of the host tier
//!   decode worker:  waits ────────────────────────────────────┴─► loads them, computes what is left, answers
//! ```
//!
//! **Invariant:** a handoff ends, whatever becomes of the worker that computes; what was handed over until then is a run of
//! blocks without a gap.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use kv::Slot;
use parking_lot::Mutex;

use crate::tiers::Wake;

/// How handoffs went.
#[derive(Debug, Default)]
pub struct Handoffs {
    /// Those that have ended.
    pub ended: AtomicU64,
    /// Those of them that brought fewer blocks than were wanted to somebody who waited.
    pub short: AtomicU64,
    /// Blocks that were handed over.
    pub blocks: AtomicU64,
}

struct Shared {
    /// Place in the prompt of the first block that is handed over.
    first: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    cached_tokens: Option<u32>,
    over: bool,
    wakes: Vec<Wake>,
}

/// What a sequence has to do with a handoff.
#[derive(Debug)]
pub enum Handoff {
    /// Its prompt is all that is wanted, by somebody else.
    Give(Giver),
    /// Its prompt is computed by somebody else.
    Take(Taker),
}

/// The end that gives; dropping it ends the handoff.
pub struct Giver {
    shared: Arc<Shared>,
    /// Blocks that are to be handed over.
    wanted: usize,
    counts: Arc<Handoffs>,
}

/// The end that takes. Clones take the same blocks.
#[derive(Clone)]
pub struct Taker(Arc<Shared>);

/// What was handed over.
pub(super) struct Handed {
    /// Place in the prompt of the first block.
    pub(super) first: usize,
    pub(super) slots: Vec<Slot>,
    /// Leading tokens of the prompt that the giver did not have to compute; `None` if it never started.
    pub(super) cached_tokens: Option<u32>,
}

/// A handoff of the blocks `wanted` of a prompt.
pub fn handoff(wanted: Range<usize>, counts: Arc<Handoffs>) -> (Giver, Taker) {
    let shared = Arc::new(Shared { first: wanted.start, state: Mutex::default() });
    let giver = Giver { shared: Arc::clone(&shared), wanted: wanted.len(), counts };
    (giver, Taker(shared))
}

impl Giver {
    /// Places in the prompt of the blocks that are still to be handed over.
    pub(super) fn left(&self) -> Range<usize> {
        let first = self.shared.first;
        first + self.shared.state.lock().slots.len()..first + self.wanted
    }

    /// Hands the next block over.
    pub(super) fn give(&self, slot: Slot) {
        self.shared.state.lock().slots.push(slot);
    }

    /// Says how much of the prompt did not have to be computed.
    pub(super) fn found(&self, cached_tokens: u32) {
        self.shared.state.lock().cached_tokens = Some(cached_tokens);
    }
}

impl Drop for Giver {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.over = true;
        self.counts.ended.fetch_add(1, Relaxed);
        let is_awaited = Arc::strong_count(&self.shared) > 1;
        self.counts.short.fetch_add(u64::from(is_awaited && state.slots.len() < self.wanted), Relaxed);
        self.counts.blocks.fetch_add(state.slots.len() as u64, Relaxed);
        let wakes = std::mem::take(&mut state.wakes);
        drop(state);
        wakes.into_iter().for_each(|wake| wake());
    }
}

impl Taker {
    /// Has `wake` called, from any thread, when the handoff is over.
    pub(super) fn on_over(&self, wake: Wake) {
        let mut state = self.0.state.lock();
        if !state.over {
            return state.wakes.push(wake);
        }
        drop(state);
        wake();
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.state.lock().over
    }

    /// What came. Call it when the handoff is over.
    pub(super) fn take(&self) -> Handed {
        let state = self.0.state.lock();
        assert!(state.over, "blocks are taken when the last one is there");
        Handed { first: self.0.first, slots: state.slots.clone(), cached_tokens: state.cached_tokens }
    }
}

impl std::fmt::Debug for Giver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Giver").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Taker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Taker").field("first", &self.0.first).finish_non_exhaustive()
    }
}
