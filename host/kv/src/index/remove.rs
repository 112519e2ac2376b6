//! What a batch removes, what becomes of a holder that left, and what is given up when there are too many blocks.

use std::cmp::Reverse;

use super::lookup::Place;
use super::runs::{NONE, Span, Words};
use super::writer::{Writer, members};

/// Leaves of which the one with the fewest holders is pruned. Chosen: age decides first.
const LEAVES: usize = 8;
/// Fewest blocks that are pruned at once, if the run has them. Chosen: a batch of a prompt prunes a few times.
const PRUNED_MIN: u32 = 256;

/// Blocks of one run that follow each other, and that a batch removes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// The page of its first block.
    page: u32,
    /// Depth and name of its first block.
    first: u32,
    key: u64,
    /// The page of its last block, and the depth behind it.
    last: u32,
    end: u32,
}

impl Writer<'_> {
    /// A holder has these blocks no more, nor any that follow them.
    ///
    /// Cost: some 6 ns a block from the end of a chain on. Blocks that the holder has not, or that lie within a chain,
    /// make it read all names that the holder has, once.
    pub(super) fn remove(&mut self, code: u32, keys: &mut [u64]) {
        if self.goes_deeper(keys) {
            keys.reverse();
        }
        let mut pieces = std::mem::take(&mut self.books.pieces);
        let mut lost = std::mem::take(&mut self.books.lost);
        pieces.clear();
        lost.clear();
        let mut at = 0;
        while at < keys.len() {
            match self.shared.place(keys[at]) {
                Some(place) => {
                    at += self.gather(place, &keys[at..], &mut pieces);
                }
                None => {
                    lost.push(keys[at]);
                    at += 1;
                }
            }
        }
        if !lost.is_empty() {
            self.find_lost(code, &mut lost, &mut pieces);
        }
        // Pools evict the last block first; others may say it in any order.
        if !pieces.is_sorted_by(|a, b| a.first > b.first) {
            pieces.sort_unstable_by_key(|piece| Reverse(piece.first));
        }
        for piece in &pieces {
            self.remove_piece(code, piece);
        }
        (self.books.pieces, self.books.lost) = (pieces, lost);
    }

    /// Whether keys go away from the first block of their chain; chains are followed towards it.
    fn goes_deeper(&self, keys: &[u64]) -> bool {
        let [first, second, .., last] = keys else { return false };
        match self.shared.place(*first) {
            Some(place) => self.page(place.page).name(place.depth + 1) == Some(*second),
            None => self.shared.place(*last).is_some(),
        }
    }

    /// Collects blocks from one on towards the first block of its chain, as far as they are the next keys; how many.
    fn gather(&self, place: Place, keys: &[u64], pieces: &mut Vec<Piece>) -> usize {
        let Place { mut run, mut depth, page: mut number, .. } = place;
        let mut at = 0;
        let mut piece = Piece { page: number, first: depth, key: keys[0], last: number, end: depth + 1 };
        loop {
            let page = self.page(number);
            let page_first = page.first();
            while at < keys.len() && depth >= page_first && page.name(depth) == Some(keys[at]) {
                piece = Piece { page: number, first: depth, key: keys[at], ..piece };
                at += 1;
                if depth == 0 {
                    break;
                }
                depth -= 1;
            }
            let is_cut = at == keys.len() || piece.first != page_first || page_first == 0;
            number = page.before();
            if is_cut {
                break;
            }
            if number == NONE {
                // In the run before, if there is one.
                run = self.run(run).above().0;
                number = self.kin(run).tail;
                if self.page(number).name(depth) != Some(keys[at]) {
                    break;
                }
                pieces.push(piece);
                (piece.last, piece.end) = (number, depth + 1);
            } else if self.page(number).name(depth) != Some(keys[at]) {
                break;
            }
        }
        pieces.push(piece);
        at
    }

    /// Finds blocks that the table does not have: beside others that leave, or anywhere.
    fn find_lost(&mut self, code: u32, lost: &mut Vec<u64>, pieces: &mut Vec<Piece>) {
        lost.sort_unstable();
        let mut filter = [0u64; 64];
        let bit = |key: u64| ((key >> 6) as usize % 64, 1 << (key % 64));
        lost.iter().for_each(|key| filter[bit(*key).0] |= bit(*key).1);
        for run in self.runs_of(code) {
            let mut found = Vec::new();
            for (number, page, blocks) in self.pages(run) {
                for (depth, key) in page.names(blocks.end) {
                    if filter[bit(key).0] & bit(key).1 != 0 && lost.binary_search(&key).is_ok() {
                        found.push(key);
                        pieces.push(Piece { page: number, first: depth, key, last: number, end: depth + 1 });
                    }
                }
            }
            if !found.is_empty() {
                found.sort_unstable();
                lost.retain(|key| found.binary_search(key).is_err());
                if lost.is_empty() {
                    return;
                }
            }
        }
        self.books.stats.unknown += lost.len() as u64;
    }

    /// Removes blocks of one run, if they are there still.
    fn remove_piece(&mut self, code: u32, piece: &Piece) {
        let Piece { page, first, key, last, end } = *piece;
        let run = self.shared.verify((page, first), key).map(|(run, _)| run);
        let stop = run.and_then(|run| self.stop_of(run, code)).unwrap_or(0);
        self.books.stats.unknown += u64::from(end.saturating_sub(stop.max(first)));
        if let Some(run) = run.filter(|_| stop > first) {
            self.books.near = [page, last];
            self.cut(run, code, first);
        }
    }

    /// Takes from a holder what it has of a run from a depth on, and what follows.
    fn cut(&mut self, run: u32, code: u32, from: u32) {
        if self.kin(run).kids > 0 {
            let mut below: Vec<u32> =
                self.kids(run).filter(|kid| self.stop_of(*kid, code).is_some()).collect();
            let mut at = 0;
            while at < below.len() {
                let more: Vec<u32> =
                    self.kids(below[at]).filter(|kid| self.stop_of(*kid, code).is_some()).collect();
                below.extend(more);
                at += 1;
            }
            for run in below.into_iter().rev() {
                self.withdraw(run, code, 0);
            }
        }
        self.withdraw(run, code, from);
    }

    /// Takes all from a holder. Cost: looks at all its runs.
    pub(super) fn forget(&mut self, code: u32) {
        let mut had = self.runs_of(code);
        had.sort_unstable_by_key(|run| Reverse(self.run(*run).span().start));
        for run in had {
            self.withdraw(run, code, 0);
        }
    }

    /// Gives up ends of runs that were stored to longest ago until there are at most so many blocks.
    pub(super) fn prune(&mut self, blocks_max: u64) {
        let before = self.books.stats.blocks;
        while self.books.stats.blocks > blocks_max {
            let Some(run) = self.least() else { break };
            let much = u32::try_from(self.books.stats.blocks - blocks_max).unwrap_or(u32::MAX);
            self.truncate(run, much.max(PRUNED_MIN));
        }
        let lost = before - self.books.stats.blocks;
        self.books.stats.pruned += lost;
    }

    /// Of the leaves that were stored to longest ago one with the fewest holders.
    fn least(&mut self) -> Option<u32> {
        let mut least: Option<(usize, u32)> = None;
        let (mut at, mut leaves) = (self.books.runs.oldest, 0);
        for _ in 0..self.books.runs.living {
            if at == NONE || leaves == LEAVES {
                break;
            }
            let kin = *self.kin(at);
            if kin.kids > 0 {
                // Its turn comes after its children's.
                self.books.runs.touch(at);
            } else {
                let count = self.run(at).count();
                least = Some(
                    least.map_or((count, at), |least| if count < least.0 { (count, at) } else { least }),
                );
                leaves += 1;
            }
            at = kin.newer;
        }
        least.map(|(_, run)| run)
    }

    /// Takes the last blocks of a leaf from all its holders; all of them where many share it.
    fn truncate(&mut self, run: u32, blocks: u32) {
        let words = self.run(run);
        let Span { start, end } = words.span();
        let to = if words.above().1 == NONE { end.saturating_sub(blocks).max(start) } else { start };
        for code in self.codes(run) {
            if self.kin(run).lives() && self.stop_of(run, code).is_some_and(|stop| stop > to) {
                self.withdraw(run, code, to);
            }
        }
        debug_assert!(members(words).all(|(_, member)| member.stop > to || words.span().end == to));
    }
}
