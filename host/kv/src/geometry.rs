//! What the blocks of a model look like from outside: how many bytes, how many tokens, computed by what.
//!
//! Tiers beyond memory write it beside every block and refuse blocks of another one.
//! **Invariant:** blocks are exchanged between equal geometries only.

use crate::Fingerprint;

/// The shape of all blocks of one tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Bytes of a block, in every tier.
    pub block_bytes: usize,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// What computed the blocks.
    pub fingerprint: Fingerprint,
}
