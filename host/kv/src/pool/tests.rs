use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::Fingerprint;

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
}

/// Pins what is resident and allocates the rest; nothing is held when that fails.
fn start(pool: &mut BlockPool, tokens: &[u32]) -> Option<Seq> {
    let names = names(tokens);
    let mut pages = pool.pin_prefix(&names);
    let sealed = pages.len();
    match pool.allocate(tokens.len().div_ceil(BLOCK) as u32 - sealed as u32) {
        Ok(rest) => pages.extend(rest),
        Err(_) => {
            pool.release(&pages);
            return None;
        }
    }
    Some(Seq { names, pages, sealed })
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
        pool.release(&seq.pages);
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
    pool.release(&seq.pages);
    assert_eq!(pool.allocate(2).expect("all are evictable").len(), 2);
}

#[test]
fn a_failed_allocation_evicts_nothing() {
    let mut pool = BlockPool::new(3, BLOCK as u32);
    let seq = run(&mut pool, &[1, 1, 2, 2]);
    pool.release(&seq.pages);
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
    pool.release(&two.pages);
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
    pool.release(&one.pages);
    assert_eq!(pool.available(), 0);
    assert_eq!(pool.resident_prefix(&two.names), 2);
    pool.release(&two.pages);
    assert_eq!(
        pool.stats(),
        PoolStats { pages: 3, free: 1, evictable: 2, pinned: 0, resident: 2, evictions: 0 }
    );
}

#[test]
fn a_block_whose_parent_was_evicted_stays_private() {
    let mut pool = BlockPool::new(4, BLOCK as u32);
    let mut one = start(&mut pool, &[1, 1]).expect("pages");
    let mut two = start(&mut pool, &[1, 1, 2, 2]).expect("pages");
    seal_next(&mut pool, &mut one);
    seal_next(&mut pool, &mut two);
    pool.release(&one.pages);
    let other = pool.allocate(2).expect("one free, one evictable");
    assert_eq!(seal_next(&mut pool, &mut two), Some(Sealed::Orphan));
    pool.release(&two.pages);
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

#[derive(Clone, Debug)]
enum Op {
    Start(Vec<u32>),
    Seal(prop::sample::Index),
    Finish(prop::sample::Index),
    Allocate(u32),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => vec(0u32..2, 1..14).prop_map(Op::Start),
        6 => any::<prop::sample::Index>().prop_map(Op::Seal),
        3 => any::<prop::sample::Index>().prop_map(Op::Finish),
        1 => (0u32..9).prop_map(Op::Allocate),
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
}

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
        let oldest = leaves.into_iter().min_by_key(|name| (self.named[name].2, self.named[name].0));
        let oldest = oldest.expect("a leaf");
        self.named.remove(&oldest);
        oldest
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

    fn touch(&mut self, pages: &[PageIdx]) {
        let clock = self.clock;
        self.named.values_mut().filter(|at| pages.contains(&at.0)).for_each(|at| at.2 = clock);
    }

    fn released(&mut self, pages: &[PageIdx]) {
        self.clock += 1;
        for page in pages {
            let refs = self.refs.get_mut(page).expect("a reference");
            *refs -= 1;
            if *refs == 0 {
                self.refs.remove(page);
            }
        }
        self.touch(pages);
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
            pinned.iter().for_each(|&page| *model.refs.entry(page).or_default() += 1);
            model.touch(&pinned);
            let wanted = (tokens.len().div_ceil(BLOCK) - pinned.len()) as u32;
            let mut pages = pinned;
            match pool.allocate(wanted) {
                Ok(rest) => {
                    assert!(wanted <= model.available());
                    evicted = model.allocated(&rest);
                    let sealed = pages.len();
                    pages.extend(rest);
                    live.push(Seq { names, pages, sealed });
                }
                Err(error) => {
                    assert_eq!(error, KvError::OutOfPages { wanted, available: model.available() });
                    pool.release(&pages);
                    model.released(&pages);
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
            pool.release(&seq.pages);
            model.released(&seq.pages);
        }
        Op::Allocate(count) => match pool.allocate(*count) {
            Ok(pages) => {
                assert!(*count <= model.available());
                evicted = model.allocated(&pages);
                live.push(Seq { names: Vec::new(), pages, sealed: 0 });
            }
            Err(error) => {
                assert_eq!(error, KvError::OutOfPages { wanted: *count, available: model.available() });
            }
        },
        Op::Seal(_) | Op::Finish(_) => {}
    }
    evicted
}

/// What holds after every operation.
fn check_laws(pool: &BlockPool, model: &Model) {
    let stats = pool.stats();
    assert_eq!(stats.free + stats.evictable + stats.pinned, stats.pages);
    assert_eq!(stats.free, model.free());
    assert_eq!(stats.evictable, model.evictable().len() as u32);
    assert_eq!(stats.resident as usize, model.named.len());
    for (name, &(_, parent, _)) in &model.named {
        assert!(parent.is_none_or(|up| model.named.contains_key(&up)), "{name:?} outlived its parent");
    }
    for (idx, page) in pool.pages.iter().enumerate() {
        let refs = model.refs.get(&PageIdx(idx as u32)).copied().unwrap_or(0);
        assert_eq!(page.refs, refs, "refcounts balance");
        let is_leaf = pool.leaves.contains(&(page.used, idx as u32));
        assert_eq!(is_leaf, page.evictable_leaf(), "the eviction order holds exactly the evictable leaves");
    }
    let leaves = pool.pages.iter().filter(|page| page.evictable_leaf()).count();
    assert_eq!(pool.leaves.len(), leaves);
}

proptest! {
    /// Whatever the operations, the pool agrees with the model, page by page and event by event.
    #[test]
    fn the_pool_matches_the_model(pages in 1u32..14, ops in vec(any_op(), 1..80)) {
        let mut pool = BlockPool::new(pages, BLOCK as u32);
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
            pool.release(&seq.pages);
        }
        prop_assert_eq!(pool.available(), pages);
    }
}
