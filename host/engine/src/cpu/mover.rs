//! Moves blocks between pages and slots: plain copies, large ones on all threads.
#![allow(unsafe_code, reason = "threads write parts of pages that do not overlap")]

use std::sync::Mutex;

use super::disjoint::Disjoint;
use super::pool::Pool;
use crate::memory::Bf16Buf;
use crate::{Saved, Xfer};

/// Fewest bytes of one call that are worth waking the other threads; below, waking costs as much as it saves.
const SPLIT_BYTES_MIN: usize = 1 << 20;

/// Bytes in memory that one thread reads from or writes to, and where in the pages they belong.
type Part<B> = Mutex<Vec<(usize, B)>>;

/// Moves blocks of `block_bytes` between the pages of `kv` and slots; what was saved, in order.
///
/// The moves have been checked: no page is written twice, or read and written.
/// Cost: each byte is read and written once.
pub(super) fn run(pool: &mut Pool, kv: &mut Bf16Buf, block_bytes: usize, moves: Vec<Xfer>) -> Vec<Saved> {
    let (mut saves, mut loads) = (Vec::new(), Vec::new());
    let start = |page: kv::PageIdx| page.0 as usize * block_bytes;
    for one in moves {
        match one {
            Xfer::Copy { from, to } => {
                kv.bytes_mut().copy_within(start(from)..start(from) + block_bytes, start(to));
            }
            Xfer::Save { from, to } => saves.push((from, to)),
            Xfer::Load { from, to } => loads.push((to, from)),
        }
    }
    let threads = |blocks: usize| if blocks * block_bytes < SPLIT_BYTES_MIN { 1 } else { pool.threads() };
    let (writers, readers) = (threads(saves.len()), threads(loads.len()));
    let pages = saves.iter_mut().map(|(page, slot)| (start(*page), &mut slot[..]));
    save(pool, kv, &parts(pages, writers, |slot, at| slot.split_at_mut(at)));
    let pages = loads.iter().map(|(page, slot)| (start(*page), &slot[..]));
    load(pool, kv, &parts(pages, readers, |slot, at| slot.split_at(at)));
    saves.into_iter().map(|(page, slot)| Saved { page, slot: slot.freeze() }).collect()
}

/// Cuts every block in as many pieces as there are threads, and gives each thread one of each.
fn parts<B>(
    blocks: impl Iterator<Item = (usize, B)>,
    threads: usize,
    split: impl Fn(B, usize) -> (B, B),
) -> Vec<Part<B>>
where
    B: std::ops::Deref<Target = [u8]>,
{
    let mut parts: Vec<Vec<(usize, B)>> = (0..threads).map(|_| Vec::new()).collect();
    for (mut at, mut rest) in blocks {
        for (index, part) in parts.iter_mut().enumerate() {
            let piece_bytes = rest.len() / (threads - index);
            let (piece, left) = split(rest, piece_bytes);
            part.push((at, piece));
            (at, rest) = (at + piece_bytes, left);
        }
    }
    parts.into_iter().map(Mutex::new).collect()
}

fn save(pool: &mut Pool, kv: &Bf16Buf, parts: &[Part<&mut [u8]>]) {
    let kv = kv.bytes();
    on_threads(pool, parts, &|at, piece| piece.copy_from_slice(&kv[at..at + piece.len()]));
}

fn load(pool: &mut Pool, kv: &mut Bf16Buf, parts: &[Part<&[u8]>]) {
    let kv = Disjoint::new(kv.bytes_mut());
    on_threads(pool, parts, &|at, piece| {
        // SAFETY: pages are loaded once a call, and the pieces of one do not overlap.
        unsafe { kv.range(at, piece.len()) }.copy_from_slice(piece);
    });
}

fn on_threads<B: Send>(pool: &mut Pool, parts: &[Part<B>], copy: &(impl Fn(usize, &mut B) + Sync)) {
    let run_part = |index: usize| {
        let Some(part) = parts.get(index) else { return };
        let mut part = part.lock().expect("each part has one thread");
        part.iter_mut().for_each(|(at, piece)| copy(*at, piece));
    };
    match parts.len() {
        1 => run_part(0),
        _ => pool.run(&run_part),
    }
}

#[cfg(test)]
mod tests {
    use kv::{Arena, PageIdx};

    use super::*;
    use crate::clock::Stopwatch;

    /// Best GB/s of five goes.
    fn best(bytes: usize, mut go: impl FnMut()) -> f64 {
        let mut took_s = f64::MAX;
        for _ in 0..5 {
            let watch = Stopwatch::start();
            go();
            took_s = took_s.min(watch.elapsed().as_secs_f64());
        }
        bytes as f64 / took_s / 1e9
    }

    #[test]
    #[ignore = "measures; run it alone, with --release"]
    fn moving_blocks_is_nearly_as_fast_as_a_plain_copy() {
        for (block_bytes, blocks) in [(64 << 10, 4096), (368_640, 768), (2 << 20, 128)] {
            let bytes = block_bytes * blocks;
            let mut kv = Bf16Buf::zeroed(bytes / 2, "KV pages").unwrap();
            kv.bytes_mut().fill(1);
            let mut plain = vec![1_u8; bytes];
            let plain_save = best(bytes, || plain.copy_from_slice(kv.bytes()));
            let plain_load = best(bytes, || kv.bytes_mut().copy_from_slice(&plain));
            drop(plain);
            let arena = Arena::new(blocks as u32, block_bytes).unwrap();
            for threads in [1, 2] {
                let mut pool = Pool::start(threads).unwrap();
                let mut slots = Vec::new();
                let save = best(bytes, || {
                    slots.clear();
                    let pages = (0..blocks as u32).map(PageIdx);
                    let moves = pages
                        .map(|from| Xfer::Save { from, to: arena.take().expect("enough slots") })
                        .collect();
                    slots = run(&mut pool, &mut kv, block_bytes, moves);
                });
                let load = best(bytes, || {
                    let moves =
                        slots.iter().map(|Saved { page, slot }| Xfer::Load { from: slot.clone(), to: *page });
                    run(&mut pool, &mut kv, block_bytes, moves.collect());
                });
                println!(
                    "{blocks} blocks of {block_bytes}, {threads} threads: save {save:.1} GB/s ({:.0} % of a copy), load {load:.1} GB/s ({:.0} %)",
                    save / plain_save * 100.0,
                    load / plain_load * 100.0
                );
                assert!(
                    save >= 0.7 * plain_save && load >= 0.7 * plain_load,
                    "plain {plain_save} {plain_load}"
                );
            }
        }
    }
}
