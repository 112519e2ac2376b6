//! Memory for blocks outside the executor: one mapping, cut into slots that all transfers read and write in place.
//!
//! The host tier keeps blocks in it; the disk and the remote tier write from it and read into it.
//! **Invariant:** a slot has one writer and no reader ([`SlotMut`]), or readers alone ([`Slot`]); it is free again when
//! the last of them is dropped.
#![allow(unsafe_code, reason = "slots are disjoint parts of one mapping")]

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::MmapMut;
use parking_lot::Mutex;

/// What every slot begins on a multiple of, in bytes: what direct I/O asks for on all common file systems.
pub const SLOT_ALIGN: usize = 4096;

/// A mapping of slots of one size. A clone is the same arena.
#[derive(Clone, Debug)]
pub struct Arena(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    base: *mut u8,
    slot_bytes: usize,
    stride: usize,
    slots: u32,
    /// The last is handed out next: its memory was touched last.
    free: Mutex<Vec<u32>>,
    /// Keeps `base` alive.
    _map: MmapMut,
}

// SAFETY: `base` points into `_map`, which moves with it; slots are handed out once, under the lock of `free`.
unsafe impl Send for Inner {}
// SAFETY: as above; through a shared reference nothing but `free` and constants is reached.
unsafe impl Sync for Inner {}

impl Arena {
    /// An arena of free slots. Each has `slot_bytes`, rounded up to [`SLOT_ALIGN`] for what a device writes.
    ///
    /// Cost: address space; RAM is taken page by page, when a slot is first used.
    /// Errors: the address space is refused.
    pub fn new(slots: u32, slot_bytes: usize) -> std::io::Result<Self> {
        assert!(slot_bytes > 0, "a slot holds something");
        let stride = slot_bytes.next_multiple_of(SLOT_ALIGN);
        let bytes = stride.checked_mul(slots.max(1) as usize);
        let bytes = bytes.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::OutOfMemory))?;
        let mut map = MmapMut::map_anon(bytes)?;
        Ok(Self(Arc::new(Inner {
            base: map.as_mut_ptr(),
            slot_bytes,
            stride,
            slots,
            free: Mutex::new((0..slots).rev().collect()),
            _map: map,
        })))
    }

    /// A free slot to write; what it held before is still in it. `None` when all are in use.
    pub fn take(&self) -> Option<SlotMut> {
        let slot = self.0.free.lock().pop()?;
        Some(SlotMut { arena: Arc::clone(&self.0), slot })
    }

    /// Slots that exist.
    pub fn slots(&self) -> u32 {
        self.0.slots
    }

    /// Slots that nobody has.
    pub fn free(&self) -> u32 {
        self.0.free.lock().len() as u32
    }

    /// Whether a slot is one of this arena.
    pub fn owns(&self, slot: &Slot) -> bool {
        Arc::ptr_eq(&self.0, &slot.0.arena)
    }

    /// The memory of all slots, for a device that copies by itself: where it begins, bytes from one slot to the next, and
    /// slots. It stays where it is while a clone of the arena or a slot lives.
    pub fn memory(&self) -> (*const u8, usize, u32) {
        (self.0.base, self.0.stride, self.0.slots)
    }

    /// Bytes that a slot holds.
    pub fn slot_bytes(&self) -> usize {
        self.0.slot_bytes
    }
}

/// A slot that one owner writes.
#[derive(Debug)]
pub struct SlotMut {
    arena: Arc<Inner>,
    slot: u32,
}

impl SlotMut {
    /// Ends the writing: from here on it is read, by as many as like.
    pub fn freeze(self) -> Slot {
        Slot(Arc::new(self))
    }

    /// The slot up to a multiple of [`SLOT_ALIGN`]: what direct I/O reads into. Bytes after the block's mean nothing.
    pub fn padded_mut(&mut self) -> &mut [u8] {
        // SAFETY: the slot's stride lies in the mapping, no other slot overlaps it, and `&mut self` makes the borrow
        // unique; every byte of an anonymous mapping is initialised.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.arena.stride) }
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: `slot < slots`, so the offset lies in the mapping.
        unsafe { self.arena.base.add(self.slot as usize * self.arena.stride) }
    }

    fn padded(&self) -> &[u8] {
        // SAFETY: as in `padded_mut`; a shared borrow excludes the writer.
        unsafe { std::slice::from_raw_parts(self.start(), self.arena.stride) }
    }
}

impl Deref for SlotMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.padded()[..self.arena.slot_bytes]
    }
}

impl DerefMut for SlotMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        let bytes = self.arena.slot_bytes;
        &mut self.padded_mut()[..bytes]
    }
}

impl Drop for SlotMut {
    fn drop(&mut self) {
        self.arena.free.lock().push(self.slot);
    }
}

/// A slot that is written no more. A clone is the same slot.
#[derive(Clone, Debug)]
pub struct Slot(Arc<SlotMut>);

impl Slot {
    /// The slot up to a multiple of [`SLOT_ALIGN`]: what direct I/O writes. Bytes after the block's mean nothing.
    pub fn padded(&self) -> &[u8] {
        self.0.padded()
    }
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_again_when_its_last_reader_is_gone() {
        let arena = Arena::new(2, 100).unwrap();
        let mut first = arena.take().unwrap();
        first.fill(7);
        let second = arena.take().unwrap();
        assert!(arena.take().is_none(), "two slots are two");
        let read = first.freeze();
        let also = read.clone();
        drop(read);
        assert_eq!((arena.free(), also.len(), also[99]), (0, 100, 7));
        drop((also, second));
        assert_eq!(arena.free(), 2);
    }

    #[test]
    fn slots_are_aligned_and_apart() {
        let arena = Arena::new(3, SLOT_ALIGN + 1).unwrap();
        let mut slots: Vec<SlotMut> = std::iter::from_fn(|| arena.take()).collect();
        for (value, slot) in (1..).zip(&mut slots) {
            slot.padded_mut().fill(value);
        }
        for (value, slot) in (1u8..).zip(&slots) {
            assert_eq!(slot.padded().len(), 2 * SLOT_ALIGN);
            assert_eq!(slot.padded().as_ptr() as usize % SLOT_ALIGN, 0);
            assert!(slot.padded().iter().all(|&byte| byte == value));
        }
    }
}
