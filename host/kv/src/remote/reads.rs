//! Fetches: the leading blocks of a chain that the store has.
//!
//! A fetch begins with as many reads at once as blocks are known to be there, or one, and doubles them with each block
//! that comes: a prompt that nobody stored costs one request, a long one that somebody stored is not read one by one.
//! **Invariant:** a fetch gives blocks that verified, in order, from the first one on; it tells its caller exactly once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use super::Shared;
use super::presence::Seen;
use super::store::{Failed, Found};
use crate::{BlockName, Slot, SlotMut};

/// Tries of a read that fails at once; somebody waits for it.
const ATTEMPTS_MAX: u32 = 2;

/// What came of a fetch.
#[derive(Debug)]
pub struct Fetched {
    /// The leading blocks, in order.
    pub blocks: Vec<Slot>,
    /// Why there are no more of them.
    pub end: End,
    /// How long it took, waiting for others included.
    pub took: Duration,
}

/// Why a fetch ended where it did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// All blocks that were asked for came.
    All,
    /// The store has the next one not.
    Miss,
    /// What the store has in its place is not the block.
    Corrupt,
    /// The store failed.
    Failed,
    /// The store took too long.
    TimedOut,
    /// The store is left alone.
    Open,
    /// The tier was closed.
    Closed,
}

/// A caller who is told once, also when the task that would have told is dropped.
pub(super) struct Asker(Option<Box<dyn FnOnce(Fetched) + Send>>);

impl Asker {
    pub(super) fn new(done: impl FnOnce(Fetched) + Send + 'static) -> Self {
        Self(Some(Box::new(done)))
    }

    fn tell(mut self, fetched: Fetched) {
        let done = self.0.take().expect("an asker is told once");
        done(fetched);
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Fetched { blocks: Vec::new(), end: End::Closed, took: Duration::ZERO });
        }
    }
}

impl Shared {
    /// Runs one fetch, which takes its room. `window` is how many reads it begins with.
    pub(super) async fn fetch(
        self: Arc<Self>,
        wanted: Vec<(BlockName, SlotMut)>,
        mut window: usize,
        asker: Asker,
        room: OwnedSemaphorePermit,
    ) {
        let started = Instant::now();
        let deadline = started + self.fetch_timeout;
        let mut blocks = Vec::with_capacity(wanted.len());
        let mut wanted = wanted.into_iter();
        let mut reads = FuturesOrdered::new();
        let end = loop {
            while reads.len() < window.min(self.fetch_in_flight_max)
                && let Some((name, slot)) = wanted.next()
            {
                reads.push_back(self.read(name, slot));
            }
            match timeout_at(deadline, reads.next()).await {
                Ok(Some(Ok(slot))) => {
                    self.meter.hits.add(1);
                    self.meter.bytes_in.add(slot.len() as u64);
                    blocks.push(slot.freeze());
                }
                Ok(Some(Err(end))) => {
                    self.meter.misses.add(u64::from(end == End::Miss));
                    break end;
                }
                Ok(None) => break End::All,
                Err(_) => {
                    self.meter.read_timeouts.add(1);
                    break End::TimedOut;
                }
            }
            window = window.saturating_mul(2);
        };
        // Give back what is not needed before somebody is told, who may ask for it.
        drop((reads, wanted, room));
        asker.tell(Fetched { blocks, end, took: started.elapsed() });
    }

    /// Reads one block, when it is this one's turn.
    async fn read(&self, name: BlockName, mut slot: SlotMut) -> Result<SlotMut, End> {
        let _turn = self.reads_in_flight.acquire().await.map_err(|_| End::Closed)?;
        let mut attempt = 1;
        loop {
            let Some(leave) = self.reads.leave() else {
                // The failure of the first try may be what closed it.
                if attempt > 1 {
                    return Err(End::Failed);
                }
                self.meter.misses_unasked.add(1);
                return Err(End::Open);
            };
            let started = Instant::now();
            match timeout(self.read_timeout, self.store.read(name, &mut slot)).await {
                Ok(Ok(Found::Block)) => {
                    leave.succeeded();
                    self.saw(name, Seen::Present);
                    self.meter.read_us.observe(started.elapsed());
                    return Ok(slot);
                }
                Ok(Ok(Found::Nothing)) => {
                    leave.succeeded();
                    self.saw(name, Seen::Absent);
                    return Err(End::Miss);
                }
                Ok(Ok(Found::Garbage)) => {
                    // A store of garbage is no better than one that fails.
                    leave.failed();
                    self.saw(name, Seen::Corrupt);
                    self.meter.corrupt.add(1);
                    return Err(End::Corrupt);
                }
                Ok(Err(Failed { again })) => {
                    leave.failed();
                    self.meter.read_errors.add(1);
                    if !again || attempt == ATTEMPTS_MAX {
                        return Err(End::Failed);
                    }
                }
                Err(_) => {
                    leave.failed();
                    self.meter.read_timeouts.add(1);
                    return Err(End::TimedOut);
                }
            }
            attempt += 1;
        }
    }
}
