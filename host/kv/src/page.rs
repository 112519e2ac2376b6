//! One page's bookkeeping: who refers to it, what it holds, where it hangs in the tree of prefixes.
//!
//! Called by the pool alone, which keeps the counts of a page and of its parent in step.
//! **Invariant:** a page holds a name only while it is sealed, and a parent only while it is named.

use crate::BlockName;

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
}

impl Page {
    /// A page that nobody has.
    pub(crate) fn free() -> Self {
        Self { state: State::Free, refs: 0, children: 0, held_children: 0, parent: None, used: 0 }
    }

    /// Whether a sequence uses the page or one of its descendants.
    pub(crate) fn held(&self) -> bool {
        self.refs > 0 || self.held_children > 0
    }

    /// Whether the page may be evicted now: sealed, held by nobody, parent of nothing.
    pub(crate) fn evictable_leaf(&self) -> bool {
        matches!(self.state, State::Sealed(_)) && !self.held() && self.children == 0
    }
}
