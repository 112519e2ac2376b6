//! The index beside the slabs: a small record for each block, so that a start after a clean end need not read headers.
//!
//! Called when the tier opens and by its keeper. Headers of slots are the truth; the index adds what they do not
//! say, which is when a block was last used and what was wished for it since.
//! **Invariant:** the mark of a clean end is gone before anything changes, and comes back after everything is written.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use super::layout::{Place, Record};

/// Why the index could not do what was asked: the words of the store.
#[derive(Debug, thiserror::Error)]
#[error("the index failed: {0}")]
pub(super) struct MetaError(pub(super) String);

/// What all records come to; written last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Digest {
    records: u64,
    sum: u64,
}

impl Digest {
    /// Adds a record; the order does not matter.
    pub(super) fn add(&mut self, place: Place, generation: u64, name: crate::BlockName) {
        let mut hash = crc32fast::Hasher::new();
        hash.update(&key(place));
        hash.update(&generation.to_le_bytes());
        hash.update(&name.0.to_le_bytes());
        self.records += 1;
        self.sum = self.sum.wrapping_add(u64::from(hash.finalize()));
    }
}

/// Where records are kept.
pub(super) trait MetaStore: Send {
    /// Gives every record, and the mark of a clean end if there is one.
    fn load(&mut self, each: &mut dyn FnMut(Place, Record)) -> Result<Option<Digest>, MetaError>;

    /// Writes and removes records.
    fn apply(&mut self, changes: &[(Place, Option<Record>)]) -> Result<(), MetaError>;

    /// Sets or removes the mark of a clean end, durably, after all that was applied before.
    fn mark(&mut self, clean: Option<Digest>) -> Result<(), MetaError>;

    /// Returns when what was applied is written.
    fn flush(&mut self) -> Result<(), MetaError>;

    /// Bytes that it takes on disk.
    fn bytes(&self) -> u64;
}

/// Opens a store in a folder.
pub(super) type OpenMeta = fn(&Path) -> Result<Box<dyn MetaStore>, MetaError>;

/// The store that the tier uses. Measured: 540,000 changes of 10,000 records leave 6 MiB on disk, and no more with time.
struct SledStore {
    db: sled::Db,
}

/// The mark of a clean end; keys of records are eight bytes.
const CLEAN_KEY: &[u8] = b"clean";

/// Bytes of records that the store keeps in memory. Chosen: it is written to, and read once at the start.
const CACHE_BYTES: u64 = 16 << 20;

/// Attempts at opening, and the pause between two. The store's own threads may hold its lock for some milliseconds
/// after it was closed by this process; nobody else opens it, since the folder is locked.
const OPENS_MAX: u32 = 100;
const OPEN_PAUSE: Duration = Duration::from_millis(10);

/// Opens the store that the tier uses. It asserts where it finds its files damaged, so its panics are errors here.
pub(super) fn open_sled(path: &Path) -> Result<Box<dyn MetaStore>, MetaError> {
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    let config = config.mode(sled::Mode::LowSpace);
    guard(|| {
        let mut opened = config.open();
        for _ in 1..OPENS_MAX {
            match &opened {
                Err(sled::Error::Io(error)) if is_locked(error) => std::thread::sleep(OPEN_PAUSE),
                _ => break,
            }
            opened = config.open();
        }
        let store: Box<dyn MetaStore> = Box::new(SledStore { db: opened? });
        Ok(store)
    })
}

/// The store wraps the system's error in one of its own that has no number.
fn is_locked(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::WouldBlock || error.to_string().contains("acquire lock")
}

fn guard<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, MetaError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| MetaError(error.to_string())),
        Err(_) => Err(MetaError("it panicked over its own files".to_owned())),
    }
}

impl MetaStore for SledStore {
    fn load(&mut self, each: &mut dyn FnMut(Place, Record)) -> Result<Option<Digest>, MetaError> {
        guard(|| {
            let mut clean = None;
            for pair in self.db.iter() {
                let (key, value) = pair?;
                if *key == *CLEAN_KEY {
                    clean = digest_of(&value);
                } else if let (Some(place), Some(record)) = (place_of(&key), Record::decode(&value)) {
                    each(place, record);
                }
            }
            Ok(clean)
        })
    }

    fn apply(&mut self, changes: &[(Place, Option<Record>)]) -> Result<(), MetaError> {
        guard(|| {
            let mut batch = sled::Batch::default();
            for (place, record) in changes {
                match record {
                    Some(record) => batch.insert(&key(*place), &record.encode()[..]),
                    None => batch.remove(&key(*place)),
                }
            }
            self.db.apply_batch(batch)
        })
    }

    fn mark(&mut self, clean: Option<Digest>) -> Result<(), MetaError> {
        guard(|| {
            self.db.flush()?;
            match clean {
                Some(Digest { records, sum }) => {
                    let value = [records.to_le_bytes(), sum.to_le_bytes()].concat();
                    self.db.insert(CLEAN_KEY, value)?
                }
                None => self.db.remove(CLEAN_KEY)?,
            };
            self.db.flush().map(drop)
        })
    }

    fn flush(&mut self) -> Result<(), MetaError> {
        guard(|| self.db.flush().map(drop))
    }

    fn bytes(&self) -> u64 {
        guard(|| self.db.size_on_disk()).unwrap_or(0)
    }
}

fn key(place: Place) -> [u8; 8] {
    (u64::from(place.slab) << 32 | u64::from(place.index)).to_be_bytes()
}

fn place_of(key: &[u8]) -> Option<Place> {
    let key = u64::from_be_bytes(key.try_into().ok()?);
    Some(Place { slab: (key >> 32) as u32, index: key as u32 })
}

fn digest_of(value: &[u8]) -> Option<Digest> {
    let (records, sum) = value.split_at_checked(8)?;
    let half = |bytes: &[u8]| Some(u64::from_le_bytes(bytes.try_into().ok()?));
    Some(Digest { records: half(records)?, sum: half(sum)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockName, Retention};

    fn record(generation: u64) -> Record {
        let name = BlockName(u128::from(generation) << 64 | 1);
        let retention = Retention::ORDINARY;
        Record { generation, name, parent: None, retention, used: 5, noted_ms: 6 }
    }

    #[test]
    fn records_and_the_mark_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (Place { slab: 0, index: 1 }, Place { slab: 1, index: 0 });
        let mut digest = Digest::default();
        digest.add(two, 8, record(8).name);
        {
            let mut store = open_sled(folder.path()).unwrap();
            store.apply(&[(one, Some(record(7))), (two, Some(record(8)))]).unwrap();
            store.apply(&[(one, None)]).unwrap();
            store.mark(Some(digest)).unwrap();
        }
        let mut store = open_sled(folder.path()).unwrap();
        let mut found = Vec::new();
        let clean = store.load(&mut |place, record| found.push((place, record))).unwrap();
        assert_eq!((found, clean), (vec![(two, record(8))], Some(digest)));
        store.mark(None).unwrap();
        assert_eq!(store.load(&mut |_, _| {}).unwrap(), None);
    }
}
