//! Lookups: the deepest block of a prompt that anybody has, then up the tree from there.
//!
//! Whoever has a block has those before it, so along a prompt it is known until some depth and unknown from there on.
//! The depth is looked for from the end, because a prompt is mostly what was there a turn ago and a little more.
//!
//! **Invariant:** writes nothing that is shared; every loop ends whatever words it reads.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::holder::{Holder, HolderTier, SetLayout};
use super::pages::{NAMES, Page, page_end};
use super::runs::{NONE, Span, Words, covering, unpack};
use super::shared::Shared;
use super::writer::{bits, members};

/// Rounds of probes of one lookup. Chosen: each but the first few halves what is open, and depths are 32 bits.
const ROUNDS_MAX: usize = 64;
/// Probes of a round, which wait for memory together.
const PROBES: usize = 4;

/// A block that somebody has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) run: u32,
    pub(super) depth: u32,
    pub(super) page: u32,
    /// Where the run ends.
    pub(super) end: u32,
}

/// Takes what a lookup finds: the deepest first, and a holder again in each run before.
pub(super) trait Sink {
    fn add(&mut self, code: u32, blocks: u32);
    fn add_set(&mut self, set: &[AtomicU64], blocks: u32);
    /// Holders that were taken; zero if they are not counted.
    fn taken(&self) -> usize;
}

/// What is known about a chain of names while its deepest known one is looked for, among those that begin pages.
struct Search {
    known: Option<Place>,
    /// Pages up to the known one.
    low: usize,
    /// A page that is not known, or the number of pages.
    high: usize,
    /// Depth of the first page's first name.
    depth: u32,
    /// Index of that name.
    first: usize,
}

impl Search {
    fn index(&self, page: usize) -> usize {
        self.first + page * NAMES
    }
}

impl Shared {
    /// A block that the table has, if somebody has it.
    pub(super) fn place(&self, key: u64) -> Option<Place> {
        self.place_in(self.table.number(key), key)
    }

    fn place_in(&self, number: u32, key: u64) -> Option<Place> {
        let (page, depth) = unpack(self.table.find(number, key)?);
        let (run, end) = self.verify((page, depth), key)?;
        Some(Place { run, depth, page, end })
    }

    /// The run of a block and where it ends, if that block is in this page and somebody has it.
    pub(super) fn verify(&self, (page, depth): (u32, u32), key: u64) -> Option<(u32, u32)> {
        let page = self.pages.get(page).filter(|page| page.name(depth) == Some(key))?;
        self.owner(page, depth)
    }

    /// The run that a page is of and where it ends, if the block at a depth is in that page.
    pub(super) fn owner(&self, page: &Page, depth: u32) -> Option<(u32, u32)> {
        let first = page.first();
        let (run, words) = covering(&self.runs, page.run(), depth)?;
        let Span { start, end } = words.span();
        // A page that was divided keeps names of blocks that are elsewhere, and one that was used before has others.
        (start <= first && depth < page_end(first)).then_some((run, end))
    }

    /// The deepest block that somebody has of a chain that follows a block, or of one from the first block on.
    ///
    /// Cost: two rounds of probes when all is known or nothing; otherwise one more for every four doublings of what
    /// lies behind the deepest, and some to close in on it; then some names of a page.
    pub(super) fn deepest(
        &self,
        from: Option<Place>,
        len: usize,
        key: impl Fn(usize) -> u64,
    ) -> Option<Place> {
        let depth = from.map_or(0, |from| from.depth + 1);
        let first = (NAMES - depth as usize % NAMES) % NAMES;
        let high = len.saturating_sub(first).div_ceil(NAMES);
        let mut search = Search { known: None, low: 0, high, depth: depth + first as u32, first };
        self.gallop(&mut search, &key);
        self.forward(search.known.or(from), (depth, len), key)
    }

    /// Finds the deepest page that is known.
    fn gallop(&self, search: &mut Search, key: &impl Fn(usize) -> u64) {
        let len = search.high;
        let Some(last) = len.checked_sub(1) else { return };
        self.probe(search, [last, last.saturating_sub(1), last.saturating_sub(3), 0], key);
        let mut back = 8;
        for _ in 0..ROUNDS_MAX {
            let Some(known) = search.known.filter(|_| search.high > search.low) else { return };
            let probes = if search.low == 1 && back < len {
                // From the end.
                [1, 2, 4, 8].map(|times| len.saturating_sub(back * times))
            } else {
                // Most prompts leave what is known at the end of a run.
                let end = known.end.saturating_sub(search.depth) as usize;
                let third = (search.high - search.low) / 3;
                [
                    (end / NAMES).saturating_sub(1),
                    end.div_ceil(NAMES),
                    search.low + third,
                    search.high - 1 - third,
                ]
            };
            back *= 16;
            let (low, high) = (search.low, search.high);
            self.probe(search, probes.map(|at| at.clamp(low, high - 1)), key);
        }
    }

    /// Asks for the first names of some pages at once.
    fn probe(&self, search: &mut Search, at: [usize; PROBES], key: &impl Fn(usize) -> u64) {
        let keys = at.map(|at| key(search.index(at)));
        let mut numbers = [0; PROBES];
        self.table.touch(&keys, &mut numbers);
        for ((at, key), number) in at.into_iter().zip(keys).zip(numbers) {
            if at >= search.high || at < search.low {
                continue;
            }
            let depth = search.depth + (at * NAMES) as u32;
            match self.place_in(number, key).filter(|place| place.depth == depth) {
                Some(place) => (search.known, search.low) = (Some(place), at + 1),
                None => search.high = at,
            }
        }
    }

    /// Goes on from a known block, name by name, to the last that is known.
    fn forward(
        &self,
        from: Option<Place>,
        (depth, len): (u32, usize),
        key: impl Fn(usize) -> u64,
    ) -> Option<Place> {
        let mut place = from?;
        let mut at = (place.depth + 1).wrapping_sub(depth) as usize;
        while at < len {
            let next = key(at);
            let name = self.pages.get(place.page).and_then(|page: &Page| page.name(place.depth + 1));
            if place.depth + 1 < place.end && name.is_some() {
                if name != Some(next) {
                    break;
                }
                place.depth += 1;
            } else {
                // In the next page of its run, or the first of one that follows it.
                match self.place(next).filter(|found| found.depth == place.depth + 1) {
                    Some(found) => place = found,
                    None => break,
                }
            }
            at += 1;
        }
        Some(place)
    }

    /// Holders of leading blocks of a chain, from the deepest run up, until they have fewer than `at_least`.
    pub(super) fn walk(&self, len: usize, key: impl Fn(usize) -> u64, at_least: u32, sink: &mut impl Sink) {
        let Some(place) = self.deepest(None, len, key) else { return };
        let (mut run, mut blocks) = (place.run, place.depth + 1);
        while blocks >= at_least.max(1) {
            let Some(words) = self.runs.get(run) else { return };
            let (parent, set) = words.above();
            // Who has a run has those before it: if they are as many, they are the same.
            if sink.taken() == 0 || words.count() != sink.taken() {
                match set {
                    NONE => members(words).for_each(|(_, m)| sink.add(m.code, m.stop.min(blocks))),
                    set => self.set(set).into_iter().for_each(|set| sink.add_set(set, blocks)),
                }
            }
            let Span { start, .. } = words.span();
            if start >= blocks {
                return;
            }
            (run, blocks) = (parent, start);
        }
    }
}

/// How much of a prompt a holder has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Overlap {
    /// Who has it.
    pub holder: Holder,
    /// How many of the leading blocks.
    pub blocks: u32,
}

/// What a lookup found; its memory serves the next one.
///
/// A prefix that many share is kept as one set, so that a lookup does not take longer the more they are.
#[derive(Clone, Debug, Default)]
pub struct Overlaps {
    found: Vec<Found>,
    /// Holders of the sets among them.
    sets: Vec<u64>,
    /// Holders that were found, as sets are laid out.
    seen: Vec<u64>,
    len: usize,
    layout: SetLayout,
}

/// Holders with equally many blocks.
#[derive(Clone, Copy, Debug)]
enum Found {
    One(Overlap),
    Set { first: usize, blocks: u32 },
}

impl Overlaps {
    /// Holders that were found.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody has anything.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Holders and what they have, each once, in no order.
    pub fn iter(&self) -> impl Iterator<Item = Overlap> {
        let layout = self.layout;
        self.found.iter().flat_map(move |found| {
            let (one, set, blocks) = match *found {
                Found::One(overlap) => (Some(overlap), &[][..], 0),
                Found::Set { first, blocks } => (None, &self.sets[first..first + layout.words], blocks),
            };
            let all = set.iter().enumerate().flat_map(move |(at, word)| {
                let codes = bits(*word).map(move |bit| layout.code(at, bit));
                codes.filter_map(Holder::of_code).map(move |holder| Overlap { holder, blocks })
            });
            one.into_iter().chain(all)
        })
    }
}

/// Fills [`Overlaps`].
pub(super) struct Sparse<'a> {
    overlaps: &'a mut Overlaps,
    at_least: u32,
}

impl<'a> Sparse<'a> {
    pub(super) fn new(overlaps: &'a mut Overlaps, layout: SetLayout, at_least: u32) -> Self {
        overlaps.found.clear();
        overlaps.sets.clear();
        overlaps.seen.clear();
        overlaps.seen.resize(layout.words, 0);
        (overlaps.len, overlaps.layout) = (0, layout);
        Self { overlaps, at_least }
    }
}

impl Sink for Sparse<'_> {
    #[inline]
    fn add(&mut self, code: u32, blocks: u32) {
        let (word, bit) = self.overlaps.layout.bit(code);
        let (Some(seen), Some(holder)) = (self.overlaps.seen.get_mut(word), Holder::of_code(code)) else {
            return;
        };
        if *seen & bit == 0 && blocks >= self.at_least {
            *seen |= bit;
            self.overlaps.len += 1;
            self.overlaps.found.push(Found::One(Overlap { holder, blocks }));
        }
    }

    #[inline]
    fn add_set(&mut self, set: &[AtomicU64], blocks: u32) {
        let Overlaps { found, sets, seen, len, .. } = &mut *self.overlaps;
        let first = sets.len();
        let mut count = 0;
        sets.extend(set.iter().zip(seen).map(|(word, seen)| {
            let new = word.load(Relaxed) & !*seen;
            *seen |= new;
            count += new.count_ones() as usize;
            new
        }));
        *len += count;
        found.push(Found::Set { first, blocks });
    }

    fn taken(&self) -> usize {
        self.overlaps.len
    }
}

/// Fills an array of workers with what they have in one tier.
pub(super) struct Dense<'a> {
    pub(super) out: &'a mut [u32],
    pub(super) layout: SetLayout,
}

impl Dense<'_> {
    fn put(&mut self, worker: usize, blocks: u32) {
        // The first is the most.
        if let Some(out) = self.out.get_mut(worker).filter(|out| **out == 0) {
            *out = blocks;
        }
    }
}

impl Sink for Dense<'_> {
    fn add(&mut self, code: u32, blocks: u32) {
        if let Some(Holder { worker, tier: HolderTier::Hbm }) = Holder::of_code(code) {
            self.put(usize::from(worker), blocks);
        }
    }

    fn add_set(&mut self, set: &[AtomicU64], blocks: u32) {
        for (at, word) in set.iter().take(self.layout.tier_words).enumerate() {
            for bit in bits(word.load(Relaxed)) {
                self.put(at * 64 + bit as usize, blocks);
            }
        }
    }

    fn taken(&self) -> usize {
        0
    }
}
