use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

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

#[derive(Clone, Debug)]
enum Op {
    Start(Vec<u32>),
    Seal(prop::sample::Index),
    Finish(prop::sample::Index),
    Allocate(u32),
    /// What the last block of a prompt is worth, for whom.
    Retain(Vec<u32>, Retention, u64),
    Expire(u64),
    Forget,
}

fn any_retention() -> impl Strategy<Value = Retention> {
    prop_oneof![
        1 => Just(Retention::DROPPED),
        3 => (0u8..=100, prop_oneof![Just(0), 1u64..40]).prop_map(|(priority, until_ms)| worth(priority, until_ms)),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => vec(0u32..2, 1..14).prop_map(Op::Start),
        6 => any::<prop::sample::Index>().prop_map(Op::Seal),
        3 => any::<prop::sample::Index>().prop_map(Op::Finish),
        1 => (0u32..9).prop_map(Op::Allocate),
        5 => (vec(0u32..2, 2..9), any_retention(), 0u64..3).prop_map(|(at, of, by)| Op::Retain(at, of, by)),
        1 => (0u64..40).prop_map(Op::Expire),
        1 => Just(Op::Forget),
    ]
}

/// The obvious pool: named blocks in a map with parent and time of use; everything else is searched for.
#[derive(Default)]
struct Model {
    pages: u32,
    clock: u64,
    /// name → (page, parent, last use)
    named: BTreeMap<BlockName, (PageIdx, Option<BlockName>, u64)>,
    /// page → references
    refs: BTreeMap<PageIdx, u32>,
    /// name → what was said of it, by whom it is kept; ordinary if absent.
    worth: BTreeMap<BlockName, (Retention, u64)>,
}

/// Of the pages that a model has.
const BOUNDS: KeepBounds = KeepBounds { pages_max: 4, tenant_pages_max: 2 };

impl Model {
    fn held(&self, name: BlockName) -> bool {
        let used = self.refs.get(&self.named[&name].0).is_some_and(|&refs| refs > 0);
        used || self.children(name).any(|child| self.held(child))
    }

    fn children(&self, of: BlockName) -> impl Iterator<Item = BlockName> + '_ {
        self.named.iter().filter(move |(_, at)| at.1 == Some(of)).map(|(&name, _)| name)
    }

    fn evictable(&self) -> Vec<BlockName> {
        self.named.keys().copied().filter(|&name| !self.held(name)).collect()
    }

    fn free(&self) -> u32 {
        let owned: BTreeSet<PageIdx> = self.named.values().map(|at| at.0).collect();
        let private = self.refs.keys().filter(|page| !owned.contains(page)).count();
        self.pages - owned.len() as u32 - private as u32
    }

    fn available(&self) -> u32 {
        self.free() + self.evictable().len() as u32
    }

    fn evict(&mut self) -> BlockName {
        let mut leaves = self.evictable();
        leaves.retain(|&name| self.children(name).next().is_none());
        let first = leaves.into_iter().min_by_key(|name| {
            let worth = self.worth(*name);
            let at = self.named[name];
            (!worth.drop, worth.until_ms > 0, worth.priority, at.2, at.0)
        });
        let first = first.expect("a leaf");
        self.named.remove(&first);
        self.worth.remove(&first);
        first
    }

    fn worth(&self, name: BlockName) -> Retention {
        self.worth.get(&name).map_or(Retention::ORDINARY, |known| known.0)
    }

    fn kept(&self) -> impl Iterator<Item = u64> + '_ {
        self.worth.values().filter(|known| known.0.until_ms > 0).map(|known| known.1)
    }

    fn retain(&mut self, name: BlockName, mut wanted: Retention, tenant: u64) -> Retained {
        if !self.named.contains_key(&name) {
            return Retained::Absent;
        }
        let known = self.worth.get(&name).copied().filter(|known| known.0.until_ms > 0);
        let met = match (wanted.until_ms > 0, known) {
            (true, None) if self.kept().count() >= BOUNDS.pages_max as usize => Some(KeepBound::Pages),
            (true, None) => {
                let own = self.kept().filter(|&by| by == tenant).count();
                (own >= BOUNDS.tenant_pages_max as usize).then_some(KeepBound::Tenant)
            }
            _ => None,
        };
        if met.is_some() {
            wanted.until_ms = 0;
        }
        self.worth.insert(name, (wanted, known.map_or(tenant, |known| known.1)));
        met.map_or(Retained::Granted, Retained::Unkept)
    }

    fn allocated(&mut self, pages: &[PageIdx]) -> Vec<BlockName> {
        let mut evicted = Vec::new();
        while self.free() < pages.len() as u32 {
            evicted.push(self.evict());
        }
        for &page in pages {
            assert_eq!(self.refs.insert(page, 1), None, "no page is owned twice");
            assert!(self.named.values().all(|at| at.0 != page), "no page is owned twice");
        }
        evicted
    }

    fn released(&mut self, pages: &[PageIdx]) {
        self.clock += 1;
        let before = self.evictable();
        for page in pages {
            let refs = self.refs.get_mut(page).expect("a reference");
            *refs -= 1;
            if *refs == 0 {
                self.refs.remove(page);
            }
        }
        // What nobody holds any more was used until now.
        for name in self.evictable() {
            if !before.contains(&name) {
                self.named.get_mut(&name).expect("named").2 = self.clock;
            }
        }
    }
}

/// Runs one operation on both; the blocks that left, in order.
fn step(pool: &mut BlockPool, model: &mut Model, live: &mut Vec<Seq>, op: &Op) -> Vec<BlockName> {
    let mut evicted = Vec::new();
    match op {
        Op::Start(tokens) => {
            let names = names(tokens);
            let resident: Vec<_> = names.iter().map_while(|n| model.named.get(n).map(|at| at.0)).collect();
            assert_eq!(pool.resident_prefix(&names), resident.len());
            let pinned = pool.pin_prefix(&names);
            assert_eq!(pinned, resident);
            model.clock += 1;
            for name in &names[..pinned.len()] {
                if model.worth(*name).drop {
                    model.worth.remove(name);
                }
            }
            let lent = pinned.len().saturating_sub(1);
            pinned[lent..].iter().for_each(|&page| *model.refs.entry(page).or_default() += 1);
            let wanted = (tokens.len().div_ceil(BLOCK) - pinned.len()) as u32;
            let mut pages = pinned;
            match pool.allocate(wanted) {
                Ok(rest) => {
                    assert!(wanted <= model.available());
                    evicted = model.allocated(&rest);
                    let sealed = pages.len();
                    pages.extend(rest);
                    live.push(Seq { names, pages, sealed, lent });
                }
                Err(error) => {
                    assert_eq!(error, KvError::OutOfPages { wanted, available: model.available() });
                    pool.release(&pages[lent..]);
                    model.released(&pages[lent..]);
                }
            }
        }
        Op::Seal(at) if !live.is_empty() => {
            let seq = at.get_mut(live);
            let (at, clock) = (seq.sealed, model.clock);
            if let Some(sealed) = seal_next(pool, seq) {
                let (name, parent) = (seq.names[at], at.checked_sub(1).map(|i| seq.names[i]));
                let expected = match (model.named.get(&name), parent) {
                    (Some(other), _) => Sealed::Duplicate(other.0),
                    (None, Some(up)) if !model.named.contains_key(&up) => Sealed::Orphan,
                    _ => Sealed::Named,
                };
                assert_eq!(sealed, expected);
                if sealed == Sealed::Named {
                    model.named.insert(name, (seq.pages[at], parent, clock));
                }
            }
        }
        Op::Finish(at) if !live.is_empty() => {
            let seq = live.swap_remove(at.index(live.len()));
            pool.release(seq.own());
            model.released(seq.own());
        }
        Op::Allocate(count) => match pool.allocate(*count) {
            Ok(pages) => {
                assert!(*count <= model.available());
                evicted = model.allocated(&pages);
                live.push(Seq { names: Vec::new(), pages, sealed: 0, lent: 0 });
            }
            Err(error) => {
                assert_eq!(error, KvError::OutOfPages { wanted: *count, available: model.available() });
            }
        },
        Op::Retain(..) | Op::Expire(_) | Op::Forget => say(pool, model, op),
        Op::Seal(_) | Op::Finish(_) => {}
    }
    evicted
}

/// Says on both what blocks are worth.
fn say(pool: &mut BlockPool, model: &mut Model, op: &Op) {
    match op {
        Op::Retain(tokens, retention, tenant) => {
            let name = *names(tokens).last().expect("at least one block");
            assert_eq!(pool.retain(name, *retention, *tenant), model.retain(name, *retention, *tenant));
        }
        Op::Expire(now_ms) => {
            pool.expire(*now_ms);
            let over = model.worth.values_mut().filter(|known| known.0.until_ms <= *now_ms);
            over.for_each(|known| known.0.until_ms = 0);
        }
        Op::Forget => {
            pool.forget_retention();
            model.worth.clear();
        }
        _ => unreachable!("the other operations move pages"),
    }
}

/// What holds after every operation.
fn check_laws(pool: &BlockPool, model: &Model) {
    let stats = pool.stats();
    assert_eq!(stats.free + stats.evictable + stats.pinned, stats.pages);
    assert_eq!(stats.free, model.free());
    assert_eq!(stats.evictable, model.evictable().len() as u32);
    assert_eq!(stats.resident as usize, model.named.len());
    assert_eq!(stats.kept as usize, model.kept().count());
    assert!(stats.kept <= BOUNDS.pages_max, "the share that is kept is bounded");
    for name in model.named.keys() {
        assert_eq!(pool.retention(name), Some(model.worth(*name)));
    }
    for (name, &(_, parent, _)) in &model.named {
        assert!(parent.is_none_or(|up| model.named.contains_key(&up)), "{name:?} outlived its parent");
    }
    for (idx, page) in pool.pages.iter().enumerate() {
        let refs = model.refs.get(&PageIdx(idx as u32)).copied().unwrap_or(0);
        assert_eq!(page.refs, refs, "refcounts balance");
        let is_leaf = pool.leaves.contains(&(page.rank(), idx as u32));
        assert_eq!(is_leaf, page.evictable_leaf(), "the eviction order holds exactly the evictable leaves");
    }
    let leaves = pool.pages.iter().filter(|page| page.evictable_leaf()).count();
    assert_eq!(pool.leaves.len(), leaves);
}

proptest! {
    /// Whatever the operations, the pool agrees with the model, page by page and event by event.
    #[test]
    fn the_pool_matches_the_model(pages in 1u32..14, ops in vec(any_op(), 1..120)) {
        let mut pool = BlockPool::new(pages, BLOCK as u32).with_keep_bounds(BOUNDS);
        let mut model = Model { pages, ..Model::default() };
        let mut live = Vec::new();
        let mut stored = BTreeSet::new();
        for op in &ops {
            let evicted = step(&mut pool, &mut model, &mut live, op);
            let mut removed = Vec::new();
            for event in pool.drain_events() {
                match event {
                    KvEvent::Stored { name, .. } => prop_assert!(stored.insert(name)),
                    KvEvent::Removed { name } => {
                        prop_assert!(stored.remove(&name));
                        removed.push(name);
                    }
                }
            }
            prop_assert_eq!(removed, evicted);
            prop_assert!(stored.iter().eq(model.named.keys()));
            check_laws(&pool, &model);
        }
        for seq in live {
            pool.release(seq.own());
        }
        prop_assert_eq!(pool.available(), pages);
    }
}
