//! One page's bookkeeping: who refers to it, what it holds, where it hangs in the tree of prefixes, what it is worth.
//!
//! In two parts: walks along a prefix, which has thousands of pages where prompts are long, read the one that is small.
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

/// Who holds a page, and where it hangs in the tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    /// Sequences that use the page.
    pub(crate) refs: u32,
    /// Sealed pages whose parent this is.
    pub(crate) children: u32,
    /// Children that are held; they keep this page as a sequence would.
    pub(crate) held_children: u32,
    /// The page of the block before this one; [`NO_PARENT`] for a first block.
    parent: u32,
}

const NO_PARENT: u32 = u32::MAX;
const _: () = assert!(size_of::<Link>() == 16, "walking a prefix costs a cache line for four pages");

impl Link {
    /// That of a page that nobody has.
    pub(crate) const FREE: Self = Self { refs: 0, children: 0, held_children: 0, parent: NO_PARENT };

    /// The page of the block before this one.
    pub(crate) fn parent(&self) -> Option<u32> {
        (self.parent != NO_PARENT).then_some(self.parent)
    }

    pub(crate) fn set_parent(&mut self, parent: Option<u32>) {
        self.parent = parent.unwrap_or(NO_PARENT);
    }

    /// Whether a sequence uses the page or one of its descendants.
    pub(crate) fn held(&self) -> bool {
        self.refs > 0 || self.held_children > 0
    }
}

/// The rest of a page's bookkeeping.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// The block that it holds; means something only while it is sealed.
    pub(crate) name: BlockName,
    /// When the wish to keep its block ends; 0 for none.
    until_ms: u64,
    /// The pool's clock when a sequence last gave the page back. Of a page with children it may be older than theirs, which
    /// it takes over when they leave.
    pub(crate) used: u64,
    /// Who is charged for keeping it; means something only while it is kept.
    pub(crate) tenant: u64,
    /// How often its block was found again.
    pub(crate) hits: u16,
    pub(crate) state: State,
    priority: u8,
    drop: bool,
}

/// Bits of the pool's clock in a rank; the rest is what the block is worth. 2^48 uses are thousands of years.
const CLOCK_BITS: u32 = 48;

impl Page {
    /// A page that nobody has.
    pub(crate) const FREE: Self = Self {
        name: BlockName(0),
        until_ms: Retention::ORDINARY.until_ms,
        used: 0,
        tenant: 0,
        hits: 0,
        state: State::Free,
        priority: Retention::ORDINARY.priority,
        drop: Retention::ORDINARY.drop,
    };

    /// Gives a free page to one sequence.
    pub(crate) fn take(&mut self) {
        *self = Self { state: State::Writing, ..Self::FREE };
    }

    /// Gives the page a name.
    pub(crate) fn seal(&mut self, name: BlockName) {
        self.state = State::Sealed;
        self.name = name;
    }

    /// What its block is worth.
    pub(crate) fn retention(&self) -> Retention {
        Retention { priority: self.priority, until_ms: self.until_ms, drop: self.drop }
    }

    pub(crate) fn set_retention(&mut self, Retention { priority, until_ms, drop }: Retention) {
        (self.priority, self.until_ms, self.drop) = (priority, until_ms, drop);
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
