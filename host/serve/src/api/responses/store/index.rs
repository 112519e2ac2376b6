//! Which responses are kept, and which go when there are too many.
//!
//! A conversation goes as a whole, the one first that was continued least recently: without one of its
//! responses the later ones could not be continued.
//! **Invariant:** counts and bytes are those of the entries, and every entry is in one conversation.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Bounds;

/// Where an entry belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Key of the first response of its conversation.
    pub(super) first: Arc<str>,
    pub(super) created_ms: u64,
    pub(super) bytes: u64,
}

#[derive(Debug)]
struct Conversation {
    /// When it was last continued, and a number that makes this unique.
    used: (u64, u64),
    /// Its keys in the order in which they came.
    keys: Vec<Arc<str>>,
}

/// The kept responses by key, and their conversations by age.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: BTreeMap<Arc<str>, Place>,
    conversations: BTreeMap<Arc<str>, Conversation>,
    by_use: BTreeMap<(u64, u64), Arc<str>>,
    bytes: u64,
    turns: u64,
}

impl Index {
    /// Adds an entry, in the order in which they were created.
    pub(super) fn insert(&mut self, key: Arc<str>, place: Place) {
        self.remove(&key);
        self.turns += 1;
        self.bytes += place.bytes;
        let first = Arc::clone(&place.first);
        let used = (place.created_ms, self.turns);
        let conversation = self
            .conversations
            .entry(Arc::clone(&first))
            .or_insert_with(|| Conversation { used, keys: Vec::new() });
        self.by_use.remove(&conversation.used);
        conversation.used = used.max(conversation.used);
        conversation.keys.push(Arc::clone(&key));
        self.by_use.insert(conversation.used, first);
        self.entries.insert(key, place);
    }

    /// Takes an entry out. Says whether it was there.
    pub(super) fn remove(&mut self, key: &str) -> bool {
        let Some(place) = self.entries.remove(key) else { return false };
        self.bytes -= place.bytes;
        if let Some(conversation) = self.conversations.get_mut(&place.first) {
            conversation.keys.retain(|known| **known != *key);
            if conversation.keys.is_empty() {
                self.by_use.remove(&conversation.used);
                self.conversations.remove(&place.first);
            }
        }
        true
    }

    /// Whether an entry is there and its conversation not too old.
    pub(super) fn is_fresh(&self, key: &str, bounds: Bounds, now_ms: u64) -> bool {
        let conversation = self.entries.get(key).and_then(|place| self.conversations.get(&place.first));
        conversation.is_some_and(|c| c.used.0.saturating_add(bounds.ttl_ms) > now_ms)
    }

    /// Takes out what is too old or too much; its keys.
    pub(super) fn evict(&mut self, bounds: Bounds, now_ms: u64) -> Vec<Arc<str>> {
        let mut gone = Vec::new();
        while let Some((&(used_ms, _), first)) = self.by_use.first_key_value() {
            let too_much = self.entries.len() > bounds.entries_max || self.bytes > bounds.bytes_max;
            let too_old = used_ms.saturating_add(bounds.ttl_ms) <= now_ms;
            if !too_much && !too_old {
                break;
            }
            let conversation = &self.conversations[first];
            // The last one left is the one that goes on: it loses its beginning, and its caller will send it again.
            let part = if self.conversations.len() == 1 && !too_old { 1 } else { conversation.keys.len() };
            let leaving = conversation.keys[..part].to_vec();
            for key in leaving {
                self.remove(&key);
                gone.push(key);
            }
        }
        gone
    }

    /// Entries and bytes.
    pub(super) fn size(&self) -> (usize, u64) {
        (self.entries.len(), self.bytes)
    }
}
