//! Readers while batches are applied.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use super::*;

/// Rounds of a writer. Chosen: about a second in a test build.
const ROUNDS: u64 = 3000;

/// Two workers take turns: after each batch one of two answers is right, and no other ever is.
#[test]
fn readers_see_the_index_before_or_after_a_batch() {
    let index = PrefixIndex::with_limits(IndexLimits { workers_max: 2, blocks_max: 1 << 16 });
    let trunk: Vec<u32> = (0..40).collect();
    let chain: Vec<BlockName> = names(&(0..400).collect::<Vec<_>>());
    let others: Vec<Vec<BlockName>> = (0..20)
        .map(|n| names(&trunk.iter().copied().chain(1000 * n + 1000..1000 * n + 1300).collect::<Vec<_>>()))
        .collect();
    apply(&index, 0, 0, &[stored(&chain)]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut seen = [false; 2];
                while !done.load(Relaxed) {
                    let out = overlap(&index, &chain);
                    match out.as_slice() {
                        [400, 0] => seen[0] = true,
                        [400, 200] => seen[1] = true,
                        other => panic!("{other:?} was never right"),
                    }
                }
            });
        }
        for round in 0..ROUNDS {
            // The second worker comes and goes with a part of the chain, and branches where that divides its run.
            apply(&index, 1, round * 2, &[stored(&chain[..200])]);
            let gone: Vec<BlockName> = chain[..200].iter().rev().copied().collect();
            apply(&index, 1, round * 2 + 1, &[removed(&gone)]);
            let other = &others[round as usize % 20];
            let behind =
                Change::Stored { tier: HolderTier::Hbm, parent: Some(other[39]), names: &other[40..] };
            let gone: Vec<BlockName> = other[40..].iter().rev().copied().collect();
            apply(&index, 0, round * 2 + 1, &[behind]);
            apply(&index, 0, round * 2 + 2, &[removed(&gone)]);
        }
        done.store(true, Relaxed);
    });
    assert_eq!(overlap(&index, &chain), [400, 0]);
}
