//! How a block lies in a store: a header that says what it is, then its bytes.
//!
//! ```text
//!  0        8        12       16          24           32      48      56    60      64
//!  | magic  | version| tokens | block_bytes| fingerprint| name  | len   | crc | zero  | payload ...
//! ```
//!
//! Numbers are little-endian. The checksum is CRC-32 over the header without it, then the payload.
//! **Invariant:** a value that differs from what was written in any byte, or in its length, does not verify.

use crc32fast::Hasher;

use crate::{BlockName, Geometry};

/// Bytes before the payload.
pub(super) const HEADER_BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"PMKVBLCK";
const VERSION: u32 = 1;
const CRC_AT: std::ops::Range<usize> = 56..60;

/// Where a block lies: shared by all hosts that compute the same blocks.
pub(super) fn key(prefix: &str, geometry: &Geometry, name: BlockName) -> String {
    let name = format!("{:032x}", name.0);
    let (fingerprint, bytes) = (geometry.fingerprint.0, geometry.block_bytes);
    format!("{prefix}/v{VERSION}/{fingerprint:016x}/{bytes}/{}/{name}", &name[..2])
}

/// The header of a block with these bytes. Cost: one checksum over them, about 0.1 ms a MiB.
pub(super) fn header(geometry: &Geometry, name: BlockName, payload: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = without_checksum(geometry, name, payload.len());
    let checksum = checksum(&header, payload);
    header[CRC_AT].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// Says whether a header and a payload are the block of that name, whole and unchanged.
pub(super) fn verifies(
    header: &[u8; HEADER_BYTES],
    geometry: &Geometry,
    name: BlockName,
    payload: &[u8],
) -> bool {
    let mut expected = without_checksum(geometry, name, payload.len());
    expected[CRC_AT].copy_from_slice(&header[CRC_AT]);
    expected == *header && header[CRC_AT] == checksum(header, payload).to_le_bytes()
}

fn without_checksum(geometry: &Geometry, name: BlockName, len: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&geometry.block_tokens.to_le_bytes());
    header[16..24].copy_from_slice(&(geometry.block_bytes as u64).to_le_bytes());
    header[24..32].copy_from_slice(&geometry.fingerprint.0.to_le_bytes());
    header[32..48].copy_from_slice(&name.0.to_le_bytes());
    header[48..56].copy_from_slice(&(len as u64).to_le_bytes());
    header
}

fn checksum(header: &[u8; HEADER_BYTES], payload: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&header[..CRC_AT.start]);
    hasher.update(&header[CRC_AT.end..]);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::Fingerprint;

    fn geometry(payload: &[u8]) -> Geometry {
        Geometry { block_bytes: payload.len(), block_tokens: 16, fingerprint: Fingerprint(0xabc) }
    }

    #[test]
    fn keys_never_change() {
        let geometry = Geometry { block_bytes: 4096, block_tokens: 16, fingerprint: Fingerprint(0xabc) };
        let expected = "kv/v1/0000000000000abc/4096/0a/0a0000000000000000000000000000ff";
        assert_eq!(key("kv", &geometry, BlockName(0x0a << 120 | 0xff)), expected);
    }

    #[test]
    fn headers_never_change() {
        let header = header(&geometry(b"abcd"), BlockName(5), b"abcd");
        assert_eq!(&header[..16], b"PMKVBLCK\x01\0\0\0\x10\0\0\0");
        assert_eq!(header[CRC_AT], 0xf207_ddf8_u32.to_le_bytes(), "{:x?}", &header[CRC_AT]);
    }

    #[test]
    fn a_block_of_another_name_or_geometry_does_not_verify() {
        let (payload, name) = (b"abcd", BlockName(5));
        let geometry = geometry(payload);
        let header = header(&geometry, name, payload);
        assert!(verifies(&header, &geometry, name, payload));
        assert!(!verifies(&header, &geometry, BlockName(6), payload));
        assert!(!verifies(&header, &Geometry { block_tokens: 32, ..geometry }, name, payload));
        assert!(!verifies(&header, &Geometry { fingerprint: Fingerprint(1), ..geometry }, name, payload));
        assert!(!verifies(&header, &geometry, name, &payload[..3]));
    }

    proptest! {
        /// What was written verifies, and nothing else does.
        #[test]
        fn any_changed_byte_is_noticed(
            payload in vec(any::<u8>(), 1..300), name in any::<u128>(),
            at in any::<prop::sample::Index>(), flip in 1u8..,
        ) {
            let (geometry, name) = (geometry(&payload), BlockName(name));
            let mut value = header(&geometry, name, &payload).to_vec();
            value.extend(&payload);
            let verifies = |value: &[u8]| {
                let (header, payload) = value.split_first_chunk().expect("it is longer than its header");
                verifies(header, &geometry, name, payload)
            };
            prop_assert!(verifies(&value));
            let at = at.index(value.len());
            value[at] ^= flip;
            prop_assert!(!verifies(&value), "byte {at}");
        }
    }
}
