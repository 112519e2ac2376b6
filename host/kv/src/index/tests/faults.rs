//! What networks and workers do to events.

use super::*;

fn batch<'a>(epoch: u64, sequence: u64, changes: &'a [Change<'a>]) -> Batch<'a> {
    Batch { worker: 0, epoch, sequence, changes }
}

#[test]
fn a_batch_that_comes_twice_counts_once() {
    let index = PrefixIndex::new(1);
    let chain = names(&[1, 2, 3]);
    let changes = [stored(&chain)];
    assert_eq!(index.apply(&batch(1, 0, &changes)), Receipt::Applied);
    assert_eq!(index.apply(&batch(1, 1, &[removed(&chain[2..])])), Receipt::Applied);
    assert_eq!(index.apply(&batch(1, 0, &changes)), Receipt::Duplicate);
    assert_eq!(overlap(&index, &chain), [2]);
}

#[test]
fn a_batch_behind_a_lost_one_waits_for_a_snapshot() {
    let index = PrefixIndex::new(1);
    let chain = names(&[1, 2, 3]);
    assert_eq!(index.apply(&batch(1, 0, &[stored(&chain)])), Receipt::Applied);
    assert_eq!(index.apply(&batch(1, 2, &[removed(&chain[1..2])])), Receipt::Gap { expected: 1 });
    assert_eq!(overlap(&index, &chain), [3]);
    let blocks = [SnapshotBlock { tier: HolderTier::Hbm, parent: None, name: chain[0] }];
    let snapshot = Snapshot { worker: 0, epoch: 1, sequence: 3, blocks: &blocks };
    assert_eq!(index.replace(&snapshot), Receipt::Applied);
    assert_eq!(overlap(&index, &chain), [1]);
    // What the snapshot holds already comes late.
    assert_eq!(index.apply(&batch(1, 1, &[])), Receipt::Duplicate);
    assert_eq!(index.apply(&batch(1, 3, &[])), Receipt::Applied);
}

#[test]
fn batches_in_the_wrong_order_count_once_they_are_sent_again() {
    let index = PrefixIndex::new(1);
    let chain = names(&[1, 2]);
    assert_eq!(index.apply(&batch(1, 1, &[removed(&chain[1..])])), Receipt::Gap { expected: 0 });
    assert_eq!(index.apply(&batch(1, 0, &[stored(&chain)])), Receipt::Applied);
    assert_eq!(index.apply(&batch(1, 1, &[removed(&chain[1..])])), Receipt::Applied);
    assert_eq!(overlap(&index, &chain), [1]);
}

#[test]
fn a_worker_that_starts_afresh_has_nothing_of_before() {
    let index = PrefixIndex::new(1);
    let (old, new) = (names(&[1, 2]), names(&[3]));
    index.apply(&batch(1, 0, &[stored(&old)]));
    assert_eq!(index.apply(&batch(2, 0, &[stored(&new)])), Receipt::Applied);
    assert_eq!((overlap(&index, &old), overlap(&index, &new)), (vec![0], vec![1]));
    // The last words of the one that ended.
    assert_eq!(index.apply(&batch(1, 1, &[stored(&old)])), Receipt::Duplicate);
    assert_eq!(overlap(&index, &old), [0]);
}

#[test]
fn a_new_start_whose_first_batch_is_lost_has_nothing_either() {
    let index = PrefixIndex::new(1);
    let chain = names(&[1, 2]);
    index.apply(&batch(1, 0, &[stored(&chain)]));
    assert_eq!(index.apply(&batch(2, 4, &[stored(&chain)])), Receipt::Gap { expected: 0 });
    assert_eq!(overlap(&index, &chain), [0]);
}

#[test]
fn a_snapshot_of_the_past_changes_nothing() {
    let index = PrefixIndex::new(1);
    let chain = names(&[1, 2]);
    index.apply(&batch(1, 0, &[]));
    index.apply(&batch(1, 1, &[stored(&chain)]));
    assert_eq!(
        index.replace(&Snapshot { worker: 0, epoch: 1, sequence: 1, blocks: &[] }),
        Receipt::Duplicate
    );
    assert_eq!(overlap(&index, &chain), [2]);
}

#[test]
fn a_snapshot_with_a_circle_and_strays_keeps_what_hangs_together() {
    let index = PrefixIndex::new(1);
    let chain = names(&[1, 2, 3, 4]);
    let block = |parent: Option<usize>, at: usize| SnapshotBlock {
        tier: HolderTier::Hbm,
        parent: parent.map(|up| chain[up]),
        name: chain[at],
    };
    let blocks = [block(Some(0), 1), block(None, 0), block(Some(3), 2), block(Some(2), 3)];
    index.replace(&Snapshot { worker: 0, epoch: 1, sequence: 0, blocks: &blocks });
    assert_eq!((overlap(&index, &chain), index.stats().orphans), (vec![2], 2));
}

/// Workers that contradict themselves and each other spoil answers about their own names, nothing else.
#[test]
fn events_that_make_no_sense_break_nothing() {
    let index = PrefixIndex::with_limits(IndexLimits { workers_max: 8, blocks_max: 500 });
    let pool: Vec<BlockName> = names(&(0..64).collect::<Vec<_>>());
    let mut seed = 1u64;
    let mut draw = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    for sequence in 0..20_000u64 {
        let some: Vec<BlockName> = (0..draw(9)).map(|_| pool[draw(64)]).collect();
        let parent = (draw(3) > 0).then(|| pool[draw(64)]);
        let tier = TIERS[draw(3)];
        let change = match draw(3) {
            0 => Change::Removed { tier, names: &some },
            _ => Change::Stored { tier, parent, names: &some },
        };
        let worker = draw(8);
        index.apply(&Batch { worker: worker as u16, epoch: 1, sequence, changes: &[] });
        let ledger = index.ledger.lock();
        index.change_with(ledger, |writer| apply_change(writer, worker as u16, &change));
        overlap(&index, &some);
        if draw(1000) == 0 {
            index.forget(worker);
        }
    }
    (0..8).for_each(|worker| index.forget(worker));
    let stats = index.stats();
    assert_eq!((stats.blocks, stats.memberships, stats.runs), (0, 0, 0));
    let own = names(&[100, 101, 102]);
    apply(&index, 3, 0, &[stored(&own)]);
    assert_eq!(overlap(&index, &own)[3], 3);
}

#[test]
fn a_table_of_names_that_all_fall_together_leaves_blocks_out() {
    let index = PrefixIndex::with_limits(IndexLimits { workers_max: 1, blocks_max: 100_000 });
    // Equal upper halves of keys: one segment, however often it splits.
    let inverse =
        (0..6).fold(1u64, |x, _| x.wrapping_mul(2u64.wrapping_sub(0x9e6c_63d0_876a_3f35u64.wrapping_mul(x))));
    let same: Vec<BlockName> = (1..100_000u64)
        .map(|low| {
            let product = low.wrapping_mul(inverse);
            BlockName(u128::from(product ^ product >> 32))
        })
        .collect();
    apply(&index, 0, 0, &[stored(&same)]);
    let stats = index.stats();
    assert!(stats.dropped > 0 && stats.blocks + stats.dropped == same.len() as u64);
    assert_eq!(u64::from(overlap(&index, &same)[0]), stats.blocks);
}
