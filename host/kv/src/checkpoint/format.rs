//! The bytes of a checkpoint: a preamble that says whose it is, then records of tokens, then an end.
//!
//! ```text
//!           0            8         12    28           36           40      44
//! preamble  │ "pmseq\r\n" │ version │ key │ created_ms │ header_len │ crc32 │ the caller's header
//! record    │ kind u8 │ body_len u32 │ crc32 of kind, body_len and body │ body
//! tokens    kind 1, body: number of the first token, tokens
//! end       kind 2, body: count of all tokens
//! ```
//!
//! Numbers are little endian; the crc of the preamble covers all of it but itself, and the header.
//! **Invariant:** whatever the bytes, what is read is tokens as they were pushed, from the first on, in whole records.

use std::ops::Range;

/// Largest header of a caller, in bytes. Chosen: digests and seeds take far less, and a file is read into memory.
pub const HEADER_BYTES_MAX: usize = 64 << 10;

/// Most tokens of one record: what a torn write costs beyond itself. Chosen: 16 KiB, in which a frame's bytes are lost.
const RECORD_TOKENS_MAX: usize = 4096;

const MAGIC: &[u8; 8] = b"pmseq\r\n\0";
const VERSION: u32 = 1;
const PREAMBLE_BYTES: usize = 44;
const PREAMBLE_CRC: Range<usize> = 40..PREAMBLE_BYTES;
const FRAME_BYTES: usize = 9;
const TOKENS: u8 = 1;
const END: u8 = 2;

/// What a file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Read {
    pub(super) created_ms: u64,
    pub(super) header: Vec<u8>,
    pub(super) tokens: Vec<u32>,
    pub(super) ended: bool,
    /// Bytes up to the end of the last good record.
    pub(super) good_bytes: u64,
    /// Whether anything follows it.
    pub(super) torn: bool,
}

/// Why nothing of a file can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unreadable {
    /// The preamble is torn, damaged, or that of another key.
    Preamble,
    /// Another version wrote it.
    Version,
}

/// The preamble of a file.
pub(super) fn preamble(key: u128, created_ms: u64, header: &[u8]) -> Vec<u8> {
    assert!(header.len() <= HEADER_BYTES_MAX, "the caller checked the length of the header");
    let mut bytes = Vec::with_capacity(PREAMBLE_BYTES + header.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&key.to_le_bytes());
    bytes.extend_from_slice(&created_ms.to_le_bytes());
    bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
    let crc = crc(&[&bytes, header]);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(header);
    bytes
}

/// Adds records of `tokens`, the first of which is number `first` of its sequence.
pub(super) fn add_tokens(bytes: &mut Vec<u8>, first: u32, tokens: &[u32]) {
    let mut body = Vec::with_capacity(4 + 4 * tokens.len().min(RECORD_TOKENS_MAX));
    let mut first = first;
    for part in tokens.chunks(RECORD_TOKENS_MAX) {
        body.clear();
        body.extend_from_slice(&first.to_le_bytes());
        body.extend(part.iter().flat_map(|token| token.to_le_bytes()));
        add_record(bytes, TOKENS, &body);
        first += part.len() as u32;
    }
}

/// Adds the record that ends a sequence of `count` tokens.
pub(super) fn add_end(bytes: &mut Vec<u8>, count: u32) {
    add_record(bytes, END, &count.to_le_bytes());
}

fn add_record(bytes: &mut Vec<u8>, kind: u8, body: &[u8]) {
    let len = (body.len() as u32).to_le_bytes();
    bytes.push(kind);
    bytes.extend_from_slice(&len);
    bytes.extend_from_slice(&crc(&[&[kind], &len, body]).to_le_bytes());
    bytes.extend_from_slice(body);
}

/// Reads a file that is named after `key`.
pub(super) fn read(key: u128, bytes: &[u8]) -> Result<Read, Unreadable> {
    let (preamble, rest) = bytes.split_at_checked(PREAMBLE_BYTES).ok_or(Unreadable::Preamble)?;
    if &preamble[..8] != MAGIC {
        return Err(Unreadable::Preamble);
    }
    // The version is read first: what follows it may mean something else in another one.
    if u32_at(preamble, 8) != VERSION {
        return Err(Unreadable::Version);
    }
    let (header, records) =
        rest.split_at_checked(u32_at(preamble, 36) as usize).ok_or(Unreadable::Preamble)?;
    let of_this_key = preamble[12..28] == key.to_le_bytes();
    if !of_this_key
        || header.len() > HEADER_BYTES_MAX
        || u32_at(preamble, PREAMBLE_CRC.start) != crc(&[&preamble[..40], header])
    {
        return Err(Unreadable::Preamble);
    }
    let created_ms = u64::from(u32_at(preamble, 28)) | u64::from(u32_at(preamble, 32)) << 32;
    let (header, tokens) = (header.to_owned(), Vec::new());
    let mut read = Read { created_ms, header, tokens, ended: false, good_bytes: 0, torn: false };
    let left = read.follow(records);
    read.good_bytes = (bytes.len() - left) as u64;
    read.torn = left > 0;
    Ok(read)
}

impl Read {
    /// Takes over records up to the end or the first bad one; how many bytes are left.
    fn follow(&mut self, mut records: &[u8]) -> usize {
        while !self.ended
            && let Some((kind, body, rest)) = split_record(records)
            && self.take(kind, body)
        {
            records = rest;
        }
        records.len()
    }

    fn take(&mut self, kind: u8, body: &[u8]) -> bool {
        let Some((at, body)) = body.split_at_checked(4) else { return false };
        if u32_at(at, 0) as usize != self.tokens.len() {
            return false;
        }
        match kind {
            TOKENS if body.len().is_multiple_of(4) => {
                self.tokens.extend(body.chunks_exact(4).map(|token| u32_at(token, 0)));
            }
            END if body.is_empty() => self.ended = true,
            _ => return false,
        }
        true
    }
}

/// The first record: its kind, its body, and what comes after it.
fn split_record(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (frame, rest) = bytes.split_at_checked(FRAME_BYTES)?;
    let (body, rest) = rest.split_at_checked(u32_at(frame, 1) as usize)?;
    (u32_at(frame, 5) == crc(&[&frame[..5], body])).then_some((frame[0], body, rest))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn crc(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const KEY: u128 = 0xabcd;

    /// A file of these records, and where each ends.
    fn file(header: &[u8], records: &[Vec<u32>], ended: bool) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = preamble(KEY, 5, header);
        let mut ends = vec![bytes.len()];
        let mut first = 0;
        for tokens in records {
            add_tokens(&mut bytes, first, tokens);
            ends.push(bytes.len());
            first += tokens.len() as u32;
        }
        if ended {
            add_end(&mut bytes, first);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn any_records() -> impl Strategy<Value = Vec<Vec<u32>>> {
        vec(vec(any::<u32>(), 1..9), 0..7)
    }

    #[test]
    fn the_bytes_never_change() {
        let (bytes, _) = file(b"n", &[vec![7, 8]], true);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let preamble =
            "706d7365710d0a0001000000cdab00000000000000000000000000000500000000000000010000008480ef8f6e";
        let records = "010c000000c0c81a26000000000700000008000000020400000059fabce602000000";
        assert_eq!(hex, [preamble, records].concat());
    }

    #[test]
    fn many_tokens_are_several_records() {
        let tokens: Vec<u32> = (0..RECORD_TOKENS_MAX as u32 * 2 + 1).collect();
        let (bytes, _) = file(b"", std::slice::from_ref(&tokens), true);
        assert_eq!(read(KEY, &bytes).unwrap().tokens, tokens);
        let torn = read(KEY, &bytes[..bytes.len() - 20]).unwrap();
        assert_eq!((torn.tokens.len(), torn.ended), (RECORD_TOKENS_MAX * 2, false));
    }

    #[test]
    fn a_file_of_another_key_or_version_is_not_read() {
        let (mut bytes, _) = file(b"", &[vec![1]], false);
        assert_eq!(read(KEY + 1, &bytes), Err(Unreadable::Preamble));
        bytes[8] = 2;
        assert_eq!(read(KEY, &bytes), Err(Unreadable::Version));
    }

    #[test]
    fn a_record_that_does_not_follow_the_one_before_is_where_reading_ends() {
        let (mut bytes, ends) = file(b"", &[vec![1, 2]], false);
        let again = bytes[ends[0]..].to_owned();
        bytes.extend_from_slice(&again);
        let read = read(KEY, &bytes).unwrap();
        assert_eq!((read.tokens, read.good_bytes as usize), (vec![1, 2], ends[1]));
    }

    proptest! {
        /// Whatever was written is read, and nothing that comes after an end.
        #[test]
        fn what_is_written_is_read(
            header in vec(any::<u8>(), 0..30), records in any_records(), ended: bool, junk in vec(any::<u8>(), 0..30),
        ) {
            let (mut bytes, ends) = file(&header, &records, ended);
            let good_bytes = bytes.len() as u64;
            let torn = ended && !junk.is_empty();
            if ended {
                bytes.extend_from_slice(&junk);
            }
            let tokens = records.concat();
            prop_assert_eq!(ends.last().map(|&end| end as u64), Some(good_bytes));
            prop_assert_eq!(read(KEY, &bytes), Ok(Read { created_ms: 5, header, tokens, ended, good_bytes, torn }));
        }

        /// Cut anywhere, a file is read up to the last whole record, or not at all.
        #[test]
        fn a_cut_file_ends_at_a_record(records in any_records(), ended: bool) {
            let (bytes, ends) = file(b"header", &records, ended);
            for cut in 0..bytes.len() {
                let whole = ends.partition_point(|&end| end <= cut);
                let Some(whole) = whole.checked_sub(1) else {
                    prop_assert_eq!(read(KEY, &bytes[..cut]), Err(Unreadable::Preamble));
                    continue;
                };
                let read = read(KEY, &bytes[..cut]).unwrap();
                prop_assert_eq!(read.tokens, records[..whole].concat());
                prop_assert_eq!((read.good_bytes as usize, read.ended), (ends[whole], false));
            }
        }

        /// A flipped bit costs the record that it is in and those after it, and nothing else.
        #[test]
        fn a_flipped_bit_ends_the_reading(records in any_records(), ended: bool) {
            let (bytes, ends) = file(b"header", &records, ended);
            for at in 0..bytes.len() * 8 {
                let mut bytes = bytes.clone();
                bytes[at / 8] ^= 1 << (at % 8);
                let before = ends.partition_point(|&end| end <= at / 8);
                let Some(before) = before.checked_sub(1) else {
                    prop_assert!(read(KEY, &bytes).is_err());
                    continue;
                };
                let read = read(KEY, &bytes).unwrap();
                prop_assert_eq!(read.tokens, records[..before].concat());
                prop_assert_eq!((read.good_bytes as usize, read.ended), (ends[before], false));
            }
        }

        /// Noise after a preamble is no token, and noise is no preamble.
        #[test]
        fn noise_is_not_read(noise in vec(any::<u8>(), 0..200)) {
            prop_assert!(read(KEY, &noise).is_err());
            let (mut bytes, _) = file(b"", &[vec![3]], false);
            bytes.extend_from_slice(&noise);
            prop_assert_eq!(read(KEY, &bytes).unwrap().tokens, vec![3]);
        }
    }
}
