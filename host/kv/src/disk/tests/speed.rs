//! What the tier costs beside the disk itself, and what its bookkeeping costs. Run in release, one at a time:
//! `cargo test --release -p kv -- --ignored --nocapture disk_speed`.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::super::residents::{Placed, Residents};
use super::*;

const THREADS: usize = 4;
const ROUNDS: usize = 5;
/// Bytes of one direction of one round.
const BYTES: usize = 1 << 30;

#[allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// Time that this thread computed: what else the machine does is left out.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// MiB a second.
fn rate(began: Instant) -> f64 {
    BYTES as f64 / f64::from(1 << 20) / began.elapsed().as_secs_f64()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Where files are measured: `KV_DISK_DIR`, or the folder for temporary files.
fn folder() -> TempDir {
    match std::env::var_os("KV_DISK_DIR") {
        Some(folder) => TempDir::new_in(folder).unwrap(),
        None => TempDir::new().unwrap(),
    }
}

/// Runs `work(n)` for each block, on as many threads as the tier has.
fn on_threads(blocks: u32, work: impl Fn(u32, &mut SlotMut) + Sync, arena: &Arena) {
    let next = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut slot = arena.take().unwrap();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= blocks {
                        return;
                    }
                    work(n, &mut slot);
                }
            });
        }
    });
}

/// Raw direct writes and reads of whole blocks in a preallocated file.
fn raw(folder: &Path, bytes: usize, arena: &Arena) -> (f64, f64) {
    let blocks = (BYTES / bytes) as u32;
    let file = SystemMedia.create(&folder.join("raw"), BYTES as u64).unwrap();
    assert!(file.is_direct(), "the comparison is with direct I/O");
    let at = |n: u32| u64::from(n) * bytes as u64;
    let began = now();
    on_threads(blocks, |n, slot| file.write(at(n), slot.padded_mut(), &[]).unwrap(), arena);
    file.sync().unwrap();
    let write = rate(began);
    let began = now();
    let scattered = |n: u32| (n * 7919) % blocks;
    on_threads(blocks, |n, slot| file.read(at(scattered(n)), slot.padded_mut(), &mut []).unwrap(), arena);
    (write, rate(began))
}

fn tier(folder: &Path, bytes: usize, arena: &Arena) -> (f64, f64) {
    let blocks = (BYTES / bytes) as u32;
    let geometry = Geometry { block_bytes: bytes, ..GEOMETRY };
    let quota = 2 * BYTES as u64;
    let config = Config { threads: THREADS, queue_max: 16, ..Config::new(folder.join("tier"), quota) };
    let (tier, _) = DiskTier::open(config, geometry, 0).unwrap();
    let began = now();
    let payload = arena.take().unwrap().freeze();
    for n in 0..blocks {
        let block = Block { name: name(u64::from(n)), parent: None, retention: Retention::ORDINARY };
        while tier.put(block, payload.clone()) == Put::Declined {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    tier.sync().unwrap();
    let write = rate(began);
    let (send, receive) = channel::<bool>();
    let began = now();
    for i in 0..blocks {
        if i >= 16 {
            assert!(receive.recv().unwrap());
        }
        let into = loop {
            match arena.take() {
                Some(slot) => break slot,
                None => std::thread::yield_now(),
            }
        };
        let send = send.clone();
        let done: Done = Box::new(move |given| send.send(given.is_ok()).unwrap());
        tier.get(&name(u64::from((i * 7919) % blocks)), into, Urgency::Demand, done);
    }
    for _ in 0..16 {
        assert!(receive.recv().unwrap());
    }
    let read = rate(began);
    assert!(tier.stats().direct && tier.stats().hits == u64::from(blocks));
    (write, read)
}

fn compare(bytes: usize) {
    let arena = Arena::new(24, bytes).unwrap();
    let mut slots: Vec<SlotMut> = std::iter::from_fn(|| arena.take()).collect();
    for (n, slot) in (0..).zip(&mut slots) {
        bytes_of(name(n), slot);
    }
    drop(slots);
    let mut rates: [Vec<f64>; 4] = Default::default();
    for round in 0..ROUNDS {
        let folder = folder();
        let (of_raw, of_tier) = match round % 2 {
            0 => {
                let of_raw = raw(folder.path(), bytes, &arena);
                (of_raw, tier(folder.path(), bytes, &arena))
            }
            _ => {
                let of_tier = tier(folder.path(), bytes, &arena);
                (raw(folder.path(), bytes, &arena), of_tier)
            }
        };
        for (rates, rate) in rates.iter_mut().zip([of_raw.0, of_tier.0, of_raw.1, of_tier.1]) {
            rates.push(rate);
        }
    }
    let [raw_write, put, raw_read, get] = rates.map(median);
    println!(
        "disk_speed {} KiB, {THREADS} threads, medians of {ROUNDS}: put {put:.0} of {raw_write:.0} MiB/s ({:.0} %), \
         get {get:.0} of {raw_read:.0} MiB/s ({:.0} %)",
        bytes >> 10,
        100.0 * put / raw_write,
        100.0 * get / raw_read,
    );
    assert!(put >= 0.8 * raw_write, "put is slower than four fifths of the disk");
    assert!(get >= 0.8 * raw_read, "get is slower than four fifths of the disk");
}

#[test]
#[ignore = "measures for minutes; run in release"]
fn disk_speed_of_half_mebibytes() {
    compare(512 << 10);
}

#[test]
#[ignore = "measures for minutes; run in release"]
fn disk_speed_of_mebibytes() {
    compare(1 << 20);
}

#[test]
#[ignore = "measures the memory of ten million blocks; run in release"]
fn disk_speed_of_the_bookkeeping() {
    const BLOCKS: u32 = 10_000_000;
    let mut residents = Residents::new(u64::from(BLOCKS));
    // As slabs come: a hundred and twenty-eighth at a time.
    for _ in 0..128 {
        residents.add_slots(BLOCKS / 128);
    }
    let mut uses = 0;
    let mut placed = |residents: &mut Residents, slot: u32, n: u64| {
        uses += 1;
        // Prompts of 64 blocks.
        let parent = (!n.is_multiple_of(64)).then(|| name(n - 1));
        let retention = Retention::ORDINARY;
        residents.adopt(parent);
        let placed = Placed { name: name(n), parent, retention, generation: uses, used: uses };
        assert!(residents.place(slot, placed));
    };
    let report = |what: &str, began: Duration, count: u32| {
        let ns = (cpu_time() - began).as_nanos() as f64 / f64::from(count);
        println!("disk_speed {what}: {ns:.0} ns");
    };
    let began = cpu_time();
    for slot in 0..BLOCKS {
        placed(&mut residents, slot, u64::from(slot));
    }
    report("insert", began, BLOCKS);
    drop(residents.take_changed(usize::MAX));
    let bytes = residents.heap_bytes() as f64 / f64::from(BLOCKS);
    println!("disk_speed {BLOCKS} blocks: {bytes:.0} bytes a block");
    let scattered = |i: u32| u64::from((u64::from(i) * 7_368_787 % u64::from(BLOCKS)) as u32);
    let began = cpu_time();
    let found = (0..BLOCKS).filter(|&i| residents.find(&name(scattered(i))).is_some()).count();
    assert_eq!(found, BLOCKS as usize);
    report("look-up, scattered", began, BLOCKS);
    let began = cpu_time();
    for i in 0..BLOCKS {
        let slot = residents.find(&name(scattered(i))).unwrap();
        assert!(residents.pin(slot));
        let generation = residents.entry(slot).generation();
        residents.unpin(slot, generation);
        residents.touch(slot, u64::from(BLOCKS + i));
    }
    report("read, scattered", began, BLOCKS);
    drop(residents.take_changed(usize::MAX));
    let began = cpu_time();
    for i in 0..BLOCKS / 2 {
        let (n, uses) = (u64::from(BLOCKS + i), u64::from(2 * BLOCKS + i));
        let parent = (!n.is_multiple_of(64)).then(|| name(n - 1));
        residents.adopt(parent);
        let (slot, _) = residents.first_to_leave().unwrap();
        residents.leave(slot);
        let retention = Retention::ORDINARY;
        let placed = Placed { name: name(n), parent, retention, generation: uses, used: uses };
        assert!(residents.place(slot, placed));
    }
    report("evict and insert", began, BLOCKS / 2);
    let bytes = residents.heap_bytes() as f64 / f64::from(BLOCKS);
    println!("disk_speed {BLOCKS} blocks after churn: {bytes:.0} bytes a block");
    assert!(bytes <= 150.0);
}
