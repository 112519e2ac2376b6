//! In which order blocks leave the disk: leaves by rank, in lists that run through the entries.
//!
//! ```text
//!   63      56 55      48 47                0
//!  ┌──────────┬──────────┬───────────────────┐
//!  │ 0 dropped│ priority │ count of uses at  │
//!  │ 1 neither│          │ the last one, in  │
//!  │ 2 kept   │          │ steps             │
//!  └──────────┴──────────┴───────────────────┘
//! ```
//!
//! A list holds what has one rank, first come first. Uses count in steps, so that a large tier has few lists and a
//! change costs one step in a small map instead of one in a map of all blocks; a small tier has steps of one use.
//! **Invariant:** an entry is in a list exactly while it is flagged so, under the rank it had when it was put there;
//! whoever changes what a rank is made of takes the entry out first.

use std::collections::BTreeMap;

use super::residents::Entry;

/// Ends a list.
pub(super) const NONE: u32 = u32::MAX;

/// Bits of the count of uses in a rank. 2^48 uses are thousands of years.
const USED_BITS: u32 = 48;

/// Lists that the blocks of one class are spread over, about. Chosen: a block leaves at most one part in so many of
/// the tier too early, and the map of lists stays in the processor's cache.
const STEPS: u64 = 2048;

#[derive(Debug)]
pub(super) struct Order {
    lists: BTreeMap<u64, List>,
    uses_per_step: u64,
}

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
}

impl Order {
    /// An order for up to `slots` blocks.
    pub(super) fn new(slots: u64) -> Self {
        Self { lists: BTreeMap::new(), uses_per_step: (slots / STEPS).max(1) }
    }

    fn rank(&self, entry: &Entry) -> u64 {
        let used = entry.used() / self.uses_per_step;
        assert!(used >> USED_BITS == 0, "the count of uses fits its bits");
        u64::from(entry.class()) << USED_BITS | used
    }

    /// Puts an entry last in the list of its rank.
    pub(super) fn insert(&mut self, entries: &mut [Entry], this: u32) {
        let rank = self.rank(&entries[this as usize]);
        let list = self.lists.entry(rank).or_insert(List { first: this, last: this });
        let before = (list.last != this).then_some(list.last);
        list.last = this;
        entries[this as usize].link(before.unwrap_or(NONE), NONE);
        if let Some(before) = before {
            entries[before as usize].set_next(this);
        }
    }

    /// Takes an entry out of its list.
    pub(super) fn remove(&mut self, entries: &mut [Entry], this: u32) {
        let (before, after) = entries[this as usize].unlink();
        if before != NONE {
            entries[before as usize].set_next(after);
        }
        if after != NONE {
            entries[after as usize].set_prev(before);
        }
        if before != NONE && after != NONE {
            return;
        }
        let rank = self.rank(&entries[this as usize]);
        if before == NONE && after == NONE {
            self.lists.remove(&rank);
            return;
        }
        let list = self.lists.get_mut(&rank).expect("a listed entry has its list");
        match before {
            NONE => list.first = after,
            _ => list.last = before,
        }
    }

    /// What leaves first.
    pub(super) fn first(&self) -> Option<u32> {
        self.lists.first_key_value().map(|(_, list)| list.first)
    }

    /// Lists that are not empty.
    pub(super) fn lists(&self) -> usize {
        self.lists.len()
    }
}
