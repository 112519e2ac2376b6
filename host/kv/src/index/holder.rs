//! Holders: who can have blocks, and the numbers that stand for them.
//!
//! **Invariant:** a code is a holder's tier and worker; a bit is its place in a set, tier by tier.

/// The kind of memory that a holder is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum HolderTier {
    /// A worker's pages.
    Hbm,
    /// Memory of its host.
    Host,
    /// Its disk.
    Disk,
}

/// Tiers that are told apart.
pub(super) const TIERS: usize = 3;

impl HolderTier {
    const ALL: [Self; TIERS] = [Self::Hbm, Self::Host, Self::Disk];
}

/// One memory of one worker: what has blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Holder {
    /// Whose memory it is.
    pub worker: u16,
    /// Which of its memories.
    pub tier: HolderTier,
}

impl Holder {
    /// The number that runs keep.
    pub(super) fn code(self) -> u32 {
        (self.tier as u32) << 16 | u32::from(self.worker)
    }

    /// The holder of a code; words that a writer is changing may be none.
    pub(super) fn of_code(code: u32) -> Option<Self> {
        let tier = *HolderTier::ALL.get((code >> 16) as usize)?;
        Some(Self { worker: code as u16, tier })
    }
}

/// How sets of holders are laid out: for each tier as many words as all workers need.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SetLayout {
    /// Words of one tier.
    pub(super) tier_words: usize,
    /// Words of a set, a power of two.
    pub(super) words: usize,
}

impl SetLayout {
    pub(super) fn new(workers_max: usize) -> Self {
        let tier_words = workers_max.div_ceil(64).max(1);
        Self { tier_words, words: (TIERS * tier_words).next_power_of_two() }
    }

    /// Word and bit of a code.
    pub(super) fn bit(self, code: u32) -> (usize, u64) {
        let worker = code as u16 as usize;
        ((code >> 16) as usize * self.tier_words + worker / 64, 1 << (worker % 64))
    }

    /// The code of a word's bit.
    pub(super) fn code(self, word: usize, bit: u32) -> u32 {
        let (tier, word) = (word / self.tier_words, word % self.tier_words);
        (tier as u32) << 16 | (word as u32 * 64 + bit)
    }

    /// Words of a set that can have bits.
    pub(super) fn words_used(self) -> usize {
        TIERS * self.tier_words
    }
}
