//! How much is kept, to the byte that is told of it.
//!
//! **Invariant:** what is held is counted from when it is made until it is dropped, whoever drops it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes in use.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Arc<AtomicUsize>);

/// Some of them.
#[derive(Debug)]
pub(super) struct Held {
    bytes: usize,
    of: Memory,
}

impl Memory {
    /// Notes that so many bytes are in use, until the answer is dropped.
    pub(super) fn hold(&self, bytes: usize) -> Held {
        self.0.fetch_add(bytes, Relaxed);
        Held { bytes, of: self.clone() }
    }

    /// Bytes in use.
    pub(super) fn bytes(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Relaxed);
    }
}
