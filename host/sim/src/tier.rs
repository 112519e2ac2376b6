//! The tiers below a worker's own memory: books and times, no bytes.
//!
//! What a turn computed is saved when it is over; whoever comes later fetches what the worker lacks, if `kv::cost` believes
//! that to be cheaper than to compute it.

use decide::{LowerTiers, RetainBounds};
use kv::cost::{CostModel as Fetching, Priors, Run, Tier};
use kv::{BlockName, BlockPool, PageIdx, Retention};

use crate::sequence::Sequence;
use crate::time::Ns;

/// One tier of a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TierKind {
    /// Which one.
    pub tier: Tier,
    /// Blocks that it has room for.
    pub blocks: u32,
    /// Bytes per second.
    pub bytes_per_s: f64,
    /// Microseconds until the first byte.
    pub latency_us: f64,
}

/// The tiers of one worker, the fastest first.
pub(crate) struct Tiers {
    all: Vec<Held>,
    block_bytes: u64,
    block_tokens: u32,
    cost: Option<Fetching>,
    retain: RetainBounds,
    /// Tokens that were fetched.
    pub(crate) fetched_tokens: u64,
}

struct Held {
    kind: TierKind,
    pool: BlockPool,
    /// When all that was asked for has come.
    busy_until: Ns,
}

impl Tiers {
    /// `token_bytes`: of KV; `prefill_us`: what a prompt token costs to compute.
    pub(crate) fn new(
        kinds: &[TierKind],
        (block_tokens, token_bytes): (u32, f64),
        prefill_us: f64,
        retain: RetainBounds,
    ) -> Self {
        let held = |kind: &TierKind| Held {
            kind: *kind,
            pool: pool(kind, block_tokens, &retain),
            busy_until: Ns::default(),
        };
        let mut priors = Priors { prefill_tokens_per_s: 1e6 / prefill_us.max(1e-3), ..Priors::default() };
        for kind in kinds {
            priors.tiers[kind.tier as usize] = (kind.latency_us, kind.bytes_per_s);
        }
        let cost = (!kinds.is_empty()).then(|| Fetching::new(&priors));
        let block_bytes = (token_bytes * f64::from(block_tokens)) as u64;
        let all = kinds.iter().map(held).collect();
        Self { all, block_bytes, block_tokens, cost, retain, fetched_tokens: 0 }
    }

    /// Looks for what a worker lacks of a sequence that comes in; it waits for what is cheaper to fetch.
    pub(crate) fn fetch(&mut self, s: &mut Sequence, pool: &BlockPool, waiting_tokens: u64, now: Ns) {
        let Some(cost) = &mut self.cost else { return };
        let names = s.usable_names(self.block_tokens);
        let has = pool.resident_prefix(names);
        let mut found = self.all.iter_mut().map(|held| (held.pool.resident_prefix(names), held));
        let Some((reach, held)) = found.find(|(reach, _)| *reach > has) else { return };
        let queued_us = held.busy_until.since(now) / 1e3;
        let decision = cost.decide(&Run {
            tier: held.kind.tier,
            blocks: (reach - has) as u32,
            block_bytes: self.block_bytes,
            block_tokens: self.block_tokens,
            context_tokens: has as u32 * self.block_tokens,
            queue_bytes: (queued_us * held.kind.bytes_per_s / 1e6) as u64,
            waiting_tokens,
        });
        if decision.fetch_blocks == 0 {
            return;
        }
        let bytes = u64::from(decision.fetch_blocks) * self.block_bytes;
        let took_us = held.kind.latency_us + bytes as f64 / held.kind.bytes_per_s * 1e6;
        let ready = held.busy_until.max(now).after(took_us * 1e3);
        held.busy_until = ready;
        cost.fetched(held.kind.tier, bytes, took_us as u64, (decision.fetch_blocks, decision.fetch_blocks));
        s.fetched = Some(ready.moment());
        s.fetched_blocks = has + decision.fetch_blocks as usize;
    }

    /// Moves what came for a sequence into pages behind those that it found.
    pub(crate) fn load(&mut self, s: &mut Sequence, pool: &mut BlockPool) {
        let wanted = std::mem::take(&mut s.fetched_blocks).saturating_sub(s.pages.len());
        if wanted == 0 {
            return;
        }
        let Ok(pages) = pool.allocate(wanted as u32) else { return };
        s.pages.extend(pages);
        let tokens = wanted as u32 * self.block_tokens;
        self.fetched_tokens += u64::from(tokens);
        s.advance(tokens, pool);
    }

    /// A turn is over: every tier keeps its blocks, as far as it has room.
    pub(crate) fn save(&mut self, s: &Sequence, now_ms: u64) {
        for held in &mut self.all {
            held.pool.expire(now_ms);
            hold(&mut held.pool, s.sealed_names());
            // Nobody follows what a tier has.
            drop(held.pool.drain_events());
        }
    }

    /// What a worker's host had is lost with it.
    pub(crate) fn clear(&mut self) {
        for held in &mut self.all {
            held.pool = pool(&held.kind, self.block_tokens, &self.retain);
        }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

/// Policies say what these tiers keep as they do of a host's, of which a remote store keeps what it likes.
impl LowerTiers for Tiers {
    fn lowest(&self) -> policy::Tier {
        let floors = self.all.iter().filter_map(|held| floor_of(held.kind.tier));
        floors.max().unwrap_or(policy::Tier::Hbm)
    }

    fn retain(&mut self, name: BlockName, retention: Retention, (tenant, floor): (u64, policy::Tier)) {
        for held in &mut self.all {
            let Some(tier) = floor_of(held.kind.tier) else { continue };
            // Memory need not keep what may fall to a disk.
            let falls = tier < floor;
            let until_ms = if falls { 0 } else { retention.until_ms };
            held.pool.retain(name, Retention { until_ms, ..retention }, tenant);
        }
    }
}

/// What policies call a tier that can be made to keep something.
fn floor_of(tier: Tier) -> Option<policy::Tier> {
    match tier {
        Tier::Host => Some(policy::Tier::Host),
        Tier::Disk => Some(policy::Tier::Disk),
        Tier::Remote => None,
    }
}

fn pool(kind: &TierKind, block_tokens: u32, retain: &RetainBounds) -> BlockPool {
    BlockPool::new(kind.blocks, block_tokens).with_keep_bounds(retain.keep(kind.blocks))
}

/// Has a pool hold these blocks, first block first, as far as it has room.
fn hold(pool: &mut BlockPool, names: &[BlockName]) {
    let pinned = pool.pin_prefix(names);
    let mut parent = pinned.len().checked_sub(1).map(|last| names[last]);
    // The last pinned page holds all before it.
    let mut held: Vec<PageIdx> = pinned.last().copied().into_iter().collect();
    for name in &names[pinned.len()..] {
        let Ok(page) = pool.allocate(1) else { break };
        pool.seal(page[0], *name, parent);
        parent = Some(*name);
        held.extend(page);
    }
    pool.release(&held);
}
