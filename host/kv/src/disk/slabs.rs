//! The files that slots lie in, and which slot is where.
//!
//! A tier begins without any and adds one when it needs room, so that a small cache stays small.
//! Called by the tier under its lock; only making, checking and cutting a file touch the disk, and those who do that
//! hold no lock.
//! **Invariant:** slots of all slabs are numbered one after the other, in the order in which slabs were added.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::layout::{HEADER_BYTES, Place, SlabHeader};
use super::media::{Media, SlabFile, sync_folder};
use crate::Geometry;
use crate::{Arena, SlotMut};

/// Bytes and slots of the smallest growth, whichever is less. Chosen: a fraction of a second of writing.
const SLAB_BYTES: u64 = 64 << 20;
const SLAB_SLOTS: u64 = 256;

/// Slabs that a full tier has, about: each is an open file.
const SLABS: u64 = 128;

pub(super) struct Slab {
    pub(super) number: u32,
    /// Its first slot's number among all slots.
    pub(super) base: u32,
    pub(super) slots: u32,
    pub(super) file: Arc<dyn SlabFile>,
}

#[derive(Default)]
pub(super) struct Slabs {
    all: Vec<Slab>,
    /// The number that the next one gets; none is used twice while the tier is open.
    next: u32,
    slots: u32,
}

impl Slabs {
    pub(super) fn add(&mut self, number: u32, slots: u32, file: Arc<dyn SlabFile>) {
        self.all.push(Slab { number, base: self.slots, slots, file });
        self.slots += slots;
        self.next = self.next.max(number + 1);
    }

    /// Forgets all slabs; their numbers stay used.
    pub(super) fn take(&mut self) -> Vec<Slab> {
        self.slots = 0;
        std::mem::take(&mut self.all)
    }

    pub(super) fn next_number(&self) -> u32 {
        self.next
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Slab> {
        self.all.iter()
    }

    /// Slots of all slabs.
    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    /// Bytes of all slabs.
    pub(super) fn bytes(&self, geometry: &Geometry) -> u64 {
        self.all.iter().map(|slab| geometry.slab_bytes(slab.slots)).sum()
    }

    /// The slab of a slot, and where the slot lies.
    pub(super) fn locate(&self, slot: u32) -> (&Slab, Place) {
        let at = self.all.partition_point(|slab| slab.base <= slot) - 1;
        let slab = &self.all[at];
        assert!(slot - slab.base < slab.slots, "a slot lies in a slab");
        (slab, Place { slab: slab.number, index: slot - slab.base })
    }

    /// Slots of the next slab within a quota; `None` when there is no room for one.
    pub(super) fn growth(&self, geometry: &Geometry, bytes_max: u64) -> Option<u32> {
        let whole = bytes_max / geometry.stride() / SLABS;
        let least = SLAB_SLOTS.min(SLAB_BYTES / geometry.stride()).max(1);
        let room = bytes_max.saturating_sub(self.bytes(geometry));
        let slots = geometry.slots_in(room).min(u32::try_from(whole.max(least)).unwrap_or(u32::MAX));
        (slots > 0 && self.slots.checked_add(slots).is_some_and(|all| all < u32::MAX)).then_some(slots)
    }
}

/// The path of a slab.
pub(super) fn path_of(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("slab-{number:08x}.kv"))
}

/// The number in the name of a slab; `None` for other files.
pub(super) fn number_of(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("slab-")?.strip_suffix(".kv")?;
    (digits.len() == 8).then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

/// Memory for one header, aligned as direct I/O asks for.
pub(super) fn header_page() -> io::Result<SlotMut> {
    let arena = Arena::new(1, HEADER_BYTES)?;
    Ok(arena.take().expect("an arena of one slot has one"))
}

/// Makes a slab that is there after a crash, or not at all.
pub(super) fn make(
    media: &dyn Media,
    folder: &Path,
    geometry: &Geometry,
    header: SlabHeader,
) -> io::Result<Arc<dyn SlabFile>> {
    let path = path_of(folder, header.slab);
    let made = media.create(&path, geometry.slab_bytes(header.slots)).and_then(|file| {
        write_header(&*file, geometry, header)?;
        sync_folder(folder)?;
        Ok(file)
    });
    if made.is_err() {
        // What was taken of the space is given back; the error of the attempt says more than one of this.
        let _gone = std::fs::remove_file(&path);
    }
    made
}

/// Says in a slab what it is, durably.
fn write_header(file: &dyn SlabFile, geometry: &Geometry, header: SlabHeader) -> io::Result<()> {
    let mut page = header_page()?;
    header.encode(geometry, &mut page);
    file.write(0, &page, &[])?;
    file.sync()
}

/// What a slab says of itself; `None` if it is of another geometry or version, torn, or named wrongly.
pub(super) fn read_header(file: &dyn SlabFile, geometry: &Geometry) -> io::Result<Option<SlabHeader>> {
    let mut page = header_page()?;
    file.read(0, &mut page, &mut [])?;
    Ok(SlabHeader::decode(&page, geometry))
}

/// Cuts slots off the end of a slab: first it says so, then its file is cut.
pub(super) fn cut(file: &dyn SlabFile, geometry: &Geometry, header: SlabHeader) -> io::Result<()> {
    write_header(file, geometry, header)?;
    file.truncate(geometry.slab_bytes(header.slots))
}
