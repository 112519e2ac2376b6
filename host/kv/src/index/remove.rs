//! What a batch removes, what becomes of a holder that left, and what is given up when there are too many blocks.

use std::cmp::Reverse;

use super::runs::{NONE, Span, State, Words, covering, pack, unpack};
use super::store::TOUCHED;
use super::writer::{Gone, Writer, members};

/// Leaves of which the one with the fewest holders is pruned. Chosen: age decides first.
const LEAVES: usize = 8;
/// Fewest blocks that are pruned at once, if the run has them. Chosen: a batch of a prompt prunes a few times.
const PRUNED_MIN: u32 = 256;

impl Writer<'_> {
    /// A holder has these blocks no more, nor any that follow them.
    pub(super) fn remove(&mut self, code: u32, keys: &[u64]) {
        let mut gone = std::mem::take(&mut self.books.gone);
        gone.clear();
        gone.reserve(keys.len());
        let mut numbers = [0; TOUCHED];
        for some in keys.chunks(TOUCHED) {
            self.shared.table.touch(some, &mut numbers);
            for (&key, &number) in some.iter().zip(&numbers) {
                if let Some(place) = self.shared.table.find(number, key) {
                    let (run, depth) = unpack(place);
                    gone.push(Gone { run, depth, key, number });
                }
            }
        }
        self.books.stats.unknown += (keys.len() - gone.len()) as u64;
        for stretch in gone.chunk_by_mut(|a, b| a.run == b.run) {
            // Pools evict the last block first; others may say it in any order.
            if !stretch.is_sorted_by(|a, b| a.depth > b.depth) {
                stretch.sort_unstable_by_key(|gone| Reverse(gone.depth));
            }
            self.remove_stretch(code, stretch);
        }
        self.books.gone = gone;
    }

    /// Removes blocks whose places name one run, the deepest first.
    fn remove_stretch(&mut self, code: u32, mut stretch: &[Gone]) {
        while let Some(&first) = stretch.first() {
            let is_there =
                self.shared.table.find(first.number, first.key) == Some(pack(first.run, first.depth));
            match covering(&self.shared.runs, first.run, first.depth).filter(|_| is_there) {
                Some((run, words)) => {
                    let start = words.span().start;
                    let (now, later) = stretch.split_at(stretch.partition_point(|gone| gone.depth >= start));
                    self.remove_piece(code, run, now);
                    stretch = later;
                }
                None => {
                    self.books.stats.unknown += 1;
                    if is_there && self.erase(&first) {
                        self.books.stale -= 1;
                        self.books.runs.release(&self.shared.runs, first.run, 1);
                    }
                    stretch = &stretch[1..];
                }
            }
        }
    }

    /// Removes blocks of one run, the deepest first.
    fn remove_piece(&mut self, code: u32, run: u32, piece: &[Gone]) {
        let stop = self.stop_of(run, code).unwrap_or(0);
        let (unknown, piece) = piece.split_at(piece.partition_point(|gone| gone.depth >= stop));
        self.books.stats.unknown += unknown.len() as u64;
        let (Some(first), Some(last)) = (piece.first(), piece.last()) else { return };
        let words = self.run(run);
        let (end, state, blocks) = (words.span().end, self.kin(run).state, self.books.stats.blocks);
        self.cut(run, code, last.depth);
        let end_now = words.span().end;
        let mut erased = 0;
        for gone in piece.iter().filter(|gone| gone.depth >= end_now) {
            erased += u32::from(self.erase(gone));
        }
        let lost = blocks - self.books.stats.blocks;
        self.books.stale += (lost as usize).saturating_sub(erased as usize);
        // Nothing is left behind its end, so the run may grow again.
        if self.kin(run).state == State::Sealed && state == State::Open && end - end_now == erased {
            self.books.runs.of_mut(run).state = State::Open;
        }
        self.books.runs.release(&self.shared.runs, first.run, erased);
    }

    /// Takes a block's place out of the table, if it is there.
    #[inline]
    fn erase(&mut self, gone: &Gone) -> bool {
        self.shared.table.erase(&mut self.books.table, gone.number, gone.key)
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

    /// Takes all from a holder. Cost: looks at every run.
    pub(super) fn forget(&mut self, code: u32) {
        let blocks = self.books.stats.blocks;
        let runs = (0..self.books.runs.kin.len() as u32).filter(|run| self.kin(*run).lives());
        let mut had: Vec<u32> = runs.filter(|run| self.stop_of(*run, code).is_some()).collect();
        had.sort_unstable_by_key(|run| Reverse(self.run(*run).span().start));
        for run in had {
            self.withdraw(run, code, 0);
        }
        self.books.stale += (blocks - self.books.stats.blocks) as usize;
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
        self.books.stale += lost as usize;
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
