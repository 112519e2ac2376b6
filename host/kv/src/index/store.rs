//! What a batch stores: who had a part of it already is found by a few probes, the rest is put block by block.

use super::runs::{NONE, Span, State, Words, covering, pack};
use super::writer::Writer;

/// Keys whose lines are read before the first of them is put. Chosen: several times the misses that a core has under
/// way, and a tenth of its cache.
pub(super) const TOUCHED: usize = 32;

impl Writer<'_> {
    /// A holder has blocks, each the child of the one before, the first the child of `parent`.
    pub(super) fn store(&mut self, code: u32, parent: Option<u64>, keys: &[u64]) {
        let Some((run, depth)) = self.anchor(code, parent) else {
            self.books.stats.orphans += keys.len() as u64;
            return;
        };
        let there = self.shared.deepest(depth, keys.len(), |at| keys[at]);
        let Some(place) = there else {
            return self.append(code, (run, depth), keys);
        };
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

    /// The run that a holder's parent block is in, and the depth of its children.
    fn anchor(&self, code: u32, parent: Option<u64>) -> Option<(u32, u32)> {
        let Some(parent) = parent else { return Some((NONE, 0)) };
        let (run, depth) = self.shared.place(parent)?;
        self.stop_of(run, code).filter(|stop| *stop > depth)?;
        Some((run, depth + 1))
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
        let words = self.run(tip);
        let start = words.span().start;
        // Before the first is put: making room sweeps places behind a run's end.
        words.set_span(Span { start, end: depth + keys.len() as u32 });
        let end = depth + self.put(tip, depth, keys);
        words.set_span(Span { start, end });
        let blocks = end - depth;
        self.books.stats.dropped += keys.len() as u64 - u64::from(blocks);
        self.books.stats.blocks += u64::from(blocks);
        self.gain(code, blocks);
        self.books.runs.touch(tip);
        if start == end {
            self.withdraw(tip, code, start);
        }
    }

    /// Puts blocks of a run into the table, from a depth on; how many there was room for.
    fn put(&mut self, run: u32, depth: u32, keys: &[u64]) -> u32 {
        // Counted before: a name that comes twice gives one place up.
        self.books.runs.of_mut(run).places += keys.len() as u32;
        let (mut at, mut numbers) = (depth, [0; TOUCHED]);
        for some in keys.chunks(TOUCHED) {
            self.shared.table.touch(some, &mut numbers);
            for (place, key) in some.iter().enumerate() {
                if self.shared.table.is_full(&self.books.table, numbers[place]) {
                    if !self.make_room(*key) {
                        self.books.runs.of_mut(run).places -= keys.len() as u32 - (at - depth);
                        return at - depth;
                    }
                    self.shared.table.touch(some, &mut numbers);
                }
                let number = numbers[place];
                let old = self.shared.table.put(&mut self.books.table, number, *key, pack(run, at));
                if let Some(old) = old {
                    self.displace(old);
                }
                at += 1;
            }
        }
        at - depth
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
        let kin = self.kin(run);
        let is_own = words.count() == 1 && words.above().1 == NONE;
        if is_own && kin.kids == 0 && kin.state == State::Open {
            return Some(run);
        }
        self.sprout(run, code, depth)
    }
}
