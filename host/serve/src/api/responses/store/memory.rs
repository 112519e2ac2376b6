//! Rows in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Change, Saved, Shelf, StoreError};

/// Rows by key. How many there are is bounded by the index.
#[derive(Default)]
pub(super) struct Memory(Mutex<BTreeMap<Arc<str>, Arc<[u8]>>>);

impl Shelf for Memory {
    fn waits(&self) -> bool {
        false
    }

    fn write(&self, changes: Vec<(Arc<str>, Change)>) -> Option<Saved> {
        let mut rows = self.0.lock();
        for (key, change) in changes {
            match change {
                Change::Put(row) => drop(rows.insert(key, row.bytes)),
                Change::Remove => drop(rows.remove(&key)),
            }
        }
        None
    }

    fn read(&self, key: &str) -> Result<Option<Arc<[u8]>>, StoreError> {
        Ok(self.0.lock().get(key).cloned())
    }

    fn close(&self) {}
}
