//! Byte-level byte-pair encoding of one word, with a cache of words.
//!
//! ```text
//! text ──added tokens──► stretches ──splitter──► words ──cache, or merges──► tokens
//! ```
//!
//! Called by the tokenizer for words that a splitter found. Tables are bytes, not the printable stand-ins
//! that `tokenizer.json` uses for them.
//! **Invariant:** memory does not grow with what is encoded: the cache has a fixed number of slots.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::Hasher;

use parking_lot::RwLock;
use rustc_hash::{FxHashMap, FxHasher};

use super::split::Splitter;

/// Slots of the word cache. Chosen: 2 MiB; a prompt of 200 words has about one conflict, and larger tables
/// leave the second-level cache of a core.
const SLOTS: usize = 1 << 14;
/// Longest word in the cache, in bytes, so that a slot is two cache lines.
const WORD_BYTES_MAX: usize = 30;
/// Most tokens of a cached word.
const WORD_TOKENS_MAX: usize = 24;
/// Most words that one text adds to the cache; chosen so that the lock is held for some 10 us.
const NEW_WORDS_MAX: usize = 512;

/// A byte-level BPE model.
pub(super) struct Bpe {
    splitter: Splitter,
    /// Token of each single byte.
    bytes: [u32; 256],
    merges: Merges,
    /// Whole words that are tokens, where the model takes these before merging (`ignore_merges`).
    words: Option<FxHashMap<Box<[u8]>, u32>>,
    cache: RwLock<Box<[Slot]>>,
}

/// Pair of tokens → rank and the token of both.
pub(super) type Merges = FxHashMap<(u32, u32), (u32, u32)>;

/// One word and its tokens.
#[derive(Clone)]
#[repr(align(128))]
struct Slot {
    len: u8,
    count: u8,
    word: [u8; WORD_BYTES_MAX],
    tokens: [u32; WORD_TOKENS_MAX],
}

const EMPTY: Slot = Slot { len: 0, count: 0, word: [0; WORD_BYTES_MAX], tokens: [0; WORD_TOKENS_MAX] };

impl Bpe {
    pub(super) fn new(
        splitter: Splitter,
        bytes: [u32; 256],
        merges: Merges,
        words: Option<FxHashMap<Box<[u8]>, u32>>,
    ) -> Self {
        Self { splitter, bytes, merges, words, cache: RwLock::new(vec![EMPTY; SLOTS].into()) }
    }

    /// Appends the tokens of a stretch of plain text.
    ///
    /// Cost: a hash and a comparison for a word seen before; O(n log n) for a new word of n bytes.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let mut new = Vec::new();
        let mut merging = Merging::default();
        let cache = self.cache.read();
        let mut at = 0;
        while at < text.len() {
            let end = self.splitter.word_end(text, at);
            let word = &text.as_bytes()[at..end];
            let slot = &cache[slot_of(word)];
            if word.len() == usize::from(slot.len) && *word == slot.word[..word.len()] {
                out.extend_from_slice(&slot.tokens[..usize::from(slot.count)]);
            } else {
                let first = out.len();
                self.encode_word(word, &mut merging, out);
                let cacheable = word.len() <= WORD_BYTES_MAX && out.len() - first <= WORD_TOKENS_MAX;
                if cacheable && new.len() < NEW_WORDS_MAX {
                    new.push((at..end, first..out.len()));
                }
            }
            assert!(end > at, "a splitter moves on");
            at = end;
        }
        drop(cache);
        if new.is_empty() {
            return;
        }
        // Whoever cannot have the lock at once goes without: the words come again.
        let Some(mut cache) = self.cache.try_write() else { return };
        for (word, tokens) in new {
            let (word, tokens) = (&text.as_bytes()[word], &out[tokens]);
            let slot = &mut cache[slot_of(word)];
            (slot.len, slot.count) = (word.len() as u8, tokens.len() as u8);
            slot.word[..word.len()].copy_from_slice(word);
            slot.tokens[..tokens.len()].copy_from_slice(tokens);
        }
    }

    fn encode_word(&self, word: &[u8], merging: &mut Merging, out: &mut Vec<u32>) {
        if let [byte] = word {
            return out.push(self.bytes[usize::from(*byte)]);
        }
        if let Some(&token) = self.words.as_ref().and_then(|words| words.get(word)) {
            return out.push(token);
        }
        merging.run(word.iter().map(|&byte| self.bytes[usize::from(byte)]), &self.merges, out);
    }
}

fn slot_of(word: &[u8]) -> usize {
    let mut hasher = FxHasher::default();
    hasher.write(word);
    hasher.finish() as usize % SLOTS
}

/// Room for merging one word after the other.
#[derive(Default)]
struct Merging {
    symbols: Vec<Symbol>,
    /// Merges that may apply: rank, position of the left symbol, token of both. Best first.
    queue: BinaryHeap<Reverse<(u32, u32, u32)>>,
}

/// A token of a word in the making, in a list linked by position.
#[derive(Clone, Copy)]
struct Symbol {
    token: u32,
    prev: u32,
    next: u32,
}

/// No neighbour.
const NONE: u32 = u32::MAX;
/// A symbol that was merged into the one before it; no vocabulary reaches it.
const GONE: u32 = u32::MAX;

impl Merging {
    /// Merges the pair of lowest rank, the leftmost of equals, until none is left.
    ///
    /// Source: Sennrich et al., arXiv 1508.07909; the order is that of Hugging Face `tokenizers`.
    fn run(&mut self, tokens: impl Iterator<Item = u32>, merges: &Merges, out: &mut Vec<u32>) {
        self.symbols.clear();
        let linked = tokens.zip(0u32..);
        self.symbols.extend(linked.map(|(token, at)| Symbol {
            token,
            prev: at.wrapping_sub(1),
            next: at + 1,
        }));
        if let Some(last) = self.symbols.last_mut() {
            last.next = NONE;
        }
        for left in 1..self.symbols.len() as u32 {
            self.offer(left - 1, merges);
        }
        while let Some(Reverse((_, left, merged))) = self.queue.pop() {
            self.merge(left, merged, merges);
        }
        out.extend(self.symbols.iter().map(|symbol| symbol.token).filter(|&token| token != GONE));
    }

    /// Queues the merge of a symbol with the next one, if there is one.
    fn offer(&mut self, left: u32, merges: &Merges) {
        let Symbol { token, next, .. } = self.symbols[left as usize];
        if next == NONE {
            return;
        }
        if let Some(&(rank, merged)) = merges.get(&(token, self.symbols[next as usize].token)) {
            self.queue.push(Reverse((rank, left, merged)));
        }
    }

    fn merge(&mut self, left: u32, merged: u32, merges: &Merges) {
        let Symbol { token, prev, next } = self.symbols[left as usize];
        if token == GONE || next == NONE {
            return;
        }
        let right = self.symbols[next as usize];
        // An entry is stale when a neighbour has been merged since; then the pair gives another token.
        if merges.get(&(token, right.token)).is_none_or(|&(_, found)| found != merged) {
            return;
        }
        self.symbols[left as usize] = Symbol { token: merged, prev, next: right.next };
        self.symbols[next as usize].token = GONE;
        if right.next != NONE {
            self.symbols[right.next as usize].prev = left;
        }
        if prev != NONE {
            self.offer(prev, merges);
        }
        self.offer(left, merges);
    }
}
