//! KV blocks: their names, who shares a prefix, which page holds what, and the tiers below an executor's memory.
//!
//! ```text
//!   BlockPool (pages) ── HostTier (arena) ── DiskTier (slabs) ── Remote (a shared store)      CostModel: fetch or compute
//! ```
//! Called by a worker's step loop, by the tiers' owner in `serve`, and by routing (the index).
//! **Invariant:** never sees a device or a policy; pages are numbers here, and bytes lie in an arena's slots.

mod arena;
pub mod checkpoint;
pub mod cost;
pub mod disk;
mod geometry;
mod host;
mod index;
mod name;
mod page;
mod pool;
pub mod remote;
mod retention;

pub use arena::{Arena, SLOT_ALIGN, Slot, SlotMut};
pub use geometry::Geometry;
pub use host::{Block, HostEvents, HostStats, HostTier, Put};
pub use index::{
    Batch, Change, Holder, HolderTier, IndexLimits, IndexStats, Overlap, Overlaps, PrefixIndex, Receipt,
    Snapshot, SnapshotBlock, WORKERS_MAX,
};
pub use name::{BlockName, Fingerprint, NameChain};
pub use pool::{BlockPool, Evicted, KvError, KvEvent, Placed, PoolStats, Sealed};
pub use retention::{KeepBound, KeepBounds, Retained, Retention};

/// The memory slot that holds one block. The executor turns it into an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageIdx(pub u32);
