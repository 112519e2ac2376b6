//! One page's bookkeeping: who refers to it, what it holds, where it hangs in the tree of prefixes, what it is worth.
//!
//! Called by the pool alone, which keeps the counts of a page and of its parent in step.
//! **Invariant:** a page holds a name only while it is sealed, and a parent only while it is named.

use crate::{BlockName, Retention};

/// What a page is doing. `Sealed` pages without a holder may be evicted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Nobody's.
    Free,
    /// One sequence writes it; it has no name, or never gets one because another page has it.
    Writing,
    /// Full, named, immutable.
    Sealed(BlockName),
}

/// Bookkeeping of one page.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) state: State,
    /// Sequences that use the page.
    pub(crate) refs: u32,
    /// Sealed pages whose parent this is.
    pub(crate) children: u32,
    /// Children that are held; they keep this page as a sequence would.
    pub(crate) held_children: u32,
    /// The page of the block before this one; none for a first block.
    pub(crate) parent: Option<u32>,
    /// The pool's clock when a sequence last used the page.
    pub(crate) used: u64,
    /// What its block is worth.
    pub(crate) retention: Retention,
    /// Who is charged for keeping it; means something only while it is kept.
    pub(crate) tenant: u64,
    /// How often its block was found again.
    pub(crate) hits: u32,
}

/// Bits of the pool's clock in a rank; the rest is what the block is worth. 2^48 uses are thousands of years.
const CLOCK_BITS: u32 = 48;

impl Page {
    /// A page that nobody has.
    pub(crate) fn free() -> Self {
        Self {
            state: State::Free,
            refs: 0,
            children: 0,
            held_children: 0,
            parent: None,
            used: 0,
            retention: Retention::ORDINARY,
            tenant: 0,
            hits: 0,
        }
    }

    /// Whether a sequence uses the page or one of its descendants.
    pub(crate) fn held(&self) -> bool {
        self.refs > 0 || self.held_children > 0
    }

    /// Whether the page may be evicted now: sealed, held by nobody, parent of nothing.
    pub(crate) fn evictable_leaf(&self) -> bool {
        matches!(self.state, State::Sealed(_)) && !self.held() && self.children == 0
    }

    /// Where the page stands among the leaves; the lowest rank leaves first.
    ///
    /// ```text
    ///   63      56 55      48 47                0
    ///  ┌──────────┬──────────┬───────────────────┐
    ///  │ 0 dropped│ priority │ the pool's clock  │
    ///  │ 1 neither│          │ at the last use   │
    ///  │ 2 kept   │          │                   │
    ///  └──────────┴──────────┴───────────────────┘
    /// ```
    pub(crate) fn rank(&self) -> u64 {
        assert!(self.used >> CLOCK_BITS == 0, "the clock of uses fits its bits");
        let worth = match self.retention {
            Retention { drop: true, .. } => 0,
            retention if retention.is_kept() => 2,
            _ => 1,
        };
        worth << 56 | u64::from(self.retention.priority) << CLOCK_BITS | self.used
    }
}
