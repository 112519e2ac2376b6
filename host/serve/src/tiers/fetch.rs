//! Blocks of one prompt on their way from disk or from a store into memory of the host.
//!
//! ```text
//!   names   ├── worker or host ──┤──── disk ────┤──── remote ────┤── nobody ──
//!                                ▲ `have`       as far as it is cheaper than to compute them
//! ```
//!
//! A worker asks when a sequence comes in, and starts the sequence when the fetch is over.
//! **Invariant:** a fetch ends, whatever tiers do; then its waker is called once. What came is a run without a gap.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use kv::cost::{Decision, Run, Tier};
use kv::disk::{Done, Urgency};
use kv::remote::{Fetched, Outcome};
use kv::{Block, BlockName, Retention, Slot};
use parking_lot::Mutex;

use super::Tiers;
use crate::ctx::{Ctx, Moment};

/// Called once, from any thread, when a fetch is over.
pub type Wake = Box<dyn FnOnce() + Send>;

/// Most blocks of a fetch, and with it slots that it may hold. Chosen: 4 GiB of the largest blocks there are.
const FETCH_BLOCKS_MAX: usize = 4096;

/// What is fetched for whom.
pub struct Ask<'a> {
    /// Names of the prompt's blocks that it may use.
    pub names: &'a [BlockName],
    /// Leading ones that its worker has.
    pub have: usize,
    /// Tokens that its worker computes before it.
    pub waiting_tokens: u64,
    /// Who is charged.
    pub tenant: u64,
}

/// A fetch. Clones are the same one.
#[derive(Clone)]
pub struct Fetch(Arc<Shared>);

struct Shared {
    tiers: Arc<Tiers>,
    ctx: Ctx,
    asked: Moment,
    names: Vec<BlockName>,
    /// The block before the first.
    parent: Option<BlockName>,
    /// Where in the prompt the first of `names` is.
    first: usize,
    tenant: u64,
    state: Mutex<State>,
}

struct State {
    /// What came, by place.
    slots: Vec<Option<Slot>>,
    /// Parts that have not ended: single blocks from disk, one run from the store.
    left: usize,
    decisions: Vec<(Tier, Decision, usize)>,
    wake: Option<Wake>,
    /// The blocks in order, once it is over.
    came: Option<Vec<Slot>>,
}

impl Tiers {
    /// Begins to fetch what is cheaper to fetch than to compute; `None` if that is nothing.
    pub fn fetch(self: &Arc<Self>, ask: &Ask<'_>, ctx: &Ctx, wake: Wake) -> Option<Fetch> {
        let have = ask.have.max(self.host.resident_prefix(ask.names));
        let names = &ask.names[have..];
        let room = (self.host.arena().free() as usize).min(FETCH_BLOCKS_MAX);
        let names = &names[..names.len().min(room)];
        let on_disk = self.disk.as_ref().map_or(0, |disk| disk.resident_prefix(names));
        let from_disk = self.decide(Tier::Disk, (have, on_disk), ask);
        // Whether a store has a block is known when it was asked.
        let elsewhere = if from_disk.fetch_blocks as usize == on_disk { names.len() - on_disk } else { 0 };
        let elsewhere = self.remote.as_ref().map_or(0, |_| elsewhere);
        let from_remote = self.decide(Tier::Remote, (have + on_disk, elsewhere), ask);
        let counts = [from_disk.fetch_blocks as usize, from_remote.fetch_blocks as usize];
        let all = counts[0] + counts[1];
        if all == 0 {
            return None;
        }
        let decisions = vec![(Tier::Disk, from_disk, counts[0]), (Tier::Remote, from_remote, counts[1])];
        let shared = Arc::new(Shared {
            tiers: Arc::clone(self),
            ctx: ctx.clone(),
            asked: ctx.now(),
            names: names[..all].to_vec(),
            parent: have.checked_sub(1).map(|before| ask.names[before]),
            first: have,
            tenant: ask.tenant,
            state: Mutex::new(State {
                slots: vec![None; all],
                // One more, which is taken away when all parts have begun.
                left: counts[0] + usize::from(counts[1] > 0) + 1,
                decisions,
                wake: Some(wake),
                came: None,
            }),
        });
        self.counts.fetches.fetch_add(1, Relaxed);
        shared.begin(counts);
        Some(Fetch(shared))
    }

    fn decide(&self, tier: Tier, (before, blocks): (usize, usize), ask: &Ask<'_>) -> Decision {
        let run = Run {
            tier,
            blocks: blocks as u32,
            block_bytes: self.block_bytes,
            block_tokens: self.block_tokens,
            context_tokens: (before as u32).saturating_mul(self.block_tokens),
            queue_bytes: 0,
            waiting_tokens: ask.waiting_tokens,
        };
        self.cost.lock().decide(&run)
    }
}

impl Fetch {
    /// Where in the prompt its blocks begin, and the blocks that came; `None` while it is not over.
    pub fn take(&self) -> Option<(usize, Vec<Slot>)> {
        self.0.state.lock().came.take().map(|slots| (self.0.first, slots))
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.0.state.lock().left == 0
    }
}

impl Shared {
    fn begin(self: &Arc<Self>, [from_disk, from_remote]: [usize; 2]) {
        if let Some(disk) = &self.tiers.disk {
            for at in 0..from_disk {
                let Some(slot) = self.tiers.host.take_slot() else {
                    self.ended(|_| {});
                    continue;
                };
                let shared = Arc::clone(self);
                let done: Done = Box::new(move |block| shared.ended(|state| state.slots[at] = block.ok()));
                disk.get(&self.names[at], slot, Urgency::Demand, done);
            }
        }
        if from_remote > 0
            && let Some(remote) = &self.tiers.remote
        {
            let slots = std::iter::from_fn(|| self.tiers.host.take_slot()).take(from_remote).collect();
            let shared = Arc::clone(self);
            let done = move |fetched: Fetched| shared.ended(|state| state.arrived(from_disk, fetched));
            if remote.fetch(&self.names[from_disk..], slots, done) != Outcome::Accepted {
                self.ended(|_| {});
            }
        }
        self.ended(|_| {});
    }

    /// A part ended; `note` says how.
    fn ended(&self, note: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        note(&mut state);
        state.left -= 1;
        if state.left > 0 {
            return;
        }
        let slots: Vec<Slot> = std::mem::take(&mut state.slots).into_iter().map_while(|slot| slot).collect();
        let (decisions, wake) = (std::mem::take(&mut state.decisions), state.wake.take());
        state.came = Some(slots.clone());
        drop(state);
        self.learn(&decisions, slots.len());
        self.keep(slots);
        if let Some(wake) = wake {
            wake();
        }
    }

    /// Has other prompts find what came in memory.
    fn keep(&self, slots: Vec<Slot>) {
        let mut parent = self.parent;
        for (&name, slot) in self.names.iter().zip(slots) {
            let (retention, tenant) = (Retention::ORDINARY, self.tenant);
            self.tiers.put_in_memory(Block { name, parent, slot, retention, tenant });
            parent = Some(name);
        }
    }

    /// What it cost, for the next decision.
    fn learn(&self, decisions: &[(Tier, Decision, usize)], came: usize) {
        let took: Duration = self.ctx.now().saturating_sub(self.asked);
        let took_us = took.as_micros() as u64;
        let counts = &self.tiers.counts;
        counts.fetch_us.fetch_add(took_us, Relaxed);
        let mut left = came;
        let mut cost = self.tiers.cost.lock();
        for (tier, decision, asked) in decisions.iter().filter(|(_, _, asked)| *asked > 0) {
            let own = left.min(*asked);
            left -= own;
            let hits = if *tier == Tier::Disk { &counts.disk_hits } else { &counts.remote_hits };
            hits.fetch_add(own as u64, Relaxed);
            let bytes = own as u64 * self.tiers.block_bytes;
            cost.fetched(*tier, bytes, took_us, (own as u32, *asked as u32));
            cost.happened(decision, took_us);
        }
    }
}

impl State {
    fn arrived(&mut self, first: usize, fetched: Fetched) {
        for (place, block) in self.slots[first..].iter_mut().zip(fetched.blocks) {
            *place = Some(block);
        }
    }
}
