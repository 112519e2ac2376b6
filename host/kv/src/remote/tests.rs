//! The tier as its caller sees it: over memory and files, over a server that misbehaves, over real servers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::*;
use crate::{Arena, Fingerprint};

mod behaviour;
mod faulty;
mod servers;
mod speed;

const BLOCK_BYTES: usize = 10_000;
const GEOMETRY: Geometry =
    Geometry { block_bytes: BLOCK_BYTES, block_tokens: 16, fingerprint: Fingerprint(0xfeed) };

/// Longer than anything here takes on a busy machine; what fails earlier says so.
const PATIENCE: Duration = Duration::from_secs(30);

/// A tier, memory for its blocks, and a clock that stands still until it is moved.
struct Rig {
    remote: Remote,
    arena: Arena,
    clock_ms: Arc<AtomicU64>,
}

impl Rig {
    fn new(config: &Config) -> Self {
        Self::with(config, GEOMETRY)
    }

    fn at(url: &str) -> Self {
        Self::new(&Config { url: url.to_owned(), ..Config::default() })
    }

    fn with(config: &Config, geometry: Geometry) -> Self {
        Self::with_slots(config, geometry, 64)
    }

    fn with_slots(config: &Config, geometry: Geometry, slots: u32) -> Self {
        let clock_ms = Arc::new(AtomicU64::new(1));
        let now = Arc::clone(&clock_ms);
        let clock: Clock = Arc::new(move || Duration::from_millis(now.load(Ordering::Relaxed)));
        let remote = Remote::open(config, geometry, clock, 7).expect("it opens, whatever the store does");
        Self { remote, arena: Arena::new(slots, geometry.block_bytes).expect("memory"), clock_ms }
    }

    fn pass(&self, ms: u64) {
        self.clock_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// The block that everybody has under a name.
    fn block(&self, name: u128) -> Slot {
        let mut slot = self.arena.take().expect("a slot is free");
        slot.copy_from_slice(&bytes(name, self.arena.slot_bytes()));
        slot.freeze()
    }

    fn put(&self, name: u128) -> Outcome {
        self.remote.put(BlockName(name), self.block(name))
    }

    /// Puts blocks, and waits until they are there or given up.
    fn put_all(&self, names: impl IntoIterator<Item = u128>) {
        for name in names {
            assert_eq!(self.put(name), Outcome::Accepted, "{name}");
        }
        assert!(self.remote.drain(PATIENCE));
    }

    /// Fetches; every block that comes has to be the right one.
    fn fetch(&self, names: impl IntoIterator<Item = u128>) -> Result<Fetched, Outcome> {
        let names: Vec<BlockName> = names.into_iter().map(BlockName).collect();
        let slots: Vec<SlotMut> = names.iter().map(|_| self.arena.take().expect("a slot is free")).collect();
        let (told, done) = mpsc::channel();
        match self.remote.fetch(&names, slots, move |fetched| told.send(fetched).expect("the test waits")) {
            Outcome::Accepted => {}
            outcome => return Err(outcome),
        }
        let fetched = done.recv_timeout(PATIENCE).expect("an accepted fetch ends");
        for (name, block) in names.iter().zip(&fetched.blocks) {
            assert!(block[..] == bytes(name.0, block.len()), "block {name:?} is another one");
        }
        Ok(fetched)
    }

    /// How many leading blocks come, and why no more.
    fn fetched(&self, names: impl IntoIterator<Item = u128>) -> (usize, End) {
        let fetched = self.fetch(names).expect("it is accepted");
        (fetched.blocks.len(), fetched.end)
    }
}

fn bytes(name: u128, len: usize) -> Vec<u8> {
    let mut state = name as u64 | 1;
    let next = |_| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 56) as u8
    };
    (0..len).map(next).collect()
}
