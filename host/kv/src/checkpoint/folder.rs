//! The folder of checkpoints: its files, its books, and its bounds.
//!
//! Files are made, read and removed under the lock of the books, so that the two agree. Journals never take that lock.
//! **Invariant:** every file that the books name is within the bounds; locks are taken in the order books, sequence,
//! queue, counts.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::books::Books;
use super::format::{self, Read, Unreadable};
use super::media::Media;
use super::queue::Queue;
use super::stats::CheckpointStats;
use super::{CheckpointError, Config};

/// Most expired checkpoints that one call removes. Chosen: a few milliseconds of a caller who came for something else.
const EXPIRED_MAX: usize = 64;

pub(super) struct Folder {
    pub(super) config: Config,
    pub(super) media: Box<dyn Media>,
    pub(super) books: Mutex<Books>,
    pub(super) queue: Queue,
    counts: Mutex<CheckpointStats>,
    /// Files were made since the folder was last synced.
    names_changed: AtomicBool,
}

/// Why a file gives no checkpoint.
pub(super) enum Lost {
    /// It is not there.
    Gone,
    Unreadable(Unreadable),
    Io(io::Error),
}

impl Folder {
    pub(super) fn new(config: Config, media: Box<dyn Media>) -> Self {
        Self {
            config,
            media,
            books: Mutex::default(),
            queue: Queue::default(),
            counts: Mutex::default(),
            names_changed: AtomicBool::new(false),
        }
    }

    /// Enters the files that lie in the folder; what cannot be used is removed and counted.
    ///
    /// Cost: reads all of them once, one at a time.
    pub(super) fn scan(&self, now_ms: u64) -> Result<(), CheckpointError> {
        let failed = |source| CheckpointError::Folder { path: self.config.folder.clone(), source };
        let mut books = self.books.lock();
        for file in fs::read_dir(&self.config.folder).map_err(failed)? {
            let name = file.map_err(failed)?.file_name();
            if let Some(key) = name.to_str().and_then(key_of) {
                self.enter(&mut books, key, now_ms);
                self.make_room(&mut books, 0, 0);
            }
        }
        self.expire(&mut books, now_ms, usize::MAX);
        self.gauge(&books);
        Ok(())
    }

    fn enter(&self, books: &mut Books, key: u128, now_ms: u64) {
        match self.read(key) {
            Ok(read) => {
                // A tail that stays is found again by whoever goes on with the file.
                if read.torn
                    && let Err(error) = self.go_on(key, &read)
                {
                    self.note_error("cutting", &error);
                }
                books.insert_found(key, read.created_ms.min(now_ms), read.good_bytes, read.ended);
            }
            Err(lost) => self.lose(books, key, lost),
        }
    }

    /// Reads the checkpoint of a key. A file larger than all may be is no checkpoint.
    pub(super) fn read(&self, key: u128) -> Result<Read, Lost> {
        let mut bytes = Vec::new();
        let file = File::open(self.path(key))
            .and_then(|file| file.take(self.config.bytes_max.saturating_add(1)).read_to_end(&mut bytes));
        match file {
            Ok(len) if len as u64 > self.config.bytes_max => Err(Lost::Unreadable(Unreadable::Preamble)),
            Ok(_) => format::read(key, &bytes).map_err(Lost::Unreadable),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Lost::Gone),
            Err(error) => Err(Lost::Io(error)),
        }
    }

    /// Takes a checkpoint that cannot be used out of the books, and out of the folder if that is for good.
    pub(super) fn lose(&self, books: &mut Books, key: u128, lost: Lost) {
        match lost {
            Lost::Gone => {}
            Lost::Io(error) => {
                self.note_error("reading", &error);
                self.count(|stats| stats.unreadable += 1);
            }
            Lost::Unreadable(why) => {
                self.remove_file(key);
                self.count(|stats| match why {
                    Unreadable::Preamble => stats.bad += 1,
                    Unreadable::Version => stats.other_version += 1,
                });
            }
        }
        books.remove(key);
        self.gauge(books);
    }

    /// Makes the file of a checkpoint; none of that key is in the books.
    pub(super) fn make(&self, key: u128, preamble: &[u8]) -> io::Result<File> {
        let path = self.path(key);
        // One that could not be read, or not be removed.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // What a model said to somebody is for nobody else on this machine.
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path)?;
        if let Err(error) = self.media.append(&file, preamble) {
            self.remove_file(key);
            return Err(error);
        }
        self.names_changed.store(true, Ordering::Release);
        Ok(file)
    }

    /// Opens the file of a checkpoint to go on after its last good record.
    pub(super) fn go_on(&self, key: u128, read: &Read) -> io::Result<File> {
        let file = OpenOptions::new().append(true).open(self.path(key))?;
        if read.torn {
            file.set_len(read.good_bytes)?;
            self.count(|stats| stats.cut += 1);
        }
        Ok(file)
    }

    /// Waits until the files that were made are found after a crash. `false`: that failed.
    pub(super) fn sync_names(&self) -> bool {
        if !self.names_changed.swap(false, Ordering::AcqRel) {
            return true;
        }
        let synced = self.checked("syncing the folder", self.media.sync_folder(&self.config.folder));
        if !synced {
            self.names_changed.store(true, Ordering::Release);
        }
        synced
    }

    /// Has checkpoints leave until this much more is within the bounds. `false`: open ones alone leave no room for it,
    /// and all stay.
    pub(super) fn make_room(&self, books: &mut Books, entries: usize, bytes: u64) -> bool {
        let Config { entries_max, bytes_max, .. } = self.config;
        let fits = |entries_there: usize, bytes_there: u64| {
            entries_there + entries <= entries_max && bytes_there.saturating_add(bytes) <= bytes_max
        };
        if fits(books.len(), books.bytes()) {
            return true;
        }
        if !fits(books.open_len(), books.open_bytes()) {
            return false;
        }
        while !fits(books.len(), books.bytes()) {
            let key = books.first_to_leave().expect("without those that may leave it fits");
            self.discard(books, key);
            self.count(|stats| stats.evicted += 1);
        }
        true
    }

    /// Has expired checkpoints leave, at most [`EXPIRED_MAX`].
    pub(super) fn expire_some(&self, books: &mut Books, now_ms: u64) {
        self.expire(books, now_ms, EXPIRED_MAX);
    }

    fn expire(&self, books: &mut Books, now_ms: u64, keys_max: usize) {
        for key in books.expired(self.config.ttl_ms, now_ms, keys_max) {
            self.discard(books, key);
            self.count(|stats| stats.expired += 1);
        }
    }

    /// Has the checkpoint of a key leave if it is expired.
    pub(super) fn expire_one(&self, books: &mut Books, key: u128, now_ms: u64) {
        if books.is_expired(key, self.config.ttl_ms, now_ms) {
            self.discard(books, key);
            self.count(|stats| stats.expired += 1);
        }
    }

    /// Removes a checkpoint that is not open.
    pub(super) fn discard(&self, books: &mut Books, key: u128) {
        if books.remove(key) {
            self.remove_file(key);
            self.gauge(books);
        }
    }

    /// Makes room for what is about to be written to an open checkpoint. `false`: there is none.
    pub(super) fn grow(&self, key: u128, bytes: u64) -> bool {
        let mut books = self.books.lock();
        let fits = self.make_room(&mut books, 0, bytes);
        match fits {
            true => books.grow(key, bytes),
            false => self
                .note(format!("open sequences have more than bytes_max = {} bytes", self.config.bytes_max)),
        }
        self.gauge(&books);
        fits
    }

    /// Enters that a journal is closed and written.
    pub(super) fn settle(&self, key: u128, ended: bool) {
        let mut books = self.books.lock();
        books.settle(key, ended);
        self.gauge(&books);
        self.count(|stats| stats.ended += u64::from(ended));
    }

    /// Whether it went well; what went wrong is counted.
    pub(super) fn checked(&self, what: &str, outcome: io::Result<()>) -> bool {
        outcome.map_err(|error| self.note_error(what, &error)).is_ok()
    }

    pub(super) fn count_stopped(&self, why: &str) {
        self.note(why.to_owned());
        self.count(|stats| stats.stopped += 1);
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut CheckpointStats)) {
        change(&mut self.counts.lock());
    }

    pub(super) fn note_error(&self, what: &str, error: &io::Error) {
        self.note(format!("{what} in `{}`: {error}", self.config.folder.display()));
        self.count(|stats| stats.errors += 1);
    }

    fn note(&self, error: String) {
        self.count(|stats| stats.last_error = Some(Arc::from(error)));
    }

    /// Shows in the counts what the books have.
    pub(super) fn gauge(&self, books: &Books) {
        self.count(|stats| {
            (stats.entries, stats.open, stats.bytes) =
                (books.len() as u64, books.open_len() as u64, books.bytes());
        });
    }

    pub(super) fn stats(&self) -> CheckpointStats {
        self.counts.lock().clone()
    }

    fn remove_file(&self, key: u128) {
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.note_error("removing", &error),
            _ => {}
        }
    }

    pub(super) fn path(&self, key: u128) -> PathBuf {
        path(&self.config.folder, key)
    }
}

/// Where the checkpoint of a key lies.
pub(super) fn path(folder: &Path, key: u128) -> PathBuf {
    folder.join(format!("{key:032x}"))
}

/// The key that a file is named after; `None` for a file that is no checkpoint.
fn key_of(name: &str) -> Option<u128> {
    let key = u128::from_str_radix(name, 16).ok()?;
    (format!("{key:032x}") == name).then_some(key)
}
