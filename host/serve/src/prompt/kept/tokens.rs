//! The tokens of a conversation and the names of their blocks, in chunks that its turns share.
//!
//! A turn of an agent adds a few hundred tokens to a hundred thousand; what is full is never copied again to be kept.
//! **Invariant:** a chunk is full and never changes; only the last tokens, less than a chunk, are a turn's own.

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

/// Tokens in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens {
    chunks: Vec<Arc<Chunk>>,
    rest: Vec<u32>,
}

#[derive(Debug)]
struct Chunk {
    tokens: Box<[u32]>,
    names: Box<[BlockName]>,
    _held: Held,
}

impl Tokens {
    /// The first `keep` of these tokens, and others after them.
    pub(super) fn then(&self, keep: usize, added: &[u32], naming: Naming, memory: &Memory) -> Self {
        let size = naming.chunk_tokens();
        let whole = (keep / size).min(self.chunks.len());
        let mut next = Self { chunks: self.chunks[..whole].to_vec(), rest: Vec::new() };
        let left = keep - whole * size;
        let partly = self.chunks.get(whole).map_or(&self.rest[..], |chunk| &chunk.tokens);
        next.rest.reserve_exact(left + added.len());
        next.rest.extend_from_slice(&partly[..left]);
        next.rest.extend_from_slice(added);
        while next.rest.len() >= size {
            let rest = next.rest.split_off(size);
            let tokens: Box<[u32]> = std::mem::replace(&mut next.rest, rest).into();
            let names: Box<[BlockName]> = naming.names(next.last_name(), &tokens).into();
            let held = memory.hold(size_of_val(&*tokens) + size_of_val(&*names));
            next.chunks.push(Arc::new(Chunk { tokens, names, _held: held }));
        }
        next.rest.shrink_to_fit();
        next
    }

    fn last_name(&self) -> Option<BlockName> {
        self.chunks.last().and_then(|chunk| chunk.names.last().copied())
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.tokens.len()).sum::<usize>() + self.rest.len()
    }

    /// Bytes that are its own.
    pub(super) fn own_bytes(&self) -> usize {
        size_of_val(&*self.rest) + size_of_val(&*self.chunks)
    }

    /// The tokens from the `first`th on.
    pub(super) fn from(&self, first: usize, naming: Naming) -> Vec<u32> {
        let size = naming.chunk_tokens();
        let whole = (first / size).min(self.chunks.len());
        let later = self.chunks[whole..].iter().flat_map(|chunk| &*chunk.tokens).chain(&self.rest);
        later.skip(first - whole * size).copied().collect()
    }

    /// All of them in one piece, with the names of all full blocks.
    ///
    /// Cost: that of a copy.
    pub(super) fn joined(&self, naming: Naming) -> (Arc<[u32]>, Arc<[BlockName]>) {
        let mut tokens: Arc<[u32]> = std::iter::repeat_n(0, self.len()).collect();
        let mut names = Vec::with_capacity(tokens.len() / naming.block_tokens);
        let mut at = 0;
        let out = Arc::get_mut(&mut tokens).expect("nobody else has it yet");
        for chunk in &self.chunks {
            out[at..at + chunk.tokens.len()].copy_from_slice(&chunk.tokens);
            names.extend_from_slice(&chunk.names);
            at += chunk.tokens.len();
        }
        out[at..].copy_from_slice(&self.rest);
        let rest = naming.names(names.last().copied(), &self.rest);
        names.extend(rest);
        (tokens, names.into())
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
                let (tokens, found) = kept.joined(naming);
                prop_assert_eq!(&*tokens, &*next);
                prop_assert_eq!(&*found, &*names);
                flat = next;
                prop_assert_eq!(kept.len(), flat.len());
            }
            drop(kept);
            prop_assert_eq!(memory.bytes(), 0);
        }
    }
}
