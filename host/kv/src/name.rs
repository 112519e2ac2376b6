//! Block names: what makes two blocks of KV the same block.
//!
//! A name is a hash chain, so a block's name says everything about the tokens before it: two prompts
//! share a prefix exactly as far as their names are equal. Names go to disk and to other machines.
//! **Invariant:** a name depends on nothing but its inputs; the values in the tests never change.

/// The name of a full block of KV: a hash over its parent's name, its tokens, and what computed it.
///
/// Equal names mean equal bytes, on every worker and in every tier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockName(pub u128);

/// What the KV bytes depend on besides tokens: model, dtype, rope and adapter, hashed once at load.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fingerprint(pub u64);

/// Chosen: odd, without structure, one for each use. Both halves of each have the top bit set, so no pair
/// of token ids cancels one and turns a product into zero.
const KEYS: [u64; 6] = [
    0xa458_fea3_f493_3d7f,
    0x9b87_3107_d74a_4a95,
    0xe7d5_1b46_c2f8_be71,
    0xb801_f2b8_a6ce_7f1d,
    0xc0ac_29b7_c97c_50dd,
    0xba69_84d5_b547_0917,
];

/// Stands in for the tokens that a last group of four lacks; no vocabulary reaches it.
const PAD: u32 = u32::MAX;

impl BlockName {
    /// Names of all full blocks of `tokens`, in order; a partly filled last block has no name.
    ///
    /// `salt` separates tenants: equal tokens under different salts never share a block.
    /// Cost: about 1 ns a token.
    pub fn names(fingerprint: Fingerprint, salt: u64, tokens: &[u32], block_tokens: usize) -> Vec<Self> {
        Self::names_after(fingerprint, salt, None, tokens, block_tokens)
    }

    /// Names of all full blocks of `tokens` that come after the full block `last`, or are the first ones.
    pub fn names_after(
        fingerprint: Fingerprint,
        salt: u64,
        last: Option<Self>,
        tokens: &[u32],
        block_tokens: usize,
    ) -> Vec<Self> {
        assert!(block_tokens > 0, "a block holds at least one token");
        let mut parent = last.unwrap_or_else(|| Self::root(fingerprint, salt));
        let blocks = tokens.chunks_exact(block_tokens);
        blocks
            .map(|block| {
                parent = parent.child(block);
                parent
            })
            .collect()
    }

    /// The parent of all first blocks; it names no block itself.
    fn root(fingerprint: Fingerprint, salt: u64) -> Self {
        let a = fold(fingerprint.0 ^ KEYS[0], salt ^ KEYS[1]);
        let b = fold(salt ^ KEYS[2], fingerprint.0 ^ KEYS[3]);
        // The raw inputs go in once more: a fold alone is not injective.
        finish(a ^ salt.rotate_left(32), b ^ fingerprint.0, 0)
    }

    /// The name of the block with these tokens after this one: two folded-multiply lanes.
    ///
    /// Source: the construction is wyhash's (github.com/wangyi-fudan/wyhash), twice, with crossed operands.
    fn child(self, tokens: &[u32]) -> Self {
        let (mut a, mut b) = (self.0 as u64, (self.0 >> 64) as u64);
        for group in tokens.chunks(4) {
            let at = |i: usize| u64::from(group.get(i).copied().unwrap_or(PAD));
            let (low, high) = (at(0) | at(1) << 32, at(2) | at(3) << 32);
            a = fold(low ^ KEYS[0], high ^ a);
            b = fold(high ^ KEYS[1], low ^ b);
        }
        finish(a, b, tokens.len() as u64)
    }
}

/// The 128-bit product of both, its halves combined.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Spreads each lane over the whole name.
fn finish(a: u64, b: u64, len: u64) -> BlockName {
    let low = fold(a ^ KEYS[2], b.rotate_left(23) ^ KEYS[3] ^ len);
    let high = fold(b ^ KEYS[4], a.rotate_left(41) ^ KEYS[5] ^ len);
    BlockName(u128::from(high ^ a) << 64 | u128::from(low ^ b))
}

/// Names the blocks of a growing sequence, one token at a time.
#[derive(Clone, Debug)]
pub struct NameChain {
    root: BlockName,
    last: Option<BlockName>,
    pending: Vec<u32>,
    block_tokens: usize,
}

impl NameChain {
    /// A chain before its first token; the parameters are those of [`BlockName::names`].
    pub fn new(fingerprint: Fingerprint, salt: u64, block_tokens: usize) -> Self {
        assert!(block_tokens > 0, "a block holds at least one token");
        let root = BlockName::root(fingerprint, salt);
        Self { root, last: None, pending: Vec::with_capacity(block_tokens), block_tokens }
    }

    /// A chain that goes on after the full block `last`; `None` is a chain before its first token.
    pub fn after(fingerprint: Fingerprint, salt: u64, block_tokens: usize, last: Option<BlockName>) -> Self {
        Self { last, ..Self::new(fingerprint, salt, block_tokens) }
    }

    /// Adds a token; the name of the block that it fills, if it fills one.
    pub fn push(&mut self, token: u32) -> Option<BlockName> {
        self.pending.push(token);
        assert!(self.pending.len() <= self.block_tokens, "a full block is named at once");
        if self.pending.len() < self.block_tokens {
            return None;
        }
        let name = self.last.unwrap_or(self.root).child(&self.pending);
        self.pending.clear();
        self.last = Some(name);
        self.last
    }

    /// Name of the last full block, which is the parent of the one being filled.
    pub fn parent(&self) -> Option<BlockName> {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const FP: Fingerprint = Fingerprint(7);

    #[test]
    fn names_never_change() {
        let names = BlockName::names(FP, 3, &[1, 2, 3, 4, 5, 6, 7, 8, 9], 4);
        let expected = [0xdcd4_4898_dcd7_7905_8010_9205_a12c_89b2, 0xe14f_7e7f_68b3_22ad_5f06_c2b5_05ae_0fd4];
        assert_eq!(names, expected.map(BlockName), "{names:#x?}");
    }

    #[test]
    fn a_chain_goes_on_where_another_ended() {
        let names = BlockName::names(FP, 3, &[1, 2, 3, 4, 5, 6, 7, 8], 4);
        let mut chain = NameChain::after(FP, 3, 4, Some(names[0]));
        let last = [5, 6, 7, 8].into_iter().filter_map(|token| chain.push(token)).last();
        assert_eq!(last, Some(names[1]));
    }

    #[test]
    fn a_flipped_bit_changes_about_half_of_the_name() {
        let tokens: Vec<u32> = (0..16).map(|i| i * 977 % 50_000).collect();
        let base = BlockName::names(FP, 0, &tokens, 16)[0].0;
        let mut flips = Vec::new();
        for at in 0..16 {
            for bit in 0..18 {
                let mut other = tokens.clone();
                other[at] ^= 1 << bit;
                flips.push((BlockName::names(FP, 0, &other, 16)[0].0 ^ base).count_ones());
            }
        }
        let mean = f64::from(flips.iter().sum::<u32>()) / flips.len() as f64;
        assert!((62.0..66.0).contains(&mean), "mean {mean}");
        assert!(flips.iter().all(|&n| n > 30), "worst {:?}", flips.iter().min());
    }

    #[test]
    fn similar_blocks_have_different_names() {
        let mut seen = std::collections::BTreeSet::new();
        for a in 0..200 {
            for b in 0..200 {
                seen.insert(BlockName::names(FP, 0, &[a, b, 0], 3)[0].0 as u64);
            }
        }
        assert_eq!(seen.len(), 40_000);
    }

    #[test]
    fn what_computed_a_block_and_for_whom_are_part_of_its_name() {
        let name = |fp, salt| BlockName::names(Fingerprint(fp), salt, &[1, 2], 2)[0];
        assert_ne!(name(1, 2), name(2, 1));
        assert_ne!(name(1, 1), name(1, 2));
        assert_ne!(name(0, 0), name(0, 1));
        // A block of padding tokens is not a shorter block.
        assert_ne!(BlockName::names(FP, 0, &[1, PAD], 2)[0], BlockName::names(FP, 0, &[1], 1)[0]);
    }

    proptest! {
        /// A chain fed token by token names the same blocks as the whole list.
        #[test]
        fn a_chain_names_what_names_names(tokens in vec(0u32..200_000, 0..70), block in 1usize..20) {
            let mut chain = NameChain::new(FP, 9, block);
            let pushed: Vec<_> = tokens.iter().filter_map(|&t| chain.push(t)).collect();
            prop_assert_eq!(chain.parent(), pushed.last().copied());
            prop_assert_eq!(pushed, BlockName::names(FP, 9, &tokens, block));
        }

        /// Prompts share names exactly as far as they share full blocks.
        #[test]
        fn names_agree_as_far_as_tokens_do(
            mut tokens in vec(0u32..5, 1..60), at in any::<prop::sample::Index>(), block in 1usize..9,
        ) {
            let before = BlockName::names(FP, 0, &tokens, block);
            let at = at.index(tokens.len());
            tokens[at] += 1;
            let after = BlockName::names(FP, 0, &tokens, block);
            for (i, (x, y)) in before.iter().zip(&after).enumerate() {
                prop_assert_eq!(x == y, i < at / block);
            }
        }
    }
}
