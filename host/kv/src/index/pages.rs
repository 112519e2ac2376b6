//! Pages of names: what the blocks of runs are called, in the order of a run.
//!
//! ```text
//!   depth    0 ............ 13  14 .......... 27  28 ..
//!   run      [page           ]──[page          ]──[page]     each page knows the one before it
//! ```
//! A page ends at a multiple of [`NAMES`], so whoever has a prompt's names knows at which of them pages begin; the
//! table of names has the first of each page. Dividing a run within a page copies what is behind the cut.
//!
//! **Invariant:** a page that is in use has at least one block, and all its blocks are of one run: the one that it
//! names, or one that was divided from that one's beginning.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::runs::{NONE, pack, unpack};
use super::slab::Slab;

/// Names of a page. Chosen: with two words about the page they are two cache lines, which are read together.
pub(super) const NAMES: usize = 14;

const RUN: usize = NAMES;
const BEFORE: usize = NAMES + 1;

/// Names, then the run and the depth of the first, then the page before.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Page([AtomicU64; NAMES + 2]);

/// Depth behind the last block that a page with this one has room for.
#[inline]
pub(super) fn page_end(depth: u32) -> u32 {
    (depth - depth % NAMES as u32).saturating_add(NAMES as u32)
}

impl Page {
    /// The name at a depth, if the page has room for that depth.
    #[inline]
    pub(super) fn name(&self, depth: u32) -> Option<u64> {
        let slot = depth.wrapping_sub(self.first()) as usize;
        self.0[..NAMES].get(slot).map(|name| name.load(Relaxed))
    }

    /// The depth of a name, whether or not it is of a block that is there. All are compared, without a branch, so that
    /// who searches waits for several pages together.
    #[inline]
    pub(super) fn depth_of(&self, name: u64) -> Option<u32> {
        let mut found = 0u32;
        for (slot, own) in self.0[..NAMES].iter().enumerate() {
            found |= u32::from(own.load(Relaxed) == name) << slot;
        }
        (found != 0).then(|| self.first() + found.trailing_zeros())
    }

    /// Depths and names up to a depth.
    pub(super) fn names(&self, end: u32) -> impl Iterator<Item = (u32, u64)> {
        (self.first()..end).zip(self.0[..NAMES].iter().map(|name| name.load(Relaxed)))
    }

    pub(super) fn set_names(&self, depth: u32, names: &[u64]) {
        let slots = &self.0[..NAMES][(depth - self.first()) as usize..];
        slots.iter().zip(names).for_each(|(slot, name)| slot.store(*name, Relaxed));
    }

    #[inline]
    pub(super) fn set_name(&self, depth: u32, name: u64) {
        self.0[..NAMES][(depth - self.first()) as usize].store(name, Relaxed);
    }

    /// Reads both cache lines.
    #[inline]
    pub(super) fn touch(&self) -> u64 {
        self.0[0].load(Relaxed) ^ self.0[RUN].load(Relaxed)
    }

    /// The run that it names; its blocks may be of one before that.
    #[inline]
    pub(super) fn run(&self) -> u32 {
        unpack(self.0[RUN].load(Relaxed)).0
    }

    /// Depth of its first block.
    #[inline]
    pub(super) fn first(&self) -> u32 {
        unpack(self.0[RUN].load(Relaxed)).1
    }

    pub(super) fn set_run(&self, run: u32, first: u32) {
        self.0[RUN].store(pack(run, first), Relaxed);
    }

    /// The page before it in its run.
    pub(super) fn before(&self) -> u32 {
        self.0[BEFORE].load(Relaxed) as u32
    }

    pub(super) fn set_before(&self, page: u32) {
        self.0[BEFORE].store(u64::from(page), Relaxed);
    }
}

/// The writer's books of pages.
#[derive(Debug, Default)]
pub(super) struct PageBooks {
    free: Vec<u32>,
    len: usize,
}

impl PageBooks {
    /// Bytes of all pages that there ever were at once.
    pub(super) fn bytes(&self) -> usize {
        self.len * size_of::<Page>()
    }

    /// A page for blocks of a run from a depth on. `None`: there are as many as there may be.
    pub(super) fn take(&mut self, pages: &Slab<Page>, (run, first): (u32, u32), before: u32) -> Option<u32> {
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.len < pages.len_max().min(NONE as usize) => {
                pages.grow(self.len);
                self.len += 1;
                (self.len - 1) as u32
            }
            None => return None,
        };
        let page = pages.get(number).expect("a page that was taken has its chunk");
        page.set_run(run, first);
        page.set_before(before);
        Some(number)
    }

    /// Pages that are in use.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len - self.free.len()
    }

    /// Gives a page up. It names no run then, so that no block is found in it.
    pub(super) fn give(&mut self, pages: &Slab<Page>, number: u32) {
        let page = pages.get(number).expect("a page that was taken has its chunk");
        page.set_run(NONE, 0);
        page.set_before(NONE);
        self.free.push(number);
    }
}
