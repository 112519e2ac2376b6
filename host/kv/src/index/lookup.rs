//! Lookups: the deepest block of a prompt that anybody has, then up the tree from there.
//!
//! Whoever has a block has those before it, so along a prompt it is known until some depth and unknown from there on.
//! The depth is looked for from the end, because a prompt is mostly what was there a turn ago and a little more.
//!
//! **Invariant:** writes nothing that is shared; every loop ends whatever words it reads.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::holder::{Holder, HolderTier, SetLayout};
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
    /// Where the run ends.
    end: u32,
}

/// Takes what a lookup finds: the deepest first, and a holder again in each run before.
pub(super) trait Sink {
    fn add(&mut self, code: u32, blocks: u32);
    fn add_set(&mut self, set: &[AtomicU64], blocks: u32);
    /// Holders that were taken; zero if they are not counted.
    fn taken(&self) -> usize;
}

/// What is known about a chain of names while its deepest known one is looked for.
struct Search {
    known: Option<Place>,
    /// Index behind the known one.
    low: usize,
    /// An index that is not known, or the number of names.
    high: usize,
}

impl Shared {
    /// The run and depth of a block that somebody has.
    pub(super) fn place(&self, key: u64) -> Option<(u32, u32)> {
        let (run, depth) = unpack(self.table.find(self.table.number(key), key)?);
        covering(&self.runs, run, depth).map(|(run, _)| (run, depth))
    }

    /// The deepest block that somebody has of a chain whose first block is at depth `first`.
    ///
    /// Cost: two rounds of probes when all is known or nothing; otherwise one more for every four doublings of what
    /// lies behind the deepest, and some to close in on it.
    pub(super) fn deepest(&self, first: u32, len: usize, key: impl Fn(usize) -> u64) -> Option<Place> {
        let last = len.checked_sub(1)?;
        let mut search = Search { known: None, low: 0, high: len };
        self.probe(&mut search, first, [last, last.saturating_sub(1), last.saturating_sub(3), 0], &key);
        if search.low == 0 {
            return None;
        }
        let mut back = 8;
        for _ in 0..ROUNDS_MAX {
            if search.high - search.low == 0 {
                break;
            }
            let probes = if search.low == 1 && back < len {
                // From the end.
                [1, 2, 4, 8].map(|times| len.saturating_sub(back * times))
            } else {
                // Most prompts leave what is known at the end of a run.
                let end = search.known?.end.saturating_sub(first) as usize;
                let third = (search.high - search.low) / 3;
                [end.saturating_sub(1), end, search.low + third, search.high - 1 - third]
            };
            back *= 16;
            let (low, high) = (search.low, search.high);
            self.probe(&mut search, first, probes.map(|at| at.clamp(low, high - 1)), &key);
        }
        search.known
    }

    /// Asks for some blocks at once.
    fn probe(&self, search: &mut Search, first: u32, at: [usize; PROBES], key: &impl Fn(usize) -> u64) {
        let keys = at.map(key);
        let mut numbers = [0; PROBES];
        self.table.touch(&keys, &mut numbers);
        for ((at, key), number) in at.into_iter().zip(keys).zip(numbers) {
            if at >= search.high || at < search.low {
                continue;
            }
            match self.known((number, key), first + at as u32) {
                Some(place) => (search.known, search.low) = (Some(place), at + 1),
                None => search.high = at,
            }
        }
    }

    fn known(&self, (number, key): (u32, u64), depth: u32) -> Option<Place> {
        let (run, at) = unpack(self.table.find(number, key)?);
        let (run, words) = covering(&self.runs, run, at)?;
        (at == depth).then(|| Place { run, depth, end: words.span().end })
    }

    /// Holders of leading blocks of a chain, from the deepest run up, until they have fewer than `at_least`.
    pub(super) fn walk(&self, len: usize, key: impl Fn(usize) -> u64, at_least: u32, sink: &mut impl Sink) {
        let Some(place) = self.deepest(0, len, key) else { return };
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
