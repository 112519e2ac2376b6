//! Arrays that readers use while one writer lets them grow.
//!
//! **Invariant:** a chunk stays where it is while the slab lives, so a reader that follows a number which was
//! overwritten meanwhile reads wrong words, never freed ones; it finds out by the version.

use std::sync::OnceLock;

/// Records of one chunk. Chosen: 64 KiB of runs.
pub(super) const CHUNK: usize = 1024;

/// Records that are found by number, in chunks.
#[derive(Debug)]
pub(super) struct Slab<T> {
    chunks: Box<[OnceLock<Box<[T]>>]>,
}

impl<T: Default> Slab<T> {
    /// Room for `len_max` records; none takes memory yet but for 24 bytes a chunk.
    pub(super) fn new(len_max: usize) -> Self {
        Self { chunks: (0..len_max.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect() }
    }

    pub(super) fn len_max(&self) -> usize {
        self.chunks.len() * CHUNK
    }

    /// A record, if its chunk is there.
    pub(super) fn get(&self, at: u32) -> Option<&T> {
        self.chunks.get(at as usize / CHUNK)?.get()?.get(at as usize % CHUNK)
    }

    /// Some records of one chunk.
    pub(super) fn span(&self, at: usize, len: usize) -> Option<&[T]> {
        self.chunks.get(at / CHUNK)?.get()?.get(at % CHUNK..at % CHUNK + len)
    }

    /// Makes the chunk of a record.
    pub(super) fn grow(&self, at: usize) {
        self.chunks[at / CHUNK].get_or_init(|| (0..CHUNK).map(|_| T::default()).collect());
    }
}
