//! The index beside plain sets of names.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::BlockPool;

const WORKERS: usize = 5;

/// What a worker does in one batch.
#[derive(Clone, Debug)]
enum Op {
    /// Stores a prompt behind what it has of it.
    Store { worker: usize, tier: usize, tokens: Vec<u32> },
    /// Removes blocks: those at some places of what it has, in the order of the places.
    Remove { worker: usize, tier: usize, places: Vec<usize> },
    /// Evicts blocks that nothing follows, one after the other.
    Evict { worker: usize, tier: usize, start: usize, count: usize },
    /// Forgets the worker.
    Forget { worker: usize },
    /// Sends a snapshot after batches that were lost.
    Snapshot { worker: usize, tokens: Vec<u32> },
    /// Starts afresh with a prompt.
    Restart { worker: usize, tokens: Vec<u32> },
}

/// Prompts that part often and have long stretches: each number stands for some blocks.
fn prompt() -> impl Strategy<Value = Vec<u32>> {
    vec((0u32..3, 1u32..9), 1..9).prop_map(|parts| {
        parts.iter().flat_map(|&(token, blocks)| std::iter::repeat_n(token, blocks as usize)).collect()
    })
}

fn op() -> impl Strategy<Value = Op> {
    let who = || (0..WORKERS, 0..TIERS.len());
    prop_oneof![
        8 => (who(), prompt()).prop_map(|((worker, tier), tokens)| Op::Store { worker, tier, tokens }),
        2 => (who(), vec(0usize..1000, 1..12)).prop_map(|((worker, tier), places)| Op::Remove { worker, tier, places }),
        4 => (who(), 0usize..1000, 1usize..40)
            .prop_map(|((worker, tier), start, count)| Op::Evict { worker, tier, start, count }),
        1 => (0..WORKERS).prop_map(|worker| Op::Forget { worker }),
        1 => (0..WORKERS, prompt()).prop_map(|(worker, tokens)| Op::Snapshot { worker, tokens }),
        1 => (0..WORKERS, prompt()).prop_map(|(worker, tokens)| Op::Restart { worker, tokens }),
    ]
}

/// Blocks with the block before each.
type Resident = BTreeMap<BlockName, Option<BlockName>>;

/// What every holder has, and how far each worker's numbers are.
struct Model {
    has: BTreeMap<(usize, usize), Resident>,
    epochs: [u64; WORKERS],
    sequences: [u64; WORKERS],
}

impl Model {
    fn new() -> Self {
        Self { has: BTreeMap::new(), epochs: [1; WORKERS], sequences: [0; WORKERS] }
    }

    fn resident(&mut self, worker: usize, tier: usize) -> &mut Resident {
        self.has.entry((worker, tier)).or_default()
    }

    fn store(&mut self, (worker, tier): (usize, usize), names: &[BlockName]) {
        for (at, name) in names.iter().enumerate() {
            self.resident(worker, tier).insert(*name, at.checked_sub(1).map(|up| names[up]));
        }
    }

    /// Removes a block and all that follow it.
    fn remove(&mut self, (worker, tier): (usize, usize), name: BlockName) {
        let resident = self.resident(worker, tier);
        let mut gone = BTreeSet::from([name]);
        loop {
            let more: Vec<_> = resident
                .iter()
                .filter(|(name, up)| up.is_some_and(|up| gone.contains(&up)) && !gone.contains(name))
                .map(|(name, _)| *name)
                .collect();
            if more.is_empty() {
                break;
            }
            gone.extend(more);
        }
        resident.retain(|name, _| !gone.contains(name));
    }

    fn forget(&mut self, worker: usize) {
        self.has.retain(|(owner, _), _| *owner != worker);
    }

    fn send(&mut self, index: &PrefixIndex, worker: usize, changes: &[Change<'_>]) {
        let (epoch, sequence) = (self.epochs[worker], self.sequences[worker]);
        let batch = Batch { worker: worker as u16, epoch, sequence, changes };
        assert_eq!(index.apply(&batch), Receipt::Applied);
        assert_eq!(index.apply(&batch), Receipt::Duplicate);
        self.sequences[worker] += 1;
    }

    fn step(&mut self, index: &PrefixIndex, op: &Op) {
        match op {
            Op::Store { worker, tier, tokens } => {
                let names = names(tokens);
                let has = self.resident(*worker, *tier);
                let known = names.iter().take_while(|name| has.contains_key(name)).count();
                // Some of what it has is told again.
                let from = known.saturating_sub(tokens.len() % 3);
                let parent = from.checked_sub(1).map(|up| names[up]);
                self.store((*worker, *tier), &names);
                self.send(
                    index,
                    *worker,
                    &[Change::Stored { tier: TIERS[*tier], parent, names: &names[from..] }],
                );
            }
            Op::Remove { worker, tier, places } => {
                let has: Vec<_> = self.resident(*worker, *tier).keys().copied().collect();
                let gone: Vec<_> = places.iter().filter_map(|at| has.get(*at).copied()).collect();
                gone.iter().for_each(|name| self.remove((*worker, *tier), *name));
                self.send(index, *worker, &[Change::Removed { tier: TIERS[*tier], names: &gone }]);
            }
            Op::Evict { worker, tier, start, count } => self.evict(index, (*worker, *tier), (*start, *count)),
            Op::Forget { worker } => {
                self.forget(*worker);
                index.forget(*worker);
                (self.epochs[*worker], self.sequences[*worker]) = (self.epochs[*worker] + 1, 0);
            }
            Op::Snapshot { worker, tokens } => self.snapshot(index, *worker, tokens),
            Op::Restart { worker, tokens } => {
                self.forget(*worker);
                (self.epochs[*worker], self.sequences[*worker]) = (self.epochs[*worker] + 1, 0);
                self.step(index, &Op::Store { worker: *worker, tier: 0, tokens: tokens.clone() });
            }
        }
    }

    /// What a pool does: the last block of some chain, then the one before it.
    fn evict(&mut self, index: &PrefixIndex, (worker, tier): (usize, usize), (start, count): (usize, usize)) {
        let mut gone = Vec::new();
        let resident = self.resident(worker, tier);
        while gone.len() < count && !resident.is_empty() {
            let ups: BTreeSet<_> = resident.values().flatten().copied().collect();
            let leaves: Vec<_> = resident.keys().filter(|name| !ups.contains(name)).copied().collect();
            let mut at = leaves.get(start % leaves.len()).copied();
            while let Some(name) =
                at.filter(|name| gone.len() < count && !resident.values().any(|up| *up == Some(*name)))
            {
                gone.push(name);
                at = resident.remove(&name).flatten();
            }
        }
        self.send(index, worker, &[Change::Removed { tier: TIERS[tier], names: &gone }]);
    }

    fn snapshot(&mut self, index: &PrefixIndex, worker: usize, tokens: &[u32]) {
        // Two batches that are lost, and one that comes too early.
        self.store((worker, 1), &names(tokens));
        self.sequences[worker] += 3;
        let (epoch, sequence) = (self.epochs[worker], self.sequences[worker]);
        let early = Batch { worker: worker as u16, epoch, sequence: sequence - 1, changes: &[] };
        assert!(matches!(index.apply(&early), Receipt::Gap { .. }));
        let blocks = self.has.iter().filter(|((owner, _), _)| *owner == worker);
        let blocks: Vec<_> = blocks
            .flat_map(|((_, tier), blocks)| {
                blocks.iter().map(|(name, parent)| (TIERS[*tier], *parent, *name))
            })
            .map(|(tier, parent, name)| SnapshotBlock { tier, parent, name })
            .collect();
        let snapshot = Snapshot { worker: worker as u16, epoch, sequence, blocks: &blocks };
        assert_eq!(index.replace(&snapshot), Receipt::Applied);
    }

    fn overlaps(&self, names: &[BlockName]) -> BTreeMap<(usize, usize), u32> {
        let count = |has: &Resident| names.iter().take_while(|name| has.contains_key(name)).count() as u32;
        let all = self.has.iter().map(|(holder, has)| (*holder, count(has)));
        all.filter(|(_, blocks)| *blocks > 0).collect()
    }
}

fn found(index: &PrefixIndex, names: &[BlockName]) -> BTreeMap<(usize, usize), u32> {
    let mut overlaps = Overlaps::default();
    index.lookup(names, 1, &mut overlaps);
    let holders = overlaps.iter().map(|found| {
        let tier = TIERS.iter().position(|tier| *tier == found.holder.tier).unwrap();
        ((usize::from(found.holder.worker), tier), found.blocks)
    });
    let all: BTreeMap<_, _> = holders.collect();
    assert_eq!(all.len(), overlaps.iter().count(), "a holder is found once");
    assert_eq!(all.len(), overlaps.len());
    all
}

fn check_against_model(ops: &[Op], asked: &[Vec<u32>]) {
    let index = PrefixIndex::new(WORKERS);
    let mut model = Model::new();
    for op in ops {
        model.step(&index, op);
        if let Op::Store { tokens, .. } = op {
            let names = names(tokens);
            assert_eq!(found(&index, &names), model.overlaps(&names));
        }
        let distinct: BTreeSet<_> = model.has.values().flat_map(|has| has.keys()).collect();
        assert_eq!(index.len(), distinct.len());
    }
    for tokens in asked.iter().chain(ops.iter().filter_map(|op| match op {
        Op::Store { tokens, .. } => Some(tokens),
        _ => None,
    })) {
        let names = names(tokens);
        let expected = model.overlaps(&names);
        assert_eq!(found(&index, &names), expected);
        for (worker, blocks) in overlap(&index, &names).into_iter().enumerate() {
            assert_eq!(blocks, expected.get(&(worker, 0)).copied().unwrap_or(0));
        }
    }
    for ((worker, tier), has) in &model.has {
        assert_eq!(index.held(Holder { worker: *worker as u16, tier: TIERS[*tier] }), has.len() as u64);
    }
    let memberships: usize = model.has.values().map(BTreeMap::len).sum();
    assert_eq!(index.stats().memberships, memberships as u64);
    for worker in 0..WORKERS {
        index.forget(worker);
    }
    let stats = index.stats();
    assert_eq!((stats.blocks, stats.memberships, stats.runs), (0, 0, 0));
    let books = &index.ledger.lock().books;
    assert_eq!((books.table.len(), books.pages.len(), books.runs.len()), (0, 0, 0), "nothing is left behind");
}

/// Whatever is pruned, answers are never more than what workers have, and the bound holds.
fn check_bound(ops: &[Op], blocks_max: usize) {
    let index = PrefixIndex::with_limits(IndexLimits { workers_max: WORKERS, blocks_max });
    let mut model = Model::new();
    for op in ops {
        model.step(&index, op);
        assert!(index.len() <= blocks_max);
        if let Op::Store { tokens, .. } = op {
            let names = names(tokens);
            let most = model.overlaps(&names);
            for (holder, blocks) in found(&index, &names) {
                assert!(blocks <= most.get(&holder).copied().unwrap_or(0));
            }
        }
    }
    let memberships: u64 =
        (0..WORKERS as u16).flat_map(|worker| TIERS.map(|tier| index.held(Holder { worker, tier }))).sum();
    assert_eq!(index.stats().memberships, memberships);
}

/// Fed by real pools, the index agrees with plain sets of names.
fn check_pools(prompts: &[(usize, Vec<u32>)], pages: u32) {
    let index = PrefixIndex::new(WORKERS);
    let mut pools: Vec<_> = (0..WORKERS).map(|_| BlockPool::new(pages, 1)).collect();
    let mut model = vec![BTreeSet::new(); WORKERS];
    for (worker, tokens) in prompts {
        let (pool, names) = (&mut pools[*worker], names(tokens));
        let mut held = pool.pin_prefix(&names);
        let lent = held.len().saturating_sub(1);
        for at in held.len()..names.len() {
            let Ok(page) = pool.allocate(1) else { break };
            pool.seal(page[0], names[at], at.checked_sub(1).map(|up| names[up]));
            held.extend(page);
        }
        pool.release(&held[lent..]);
        let events: Vec<_> = pool.drain_events().collect();
        for event in &events {
            match event {
                KvEvent::Stored { name, .. } => model[*worker].insert(*name),
                KvEvent::Removed { name } => model[*worker].remove(name),
            };
        }
        index.follow(*worker, events);
        let count =
            |has: &BTreeSet<BlockName>| names.iter().take_while(|name| has.contains(name)).count() as u32;
        assert_eq!(overlap(&index, &names), model.iter().map(count).collect::<Vec<_>>());
    }
    let distinct: BTreeSet<_> = model.iter().flatten().collect();
    assert_eq!(index.len(), distinct.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever the batches, the index agrees with plain sets of names.
    #[test]
    fn the_index_matches_the_model(ops in vec(op(), 1..60), asked in vec(prompt(), 1..10)) {
        check_against_model(&ops, &asked);
    }

    #[test]
    fn pruning_only_takes_away(ops in vec(op(), 1..60), blocks_max in 1usize..120) {
        check_bound(&ops, blocks_max);
    }

    #[test]
    fn the_index_follows_real_pools(
        prompts in vec((0..WORKERS, vec(0u32..3, 1..12)), 1..40),
        pages in 1u32..20,
    ) {
        check_pools(&prompts, pages);
    }
}

#[test]
fn a_run_that_ended_where_another_grew_on_is_not_in_the_way() {
    let prompts: [(usize, &[u32]); 8] = [
        (3, &[1, 2, 0]),
        (1, &[1, 2, 1]),
        (1, &[0; 9]),
        (3, &[2, 0, 0, 0, 0, 0]),
        (3, &[1, 2, 2]),
        (0, &[1, 2, 0]),
        (3, &[1, 0]),
        (0, &[0]),
    ];
    check_pools(&prompts.map(|(worker, tokens)| (worker, tokens.to_vec())), 7);
}
