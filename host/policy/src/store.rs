//! What a plugin remembers beyond its instances: keys and values within a quota, forked when a generation
//! changes the plugin, and written to disk now and then.
//!
//! Written by plugins through the sandbox; saved by the owner of the generations. **Invariant:** a store never
//! holds more than its quota, and a file is replaced whole or not at all.

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest key, in bytes.
const KEY_BYTES_MAX: usize = 256;
/// A file begins with this, then the hash of what follows.
const MAGIC: &[u8; 8] = b"pmstore1";
/// What a file may have at most: quotas are checked when it is read.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Keys and values.
pub(crate) type Entries = BTreeMap<String, Arc<[u8]>>;

/// Why an entry was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreError {
    /// Keys and values together would exceed the quota.
    Quota,
    /// The key is empty or too long.
    Key,
}

/// The store of one plugin in one generation; its instances share it.
#[derive(Clone, Default)]
pub(crate) struct Store(Arc<Mutex<Shelf>>);

#[derive(Clone, Default)]
struct Shelf {
    entries: Entries,
    bytes: u64,
    bytes_max: u64,
    unsaved: bool,
}

impl Store {
    /// A store that begins with these entries; those beyond the quota are left out, the last keys first.
    pub(crate) fn new(entries: Entries, bytes_max: u64) -> Self {
        let mut shelf = Shelf { bytes_max, ..Shelf::default() };
        for (key, value) in entries {
            let fits = shelf.set(key, value).is_ok();
            shelf.unsaved |= !fits;
        }
        Self(Arc::new(Mutex::new(shelf)))
    }

    /// What it holds.
    pub(crate) fn entries(&self) -> Entries {
        self.0.lock().entries.clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().entries.is_empty()
    }

    /// What it holds, if that changed since the last time.
    fn unsaved(&self) -> Option<Entries> {
        let mut shelf = self.0.lock();
        std::mem::take(&mut shelf.unsaved).then(|| shelf.entries.clone())
    }

    /// Has it written at the next save, whether or not it changes.
    pub(crate) fn touch(&self) {
        self.0.lock().unsaved = true;
    }

    pub(crate) fn get(&self, key: &str) -> Option<Arc<[u8]>> {
        self.0.lock().entries.get(key).cloned()
    }

    pub(crate) fn set(&self, key: String, value: Vec<u8>) -> Result<(), StoreError> {
        let mut shelf = self.0.lock();
        shelf.set(key, value.into())?;
        shelf.unsaved = true;
        Ok(())
    }

    pub(crate) fn remove(&self, key: &str) {
        let mut shelf = self.0.lock();
        if let Some(value) = shelf.entries.remove(key) {
            shelf.bytes -= size(key, &value);
            shelf.unsaved = true;
        }
    }

    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        let shelf = self.0.lock();
        let from =
            shelf.entries.range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded));
        from.map(|(key, _)| key).take_while(|key| key.starts_with(prefix)).cloned().collect()
    }
}

impl Shelf {
    fn set(&mut self, key: String, value: Arc<[u8]>) -> Result<(), StoreError> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(StoreError::Key);
        }
        let old = self.entries.get(&key).map_or(0, |old| size(&key, old));
        let bytes = self.bytes - old + size(&key, &value);
        if bytes > self.bytes_max {
            return Err(StoreError::Quota);
        }
        self.bytes = bytes;
        self.entries.insert(key, value);
        Ok(())
    }
}

fn size(key: &str, value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64
}

/// A folder with one file a plugin.
pub(crate) struct StoreFolder {
    folder: PathBuf,
    // Two saves of one store would write the same draft.
    saving: Mutex<()>,
}

impl StoreFolder {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, saving: Mutex::new(()) }
    }

    fn path(&self, plugin: &str) -> PathBuf {
        // A plugin's name is an operator's text: only plain characters become part of a path.
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let name: String = plugin.chars().map(plain).collect();
        let hash = Sha256::digest(plugin.as_bytes());
        self.folder.join(format!("{name}-{:02x}{:02x}{:02x}{:02x}.store", hash[0], hash[1], hash[2], hash[3]))
    }

    /// What was saved of a plugin. A file that is not whole is as good as none.
    pub(crate) fn load(&self, plugin: &str) -> Entries {
        let path = self.path(plugin);
        match read(&path) {
            Ok(Some(entries)) => entries,
            Ok(None) => Entries::new(),
            Err(error) => {
                tracing::warn!(policy = plugin, file = %path.display(), error, "a policy's store starts empty");
                Entries::new()
            }
        }
    }

    /// Saves a store if it changed.
    pub(crate) fn save(&self, plugin: &str, store: &Store) {
        let _one_by_one = self.saving.lock();
        let Some(entries) = store.unsaved() else { return };
        let path = self.path(plugin);
        if entries.is_empty() && !path.exists() {
            return;
        }
        if let Err(error) = write(&self.folder, &path, &entries) {
            store.0.lock().unsaved = true;
            tracing::warn!(policy = plugin, %error, "a policy's store was not saved");
        }
    }
}

fn write(folder: &Path, path: &Path, entries: &Entries) -> std::io::Result<()> {
    let mut body = vec![];
    for (key, value) in entries {
        for part in [key.as_bytes(), value] {
            body.extend_from_slice(&(part.len() as u32).to_le_bytes());
            body.extend_from_slice(part);
        }
    }
    std::fs::create_dir_all(folder)?;
    let draft = path.with_extension("draft");
    let mut file = std::fs::File::create(&draft)?;
    file.write_all(MAGIC)?;
    file.write_all(&Sha256::digest(&body))?;
    file.write_all(&body)?;
    file.sync_all()?;
    std::fs::rename(draft, path)
}

fn read(path: &Path) -> Result<Option<Entries>, String> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut bytes = vec![];
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let rest = bytes.strip_prefix(MAGIC).ok_or("it is no store")?;
    let (hash, mut body) = rest.split_at_checked(32).ok_or("it is cut off")?;
    if hash != Sha256::digest(body).as_slice() {
        return Err("its hash does not fit".to_owned());
    }
    let mut entries = Entries::new();
    while !body.is_empty() {
        let key = part(&mut body)?;
        let value = part(&mut body)?;
        entries.insert(String::from_utf8_lossy(key).into_owned(), value.into());
    }
    Ok(Some(entries))
}

fn part<'a>(body: &mut &'a [u8]) -> Result<&'a [u8], String> {
    let cut = || "it is cut off".to_owned();
    let (length, rest) = body.split_first_chunk::<4>().ok_or_else(cut)?;
    let (part, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(cut)?;
    *body = rest;
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_value_beyond_the_quota_is_refused_and_the_old_one_stays() {
        let store = Store::new(Entries::new(), 10);
        assert_eq!(store.set("key".to_owned(), vec![1; 7]), Ok(()));
        assert_eq!(store.set("key".to_owned(), vec![2; 8]), Err(StoreError::Quota));
        assert_eq!(store.set("other".to_owned(), vec![]), Err(StoreError::Quota));
        assert_eq!(store.get("key").as_deref(), Some([1; 7].as_slice()));
        store.remove("key");
        assert_eq!(store.set("other".to_owned(), vec![3; 5]), Ok(()));
        assert_eq!(store.set(String::new(), vec![]), Err(StoreError::Key));
    }

    #[test]
    fn keys_come_in_order_by_prefix() {
        let store = Store::new(Entries::new(), 100);
        for key in ["b/2", "a", "b/1", "c"] {
            store.set(key.to_owned(), vec![]).expect("there is room");
        }
        assert_eq!(store.keys("b/"), ["b/1", "b/2"]);
        assert_eq!(store.keys(""), ["a", "b/1", "b/2", "c"]);
    }

    #[test]
    fn a_torn_file_starts_empty() {
        let folder = std::env::temp_dir().join(format!("pointsman-store-{}", std::process::id()));
        let files = StoreFolder::new(folder.clone());
        let store = Store::new(Entries::new(), 100);
        store.set("key".to_owned(), b"value".to_vec()).expect("there is room");
        files.save("a plugin", &store);
        assert_eq!(files.load("a plugin"), store.entries());
        let path = files.path("a plugin");
        let whole = std::fs::read(&path).expect("it was saved");
        for cut in [0, 7, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).expect("the folder can be written");
            assert!(files.load("a plugin").is_empty(), "cut at {cut}");
        }
        std::fs::remove_dir_all(folder).expect("it is the test's own");
    }

    proptest! {
        /// Whatever is set and removed, the bytes counted are those held.
        #[test]
        fn bytes_are_counted(ops in prop::collection::vec((0u8..4, 0usize..30, any::<bool>()), 0..60)) {
            let store = Store::new(Entries::new(), 64);
            for (key, length, set) in ops {
                let key = format!("key{key}");
                match set {
                    true => _ = store.set(key, vec![0; length]),
                    false => store.remove(&key),
                }
                let shelf = store.0.lock();
                let held: u64 = shelf.entries.iter().map(|(key, value)| size(key, value)).sum();
                prop_assert_eq!(shelf.bytes, held);
                prop_assert!(held <= 64);
            }
        }
    }
}
