//! The tier on a real folder. Blocks have bytes that follow from their names, so whatever is served can be checked.

mod faults;
mod model;
mod speed;

use std::sync::mpsc::{Receiver, channel};

use tempfile::TempDir;

use super::*;
use crate::{Arena, Fingerprint};

const BLOCK_BYTES: usize = 10_000;
const GEOMETRY: Geometry =
    Geometry { block_bytes: BLOCK_BYTES, block_tokens: 16, fingerprint: Fingerprint(42) };
/// Bytes from one slot to the next.
const STRIDE: u64 = 4096 + 12_288;

fn quota(slots: u64) -> u64 {
    4096 + slots * STRIDE
}

fn config(folder: &Path, slots: u64) -> Config {
    Config {
        threads: 2,
        sync_every: Duration::from_millis(5),
        retry_after: Duration::from_millis(50),
        ..Config::new(folder, quota(slots))
    }
}

fn name(n: u64) -> BlockName {
    BlockName((u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64) | (u128::from(n) + 1))
}

fn bytes_of(name: BlockName, out: &mut [u8]) {
    let mut word = name.0 as u64 | 1;
    for chunk in out.chunks_mut(8) {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

fn is_right(name: BlockName, bytes: &[u8]) -> bool {
    let mut expected = vec![0; bytes.len()];
    bytes_of(name, &mut expected);
    bytes == expected
}

/// A tier with memory to read into and write from.
struct Rig {
    tier: DiskTier,
    recovered: Recovered,
    arena: Arena,
}

impl Rig {
    fn open(folder: &Path, slots: u64) -> Self {
        Self::open_at(folder, slots, 1_000)
    }

    fn open_at(folder: &Path, slots: u64, now_ms: u64) -> Self {
        let (tier, recovered) = DiskTier::open(config(folder, slots), GEOMETRY, now_ms).unwrap();
        Self::of(tier, recovered)
    }

    fn of(tier: DiskTier, recovered: Recovered) -> Self {
        Self { tier, recovered, arena: Arena::new(64, BLOCK_BYTES).unwrap() }
    }

    fn put_block(&self, block: Block) -> Put {
        let mut slot = self.arena.take().unwrap();
        bytes_of(block.name, &mut slot);
        self.tier.put(block, slot.freeze())
    }

    fn put_after(&self, n: u64, parent: Option<u64>) -> Put {
        self.put_block(Block { name: name(n), parent: parent.map(name), retention: Retention::ORDINARY })
    }

    fn put_worth(&self, n: u64, retention: Retention) -> Put {
        self.put_block(Block { name: name(n), parent: None, retention })
    }

    fn put(&self, n: u64) -> Put {
        self.put_after(n, None)
    }

    /// Writes blocks one after the other.
    fn fill(&self, names: impl IntoIterator<Item = u64>) {
        for n in names {
            assert_eq!(self.put(n), Put::Queued);
            self.settle();
        }
    }

    /// Waits until nothing is queued.
    fn settle(&self) {
        let mut state = self.tier.shared.state.lock();
        while !state.outstanding.is_empty() {
            self.tier.shared.waiters.wait(&mut state);
        }
    }

    fn start_get(&self, n: u64) -> Receiver<Result<Slot, Miss>> {
        let (send, receive) = channel();
        let done: Done = Box::new(move |given| send.send(given).unwrap_or(()));
        self.tier.get(&name(n), self.arena.take().unwrap(), Urgency::Demand, done);
        receive
    }

    /// Reads a block; what is served is right.
    fn get(&self, n: u64) -> Result<(), Miss> {
        let given = self.start_get(n).recv_timeout(Duration::from_secs(20)).expect("a read ends");
        given.map(|slot| assert!(is_right(name(n), &slot[..BLOCK_BYTES]), "block {n} is served wrong"))
    }

    fn resident(&self, names: impl IntoIterator<Item = u64>) -> Vec<u64> {
        names.into_iter().filter(|&n| self.tier.contains(&name(n))).collect()
    }
}

/// The only slab of a small tier.
fn slab_path(folder: &Path) -> PathBuf {
    slabs::path_of(folder, 0)
}

/// The index of a slot in slab 0 that holds a block.
fn slot_of(rig: &Rig, n: u64) -> u64 {
    u64::from(rig.tier.shared.state.lock().residents.find(&name(n)).expect("it is resident"))
}

#[test]
fn what_is_put_is_got() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 8);
    assert_eq!(rig.get(1), Err(Miss::Absent));
    assert_eq!(rig.put(1), Put::Queued);
    rig.settle();
    assert!(rig.tier.contains(&name(1)));
    assert_eq!((rig.put(1), rig.get(1)), (Put::Present, Ok(())));
    let stats = rig.tier.stats();
    assert_eq!((stats.blocks, stats.hits, stats.misses, stats.writes), (1, 1, 1, 1));
    assert_eq!((stats.bytes_written, stats.bytes_read), (BLOCK_BYTES as u64, BLOCK_BYTES as u64));
    assert_eq!(rig.arena.free(), 64, "every slot came back");
}

#[test]
fn blocks_are_there_after_a_clean_end_without_reading_headers() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 20);
    rig.fill(0..10);
    rig.tier.remove(&name(3));
    drop(rig);
    let rig = Rig::open(folder.path(), 20);
    assert_eq!(rig.recovered, Recovered { blocks: 9, ..Recovered::default() });
    assert_eq!(rig.resident(0..10), [0, 1, 2, 4, 5, 6, 7, 8, 9]);
    for n in rig.resident(0..10) {
        assert_eq!(rig.get(n), Ok(()));
    }
}

#[test]
fn a_small_cache_is_small_on_disk() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 1_000_000);
    rig.fill(0..3);
    assert!(rig.tier.stats().bytes <= 7813 * STRIDE + 4096, "{:?}", rig.tier.stats());
    let small = TempDir::new().unwrap();
    let rig = Rig::open(small.path(), 1000);
    rig.fill(0..3);
    assert_eq!(rig.tier.stats().bytes, quota(256));
}

#[test]
fn the_quota_is_kept_and_the_least_recently_used_leaves() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 4);
    rig.fill(0..4);
    assert_eq!(rig.get(0), Ok(()));
    rig.fill(4..6);
    assert_eq!(rig.resident(0..6), [0, 3, 4, 5]);
    let stats = rig.tier.stats();
    assert_eq!((stats.bytes, stats.evicted_ordinary), (quota(4), 2));
    let on_disk: u64 = std::fs::metadata(slab_path(folder.path())).unwrap().len();
    assert_eq!(on_disk, quota(4));
}

#[test]
fn children_leave_before_their_parents_whichever_came_first() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 4);
    // The order in which a tier above lets go: leaves first.
    for (n, parent) in [(2, Some(1)), (1, Some(0)), (0, None)] {
        rig.put_after(n, parent);
        rig.settle();
    }
    rig.fill([10, 11]);
    assert_eq!(rig.resident(0..12), [0, 1, 10, 11], "2 is the leaf");
    assert_eq!(rig.get(1), Ok(()));
    rig.fill([12]);
    assert_eq!(rig.resident(0..13), [0, 1, 11, 12]);
    assert_eq!(rig.tier.resident_prefix(&[name(0), name(1), name(2)]), 2);
}

#[test]
fn a_parent_does_not_make_room_for_its_child() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 2);
    rig.fill([0, 10]);
    rig.put_after(1, Some(0));
    rig.settle();
    assert_eq!(rig.resident([0, 1, 10]), [0, 1]);
}

#[test]
fn what_is_worth_less_leaves_first_and_is_not_taken_when_all_else_is_worth_more() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 3);
    let dear = Retention { priority: 90, ..Retention::ORDINARY };
    let kept = Retention { until_ms: 60_000, ..Retention::ORDINARY };
    rig.put_worth(0, kept);
    rig.put_worth(1, dear);
    rig.settle();
    rig.fill([2]);
    assert!(rig.tier.retain(&name(2), Retention::DROPPED));
    rig.fill([3]);
    assert_eq!(rig.resident(0..4), [0, 1, 3]);
    rig.put_worth(4, dear);
    rig.settle();
    assert_eq!(rig.resident(0..5), [0, 1, 4]);
    rig.put(5);
    rig.settle();
    assert_eq!((rig.resident(0..6), rig.tier.stats().declined_worth), (vec![0, 1, 4], 1));
    rig.tier.expire(60_000);
    rig.fill([6]);
    assert_eq!(rig.resident(0..7), [1, 4, 6], "the wish for 0 is over");
}

#[test]
fn a_clock_that_is_set_back_keeps_nothing_longer() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open_at(folder.path(), 3, 1_000_000);
    rig.put_worth(0, Retention { until_ms: 1_010_000, ..Retention::ORDINARY });
    rig.settle();
    rig.tier.expire(1_004_000);
    rig.tier.expire(50_000);
    assert_eq!(rig.tier.retention(&name(0)).unwrap().until_ms, 56_000);
    rig.put_worth(1, Retention { until_ms: 53_000, ..Retention::ORDINARY });
    rig.settle();
    rig.tier.expire(54_000);
    assert_eq!(rig.tier.stats().kept, 1);
    rig.tier.expire(56_000);
    assert_eq!(rig.tier.stats().kept, 0);
    rig.tier.expire(u64::MAX);
    rig.tier.expire(0);
    rig.put_worth(2, Retention { until_ms: u64::MAX, ..Retention::ORDINARY });
    rig.settle();
    assert_eq!(rig.get(2), Ok(()));
}

#[test]
fn wishes_outlast_a_restart_even_one_with_an_earlier_clock() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open_at(folder.path(), 8, 1_000_000);
    rig.put_worth(0, Retention { priority: 7, until_ms: 1_010_000, drop: false });
    rig.put_worth(1, Retention::ORDINARY);
    rig.put_worth(2, Retention { until_ms: 1_002_000, ..Retention::ORDINARY });
    rig.settle();
    rig.tier.retain(&name(1), Retention::DROPPED);
    drop(rig);
    let rig = Rig::open_at(folder.path(), 8, 500_000);
    let found = |n| rig.tier.retention(&name(n)).unwrap();
    assert_eq!(found(0), Retention { priority: 7, until_ms: 510_000, drop: false });
    assert_eq!(found(1), Retention::DROPPED);
    assert_eq!(found(2).until_ms, 502_000);
    drop(rig);
    let rig = Rig::open_at(folder.path(), 8, 505_000);
    assert_eq!(rig.tier.stats().kept, 1, "a wish that ended in between is over");
}

#[test]
fn a_full_write_queue_declines_at_once() {
    let folder = TempDir::new().unwrap();
    let config = Config { queue_max: 3, ..config(folder.path(), 100) };
    let (tier, recovered) = DiskTier::open(config, GEOMETRY, 0).unwrap();
    let rig = Rig::of(tier, recovered);
    // A slab cannot be made meanwhile, so the workers wait with two writes in their hands.
    let growing = rig.tier.shared.growing.lock();
    let put: Vec<Put> = (0..20).map(|n| rig.put(n)).collect();
    let queued = put.iter().filter(|put| **put == Put::Queued).count();
    assert!((3..=5).contains(&queued), "{put:?}");
    drop(growing);
    rig.settle();
    assert_eq!(rig.resident(0..20).len(), queued);
    assert_eq!(rig.tier.stats().declined_busy, 20 - queued as u64);
}

#[test]
fn demand_comes_before_writes_and_writes_before_prefetches() {
    let folder = TempDir::new().unwrap();
    let config = Config { threads: 1, ..config(folder.path(), 2) };
    let (tier, recovered) = DiskTier::open(config, GEOMETRY, 0).unwrap();
    let rig = Rig::of(tier, recovered);
    rig.fill([0, 1]);
    let (hold, held) = channel::<()>();
    let (send, receive) = channel();
    let read = |n, urgency, label: &'static str| {
        let send = send.clone();
        let done: Done = Box::new(move |given| send.send((label, given.is_ok())).unwrap());
        rig.tier.get(&name(n), rig.arena.take().unwrap(), urgency, done);
    };
    // The only thread is in this callback until all is queued.
    let wait: Done = Box::new(move |_| held.recv().unwrap());
    rig.tier.get(&name(0), rig.arena.take().unwrap(), Urgency::Demand, wait);
    read(0, Urgency::Prefetch, "prefetch");
    rig.put(2);
    read(1, Urgency::Demand, "demand");
    hold.send(()).unwrap();
    let order: Vec<_> = (0..2).map(|_| receive.recv_timeout(Duration::from_secs(20)).unwrap()).collect();
    assert_eq!(order, [("demand", true), ("prefetch", true)]);
    // The write had its turn before the prefetch, which held its block; what was read on demand made room.
    rig.settle();
    assert_eq!(rig.resident(0..3), [0, 2]);
}

#[test]
fn a_block_that_is_read_does_not_leave() {
    let folder = TempDir::new().unwrap();
    let config = Config { threads: 1, ..config(folder.path(), 2) };
    let (tier, recovered) = DiskTier::open(config, GEOMETRY, 0).unwrap();
    let rig = Rig::of(tier, recovered);
    rig.fill([0, 1]);
    let (hold, held) = channel::<()>();
    let wait: Done = Box::new(move |_| held.recv().unwrap());
    rig.tier.get(&name(1), rig.arena.take().unwrap(), Urgency::Demand, wait);
    rig.put(2);
    rig.put(3);
    let reads = [rig.start_get(0), rig.start_get(1)];
    hold.send(()).unwrap();
    for (n, read) in (0..).zip(reads) {
        let slot = read.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
        assert!(is_right(name(n), &slot[..BLOCK_BYTES]));
    }
    rig.settle();
    assert_eq!(rig.resident(0..4), [2, 3]);
}

#[test]
fn a_block_that_is_removed_while_it_is_read_is_a_miss_or_right() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 3);
    for turn in 0..200 {
        rig.put(turn);
        rig.settle();
        let read = rig.start_get(turn);
        assert!(rig.tier.remove(&name(turn)));
        rig.put(turn + 1_000);
        match read.recv_timeout(Duration::from_secs(20)).unwrap() {
            Ok(slot) => assert!(is_right(name(turn), &slot[..BLOCK_BYTES])),
            Err(miss) => assert_eq!(miss, Miss::Absent),
        }
        rig.settle();
    }
    assert_eq!(rig.tier.stats().corrupt, 0);
}

#[test]
fn what_is_removed_on_its_way_never_arrives() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 8);
    let growing = rig.tier.shared.growing.lock();
    rig.put(0);
    rig.put(1);
    assert!(rig.tier.remove(&name(0)));
    assert!(!rig.tier.remove(&name(0)));
    drop(growing);
    rig.settle();
    assert_eq!(rig.resident(0..2), [1]);
    assert_eq!(rig.put(0), Put::Queued, "it may come again");
}

#[test]
fn a_flush_takes_everything_and_its_space() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 8);
    rig.fill(0..5);
    rig.tier.flush().unwrap();
    assert_eq!((rig.resident(0..5), rig.tier.stats().bytes), (vec![], 0));
    assert!(!slab_path(folder.path()).exists());
    rig.fill(3..6);
    drop(rig);
    let rig = Rig::open(folder.path(), 8);
    assert_eq!(rig.resident(0..6), [3, 4, 5]);
    assert_eq!(rig.get(4), Ok(()));
}

#[test]
fn events_tell_what_changed_in_order() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 2);
    let stored = |n: u64| KvEvent::Stored { name: name(n), parent: None };
    let removed = |n: u64| KvEvent::Removed { name: name(n) };
    rig.fill(0..3);
    assert_eq!(rig.tier.drain_events().unwrap(), [stored(0), stored(1), removed(0), stored(2)]);
    rig.tier.remove(&name(1));
    assert_eq!(rig.tier.drain_events().unwrap(), [removed(1)]);
    rig.tier.shared.state.lock().events_lost = true;
    assert_eq!(rig.tier.drain_events(), None);
    assert_eq!(rig.tier.names(), [(name(2), None)]);
    assert_eq!(rig.tier.drain_events().unwrap(), []);
}

#[test]
fn a_quota_that_is_lowered_keeps_what_is_worth_most() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 700);
    for n in 0..600 {
        rig.put(n);
        if n % 32 == 0 {
            rig.settle();
        }
    }
    rig.settle();
    let before = rig.resident(0..600).len();
    assert!(before > 550, "{before}");
    assert_eq!(rig.tier.stats().bytes, quota(256) * 2 + quota(187));
    drop(rig);
    let rig = Rig::open(folder.path(), 256);
    let stats = rig.tier.stats();
    assert!(stats.bytes <= quota(256), "{stats:?}");
    assert!(rig.recovered.reclaimed_bytes >= quota(400), "{:?}", rig.recovered);
    let left = rig.resident(0..600);
    assert!(left.len() > 200 && left[0] >= 250, "{left:?}");
    for &n in left.iter().step_by(20) {
        assert_eq!(rig.get(n), Ok(()));
    }
    drop(rig);
    let rig = Rig::open(folder.path(), 10);
    assert!(rig.tier.stats().bytes <= quota(10));
    assert!(rig.resident(0..600).len() >= 5);
    rig.fill(2000..2020);
    assert_eq!(rig.resident(2010..2020).len(), 10);
}

#[test]
fn a_tier_dropped_by_its_own_callback_ends() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 4);
    rig.fill([0]);
    let (send, receive) = channel();
    let Rig { tier, arena, .. } = rig;
    let tier = Arc::new(tier);
    let held = Arc::clone(&tier);
    let (go, gone) = channel::<()>();
    let done: Done = Box::new(move |_| {
        gone.recv().unwrap();
        drop(held);
        send.send(()).unwrap();
    });
    tier.get(&name(0), arena.take().unwrap(), Urgency::Demand, done);
    drop(tier);
    go.send(()).unwrap();
    receive.recv_timeout(Duration::from_secs(20)).unwrap();
}

#[test]
fn a_callback_that_panics_takes_no_thread_with_it() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 4);
    rig.fill([0]);
    for _ in 0..5 {
        let done: Done = Box::new(|_| panic!("a test panics here"));
        rig.tier.get(&name(0), rig.arena.take().unwrap(), Urgency::Demand, done);
    }
    assert_eq!(rig.get(0), Ok(()));
    rig.settle();
    drop(rig);
}
