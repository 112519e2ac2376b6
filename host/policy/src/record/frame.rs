//! Frames: the bytes of a log file. A magic word, then entries, each with its length and its checksum.
//!
//! ```text
//! "pmlog001" | u32 length | u32 crc32 of the body | body | u32 length | …
//! ```
//!
//! **Invariant:** whatever the bytes, reading ends; what was written before a cut or a damage is read.

use super::format::Entry;

/// A file begins with this.
pub(super) const MAGIC: &[u8; 8] = b"pmlog001";
/// Bytes before the body of an entry.
pub(super) const HEAD_BYTES: usize = 8;
/// Largest body. Chosen: states of a few plugins with the largest limits; a larger length is damage.
const BODY_BYTES_MAX: usize = 1 << 30;

/// An entry's frame, its checksum left for [`seal`]; `buffer` is memory to be used again.
pub(super) fn write(mut buffer: Vec<u8>, entry: &Entry<'_>) -> Result<Vec<u8>, postcard::Error> {
    buffer.clear();
    buffer.extend_from_slice(&[0; HEAD_BYTES]);
    let mut frame = postcard::to_extend(entry, buffer)?;
    let length = (frame.len() - HEAD_BYTES) as u32;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// Fills in the checksums of whole frames.
pub(super) fn seal(mut frames: &mut [u8]) {
    while let Some((head, rest)) = frames.split_at_mut_checked(HEAD_BYTES) {
        let length = length_of(head).min(rest.len());
        let (body, rest) = rest.split_at_mut(length);
        head[4..].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        frames = rest;
    }
}

fn length_of(head: &[u8]) -> usize {
    u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize
}

/// Where reading ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// At the end of the file.
    Whole,
    /// At this byte, for this reason.
    Torn(usize, &'static str),
}

/// Reads frames one after the other.
pub(super) struct Frames<'a> {
    bytes: &'a [u8],
    at: usize,
    pub(super) tail: Tail,
}

impl<'a> Frames<'a> {
    /// Frames of a file. `None`: it is no log.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        bytes.starts_with(MAGIC).then_some(Self { bytes, at: MAGIC.len(), tail: Tail::Whole })
    }

    fn torn(&mut self, why: &'static str) -> Option<Entry<'a>> {
        self.tail = Tail::Torn(self.at, why);
        self.at = self.bytes.len();
        None
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let rest = &self.bytes[self.at..];
        if rest.is_empty() {
            return None;
        }
        let Some((head, rest)) = rest.split_at_checked(HEAD_BYTES) else {
            return self.torn("it is cut off");
        };
        let length = length_of(head);
        let Some(body) = rest.get(..length).filter(|_| length <= BODY_BYTES_MAX) else {
            return self.torn("it is cut off");
        };
        if head[4..] != crc32fast::hash(body).to_le_bytes() {
            return self.torn("a checksum does not fit");
        }
        match postcard::from_bytes(body) {
            Ok(entry) => {
                self.at += HEAD_BYTES + length;
                Some(entry)
            }
            Err(_) => self.torn("an entry cannot be understood"),
        }
    }
}
