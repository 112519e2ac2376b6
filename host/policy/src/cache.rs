//! The compile cache: machine code of components, kept between starts in a folder of our own.
//!
//! Called by the runtime for each component that it does not hold. A Python component costs tens of
//! seconds to compile, a start without the cache about one.
//! **Invariant:** no byte reaches the engine that this user did not write with this host's key: loading
//! code is trusting it. Whatever is wrong with an entry or the folder costs a compilation, never a start.

use crate::clock;
use crate::runtime::Digest;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use std::fs::{DirBuilder, File, FileTimes, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};
use wasmtime::Engine;
use wasmtime::component::Component;

/// Chosen: some four hundred Rust plugins, or a dozen in Python.
pub(crate) const BYTES_MAX: u64 = 512 << 20;
/// Of the tag that begins an entry.
const TAG_BYTES: usize = 32;
/// The file with the key of the tags.
const KEY_NAME: &str = "key";
/// Only its owner may look into the folder.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// What others may do with a thing of this mode must be nothing.
const OTHERS: u32 = 0o077;

/// Why the cache stays off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    /// The operating system says no.
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    /// It is not a folder, or not a file.
    #[error("{path} is not what it should be: remove it")]
    Kind { path: PathBuf },
    /// Someone else could have written into it.
    #[error("{path} belongs to user {owner}, and this host runs as user {us}: name another folder")]
    Owner { path: PathBuf, owner: u32, us: u32 },
    /// Someone else can read or write it.
    #[error("{path} has mode {mode:o}, and code is loaded only from what others cannot touch: set {right:o}")]
    Mode { path: PathBuf, mode: u32, right: u32 },
}

/// How often the compile cache was of use. Counted from the start of the runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Components that did not have to be compiled.
    pub hits: u64,
    /// Components that were not there.
    pub misses: u64,
    /// Entries that were thrown away: tampered with, truncated, or from another engine.
    pub discarded: u64,
}

/// The folder, and the key that its entries are tagged with.
pub(crate) struct CompileCache {
    folder: PathBuf,
    key: [u8; TAG_BYTES],
    bytes_max: u64,
    hits: AtomicU64,
    misses: AtomicU64,
    discarded: AtomicU64,
    temporaries: AtomicU64,
}

impl CompileCache {
    /// Opens a folder that only this user can touch; makes it if it is not there.
    pub(crate) fn open(folder: &Path, bytes_max: u64) -> Result<Self, CacheError> {
        let io = |error| CacheError::Io { path: folder.to_owned(), error };
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).map_err(io)?;
        // Not followed: a link could lead to a folder of someone else a moment later.
        let is = folder.symlink_metadata().map_err(io)?;
        if !is.is_dir() {
            return Err(CacheError::Kind { path: folder.to_owned() });
        }
        private(folder, &is, FOLDER_MODE)?;
        Ok(Self {
            key: key(folder)?,
            folder: folder.to_owned(),
            bytes_max,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            discarded: AtomicU64::new(0),
            temporaries: AtomicU64::new(0),
        })
    }

    pub(crate) fn counts(&self) -> CacheCounts {
        CacheCounts {
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            discarded: self.discarded.load(Relaxed),
        }
    }

    /// The component of a digest, from the folder or else from `compile`, whose code is kept then.
    pub(crate) fn component(
        &self,
        engine: &Engine,
        digest: Digest,
        compile: impl FnOnce() -> wasmtime::Result<Component>,
    ) -> wasmtime::Result<Component> {
        let name = name(engine, digest);
        if let Some(component) = self.load(engine, &name) {
            self.hits.fetch_add(1, Relaxed);
            return Ok(component);
        }
        self.misses.fetch_add(1, Relaxed);
        let component = compile()?;
        if let Err(error) = component.serialize().and_then(|code| Ok(self.keep(&name, &code)?)) {
            tracing::warn!(%digest, %error, "compiled code is not kept");
        }
        Ok(component)
    }

    fn load(&self, engine: &Engine, name: &str) -> Option<Component> {
        let path = self.folder.join(name);
        let entry = match self.read(&path) {
            Ok(entry) => entry,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => return self.discard(&path, &error.to_string()),
        };
        let Some((tag, code)) = entry.split_at_checked(TAG_BYTES) else {
            return self.discard(&path, "it ends before its tag does");
        };
        if self.tagged(name, code).verify_slice(tag).is_err() {
            return self.discard(&path, "its tag is not that of its bytes");
        }
        match deserialize(engine, code) {
            Ok(component) => Some(component),
            Err(error) => self.discard(&path, &format!("{error:#}")),
        }
    }

    /// The bytes of an entry, marked as used just now.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = File::open(path)?;
        let mut entry = Vec::new();
        (&file).take(self.bytes_max).read_to_end(&mut entry)?;
        // An entry that cannot be marked leaves earlier than it should; that is all.
        let _ = file.set_times(FileTimes::new().set_modified(now()));
        Ok(entry)
    }

    fn discard(&self, path: &Path, why: &str) -> Option<Component> {
        self.discarded.fetch_add(1, Relaxed);
        tracing::warn!(entry = %path.display(), error = why, "compiled code is thrown away and made again");
        let _ = std::fs::remove_file(path);
        None
    }

    /// Writes an entry whole or not at all, and lets the least recently used ones leave.
    fn keep(&self, name: &str, code: &[u8]) -> io::Result<()> {
        let tag = self.tagged(name, code).finalize().into_bytes();
        if (TAG_BYTES + code.len()) as u64 > self.bytes_max {
            return Ok(());
        }
        let number = self.temporaries.fetch_add(1, Relaxed);
        let temporary = self.folder.join(format!("{name}.{}-{number}.part", std::process::id()));
        let written = write_new(&temporary, &[&tag, code])
            .and_then(|()| std::fs::rename(&temporary, self.folder.join(name)));
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written.and_then(|()| self.trim())
    }

    /// Removes what was used longest ago, until the rest is within the bound.
    fn trim(&self) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(&self.folder)?.flatten() {
            // What another host removed in the meantime is not there to be counted.
            let Ok(is) = entry.metadata() else { continue };
            if is.is_file() && entry.file_name() != KEY_NAME {
                entries.push((is.mtime(), is.mtime_nsec(), is.len(), entry.path()));
            }
        }
        entries.sort();
        let mut bytes: u64 = entries.iter().map(|(_, _, bytes, _)| bytes).sum();
        for (_, _, size, path) in entries {
            if bytes <= self.bytes_max {
                break;
            }
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                // Gone is gone, whichever host removed it.
                _ => bytes -= size,
            }
            tracing::debug!(entry = %path.display(), "compiled code makes room");
        }
        Ok(())
    }

    /// The tag of an entry covers its name: code cannot take the place of another component's.
    fn tagged(&self, name: &str, code: &[u8]) -> Hmac<Sha256> {
        let mut tag = Hmac::<Sha256>::new_from_slice(&self.key).expect("an HMAC takes a key of any length");
        tag.update(name.as_bytes());
        tag.update(code);
        tag
    }
}

/// Loads machine code.
#[allow(unsafe_code, reason = "wasmtime cannot check machine code; the tag has shown who wrote it")]
fn deserialize(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the bytes must be what `Component::serialize` wrote. `load` found them under a tag that takes
    // this user's key, and only `keep` tags: bytes from `serialize`, under a name made of this engine's
    // settings. Both are in memory, so that nobody changes them between the check and this line. Wasmtime
    // itself refuses code of another version, of other settings, or for features that this CPU lacks.
    unsafe { Component::deserialize(engine, code) }
}

/// The name of an entry: the component, and all that its code depends on.
///
/// Wasmtime's hash covers its version, the target, the settings, and each instruction set extension that
/// it found on this CPU.
fn name(engine: &Engine, digest: Digest) -> String {
    let mut environment = Sha256Hasher(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut environment);
    let mut whole = Sha256::new();
    whole.update(environment.0.finalize());
    whole.update(digest.to_string());
    whole.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes what a `Hash` feeds it to SHA-256: the standard library's hasher may change with its version.
struct Sha256Hasher(Sha256);

impl Hasher for Sha256Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let hash = self.0.clone().finalize();
        hash.iter().take(8).fold(0, |so_far, byte| so_far << 8 | u64::from(*byte))
    }
}

/// The folder's key; a random one if it has none that is whole.
fn key(folder: &Path) -> Result<[u8; TAG_BYTES], CacheError> {
    let path = folder.join(KEY_NAME);
    let io = |error| CacheError::Io { path: path.clone(), error };
    if let Some(key) = read_key(&path)? {
        return Ok(key);
    }
    let key = random().map_err(io)?;
    let temporary = folder.join(format!("{KEY_NAME}.{}.part", std::process::id()));
    write_new(&temporary, &[&key]).map_err(io)?;
    // A link is made only where there is nothing: of two hosts that start at once, both take the first's key.
    let linked = std::fs::hard_link(&temporary, &path);
    let _ = std::fs::remove_file(&temporary);
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io(error)),
        _ => read_key(&path)?.ok_or(CacheError::Kind { path }),
    }
}

/// The key of a folder that has one. A key of another length is removed: with it no entry could be right.
fn read_key(path: &Path) -> Result<Option<[u8; TAG_BYTES]>, CacheError> {
    let io = |error| CacheError::Io { path: path.to_owned(), error };
    let is = match path.symlink_metadata() {
        Ok(is) => is,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    if !is.is_file() {
        return Err(CacheError::Kind { path: path.to_owned() });
    }
    private(path, &is, FILE_MODE)?;
    let read = std::fs::read(path).map_err(io)?;
    if let Ok(key) = read.try_into() {
        return Ok(Some(key));
    }
    tracing::warn!(key = %path.display(), "the key of the compile cache is damaged; its entries are lost");
    std::fs::remove_file(path).map_err(io)?;
    Ok(None)
}

/// Errors: it is not ours, or others may touch it.
fn private(path: &Path, is: &std::fs::Metadata, right: u32) -> Result<(), CacheError> {
    let us = rustix::process::geteuid().as_raw();
    if is.uid() != us {
        return Err(CacheError::Owner { path: path.to_owned(), owner: is.uid(), us });
    }
    if is.mode() & OTHERS != 0 {
        return Err(CacheError::Mode { path: path.to_owned(), mode: is.mode() & 0o7777, right });
    }
    Ok(())
}

fn write_new(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    // Left over by a process of the same number that was killed in the middle.
    let _ = std::fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
    parts.iter().try_for_each(|part| file.write_all(part))
}

fn random() -> io::Result<[u8; TAG_BYTES]> {
    let mut key = [0; TAG_BYTES];
    let mut filled = 0;
    while filled < key.len() {
        filled += rustix::rand::getrandom(&mut key[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(key)
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(clock::now_ms())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const TEXT: &str = "(component (core module (func (export \"f\") (result i32) i32.const 7)))";

    struct Bench {
        folder: tempfile::TempDir,
        engine: Engine,
        bytes: Vec<u8>,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("there is a place for temporary files");
            let bytes = wat::parse_str(TEXT).expect("the text is a component");
            Self { folder, engine: Engine::default(), bytes }
        }

        fn cache(&self) -> Result<CompileCache, CacheError> {
            CompileCache::open(&self.folder.path().join("code"), BYTES_MAX)
        }

        /// Asks a cache that was opened just now, as a host does that has started again.
        fn ask(&self) -> CacheCounts {
            let cache = self.cache().expect("the folder is ours");
            let compile = || Component::from_binary(&self.engine, &self.bytes);
            cache.component(&self.engine, Digest::of(&self.bytes), compile).expect("it compiles");
            cache.counts()
        }

        fn entry(&self) -> PathBuf {
            let name = name(&self.engine, Digest::of(&self.bytes));
            self.folder.path().join("code").join(name)
        }

        /// Damages the entry; it must be thrown away, and be whole again the next time.
        fn damaged(&self, damage: impl Fn(&mut Vec<u8>)) {
            self.ask();
            let mut entry = std::fs::read(self.entry()).expect("there is an entry");
            damage(&mut entry);
            std::fs::write(self.entry(), entry).expect("it can be written");
            assert_eq!(self.ask(), CacheCounts { hits: 0, misses: 1, discarded: 1 });
            assert_eq!(self.ask(), HIT);
        }
    }

    const HIT: CacheCounts = CacheCounts { hits: 1, misses: 0, discarded: 0 };
    const MISS: CacheCounts = CacheCounts { hits: 0, misses: 1, discarded: 0 };

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().expect("it is there").mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
    }

    #[test]
    fn a_component_is_compiled_once() {
        let bench = Bench::new();
        assert_eq!(bench.ask(), MISS);
        assert_eq!(bench.ask(), HIT);
        let folder = bench.folder.path().join("code");
        assert_eq!((mode(&folder), mode(&folder.join("key")), mode(&bench.entry())), (0o700, 0o600, 0o600));
        assert_eq!(std::fs::read_dir(folder).expect("it is there").count(), 2, "nothing else is left behind");
    }

    #[test]
    fn a_tampered_entry_is_compiled_again() {
        let bench = Bench::new();
        bench.damaged(|entry| entry[0] ^= 1);
        bench.damaged(|entry| *entry.last_mut().expect("it has bytes") ^= 1);
        bench.damaged(|entry| entry[TAG_BYTES + 100] ^= 1);
    }

    #[test]
    fn a_truncated_entry_is_compiled_again() {
        let bench = Bench::new();
        bench.damaged(|entry| entry.truncate(entry.len() - 1));
        bench.damaged(|entry| entry.truncate(TAG_BYTES));
        bench.damaged(|entry| entry.truncate(TAG_BYTES - 1));
        bench.damaged(Vec::clear);
    }

    #[test]
    fn an_entry_cannot_take_the_place_of_another() {
        let bench = Bench::new();
        bench.ask();
        let other = wat::parse_str("(component)").expect("the text is a component");
        let place = bench.entry().with_file_name(name(&bench.engine, Digest::of(&other)));
        std::fs::copy(bench.entry(), place).expect("it can be written");
        let bench = Bench { bytes: other, ..bench };
        assert_eq!(bench.ask(), CacheCounts { hits: 0, misses: 1, discarded: 1 });
    }

    #[test]
    fn code_of_another_engine_is_compiled_again() {
        let bench = Bench::new();
        let mut settings = wasmtime::Config::new();
        settings.epoch_interruption(true);
        let other = Engine::new(&settings).expect("these settings are fine");
        let digest = Digest::of(&bench.bytes);
        assert_ne!(name(&bench.engine, digest), name(&other, digest), "settings are part of the name");
        // Even under the name of this engine, and rightly tagged.
        let code = Component::from_binary(&other, &bench.bytes).and_then(|c| c.serialize());
        let cache = bench.cache().expect("the folder is ours");
        cache.keep(&name(&bench.engine, digest), &code.expect("it compiles")).expect("it can be written");
        assert_eq!(bench.ask(), CacheCounts { hits: 0, misses: 1, discarded: 1 });
        assert_eq!(bench.ask(), HIT);
    }

    #[test]
    fn a_folder_that_others_may_enter_is_refused() {
        let bench = Bench::new();
        bench.ask();
        let folder = bench.folder.path().join("code");
        for wide in [0o755, 0o770, 0o701, 0o777] {
            set_mode(&folder, wide);
            let error = bench.cache().err().expect("it is refused").to_string();
            assert!(error.contains(&format!("{wide:o}")) && error.contains("700"), "{error}");
        }
        set_mode(&folder, 0o700);
        assert_eq!(bench.ask(), HIT);
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let bench = Bench::new();
        bench.ask();
        set_mode(&bench.folder.path().join("code/key"), 0o640);
        let error = bench.cache().err().expect("it is refused").to_string();
        assert!(error.contains("640") && error.contains("600"), "{error}");
    }

    #[test]
    fn a_link_or_a_file_is_no_folder() {
        let bench = Bench::new();
        let (real, place) = (bench.folder.path().join("real"), bench.folder.path().join("code"));
        std::fs::create_dir(&real).expect("it can be made");
        set_mode(&real, 0o700);
        std::os::unix::fs::symlink(&real, &place).expect("it can be made");
        assert!(matches!(bench.cache(), Err(CacheError::Kind { .. })));
        std::fs::remove_file(&place).expect("it is ours");
        std::fs::write(&place, "").expect("it can be written");
        assert!(matches!(bench.cache(), Err(CacheError::Io { .. })));
    }

    #[test]
    fn entries_under_a_damaged_key_are_lost_and_no_more() {
        let bench = Bench::new();
        bench.ask();
        std::fs::write(bench.folder.path().join("code/key"), "short").expect("it can be written");
        assert_eq!(bench.ask(), CacheCounts { hits: 0, misses: 1, discarded: 1 });
        assert_eq!(bench.ask(), HIT);
    }

    #[test]
    fn what_was_used_longest_ago_leaves_first() {
        let bench = Bench::new();
        let folder = bench.folder.path().join("code");
        let cache = CompileCache::open(&folder, 3000).expect("the folder is ours");
        let age = |name: &str, seconds| {
            let file = File::open(folder.join(name)).expect("it is there");
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            file.set_times(FileTimes::new().set_modified(time)).expect("it is ours");
        };
        for (name, seconds) in [("first", 3), ("second", 1), ("third", 2)] {
            cache.keep(name, &[0; 900]).expect("it can be written");
            age(name, seconds);
        }
        cache.keep("fourth", &[0; 900]).expect("it can be written");
        let there = |name: &str| folder.join(name).exists();
        assert_eq!(["first", "second", "third", "fourth"].map(there), [true, false, true, true]);
        cache.keep("too large", &[0; 3000]).expect("it is passed over");
        assert!(!there("too large") && there("first"));
        cache.read(&folder.join("third")).expect("it is there");
        cache.keep("fifth", &[0; 900]).expect("it can be written");
        assert_eq!(["first", "third", "fourth", "fifth"].map(there), [false, true, true, true]);
    }
}
