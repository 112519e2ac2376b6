//! The store of a policy under test: a map a thread.

use crate::bindings::describe::pointsman::policy::store::Refusal;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Bytes of keys and values, until a test says otherwise. Chosen: a test that fills it is still fast.
const QUOTA_BYTES: usize = 1 << 20;
const KEY_BYTES_MAX: usize = 256;

/// What a plugin stored, and how much it may.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    entries: BTreeMap<String, Vec<u8>>,
    quota_bytes: usize,
}

impl Stored {
    pub(super) const EMPTY: Self = Self { entries: BTreeMap::new(), quota_bytes: QUOTA_BYTES };

    fn bytes(&self) -> usize {
        self.entries.iter().map(|(key, value)| key.len() + value.len()).sum()
    }

    fn set(&mut self, key: &str, value: &[u8]) -> Result<(), Refusal> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(Refusal::Key);
        }
        let replaced = self.entries.get(key).map_or(0, |before| key.len() + before.len());
        if self.bytes() - replaced + key.len() + value.len() > self.quota_bytes {
            return Err(Refusal::Quota);
        }
        self.entries.insert(key.to_owned(), value.to_owned());
        Ok(())
    }
}

thread_local! {
    static STORED: RefCell<Stored> = const { RefCell::new(Stored::EMPTY) };
}

/// Puts another store in the place of this thread's, and returns that.
pub(super) fn replace(stored: Stored) -> Stored {
    STORED.replace(stored)
}

/// Bytes that keys and values together may take on this thread: 1 MiB unless set.
pub fn set_store_quota(bytes: usize) {
    STORED.with_borrow_mut(|stored| stored.quota_bytes = bytes);
}

/// Empties the store of this thread; the quota stays.
pub fn clear_store() {
    STORED.with_borrow_mut(|stored| stored.entries.clear());
}

pub(crate) fn get(key: &str) -> Option<Vec<u8>> {
    STORED.with_borrow(|stored| stored.entries.get(key).cloned())
}

pub(crate) fn set(key: &str, value: &[u8]) -> Result<(), Refusal> {
    STORED.with_borrow_mut(|stored| stored.set(key, value))
}

pub(crate) fn remove(key: &str) {
    STORED.with_borrow_mut(|stored| stored.entries.remove(key));
}

pub(crate) fn keys(prefix: &str) -> Vec<String> {
    let begins = |key: &&String| key.starts_with(prefix);
    STORED.with_borrow(|stored| stored.entries.keys().filter(begins).cloned().collect())
}
