mod faults;
mod model;
mod readers;

use super::*;
use crate::Fingerprint;

const TIERS: [HolderTier; 3] = [HolderTier::Hbm, HolderTier::Host, HolderTier::Disk];

/// Names of blocks with one token each.
fn names(tokens: &[u32]) -> Vec<BlockName> {
    BlockName::names(Fingerprint(1), 0, tokens, 1)
}

fn stored(names: &[BlockName]) -> Change<'_> {
    Change::Stored { tier: HolderTier::Hbm, parent: None, names }
}

fn removed(names: &[BlockName]) -> Change<'_> {
    Change::Removed { tier: HolderTier::Hbm, names }
}

/// Applies a worker's next batch.
fn apply(index: &PrefixIndex, worker: u16, sequence: u64, changes: &[Change<'_>]) -> Receipt {
    index.apply(&Batch { worker, epoch: 1, sequence, changes })
}

fn overlap(index: &PrefixIndex, names: &[BlockName]) -> Vec<u32> {
    let mut out = vec![9; index.workers_max()];
    index.overlap(names, &mut out);
    out
}

/// Overlaps of `prompt` when worker `w` has `has[w]`.
fn check(has: &[&[u32]], prompt: &[u32], expected: &[u32]) {
    let index = PrefixIndex::new(has.len());
    for (worker, tokens) in has.iter().enumerate() {
        assert_eq!(apply(&index, worker as u16, 0, &[stored(&names(tokens))]), Receipt::Applied);
    }
    assert_eq!(overlap(&index, &names(prompt)), expected);
}

#[test]
fn overlap_counts_leading_blocks() {
    check(&[&[1, 2, 3], &[1, 2], &[1], &[2, 3], &[]], &[1, 2, 3, 4], &[3, 2, 1, 0, 0]);
}

#[test]
fn a_whole_prompt_can_be_resident() {
    check(&[&[1, 2, 3, 4], &[1, 2, 3]], &[1, 2, 3], &[3, 3]);
}

#[test]
fn an_empty_prompt_overlaps_nothing() {
    check(&[&[1], &[]], &[], &[0, 0]);
}

#[test]
fn many_workers_share_a_prefix_and_part() {
    let (mut has, mut expected) = (Vec::new(), Vec::new());
    for worker in 0..100u32 {
        let len = 20 + worker % 7;
        has.push((0..len).chain([1000 + worker]).collect::<Vec<_>>());
        expected.push(len.min(24));
    }
    let has: Vec<&[u32]> = has.iter().map(Vec::as_slice).collect();
    check(&has, &(0..24).collect::<Vec<_>>(), &expected);
}

#[test]
fn a_lookup_tells_tiers_apart_and_leaves_out_who_has_little() {
    let index = PrefixIndex::new(3);
    let chain = names(&[1, 2, 3, 4]);
    let store = |tier, len: usize| Change::Stored { tier, parent: None, names: &chain[..len] };
    apply(&index, 2, 0, &[store(HolderTier::Hbm, 2), store(HolderTier::Disk, 4), store(HolderTier::Host, 1)]);
    let mut overlaps = Overlaps::default();
    index.lookup(&chain, 2, &mut overlaps);
    let found = |tier, blocks| Overlap { holder: Holder { worker: 2, tier }, blocks };
    let mut all: Vec<_> = overlaps.iter().collect();
    all.sort_by_key(|overlap| std::cmp::Reverse(overlap.blocks));
    assert_eq!((all, overlaps.len()), (vec![found(HolderTier::Disk, 4), found(HolderTier::Hbm, 2)], 2));
    assert_eq!(overlap(&index, &chain), [0, 0, 2]);
}

#[test]
fn a_forgotten_worker_has_nothing() {
    let index = PrefixIndex::new(2);
    let chain = names(&[1, 2]);
    apply(&index, 0, 0, &[stored(&chain)]);
    apply(&index, 1, 0, &[stored(&chain)]);
    index.forget(0);
    assert_eq!((overlap(&index, &names(&[1, 2, 3])), index.len()), (vec![0, 2], 2));
    index.forget(1);
    assert!(index.is_empty());
}

#[test]
fn a_removal_in_the_middle_takes_what_follows_until_it_is_stored_again() {
    let index = PrefixIndex::new(1);
    let chain = names(&[1, 2, 3, 4, 5]);
    apply(&index, 0, 0, &[stored(&chain)]);
    apply(&index, 0, 1, &[removed(&chain[1..2])]);
    assert_eq!((overlap(&index, &chain), index.len()), (vec![1], 1));
    let again = Change::Stored { tier: HolderTier::Hbm, parent: Some(chain[0]), names: &chain[1..3] };
    apply(&index, 0, 2, &[again]);
    assert_eq!((overlap(&index, &chain), index.len()), (vec![3], 3));
    // What was counted as removed is removed once more; nothing happens.
    apply(&index, 0, 3, &[removed(&chain[3..])]);
    assert_eq!((overlap(&index, &chain), index.len()), (vec![3], 3));
}

#[test]
fn a_name_that_left_is_not_found_in_a_page_that_was_divided() {
    let index = PrefixIndex::new(2);
    let behind = |parent, names| Change::Stored { tier: HolderTier::Hbm, parent: Some(parent), names };
    let chain = names(&(0..28).collect::<Vec<_>>());
    let branch = names(&(0..20).chain(100..108).collect::<Vec<_>>());
    let later = names(&(0..21).chain(200..210).collect::<Vec<_>>());
    apply(&index, 0, 0, &[stored(&chain)]);
    apply(&index, 1, 0, &[stored(&branch)]);
    let gone: Vec<_> = chain[21..].iter().rev().copied().collect();
    apply(&index, 0, 1, &[removed(&gone), behind(chain[20], &later[21..])]);
    apply(&index, 0, 2, &[behind(chain[22], &branch[25..])]);
    assert_eq!(index.stats().orphans, 3);
    assert_eq!((overlap(&index, &chain), overlap(&index, &later)), (vec![21, 20], vec![31, 20]));
}

#[test]
fn blocks_without_their_parent_are_counted_and_left_out() {
    let index = PrefixIndex::new(2);
    let chain = names(&[1, 2, 3]);
    apply(&index, 0, 0, &[stored(&chain[..2])]);
    let orphan = Change::Stored { tier: HolderTier::Hbm, parent: Some(chain[1]), names: &chain[2..] };
    apply(&index, 1, 0, &[orphan]);
    assert_eq!((overlap(&index, &chain), index.stats().orphans), (vec![2, 0], 1));
}

#[test]
fn what_was_stored_longest_ago_is_pruned_first() {
    const BLOCKS_MAX: usize = 1000;
    let index = PrefixIndex::with_limits(IndexLimits { workers_max: 2, blocks_max: BLOCKS_MAX });
    let prompt = |n: u32| names(&(0..300).map(|at| n * 1000 + at).collect::<Vec<_>>());
    for n in 0..3 {
        apply(&index, 0, u64::from(n), &[stored(&prompt(n))]);
    }
    // The first is used again, so the second is the one to go.
    apply(&index, 1, 0, &[stored(&prompt(0))]);
    apply(&index, 0, 3, &[stored(&prompt(3))]);
    assert!(index.len() <= BLOCKS_MAX);
    assert_eq!(overlap(&index, &prompt(0)), [300, 300]);
    assert!(overlap(&index, &prompt(1))[0] < 300);
    assert_eq!(overlap(&index, &prompt(3)), [300, 0]);
    assert!(index.stats().pruned >= 200);
}
