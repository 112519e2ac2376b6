mod model;
mod speed;

use super::*;
use crate::{Fingerprint, KeepBound, Retained};

const BLOCK: usize = 2;

fn names(tokens: &[u32]) -> Vec<BlockName> {
    BlockName::names(Fingerprint(1), 0, tokens, BLOCK)
}

/// A sequence as a step loop would hold it.
#[derive(Debug)]
struct Seq {
    names: Vec<BlockName>,
    pages: Vec<PageIdx>,
    sealed: usize,
    /// Leading pages that others hold for it.
    lent: usize,
}

impl Seq {
    /// The pages that it has a reference of.
    fn own(&self) -> &[PageIdx] {
        &self.pages[self.lent..]
    }
}

/// Pins what is resident and allocates the rest; nothing is held when that fails.
fn start(pool: &mut BlockPool, tokens: &[u32]) -> Option<Seq> {
    let names = names(tokens);
    let mut pages = pool.pin_prefix(&names);
    let sealed = pages.len();
    match pool.allocate(tokens.len().div_ceil(BLOCK) as u32 - sealed as u32) {
        Ok(rest) => pages.extend(rest),
        Err(_) => {
            pool.release(&pages[sealed.saturating_sub(1)..]);
            return None;
        }
    }
    Some(Seq { names, pages, sealed, lent: sealed.saturating_sub(1) })
}

fn seal_next(pool: &mut BlockPool, seq: &mut Seq) -> Option<Sealed> {
    let name = *seq.names.get(seq.sealed)?;
    let parent = seq.sealed.checked_sub(1).map(|i| seq.names[i]);
    seq.sealed += 1;
    Some(pool.seal(seq.pages[seq.sealed - 1], name, parent))
}

fn run(pool: &mut BlockPool, tokens: &[u32]) -> Seq {
    let mut seq = start(pool, tokens).expect("enough pages");
    while seal_next(pool, &mut seq).is_some() {}
    seq
}

/// Runs prompts one after the other through `pages` pages; what is resident of each at the end, in blocks.
fn check(pages: u32, prompts: &[&[u32]], resident: &[usize]) {
    let mut pool = BlockPool::new(pages, BLOCK as u32);
    for prompt in prompts {
        let seq = run(&mut pool, prompt);
        pool.release(seq.own());
    }
    let left: Vec<_> = prompts.iter().map(|p| pool.resident_prefix(&names(p))).collect();
    assert_eq!(left, resident);
}

#[test]
fn a_finished_prompt_stays_resident() {
    check(4, &[&[1, 2, 3, 4, 5]], &[2]);
}

#[test]
fn a_shared_prefix_is_stored_once() {
    check(3, &[&[1, 2, 3, 4], &[1, 2, 5, 6]], &[2, 2]);
}

#[test]
fn the_least_recently_used_leaf_goes_first() {
    check(4, &[&[1, 1, 2, 2], &[3, 3], &[4, 4, 5, 5]], &[1, 1, 2]);
}

#[test]
fn evicting_a_pinned_block_is_refused() {
    let mut pool = BlockPool::new(2, BLOCK as u32);
    let seq = run(&mut pool, &[1, 1, 2, 2]);
    assert_eq!(pool.allocate(1), Err(KvError::OutOfPages { wanted: 1, available: 0 }));
    assert_eq!(pool.stats().evictions, 0);
    pool.release(seq.own());
    assert_eq!(pool.allocate(2).expect("all are evictable").len(), 2);
}

#[test]
fn a_failed_allocation_evicts_nothing() {
    let mut pool = BlockPool::new(3, BLOCK as u32);
    let seq = run(&mut pool, &[1, 1, 2, 2]);
    pool.release(seq.own());
    assert_eq!(pool.allocate(4), Err(KvError::OutOfPages { wanted: 4, available: 3 }));
    assert_eq!(pool.resident_prefix(&seq.names), 2);
}

#[test]
fn a_duplicate_stays_private_and_is_freed() {
    let mut pool = BlockPool::new(4, BLOCK as u32);
    let mut one = start(&mut pool, &[1, 1]).expect("pages");
    let mut two = start(&mut pool, &[1, 1]).expect("pages");
    assert_eq!(seal_next(&mut pool, &mut one), Some(Sealed::Named));
    assert_eq!(seal_next(&mut pool, &mut two), Some(Sealed::Duplicate(one.pages[0])));
    pool.release(two.own());
    assert_eq!((pool.stats().free, pool.stats().pinned), (3, 1));
}

#[test]
fn a_pinned_child_holds_a_parent_that_nobody_else_uses() {
    let mut pool = BlockPool::new(3, BLOCK as u32);
    let mut one = start(&mut pool, &[1, 1]).expect("pages");
    let mut two = start(&mut pool, &[1, 1, 2, 2]).expect("pages");
    seal_next(&mut pool, &mut one);
    seal_next(&mut pool, &mut two);
    assert_eq!(seal_next(&mut pool, &mut two), Some(Sealed::Named));
    pool.release(one.own());
    assert_eq!(pool.available(), 0);
    assert_eq!(pool.resident_prefix(&two.names), 2);
    pool.release(two.own());
    assert_eq!(
        pool.stats(),
        PoolStats { pages: 3, free: 1, evictable: 2, pinned: 0, resident: 2, kept: 0, evictions: 0 }
    );
}

#[test]
fn a_block_whose_parent_was_evicted_stays_private() {
    let mut pool = BlockPool::new(4, BLOCK as u32);
    let mut one = start(&mut pool, &[1, 1]).expect("pages");
    let mut two = start(&mut pool, &[1, 1, 2, 2]).expect("pages");
    seal_next(&mut pool, &mut one);
    seal_next(&mut pool, &mut two);
    pool.release(one.own());
    let other = pool.allocate(2).expect("one free, one evictable");
    assert_eq!(seal_next(&mut pool, &mut two), Some(Sealed::Orphan));
    pool.release(two.own());
    pool.release(&other);
    assert_eq!(pool.stats().free, 4);
}

#[test]
#[should_panic(expected = "a page is released once for each pin or allocation")]
fn releasing_twice_is_our_own_mistake() {
    let mut pool = BlockPool::new(1, BLOCK as u32);
    let pages = pool.allocate(1).expect("a page");
    pool.release(&pages);
    pool.release(&pages);
}

fn worth(priority: u8, until_ms: u64) -> Retention {
    Retention { priority, until_ms, drop: false }
}

/// Prompts of one block each run one after the other; what is said of some; the blocks that leave then, in order.
fn check_order(said: &[(u32, Retention)], expected: &[u32]) {
    let mut pool = BlockPool::new(6, BLOCK as u32);
    let prompts: Vec<Vec<u32>> = (0..6).map(|i| vec![i, i]).collect();
    for prompt in &prompts {
        let seq = run(&mut pool, prompt);
        pool.release(seq.own());
    }
    for &(i, retention) in said {
        assert_eq!(pool.retain(names(&prompts[i as usize])[0], retention, 0), Retained::Granted);
    }
    let resident = |pool: &BlockPool| prompts.iter().filter(|p| pool.resident_prefix(&names(p)) == 1).count();
    for (left, &i) in expected.iter().enumerate() {
        let page = pool.allocate(1).expect("each is evictable");
        assert_eq!(resident(&pool), 5 - left);
        assert_eq!(pool.resident_prefix(&names(&prompts[i as usize])), 0, "{i} leaves as number {left}");
        assert_eq!(page.len(), 1);
    }
}

#[test]
fn what_is_dropped_leaves_first_and_what_is_kept_last() {
    let said = [(0, worth(10, 5)), (1, worth(60, 0)), (2, worth(49, 0)), (5, Retention::DROPPED)];
    check_order(&said, &[5, 2, 3, 4, 1, 0]);
}

#[test]
fn among_the_kept_the_lower_priority_leaves_first_and_no_request_fails() {
    let said = [(0, worth(50, 9)), (1, worth(10, 99)), (2, worth(90, 9))];
    check_order(&said, &[3, 4, 5, 1, 0, 2]);
}

#[test]
fn a_prefix_stays_for_the_sake_of_what_is_kept_after_it() {
    let mut pool = BlockPool::new(4, BLOCK as u32);
    let long = run(&mut pool, &[1, 1, 2, 2]);
    pool.release(long.own());
    pool.retain(long.names[0], Retention::DROPPED, 0);
    pool.retain(long.names[1], worth(50, 9), 0);
    let other = run(&mut pool, &[3, 3]);
    pool.release(other.own());
    assert_eq!(pool.allocate(2).expect("two").len(), 2);
    assert_eq!(pool.resident_prefix(&long.names), 2, "the other one left, though used last");
}

#[test]
fn what_was_dropped_and_is_found_again_is_ordinary() {
    let mut pool = BlockPool::new(2, BLOCK as u32);
    let seq = run(&mut pool, &[1, 1]);
    pool.release(seq.own());
    pool.retain(seq.names[0], Retention::DROPPED, 0);
    let pinned = pool.pin_prefix(&seq.names);
    pool.release(&pinned[pinned.len() - 1..]);
    assert_eq!(pool.retention(&seq.names[0]), Some(Retention::ORDINARY));
}

#[test]
fn a_share_that_is_kept_is_bounded_and_freed_as_time_goes_by() {
    let bounds = KeepBounds { pages_max: 2, tenant_pages_max: 1 };
    let mut pool = BlockPool::new(4, BLOCK as u32).with_keep_bounds(bounds);
    let seq = run(&mut pool, &[1, 1, 2, 2, 3, 3]);
    pool.release(seq.own());
    let keep = |pool: &mut BlockPool, i: usize, until_ms, tenant| {
        pool.retain(seq.names[i], worth(70, until_ms), tenant)
    };
    assert_eq!(keep(&mut pool, 0, 10, 1), Retained::Granted);
    assert_eq!(keep(&mut pool, 1, 10, 1), Retained::Unkept(KeepBound::Tenant));
    assert_eq!(pool.retention(&seq.names[1]), Some(worth(70, 0)), "all but the time");
    assert_eq!(keep(&mut pool, 1, 20, 2), Retained::Granted);
    assert_eq!(keep(&mut pool, 2, 20, 3), Retained::Unkept(KeepBound::Pages));
    assert_eq!(keep(&mut pool, 0, 30, 9), Retained::Granted, "it is kept already");
    pool.expire(20);
    assert_eq!((pool.stats().kept, pool.retention(&seq.names[1])), (1, Some(worth(70, 0))));
    assert_eq!(keep(&mut pool, 2, 40, 1), Retained::Unkept(KeepBound::Tenant), "the first is charged on");
    assert_eq!(keep(&mut pool, 2, 40, 2), Retained::Granted);
    assert_eq!(pool.retain(names(&[9, 9])[0], worth(1, 1), 0), Retained::Absent);
}

#[test]
fn a_pinned_block_holds_those_before_it_and_a_flush_leaves_them() {
    let mut pool = BlockPool::new(6, BLOCK as u32);
    let seq = run(&mut pool, &[1, 1, 2, 2, 3, 3]);
    pool.release(seq.own());
    let page = pool.pin(&seq.names[1]).expect("it is resident");
    assert_eq!((page, pool.flush()), (seq.pages[1], 1), "the one after it leaves");
    assert_eq!(pool.resident_prefix(&seq.names), 2);
    assert_eq!(pool.pin(&seq.names[2]), None);
    pool.release(&[page]);
    assert_eq!((pool.flush(), pool.stats().free), (2, 6));
}

#[test]
fn blocks_of_a_prompt_are_removed_from_its_end_as_far_as_nobody_goes_on_from_them() {
    let mut pool = BlockPool::new(6, BLOCK as u32);
    let (one, other) = (run(&mut pool, &[1, 1, 2, 2, 3, 3]), run(&mut pool, &[1, 1, 2, 2, 4, 4]));
    pool.release(one.own());
    pool.release(other.own());
    assert_eq!(pool.remove_last(&one.names), 1);
    assert_eq!(pool.resident_prefix(&other.names), 3);
    assert_eq!(pool.remove_last(&other.names), 3);
}

#[test]
fn what_is_kept_is_told_with_who_is_charged() {
    let mut pool = BlockPool::new(3, BLOCK as u32);
    let seq = run(&mut pool, &[1, 1, 2, 2]);
    pool.retain(seq.names[0], worth(70, 10), 5);
    assert_eq!(pool.kept().collect::<Vec<_>>(), [(worth(70, 10), 5)]);
    pool.release(seq.own());
}

#[test]
fn hits_count_what_was_found_again() {
    let mut pool = BlockPool::new(3, BLOCK as u32);
    let seq = run(&mut pool, &[1, 1, 2, 2]);
    pool.count_hits(&seq.names[..1]);
    pool.count_hits(&seq.names);
    assert_eq!(seq.names.iter().map(|name| pool.hits(name)).collect::<Vec<_>>(), [2, 1]);
    pool.release(seq.own());
    pool.allocate(3).expect("all are evictable");
    assert_eq!(pool.hits(&seq.names[0]), 0);
}
