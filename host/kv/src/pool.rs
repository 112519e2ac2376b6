//! The pages of one worker: which are free, which hold which block, which may be evicted.
//!
//! ```text
//!            allocate            seal                release (last)
//!   Free ──────────────► Writing ────► Sealed, held ◄──────────────► Sealed, evictable ──► Free
//!     ▲                     │                          pin_prefix                     evicted
//!     └────── release ──────┘
//! ```
//!
//! Leaves leave in order of what they are worth, then least recently used: see [`Retention`].
//!
//! Called by a worker's step loop, and by the host tier under its lock; one owner.
//! **Invariant:** resident blocks are closed under "parent of": a block never leaves before its children,
//! so the resident part of a prompt is always a prefix. A held page is never evicted.

mod keep;
mod place;

use std::collections::BTreeSet;

use hashbrown::HashTable;
pub use place::{Evicted, Placed};
use rustc_hash::FxHashMap;

use crate::page::{Link, Page, State};
use crate::{BlockName, KeepBounds, PageIdx, Retention};

/// Why the pool could not do what was asked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// Pages are in use; the caller waits, preempts or sheds.
    #[error("{wanted} pages wanted, {available} available")]
    OutOfPages {
        /// Pages asked for.
        wanted: u32,
        /// Pages that were free or evictable.
        available: u32,
    },
}

/// What became of a block that was sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sealed {
    /// The page holds the block under its name; others find it.
    Named,
    /// Another page has the name already; this one stays private and is freed on release.
    Duplicate(PageIdx),
    /// The parent is not resident, so nobody could find the block; the page stays private.
    Orphan,
}

/// A change of what is resident, for the index. Events of one pool are applied in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvEvent {
    /// A block became resident; its parent is resident.
    Stored {
        /// The block.
        name: BlockName,
        /// The block before it, if it is not a first block.
        parent: Option<BlockName>,
    },
    /// A block was evicted; none of its children is resident.
    Removed {
        /// The block.
        name: BlockName,
    },
}

/// Counts of a pool. `free + evictable + pinned == pages`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolStats {
    /// Pages that exist.
    pub pages: u32,
    /// Pages that hold nothing.
    pub free: u32,
    /// Pages that hold a block which may be evicted, now or after its children.
    pub evictable: u32,
    /// Pages in use: being written, or sealed and held by a sequence or a descendant.
    pub pinned: u32,
    /// Named blocks, evictable or not.
    pub resident: u32,
    /// Pages that are to be kept for a time, in use or not.
    pub kept: u32,
    /// Blocks evicted since the start.
    pub evictions: u64,
}

/// The pages of one worker.
///
/// Cost: O(1) for each page, O(log pages) for each leaf that becomes evictable or stops being so; about 80 bytes a page.
#[derive(Debug)]
pub struct BlockPool {
    pages: Vec<Page>,
    /// Of each page who holds it, and its parent.
    links: Vec<Link>,
    block_tokens: u32,
    /// Free pages; the last is handed out next.
    free: Vec<u32>,
    /// Pages that have a name, found by it.
    resident: HashTable<u32>,
    /// Pages that may be evicted now by rank, the first to leave first.
    leaves: BTreeSet<(u64, u32)>,
    /// Pages that are kept for a time, by when that ends.
    kept: BTreeSet<(u64, u32)>,
    /// How many of those are kept for each tenant.
    kept_by_tenant: FxHashMap<u64, u32>,
    keep_bounds: KeepBounds,
    /// Sealed pages that nobody holds.
    evictable: u32,
    /// Pages whose block was dropped and is still there.
    dropped: u32,
    clock: u64,
    evictions: u64,
    events: Vec<KvEvent>,
    events_max: usize,
}

/// Fewest events kept for [`BlockPool::drain_events`]; chosen: a step of any worker makes far fewer, so
/// reaching it (or four for each page) means that nobody drains.
const EVENTS_MAX_MIN: usize = 1 << 20;

impl BlockPool {
    /// A pool of free pages.
    pub fn new(pages: u32, block_tokens: u32) -> Self {
        assert!(block_tokens > 0, "a block holds at least one token");
        Self {
            pages: vec![Page::FREE; pages as usize],
            links: vec![Link::FREE; pages as usize],
            block_tokens,
            free: (0..pages).rev().collect(),
            // Growing would look up each page again, in no order.
            resident: HashTable::with_capacity(pages as usize),
            leaves: BTreeSet::new(),
            kept: BTreeSet::new(),
            kept_by_tenant: FxHashMap::default(),
            keep_bounds: KeepBounds::NONE,
            evictable: 0,
            dropped: 0,
            clock: 0,
            evictions: 0,
            events: Vec::new(),
            events_max: EVENTS_MAX_MIN.max(pages as usize * 4),
        }
    }

    /// Tokens a page holds.
    pub fn block_tokens(&self) -> u32 {
        self.block_tokens
    }

    /// How many leading blocks are resident.
    ///
    /// Cost: O(log names), since residents form prefixes.
    pub fn resident_prefix(&self, names: &[BlockName]) -> usize {
        names.partition_point(|name| self.find(name).is_some())
    }

    /// Pins the leading resident blocks, and gives their pages in order. The last one holds all before it: it alone is
    /// released, once.
    ///
    /// Cost: O(log names) look-ups, then one visit of each page.
    pub fn pin_prefix(&mut self, names: &[BlockName]) -> Vec<PageIdx> {
        self.clock += 1;
        let count = self.resident_prefix(names);
        let Some(last) = names[..count].last() else { return Vec::new() };
        let mut this = self.find(last);
        if let Some(last) = this {
            // Hold first: the eviction order finds a page by its rank, which follows what it is worth.
            self.hold(last);
        }
        let mut pages = vec![PageIdx(0); count];
        for place in pages.iter_mut().rev() {
            let found = this.expect("a resident block's ancestors are resident");
            *place = PageIdx(found);
            this = self.link(found).parent();
        }
        assert!(this.is_none(), "a prefix begins with a first block");
        if self.dropped > 0 {
            self.take_back(&pages);
        }
        pages
    }

    /// Somebody came for blocks that were dropped, after all.
    fn take_back(&mut self, pages: &[PageIdx]) {
        for &PageIdx(this) in pages {
            if self.page(this).retention().drop {
                self.set_retention(this, Retention::ORDINARY, 0);
            }
        }
    }

    /// Pins one resident block, and with it all before it; it is released once.
    pub fn pin(&mut self, name: &BlockName) -> Option<PageIdx> {
        let this = self.find(name)?;
        self.hold(this);
        Some(PageIdx(this))
    }

    /// Takes `count` pages to write, each with one reference; evicts as needed.
    ///
    /// Errors: [`KvError::OutOfPages`]; nothing has been evicted then.
    pub fn allocate(&mut self, count: u32) -> Result<Vec<PageIdx>, KvError> {
        let available = self.available();
        if count > available {
            return Err(KvError::OutOfPages { wanted: count, available });
        }
        while self.free.len() < count as usize {
            self.evict_one();
        }
        let taken = self.free.split_off(self.free.len() - count as usize);
        for &page in &taken {
            assert!(self.page(page).state == State::Free, "a page of the free list is free");
            assert!(!self.link(page).held(), "a free page is held by nobody");
            self.page_mut(page).take();
            self.link_mut(page).refs = 1;
        }
        Ok(taken.into_iter().rev().map(PageIdx).collect())
    }

    /// Names a full block, so that others find it. Its parent is the block before it, `None` for a first one.
    pub fn seal(&mut self, page: PageIdx, name: BlockName, parent: Option<BlockName>) -> Sealed {
        let this = page.0;
        assert!(self.page(this).state == State::Writing, "a page is sealed once, after it was written");
        assert!(self.link(this).refs > 0, "a page is sealed by a sequence that has it");
        assert!(parent != Some(name), "a block is not its own parent");
        if let Some(other) = self.find(&name) {
            return Sealed::Duplicate(PageIdx(other));
        }
        let parent_page = match parent {
            None => None,
            Some(parent) => match self.find(&parent) {
                Some(found) => Some(found),
                None => return Sealed::Orphan,
            },
        };
        self.enter(this, name, parent_page);
        if let Some(up) = parent_page {
            self.hold_for_child(up);
        }
        self.record(KvEvent::Stored { name, parent });
        Sealed::Named
    }

    /// Seals a page, and hangs it into the tree.
    fn enter(&mut self, this: u32, name: BlockName, parent_page: Option<u32>) {
        self.page_mut(this).seal(name);
        self.link_mut(this).set_parent(parent_page);
        let pages = &self.pages;
        self.resident.insert_unique(hash(&name), this, |&other| hash(&pages[other as usize].name));
        if let Some(up) = parent_page {
            if self.is_evictable_leaf(up) {
                self.leaves.remove(&(self.page(up).rank(), up));
            }
            self.link_mut(up).children += 1;
        }
    }

    /// Drops one reference of each page. Named blocks become evictable with the last one, others are freed.
    pub fn release(&mut self, pages: &[PageIdx]) {
        self.clock += 1;
        for &PageIdx(this) in pages {
            let link = self.link_mut(this);
            assert!(link.refs > 0, "a page is released once for each pin or allocation");
            link.refs -= 1;
            if link.held() {
                continue;
            }
            match self.page(this).state {
                State::Free => unreachable!("a free page has no reference"),
                State::Writing => {
                    *self.page_mut(this) = Page::FREE;
                    self.free.push(this);
                }
                State::Sealed => self.let_go(this),
            }
        }
    }

    /// Pages that [`BlockPool::allocate`] could give.
    pub fn available(&self) -> u32 {
        self.free.len() as u32 + self.evictable
    }

    /// Counts, at no cost.
    pub fn stats(&self) -> PoolStats {
        let pages = self.pages.len() as u32;
        let free = self.free.len() as u32;
        PoolStats {
            pages,
            free,
            evictable: self.evictable,
            kept: self.kept.len() as u32,
            pinned: pages - free - self.evictable,
            resident: self.resident.len() as u32,
            evictions: self.evictions,
        }
    }

    /// What changed since the last call, in order. The step loop drains once a step.
    pub fn drain_events(&mut self) -> impl ExactSizeIterator<Item = KvEvent> + '_ {
        self.events.drain(..)
    }

    /// Adds a reference of a sequence.
    fn hold(&mut self, this: u32) {
        let was_held = self.link(this).held();
        self.link_mut(this).refs += 1;
        if !was_held {
            self.take_up(this);
        }
    }

    /// Adds the hold of a child that is held.
    fn hold_for_child(&mut self, this: u32) {
        let was_held = self.link(this).held();
        self.link_mut(this).held_children += 1;
        if !was_held {
            self.take_up(this);
        }
    }

    /// A sealed page got its first holder: it, and ancestors held by nobody else, stop being evictable.
    fn take_up(&mut self, first: u32) {
        let mut this = first;
        loop {
            let link = *self.link(this);
            // One with children is no leaf, and few have none.
            if link.children == 0 {
                self.leaves.remove(&(self.page(this).rank(), this));
            }
            self.evictable -= 1;
            let Some(up) = link.parent() else { return };
            let link = self.link_mut(up);
            let was_held = link.held();
            link.held_children += 1;
            if was_held {
                return;
            }
            this = up;
        }
    }

    /// A sealed page lost its last holder: it, and ancestors held by nobody else, become evictable.
    fn let_go(&mut self, first: u32) {
        // Those before it were used as well: they learn it when it leaves, since nobody asks before.
        self.page_mut(first).used = self.clock;
        if self.is_evictable_leaf(first) {
            self.leaves.insert((self.page(first).rank(), first));
        }
        let mut this = first;
        loop {
            self.evictable += 1;
            let Some(up) = self.link(this).parent() else { return };
            let link = self.link_mut(up);
            link.held_children -= 1;
            if link.held() {
                return;
            }
            this = up;
        }
    }

    /// Frees the leaf of the lowest rank.
    fn evict_one(&mut self) {
        let (_, this) = self.leaves.pop_first().expect("evictable pages always end in a leaf");
        self.evictions += 1;
        self.free_leaf(this);
    }

    /// Frees a leaf that was taken out of the order of eviction; its parent may become one.
    fn free_leaf(&mut self, this: u32) -> Evicted {
        assert!(self.is_evictable_leaf(this), "a page in the eviction order is an evictable leaf");
        let page = std::mem::replace(self.page_mut(this), Page::FREE);
        let link = std::mem::replace(self.link_mut(this), Link::FREE);
        let name = page.name;
        let entry = self.resident.find_entry(hash(&name), |&other| other == this);
        entry.expect("a sealed page is resident under its name").remove();
        self.let_expire(this, &page);
        self.dropped -= u32::from(page.retention().drop);
        self.evictable -= 1;
        self.free.push(this);
        let parent = link.parent().map(|up| {
            self.link_mut(up).children -= 1;
            let parent = self.page_mut(up);
            // Whoever used a block used what comes before it.
            parent.used = parent.used.max(page.used);
            let (rank, name) = (parent.rank(), parent.name);
            if self.is_evictable_leaf(up) {
                self.leaves.insert((rank, up));
            }
            name
        });
        self.record(KvEvent::Removed { name });
        let tenant = if page.retention().is_kept() { page.tenant } else { 0 };
        Evicted { page: PageIdx(this), name, parent, retention: page.retention(), tenant }
    }

    fn record(&mut self, event: KvEvent) {
        assert!(self.events.len() < self.events_max, "the step loop drains events");
        self.events.push(event);
    }

    /// The page that holds a block.
    fn find(&self, name: &BlockName) -> Option<u32> {
        self.resident.find(hash(name), |&page| self.page(page).name == *name).copied()
    }

    /// Whether a page may be evicted now: sealed, held by nobody, parent of nothing.
    fn is_evictable_leaf(&self, page: u32) -> bool {
        let link = self.link(page);
        link.children == 0 && !link.held() && self.page(page).state == State::Sealed
    }

    fn link(&self, page: u32) -> &Link {
        &self.links[page as usize]
    }

    fn link_mut(&mut self, page: u32) -> &mut Link {
        &mut self.links[page as usize]
    }

    fn page(&self, page: u32) -> &Page {
        &self.pages[page as usize]
    }

    fn page_mut(&mut self, page: u32) -> &mut Page {
        &mut self.pages[page as usize]
    }
}

/// A name is a hash already.
fn hash(name: &BlockName) -> u64 {
    name.0 as u64
}

#[cfg(test)]
mod tests;
