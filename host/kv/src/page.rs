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
    Sealed,
}

/// Bookkeeping of one page: one line of a processor's cache.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// The block that it holds; means something only while it is sealed.
    pub(crate) name: BlockName,
    /// When the wish to keep its block ends; 0 for none.
    until_ms: u64,
    /// The pool's clock when a sequence last gave the page back.
    pub(crate) used: u64,
    /// Who is charged for keeping it; means something only while it is kept.
    pub(crate) tenant: u64,
    /// Sequences that use the page.
    pub(crate) refs: u32,
    /// Sealed pages whose parent this is.
    pub(crate) children: u32,
    /// Children that are held; they keep this page as a sequence would.
    pub(crate) held_children: u32,
    /// The page of the block before this one; [`NO_PARENT`] for a first block.
    parent: u32,
    /// How often its block was found again.
    pub(crate) hits: u16,
    pub(crate) state: State,
    priority: u8,
    drop: bool,
}

const NO_PARENT: u32 = u32::MAX;
const _: () = assert!(size_of::<Page>() == 64, "walking a prefix costs a cache line a page");

/// Bits of the pool's clock in a rank; the rest is what the block is worth. 2^48 uses are thousands of years.
const CLOCK_BITS: u32 = 48;

impl Page {
    /// A page that nobody has.
    pub(crate) const FREE: Self = Self {
        name: BlockName(0),
        until_ms: Retention::ORDINARY.until_ms,
        used: 0,
        tenant: 0,
        refs: 0,
        children: 0,
        held_children: 0,
        parent: NO_PARENT,
        hits: 0,
        state: State::Free,
        priority: Retention::ORDINARY.priority,
        drop: Retention::ORDINARY.drop,
    };

    /// Gives a free page to one sequence.
    pub(crate) fn take(&mut self) {
        *self = Self { state: State::Writing, refs: 1, ..Self::FREE };
    }

    /// Gives the page a name and a place in the tree.
    pub(crate) fn seal(&mut self, name: BlockName, parent: Option<u32>) {
        self.state = State::Sealed;
        self.name = name;
        self.parent = parent.unwrap_or(NO_PARENT);
    }

    /// The page of the block before this one.
    pub(crate) fn parent(&self) -> Option<u32> {
        (self.parent != NO_PARENT).then_some(self.parent)
    }

    /// What its block is worth.
    pub(crate) fn retention(&self) -> Retention {
        Retention { priority: self.priority, until_ms: self.until_ms, drop: self.drop }
    }

    pub(crate) fn set_retention(&mut self, Retention { priority, until_ms, drop }: Retention) {
        (self.priority, self.until_ms, self.drop) = (priority, until_ms, drop);
    }

    /// Whether a sequence uses the page or one of its descendants.
    pub(crate) fn held(&self) -> bool {
        self.refs > 0 || self.held_children > 0
    }

    /// Whether the page may be evicted now: sealed, held by nobody, parent of nothing.
    pub(crate) fn evictable_leaf(&self) -> bool {
        self.state == State::Sealed && !self.held() && self.children == 0
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
        let worth = match self.drop {
            true => 0,
            false if self.until_ms > 0 => 2,
            false => 1,
        };
        worth << 56 | u64::from(self.priority) << CLOCK_BITS | self.used
    }
}
