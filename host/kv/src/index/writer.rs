//! The writer: what one batch changes, one batch at a time.
//!
//! **Invariant:** a holder that is a member of a run has all of the runs before it. Members are admitted from the
//! first run on and withdrawn from the last, so this holds wherever room runs out.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::IndexStats;
use super::holder::{Holder, SetLayout};
use super::pages::{Page, PageBooks};
use super::remove::Piece;
use super::roster::Roster;
use super::runs::{ALL, INLINE, Kin, Member, NONE, Run, RunBooks, Span, Words};
use super::shared::Shared;
use super::table::TableBooks;

/// What the writer alone knows.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) table: TableBooks,
    pub(super) runs: RunBooks,
    pub(super) pages: PageBooks,
    sets_free: Vec<u32>,
    sets_len: usize,
    /// Blocks of each holder, tier by tier.
    held: Vec<u64>,
    /// Runs of each holder, tier by tier.
    pub(super) rosters: Vec<Roster>,
    /// Pages of an event: where the table's entries change.
    pub(super) near: [u32; 2],
    /// Counts how often runs were enumerated.
    pub(super) stamp: u64,
    pub(super) stats: IndexStats,
    pub(super) keys: Vec<u64>,
    pub(super) pieces: Vec<Piece>,
    pub(super) lost: Vec<u64>,
    pub(super) path: Vec<u32>,
}

impl Books {
    pub(super) fn new(table: TableBooks, runs_max: usize, layout: SetLayout) -> Self {
        let holders = layout.words_used() * 64;
        Self {
            table,
            runs: RunBooks::new(runs_max),
            pages: PageBooks::default(),
            sets_free: Vec::new(),
            sets_len: 0,
            held: vec![0; holders],
            rosters: vec![Roster::default(); holders],
            near: [NONE; 2],
            stamp: 0,
            stats: IndexStats::default(),
            keys: Vec::new(),
            pieces: Vec::new(),
            lost: Vec::new(),
            path: Vec::new(),
        }
    }

    /// Blocks that a holder has.
    pub(super) fn held(&self, layout: SetLayout, holder: Holder) -> u64 {
        self.held[slot(layout, holder.code())]
    }
}

/// Place of a holder in an array of all.
pub(super) fn slot(layout: SetLayout, code: u32) -> usize {
    let (word, bit) = layout.bit(code);
    word * 64 + bit.trailing_zeros() as usize
}

/// Changes the index while the version says so.
pub(super) struct Writer<'a> {
    pub(super) shared: &'a Shared,
    pub(super) books: &'a mut Books,
}

impl<'a> Writer<'a> {
    pub(super) fn run(&self, run: u32) -> &'a Run {
        self.shared.runs.get(run).expect("a run that was taken has its chunk")
    }

    pub(super) fn page(&self, page: u32) -> &'a Page {
        self.shared.pages.get(page).expect("a page that was taken has its chunk")
    }

    fn set(&self, set: u32) -> &'a [AtomicU64] {
        self.shared.set(set).expect("a set that was taken has its chunk")
    }

    /// Notes that a holder has more blocks.
    pub(super) fn gain(&mut self, code: u32, blocks: u32) {
        self.books.held[slot(self.shared.layout, code)] += u64::from(blocks);
        self.books.stats.memberships += u64::from(blocks);
    }

    fn lose(&mut self, code: u32, blocks: u32) {
        self.books.held[slot(self.shared.layout, code)] -= u64::from(blocks);
        self.books.stats.memberships -= u64::from(blocks);
    }

    /// Where a member of a run stops. Cost: the run's line, and one word of its set.
    pub(super) fn stop_of(&self, run: u32, code: u32) -> Option<u32> {
        let words = self.run(run);
        let end = words.span().end;
        match words.above().1 {
            NONE => members(words).find(|(_, member)| member.code == code).map(|(_, m)| m.stop.min(end)),
            set => {
                let (word, bit) = self.shared.layout.bit(code);
                (self.set(set)[word].load(Relaxed) & bit != 0).then_some(end)
            }
        }
    }

    /// Makes a holder a member of a run up to a depth. False: there is no room; it may have less, without a gap.
    pub(super) fn admit(&mut self, run: u32, code: u32, stop: u32) -> bool {
        // Each round but the last divides the run, at one of its members' stops.
        loop {
            let words = self.run(run);
            let span = words.span();
            let is_all = stop >= span.end;
            if words.above().1 != NONE {
                return match self.stop_of(run, code) {
                    Some(_) => true,
                    None if is_all => self.admit_to_set(run, code),
                    None => self.divide(run, stop).is_some_and(|upper| self.admit_to_set(upper, code)),
                };
            }
            let place = members(words).find(|(_, member)| member.code == code);
            let count = words.count();
            if place.is_some() || count < INLINE {
                let (at, had) = place.map_or((count, span.start), |(at, m)| (at, m.stop.min(span.end)));
                if stop.min(span.end) > had {
                    words.set_member(at, Member { code, stop: if is_all { ALL } else { stop } });
                    words.set_count(count.max(at + 1));
                    self.gain(code, stop.min(span.end) - had);
                    self.note(code, run);
                    if had > span.start {
                        self.unmark(run, had - 1);
                    }
                    if !is_all {
                        self.mark(run, stop - 1);
                    }
                }
                return true;
            }
            let lowest = members(words).map(|(_, member)| member.stop).min().map_or(stop, |m| m.min(stop));
            if lowest >= span.end {
                return self.spill(run) && self.admit_to_set(run, code);
            }
            let Some(upper) = self.divide(run, lowest) else { return false };
            if !self.spill(upper) || !self.admit_to_set(upper, code) {
                return false;
            }
            if stop <= lowest {
                return true;
            }
        }
    }

    /// Adds a holder to a set that it is not in.
    fn admit_to_set(&mut self, run: u32, code: u32) -> bool {
        let words = self.run(run);
        let Span { start, end } = words.span();
        let (word, bit) = self.shared.layout.bit(code);
        let word = &self.set(words.above().1)[word];
        word.store(word.load(Relaxed) | bit, Relaxed);
        words.set_count(words.count() + 1);
        self.gain(code, end - start);
        self.note(code, run);
        true
    }

    /// Moves members that all have all of a run into a set.
    fn spill(&mut self, run: u32) -> bool {
        let Some(set) = self.take_set() else { return false };
        let words = self.run(run);
        for (_, member) in members(words) {
            let (word, bit) = self.shared.layout.bit(member.code);
            let word = &self.set(set)[word];
            word.store(word.load(Relaxed) | bit, Relaxed);
        }
        words.set_above(words.above().0, set);
        true
    }

    /// Takes from a member of a run what is at a depth and behind it.
    pub(super) fn withdraw(&mut self, run: u32, code: u32, from: u32) {
        let words = self.run(run);
        let Span { start, end } = words.span();
        if words.above().1 != NONE {
            if from > start {
                // The run is its second part then. Without room to divide it, the holder leaves all of it.
                let _upper = self.divide(run, from);
            }
            self.withdraw_from_set(run, code);
        } else if let Some((at, member)) = members(words).find(|(_, member)| member.code == code) {
            let stop = member.stop.min(end);
            let to = from.max(start);
            if from <= start {
                let last = words.count() - 1;
                words.set_member(at, words.member(last));
                words.set_count(last);
            } else if from < stop {
                words.set_member(at, Member { code, stop: from });
            }
            self.lose(code, stop.saturating_sub(to));
            if start < stop && stop < end {
                self.unmark(run, stop - 1);
            }
        }
        self.settle(run);
        self.leave_off(run, code, from);
    }

    /// Notes where a holder's chain ends that was withdrawn from a run.
    fn leave_off(&mut self, run: u32, code: u32, from: u32) {
        let words = self.run(run);
        let (parent, set) = words.above();
        if self.stop_of(run, code).is_none() {
            if parent != NONE {
                self.note(code, parent);
            }
        } else if set == NONE && members(words).any(|(_, member)| member.stop == from) {
            self.mark(run, from - 1);
        }
    }

    fn withdraw_from_set(&mut self, run: u32, code: u32) {
        let words = self.run(run);
        let Span { start, end } = words.span();
        let (parent, set) = words.above();
        let bits = self.set(set);
        let (word, bit) = self.shared.layout.bit(code);
        if bits[word].load(Relaxed) & bit == 0 {
            return;
        }
        bits[word].store(bits[word].load(Relaxed) & !bit, Relaxed);
        words.set_count(words.count() - 1);
        self.lose(code, end - start);
        // Half full, so that one holder that comes and goes does not move the others each time.
        if words.count() <= INLINE / 2 {
            let codes = self.codes(run);
            for (at, code) in codes.into_iter().enumerate() {
                words.set_member(at, Member { code, stop: ALL });
            }
            words.set_above(parent, NONE);
            self.give_set(set);
        }
    }

    /// Codes of all members.
    pub(super) fn codes(&self, run: u32) -> Vec<u32> {
        let words = self.run(run);
        match words.above().1 {
            NONE => members(words).map(|(_, member)| member.code).collect(),
            set => {
                let layout = self.shared.layout;
                let words = self.set(set).iter().enumerate();
                words
                    .flat_map(|(at, word)| bits(word.load(Relaxed)).map(move |bit| layout.code(at, bit)))
                    .collect()
            }
        }
    }

    /// Lets a run end where its last member stops, if nothing goes on behind it.
    pub(super) fn settle(&mut self, run: u32) {
        let words = self.run(run);
        let span = words.span();
        if self.books.runs.of(run).kids > 0 {
            return;
        }
        if words.count() == 0 {
            return self.end(run);
        }
        if words.above().1 != NONE {
            return;
        }
        let end = members(words).map(|(_, member)| member.stop).max().unwrap_or(ALL);
        if end >= span.end {
            return;
        }
        words.set_span(Span { end, ..span });
        self.trim(run, span.end);
        for (at, member) in members(words).filter(|(_, member)| member.stop == end) {
            words.set_member(at, Member { stop: ALL, ..member });
        }
        self.mark(run, end - 1);
        self.books.stats.blocks -= u64::from(span.end - end);
    }

    /// Ends the life of a run without members and children.
    fn end(&mut self, run: u32) {
        let words = self.run(run);
        let Span { start, end } = words.span();
        let (parent, set) = words.above();
        if set != NONE {
            self.give_set(set);
        }
        words.set_above(parent, NONE);
        words.set_span(Span { start, end: start });
        self.trim(run, end);
        self.books.stats.blocks -= u64::from(end - start);
        self.books.runs.leave(parent, run);
        self.books.runs.bury(run);
        self.books.runs.release(&self.shared.runs, run, 0);
    }

    /// Makes a new run of a run's blocks before a depth within it. `None`: there is no room.
    pub(super) fn divide(&mut self, run: u32, at: u32) -> Option<u32> {
        let words = self.run(run);
        let Span { start, end } = words.span();
        let (parent, set) = words.above();
        let upper_set = if set == NONE { NONE } else { self.take_set()? };
        let upper = self.books.runs.take(&self.shared.runs);
        let Some(upper) = upper.filter(|upper| self.divide_pages(run, *upper, at)) else {
            if let Some(upper) = upper {
                self.run(upper).set_above(NONE, NONE);
                self.books.runs.bury(upper);
                self.books.runs.release(&self.shared.runs, upper, 0);
            }
            if upper_set != NONE {
                self.give_set(upper_set);
            }
            return None;
        };
        let first = self.run(upper);
        first.set_span(Span { start, end: at });
        first.set_above(parent, upper_set);
        words.set_span(Span { start: at, end });
        words.set_above(upper, set);
        if set == NONE {
            for code in share(words, first, at) {
                self.note(code, upper);
            }
        } else {
            for (to, from) in self.set(upper_set).iter().zip(self.set(set)) {
                to.store(from.load(Relaxed), Relaxed);
            }
            first.set_count(words.count());
        }
        let books = &mut self.books.runs;
        books.leave(parent, run);
        books.adopt(parent, upper);
        if parent != NONE {
            books.of_mut(parent).heirs -= 1;
        }
        books.adopt(upper, run);
        self.mark(upper, at - 1);
        Some(upper)
    }

    /// A new run without blocks, of one holder.
    pub(super) fn sprout(&mut self, parent: u32, code: u32, depth: u32) -> Option<u32> {
        let run = self.books.runs.take(&self.shared.runs)?;
        let words = self.run(run);
        words.set_span(Span { start: depth, end: depth });
        words.set_above(parent, NONE);
        words.set_member(0, Member { code, stop: ALL });
        words.set_count(1);
        self.books.runs.adopt(parent, run);
        Some(run)
    }

    /// The children of a run.
    pub(super) fn kids(&self, run: u32) -> impl Iterator<Item = u32> {
        let some = |run: u32| (run != NONE).then_some(run);
        let first = some(self.books.runs.of(run).first_kid);
        std::iter::successors(first, move |kid| some(self.books.runs.of(*kid).next))
    }

    fn take_set(&mut self) -> Option<u32> {
        let words = self.shared.layout.words;
        let set = match self.books.sets_free.pop() {
            Some(set) => set,
            None if (self.books.sets_len + 1) * words <= self.shared.sets.len_max() => {
                self.shared.sets.grow(self.books.sets_len * words);
                self.books.sets_len += 1;
                (self.books.sets_len - 1) as u32
            }
            None => return None,
        };
        for word in self.set(set) {
            word.store(0, Relaxed);
        }
        Some(set)
    }

    fn give_set(&mut self, set: u32) {
        self.books.sets_free.push(set);
    }

    pub(super) fn kin(&self, run: u32) -> &Kin {
        self.books.runs.of(run)
    }
}

/// Members that lie in the run, with their places.
pub(super) fn members(words: &Run) -> impl Iterator<Item = (usize, Member)> {
    (0..words.count().min(INLINE)).map(|at| (at, words.member(at)))
}

/// Places of the bits of a word.
pub(super) fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros());
        word &= word.wrapping_sub(1);
        bit
    })
}

/// Divides members between a run and the new run before it, which meet at a depth; who is in the new one only.
fn share(words: &Run, first: &Run, at: u32) -> Vec<u32> {
    let all: Vec<Member> = members(words).map(|(_, member)| member).collect();
    for (place, member) in all.iter().enumerate() {
        first
            .set_member(place, Member { stop: if member.stop >= at { ALL } else { member.stop }, ..*member });
    }
    first.set_count(all.len());
    let rest = all.iter().filter(|member| member.stop > at);
    words.set_count(rest.clone().count());
    for (place, member) in rest.enumerate() {
        words.set_member(place, *member);
    }
    all.iter().filter(|member| member.stop <= at).map(|member| member.code).collect()
}
