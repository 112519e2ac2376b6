//! What the folder holds: which checkpoints, how large, and which of them leaves first.
//!
//! **Invariant:** a checkpoint whose journal is open is never named for leaving; `bytes` is the sum of the entries'.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::sequence::Sequence;

#[derive(Default)]
pub(super) struct Books {
    entries: FxHashMap<u128, Entry>,
    bytes: u64,
    open: usize,
    /// The largest order that was given.
    newest: u64,
}

struct Entry {
    /// Set from when a journal is opened until the writer has written all of it.
    open: Option<Arc<Sequence>>,
    created_ms: u64,
    /// Who came before whom; it follows the clock, but never goes back with it.
    order: u64,
    bytes: u64,
    ended: bool,
}

impl Books {
    /// Enters a file that was found.
    pub(super) fn insert_found(&mut self, key: u128, created_ms: u64, bytes: u64, ended: bool) {
        self.newest = self.newest.max(created_ms);
        self.insert(key, Entry { open: None, created_ms, order: created_ms, bytes, ended });
    }

    /// Enters a file that has been made for a journal.
    pub(super) fn insert_begun(&mut self, sequence: Arc<Sequence>, created_ms: u64, bytes: u64) {
        self.newest = created_ms.max(self.newest + 1);
        let order = self.newest;
        self.open += 1;
        let key = sequence.key;
        self.insert(key, Entry { open: Some(sequence), created_ms, order, bytes, ended: false });
    }

    fn insert(&mut self, key: u128, entry: Entry) {
        self.bytes += entry.bytes;
        let before = self.entries.insert(key, entry);
        assert!(before.is_none(), "what a checkpoint replaces is removed first");
    }

    /// Enters a journal that goes on with a file of `bytes` bytes.
    pub(super) fn reopen(&mut self, sequence: Arc<Sequence>, bytes: u64) {
        let entry = self.entries.get_mut(&sequence.key).expect("the caller found it under this lock");
        assert!(entry.open.is_none(), "a checkpoint has one journal");
        entry.open = Some(sequence);
        self.open += 1;
        self.bytes = self.bytes - entry.bytes + bytes;
        entry.bytes = bytes;
    }

    /// Enters that `bytes` more are about to be written.
    pub(super) fn grow(&mut self, key: u128, bytes: u64) {
        let entry = self.entries.get_mut(&key).expect("an open journal's entry stays");
        entry.bytes += bytes;
        self.bytes += bytes;
    }

    /// Enters that a journal is closed and written.
    pub(super) fn settle(&mut self, key: u128, ended: bool) {
        let entry = self.entries.get_mut(&key).expect("an open journal's entry stays");
        entry.ended = ended;
        if entry.open.take().is_some() {
            self.open -= 1;
        }
    }

    /// Takes out a checkpoint that is not open. `false`: there is none.
    pub(super) fn remove(&mut self, key: u128) -> bool {
        let Some(entry) = self.entries.remove(&key) else { return false };
        assert!(entry.open.is_none(), "an open journal's entry stays");
        self.bytes -= entry.bytes;
        true
    }

    pub(super) fn contains(&self, key: u128) -> bool {
        self.entries.contains_key(&key)
    }

    /// The journal that is open for a key, or was until a moment ago.
    pub(super) fn open(&self, key: u128) -> Option<&Arc<Sequence>> {
        self.entries.get(&key)?.open.as_ref()
    }

    /// Whether a checkpoint is older than `ttl_ms`. One from a time that is yet to come is taken to be from now.
    pub(super) fn is_expired(&mut self, key: u128, ttl_ms: u64, now_ms: u64) -> bool {
        self.entries.get_mut(&key).is_some_and(|entry| entry.expired(ttl_ms, now_ms))
    }

    /// Up to `keys_max` checkpoints that are expired. Cost: a visit of each entry.
    pub(super) fn expired(&mut self, ttl_ms: u64, now_ms: u64, keys_max: usize) -> Vec<u128> {
        let expired =
            self.entries.iter_mut().filter_map(|(&key, entry)| entry.expired(ttl_ms, now_ms).then_some(key));
        expired.take(keys_max).collect()
    }

    /// What leaves first: the oldest that has ended, or else the oldest. Cost: a visit of each entry.
    pub(super) fn first_to_leave(&self) -> Option<u128> {
        let closed = self.entries.iter().filter(|(_, entry)| entry.open.is_none());
        closed.min_by_key(|&(&key, entry)| (!entry.ended, entry.order, key)).map(|(&key, _)| key)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn open_len(&self) -> usize {
        self.open
    }

    /// Bytes of those that are open. Cost: a visit of each entry.
    pub(super) fn open_bytes(&self) -> u64 {
        self.entries.values().filter(|entry| entry.open.is_some()).map(|entry| entry.bytes).sum()
    }
}

impl Entry {
    fn expired(&mut self, ttl_ms: u64, now_ms: u64) -> bool {
        // A clock that was wrong, or has jumped back: without this the entry would outlive all others.
        self.created_ms = self.created_ms.min(now_ms);
        self.open.is_none() && now_ms - self.created_ms >= ttl_ms
    }
}
