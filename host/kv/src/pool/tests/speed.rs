//! What an operation costs when the pool is large.

use std::time::{Duration, Instant};

use super::*;

const PAGES: u32 = 10_000_000;
/// Blocks of one prompt.
const PROMPT: usize = 100;
const NS_MAX: f64 = 300.0;
const BYTES_MAX: f64 = 150.0;

#[allow(clippy::disallowed_methods, reason = "a measurement takes real time")]
fn time<T>(total: &mut Duration, go: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let out = go();
    *total += start.elapsed();
    out
}

/// Names of the blocks of prompt `i`: random, in a chain that nothing else is part of.
fn prompt(i: u64) -> Vec<BlockName> {
    BlockName::names(Fingerprint(1), i, &[0; PROMPT], 1)
}

/// Numbers up to `count`, each once, in no order: memory does not guess what comes next.
fn shuffled(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |i| i * 61_803_398_877 % count)
}

/// Memory of this process, in bytes.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("the system says how much memory we have");
    let pages =
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("the second number");
    pages * 4096
}

fn report(what: &str, total: Duration, ops: u64) {
    let ns = total.as_nanos() as f64 / ops as f64;
    println!("{what}: {ns:.0} ns a block");
    assert!(ns <= NS_MAX, "{what} takes {ns:.0} ns a block");
}

/// Fills the pool, pins and releases in no order, evicts a tenth; all by prompts of `PROMPT` blocks.
#[test]
#[ignore = "measures; run it alone, with --release"]
fn an_operation_on_ten_million_blocks_takes_less_than_300_ns() {
    let before = resident_bytes();
    let mut pool = BlockPool::new(PAGES, 16);
    let prompts = u64::from(PAGES) / PROMPT as u64;
    let [mut fill, mut pin, mut release, mut evict, mut extend] = [Duration::ZERO; 5];
    let mut take = |pool: &mut BlockPool, names: &[BlockName], total: &mut Duration| {
        let pages = time(total, || {
            let pages = pool.allocate(PROMPT as u32).expect("all are evictable");
            let mut parent = None;
            for (page, name) in pages.iter().zip(names) {
                pool.seal(*page, *name, parent.replace(*name));
            }
            pages
        });
        pool.drain_events().for_each(drop);
        pages
    };
    for i in 0..prompts {
        let names = prompt(i);
        let pages = take(&mut pool, &names, &mut fill);
        time(&mut release, || pool.release(&pages));
    }
    report("allocate and seal", fill, u64::from(PAGES));
    report("release", release, u64::from(PAGES));
    (pin, release) = (Duration::ZERO, Duration::ZERO);
    for i in shuffled(prompts) {
        let names = prompt(i);
        let pages = time(&mut pin, || pool.pin_prefix(&names));
        assert_eq!(pages.len(), PROMPT);
        time(&mut release, || pool.release(&pages[PROMPT - 1..]));
    }
    report("pin_prefix, in no order", pin, u64::from(PAGES));
    report("release, in no order", release, u64::from(PAGES));
    for _ in 0..prompts / 10 {
        let pages = time(&mut evict, || pool.allocate(PROMPT as u32)).expect("all are evictable");
        pool.drain_events().for_each(drop);
        pool.release(&pages);
    }
    report("evict", evict, u64::from(PAGES) / 10);
    for i in 0..prompts / 10 {
        let names = prompt(prompts + i);
        let pages = take(&mut pool, &names, &mut extend);
        pool.release(&pages);
    }
    report("allocate and seal, after eviction", extend, u64::from(PAGES) / 10);
    let bytes = (resident_bytes() - before) as f64 / f64::from(PAGES);
    println!("{bytes:.0} bytes a block");
    assert!(bytes <= BYTES_MAX, "{bytes:.0} bytes a block");
}

/// The worst shape for the order of eviction: every block is a first one, and a leaf.
#[test]
#[ignore = "measures; run it alone, with --release"]
fn ten_million_leaves_are_ordered_in_less_than_300_ns() {
    let before = resident_bytes();
    let mut pool = BlockPool::new(PAGES, 16);
    let name = |i: u64| BlockName::names(Fingerprint(1), i, &[0], 1)[0];
    let [mut place, mut touch, mut replace, mut retain] = [Duration::ZERO; 4];
    let batch = 1000;
    for start in (0..u64::from(PAGES)).step_by(batch) {
        let names: Vec<_> = (start..start + batch as u64).map(name).collect();
        time(&mut place, || {
            names.iter().for_each(|name| assert!(matches!(pool.place(*name, None), Placed::At { .. })))
        });
        pool.drain_events().for_each(drop);
    }
    report("place", place, u64::from(PAGES));
    let order: Vec<_> = shuffled(u64::from(PAGES)).map(name).take(1_000_000).collect();
    time(&mut touch, || order.iter().for_each(|name| assert_eq!(pool.touch_prefix(&[*name]).len(), 1)));
    report("touch, in no order", touch, order.len() as u64);
    let worth = Retention { priority: 60, until_ms: 0, drop: false };
    time(&mut retain, || {
        order.iter().for_each(|name| assert_eq!(pool.retain(*name, worth, 0), Retained::Granted))
    });
    report("retain, in no order", retain, order.len() as u64);
    for start in (0..1_000_000).step_by(batch) {
        let names: Vec<_> = (start..start + batch as u64).map(|i| name(u64::from(PAGES) + i)).collect();
        time(&mut replace, || {
            names.iter().for_each(|name| assert!(matches!(pool.place(*name, None), Placed::At { .. })))
        });
        pool.drain_events().for_each(drop);
    }
    report("place, evicting one", replace, 1_000_000);
    let bytes = (resident_bytes() - before) as f64 / f64::from(PAGES);
    println!("{bytes:.0} bytes a block");
    assert!(bytes <= BYTES_MAX, "{bytes:.0} bytes a block");
}
