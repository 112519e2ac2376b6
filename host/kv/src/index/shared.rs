//! What readers see, and how they know that nobody wrote meanwhile.
//!
//! A sequence lock: a batch makes the version odd and then even again; who reads repeats what it read when the version
//! moved. All words are atomic and all storage stays, so that a reader in a batch's way reads nonsense at worst.
//!
//! **Invariant:** one writer at a time, the holder of the books' lock.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};

use super::IndexLimits;
use super::holder::SetLayout;
use super::pages::Page;
use super::runs::Run;
use super::slab::Slab;
use super::table::Table;
use super::writer::Books;

/// Fewest sets of members. Chosen: a set serves a prefix that many holders share, and those are few.
const SETS_MIN: usize = 4096;

/// Fewest runs. Chosen: a small index may have more that live no more than blocks.
const RUNS_MIN: usize = 4096;

/// Alone in its cache lines: readers look at it all the time.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Version(AtomicU64);

#[derive(Debug)]
pub(super) struct Shared {
    version: Version,
    pub(super) table: Table,
    pub(super) runs: Slab<Run>,
    pub(super) pages: Slab<Page>,
    pub(super) sets: Slab<AtomicU64>,
    pub(super) layout: SetLayout,
}

impl Shared {
    pub(super) fn new(limits: IndexLimits) -> (Self, Books) {
        let layout = SetLayout::new(limits.workers_max);
        let (table, table_books) = Table::new(limits.blocks_max);
        // A run has a block at least; those that live no more go with the pages that name them.
        let runs: Slab<Run> = Slab::new(limits.blocks_max.max(RUNS_MIN));
        // A page has a block at least.
        let pages = Slab::new(limits.blocks_max.max(RUNS_MIN));
        let sets = Slab::new((limits.blocks_max / 64).max(SETS_MIN) * layout.words);
        let books = Books::new(table_books, runs.len_max(), layout);
        (Self { version: Version::default(), table, runs, pages, sets, layout }, books)
    }

    /// The words of a set of members.
    pub(super) fn set(&self, set: u32) -> Option<&[AtomicU64]> {
        self.sets.span(set as usize * self.layout.words, self.layout.words)
    }

    /// Begins a change. The version is even again when the guard is gone.
    pub(super) fn change(&self) -> Change<'_> {
        let version = self.version.0.load(Relaxed);
        self.version.0.store(version + 1, Relaxed);
        // Who sees a word of this change sees the odd version too.
        fence(Release);
        Change { shared: self, version }
    }

    /// Reads, if no batch was under way from beginning to end.
    pub(super) fn read<T>(&self, read: impl FnOnce() -> T) -> Option<T> {
        let before = self.version.0.load(Acquire);
        if before % 2 == 1 {
            return None;
        }
        let value = read();
        fence(Acquire);
        (self.version.0.load(Relaxed) == before).then_some(value)
    }
}

/// A change that is under way.
pub(super) struct Change<'a> {
    shared: &'a Shared,
    version: u64,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.shared.version.0.store(self.version + 2, Release);
    }
}
