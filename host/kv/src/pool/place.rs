//! Blocks that come and go whole, as a tier below the executor has them: nobody writes a page here, or pins one.
//!
//! Called by the host tier, which keeps the bytes.
//! **Invariant:** a block is placed after its parent, and makes room by evicting anything but it.

use super::{BlockPool, KvEvent};
use crate::{BlockName, PageIdx, Retention};

/// A block that left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Evicted {
    /// The page that held it, which is free or holds the block that it made room for.
    pub page: PageIdx,
    /// The block.
    pub name: BlockName,
    /// The block before it, which is resident; `None` for a first one.
    pub parent: Option<BlockName>,
    /// What it was worth.
    pub retention: Retention,
    /// Who was charged for keeping it; 0 unless it was kept.
    pub tenant: u64,
}

/// What became of a block that was placed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placed {
    /// It is resident.
    At {
        /// The page that holds it.
        page: PageIdx,
        /// What it made room for itself by, if no page was free.
        evicted: Option<Evicted>,
    },
    /// This page has it already; it counts as used.
    Duplicate(PageIdx),
    /// Its parent is not resident, so nobody could find it.
    Orphan,
    /// Every page is in use, or is its parent's.
    Full,
}

impl BlockPool {
    /// Gives a whole block a page, under its name; evicts one block where no page is free. It may be evicted itself from
    /// then on.
    ///
    /// Cost: O(log pages), however long its prefix.
    pub fn place(&mut self, name: BlockName, parent: Option<BlockName>) -> Placed {
        assert!(parent != Some(name), "a block is not its own parent");
        self.clock += 1;
        if let Some(other) = self.find(&name) {
            self.touch(other);
            return Placed::Duplicate(PageIdx(other));
        }
        let parent_page = match parent.map(|parent| self.find(&parent)) {
            Some(None) => return Placed::Orphan,
            found => found.flatten(),
        };
        let evicted = match self.free.is_empty() {
            true => match self.evict_but(parent_page) {
                None => return Placed::Full,
                evicted => evicted,
            },
            false => None,
        };
        let this = self.free.pop().expect("a page was free, or became so");
        self.enter(this, name, parent_page);
        self.page_mut(this).used = self.clock;
        self.evictable += 1;
        let rank = self.page(this).rank();
        self.leaves.insert((rank, this));
        self.record(KvEvent::Stored { name, parent });
        Placed::At { page: PageIdx(this), evicted }
    }

    /// Pages of the leading resident blocks, in order, which count as used. `names` may go on after any block.
    ///
    /// Cost: O(log names) look-ups, then one visit of each page.
    pub fn touch_prefix(&mut self, names: &[BlockName]) -> Vec<PageIdx> {
        self.clock += 1;
        let count = self.resident_prefix(names);
        let mut this = names[..count].last().and_then(|last| self.find(last));
        let mut pages = vec![PageIdx(0); count];
        for place in pages.iter_mut().rev() {
            let found = this.expect("a resident block's ancestors are resident");
            *place = PageIdx(found);
            if self.page(found).retention().drop {
                // Somebody came for it after all.
                self.set_retention(found, Retention::ORDINARY, 0);
            }
            self.touch(found);
            this = self.link(found).parent();
        }
        pages
    }

    /// Takes out the block that would be evicted first; `None` when all are in use.
    pub fn evict_first(&mut self) -> Option<Evicted> {
        self.evict_but(None)
    }

    /// Takes out a block, if nobody uses it or a resident block after it.
    ///
    /// Cost: O(log pages).
    pub fn remove(&mut self, name: &BlockName) -> Option<Evicted> {
        let this = self.find(name)?;
        if !self.is_evictable_leaf(this) {
            return None;
        }
        self.leaves.remove(&(self.page(this).rank(), this));
        Some(self.free_leaf(this))
    }

    /// Takes out blocks of one prompt, given in its order; what is in use stays, and what others go on after. How many left.
    pub fn remove_last(&mut self, names: &[BlockName]) -> u32 {
        names.iter().rev().filter(|name| self.remove(name).is_some()).count() as u32
    }

    /// Takes out all blocks that nobody uses. How many left.
    pub fn flush(&mut self) -> u32 {
        std::iter::from_fn(|| self.evict_first()).count() as u32
    }

    /// All resident blocks, each with the one before it, in no order.
    ///
    /// Cost: one visit of each page.
    pub fn names(&self) -> impl Iterator<Item = (BlockName, Option<BlockName>)> + '_ {
        self.resident
            .iter()
            .map(|&this| (self.page(this).name, self.link(this).parent().map(|up| self.page(up).name)))
    }

    /// Evicts the first leaf that is not `spared`.
    fn evict_but(&mut self, spared: Option<u32>) -> Option<Evicted> {
        let first = self.leaves.iter().find(|(_, this)| Some(*this) != spared);
        let &(rank, this) = first?;
        self.leaves.remove(&(rank, this));
        self.evictions += 1;
        Some(self.free_leaf(this))
    }

    /// Notes that a page was used.
    fn touch(&mut self, this: u32) {
        let (clock, leaf) = (self.clock, self.is_evictable_leaf(this));
        let page = self.page_mut(this);
        let rank = page.rank();
        page.used = clock;
        if leaf {
            let touched = page.rank();
            self.leaves.remove(&(rank, this));
            self.leaves.insert((touched, this));
        }
    }
}
