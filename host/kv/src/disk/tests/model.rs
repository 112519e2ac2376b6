//! The bookkeeping and the whole tier against a slow model: a plain map, searched whole for what leaves next.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::residents::{Placed, Residents, class};
use super::*;

#[derive(Clone, Debug)]
struct Known {
    parent: Option<u64>,
    retention: Retention,
    used: u64,
    readers: u32,
}

#[derive(Clone, Debug, Default)]
struct Model {
    blocks: BTreeMap<u64, Known>,
    uses: u64,
    now_ms: u64,
}

impl Model {
    fn use_once(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    /// What leaves first when `coming` is about to come.
    fn first_to_leave(&self, coming: Option<u64>) -> Option<u64> {
        let is_parent =
            |n: u64| coming == Some(n) || self.blocks.values().any(|known| known.parent == Some(n));
        let leaves = self.blocks.iter().filter(|(n, known)| known.readers == 0 && !is_parent(**n));
        leaves.min_by_key(|(_, known)| (class(known.retention), known.used)).map(|(n, _)| *n)
    }

    fn put(&mut self, n: u64, parent: Option<u64>, retention: Retention, slots: usize) {
        if self.blocks.contains_key(&n) {
            return;
        }
        if self.blocks.len() == slots {
            match self.first_to_leave(parent) {
                Some(first) if class(self.blocks[&first].retention) <= class(retention) => {
                    self.blocks.remove(&first);
                }
                _ => return,
            }
        }
        let used = self.use_once();
        self.blocks.insert(n, Known { parent, retention, used, readers: 0 });
    }

    fn touch(&mut self, n: u64) {
        if self.blocks.contains_key(&n) {
            let used = self.use_once();
            let known = self.blocks.get_mut(&n).unwrap();
            known.used = used;
            if known.retention.drop {
                known.retention = Retention::ORDINARY;
            }
        }
    }

    fn retain(&mut self, n: u64, retention: Retention) {
        if let Some(known) = self.blocks.get_mut(&n) {
            known.retention = retention;
        }
    }

    fn expire(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        for known in self.blocks.values_mut() {
            if known.retention.is_kept() && known.retention.until_ms <= now_ms {
                known.retention.until_ms = 0;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put(u64, Option<u64>, Retention),
    Get(u64),
    Retain(u64, Retention),
    Remove(u64),
    Pin(u64),
    Unpin(u64),
    Pass(u64),
    Evict,
    Reopen,
}

fn any_retention() -> impl Strategy<Value = Retention> {
    prop_oneof![
        4 => Just(Retention::ORDINARY),
        1 => Just(Retention::DROPPED),
        1 => (0u8..4, 0u64..3).prop_map(|(priority, s)| Retention {
            priority: priority * 20,
            until_ms: s * 7_000,
            drop: false,
        }),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    let block = 0u64..14;
    prop_oneof![
        // A parent is any lower block, so that the tree has no rings.
        8 => (block.clone(), any::<prop::sample::Index>(), any::<bool>(), any_retention()).prop_map(
            |(n, at, has_parent, retention)| {
                Op::Put(n, (has_parent && n > 0).then(|| at.index(n as usize) as u64), retention)
            }
        ),
        3 => block.clone().prop_map(Op::Get),
        2 => (block.clone(), any_retention()).prop_map(|(n, retention)| Op::Retain(n, retention)),
        1 => block.clone().prop_map(Op::Remove),
        1 => block.clone().prop_map(Op::Pin),
        2 => block.prop_map(Op::Unpin),
        1 => (0u64..5_000).prop_map(Op::Pass),
        2 => Just(Op::Evict),
        1 => Just(Op::Reopen),
    ]
}

/// The bookkeeping alone, which has readers and evicts when told.
fn check_residents(ops: &[Op]) {
    let mut residents = Residents::new(32);
    residents.add_slots(32);
    let mut free: Vec<u32> = (0..32).collect();
    let mut model = Model::default();
    for op in ops {
        match *op {
            Op::Put(n, parent, retention) if residents.find(&name(n)).is_none() => {
                let (slot, parent_name) = (free.pop().unwrap(), parent.map(name));
                model.put(n, parent, retention, usize::MAX);
                residents.adopt(parent_name);
                let used = model.uses;
                let (name, parent) = (name(n), parent_name);
                assert!(residents.place(slot, Placed { name, parent, retention, generation: used, used }));
            }
            Op::Get(n) => {
                model.touch(n);
                residents.find(&name(n)).into_iter().for_each(|slot| residents.touch(slot, model.uses));
            }
            Op::Retain(n, retention) => {
                model.retain(n, retention);
                residents.find(&name(n)).into_iter().for_each(|slot| residents.retain(slot, retention));
            }
            Op::Remove(n) => {
                model.blocks.remove(&n);
                if let Some(slot) = residents.find(&name(n)) {
                    residents.leave(slot);
                    free.push(slot);
                }
            }
            Op::Pin(n) => {
                if let Some(known) = model.blocks.get_mut(&n) {
                    known.readers += 1;
                    assert!(residents.pin(residents.find(&name(n)).unwrap()));
                }
            }
            Op::Unpin(n) => {
                if let Some(known) = model.blocks.get_mut(&n).filter(|known| known.readers > 0) {
                    known.readers -= 1;
                    let slot = residents.find(&name(n)).unwrap();
                    residents.unpin(slot, residents.entry(slot).generation());
                    // Who read another block that was here before changes nothing.
                    residents.unpin(slot, u64::MAX);
                }
            }
            Op::Pass(ms) => {
                model.expire(model.now_ms + ms);
                residents.expire(model.now_ms);
            }
            Op::Evict => {
                if let Some((slot, _)) = residents.first_to_leave() {
                    model.blocks.remove(&model.first_to_leave(None).unwrap());
                    residents.leave(slot);
                    free.push(slot);
                }
            }
            Op::Put(..) | Op::Reopen => {}
        }
        let first = residents.first_to_leave().map(|(slot, _)| residents.entry(slot).name());
        assert_eq!(first, model.first_to_leave(None).map(name), "after {op:?}");
        assert_eq!(residents.len(), model.blocks.len());
        let kept = model.blocks.values().filter(|known| known.retention.is_kept()).count();
        assert_eq!(residents.kept(), kept, "after {op:?}");
    }
}

/// The tier, one job at a time.
fn check_tier(ops: &[Op]) {
    const SLOTS: u64 = 6;
    let folder = TempDir::new().unwrap();
    let mut rig = Rig::open_at(folder.path(), SLOTS, 0);
    let mut model = Model::default();
    for op in ops {
        match *op {
            Op::Put(n, parent, retention) => {
                model.put(n, parent, retention, SLOTS as usize);
                rig.put_block(Block { name: name(n), parent: parent.map(name), retention });
                rig.settle();
            }
            Op::Get(n) => {
                model.touch(n);
                assert_eq!(rig.get(n).is_ok(), model.blocks.contains_key(&n));
            }
            Op::Retain(n, retention) => {
                model.retain(n, retention);
                assert_eq!(rig.tier.retain(&name(n), retention), model.blocks.contains_key(&n));
            }
            Op::Remove(n) => {
                assert_eq!(rig.tier.remove(&name(n)), model.blocks.remove(&n).is_some());
                rig.settle();
            }
            Op::Pass(ms) => {
                model.expire(model.now_ms + ms);
                rig.tier.expire(model.now_ms);
            }
            Op::Reopen => {
                model.expire(model.now_ms);
                drop(rig);
                rig = Rig::open_at(folder.path(), SLOTS, model.now_ms);
                assert!(!rig.recovered.rebuilt, "{:?}", rig.recovered);
            }
            Op::Pin(_) | Op::Unpin(_) | Op::Evict => {}
        }
        let expected: Vec<u64> = model.blocks.keys().copied().collect();
        assert_eq!(rig.resident(0..14), expected, "after {op:?}");
    }
    let stats = rig.tier.stats();
    assert!(stats.bytes <= stats.bytes_max);
    let errors =
        (stats.corrupt, stats.read_errors + stats.write_errors + stats.sync_errors + stats.index_errors);
    assert_eq!(errors, (0, 0), "{stats:?}");
}

proptest! {
    /// Whatever is put, used, wished and removed, the block that leaves next is the one that the rules name.
    #[test]
    fn the_order_of_leaving_matches_the_model(ops in vec(any_op(), 1..120)) {
        check_residents(&ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The tier holds what the model holds, through restarts, and serves every block right.
    #[test]
    fn the_tier_matches_the_model(ops in vec(any_op(), 1..80)) {
        check_tier(&ops);
    }
}

#[test]
fn every_clean_end_is_found_clean() {
    let folder = TempDir::new().unwrap();
    for turn in 0..300 {
        let rig = Rig::open(folder.path(), 6);
        assert!(!rig.recovered.rebuilt, "turn {turn}: {:?}", rig.recovered);
        rig.put(turn);
        if turn % 3 == 0 {
            rig.settle();
            let _gone = rig.tier.remove(&name(turn / 2));
        }
        if turn % 5 == 0 {
            let _read = rig.get(turn / 3 * 2);
        }
    }
}
