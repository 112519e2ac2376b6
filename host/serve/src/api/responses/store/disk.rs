//! Rows in a file that survives the end of the process, however it ends.
//!
//! ```text
//! write ─► waiting (read first) ─► one thread: everything that waits, in one transaction ─► file
//! ```
//!
//! **Invariant:** a row is found from the moment it was written, and a caller that waits for it to be saved
//! hears of it after the file was synced.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::oneshot;

use super::index::Place;
use super::{Change, Row, Saved, Shelf, StoreError};

const FILE: &str = "responses.redb";
/// Key of the conversation, time of creation, bytes: what a start has to know of each row.
const PLACES: TableDefinition<'_, &str, (&str, u64, u64)> = TableDefinition::new("places");
const ROWS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rows");
/// Chosen: memory of the database's own pages. Rows are read once a turn; the page cache has the rest.
const CACHE_BYTES: usize = 16 << 20;
/// Chosen: as many answers end within the few commits that a slow disk is behind. Beyond it rows are lost, and said to be.
const WAITING_MAX: usize = 4096;

/// Rows by key, as a start finds them.
pub(super) type Places = Vec<(Arc<str>, Place)>;

#[derive(Default)]
struct Waiting {
    changes: BTreeMap<Arc<str>, Change>,
    tell: Vec<oneshot::Sender<()>>,
    closed: bool,
}

struct Desk {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

/// A file of rows, and the thread that writes it.
pub(super) struct Disk {
    desk: Arc<Desk>,
    database: Mutex<Option<Arc<Database>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Disk {
    /// Opens or makes the file; with it come the places of its rows, the oldest first.
    pub(super) fn open(folder: &Path) -> Result<(Self, Places), StoreError> {
        let fail = |reason: String| StoreError::Open { folder: folder.display().to_string(), reason };
        std::fs::create_dir_all(folder).map_err(|e| fail(e.to_string()))?;
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let database = builder.create(folder.join(FILE)).map_err(|e| fail(e.to_string()))?;
        let database = Arc::new(database);
        let places = places(&database).map_err(|e| fail(e.to_string()))?;
        let desk = Arc::new(Desk { waiting: Mutex::default(), wake: Condvar::new() });
        let (own, file) = (Arc::clone(&desk), Arc::clone(&database));
        let thread =
            std::thread::Builder::new().name("responses".into()).spawn(move || keep_writing(&own, &file));
        let thread = Mutex::new(Some(thread.map_err(|e| fail(e.to_string()))?));
        Ok((Self { desk, database: Mutex::new(Some(database)), thread }, places))
    }
}

impl Shelf for Disk {
    fn waits(&self) -> bool {
        true
    }

    fn write(&self, changes: Vec<(Arc<str>, Change)>) -> Option<Saved> {
        let mut waiting = self.desk.waiting.lock();
        if waiting.closed || waiting.changes.len() >= WAITING_MAX {
            tracing::warn!(rows = changes.len(), "the disk is behind: responses are not stored");
            return None;
        }
        waiting.changes.extend(changes);
        let (tell, saved) = oneshot::channel();
        waiting.tell.push(tell);
        self.desk.wake.notify_one();
        Some(saved)
    }

    fn read(&self, key: &str) -> Result<Option<Arc<[u8]>>, StoreError> {
        match self.desk.waiting.lock().changes.get(key) {
            Some(Change::Put(row)) => return Ok(Some(Arc::clone(&row.bytes))),
            Some(Change::Remove) => return Ok(None),
            None => {}
        }
        let database = self.database.lock().clone().ok_or(StoreError::Closed)?;
        row(&database, key).map_err(|e| StoreError::Read(e.to_string()))
    }

    fn close(&self) {
        self.desk.waiting.lock().closed = true;
        self.desk.wake.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            // The thread logs its own failures, and has nothing to return.
            let _ = thread.join();
        }
        self.database.lock().take();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.close();
    }
}

fn places(database: &Database) -> Result<Places, redb::Error> {
    let begun = database.begin_write()?;
    // Both tables exist from here on, so that reading needs no care.
    begun.open_table(ROWS)?;
    begun.open_table(PLACES)?;
    begun.commit()?;
    let mut found = Vec::new();
    for entry in database.begin_read()?.open_table(PLACES)?.iter()? {
        let (key, place) = entry?;
        let (first, created_ms, bytes) = place.value();
        found.push((Arc::from(key.value()), Place { first: first.into(), created_ms, bytes }));
    }
    found.sort_by_key(|(_, place)| place.created_ms);
    Ok(found)
}

fn row(database: &Database, key: &str) -> Result<Option<Arc<[u8]>>, redb::Error> {
    let rows = database.begin_read()?.open_table(ROWS)?;
    Ok(rows.get(key)?.map(|row| Arc::from(row.value())))
}

fn keep_writing(desk: &Desk, database: &Database) {
    loop {
        let mut waiting = desk.waiting.lock();
        while waiting.changes.is_empty() && !waiting.closed {
            desk.wake.wait(&mut waiting);
        }
        if waiting.changes.is_empty() {
            return;
        }
        let (batch, tell) = (waiting.changes.clone(), std::mem::take(&mut waiting.tell));
        drop(waiting);
        if let Err(error) = commit(database, &batch) {
            tracing::error!(%error, rows = batch.len(), "responses could not be stored");
        }
        // What was replaced meanwhile waits for the next round.
        desk.waiting.lock().changes.retain(|key, change| batch.get(key) != Some(change));
        for tell in tell {
            // Who left does not want to know.
            let _ = tell.send(());
        }
    }
}

fn commit(database: &Database, batch: &BTreeMap<Arc<str>, Change>) -> Result<(), redb::Error> {
    let begun = database.begin_write()?;
    {
        let (mut rows, mut places) = (begun.open_table(ROWS)?, begun.open_table(PLACES)?);
        for (key, change) in batch {
            match change {
                Change::Put(Row { first, created_ms, bytes }) => {
                    rows.insert(&**key, &**bytes)?;
                    places.insert(&**key, (&**first, *created_ms, bytes.len() as u64))?;
                }
                Change::Remove => {
                    rows.remove(&**key)?;
                    places.remove(&**key)?;
                }
            }
        }
    }
    begun.commit()?;
    Ok(())
}
