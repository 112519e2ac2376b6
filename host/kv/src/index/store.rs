//! What a batch stores: who had a part of it already is found by a few probes, the rest is named page by page.

use super::lookup::Place;
use super::runs::{NONE, Span, Words, covering};
use super::writer::Writer;

/// Keys whose lines are read before the first of them is put. Chosen: several times the misses that a core has under
/// way, and a tenth of its cache.
pub(super) const TOUCHED: usize = 32;

impl Writer<'_> {
    /// A holder has blocks, each the child of the one before, the first the child of `parent`.
    pub(super) fn store(&mut self, code: u32, parent: Option<u64>, keys: &[u64]) {
        let anchor = parent.map(|parent| self.anchor(code, parent));
        let Ok(anchor) = anchor.map_or(Ok(None), |place| place.map(Some).ok_or(())) else {
            self.books.stats.orphans += keys.len() as u64;
            return;
        };
        let (run, depth) = anchor.map_or((NONE, 0), |place| (place.run, place.depth + 1));
        // What ends a run without children is followed by nothing.
        let is_end = anchor.is_some_and(|place| depth == place.end && self.kin(run).kids == 0);
        let there = if is_end { None } else { self.shared.deepest(anchor, keys.len(), |at| keys[at]) };
        let Some(place) = there.filter(|place| place.depth >= depth) else {
            return self.append(code, (run, depth), keys);
        };
        self.books.near = [place.page, anchor.map_or(NONE, |anchor| anchor.page)];
        let known = (place.depth + 1 - depth) as usize;
        if !self.join(code, (run, depth), (place.run, place.depth)) {
            self.books.stats.orphans += keys.len() as u64;
        } else if let Some((run, _)) = covering(&self.shared.runs, place.run, place.depth) {
            self.books.runs.touch(run);
            if known < keys.len() {
                self.append(code, (run, place.depth + 1), &keys[known..]);
            }
        }
    }

    /// A block of a holder that others are to follow.
    fn anchor(&mut self, code: u32, key: u64) -> Option<Place> {
        let Some(place) = self.shared.place(key) else { return self.search(code, key) };
        self.stop_of(place.run, code).filter(|stop| *stop > place.depth)?;
        Some(place)
    }

    /// Makes a holder a member of the runs from its parent block's to that of its last block that is known.
    ///
    /// False: the blocks that are known do not follow the parent.
    fn join(&mut self, code: u32, (anchor, depth): (u32, u32), last: (u32, u32)) -> bool {
        let mut path = std::mem::take(&mut self.books.path);
        path.clear();
        let mut at = last.0;
        let follows = loop {
            path.push(at);
            let words = self.run(at);
            let start = words.span().start;
            if start > depth {
                at = words.above().0;
                continue;
            }
            break if start < depth { at == anchor } else { words.above().0 == anchor };
        };
        let mut admitted = follows;
        while let (true, Some(run)) = (admitted, path.pop()) {
            admitted = self.admit(run, code, last.1 + 1);
        }
        self.books.path = path;
        admitted
    }

    /// Puts blocks that nobody has at the end of what the holder has.
    fn append(&mut self, code: u32, (run, depth): (u32, u32), keys: &[u64]) {
        let Some(tip) = self.tip(code, run, depth) else {
            self.books.stats.dropped += keys.len() as u64;
            return;
        };
        let blocks = self.write(tip, depth, keys);
        let words = self.run(tip);
        let Span { start, .. } = words.span();
        let end = depth + blocks;
        words.set_span(Span { start, end });
        self.books.stats.dropped += keys.len() as u64 - u64::from(blocks);
        self.books.stats.blocks += u64::from(blocks);
        self.gain(code, blocks);
        self.books.runs.touch(tip);
        self.note(code, tip);
        if start == end {
            self.withdraw(tip, code, start);
        } else if blocks > 0 {
            if start < depth {
                self.unmark(tip, depth - 1);
            }
            self.mark(tip, end - 1);
        }
    }

    /// A run that ends at a depth behind `run` and that the holder may let grow.
    fn tip(&mut self, code: u32, run: u32, depth: u32) -> Option<u32> {
        if run == NONE {
            return self.sprout(NONE, code, depth);
        }
        let words = self.run(run);
        if depth < words.span().end {
            let upper = self.divide(run, depth)?;
            return self.sprout(upper, code, depth);
        }
        let is_own = words.count() == 1 && words.above().1 == NONE;
        if is_own && self.kin(run).kids == 0 {
            return Some(run);
        }
        self.sprout(run, code, depth)
    }
}
