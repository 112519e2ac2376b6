//! What an operation costs when the pool is large, in time of the processor: others may share the machine.
//!
//! The bar is 300 ns, or as many lines of memory as the operation has to find one after the other, where memory is slow.

use super::*;

const PAGES: u32 = 10_000_000;
/// Blocks of one prompt.
const PROMPT: usize = 100;
const NS_MAX: f64 = 300.0;
const BYTES_MAX: f64 = 150.0;

/// Names of `PAGES` blocks in chains of `PROMPT` that nothing else is part of.
fn prompts(salt: u64) -> Vec<Vec<BlockName>> {
    let salts = salt..salt + u64::from(PAGES) / PROMPT as u64;
    salts.map(|salt| BlockName::names(Fingerprint(1), salt, &[0; PROMPT], 1)).collect()
}

/// Numbers up to `count`, each once, in no order: memory does not guess what comes next.
fn shuffled(count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |i| (i as u128 * 61_803_398_877 % count as u128) as usize)
}

/// A number of a file of the system about this thread.
fn number(path: &str, at: usize) -> u64 {
    let text = std::fs::read_to_string(path).expect("the system counts");
    text.split_whitespace().nth(at).and_then(|number| number.parse().ok()).expect("a number")
}

fn resident_bytes() -> u64 {
    number("/proc/self/statm", 1) * 4096
}

/// Runs `ops` operations; what one took, in ns.
fn report(what: &str, ops: usize, go: impl FnOnce()) -> f64 {
    let busy_ns = || number("/proc/thread-self/schedstat", 0);
    let start = busy_ns();
    go();
    let ns = (busy_ns() - start) as f64 / ops as f64;
    println!("{what}: {ns:.0} ns a block");
    ns
}

fn check_bytes(before: u64) {
    let bytes = (resident_bytes() - before) as f64 / f64::from(PAGES);
    println!("{bytes:.0} bytes a block");
    assert!(bytes <= BYTES_MAX, "{bytes:.0} bytes a block");
}

/// What any structure pays that finds one of ten million lines and goes on from there, in ns.
fn line_ns() -> f64 {
    let mut lines = vec![[1_u64; 8]; PAGES as usize];
    let mut at = 0;
    report("one line of memory, each found by the one before", 1_000_000, || {
        for i in shuffled(1_000_000) {
            let line = &mut lines[(at + i * 7919) % PAGES as usize];
            line[1] += 1;
            at = line[0] as usize;
        }
    })
}

fn check(what: &str, ns: f64, ns_max: f64) {
    assert!(ns <= ns_max.max(NS_MAX), "{what}: {ns:.0} ns a block, at most {ns_max:.0}");
}

/// Runs prompts one after the other, each operation for all before the next.
fn run_all(pool: &mut BlockPool, prompts: &[Vec<BlockName>], line_ns: f64) {
    let blocks = prompts.len() * PROMPT;
    let mut pages = Vec::with_capacity(prompts.len());
    let allocate = report("allocate", blocks, || {
        for _ in prompts {
            pages.push(pool.allocate(PROMPT as u32).expect("all are evictable"));
            pool.drain_events().for_each(drop);
        }
    });
    check("allocate", allocate, 2.0 * line_ns);
    let seal = report("seal", blocks, || {
        for (pages, names) in pages.iter().zip(prompts) {
            let mut parent = None;
            for (page, name) in pages.iter().zip(names) {
                pool.seal(*page, *name, parent.replace(*name));
            }
            pool.drain_events().for_each(drop);
        }
    });
    check("seal", seal, 2.0 * line_ns);
    let release = report("release", blocks, || pages.iter().for_each(|pages| pool.release(pages)));
    check("release", release, line_ns);
}

/// Fills the pool, pins and releases in no order, evicts a tenth; all by prompts of `PROMPT` blocks.
#[test]
#[ignore = "measures; run it alone, with --release"]
fn an_operation_on_ten_million_blocks_takes_300_ns_or_two_lines_of_memory() {
    let line_ns = line_ns();
    let (old, new) = (prompts(0), prompts(u64::from(PAGES)));
    let all = PAGES as usize;
    let before = resident_bytes();
    let mut pool = BlockPool::new(PAGES, 16);
    for part in old.chunks(old.len() / 10) {
        run_all(&mut pool, part, line_ns);
    }
    let mut lasts = Vec::with_capacity(old.len());
    let pin = report("pin_prefix, in no order", all, || {
        for i in shuffled(old.len()) {
            let pages = pool.pin_prefix(&old[i]);
            assert_eq!(pages.len(), PROMPT);
            lasts.push(pages[PROMPT - 1]);
        }
    });
    check("pin_prefix", pin, line_ns);
    let release =
        report("release, in no order", all, || lasts.iter().for_each(|last| pool.release(&[*last])));
    check("release", release, line_ns);
    println!("evicting, in no order:");
    run_all(&mut pool, &new[..new.len() / 10], line_ns);
    check_bytes(before);
}

/// The worst shape for the order of eviction: every block is a first one, and a leaf. One that is touched is searched for
/// in a tree of ten million.
#[test]
#[ignore = "measures; run it alone, with --release"]
fn ten_million_leaves_are_ordered_in_few_lines_of_memory() {
    let line_ns = line_ns();
    let names = |salt| prompts(salt).into_iter().flatten().collect::<Vec<BlockName>>();
    let (old, new) = (names(0), names(u64::from(PAGES)));
    let before = resident_bytes();
    let mut pool = BlockPool::new(PAGES, 16);
    let place = |pool: &mut BlockPool, names: &[BlockName]| {
        for names in names.chunks(PROMPT) {
            names.iter().for_each(|name| assert!(matches!(pool.place(*name, None), Placed::At { .. })));
            pool.drain_events().for_each(drop);
        }
    };
    let some = 1_000_000;
    let order: Vec<_> = shuffled(old.len()).take(some).map(|i| old[i]).collect();
    check("place", report("place", old.len(), || place(&mut pool, &old)), 2.0 * line_ns);
    let look = report("look up, in no order", some, || {
        order.iter().for_each(|name| assert_eq!(pool.resident_prefix(&[*name]), 1));
    });
    check("look up", look, 2.0 * line_ns);
    let touch = report("touch, in no order", some, || {
        order.iter().for_each(|name| assert_eq!(pool.touch_prefix(&[*name]).len(), 1));
    });
    check("touch", touch, 12.0 * line_ns);
    let worth = Retention { priority: 60, until_ms: 0, drop: false };
    let retain = report("retain, in no order", some, || {
        order.iter().for_each(|name| assert_eq!(pool.retain(*name, worth, 0), Retained::Granted));
    });
    check("retain", retain, 8.0 * line_ns);
    let replace = report("place, evicting one", some, || place(&mut pool, &new[..some]));
    check("place", replace, 4.0 * line_ns);
    check_bytes(before);
}
