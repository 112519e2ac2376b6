//! A process that is killed while it writes loses no block that was synced and has not left, and a start after that
//! serves every block right or not at all.
//!
//! The test starts itself as a child that writes, removes, reads and syncs, and says on its output what it is about
//! to do and what it has done. The parent kills it at a random moment and looks at what is left.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use kv::disk::{Block, Config, DiskTier, Put, Recovered, Urgency};
use kv::{Arena, BlockName, Fingerprint, Geometry, Retention};

const BLOCK_BYTES: usize = 100_000;
const GEOMETRY: Geometry =
    Geometry { block_bytes: BLOCK_BYTES, block_tokens: 16, fingerprint: Fingerprint(5) };
const SLOTS: u64 = 48;
const THREADS: u64 = 2;
/// Names that a child draws from: more than fit, so that slots are reused and names come back.
const NAMES: u64 = 150;
/// Kills that one folder lives through.
const KILLS_A_FOLDER: u64 = 5;
const CHILD: &str = "KV_CRASH_CHILD";

/// A small generator: one seed, one course.
struct Draw(u64);

impl Draw {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

fn name(n: u64) -> BlockName {
    BlockName((u128::from(n) << 64) | u128::from(n.wrapping_mul(0xd129_0d3b_ee21_f5a5)))
}

/// A block's bytes follow from its name, so that a part of another one is seen.
fn fill(n: u64, out: &mut [u8]) {
    let mut word = n + 1;
    for chunk in out.chunks_mut(8) {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(n);
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

fn open(folder: &Path) -> (DiskTier, Recovered) {
    let stride = 4096 + BLOCK_BYTES.next_multiple_of(4096) as u64;
    let config = Config {
        threads: THREADS as usize,
        sync_every: Duration::from_millis(7),
        queue_max: 8,
        ..Config::new(folder, 4096 + SLOTS * stride)
    };
    DiskTier::open(config, GEOMETRY, 1_000).expect("the folder can be used")
}

/// Writes one line at once: what is in a buffer dies with the process.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).expect("the parent reads");
}

/// Works until it is killed. `P n` is said before a put; `S` after a sync of all before; `R n` before a removal.
fn child(folder: &Path, seed: u64) {
    let (tier, _) = open(folder);
    let arena = Arena::new(16, BLOCK_BYTES).expect("memory");
    let mut draw = Draw::new(seed);
    say("\nready\n");
    // Bounded, in case nobody kills it.
    for _ in 0..200_000 {
        let n = draw.below(NAMES);
        match draw.below(20) {
            0 => {
                tier.sync().expect("the disk works");
                say("S\n");
            }
            1 if tier.contains(&name(n)) => {
                say(&format!("R {n}\n"));
                tier.remove(&name(n));
            }
            2 | 3 => {
                let Some(into) = arena.take() else { continue };
                tier.get(&name(n), into, Urgency::Demand, Box::new(drop));
            }
            _ => {
                let Some(mut slot) = arena.take() else { continue };
                fill(n, &mut slot);
                if tier.contains(&name(n)) {
                    continue;
                }
                say(&format!("P {n}\n"));
                let parent = (!n.is_multiple_of(4)).then(|| name(n - 1));
                let block = Block { name: name(n), parent, retention: Retention::ORDINARY };
                if tier.put(block, slot.freeze()) == Put::Declined {
                    say(&format!("D {n}\n"));
                }
            }
        }
    }
}

/// What the child said of one name.
#[derive(Clone, Copy, Default)]
struct Said {
    /// Puts of all names before its last put that was synced; nothing if none was or it was removed since.
    synced_at: Option<u64>,
    /// Its last put, which is not synced.
    put_at: Option<u64>,
    /// A removal was synced and nothing was put since.
    removed: bool,
    /// A removal that is not synced.
    removing: bool,
}

/// Which names have to be there, and which must not.
fn judge(lines: &str) -> (BTreeMap<u64, Said>, u64) {
    let (mut said, mut puts): (BTreeMap<u64, Said>, u64) = (BTreeMap::new(), 0);
    for line in lines.lines() {
        let (verb, n) = line.split_once(' ').unwrap_or((line, ""));
        let entry = n.parse::<u64>().ok().map(|n| said.entry(n).or_default());
        match (verb, entry) {
            ("P", Some(entry)) => {
                puts += 1;
                *entry = Said { put_at: Some(puts), synced_at: entry.synced_at, ..Said::default() };
            }
            ("D", Some(entry)) => entry.put_at = None,
            ("R", Some(entry)) => *entry = Said { removing: true, ..Said::default() },
            ("S", _) => {
                for entry in said.values_mut() {
                    entry.synced_at = entry.put_at.take().or(entry.synced_at);
                    entry.removed |= std::mem::take(&mut entry.removing);
                }
            }
            _ => {}
        }
    }
    (said, puts)
}

#[derive(Default, Debug)]
struct Sum {
    synced: u64,
    right: u64,
    wrong: u64,
    lost: u64,
    undead: u64,
    recovered: u64,
}

/// Opens what a kill left, and reads every name.
fn look(folder: &Path, lines: &str, sum: &mut Sum) {
    let (said, puts) = judge(lines);
    let (tier, recovered) = open(folder);
    sum.recovered += recovered.blocks;
    let arena = Arena::new(1, BLOCK_BYTES).expect("memory");
    let mut expected = vec![0; BLOCK_BYTES];
    for n in 0..NAMES {
        let (send, receive) = channel();
        let into = arena.take().expect("the slot came back");
        tier.get(&name(n), into, Urgency::Demand, Box::new(move |given| send.send(given).unwrap_or(())));
        let given = receive.recv_timeout(Duration::from_secs(20)).expect("a read ends");
        let is_served = given.is_ok();
        if let Ok(slot) = given {
            fill(n, &mut expected);
            let is_right = slot[..BLOCK_BYTES] == expected[..];
            sum.right += u64::from(is_right);
            sum.wrong += u64::from(!is_right);
        }
        let Some(said) = said.get(&n) else { continue };
        // Another block leaves only for one that is put later. As many as all slots have to have been put before the
        // oldest can leave; jobs that workers have in hand may come in another order, and children go first.
        let safe = SLOTS / 2 - THREADS;
        if said.synced_at.is_some_and(|at| puts - at < safe) {
            sum.synced += 1;
            sum.lost += u64::from(!is_served);
        }
        sum.undead += u64::from(said.removed && is_served);
    }
}

fn kill_one(folder: &Path, seed: u64, sum: &mut Sum) {
    let mut draw = Draw::new(seed);
    let exe = std::env::current_exe().expect("the test has a file");
    let mut child = Command::new(exe)
        .args(["--exact", "a_killed_process_loses_nothing_synced", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{seed}:{}", folder.display()))
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test can start itself");
    let mut out = child.stdout.take().expect("it is piped");
    let reader = std::thread::spawn(move || {
        let mut lines = String::new();
        out.read_to_string(&mut lines).map(|_| lines)
    });
    // Some are killed while they open.
    std::thread::sleep(Duration::from_millis(20 + draw.below(200)));
    child.kill().expect("it runs until it is killed");
    child.wait().expect("it is ours");
    let lines = reader.join().expect("the reader does not panic").expect("lines are text");
    look(folder, &lines, sum);
}

#[test]
fn a_killed_process_loses_nothing_synced() {
    if let Ok(told) = std::env::var(CHILD) {
        let (seed, folder) = told.split_once(':').expect("a seed and a folder");
        return child(Path::new(folder), seed.parse().expect("a seed is a number"));
    }
    let seeds: u64 = std::env::var("KV_CRASH_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let mut sum = Sum::default();
    let mut folder = tempfile::tempdir().expect("a folder");
    for seed in 0..seeds {
        if seed % KILLS_A_FOLDER == 0 {
            folder = tempfile::tempdir().expect("a folder");
        }
        kill_one(folder.path(), seed, &mut sum);
        assert!(sum.wrong + sum.lost + sum.undead == 0, "seed {seed}: {sum:?}");
    }
    let Sum { synced, right, wrong, lost, undead, recovered } = sum;
    println!(
        "crash: {seeds} seeds, {synced} synced and not displaced, {right} served right of {recovered} found, \
         {wrong} wrong, {lost} lost, {undead} served after removal"
    );
    assert!(seeds < 50 || (synced > 500 && right > synced), "the children did enough to mean something");
}
