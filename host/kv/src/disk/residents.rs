//! Which block is in which slot, what hangs on it, what it is worth: the tier's memory of its disk.
//!
//! Called by the tier under its lock; never touches a file.
//! A child knows its parent by name, since blocks come from a tier that lets go of children first: a child is here
//! before its parent, or without it. The numbers of such children wait for the parent in `awaited`.
//! **Invariant:** an entry's `children` are the resident and the coming blocks that name it as their parent. In the
//! order are the resident entries without children and readers, and no others.
//! Size: 92 bytes a block at ten million of them (72 an entry, 11 to 21 the table, 4 to 8 the rest), and up to 24 for
//! each list in the order, of which there are a few thousand for each class.

use rustc_hash::FxHashMap;

use super::expiry::Expiry;
use super::order::{NONE, Order};
use super::paged::Paged;
use super::table::Table;
use crate::{BlockName, Retention};

const RESIDENT: u8 = 1;
const HAS_PARENT: u8 = 2;
const DROP: u8 = 4;
const LISTED: u8 = 8;
const FAILED: u8 = 16;
const CHANGED: u8 = 32;

/// Most blocks that memory is reserved for. Chosen: beyond, a few long growths are a small part of what was written.
const RESERVED_MAX: u64 = 1 << 24;

/// What is known of one slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Halves of 128-bit names: the wider type would pad the entry.
    name: [u64; 2],
    parent: [u64; 2],
    generation: u64,
    used: u64,
    children: u32,
    /// The second until which it is kept, on the tier's clock; 0 for none.
    until_s: u32,
    prev: u32,
    next: u32,
    /// Where the parent was found last; its name says whether it is still there.
    parent_slot: u32,
    readers: u16,
    priority: u8,
    flags: u8,
}

impl Entry {
    const FREE: Self = Self {
        name: [0; 2],
        parent: [0; 2],
        generation: 0,
        used: 0,
        children: 0,
        until_s: 0,
        prev: NONE,
        next: NONE,
        parent_slot: NONE,
        readers: 0,
        priority: 0,
        flags: 0,
    };

    fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn is_resident(&self) -> bool {
        self.is(RESIDENT)
    }

    pub(super) fn name(&self) -> BlockName {
        whole(self.name)
    }

    pub(super) fn parent(&self) -> Option<BlockName> {
        self.is(HAS_PARENT).then(|| whole(self.parent))
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// What it is worth; the time is on the tier's clock.
    pub(super) fn retention(&self) -> Retention {
        let until_ms = u64::from(self.until_s) * 1000;
        Retention { priority: self.priority, until_ms, drop: self.is(DROP) }
    }

    pub(super) fn class(&self) -> u16 {
        class(self.retention())
    }

    pub(super) fn link(&mut self, prev: u32, next: u32) {
        (self.prev, self.next) = (prev, next);
        self.flags |= LISTED;
    }

    pub(super) fn unlink(&mut self) -> (u32, u32) {
        self.flags &= !LISTED;
        (std::mem::replace(&mut self.prev, NONE), std::mem::replace(&mut self.next, NONE))
    }

    pub(super) fn set_prev(&mut self, prev: u32) {
        self.prev = prev;
    }

    pub(super) fn set_next(&mut self, next: u32) {
        self.next = next;
    }

    fn may_leave(&self) -> bool {
        self.is_resident() && self.children == 0 && self.readers == 0
    }
}

/// What a block is and where it comes in the order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) name: BlockName,
    pub(super) parent: Option<BlockName>,
    /// On the tier's clock.
    pub(super) retention: Retention,
    pub(super) generation: u64,
    pub(super) used: u64,
}

#[derive(Debug)]
pub(super) struct Residents {
    entries: Paged<Entry>,
    by_name: Table,
    /// Half of the name of a block that is not here → blocks that name it as their parent.
    awaited: FxHashMap<u64, u32>,
    order: Order,
    expiry: Expiry,
    /// Blocks that are kept until some time.
    kept: usize,
    /// Slots whose record in the index is out of date; each once.
    changed: Vec<u32>,
}

impl Residents {
    /// None, and room for ever more of them; about `slots` in the end.
    ///
    /// Memory for those is reserved, since moving it again and again costs more than all else: address space, which
    /// takes RAM as blocks come.
    pub(super) fn new(slots: u64) -> Self {
        let reserved = slots.min(RESERVED_MAX) as usize;
        Self {
            entries: Paged::with_capacity(reserved),
            by_name: Table::with_capacity(reserved),
            awaited: FxHashMap::default(),
            order: Order::new(slots),
            expiry: Expiry::default(),
            kept: 0,
            changed: Vec::new(),
        }
    }

    /// Adds free slots.
    pub(super) fn add_slots(&mut self, slots: u32) {
        let len = self.entries.len() + slots as usize;
        assert!(len < NONE as usize, "slots are numbered with 32 bits");
        self.entries.extend(slots as usize, Entry::FREE);
    }

    /// Resident blocks.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Blocks that are kept until some time.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    pub(super) fn entry(&self, this: u32) -> &Entry {
        &self.entries[this as usize]
    }

    /// The slot of a resident block.
    pub(super) fn find(&self, name: &BlockName) -> Option<u32> {
        self.by_name.find(*name, |this| self.entry(this).name == halves(*name))
    }

    /// Slots of all resident blocks, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Entry)> {
        (0..).zip(self.entries.iter()).filter(|(_, entry)| entry.is_resident())
    }

    /// A block comes that hangs on `parent`, which stays until the block has left or did not come after all.
    pub(super) fn adopt(&mut self, parent: Option<BlockName>) {
        let Some(parent) = parent else { return };
        match self.find(&parent) {
            Some(up) => {
                self.unlist(up);
                self.entries[up as usize].children += 1;
            }
            None => *self.awaited.entry(key(parent)).or_default() += 1,
        }
    }

    /// A block that hung on `parent` has left, or did not come.
    pub(super) fn disown(&mut self, parent: Option<BlockName>) {
        self.disown_at(parent, NONE);
    }

    /// As `disown`, where the parent may be in a slot already known.
    fn disown_at(&mut self, parent: Option<BlockName>, known: u32) {
        let Some(parent) = parent else { return };
        let is_it = |entry: &&Entry| entry.is_resident() && entry.name == halves(parent);
        let there = self.entries.get(known as usize).filter(is_it).map(|_| known);
        if let Some(up) = there.or_else(|| self.find(&parent)) {
            let entry = &mut self.entries[up as usize];
            entry.children = entry.children.saturating_sub(1);
            self.list_if_leaf(up);
        } else if let Some(children) = self.awaited.get_mut(&key(parent)) {
            *children -= 1;
            if *children == 0 {
                self.awaited.remove(&key(parent));
            }
        }
    }

    /// Makes a block resident whose parent has adopted it. No if it is already.
    #[must_use]
    pub(super) fn place(&mut self, this: u32, placed: Placed) -> bool {
        assert!(!self.entry(this).is_resident(), "a slot holds one block");
        if self.find(&placed.name).is_some() {
            return false;
        }
        let Self { by_name, entries, .. } = self;
        by_name.insert(placed.name, this, |slot| entries[slot as usize].name());
        let parent_slot = placed.parent.and_then(|parent| self.find(&parent)).unwrap_or(NONE);
        let children = match self.awaited.is_empty() {
            true => 0,
            false => self.awaited.remove(&key(placed.name)).unwrap_or(0),
        };
        let entry = &mut self.entries[this as usize];
        *entry = Entry {
            name: halves(placed.name),
            parent: placed.parent.map_or([0; 2], halves),
            generation: placed.generation,
            used: placed.used,
            children,
            parent_slot,
            flags: entry.flags & CHANGED | RESIDENT | if placed.parent.is_some() { HAS_PARENT } else { 0 },
            ..Entry::FREE
        };
        self.set_worth(this, placed.retention);
        self.note_change(this);
        self.list_if_leaf(this);
        true
    }

    /// A block leaves its slot; blocks that hang on it wait for it to come again.
    pub(super) fn leave(&mut self, this: u32) -> BlockName {
        assert!(self.entry(this).is_resident(), "a block leaves once");
        self.unlist(this);
        let entry = &mut self.entries[this as usize];
        let (name, parent, parent_slot) = (entry.name(), entry.parent(), entry.parent_slot);
        let children = entry.children;
        self.kept -= usize::from(entry.until_s > 0);
        let freed = Entry { flags: entry.flags & CHANGED, ..Entry::FREE };
        let Self { by_name, entries, .. } = self;
        by_name.remove(name, this, |slot| entries[slot as usize].name());
        entries[this as usize] = freed;
        if children > 0 {
            self.awaited.insert(key(name), children);
        }
        self.disown_at(parent, parent_slot);
        self.note_change(this);
        name
    }

    /// What leaves first, and its class.
    pub(super) fn first_to_leave(&self) -> Option<(u32, u16)> {
        self.order.first().map(|this| (this, self.entry(this).class()))
    }

    /// Keeps a block from leaving while it is read. No if as many read it as can be counted.
    #[must_use]
    pub(super) fn pin(&mut self, this: u32) -> bool {
        if self.entry(this).readers == u16::MAX {
            return false;
        }
        self.unlist(this);
        self.entries[this as usize].readers += 1;
        true
    }

    /// Ends a reading, if the slot still holds what was read.
    pub(super) fn unpin(&mut self, this: u32, generation: u64) {
        let Some(entry) = self.entries.get_mut(this as usize) else { return };
        if entry.is_resident() && entry.generation == generation {
            entry.readers -= 1;
            self.list_if_leaf(this);
        }
    }

    /// A block was of use; one that was to be dropped is not any more.
    pub(super) fn touch(&mut self, this: u32, used: u64) {
        self.unlist(this);
        let entry = &mut self.entries[this as usize];
        entry.used = used;
        entry.flags &= !FAILED;
        if entry.is(DROP) {
            self.set_worth(this, Retention::ORDINARY);
        }
        self.note_change(this);
        self.list_if_leaf(this);
    }

    /// Notes that a block could not be read. Whether that is the second time since it was last read.
    pub(super) fn note_failure(&mut self, this: u32) -> bool {
        let entry = &mut self.entries[this as usize];
        let again = entry.is(FAILED);
        entry.flags |= FAILED;
        again
    }

    /// Says what a block is worth; the time is on the tier's clock and rounded up to a second.
    pub(super) fn retain(&mut self, this: u32, retention: Retention) {
        let before = self.entry(this).retention();
        self.unlist(this);
        self.set_worth(this, retention);
        if self.entry(this).retention() != before {
            self.note_change(this);
        }
        self.list_if_leaf(this);
    }

    /// Ends what was to be kept until now, on the tier's clock.
    pub(super) fn expire(&mut self, now_ms: u64) {
        let now_s = seconds(now_ms, false);
        while let Some((second, slots)) = self.expiry.due(now_s) {
            for this in slots {
                let entry = self.entry(this);
                if entry.is_resident() && entry.until_s == second {
                    let retention = Retention { until_ms: 0, ..entry.retention() };
                    self.retain(this, retention);
                }
            }
        }
    }

    /// Up to `max` slots whose record is out of date; each is given once for a change.
    pub(super) fn take_changed(&mut self, max: usize) -> Vec<u32> {
        let from = self.changed.len().saturating_sub(max);
        let taken = self.changed.split_off(from);
        for &this in &taken {
            self.entries[this as usize].flags &= !CHANGED;
        }
        taken
    }

    /// Marks a record as out of date once more: it could not be written.
    pub(super) fn note_change(&mut self, this: u32) {
        let entry = &mut self.entries[this as usize];
        if !entry.is(CHANGED) {
            entry.flags |= CHANGED;
            self.changed.push(this);
        }
    }

    /// Bytes of heap that all of it takes, about: what lies behind each part.
    pub(super) fn heap_bytes(&self) -> usize {
        let map = |map: &FxHashMap<u64, u32>| (map.capacity() * 8 / 7).next_power_of_two() * 17;
        // A tree's nodes are two thirds full, about.
        let lists = self.order.lists() * 24;
        self.entries.len() * size_of::<Entry>()
            + self.by_name.bytes()
            + map(&self.awaited)
            + lists
            + (self.expiry.len() + self.changed.capacity()) * size_of::<u32>()
    }

    fn list_if_leaf(&mut self, this: u32) {
        let entry = &self.entries[this as usize];
        if entry.may_leave() && !entry.is(LISTED) {
            self.order.insert(&mut self.entries, this);
        }
    }

    fn unlist(&mut self, this: u32) {
        if self.entries[this as usize].is(LISTED) {
            self.order.remove(&mut self.entries, this);
        }
    }

    /// Sets what an entry is worth that is in no list.
    fn set_worth(&mut self, this: u32, retention: Retention) {
        let until_s = if retention.drop { 0 } else { seconds(retention.until_ms, true) };
        let entry = &mut self.entries[this as usize];
        let before = std::mem::replace(&mut entry.until_s, until_s);
        entry.priority = if retention.drop { 0 } else { retention.priority };
        entry.flags = entry.flags & !DROP | if retention.drop { DROP } else { 0 };
        self.kept -= usize::from(before > 0);
        self.kept += usize::from(until_s > 0);
        if until_s > 0 && until_s != before {
            self.expiry.note(until_s, this);
            self.rewrite_stale_notes();
        }
    }

    /// Costs O(slots), once for at least as many changes of wishes.
    fn rewrite_stale_notes(&mut self) {
        if self.expiry.len() <= self.entries.len() + 2 * self.kept + 1024 {
            return;
        }
        self.expiry.clear();
        for (this, entry) in (0..).zip(self.entries.iter()) {
            if entry.is_resident() && entry.until_s > 0 {
                self.expiry.note(entry.until_s, this);
            }
        }
    }
}

/// What comes before the use in the order: a lower class leaves first.
pub(super) fn class(retention: Retention) -> u16 {
    let worth: u16 = match retention {
        Retention { drop: true, .. } => return 0,
        retention if retention.is_kept() => 2,
        _ => 1,
    };
    worth << 8 | u16::from(retention.priority)
}

fn seconds(ms: u64, up: bool) -> u32 {
    let seconds = if up { ms.div_ceil(1000) } else { ms / 1000 };
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// Half of a name.
fn key(name: BlockName) -> u64 {
    name.0 as u64
}

fn halves(name: BlockName) -> [u64; 2] {
    [name.0 as u64, (name.0 >> 64) as u64]
}

fn whole([low, high]: [u64; 2]) -> BlockName {
    BlockName(u128::from(high) << 64 | u128::from(low))
}
