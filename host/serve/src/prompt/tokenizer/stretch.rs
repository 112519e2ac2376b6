//! Tokens of long stretches of text that came before: messages of a conversation, which come again with
//! every turn.
//!
//! A turn of an agent repeats its whole history. Comparing a message with what was kept is some twenty times
//! cheaper than taking it apart into words. Long messages are kept in parts, since some agents have all of a history in
//! one, and end it differently each time.
//! **Invariant:** memory is bounded; an answer is given only for equal text, never for an equal hash.

use std::hash::Hasher;
use std::sync::Arc;

use parking_lot::RwLock;
use rustc_hash::{FxHashMap, FxHasher};

use super::split::cut;

/// Shortest stretch that is kept. Chosen: below it, the word cache takes about as long as two look-ups here.
const BYTES_MIN: usize = 256;
/// Bytes of a part of a longer text, about. Chosen: the last part is encoded anew, in some 100 us, and each costs two
/// look-ups.
const PART_BYTES: usize = 8 << 10;
/// Most bytes of one generation, texts and tokens together. Chosen: two of them hold the messages of some
/// thirty conversations of 400 kB, at 64 MiB.
const GENERATION_BYTES_MAX: usize = 32 << 20;

/// A cache in two generations: the older one is dropped whole when the younger one is full, and what was
/// asked for since has moved to the younger one by then.
#[derive(Debug)]
pub(super) struct Stretches {
    kept: RwLock<Generations>,
    generation_bytes_max: usize,
}

#[derive(Debug, Default)]
struct Generations {
    young: FxHashMap<u64, Arc<Kept>>,
    old: FxHashMap<u64, Arc<Kept>>,
    young_bytes: usize,
}

#[derive(Debug)]
struct Kept {
    text: Box<str>,
    tokens: Box<[u32]>,
}

impl Stretches {
    pub(super) fn new() -> Self {
        Self { kept: RwLock::default(), generation_bytes_max: GENERATION_BYTES_MAX }
    }

    /// Appends the tokens of `text`, which `encode` finds of what is not kept.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>, encode: impl Fn(&str, &mut Vec<u32>)) {
        if text.len() > self.generation_bytes_max / 4 {
            // It would leave no room for others.
            return encode(text, out);
        }
        // Where it is cut depends on what stands before, so that texts which begin alike have parts in common.
        let mut rest = text;
        while let Some(at) = cut(rest, PART_BYTES) {
            let (part, behind) = rest.split_at(at);
            self.encode_part(part, out, &encode);
            rest = behind;
        }
        self.encode_part(rest, out, &encode);
    }

    fn encode_part(&self, text: &str, out: &mut Vec<u32>, encode: impl Fn(&str, &mut Vec<u32>)) {
        if text.len() < BYTES_MIN {
            return encode(text, out);
        }
        let mut hasher = FxHasher::default();
        hasher.write(text.as_bytes());
        let hash = hasher.finish();
        let (found, is_young) = self.find(hash, text);
        let kept = match found {
            Some(kept) => {
                out.extend_from_slice(&kept.tokens);
                kept
            }
            None => {
                let first = out.len();
                encode(text, out);
                Arc::new(Kept { text: text.into(), tokens: out[first..].into() })
            }
        };
        if !is_young {
            self.keep(hash, kept);
        }
    }

    fn find(&self, hash: u64, text: &str) -> (Option<Arc<Kept>>, bool) {
        let kept = self.kept.read();
        let equal = |found: &&Arc<Kept>| *found.text == *text;
        match kept.young.get(&hash).filter(equal) {
            Some(found) => (Some(Arc::clone(found)), true),
            None => (kept.old.get(&hash).filter(equal).cloned(), false),
        }
    }

    /// Keeps a stretch in the younger generation, unless others hold the lock: it comes again.
    fn keep(&self, hash: u64, stretch: Arc<Kept>) {
        let bytes = stretch.text.len() + size_of_val(&*stretch.tokens);
        if bytes > self.generation_bytes_max / 4 {
            // A part that could not be cut.
            return;
        }
        let Some(mut kept) = self.kept.try_write() else { return };
        let mut dropped = FxHashMap::default();
        if kept.young_bytes + bytes > self.generation_bytes_max {
            let young = std::mem::take(&mut kept.young);
            dropped = std::mem::replace(&mut kept.old, young);
            kept.young_bytes = 0;
        }
        kept.young_bytes += bytes;
        kept.young.insert(hash, stretch);
        // Freeing thousands of stretches takes a while, in which others may read.
        drop(kept);
        drop(dropped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Stretches {
        Stretches { generation_bytes_max: 8192, ..Stretches::new() }
    }

    /// Asks for the letter's stretch; whether it had to be encoded.
    fn ask(stretches: &Stretches, letter: &str, len: usize) -> bool {
        let (mut out, encoded) = (vec![7], std::cell::Cell::new(false));
        stretches.encode(&letter.repeat(len), &mut out, |_, out| {
            encoded.set(true);
            out.push(letter.as_bytes()[0].into());
        });
        assert_eq!(out, [7, letter.as_bytes()[0].into()]);
        encoded.get()
    }

    #[test]
    fn of_a_long_text_that_ends_differently_the_last_part_alone_is_encoded() {
        let stretches = Stretches::new();
        let history: String = (0..4000).map(|cat| format!("so cat {cat} sat on the mat ")).collect();
        let encoded = |end: &str| {
            let (text, bytes) = (format!("{history}{end}"), std::cell::Cell::new(0));
            let mut out = Vec::new();
            stretches.encode(&text, &mut out, |part, out| {
                bytes.set(bytes.get() + part.len());
                out.extend(part.bytes().map(u32::from));
            });
            assert!(out.iter().copied().eq(text.bytes().map(u32::from)));
            bytes.get()
        };
        assert_eq!(encoded("and slept"), history.len() + 9);
        assert!(encoded("and woke up") <= PART_BYTES + 64);
        assert_eq!(encoded("and slept"), 0);
    }

    #[test]
    fn a_stretch_is_encoded_once() {
        let stretches = small();
        assert_eq!([1, 2, 3].map(|_| ask(&stretches, "a", 500)), [true, false, false]);
        assert_eq!([1, 2].map(|_| ask(&stretches, "b", 20)), [true, true], "short ones are not kept");
        assert_eq!([1, 2].map(|_| ask(&stretches, "c", 5000)), [true, true], "huge ones are not kept");
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let stretches = small();
        for letter in b'b'..=b'z' {
            let letter = char::from(letter).to_string();
            ask(&stretches, "a", 1000);
            ask(&stretches, &letter, 1000);
            assert!(stretches.kept.read().young_bytes <= 8192);
            assert!(stretches.kept.read().old.len() <= 8);
        }
        assert!(!ask(&stretches, "a", 1000), "used all the time");
        assert!(ask(&stretches, "b", 1000), "used once, long ago");
    }

    #[test]
    fn an_equal_hash_is_not_an_equal_text() {
        let stretches = small();
        ask(&stretches, "a", 500);
        let hash = *stretches.kept.read().young.keys().next().expect("a stretch");
        assert!(stretches.find(hash, &"b".repeat(500)).0.is_none());
    }
}
