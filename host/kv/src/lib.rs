//! KV blocks as names and pages: who shares a prefix, which page holds it, what may be evicted.
//!
//! Called by a worker's step loop (the pool) and by routing (the index).
//! **Invariant:** never sees a device or a policy; pages are numbers here, and bytes lie in an arena's slots.

mod arena;
pub mod checkpoint;
mod index;
mod name;
mod page;
mod pool;
mod retention;

pub use arena::{Arena, SLOT_ALIGN, Slot, SlotMut};
pub use index::{PrefixIndex, WORKERS_MAX};
pub use name::{BlockName, Fingerprint, NameChain};
pub use pool::{BlockPool, KvError, KvEvent, PoolStats, Sealed};
pub use retention::{KeepBound, KeepBounds, Retained, Retention};

/// The memory slot that holds one block. The executor turns it into an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageIdx(pub u32);
