//! Which runs a holder has: how blocks are found that the table does not have, and what a holder leaves behind.
//!
//! **Invariant:** each run of a holder is in its roster, or before one that is. What else is in it does no harm.

use super::pages::Page;
use super::runs::{NONE, Span, Words};
use super::writer::{Writer, slot};

/// Entries at which a roster is swept first. Chosen: few sweeps, and 256 bytes.
const SWEPT_MIN: usize = 64;
/// Pages at the end of each run that are searched first. Measured (traces of agents and of chats): three of four
/// branches are within so much of the end of a run.
const PAGES_NEAR: usize = 2;

/// Runs in which a holder's chains end, the one that was used last at the end. Some come twice, some are over.
#[derive(Clone, Debug, Default)]
pub(super) struct Roster {
    runs: Vec<u32>,
    /// Length at which it is swept.
    sweep_at: usize,
}

/// A block in its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) page: u32,
    pub(super) depth: u32,
}

impl Writer<'_> {
    /// Notes that a holder has a run, and used it last.
    pub(super) fn note(&mut self, code: u32, run: u32) {
        let roster = &mut self.books.rosters[slot(self.shared.layout, code)];
        if roster.runs.last() == Some(&run) {
            return;
        }
        roster.runs.push(run);
        if roster.runs.len() > roster.sweep_at {
            self.sweep(code);
        }
    }

    /// Leaves of a holder's roster each run once that it still has.
    fn sweep(&mut self, code: u32) {
        let at = slot(self.shared.layout, code);
        let mut runs = std::mem::take(&mut self.books.rosters[at].runs);
        let stamp = self.stamp();
        runs.reverse();
        runs.retain(|run| self.is_new(*run, stamp) && self.stop_of(*run, code).is_some());
        runs.reverse();
        let sweep_at = (runs.len() * 2).max(SWEPT_MIN);
        self.books.rosters[at] = Roster { runs, sweep_at };
    }

    /// All runs of a holder, those that it used last first.
    pub(super) fn runs_of(&mut self, code: u32) -> Vec<u32> {
        self.sweep(code);
        let ends = self.books.rosters[slot(self.shared.layout, code)].runs.clone();
        let stamp = self.stamp();
        let mut all = Vec::with_capacity(ends.len());
        for mut run in ends.into_iter().rev() {
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
    /// Cost: some 10 ns a run if it is near the end of one that was used of late; else all that the holder has is read.
    pub(super) fn search(&mut self, code: u32, key: u64) -> Option<Spot> {
        let roster = &self.books.rosters[slot(self.shared.layout, code)].runs;
        let near = roster.iter().rev().filter(|run| self.kin(**run).lives()).find_map(|run| {
            let spot = self.search_run(*run, PAGES_NEAR, |name| name == key)?;
            self.has(code, *run, spot.depth).then_some(spot)
        });
        near.or_else(|| {
            let all = self.runs_of(code);
            all.into_iter().find_map(|run| {
                let spot = self.search_run(run, usize::MAX, |name| name == key)?;
                self.has(code, run, spot.depth).then_some(spot)
            })
        })
    }

    fn has(&self, code: u32, run: u32, depth: u32) -> bool {
        self.stop_of(run, code).is_some_and(|stop| stop > depth)
    }

    /// The last block of a run whose name is one of some, in its last pages.
    fn search_run(&self, run: u32, pages: usize, is: impl Fn(u64) -> bool) -> Option<Spot> {
        self.pages(run).take(pages).find_map(|(number, page, Span { start, end })| {
            let depth = (start..end).rev().find(|depth| page.name(*depth).is_some_and(&is))?;
            Some(Spot { page: number, depth })
        })
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
