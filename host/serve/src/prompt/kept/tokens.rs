//! The tokens of a conversation and the names of their blocks, in chunks that its turns share.
//!
//! A turn of an agent adds a few hundred tokens to a hundred thousand; what is full is never copied again, neither to be
//! kept nor to be computed. **Invariant:** a chunk is full and never changes; only what is behind the last one is a turn's own.

use std::ops::Range;
use std::sync::Arc;

use kv::{BlockName, Fingerprint};

use super::memory::{Held, Memory};

/// Tokens of a chunk, about. Chosen: a larger one is copied more often before it is full, a smaller one is a longer list.
const CHUNK_TOKENS: usize = 4096;

/// What names depend on besides tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Naming {
    /// The model.
    pub(crate) fingerprint: Fingerprint,
    /// Keeps tenants apart.
    pub(crate) salt: u64,
    /// Tokens of a block.
    pub(crate) block_tokens: usize,
}

impl Naming {
    fn chunk_tokens(self) -> usize {
        self.block_tokens * (CHUNK_TOKENS / self.block_tokens).max(1)
    }

    fn names(self, last: Option<BlockName>, tokens: &[u32]) -> Vec<BlockName> {
        BlockName::names_after(self.fingerprint, self.salt, last, tokens, self.block_tokens)
    }
}

/// The tokens of a prompt, in order.
///
/// Cost of a clone: two counters.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// All of one size.
    chunks: Arc<[Arc<Chunk>]>,
    rest: Arc<[u32]>,
}

#[derive(Debug)]
struct Chunk {
    tokens: Box<[u32]>,
    names: Box<[BlockName]>,
    _held: Held,
}

impl Default for Tokens {
    fn default() -> Self {
        Self { chunks: Arc::new([]), rest: Arc::new([]) }
    }
}

impl From<Vec<u32>> for Tokens {
    /// Tokens that are no conversation's, and are counted nowhere.
    fn from(tokens: Vec<u32>) -> Self {
        Self { chunks: Arc::new([]), rest: tokens.into() }
    }
}

impl Tokens {
    /// The first `keep` of these tokens, and others after them.
    pub(super) fn then(&self, keep: usize, added: &[u32], naming: Naming, memory: &Memory) -> Self {
        let size = naming.chunk_tokens();
        let whole = (keep / size).min(self.chunks.len());
        let mut chunks = self.chunks[..whole].to_vec();
        let mut last = chunks.last().and_then(|chunk| chunk.names.last().copied());
        let left = keep - whole * size;
        let partly = self.chunks.get(whole).map_or(&self.rest[..], |chunk| &chunk.tokens);
        let own = [&partly[..left], added].concat();
        let full = own.chunks_exact(size);
        let rest = full.remainder().into();
        for tokens in full {
            let names: Box<[BlockName]> = naming.names(last, tokens).into();
            last = names.last().copied();
            let held = memory.hold(size_of_val(tokens) + size_of_val(&*names));
            chunks.push(Arc::new(Chunk { tokens: tokens.into(), names, _held: held }));
        }
        Self { chunks: chunks.into(), rest }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.in_chunks() + self.rest.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that are its own.
    pub(super) fn own_bytes(&self) -> usize {
        size_of_val(&*self.rest) + size_of_val(&*self.chunks)
    }

    /// One of them.
    ///
    /// Panics when there are not so many.
    pub fn at(&self, place: usize) -> u32 {
        let size = self.chunk_tokens();
        match self.chunks.get(place / size) {
            Some(chunk) => chunk.tokens[place % size],
            None => self.rest[place - self.in_chunks()],
        }
    }

    /// All of them, piece by piece.
    pub fn pieces(&self) -> impl DoubleEndedIterator<Item = &[u32]> {
        self.chunks.iter().map(|chunk| &*chunk.tokens).chain([&*self.rest])
    }

    /// Those of a range, piece by piece.
    ///
    /// Panics when the range ends behind the last one.
    pub fn range(&self, range: Range<usize>) -> impl Iterator<Item = &[u32]> {
        assert!(range.end <= self.len(), "{range:?} of {} tokens", self.len());
        let size = self.chunk_tokens();
        let first = (range.start / size).min(self.chunks.len());
        self.pieces().zip(0..).skip(first).map_while(move |(piece, index)| {
            let start = index * size;
            let end = range.end.checked_sub(start).filter(|end| *end > 0)?;
            Some(&piece[range.start.saturating_sub(start).min(piece.len())..end.min(piece.len())])
        })
    }

    /// Those from the `first`th on, in one piece.
    pub(super) fn since(&self, first: usize) -> Vec<u32> {
        self.range(first..self.len()).flatten().copied().collect()
    }

    /// The names of all full blocks.
    ///
    /// Cost: that of a copy, and 1 ns a token for those that fill no chunk.
    pub(super) fn names(&self, naming: Naming) -> Arc<[BlockName]> {
        let chunks = self.chunks.iter();
        let last = self.chunks.last().and_then(|chunk| chunk.names.last().copied());
        let rest = naming.names(last, &self.rest);
        let named = chunks.clone().map(|chunk| chunk.names.len()).sum::<usize>() + rest.len();
        let mut names: Arc<[BlockName]> = std::iter::repeat_n(BlockName(0), named).collect();
        let mut left = Arc::get_mut(&mut names).expect("nobody else has it yet");
        for piece in chunks.map(|chunk| &*chunk.names).chain([&*rest]) {
            let (here, behind) = left.split_at_mut(piece.len());
            here.copy_from_slice(piece);
            left = behind;
        }
        names
    }

    fn in_chunks(&self) -> usize {
        self.chunks.len() * self.chunk_tokens()
    }

    fn chunk_tokens(&self) -> usize {
        self.chunks.first().map_or(usize::MAX, |chunk| chunk.tokens.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However a conversation came about, its tokens and names are those of the flat list.
        #[test]
        fn chunks_are_the_flat_list(
            steps in vec((0usize..20_000, 0usize..9000), 1..6),
            block_tokens in prop_oneof![Just(16usize), Just(1), Just(7), Just(5000)],
        ) {
            let naming = Naming { fingerprint: Fingerprint(3), salt: 5, block_tokens };
            let memory = Memory::default();
            let (mut flat, mut kept) = (Vec::new(), Tokens::default());
            for (step, (keep, count)) in steps.into_iter().enumerate() {
                let keep = keep.min(flat.len());
                let added: Vec<u32> = (0..count as u32).map(|i| i * 7 + step as u32).collect();
                let next: Vec<u32> = flat[..keep].iter().chain(&added).copied().collect();
                let names = BlockName::names(naming.fingerprint, naming.salt, &next, block_tokens);
                kept = kept.then(keep, &added, naming, &memory);
                prop_assert_eq!(kept.pieces().collect::<Vec<_>>().concat(), &*next);
                prop_assert_eq!(&*kept.names(naming), &*names);
                prop_assert_eq!(kept.len(), next.len());
                prop_assert_eq!((0..next.len()).map(|place| kept.at(place)).collect::<Vec<_>>(), &*next);
                for (first, last) in [(0, next.len()), (keep / 2, keep), (keep, next.len()), (keep, keep)] {
                    prop_assert_eq!(kept.range(first..last).collect::<Vec<_>>().concat(), &next[first..last]);
                }
                flat = next;
            }
            drop(kept);
            prop_assert_eq!(memory.bytes(), 0);
        }
    }
}
