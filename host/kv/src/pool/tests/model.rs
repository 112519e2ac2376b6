//! The pool against the obvious pool, operation by operation.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

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
    /// The last block of a prompt comes whole.
    Place(Vec<u32>),
    Touch(Vec<u32>),
    Remove(Vec<u32>),
    EvictFirst,
    Bound(KeepBounds),
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
        5 => vec(0u32..2, 2..9).prop_map(Op::Place),
        2 => vec(0u32..2, 0..9).prop_map(Op::Touch),
        1 => vec(0u32..2, 2..9).prop_map(Op::Remove),
        1 => Just(Op::EvictFirst),
        1 => (0u32..6, 0u32..4).prop_map(|(all, one)| Op::Bound(KeepBounds { pages_max: all, tenant_pages_max: one })),
    ]
}

/// The obvious pool: named blocks in a map with parent and time of use; everything else is searched for.
struct Model {
    pages: u32,
    clock: u64,
    /// name → (page, parent, last use)
    named: BTreeMap<BlockName, (PageIdx, Option<BlockName>, u64)>,
    /// page → references
    refs: BTreeMap<PageIdx, u32>,
    /// name → what was said of it, by whom it is kept; ordinary if absent.
    worth: BTreeMap<BlockName, (Retention, u64)>,
    bounds: KeepBounds,
}

/// The first of a model.
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

    fn new(pages: u32) -> Self {
        let (named, refs, worth) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { pages, clock: 0, named, refs, worth, bounds: BOUNDS }
    }

    /// Evicts what is to leave first of all but `spared`.
    fn evict(&mut self, spared: Option<BlockName>) -> Option<Evicted> {
        let mut leaves = self.evictable();
        leaves.retain(|&name| self.children(name).next().is_none() && Some(name) != spared);
        let first = leaves.into_iter().min_by_key(|name| {
            let worth = self.worth(*name);
            let at = self.named[name];
            (!worth.drop, worth.until_ms > 0, worth.priority, at.2, at.0)
        });
        first.map(|first| self.removed(first))
    }

    fn removed(&mut self, name: BlockName) -> Evicted {
        let (page, parent, used) = self.named.remove(&name).expect("a resident block");
        let (retention, tenant) = self.worth.remove(&name).unwrap_or((Retention::ORDINARY, 0));
        if let Some(up) = parent {
            let up = self.named.get_mut(&up).expect("a parent is resident");
            up.2 = up.2.max(used);
        }
        Evicted { page, name, parent, retention, tenant: if retention.until_ms > 0 { tenant } else { 0 } }
    }

    /// What becomes of a block that comes whole; the page is the one that the pool took.
    fn placed(&mut self, name: BlockName, parent: Option<BlockName>, took: Option<PageIdx>) -> Placed {
        self.clock += 1;
        if let Some(at) = self.named.get_mut(&name) {
            at.2 = self.clock;
            return Placed::Duplicate(at.0);
        }
        if parent.is_some_and(|up| !self.named.contains_key(&up)) {
            return Placed::Orphan;
        }
        let was_full = self.free() == 0;
        let evicted = if was_full { self.evict(parent) } else { None };
        if was_full && evicted.is_none() {
            return Placed::Full;
        }
        let page = took.expect("there is a page for it");
        assert!(self.named.values().all(|at| at.0 != page), "no page is owned twice");
        assert!(!self.refs.contains_key(&page), "no page is owned twice");
        self.named.insert(name, (page, parent, self.clock));
        Placed::At { page, evicted }
    }

    fn touched(&mut self, names: &[BlockName]) -> Vec<PageIdx> {
        self.clock += 1;
        let mut pages = Vec::new();
        for name in names {
            let Some(at) = self.named.get_mut(name) else { break };
            at.2 = self.clock;
            pages.push(at.0);
            if self.worth(*name).drop {
                self.worth.remove(name);
            }
        }
        pages
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
            (true, None) if self.kept().count() >= self.bounds.pages_max as usize => Some(KeepBound::Pages),
            (true, None) => {
                let own = self.kept().filter(|&by| by == tenant).count();
                (own >= self.bounds.tenant_pages_max as usize).then_some(KeepBound::Tenant)
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
            evicted.push(self.evict(None).expect("a leaf").name);
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

/// A sequence comes in on both; the blocks that left for it, in order.
fn begin(pool: &mut BlockPool, model: &mut Model, live: &mut Vec<Seq>, tokens: &[u32]) -> Vec<BlockName> {
    let mut evicted = Vec::new();
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
    evicted
}

/// Runs one operation on both; the blocks that left, in order.
fn step(pool: &mut BlockPool, model: &mut Model, live: &mut Vec<Seq>, op: &Op) -> Vec<BlockName> {
    let mut evicted = Vec::new();
    match op {
        Op::Start(tokens) => evicted = begin(pool, model, live, tokens),
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
        Op::Retain(..) | Op::Expire(_) | Op::Forget | Op::Bound(_) => say(pool, model, op),
        Op::Seal(_) | Op::Finish(_) => {}
        _ => evicted.extend(come_or_go(pool, model, op)),
    }
    evicted
}

/// Blocks come, are read or leave whole, on both; the block that left.
fn come_or_go(pool: &mut BlockPool, model: &mut Model, op: &Op) -> Option<BlockName> {
    match op {
        Op::Place(tokens) => {
            let names = names(tokens);
            let (name, parent) = (names[names.len() - 1], names.len().checked_sub(2).map(|up| names[up]));
            let placed = pool.place(name, parent);
            let Placed::At { page, evicted } = placed else {
                assert_eq!(placed, model.placed(name, parent, None));
                return None;
            };
            assert_eq!(placed, model.placed(name, parent, Some(page)));
            evicted.map(|evicted| evicted.name)
        }
        Op::Touch(tokens) => {
            assert_eq!(pool.touch_prefix(&names(tokens)), model.touched(&names(tokens)));
            None
        }
        Op::Remove(tokens) => {
            let name = *names(tokens).last().expect("at least one block");
            let leaf = model.evictable().contains(&name) && model.children(name).next().is_none();
            let expected = leaf.then(|| model.removed(name));
            assert_eq!(pool.remove(&name), expected);
            expected.map(|evicted| evicted.name)
        }
        Op::EvictFirst => {
            let expected = model.evict(None);
            assert_eq!(pool.evict_first(), expected);
            expected.map(|evicted| evicted.name)
        }
        _ => unreachable!("the other operations move pages or say things"),
    }
}

/// Says on both what blocks are worth.
fn say(pool: &mut BlockPool, model: &mut Model, op: &Op) {
    match op {
        Op::Retain(tokens, retention, tenant) => {
            let name = *names(tokens).last().expect("at least one block");
            assert_eq!(pool.retain(name, *retention, *tenant), model.retain(name, *retention, *tenant));
        }
        Op::Expire(now_ms) => {
            let kept = model.kept().count();
            let over = model.worth.values_mut().filter(|known| known.0.until_ms <= *now_ms);
            over.for_each(|known| known.0.until_ms = 0);
            assert_eq!(pool.expire(*now_ms) as usize, kept - model.kept().count());
        }
        Op::Forget => {
            pool.forget_retention();
            model.worth.clear();
        }
        Op::Bound(bounds) => {
            pool.set_keep_bounds(*bounds);
            model.bounds = *bounds;
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
    assert!(pool.names().all(|(name, parent)| model.named[&name].1 == parent), "blocks keep their parents");
    assert_eq!(pool.names().count(), model.named.len());
    for name in model.named.keys() {
        assert_eq!(pool.retention(name), Some(model.worth(*name)));
    }
    for (name, &(_, parent, _)) in &model.named {
        assert!(parent.is_none_or(|up| model.named.contains_key(&up)), "{name:?} outlived its parent");
    }
    for (idx, page) in pool.pages.iter().enumerate() {
        let refs = model.refs.get(&PageIdx(idx as u32)).copied().unwrap_or(0);
        assert_eq!(pool.links[idx].refs, refs, "refcounts balance");
        let is_leaf = pool.leaves.contains(&(page.rank(), idx as u32));
        assert_eq!(
            is_leaf,
            pool.is_evictable_leaf(idx as u32),
            "the eviction order holds exactly the evictable leaves"
        );
    }
    let leaves = (0..pool.pages.len() as u32).filter(|page| pool.is_evictable_leaf(*page)).count();
    assert_eq!(pool.leaves.len(), leaves);
    let dropped = pool.pages.iter().filter(|page| page.retention().drop).count();
    assert_eq!(pool.dropped as usize, dropped);
}

proptest! {
    /// Whatever the operations, the pool agrees with the model, page by page and event by event.
    #[test]
    fn the_pool_matches_the_model(pages in 1u32..14, ops in vec(any_op(), 1..120)) {
        let mut pool = BlockPool::new(pages, BLOCK as u32).with_keep_bounds(BOUNDS);
        let mut model = Model::new(pages);
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
