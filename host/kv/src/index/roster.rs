//! Which runs a holder has: how blocks are found that the table does not have, and what a holder leaves behind.
//!
//! **Invariant:** each run of a holder is in its roster, or before one that is. What else is in it does no harm.

use super::lookup::Place;
use super::pages::Page;
use super::runs::{NONE, Span, Words};
use super::writer::{Writer, slot};

/// Entries at which a roster is swept first. Chosen: few sweeps, and 256 bytes.
const SWEPT_MIN: usize = 64;
/// Entries whose pages are read together. Chosen: about the misses that a core has under way.
const TOGETHER: usize = 8;

/// Runs in which a holder's chains end, the one that was used last at the end. Some come twice, some are over.
#[derive(Clone, Debug, Default)]
pub(super) struct Roster {
    ends: Vec<End>,
    /// Length at which it is swept.
    sweep_at: usize,
}

/// A run and the page that was its last one when the holder used it.
#[derive(Clone, Copy, Debug)]
struct End {
    run: u32,
    page: u32,
}

impl Writer<'_> {
    /// Notes that a holder has a run, and used it last.
    pub(super) fn note(&mut self, code: u32, run: u32) {
        let page = self.kin(run).tail;
        let roster = &mut self.books.rosters[slot(self.shared.layout, code)];
        match roster.ends.last_mut().filter(|end| end.run == run) {
            Some(end) => end.page = page,
            None => roster.ends.push(End { run, page }),
        }
        if roster.ends.len() > roster.sweep_at {
            self.sweep(code);
        }
    }

    /// Leaves of a holder's roster each run once that it still has.
    fn sweep(&mut self, code: u32) {
        let at = slot(self.shared.layout, code);
        let mut ends = std::mem::take(&mut self.books.rosters[at].ends);
        let stamp = self.stamp();
        ends.reverse();
        ends.retain(|end| self.is_new(end.run, stamp) && self.stop_of(end.run, code).is_some());
        ends.reverse();
        let sweep_at = (ends.len() * 2).max(SWEPT_MIN);
        self.books.rosters[at] = Roster { ends, sweep_at };
    }

    /// All runs of a holder, those that it used last first.
    pub(super) fn runs_of(&mut self, code: u32) -> Vec<u32> {
        self.sweep(code);
        let ends = self.books.rosters[slot(self.shared.layout, code)].ends.clone();
        let stamp = self.stamp();
        let mut all = Vec::with_capacity(ends.len());
        for End { mut run, .. } in ends.into_iter().rev() {
            while run != NONE && self.is_new(run, stamp) {
                all.push(run);
                run = self.run(run).above().0;
            }
        }
        all
    }

    fn stamp(&mut self) -> u64 {
        self.books.stamp += 1;
        self.books.stamp
    }

    /// Whether a run was not asked for under a stamp, which it then was.
    fn is_new(&mut self, run: u32, stamp: u64) -> bool {
        let kin = self.books.runs.of_mut(run);
        std::mem::replace(&mut kin.stamp, stamp) != stamp
    }

    /// A block of a holder, wherever it is.
    ///
    /// Cost: some 20 ns for each run that the holder used later, if it is near the end of one; else all names that the
    /// holder has are read, 40 us where it has 65,536.
    pub(super) fn search(&mut self, code: u32, key: u64) -> Option<Place> {
        self.search_ends(code, key).or_else(|| {
            let all = self.runs_of(code);
            all.into_iter().find_map(|run| {
                let mut found =
                    self.pages(run).filter_map(|(number, page, _)| Some((number, page.depth_of(key)?)));
                found.find_map(|spot| self.held_at(code, spot, key))
            })
        })
    }

    /// A block of a holder in the last pages of its runs.
    fn search_ends(&self, code: u32, key: u64) -> Option<Place> {
        let roster = &self.books.rosters[slot(self.shared.layout, code)];
        for ends in roster.ends.rchunks(TOGETHER) {
            let (mut pages, mut all) = ([(NONE, NONE); TOGETHER], 0);
            for (end, pages) in ends.iter().rev().zip(&mut pages) {
                let page = self.shared.pages.get(end.page);
                *pages = (end.page, page.map_or(NONE, Page::before));
                all ^= page.map_or(0, Page::touch);
            }
            for (_, before) in pages {
                all ^= self.shared.pages.get(before).map_or(0, Page::touch);
            }
            std::hint::black_box(all);
            for number in pages.into_iter().flat_map(|(last, before)| [last, before]) {
                let Some(page) = self.shared.pages.get(number) else { continue };
                let found = page.depth_of(key).and_then(|depth| self.held_at(code, (number, depth), key));
                if found.is_some() {
                    return found;
                }
            }
        }
        None
    }

    /// The block at a spot of a page, if its holder has it.
    fn held_at(&self, code: u32, (page, depth): (u32, u32), key: u64) -> Option<Place> {
        let (run, end) = self.shared.verify((page, depth), key)?;
        self.stop_of(run, code).filter(|stop| *stop > depth)?;
        Some(Place { run, depth, page, end })
    }

    /// Pages of a run, the last first, with the blocks that they have.
    pub(super) fn pages(&self, run: u32) -> impl Iterator<Item = (u32, &Page, Span)> {
        let mut end = self.run(run).span().end;
        let mut number = self.kin(run).tail;
        std::iter::from_fn(move || {
            let page = (number != NONE).then(|| self.page(number))?;
            let (this, span) = (number, Span { start: page.first(), end });
            (number, end) = (page.before(), page.first());
            Some((this, page, span))
        })
    }
}
