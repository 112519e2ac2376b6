//! The table of names: in which page a block is, of those by which others are found.
//!
//! ```text
//!   key ── top bits, bent ──► directory ──► segment of 1,024 lines ──► line of 4 keys and 4 places, or the next one
//! ```
//! Extendible hashing: a segment that is full splits alone, in cache. Names of one table fill all segments alike,
//! so all would split at once and the table be half empty afterwards; a curve between key and directory gives
//! segments shares that differ by up to two, which spreads the splits over a doubling.
//!
//! **Invariant:** a line fills from its first slot, and a key lies in its own line or behind lines that are full. There are
//! no tombstones: what lies behind its line moves up when there is room.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::BlockName;

/// Slots of a line: a cache line of keys and places.
const SLOTS: usize = 4;
/// Lines of a segment. Chosen: 64 KiB split within a core's cache, in about ten microseconds.
const LINES: usize = 1024;
/// Entries at which a segment splits. Measured (`bench -- index`, chats): at 11/16 and at 1/2 batches take 5 to 20 %
/// longer, since keys lie behind their lines or segments are many.
const FULL: usize = LINES * SLOTS * 5 / 8;
/// Odd, without structure.
const MIX: u64 = 0x9e6c_63d0_876a_3f35;

/// Keys, then the places of each.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line([AtomicU64; 2 * SLOTS]);

type Segment = Box<[Line; LINES]>;

// What a line holds is random, so slots are chosen without branches.
impl Line {
    #[inline]
    fn keys(&self) -> [u64; SLOTS] {
        // Written out: a loop is not unrolled here.
        let at = |slot: usize| self.0[slot].load(Relaxed);
        [at(0), at(1), at(2), at(3)]
    }

    #[inline]
    fn place(&self, slot: usize) -> u64 {
        self.0[SLOTS + slot].load(Relaxed)
    }

    #[inline]
    fn set(&self, slot: usize, (key, place): (u64, u64)) {
        self.0[slot].store(key, Relaxed);
        self.0[SLOTS + slot].store(place, Relaxed);
    }

    /// Takes an entry out of a line with these keys; the last one takes its slot.
    #[inline]
    fn take(&self, slot: usize, keys: [u64; SLOTS]) {
        let last = (filled(keys) - 1) % SLOTS;
        self.set(slot, (self.0[last].load(Relaxed), self.place(last)));
        self.0[last].store(0, Relaxed);
    }
}

/// Slots of a line that are taken.
#[inline]
fn filled(keys: [u64; SLOTS]) -> usize {
    let [a, b, c, d] = keys.map(|key| usize::from(key != 0));
    a + b + c + d
}

/// The slot of a key.
#[inline]
fn slot_of(keys: [u64; SLOTS], key: u64) -> Option<usize> {
    let [a, b, c, d] = keys.map(|own| u32::from(own == key));
    let found = a | b << 1 | c << 2 | d << 3;
    (found != 0).then(|| found.trailing_zeros() as usize)
}

/// Half of a name, mixed, since names of other hosts may be counted up; never zero, which is an empty slot.
#[inline]
pub(super) fn key(name: BlockName) -> u64 {
    let half = name.0 as u64;
    (half ^ half >> 32).wrapping_mul(MIX).max(1)
}

/// The line at which a key is looked for first.
#[inline]
fn home(key: u64) -> usize {
    (key >> 20) as usize % LINES
}

/// What readers see of the table.
#[derive(Debug)]
pub(super) struct Table {
    /// Bits of the directory that are in use: as many as the smallest segment needs, so that it stays in cache.
    bits: AtomicU32,
    bits_max: u32,
    directory: Box<[AtomicU32]>,
    segments: Box<[OnceLock<Segment>]>,
}

/// What the writer knows of a segment besides.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// Leading bits of the directory that all its keys share.
    bits: u8,
    /// Which these are.
    prefix: u32,
}

/// The writer's books of the table.
#[derive(Debug)]
pub(super) struct TableBooks {
    /// Entries of each segment.
    entries: Vec<u16>,
    extents: Vec<Extent>,
    /// Entries of the segment that is split.
    moving: Vec<(u64, u64)>,
}

impl TableBooks {
    /// Entries of all segments.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.iter().copied().map(usize::from).sum()
    }
}

impl Table {
    /// A table for about this many entries.
    pub(super) fn new(entries_max: usize) -> (Self, TableBooks) {
        // The least loaded segment has half of what the fullest has, and both halves of a split count.
        let segments = (entries_max / (FULL / 4)).max(1).next_power_of_two();
        let table = Self {
            bits: AtomicU32::new(0),
            bits_max: segments.trailing_zeros(),
            directory: (0..segments).map(|_| AtomicU32::new(0)).collect(),
            segments: (0..segments).map(|_| OnceLock::new()).collect(),
        };
        table.segments[0].get_or_init(segment);
        let books =
            TableBooks { entries: vec![0], extents: vec![Extent { bits: 0, prefix: 0 }], moving: Vec::new() };
        (table, books)
    }

    /// Bytes of segments that exist.
    pub(super) fn bytes(books: &TableBooks) -> usize {
        books.extents.len() * size_of::<[Line; LINES]>()
    }

    /// Place of a key in the directory: its top half, bent by `x + x (1 - x) / 3`, which is close to `log2(1 + x)`.
    #[inline]
    fn direct(&self, key: u64) -> usize {
        let x = key >> 32;
        let bend = (x * ((1 << 32) - x)) >> 32;
        let y = x + ((bend * 0x5555_5555) >> 32);
        ((y << (self.bits.load(Relaxed) % 32)) >> 32) as usize
    }

    /// The segment of a key, by its number.
    #[inline]
    pub(super) fn number(&self, key: u64) -> u32 {
        self.directory.get(self.direct(key)).map_or(0, |number| number.load(Relaxed))
    }

    #[inline]
    fn segment(&self, number: u32) -> Option<&[Line; LINES]> {
        self.segments.get(number as usize)?.get().map(|segment| &**segment)
    }

    /// A segment that the directory names.
    #[inline]
    fn own(&self, number: u32) -> &[Line; LINES] {
        self.segment(number).expect("the directory names segments that exist")
    }

    /// Reads the line of each key, all at once: what is looked for next is then in cache. Gives their segments.
    #[inline]
    pub(super) fn touch(&self, keys: &[u64], numbers: &mut [u32]) {
        let mut all = 0;
        for (key, number) in keys.iter().zip(numbers) {
            *number = self.number(*key);
            all ^= self.segment(*number).map_or(0, |segment| segment[home(*key)].0[0].load(Relaxed));
        }
        std::hint::black_box(all);
    }

    /// The place of a key in a segment. Cost: a line, seldom two.
    #[inline]
    pub(super) fn find(&self, number: u32, key: u64) -> Option<u64> {
        let segment = self.segment(number)?;
        let line = &segment[home(key)];
        let keys = line.keys();
        match slot_of(keys, key) {
            Some(slot) => Some(line.place(slot)),
            None if keys[SLOTS - 1] == 0 => None,
            None => find_behind(segment, key),
        }
    }

    /// Whether a segment has to be split before a key is put into it.
    #[inline]
    pub(super) fn is_full(&self, books: &TableBooks, number: u32) -> bool {
        usize::from(books.entries[number as usize]) >= FULL
    }

    /// Puts a key into its segment, which has room; it may have had another place.
    #[inline]
    pub(super) fn put(&self, books: &mut TableBooks, number: u32, key: u64, place: u64) {
        let segment = self.own(number);
        let line = &segment[home(key)];
        let keys = line.keys();
        let slot = filled(keys);
        // Nearly always: it is new, and its line has room.
        if slot < SLOTS && slot_of(keys, key).is_none() {
            line.set(slot, (key, place));
            books.entries[number as usize] += 1;
        } else {
            self.put_behind(books, number, key, place);
        }
    }

    #[cold]
    fn put_behind(&self, books: &mut TableBooks, number: u32, key: u64, place: u64) {
        let segment = self.own(number);
        for at in home(key)..home(key) + LINES {
            let line = &segment[at % LINES];
            let keys = line.keys();
            if let Some(slot) = slot_of(keys, key) {
                line.set(slot, (key, place));
                return;
            }
            let slot = filled(keys);
            if slot < SLOTS {
                line.set(slot, (key, place));
                books.entries[number as usize] += 1;
                return;
            }
        }
        unreachable!("a full segment was split before")
    }

    /// Takes a key out of its segment, if it is there with this place.
    #[inline]
    pub(super) fn erase(&self, books: &mut TableBooks, number: u32, (key, place): (u64, u64)) {
        let segment = self.own(number);
        let mut at = home(key);
        let mut keys = segment[at].keys();
        let mut slot = slot_of(keys, key);
        while slot.is_none() && keys[SLOTS - 1] != 0 && at < home(key) + LINES {
            at += 1;
            keys = segment[at % LINES].keys();
            slot = slot_of(keys, key);
        }
        let line = &segment[at % LINES];
        let Some(slot) = slot.filter(|slot| line.place(*slot) == place) else { return };
        line.take(slot, keys);
        books.entries[number as usize] -= 1;
        if keys[SLOTS - 1] != 0 {
            move_up(segment, at);
        }
    }

    /// Hands half of a segment's keys to a new one. False: the directory tells no more of them apart.
    pub(super) fn split(&self, books: &mut TableBooks, number: u32) -> bool {
        let Extent { bits, prefix } = books.extents[number as usize];
        let depth = u32::from(bits) + 1;
        if depth > self.bits_max {
            return false;
        }
        if depth > self.bits.load(Relaxed) {
            self.widen();
        }
        let new = books.extents.len();
        self.segments[new].get_or_init(segment);
        books.extents[number as usize] = Extent { bits: bits + 1, prefix: prefix * 2 };
        books.extents.push(Extent { bits: bits + 1, prefix: prefix * 2 + 1 });
        let shift = self.bits.load(Relaxed) - depth;
        let half = (prefix * 2 + 1) << shift;
        for place in half..half + (1 << shift) {
            self.directory[place as usize].store(new as u32, Relaxed);
        }
        let mut moving = std::mem::take(&mut books.moving);
        let pivot = self.pivot(half);
        let mut counts = [0; 2];
        for (at, (low, high)) in self.own(number).iter().zip(self.own(new as u32)).enumerate() {
            let part = divide((low, high), at, pivot, &mut moving);
            counts = [counts[0] + part[0], counts[1] + part[1]];
        }
        books.entries[number as usize] = counts[0] as u16;
        books.entries.push(counts[1] as u16);
        for (key, place) in moving.drain(..) {
            self.put(books, self.number(key), key, place);
        }
        books.moving = moving;
        true
    }

    /// Lets the directory tell twice as many segments apart.
    fn widen(&self) {
        let bits = self.bits.load(Relaxed);
        for place in (0..1usize << bits).rev() {
            let number = self.directory[place].load(Relaxed);
            self.directory[2 * place].store(number, Relaxed);
            self.directory[2 * place + 1].store(number, Relaxed);
        }
        self.bits.store(bits + 1, Relaxed);
    }

    /// The least key that is at a place of the directory or behind it: places grow with keys.
    fn pivot(&self, place: u32) -> u64 {
        let (mut low, mut high) = (0u64, u64::from(u32::MAX));
        while low < high {
            let middle = (low + high) / 2;
            if self.direct(middle << 32) < place as usize { low = middle + 1 } else { high = middle }
        }
        low << 32
    }
}

/// Hands a line's entries that are not less than a key to the same line of another segment; how many each has then.
/// Those that lie behind their own line are moved.
#[inline]
fn divide((low, high): (&Line, &Line), at: usize, pivot: u64, moving: &mut Vec<(u64, u64)>) -> [usize; 2] {
    let (mut kept, mut given) = (0, 0);
    for (slot, mut key) in low.keys().into_iter().enumerate() {
        let place = low.place(slot);
        if home(key) != at && key != 0 {
            moving.push((key, place));
            key = 0;
        }
        // An empty slot is written too, behind those that are taken.
        let is_taken = usize::from(key != 0);
        let goes = usize::from(key >= pivot);
        let (line, to) = if goes == 1 { (high, given) } else { (low, kept) };
        line.set(to % SLOTS, (key, place));
        given += goes;
        kept += is_taken - goes;
    }
    for slot in 0..SLOTS {
        let key = low.0[slot].load(Relaxed);
        low.0[slot].store(if slot < kept { key } else { 0 }, Relaxed);
    }
    [kept, given]
}

fn segment() -> Segment {
    let lines: Box<[Line]> = (0..LINES).map(|_| Line::default()).collect();
    lines.try_into().expect("the length is the same constant")
}

/// The place of a key that does not lie in its own line.
#[cold]
fn find_behind(segment: &[Line; LINES], key: u64) -> Option<u64> {
    for at in home(key) + 1..home(key) + LINES {
        let line = &segment[at % LINES];
        let keys = line.keys();
        if let Some(slot) = slot_of(keys, key) {
            return Some(line.place(slot));
        }
        if keys[SLOTS - 1] == 0 {
            break;
        }
    }
    None
}

/// Fills the last slot of a line, which was full, with an entry that lies behind it for want of room.
fn move_up(segment: &[Line; LINES], mut hole: usize) {
    let end = hole + LINES;
    let mut at = hole + 1;
    while at < end {
        let line = &segment[at % LINES];
        let keys = line.keys();
        let is_full = keys[SLOTS - 1] != 0;
        // How far an entry is from its line, against how far the hole is.
        let may = |slot: &usize| {
            let key = keys[*slot];
            key != 0 && at.wrapping_sub(home(key)) % LINES >= at - hole
        };
        if let Some(slot) = (0..SLOTS).find(may) {
            segment[hole % LINES].set(SLOTS - 1, (keys[slot], line.place(slot)));
            line.take(slot, keys);
            hole = at;
        }
        if !is_full {
            return;
        }
        at += 1;
    }
}
