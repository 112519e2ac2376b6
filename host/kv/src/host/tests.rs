use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::{Fingerprint, KeepBound};

const BLOCK_BYTES: usize = 96;
const IN_FLIGHT: u32 = 6;

fn names(tokens: &[u32]) -> Vec<BlockName> {
    BlockName::names(Fingerprint(1), 0, tokens, 1)
}

fn tier(blocks: u32) -> HostTier {
    HostTier::new(blocks, BLOCK_BYTES, 1, IN_FLIGHT).unwrap()
}

/// The bytes of a block, which its name says.
fn bytes_of(name: BlockName) -> Vec<u8> {
    name.0.to_le_bytes().into_iter().cycle().take(BLOCK_BYTES).collect()
}

/// Block `at` of a prompt, computed and saved.
fn block(mut slot: SlotMut, names: &[BlockName], at: usize, retention: Retention) -> Block {
    slot.copy_from_slice(&bytes_of(names[at]));
    let parent = at.checked_sub(1).map(|up| names[up]);
    Block { name: names[at], parent, slot: slot.freeze(), retention, tenant: 7 }
}

/// Puts all of a prompt; the names of the blocks that made room.
fn put_all(tier: &HostTier, tokens: &[u32]) -> Vec<BlockName> {
    let names = names(tokens);
    let mut left = Vec::new();
    for at in 0..names.len() {
        let slot = tier.take_slot().expect("a slot in flight");
        match tier.put(block(slot, &names, at, Retention::ORDINARY)) {
            Put::Stored { evicted } => left.extend(evicted.map(|block| block.name)),
            Put::Duplicate => {}
            refused => panic!("block {at} was refused: {refused:?}"),
        }
    }
    left
}

fn check_bytes(names: &[BlockName], slots: &[Slot]) {
    for (name, slot) in names.iter().zip(slots) {
        assert_eq!(slot[..], bytes_of(*name), "the bytes are those that were put under the name");
    }
}

#[test]
fn what_was_put_is_got_as_far_as_it_is_a_prefix() {
    let tier = tier(8);
    put_all(&tier, &[1, 2, 3]);
    let asked = names(&[1, 2, 4]);
    let got = tier.get_prefix(&asked);
    assert_eq!((got.len(), tier.resident_prefix(&asked)), (2, 2));
    check_bytes(&asked, &got);
    assert!(tier.contains(names(&[1, 2, 3])[2]) && !tier.contains(asked[2]));
    let stats = tier.stats();
    assert_eq!((stats.hits, stats.misses, stats.blocks, stats.bytes), (2, 1, 3, 3 * BLOCK_BYTES as u64));
}

#[test]
fn an_evicted_block_is_handed_to_the_caller_and_read_on_by_who_has_it() {
    let tier = tier(2);
    put_all(&tier, &[1]);
    let read = tier.get_prefix(&names(&[1]));
    put_all(&tier, &[2]);
    let new = names(&[3]);
    let Put::Stored { evicted: Some(gone) } =
        tier.put(block(tier.take_slot().unwrap(), &new, 0, Retention::ORDINARY))
    else {
        panic!("a full tier makes room")
    };
    assert_eq!((gone.name, gone.parent, &gone.slot[..]), (names(&[1])[0], None, &bytes_of(gone.name)[..]));
    let free = tier.arena().free();
    drop(gone);
    assert_eq!(tier.arena().free(), free, "a reader has the slot");
    check_bytes(&names(&[1]), &read);
    drop(read);
    assert_eq!(tier.arena().free(), free + 1);
}

#[test]
fn a_child_makes_room_by_another_block_than_its_parent() {
    let tier = tier(2);
    put_all(&tier, &[1]);
    put_all(&tier, &[9]);
    tier.get_prefix(&names(&[9]));
    let put = tier.put(block(tier.take_slot().unwrap(), &names(&[1, 2]), 1, Retention::ORDINARY));
    let Put::Stored { evicted: Some(gone) } = put else { panic!("another block makes room: {put:?}") };
    assert_eq!(gone.name, names(&[9])[0], "the parent was used longest ago");
    drop(gone);
    let deeper = names(&[1, 2, 3]);
    let put = tier.put(block(tier.take_slot().unwrap(), &deeper, 2, Retention::ORDINARY));
    assert!(matches!(put, Put::Full), "its prefix has all places");
    let put = tier.put(block(tier.take_slot().unwrap(), &names(&[5, 6]), 1, Retention::ORDINARY));
    assert!(matches!(put, Put::Orphan));
    assert_eq!((tier.stats().refused, tier.stats().evicted, tier.stats().blocks), (2, 1, 2));
    assert_eq!(tier.arena().free(), IN_FLIGHT, "slots of refused blocks are free again");
}

#[test]
fn a_duplicate_is_worth_the_larger_of_both() {
    let tier = tier(4);
    let worth = |priority, until_ms| Retention { priority, until_ms, drop: false };
    let one = names(&[1]);
    for (retention, expected) in
        [(worth(10, 0), worth(10, 0)), (worth(60, 5), worth(60, 5)), (Retention::DROPPED, worth(60, 5))]
    {
        tier.put(block(tier.take_slot().unwrap(), &one, 0, retention));
        assert_eq!(tier.retention(one[0]), Some(expected));
    }
    assert_eq!((tier.stats().duplicates, tier.stats().stored, tier.stats().kept), (2, 1, 1));
    tier.expire(5);
    assert_eq!((tier.stats().expired, tier.stats().kept), (1, 0));
}

#[test]
fn what_is_kept_is_bounded_and_leaves_last() {
    let tier = tier(3);
    tier.set_keep_bounds(KeepBounds { pages_max: 1, tenant_pages_max: 1 });
    for token in 1..=3 {
        put_all(&tier, &[token]);
    }
    let keep = Retention { priority: 50, until_ms: 10, drop: false };
    assert_eq!(tier.retain(names(&[1])[0], keep, 7), Retained::Granted);
    assert_eq!(tier.retain(names(&[2])[0], keep, 7), Retained::Unkept(KeepBound::Pages));
    assert_eq!(tier.retain(names(&[3])[0], Retention::DROPPED, 7), Retained::Granted);
    assert_eq!(put_all(&tier, &[4]), names(&[3]));
    assert_eq!(put_all(&tier, &[5]), names(&[2]));
    assert_eq!((tier.stats().dropped, tier.stats().evicted), (1, 1));
}

#[test]
fn removing_a_prompt_leaves_what_others_go_on_after() {
    let tier = tier(2000);
    let long: Vec<u32> = (0..600).collect();
    put_all(&tier, &long);
    put_all(&tier, &[0, 1, 7]);
    assert_eq!(tier.get_prefix(&names(&long)).len(), 600, "in several turns under the lock");
    assert_eq!(tier.remove(&names(&long)), 598);
    assert_eq!(tier.resident_prefix(&names(&[0, 1, 7])), 3);
    assert_eq!((tier.stats().blocks, tier.stats().flushed), (3, 598));
    put_all(&tier, &long);
    assert_eq!(tier.flush(), 601);
    assert_eq!((tier.stats().blocks, tier.arena().free()), (0, 2000 + IN_FLIGHT));
}

#[test]
fn an_index_that_missed_events_is_told_everything() {
    let tier = tier(8);
    tier.books.lock().events_max = 4;
    put_all(&tier, &[1, 2]);
    let stored = |tokens: &[u32]| -> Vec<KvEvent> {
        let (names, mut parent) = (names(tokens), None);
        names.into_iter().map(|name| KvEvent::Stored { name, parent: parent.replace(name) }).collect()
    };
    assert_eq!(tier.drain_events(), HostEvents::Changes(stored(&[1, 2])));
    put_all(&tier, &[1, 2, 3, 4, 5, 6, 7]);
    tier.remove(&names(&[1, 2, 3, 4, 5, 6, 7])[3..]);
    let HostEvents::Everything(all) = tier.drain_events() else { panic!("five events do not fit") };
    assert!(all.len() == 3 && stored(&[1, 2, 3]).iter().all(|event| all.contains(event)), "{all:?}");
    assert_eq!(tier.drain_events(), HostEvents::Changes(Vec::new()));
}

#[test]
#[should_panic(expected = "a block is put in a slot of its tier")]
fn a_slot_of_another_tier_is_our_own_mistake() {
    let other = tier(1);
    tier(1).put(block(other.take_slot().unwrap(), &names(&[1]), 0, Retention::ORDINARY));
}

/// What one of several workers does next.
#[derive(Clone, Debug)]
enum Op {
    /// Computes a block of a prompt into a slot.
    Save(Vec<u32>, Retention),
    /// Puts what was saved longest ago.
    Put,
    /// Reads a prompt, and holds what it got.
    Get(Vec<u32>),
    /// Lets go of what it held longest.
    LetGo,
    Retain(Vec<u32>, Retention),
    Remove(Vec<u32>),
    Expire(u64),
    Flush,
}

const WORKERS: usize = 3;

fn any_op() -> impl Strategy<Value = Op> {
    let prompt = || vec(0u32..2, 1..7);
    let worth = || {
        prop_oneof![
            Just(Retention::ORDINARY),
            Just(Retention::DROPPED),
            (0u8..=100, 0u64..9).prop_map(|(priority, until_ms)| Retention {
                priority,
                until_ms,
                drop: false
            }),
        ]
    };
    prop_oneof![
        12 => (prompt(), worth()).prop_map(|(at, of)| Op::Save(at, of)),
        12 => Just(Op::Put),
        5 => prompt().prop_map(Op::Get),
        4 => Just(Op::LetGo),
        3 => (prompt(), worth()).prop_map(|(at, of)| Op::Retain(at, of)),
        2 => prompt().prop_map(Op::Remove),
        1 => (0u64..9).prop_map(Op::Expire),
        1 => prop::bool::weighted(0.2).prop_map(|all| if all { Op::Flush } else { Op::LetGo }),
    ]
}

#[derive(Default)]
struct Worker {
    /// Blocks in flight to the tier, and to a slower one.
    saved: Vec<Block>,
    written_back: Vec<Block>,
    held: Vec<(Vec<BlockName>, Vec<Slot>)>,
}

/// What is resident, and what it goes on after.
type Resident = BTreeMap<BlockName, Option<BlockName>>;

fn leave(resident: &mut Resident, name: BlockName) {
    assert!(resident.remove(&name).is_some(), "what leaves was there");
    assert!(resident.values().all(|parent| *parent != Some(name)), "a block leaves after its children");
}

/// One worker does one thing.
fn step(tier: &HostTier, worker: &mut Worker, resident: &mut Resident, op: Op) {
    let known = |resident: &Resident, names: &[BlockName]| {
        names.iter().take_while(|n| resident.contains_key(n)).count()
    };
    match op {
        Op::Save(tokens, retention) => {
            let names = names(&tokens);
            match tier.take_slot() {
                Some(slot) => worker.saved.push(block(
                    slot,
                    &names,
                    known(resident, &names).min(names.len() - 1),
                    retention,
                )),
                None => worker.written_back.clear(),
            }
        }
        Op::Put if !worker.saved.is_empty() => {
            let block = worker.saved.remove(0);
            let (name, parent) = (block.name, block.parent);
            match tier.put(block) {
                Put::Stored { evicted } => {
                    assert!(parent.is_none_or(|up| resident.contains_key(&up)));
                    if let Some(block) = evicted {
                        assert_ne!(Some(block.name), parent, "a block does not make room by its parent");
                        assert_eq!(resident.get(&block.name), Some(&block.parent));
                        leave(resident, block.name);
                        worker.written_back.push(block);
                    }
                    assert_eq!(resident.insert(name, parent), None);
                }
                Put::Duplicate => assert!(resident.contains_key(&name)),
                Put::Orphan => assert!(!resident.contains_key(&parent.expect("a first block has no parent"))),
                Put::Full => assert_eq!(resident.len(), tier.stats().blocks_max as usize),
            }
        }
        Op::Get(tokens) => {
            let names = names(&tokens);
            let found = known(resident, &names);
            assert_eq!(tier.resident_prefix(&names), found);
            let slots = tier.get_prefix(&names);
            assert_eq!(slots.len(), found);
            worker.held.push((names, slots));
        }
        Op::LetGo if !worker.held.is_empty() => drop(worker.held.remove(0)),
        Op::Retain(tokens, retention) => {
            let name = *names(&tokens).last().expect("a block");
            let absent = tier.retain(name, retention, u64::from(tokens[0])) == Retained::Absent;
            assert_eq!(absent, !resident.contains_key(&name));
        }
        Op::Remove(tokens) => {
            let (names, before) = (names(&tokens), resident.len());
            for name in names.iter().rev() {
                if resident.contains_key(name) && resident.values().all(|parent| *parent != Some(*name)) {
                    leave(resident, *name);
                }
            }
            assert_eq!(tier.remove(&names) as usize, before - resident.len());
        }
        Op::Expire(now_ms) => tier.expire(now_ms),
        Op::Flush => {
            assert_eq!(tier.flush() as usize, resident.len());
            resident.clear();
        }
        Op::Put | Op::LetGo => {}
    }
}

/// What holds after each step.
fn check_laws(tier: &HostTier, workers: &[Worker], resident: &Resident, index: &BTreeSet<BlockName>) {
    let stats = tier.stats();
    assert_eq!(stats.blocks as usize, resident.len());
    assert!(stats.blocks <= stats.blocks_max);
    assert_eq!(stats.stored, u64::from(stats.blocks) + stats.evicted + stats.dropped + stats.flushed);
    assert!(index.iter().eq(resident.keys()), "an index that is told knows what is resident");
    // Each slot in use has one block, whoever reads it.
    let mut used: BTreeMap<*const u8, BlockName> = BTreeMap::new();
    let mut note = |name: BlockName, slot: &Slot| {
        assert_eq!(slot[..], bytes_of(name), "bytes of a block never change");
        let known = used.insert(slot.as_ptr(), name);
        assert!(known.is_none_or(|known| known == name), "no slot is owned twice");
    };
    for slot in tier.books.lock().slots.iter().flatten() {
        note(name_of(slot), slot);
    }
    for worker in workers {
        worker.saved.iter().chain(&worker.written_back).for_each(|block| note(block.name, &block.slot));
        worker.held.iter().flat_map(|(names, slots)| names.iter().zip(slots)).for_each(|(n, s)| note(*n, s));
    }
    assert_eq!(tier.arena().free() as usize + used.len(), tier.arena().slots() as usize, "no slot is lost");
}

fn name_of(slot: &Slot) -> BlockName {
    BlockName(u128::from_le_bytes(slot[..16].try_into().expect("16 bytes")))
}

fn apply(index: &mut BTreeSet<BlockName>, events: HostEvents) {
    let HostEvents::Changes(events) = events else { panic!("all events fit") };
    for event in events {
        match event {
            KvEvent::Stored { name, .. } => assert!(index.insert(name)),
            KvEvent::Removed { name } => assert!(index.remove(&name)),
        }
    }
}

proptest! {
    /// Whatever several workers do in turns, blocks keep their bytes, slots have one owner, and counts balance.
    #[test]
    fn workers_share_a_tier(blocks in 1u32..9, schedule in vec((0..WORKERS, any_op()), 1..150)) {
        let tier = tier(blocks);
        tier.set_keep_bounds(KeepBounds { pages_max: 3, tenant_pages_max: 2 });
        let mut workers: Vec<Worker> = (0..WORKERS).map(|_| Worker::default()).collect();
        let (mut resident, mut index) = (Resident::new(), BTreeSet::new());
        let mut asked = 0;
        for (worker, op) in schedule {
            if let Op::Get(tokens) = &op {
                asked += tokens.len() as u64;
            }
            step(&tier, &mut workers[worker], &mut resident, op);
            apply(&mut index, tier.drain_events());
            check_laws(&tier, &workers, &resident, &index);
            prop_assert_eq!(tier.stats().hits + tier.stats().misses, asked);
        }
        workers.clear();
        prop_assert_eq!(tier.arena().free() as usize + resident.len(), tier.arena().slots() as usize);
    }
}

/// A sequence of numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn prompt(&mut self) -> Vec<BlockName> {
        let len = 1 + self.roll(9);
        names(&(0..len).map(|_| self.roll(3) as u32).collect::<Vec<_>>())
    }
}

/// One thread's turns: reads, puts what it misses, and now and then says or clears something. How many blocks it asked
/// for.
fn live(tier: &HostTier, seed: u64, turns: usize) -> u64 {
    let (mut dice, mut held, mut asked) = (Dice(seed), Vec::new(), 0);
    for _ in 0..turns {
        let names = dice.prompt();
        let got = tier.get_prefix(&names);
        asked += names.len() as u64;
        check_bytes(&names, &got);
        for at in got.len()..names.len() {
            let Some(slot) = tier.take_slot() else { break };
            if let Put::Stored { evicted: Some(gone) } =
                tier.put(block(slot, &names, at, Retention::ORDINARY))
            {
                check_bytes(&[gone.name], &[gone.slot]);
            }
        }
        held.push((names, got));
        if held.len() > 3 {
            let (names, slots) = held.swap_remove(dice.roll(3) as usize);
            check_bytes(&names, &slots);
        }
        let name = *dice.prompt().last().expect("a block");
        match dice.roll(60) {
            0 => {
                tier.flush();
            }
            1..5 => {
                tier.remove(&dice.prompt());
            }
            5..12 => {
                tier.retain(name, Retention { priority: 70, until_ms: 5, drop: false }, seed);
            }
            12..16 => {
                tier.retain(name, Retention::DROPPED, seed);
            }
            16 => tier.expire(5),
            17 => drop(tier.drain_events()),
            _ => {}
        }
    }
    held.iter().for_each(|(names, slots)| check_bytes(names, slots));
    asked
}

#[test]
fn threads_that_share_a_tier_read_what_was_put() {
    let tier = Arc::new(HostTier::new(40, BLOCK_BYTES, 1, 48).unwrap());
    tier.set_keep_bounds(KeepBounds { pages_max: 9, tenant_pages_max: 4 });
    let threads: Vec<_> = (1..=4)
        .map(|seed| {
            let tier = Arc::clone(&tier);
            std::thread::spawn(move || live(&tier, seed, 3000))
        })
        .collect();
    let asked: u64 = threads.into_iter().map(|thread| thread.join().expect("no thread fails")).sum();
    let stats = tier.stats();
    assert_eq!(stats.hits + stats.misses, asked);
    assert_eq!(stats.stored, u64::from(stats.blocks) + stats.evicted + stats.dropped + stats.flushed);
    assert!(stats.hits > 1000 && stats.evicted > 1000 && stats.flushed > 100, "all was tried: {stats:?}");
    assert_eq!(tier.arena().free(), tier.arena().slots() - stats.blocks);
}
