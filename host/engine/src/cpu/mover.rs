//! Moves blocks between pages and slots: one plain copy a block, on the calling thread.
//!
//! On a busy two-core machine two threads moved a fifth less than one. A block of a 135 M model takes about 50 us to move
//! and 18 ms to compute, so that moving is not what anybody waits for.
//! **Invariant:** each byte of a block is read once and written once.

use kv::PageIdx;

use crate::{Saved, Xfer};

/// Moves blocks between `pages`, each of `block_bytes`, and slots; what was saved, in order.
///
/// The moves have been checked: no page is written twice, or read and written.
pub(super) fn run(pages: &mut [u8], block_bytes: usize, moves: Vec<Xfer>) -> Vec<Saved> {
    let mut saved = Vec::new();
    let range = |page: PageIdx| page.0 as usize * block_bytes..(page.0 as usize + 1) * block_bytes;
    for one in moves {
        match one {
            Xfer::Copy { from, to } => pages.copy_within(range(from), range(to).start),
            Xfer::Save { from, mut to } => {
                to.copy_from_slice(&pages[range(from)]);
                saved.push(Saved { page: from, slot: to.freeze() });
            }
            Xfer::Load { from, to } => pages[range(to)].copy_from_slice(&from),
        }
    }
    saved
}

#[cfg(test)]
mod tests {
    use kv::Arena;

    use super::*;
    use crate::clock::Stopwatch;
    use crate::memory::Bf16Buf;

    /// Seconds that it takes, if less than the best so far.
    fn better(best_s: &mut f64, go: impl FnOnce()) {
        let watch = Stopwatch::start();
        go();
        *best_s = best_s.min(watch.elapsed().as_secs_f64());
    }

    /// Best GB/s of a plain copy between two mappings, whole and block by block, and of saving and loading all blocks; in
    /// turns, since others may share the machine.
    fn measure(block_bytes: usize, blocks: u32) -> [f64; 4] {
        let bytes = block_bytes * blocks as usize;
        let mapping = || {
            let mut mapping = Bf16Buf::zeroed(bytes / 2, "KV pages").unwrap();
            mapping.bytes_mut().fill(1);
            mapping
        };
        let (mut kv, mut plain) = (mapping(), mapping());
        let arena = Arena::new(blocks, block_bytes).unwrap();
        let mut best_s = [f64::MAX; 4];
        for _ in 0..9 {
            better(&mut best_s[0], || plain.bytes_mut().copy_from_slice(kv.bytes_mut()));
            better(&mut best_s[1], || {
                let both = plain.bytes_mut().chunks_mut(block_bytes).zip(kv.bytes_mut().chunks(block_bytes));
                both.for_each(|(to, from)| to.copy_from_slice(from));
            });
            let mut saved = Vec::new();
            better(&mut best_s[2], || {
                let pages = (0..blocks).map(PageIdx);
                let save = pages.map(|from| Xfer::Save { from, to: arena.take().expect("enough slots") });
                saved = run(kv.bytes_mut(), block_bytes, save.collect());
            });
            better(&mut best_s[3], || {
                let load =
                    saved.iter().map(|Saved { page, slot }| Xfer::Load { from: slot.clone(), to: *page });
                run(kv.bytes_mut(), block_bytes, load.collect());
            });
        }
        best_s.map(|took_s| bytes as f64 / took_s / 1e9)
    }

    #[test]
    #[ignore = "measures; run it alone, with --release"]
    fn moving_blocks_is_nearly_as_fast_as_a_plain_copy() {
        let mut fast = true;
        for (block_bytes, blocks) in [(64 << 10, 4096), (368_640, 768), (2 << 20, 128)] {
            let [whole, plain, save, load] = measure(block_bytes, blocks);
            println!(
                "{blocks} blocks of {block_bytes}: save {save:.1} GB/s, load {load:.1} GB/s; \
                 a plain copy {plain:.1} GB/s block by block, {whole:.1} GB/s whole"
            );
            fast &= save.min(load) >= 0.7 * plain;
        }
        assert!(fast, "moves are to have 70 % of a copy's speed");
    }
}
