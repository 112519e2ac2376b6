//! Responses that outlive their answer: what was asked, what was answered, and which response came before.
//!
//! ```text
//! first ◄── previous ◄── previous ◄── last      one conversation: kept together, and given up together
//! ```
//!
//! Called by the endpoint's handlers and by the writer of an answer.
//! **Invariant:** a record is found by its own tenant alone, and no async thread waits for a disk.

mod disk;
mod index;
mod memory;

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

use self::disk::Disk;
use self::index::{Index, Place};
use self::memory::Memory;

/// Chosen: more turns than an agent's conversation has before it is compacted. It bounds what one request reads.
pub const CHAIN_MAX: usize = 4096;

/// One response with what it was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: String,
    /// The response that it continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// The first response of its conversation; its own id if it is that.
    pub first: String,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// The items of this request alone.
    pub input: Vec<Value>,
    /// The response object as it was answered.
    pub response: Value,
}

impl Record {
    /// The items that the model wrote.
    pub fn output(&self) -> &[Value] {
        self.response["output"].as_array().map_or(&[], Vec::as_slice)
    }
}

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Responses.
    pub entries_max: usize,
    /// Bytes of all of them.
    pub bytes_max: u64,
    /// How long a conversation is kept after its last turn, in milliseconds.
    pub ttl_ms: u64,
}

/// Why a record cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be used at all.
    #[error("cannot open the responses in {folder}: {reason}")]
    Open {
        /// The folder.
        folder: String,
        /// What the database says.
        reason: String,
    },
    /// A read failed.
    #[error("cannot read a stored response: {0}")]
    Read(String),
    /// What was read is no record.
    #[error("a stored response is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    /// The host has stopped.
    #[error("the stored responses are closed")]
    Closed,
}

/// Why a conversation cannot be continued.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// There is no such response, or it was given up.
    #[error("response `{0}` is not stored")]
    Missing(String),
    /// It has more turns than one request may read.
    #[error("the conversation has more than {CHAIN_MAX} responses")]
    TooLong,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A row as it lies on a shelf.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    /// Key of the first response of its conversation.
    first: Arc<str>,
    created_ms: u64,
    bytes: Arc<[u8]>,
}

/// What happens to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Put(Row),
    Remove,
}

/// Resolves when what was written would survive the end of the process; also when it never will.
pub type Saved = oneshot::Receiver<()>;

/// Where rows lie. `read` may wait for a disk; `write` never does.
trait Shelf: Send + Sync {
    /// Whether `read` may wait.
    fn waits(&self) -> bool;
    fn write(&self, changes: Vec<(Arc<str>, Change)>) -> Option<Saved>;
    fn read(&self, key: &str) -> Result<Option<Arc<[u8]>>, StoreError>;
    fn close(&self);
}

/// The stored responses of one host.
pub struct Store {
    bounds: Bounds,
    index: Mutex<Index>,
    shelf: Box<dyn Shelf>,
}

impl Store {
    /// In memory: gone when the host stops.
    pub fn in_memory(bounds: Bounds) -> Self {
        Self { bounds, index: Mutex::default(), shelf: Box::<Memory>::default() }
    }

    /// In a folder, which is made if it is not there. Blocks.
    pub fn in_folder(folder: &Path, bounds: Bounds) -> Result<Self, StoreError> {
        let (disk, places) = Disk::open(folder)?;
        let mut index = Index::default();
        for (key, place) in places {
            index.insert(key, place);
        }
        Ok(Self { bounds, index: Mutex::new(index), shelf: Box::new(disk) })
    }

    /// Keeps a record; others see it at once. What has to go for it goes.
    pub fn put(&self, tenant: &str, record: &Record) -> Option<Saved> {
        let bytes: Arc<[u8]> = serde_json::to_vec(record).ok()?.into();
        let (key, first) = (key(tenant, &record.id), key(tenant, &record.first));
        let place =
            Place { first: Arc::clone(&first), created_ms: record.created_ms, bytes: bytes.len() as u64 };
        let row = Row { first, created_ms: record.created_ms, bytes };
        // The shelf is told under the index's lock, so that both see changes in one order.
        let mut index = self.index.lock();
        index.insert(Arc::clone(&key), place);
        let mut changes = vec![(key, Change::Put(row))];
        let gone = index.evict(self.bounds, record.created_ms);
        changes.extend(gone.into_iter().map(|key| (key, Change::Remove)));
        self.shelf.write(changes)
    }

    /// A record.
    pub async fn get(
        self: &Arc<Self>,
        tenant: &str,
        id: &str,
        now_ms: u64,
    ) -> Result<Option<Record>, StoreError> {
        let (tenant, id) = (tenant.to_owned(), id.to_owned());
        self.off_thread(move |store| store.read(&tenant, &id, now_ms)).await
    }

    /// A response and all before it, the first one first.
    pub async fn chain(
        self: &Arc<Self>,
        tenant: &str,
        last: &str,
        now_ms: u64,
    ) -> Result<Vec<Record>, ChainError> {
        let (tenant, last) = (tenant.to_owned(), last.to_owned());
        self.off_thread(move |store| {
            let mut found = Vec::new();
            let mut next = Some(last);
            while let Some(id) = next.take() {
                if found.len() == CHAIN_MAX {
                    return Err(ChainError::TooLong);
                }
                let record = store.read(&tenant, &id, now_ms)?.ok_or(ChainError::Missing(id))?;
                next.clone_from(&record.previous);
                found.push(record);
            }
            found.reverse();
            Ok(found)
        })
        .await
    }

    /// Forgets a record. Says whether there was one.
    pub fn remove(&self, tenant: &str, id: &str, now_ms: u64) -> bool {
        let key = key(tenant, id);
        let mut index = self.index.lock();
        let there = index.is_fresh(&key, self.bounds, now_ms);
        if index.remove(&key) {
            self.shelf.write(vec![(key, Change::Remove)]);
        }
        there
    }

    /// Responses that are kept, and their bytes.
    pub fn size(&self) -> (usize, u64) {
        self.index.lock().size()
    }

    /// Writes what waits and lets go of the folder. Blocks.
    pub fn close(&self) {
        self.shelf.close();
    }

    fn read(&self, tenant: &str, id: &str, now_ms: u64) -> Result<Option<Record>, StoreError> {
        let key = key(tenant, id);
        if !self.index.lock().is_fresh(&key, self.bounds, now_ms) {
            return Ok(None);
        }
        let Some(bytes) = self.shelf.read(&key)? else { return Ok(None) };
        Ok(Some(serde_json::from_slice(&bytes)?))
    }

    async fn off_thread<T: Send + 'static, E: From<StoreError> + Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        if !self.shelf.waits() {
            return work(self);
        }
        let store = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.unwrap_or_else(|e| Err(StoreError::Read(e.to_string()).into()))
    }
}

/// No two pairs of tenant and id have the same key, whatever they are spelled with.
fn key(tenant: &str, id: &str) -> Arc<str> {
    format!("{}:{tenant}{id}", tenant.len()).into()
}

#[cfg(test)]
mod tests;
