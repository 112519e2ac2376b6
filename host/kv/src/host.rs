//! Warm blocks in host memory: what executors computed, for any worker of the process to take back.
//!
//! ```text
//!   executor ── save ──► take_slot ─ freeze ─► put ──► resident ── get_prefix ──► load ──► executor
//!                                                          └── evicted ──► a slower tier
//! ```
//!
//! Shared by all workers. A reader has the slot itself, so that nothing is pinned and nothing has to be released.
//! **Invariant:** resident blocks are closed under "parent of". A slot is written before it is put and never after. No
//! byte of a block is copied under the lock, and no call holds it for more than a few hundred blocks but where its cost
//! says so.

use parking_lot::Mutex;

use crate::{
    Arena, BlockName, BlockPool, Evicted, KeepBounds, KvEvent, PageIdx, Placed, Retained, Retention, Slot,
    SlotMut,
};

/// A block as it goes from tier to tier.
#[derive(Clone, Debug)]
pub struct Block {
    /// What it is.
    pub name: BlockName,
    /// The block before it, `None` for a first one.
    pub parent: Option<BlockName>,
    /// Its bytes.
    pub slot: Slot,
    /// What it is worth.
    pub retention: Retention,
    /// Who is charged where it is to be kept for a time.
    pub tenant: u64,
}

/// What became of a block that was put.
#[derive(Debug)]
pub enum Put {
    /// It is resident.
    Stored {
        /// The block that made room for it. Its slot is free again when the caller drops it.
        evicted: Option<Block>,
    },
    /// It was here already, counts as used, and is worth the larger of both.
    Duplicate,
    /// Its parent is not here: put blocks in the order of their prompt.
    Orphan,
    /// Its own prefix takes all places.
    Full,
}

/// Changes for an index, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HostEvents {
    /// What changed since the last call.
    Changes(Vec<KvEvent>),
    /// More changed than is kept: everything that is resident, in no order. What was known before is void.
    Everything(Vec<KvEvent>),
}

/// Counts of a tier. `stored == blocks + evicted + dropped + flushed`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostStats {
    /// Resident blocks.
    pub blocks: u32,
    /// Places for blocks.
    pub blocks_max: u32,
    /// Bytes of resident blocks.
    pub bytes: u64,
    /// Blocks that are to be kept for a time.
    pub kept: u32,
    /// Blocks asked for and found, since the start, like all below.
    pub hits: u64,
    /// Blocks asked for and not found.
    pub misses: u64,
    /// Blocks that became resident.
    pub stored: u64,
    /// Blocks that were put and were here.
    pub duplicates: u64,
    /// Blocks that were put without their parent, or without a place for them.
    pub refused: u64,
    /// Blocks that made room for another.
    pub evicted: u64,
    /// Those that did so and had been dropped.
    pub dropped: u64,
    /// Blocks that were taken out by [`HostTier::remove`] or [`HostTier::flush`].
    pub flushed: u64,
    /// Blocks whose time to be kept ended.
    pub expired: u64,
}

/// Most blocks of one turn under the lock. Chosen: at 40 to 500 ns a block, others wait 10 to 130 us.
const PIECE_BLOCKS: usize = 256;

/// Most events kept for [`HostTier::drain_events`]: 4 MiB. Chosen: a drain a second allows for 65,000 blocks a second,
/// which is more than a memory bus moves.
const EVENTS_MAX: usize = 1 << 16;

/// Warm blocks of one geometry.
#[derive(Debug)]
pub struct HostTier {
    arena: Arena,
    books: Mutex<Books>,
}

#[derive(Debug)]
struct Books {
    pool: BlockPool,
    /// What each page of `pool` stands for.
    slots: Vec<Option<Slot>>,
    counts: HostStats,
    events: Vec<KvEvent>,
    events_max: usize,
    /// Events were thrown away since the last drain.
    lost: bool,
}

impl HostTier {
    /// An empty tier with places for `blocks`, and `in_flight` slots more for what is being moved, read or written back.
    ///
    /// Cost: address space for the bytes, taken as RAM when first used; about 140 bytes a block beside them.
    /// Errors: the address space is refused.
    pub fn new(blocks: u32, block_bytes: usize, block_tokens: u32, in_flight: u32) -> std::io::Result<Self> {
        let slots = blocks.checked_add(in_flight);
        let slots = slots.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::OutOfMemory))?;
        let books = Books {
            pool: BlockPool::new(blocks, block_tokens),
            slots: vec![None; blocks as usize],
            counts: HostStats::default(),
            events: Vec::new(),
            events_max: EVENTS_MAX,
            lost: false,
        };
        Ok(Self { arena: Arena::new(slots, block_bytes)?, books: Mutex::new(books) })
    }

    /// The memory that blocks lie in.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// A slot to write a block to. `None` when all are in use: the caller moves fewer at once.
    pub fn take_slot(&self) -> Option<SlotMut> {
        self.arena.take()
    }

    /// Makes a block resident, after the one before it.
    ///
    /// Cost: about a microsecond under the lock in a tier of ten million blocks.
    pub fn put(&self, block: Block) -> Put {
        assert!(self.arena.owns(&block.slot), "a block is put in a slot of its tier");
        // The block outlives the lock, and with it a slot that is not needed.
        self.books.lock().put(&block)
    }

    /// The bytes of the leading blocks that are here, in order; they count as used. What is read stays as it is, also
    /// when its block is evicted meanwhile.
    pub fn get_prefix(&self, names: &[BlockName]) -> Vec<Slot> {
        let mut found = Vec::new();
        for piece in names.chunks(PIECE_BLOCKS) {
            let left = names.len() - found.len();
            if self.books.lock().get(piece, left, &mut found) < piece.len() {
                break;
            }
        }
        found
    }

    /// How many leading blocks are here.
    ///
    /// Cost: O(log names) look-ups.
    pub fn resident_prefix(&self, names: &[BlockName]) -> usize {
        self.books.lock().pool.resident_prefix(names)
    }

    /// Whether a block is here.
    pub fn contains(&self, name: BlockName) -> bool {
        self.resident_prefix(&[name]) == 1
    }

    /// Says what a block is worth from here on.
    pub fn retain(&self, name: BlockName, retention: Retention, tenant: u64) -> Retained {
        self.books.lock().pool.retain(name, retention, tenant)
    }

    /// What a block is worth.
    pub fn retention(&self, name: BlockName) -> Option<Retention> {
        self.books.lock().pool.retention(&name)
    }

    /// Bounds how much is kept from here on.
    pub fn set_keep_bounds(&self, bounds: KeepBounds) {
        self.books.lock().pool.set_keep_bounds(bounds);
    }

    /// Ends what was to be kept until now.
    ///
    /// Cost: O(log blocks) for each block whose time ends, all under the lock; their number is bounded by the keep bounds.
    pub fn expire(&self, now_ms: u64) {
        let mut books = self.books.lock();
        books.counts.expired += u64::from(books.pool.expire(now_ms));
    }

    /// Takes out blocks of one prompt, given in its order, last block first. A block that others go on after stays, and
    /// so does what is before it. How many left.
    pub fn remove(&self, names: &[BlockName]) -> u32 {
        let mut removed = 0;
        for piece in names.rchunks(PIECE_BLOCKS) {
            let gone =
                self.books.lock().take_out(piece.len(), |pool, at| pool.remove(&piece[piece.len() - 1 - at]));
            removed += gone.len() as u32;
        }
        removed
    }

    /// Takes out as many blocks as are here when it begins: all of them, unless others put more meanwhile. How many left.
    pub fn flush(&self) -> u32 {
        let mut left = self.books.lock().pool.stats().resident as usize;
        let mut removed = 0;
        while left > 0 {
            let piece = left.min(PIECE_BLOCKS);
            let gone = self.books.lock().take_out(piece, |pool, _| pool.evict_first());
            removed += gone.len() as u32;
            left -= piece;
        }
        removed
    }

    /// Counts.
    pub fn stats(&self) -> HostStats {
        let books = self.books.lock();
        let pool = books.pool.stats();
        HostStats {
            blocks: pool.resident,
            blocks_max: pool.pages,
            bytes: u64::from(pool.resident) * self.arena.slot_bytes() as u64,
            kept: pool.kept,
            ..books.counts
        }
    }

    /// What changed since the last call.
    ///
    /// Cost: O(1), but where events were lost: one visit of each block under the lock.
    pub fn drain_events(&self) -> HostEvents {
        let mut books = self.books.lock();
        if !std::mem::take(&mut books.lost) {
            return HostEvents::Changes(std::mem::take(&mut books.events));
        }
        books.events.clear();
        let all = books.pool.names().map(|(name, parent)| KvEvent::Stored { name, parent });
        HostEvents::Everything(all.collect())
    }
}

impl Books {
    fn put(&mut self, block: &Block) -> Put {
        let &Block { name, parent, retention, tenant, .. } = block;
        let put = match self.pool.place(name, parent) {
            Placed::At { page, evicted } => {
                let evicted = evicted.map(|evicted| {
                    let dropped = evicted.retention.drop;
                    *if dropped { &mut self.counts.dropped } else { &mut self.counts.evicted } += 1;
                    self.vacate(evicted)
                });
                self.slots[page.0 as usize] = Some(block.slot.clone());
                self.counts.stored += 1;
                self.spoken_for(name, retention, tenant);
                Put::Stored { evicted }
            }
            Placed::Duplicate(_) => {
                self.counts.duplicates += 1;
                let known = self.pool.retention(&name).expect("a duplicate is resident");
                self.spoken_for(name, retention.larger(known), tenant);
                Put::Duplicate
            }
            Placed::Orphan => {
                self.counts.refused += 1;
                Put::Orphan
            }
            Placed::Full => {
                self.counts.refused += 1;
                Put::Full
            }
        };
        self.collect_events();
        put
    }

    /// A keep bound that is met is no matter here: the block is worth the rest of the wish.
    fn spoken_for(&mut self, name: BlockName, retention: Retention, tenant: u64) {
        let said = self.pool.retain(name, retention, tenant);
        assert!(said != Retained::Absent, "the block was just placed");
    }

    /// Adds the leading blocks of a piece to what was found of a prompt; how many. `left` of it were still asked for.
    fn get(&mut self, piece: &[BlockName], left: usize, found: &mut Vec<Slot>) -> usize {
        let pages = self.pool.touch_prefix(piece);
        found.extend(
            pages.iter().map(|page| self.slot(*page).clone().expect("a resident block has its slot")),
        );
        self.counts.hits += pages.len() as u64;
        if pages.len() < piece.len() {
            self.counts.misses += (left - pages.len()) as u64;
        }
        pages.len()
    }

    /// Takes out up to `count` blocks. The caller drops them when it has let go of the lock.
    fn take_out(
        &mut self,
        count: usize,
        next: impl Fn(&mut BlockPool, usize) -> Option<Evicted>,
    ) -> Vec<Block> {
        let mut gone = Vec::with_capacity(count);
        for at in 0..count {
            if let Some(evicted) = next(&mut self.pool, at) {
                gone.push(self.vacate(evicted));
            }
        }
        self.counts.flushed += gone.len() as u64;
        self.collect_events();
        gone
    }

    /// The block that had a page, with its bytes.
    fn vacate(&mut self, Evicted { page, name, parent, retention, tenant }: Evicted) -> Block {
        let slot = self.slots[page.0 as usize].take().expect("a resident block has its slot");
        Block { name, parent, slot, retention, tenant }
    }

    fn slot(&self, page: PageIdx) -> &Option<Slot> {
        &self.slots[page.0 as usize]
    }

    fn collect_events(&mut self) {
        let events = self.pool.drain_events();
        if self.lost || self.events.len() + events.len() > self.events_max {
            self.lost = true;
            self.events = Vec::new();
            return;
        }
        self.events.extend(events);
    }
}

#[cfg(test)]
mod tests;
