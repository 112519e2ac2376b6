//! Events that come over a network: in which order they count, and what makes up for those that were lost.
//!
//! A worker numbers its batches from zero in each epoch, and begins an epoch when it starts afresh. Only the batch
//! that is next is applied, so that what was sent twice, late or not at all changes nothing; a snapshot closes a gap.
//!
//! **Invariant:** what a worker has in the index is what it had behind batch `next - 1` of `epoch`.

use rustc_hash::FxHashMap;

use super::holder::HolderTier;
use crate::BlockName;

/// A change of what one memory of a worker holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change<'a> {
    /// Blocks became resident, each the child of the one before it.
    Stored {
        /// Where.
        tier: HolderTier,
        /// The block before the first, if that is not a first block.
        parent: Option<BlockName>,
        /// The blocks, in the order of the prompt.
        names: &'a [BlockName],
    },
    /// Blocks are resident no more; nor is, until it is stored again, what follows them.
    Removed {
        /// Where.
        tier: HolderTier,
        /// The blocks, in any order.
        names: &'a [BlockName],
    },
}

/// Changes that a worker sent together. Its blocks are closed under "parent of" behind them.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Who sent it.
    pub worker: u16,
    /// Which start of the worker it belongs to; a later start has a larger number.
    pub epoch: u64,
    /// Its number in the epoch, from zero.
    pub sequence: u64,
    /// What changed, in order.
    pub changes: &'a [Change<'a>],
}

/// All that a worker holds at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// Who sent it.
    pub worker: u16,
    /// Which start of the worker it belongs to.
    pub epoch: u64,
    /// The number of the batch that comes behind it.
    pub sequence: u64,
    /// Each block with the one before it, in any order.
    pub blocks: &'a [SnapshotBlock],
}

/// A block of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotBlock {
    /// Where it is.
    pub tier: HolderTier,
    /// The block before it, if it is not a first block.
    pub parent: Option<BlockName>,
    /// The block.
    pub name: BlockName,
}

/// What became of a batch or a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Receipt {
    /// It counts.
    Applied,
    /// It is of the past and changes nothing.
    Duplicate,
    /// Batches are missing before it, and it changes nothing: send them, or a snapshot.
    Gap {
        /// The number of the first that is missing.
        expected: u64,
    },
}

/// How far a worker's events were applied. None of an epoch that was never heard of.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    epoch: Option<u64>,
    next: u64,
}

/// What a batch means for what the worker had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It goes on.
    Continues,
    /// The worker started afresh: it has nothing of what it had.
    Restarts,
    /// It has to be left out.
    Refused(Receipt),
}

impl Progress {
    /// Judges a batch, and notes that it is applied unless it is refused.
    ///
    /// A batch of a later epoch that is not its first restarts the worker too, but is a gap: see [`Self::is_lost`].
    pub(super) fn advance(&mut self, epoch: u64, sequence: u64) -> Verdict {
        if self.epoch.is_some_and(|own| epoch < own) {
            return Verdict::Refused(Receipt::Duplicate);
        }
        let restarts = self.epoch != Some(epoch);
        if restarts {
            *self = Self { epoch: Some(epoch), next: 0 };
        }
        if sequence == self.next && sequence < u64::MAX {
            self.next += 1;
            return if restarts { Verdict::Restarts } else { Verdict::Continues };
        }
        if restarts {
            return Verdict::Restarts;
        }
        let late = sequence < self.next;
        Verdict::Refused(if late { Receipt::Duplicate } else { Receipt::Gap { expected: self.next } })
    }

    /// Whether a batch that was judged has to wait for others.
    pub(super) fn is_lost(&self, sequence: u64) -> Option<Receipt> {
        (self.next <= sequence).then_some(Receipt::Gap { expected: self.next })
    }

    /// Judges a snapshot, and notes it unless it is older than what was applied.
    pub(super) fn renew(&mut self, epoch: u64, sequence: u64) -> bool {
        let is_old = self.epoch.is_some_and(|own| epoch < own || epoch == own && sequence < self.next);
        if !is_old {
            *self = Self { epoch: Some(epoch), next: sequence };
        }
        !is_old
    }
}

/// The blocks of a snapshot as chains, parents first. Blocks without a way to a first block are left out, and counted.
pub(super) fn chains(
    blocks: &[SnapshotBlock],
    mut each: impl FnMut(HolderTier, Option<BlockName>, &[BlockName]),
) -> usize {
    let mut children: FxHashMap<(HolderTier, Option<BlockName>), Vec<BlockName>> = FxHashMap::default();
    for block in blocks {
        children.entry((block.tier, block.parent)).or_default().push(block.name);
    }
    let mut open = Vec::new();
    for tier in [HolderTier::Hbm, HolderTier::Host, HolderTier::Disk] {
        open.push((tier, None));
    }
    let (mut chain, mut told) = (Vec::new(), 0);
    while let Some((tier, parent)) = open.pop() {
        // Taken out, so that blocks in a circle end it.
        for name in children.remove(&(tier, parent)).unwrap_or_default() {
            chain.clear();
            chain.push(name);
            let mut last = name;
            while let Some(next) = only(&mut children, (tier, Some(last))) {
                chain.push(next);
                last = next;
            }
            each(tier, parent, &chain);
            told += chain.len();
            open.push((tier, Some(last)));
        }
    }
    blocks.len() - told
}

/// Takes the child of a block that has one.
fn only(
    children: &mut FxHashMap<(HolderTier, Option<BlockName>), Vec<BlockName>>,
    of: (HolderTier, Option<BlockName>),
) -> Option<BlockName> {
    if children.get(&of)?.len() != 1 {
        return None;
    }
    children.remove(&of)?.pop()
}
