//! What lies where in a slab file, and how a slot says what it holds.
//!
//! ```text
//!   0        4096                4096 + stride
//!   ┌────────┬────────┬─────────┬────────┬─────────┬───
//!   │ slab   │ header │ payload │ header │ payload │ …
//!   │ header │ 4 KiB  │ padded  │        │         │
//!   └────────┴────────┴─────────┴────────┴─────────┴───
//! ```
//!
//! **Invariant:** a header that reads back is one that was written whole, to this slot, for this geometry; a payload
//! is the header's if its checksum is.

use crate::Geometry;
use crate::{BlockName, Fingerprint, Retention, SLOT_ALIGN};

/// Bytes of a header, and what every read and write is a multiple of.
pub(super) const HEADER_BYTES: usize = SLOT_ALIGN;

/// Goes up with any change of what is below: slabs of another version are given up.
const VERSION: u32 = 1;

const SLAB_MAGIC: u64 = u64::from_le_bytes(*b"PMKVSLAB");
const SLOT_MAGIC: u64 = u64::from_le_bytes(*b"PMKVSLOT");

const FLAG_PARENT: u32 = 1;
const FLAG_DROP: u32 = 2;

/// Where a slot lies: the number of its slab, and its index there. Survives restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    pub(super) slab: u32,
    pub(super) index: u32,
}

/// What a slot's header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SlotHeader {
    pub(super) generation: u64,
    pub(super) name: BlockName,
    pub(super) parent: Option<BlockName>,
    pub(super) retention: Retention,
    /// The caller's clock when it was written.
    pub(super) created_ms: u64,
    pub(super) payload_crc: u32,
}

/// What a slab's header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SlabHeader {
    pub(super) slab: u32,
    pub(super) slots: u32,
}

impl Geometry {
    /// Bytes of a payload as it lies on disk.
    pub(super) fn padded_bytes(&self) -> usize {
        self.block_bytes.next_multiple_of(HEADER_BYTES)
    }

    /// Bytes from one slot to the next.
    pub(super) fn stride(&self) -> u64 {
        (HEADER_BYTES + self.padded_bytes()) as u64
    }

    /// Bytes of a slab of `slots`.
    pub(super) fn slab_bytes(&self, slots: u32) -> u64 {
        HEADER_BYTES as u64 + u64::from(slots) * self.stride()
    }

    /// Where a slot begins in its file.
    pub(super) fn offset(&self, index: u32) -> u64 {
        self.slab_bytes(index)
    }

    /// Slots that lie whole in a file of `bytes`.
    pub(super) fn slots_in(&self, bytes: u64) -> u32 {
        let slots = bytes.saturating_sub(HEADER_BYTES as u64) / self.stride();
        u32::try_from(slots).unwrap_or(u32::MAX)
    }
}

impl SlotHeader {
    /// Writes the header into `out`, which is [`HEADER_BYTES`] long.
    pub(super) fn encode(&self, place: Place, geometry: &Geometry, out: &mut [u8]) {
        let mut fields = Fields::new(out, SLOT_MAGIC, geometry);
        fields.u32(place.slab);
        fields.u32(place.index);
        fields.u64(self.generation);
        fields.u128(self.name.0);
        fields.u128(self.parent.map_or(0, |name| name.0));
        fields.u32(flags(self.parent.is_some(), self.retention.drop));
        fields.u32(u32::from(self.retention.priority));
        fields.u64(self.retention.until_ms);
        fields.u64(self.created_ms);
        fields.u32(self.payload_crc);
        fields.seal();
    }

    /// What `bytes` say of the slot at `place`; nothing if they are torn, old, or not of this slot and geometry.
    pub(super) fn decode(bytes: &[u8], place: Place, geometry: &Geometry) -> Option<Self> {
        let mut fields = Reader::open(bytes, SLOT_MAGIC, geometry)?;
        let found = Place { slab: fields.u32(), index: fields.u32() };
        let (generation, name, parent) = (fields.u64(), fields.u128(), fields.u128());
        let (flags, priority) = (fields.u32(), fields.u32());
        let (until_ms, created_ms, payload_crc) = (fields.u64(), fields.u64(), fields.u32());
        (found == place && fields.ends_whole()).then(|| Self {
            generation,
            name: BlockName(name),
            parent: (flags & FLAG_PARENT != 0).then_some(BlockName(parent)),
            retention: retention(flags, priority, until_ms),
            created_ms,
            payload_crc,
        })
    }
}

impl SlabHeader {
    /// Writes the header into `out`, which is [`HEADER_BYTES`] long.
    pub(super) fn encode(&self, geometry: &Geometry, out: &mut [u8]) {
        let mut fields = Fields::new(out, SLAB_MAGIC, geometry);
        fields.u32(self.slab);
        fields.u32(self.slots);
        fields.seal();
    }

    /// What `bytes` say; nothing if they are torn, old, or of another geometry.
    pub(super) fn decode(bytes: &[u8], geometry: &Geometry) -> Option<Self> {
        let mut fields = Reader::open(bytes, SLAB_MAGIC, geometry)?;
        let found = Self { slab: fields.u32(), slots: fields.u32() };
        fields.ends_whole().then_some(found)
    }
}

/// What a block is and what it is worth, as the index keeps it; a fixed number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Record {
    pub(super) generation: u64,
    pub(super) name: BlockName,
    pub(super) parent: Option<BlockName>,
    pub(super) retention: Retention,
    /// The tier's count of uses when the block was last used.
    pub(super) used: u64,
    /// The caller's clock when the record was made.
    pub(super) noted_ms: u64,
}

impl Record {
    pub(super) const BYTES: usize = 72;

    pub(super) fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        let mut fields = Fields { out: &mut out, at: 0 };
        fields.u64(self.generation);
        fields.u128(self.name.0);
        fields.u128(self.parent.map_or(0, |name| name.0));
        fields.u32(flags(self.parent.is_some(), self.retention.drop));
        fields.u32(u32::from(self.retention.priority));
        fields.u64(self.retention.until_ms);
        fields.u64(self.used);
        fields.u64(self.noted_ms);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::BYTES {
            return None;
        }
        let mut fields = Reader { bytes, at: 0 };
        let (generation, name, parent) = (fields.u64(), fields.u128(), fields.u128());
        let (flags, priority, until_ms) = (fields.u32(), fields.u32(), fields.u64());
        Some(Self {
            generation,
            name: BlockName(name),
            parent: (flags & FLAG_PARENT != 0).then_some(BlockName(parent)),
            retention: retention(flags, priority, until_ms),
            used: fields.u64(),
            noted_ms: fields.u64(),
        })
    }
}

fn flags(has_parent: bool, drop: bool) -> u32 {
    (u32::from(has_parent) * FLAG_PARENT) | (u32::from(drop) * FLAG_DROP)
}

fn retention(flags: u32, priority: u32, until_ms: u64) -> Retention {
    let priority = priority.min(u32::from(Retention::PRIORITY_MAX)) as u8;
    Retention { priority, until_ms, drop: flags & FLAG_DROP != 0 }
}

/// Writes little-endian fields one after the other.
struct Fields<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// Begins a header: its magic, the version, and the geometry.
    fn new(out: &'a mut [u8], magic: u64, geometry: &Geometry) -> Self {
        assert_eq!(out.len(), HEADER_BYTES, "a header has its size");
        out.fill(0);
        let mut fields = Self { out, at: 0 };
        fields.u64(magic);
        fields.u32(VERSION);
        fields.u32(geometry.block_tokens);
        fields.u64(geometry.block_bytes as u64);
        fields.u64(geometry.fingerprint.0);
        fields
    }

    fn put(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    fn u128(&mut self, value: u128) {
        self.put(&value.to_le_bytes());
    }

    /// Ends a header with the checksum of all before.
    fn seal(mut self) {
        let crc = crc32fast::hash(&self.out[..self.at]);
        self.u32(crc);
    }
}

/// Reads what [`Fields`] wrote.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn open(bytes: &'a [u8], magic: u64, geometry: &Geometry) -> Option<Self> {
        if bytes.len() != HEADER_BYTES {
            return None;
        }
        let mut fields = Self { bytes, at: 0 };
        let is_ours = fields.u64() == magic && fields.u32() == VERSION;
        let found = Geometry {
            block_tokens: fields.u32(),
            block_bytes: usize::try_from(fields.u64()).ok()?,
            fingerprint: Fingerprint(fields.u64()),
        };
        (is_ours && found == *geometry).then_some(fields)
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let from = self.at;
        self.at += N;
        self.bytes[from..self.at].try_into().expect("the range has N bytes")
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn u128(&mut self) -> u128 {
        u128::from_le_bytes(self.take())
    }

    /// Whether the checksum that follows is that of all before.
    fn ends_whole(mut self) -> bool {
        let crc = crc32fast::hash(&self.bytes[..self.at]);
        self.u32() == crc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry { block_bytes: 5000, block_tokens: 16, fingerprint: Fingerprint(9) };
    const PLACE: Place = Place { slab: 3, index: 7 };

    fn header() -> SlotHeader {
        SlotHeader {
            generation: 11,
            name: BlockName(1 << 100 | 5),
            parent: Some(BlockName(4)),
            retention: Retention { priority: 70, until_ms: 9000, drop: false },
            created_ms: 123,
            payload_crc: 0xabcd,
        }
    }

    fn encoded() -> Vec<u8> {
        let mut bytes = vec![1; HEADER_BYTES];
        header().encode(PLACE, &GEOMETRY, &mut bytes);
        bytes
    }

    #[test]
    fn a_header_reads_back_at_its_place_alone() {
        let bytes = encoded();
        assert_eq!(SlotHeader::decode(&bytes, PLACE, &GEOMETRY), Some(header()));
        assert_eq!(SlotHeader::decode(&bytes, Place { index: 8, ..PLACE }, &GEOMETRY), None);
        assert_eq!(SlotHeader::decode(&bytes, Place { slab: 4, ..PLACE }, &GEOMETRY), None);
    }

    #[test]
    fn a_header_of_another_geometry_is_none() {
        let bytes = encoded();
        for other in [
            Geometry { block_bytes: 5001, ..GEOMETRY },
            Geometry { block_tokens: 32, ..GEOMETRY },
            Geometry { fingerprint: Fingerprint(8), ..GEOMETRY },
        ] {
            assert_eq!(SlotHeader::decode(&bytes, PLACE, &other), None);
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_seen() {
        let used = encoded().iter().rposition(|&byte| byte != 0).unwrap() + 1;
        for bit in 0..used * 8 {
            let mut bytes = encoded();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SlotHeader::decode(&bytes, PLACE, &GEOMETRY), None, "bit {bit}");
        }
    }

    #[test]
    fn a_header_of_zeros_is_none() {
        assert_eq!(SlotHeader::decode(&[0; HEADER_BYTES], PLACE, &GEOMETRY), None);
        assert_eq!(SlabHeader::decode(&[0; HEADER_BYTES], &GEOMETRY), None);
    }

    #[test]
    fn a_record_reads_back() {
        let SlotHeader { generation, name, parent, retention, .. } = header();
        let record = Record { generation, name, parent, retention, used: 77, noted_ms: 88 };
        assert_eq!(Record::decode(&record.encode()), Some(record));
        assert_eq!(Record::decode(&record.encode()[1..]), None);
    }

    #[test]
    fn slots_lie_one_after_the_other() {
        assert_eq!((GEOMETRY.padded_bytes(), GEOMETRY.stride()), (8192, 12_288));
        assert_eq!((GEOMETRY.offset(0), GEOMETRY.offset(2)), (4096, 4096 + 2 * 12_288));
        assert_eq!(GEOMETRY.slots_in(GEOMETRY.slab_bytes(5)), 5);
        assert_eq!(GEOMETRY.slots_in(GEOMETRY.slab_bytes(5) - 1), 4);
        assert_eq!(GEOMETRY.slots_in(0), 0);
    }
}
