//! KV tiers below the workers' own memory: memory of the host, a disk, a store that hosts share.
//!
//! ```text
//!   worker ── save ──► host ── put ──► disk ── put ──► remote
//!      ▲ ◄──── load ────┘                 │               │
//!      └──────── load ◄────── fetch ◄─────┴───────────────┘
//! ```
//!
//! One for all workers of a host. Workers save what they computed and load what they lack, on their own threads; what
//! takes long is done by threads of the tiers.
//! **Invariant:** a tier that is slow, full or broken costs misses; nothing here fails a request or waits for a device.

mod fetch;
mod open;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use decide::LowerTiers;
use kv::cost::CostModel;
use kv::disk::DiskTier;
use kv::remote::Remote;
use kv::{Arena, Block, BlockName, HostTier, Put, Retained, Retention, Slot, SlotMut};
use parking_lot::Mutex;
use policy::Tier;
use rustc_hash::FxHashMap;

pub use fetch::{Ask, Fetch, Wake};
pub use open::TiersError;

use crate::config::Write;

/// Most wishes for blocks that were not saved yet; their worker saves them within moments, or never.
const WISHES_MAX: usize = 1 << 16;
/// How long the end of the host waits for the remote store. Chosen: an operator who stops a host does not notice.
const DRAIN_MAX: Duration = Duration::from_secs(3);
/// How often the tiers are told the time.
const TICK_MS: u64 = 1000;

/// The tiers of one host.
pub struct Tiers {
    host: HostTier,
    disk: Option<DiskTier>,
    remote: Option<Remote>,
    cost: Mutex<CostModel>,
    write: Write,
    block_bytes: u64,
    block_tokens: u32,
    told_ms: AtomicU64,
    /// What was said of blocks that are to be kept below a worker's memory and were not saved yet.
    wishes: Mutex<FxHashMap<BlockName, (Retention, policy::Tier)>>,
    counts: Counts,
}

/// What workers did with the tiers.
#[derive(Debug, Default)]
pub struct Counts {
    /// Blocks that were copied from a worker to the host tier.
    pub saved: AtomicU64,
    /// Blocks that were copied from the host tier to a worker.
    pub loaded: AtomicU64,
    /// Blocks that were not saved, for want of a slot.
    pub unsaved: AtomicU64,
    /// Blocks that a worker found in the host tier.
    pub host_hits: AtomicU64,
    /// Blocks that came from disk for a prompt.
    pub disk_hits: AtomicU64,
    /// Blocks that came from the remote store for a prompt.
    pub remote_hits: AtomicU64,
    /// Steps that moved blocks while sequences computed.
    pub busy_moves: AtomicU64,
    /// Those of them that moved for more than a millisecond.
    pub busy_moves_long: AtomicU64,
    /// Prompts that waited for blocks.
    pub fetches: AtomicU64,
    /// Microseconds for which they did.
    pub fetch_us: AtomicU64,
}

impl std::fmt::Debug for Tiers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tiers").field("host", &self.host.stats()).finish_non_exhaustive()
    }
}

impl Tiers {
    /// When blocks are copied down.
    pub fn write(&self) -> Write {
        self.write
    }

    /// What workers did with the tiers.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Whether a block is worth saving: nobody has it yet.
    pub fn lacks(&self, name: BlockName) -> bool {
        !self.host.contains(name)
    }

    /// How many leading blocks of these lie in memory of the host.
    pub fn in_host(&self, names: &[BlockName]) -> usize {
        self.host.resident_prefix(names)
    }

    /// The memory that all slots lie in.
    pub fn arena(&self) -> &Arena {
        self.host.arena()
    }

    /// A slot to save a block to.
    pub fn take_slot(&self) -> Option<SlotMut> {
        let slot = self.host.take_slot();
        self.counts.unsaved.fetch_add(u64::from(slot.is_none()), Relaxed);
        slot
    }

    /// Takes a block that a worker saved. `tenant`: whose it is.
    pub fn saved(&self, mut block: Block) {
        self.counts.saved.fetch_add(1, Relaxed);
        let wished = self.wishes.lock().remove(&block.name);
        if let Some((retention, _)) = wished {
            block.retention = retention;
        }
        let is_kept_below = wished.is_some_and(|(_, floor)| floor > policy::Tier::Host);
        if (self.write == Write::Through || is_kept_below) && !block.retention.drop {
            self.put_down(&block);
        }
        if is_kept_below {
            block.retention.until_ms = 0;
        }
        self.put_in_memory(block);
    }

    /// Makes a block findable in memory of the host; what has to leave for it goes to the tiers below.
    fn put_in_memory(&self, block: Block) {
        match self.host.put(block) {
            Put::Stored { evicted: Some(evicted) } if !evicted.retention.drop => self.put_down(&evicted),
            // Without its parent, or without a place, it is where it can be found all the same.
            Put::Stored { .. } | Put::Duplicate | Put::Orphan | Put::Full => {}
        }
    }

    /// Gives a block to the tiers below memory; each takes it if it can.
    fn put_down(&self, block: &Block) {
        if let Some(disk) = &self.disk {
            let Block { name, parent, retention, .. } = *block;
            disk.put(kv::disk::Block { name, parent, retention }, block.slot.clone());
        }
        if let Some(remote) = &self.remote {
            remote.put(block.name, block.slot.clone());
        }
    }

    /// The leading blocks of these that lie in memory of the host.
    pub fn in_memory(&self, names: &[BlockName]) -> Vec<Slot> {
        let found = self.host.get_prefix(names);
        self.counts.host_hits.fetch_add(found.len() as u64, Relaxed);
        found
    }

    /// A block, if it lies in memory of the host.
    pub fn in_memory_one(&self, name: BlockName) -> Option<Slot> {
        self.host.get_prefix(&[name]).pop()
    }

    /// Tells the tiers the time, at most once a second.
    pub fn tick(&self, now_ms: u64) {
        let told = self.told_ms.load(Relaxed);
        // A clock that was set back is told, too.
        if now_ms.abs_diff(told) < TICK_MS
            || self.told_ms.compare_exchange(told, now_ms, Relaxed, Relaxed).is_err()
        {
            return;
        }
        self.host.expire(now_ms);
        self.wishes.lock().retain(|_, (retention, _)| retention.until_ms > now_ms);
        if let Some(disk) = &self.disk {
            disk.expire(now_ms);
        }
    }

    /// A prefill ended: so many tokens after so many others were computed.
    pub fn computed(&self, tokens: u32, context_tokens: u32, took_us: u64) {
        self.cost.lock().computed(tokens, context_tokens, took_us);
    }

    /// Microseconds that computing tokens after so many others is believed to take.
    pub fn compute_us(&self, tokens: u32, context_tokens: u32) -> f64 {
        self.cost.lock().compute_us(tokens, context_tokens)
    }

    /// Gives up blocks of one prompt, in its order, in memory and on disk; what others go on after stays.
    pub fn remove(&self, names: &[BlockName]) {
        self.host.remove(names);
        if let Some(disk) = &self.disk {
            for name in names {
                disk.remove(name);
            }
        }
    }

    /// Drops everything that a tier has, if it is there. Errors: what could not be removed.
    pub fn flush(&self, tier: kv::cost::Tier) -> Result<bool, String> {
        match tier {
            kv::cost::Tier::Host => {
                self.host.flush();
                Ok(true)
            }
            kv::cost::Tier::Disk => match &self.disk {
                Some(disk) => disk.flush().map(|()| true).map_err(|error| error.to_string()),
                None => Ok(false),
            },
            // Its blocks are other hosts', too.
            kv::cost::Tier::Remote => Ok(self.remote.as_ref().map(Remote::forget).is_some()),
        }
    }

    /// Counts of the tiers, and what is believed of their speed.
    pub fn stats(&self) -> TierStats {
        let cost = self.cost.lock();
        TierStats {
            host: self.host.stats(),
            disk: self.disk.as_ref().map(DiskTier::stats),
            remote: self.remote.as_ref().map(Remote::stats),
            cost: cost.stats(),
            beliefs: [kv::cost::Tier::Host, kv::cost::Tier::Disk, kv::cost::Tier::Remote]
                .map(|tier| cost.tier(tier)),
            prefill_tokens_per_s: cost.prefill_tokens_per_s(),
            block_bytes: self.block_bytes,
        }
    }

    /// Has everything that was given to the disk lie on it before the host ends, and what is on its way to the store there.
    pub fn close(&self) {
        if let Some(Err(error)) = self.disk.as_ref().map(DiskTier::sync) {
            tracing::warn!(%error, "blocks on disk could not be synced");
        }
        if self.remote.as_ref().is_some_and(|remote| !remote.drain(DRAIN_MAX)) {
            tracing::warn!("not all blocks were written to the remote store before the end");
        }
    }
}

impl LowerTiers for &Tiers {
    fn lowest(&self) -> Tier {
        if self.disk.is_some() { Tier::Disk } else { Tier::Host }
    }

    fn retain(&mut self, name: BlockName, retention: Retention, (tenant, floor): (u64, Tier)) {
        let in_memory = match floor {
            Tier::Hbm | Tier::Host => retention,
            Tier::Disk | Tier::Remote => Retention { until_ms: 0, ..retention },
        };
        let retained = self.host.retain(name, in_memory, tenant);
        if retained == Retained::Absent && floor > Tier::Hbm && retention.is_kept() {
            let mut wishes = self.wishes.lock();
            if wishes.len() < WISHES_MAX {
                wishes.insert(name, (retention, floor));
            }
        }
        if let Some(disk) = &self.disk {
            disk.retain(&name, retention);
        }
    }
}

/// Counts of the tiers.
#[derive(Debug)]
pub struct TierStats {
    /// Memory of the host.
    pub host: kv::HostStats,
    /// The disk.
    pub disk: Option<kv::disk::DiskStats>,
    /// The store.
    pub remote: Option<kv::remote::RemoteStats>,
    /// Decisions to fetch or to compute.
    pub cost: kv::cost::CostStats,
    /// Latency in microseconds and bytes a second of host, disk and store, as believed.
    pub beliefs: [(f64, f64); 3],
    /// Tokens a second that are computed, as believed.
    pub prefill_tokens_per_s: f64,
    /// Bytes of a block.
    pub block_bytes: u64,
}
