//! Checkpoints of running sequences: what a sequence has generated survives the process, and is gone on from.
//!
//! The journey asks by the key of a request: what is there, and a journal for what comes. A sampler's state follows from
//! seed and position, so tokens and the caller's header are all that a sequence needs to go on exactly where it was.
//! Journals hand tokens to one thread, which writes and syncs all of them together ([`Config::sync_every`]).
//! **Invariant:** what is found is a prefix of what was pushed under that key; a torn or damaged part is never served,
//! and a failing disk costs checkpoints, not requests.

mod books;
mod folder;
mod format;
mod journal;
mod media;
mod queue;
mod sequence;
mod stats;
mod writer;

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::MutexGuard;

pub use self::format::HEADER_BYTES_MAX;
pub use self::journal::Journal;
pub use self::stats::CheckpointStats;

use self::books::Books;
use self::folder::{Folder, Lost};
use self::media::{Disk, Media};
use self::sequence::Sequence;

/// Where checkpoints lie, how many, for how long.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder; it is made if it is not there. Files of other names in it are left alone.
    pub folder: PathBuf,
    /// Most checkpoints, open ones included: each of those has a file open.
    pub entries_max: usize,
    /// Most bytes of all checkpoints.
    pub bytes_max: u64,
    /// How long a checkpoint is kept after its sequence began, in milliseconds; an open one is kept until it is closed.
    pub ttl_ms: u64,
    /// Most tokens of one sequence; what waits for the disk in memory is at most that.
    pub tokens_max: u32,
    /// How long tokens gather before they are written and synced together: what a crash costs.
    pub sync_every: Duration,
}

impl Config {
    /// Bounds that fit a machine which serves some hundred sequences at a time.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            entries_max: 4096,
            bytes_max: 256 << 20,
            ttl_ms: 24 * 60 * 60 * 1000,
            tokens_max: 1 << 20,
            sync_every: Duration::from_millis(50),
        }
    }
}

/// Why there is no journal, or no folder of them.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The folder cannot be made, read or written.
    #[error("checkpoints cannot be kept in `{path}`; give a folder that this process may write")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Another process keeps its checkpoints there.
    #[error("`{path}` is in use by another process; each needs a folder of its own")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A journal of that key is open: two requests with one key are under way.
    #[error("the sequence {key:032x} is being written")]
    Busy {
        /// The key.
        key: u128,
    },
    /// There is nothing to go on with.
    #[error("there is no checkpoint of the sequence {key:032x}")]
    Missing {
        /// The key.
        key: u128,
    },
    /// The sequence has all its tokens: there is nothing to go on with, but all to be replayed.
    #[error("the sequence {key:032x} has ended")]
    Ended {
        /// The key.
        key: u128,
    },
    /// The header is too large.
    #[error("a header of {bytes} bytes; at most {HEADER_BYTES_MAX} are kept")]
    Header {
        /// Its bytes.
        bytes: usize,
    },
    /// All checkpoints are being written, so that none can leave.
    #[error("no room for a checkpoint: {open} of {entries_max} are open, with {bytes} of {bytes_max} bytes")]
    Full {
        /// Open checkpoints.
        open: usize,
        /// Most checkpoints.
        entries_max: usize,
        /// Bytes of all checkpoints.
        bytes: u64,
        /// Most bytes.
        bytes_max: u64,
    },
    /// The disk failed. The sequence can go on without a journal.
    #[error("the checkpoint `{path}` cannot be written or read")]
    Io {
        /// Its file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// A checkpoint that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// What the caller gave when the sequence began.
    pub header: Vec<u8>,
    /// Its tokens, from the first on.
    pub tokens: Vec<u32>,
    /// Whether these are all of them.
    pub ended: bool,
    /// When the sequence began, in Unix milliseconds.
    pub created_ms: u64,
}

/// How often a journal that is just being closed is waited for. Chosen: once, and once more for who was quicker.
const CLOSING_WAITS_MAX: usize = 2;

/// The checkpoints of one folder, which no other process uses meanwhile.
///
/// `begin`, `find` and `resume` work on the disk: call them from a thread that may wait. Times are Unix milliseconds.
/// When it is dropped, everything that was pushed is written and synced.
pub struct Checkpoints {
    folder: Arc<Folder>,
    writer: Option<JoinHandle<()>>,
    /// Held until the writer is done.
    _lock: Lock,
}

impl Checkpoints {
    /// Opens a folder, brings it within its bounds, and starts the thread that writes.
    ///
    /// Cost: reads all checkpoints once.
    /// Errors: [`CheckpointError::Folder`], [`CheckpointError::InUse`].
    pub fn open(config: Config, now_ms: u64) -> Result<Self, CheckpointError> {
        Self::open_on(config, Box::new(Disk), now_ms)
    }

    fn open_on(config: Config, media: Box<dyn Media>, now_ms: u64) -> Result<Self, CheckpointError> {
        let lock = lock(&config.folder)?;
        let folder = Arc::new(Folder::new(config, media));
        folder.scan(now_ms)?;
        let own = Arc::clone(&folder);
        let writer = std::thread::Builder::new().name("checkpoints".to_owned());
        let writer = writer.spawn(move || writer::run(&own));
        let writer = writer.map_err(|source| failed(&folder.config.folder, source))?;
        Ok(Self { folder, writer: Some(writer), _lock: lock })
    }

    /// Begins a sequence anew. A checkpoint of that key that is not open is replaced.
    ///
    /// `header` is what [`Checkpoints::find`] gives back: whatever tells whether the tokens may be used, and how to go on.
    /// Errors: [`CheckpointError::Busy`], [`CheckpointError::Header`], [`CheckpointError::Full`], [`CheckpointError::Io`].
    pub fn begin(&self, key: u128, header: &[u8], now_ms: u64) -> Result<Journal, CheckpointError> {
        if header.len() > HEADER_BYTES_MAX {
            return Err(CheckpointError::Header { bytes: header.len() });
        }
        let preamble = format::preamble(key, now_ms, header);
        let bytes = preamble.len() as u64;
        let mut books = self.without_journal(key)?;
        self.folder.expire_some(&mut books, now_ms);
        self.folder.discard(&mut books, key);
        if !self.folder.make_room(&mut books, 1, bytes) {
            return Err(self.full(&books));
        }
        let file = self.folder.make(key, &preamble).map_err(|source| self.io(key, source))?;
        let sequence = Arc::new(Sequence::new(key, file, 0));
        books.insert_begun(Arc::clone(&sequence), now_ms, bytes);
        self.folder.gauge(&books);
        self.folder.count(|stats| stats.begun += 1);
        drop(books);
        Ok(Journal::new(sequence, Arc::clone(&self.folder)))
    }

    /// What there is of a key, open or not; what was pushed before the call is in it, unless its journal has stopped.
    ///
    /// Cost: reads one file; waits for the writer if the journal is open.
    pub fn find(&self, key: u128, now_ms: u64) -> Option<Found> {
        let mut books = self.folder.books.lock();
        self.folder.expire_one(&mut books, key, now_ms);
        if !books.contains(key) {
            return None;
        }
        if books.open(key).is_some() {
            drop(books);
            self.folder.queue.flush();
            books = self.folder.books.lock();
        }
        match self.folder.read(key) {
            Ok(read) => Some(Found::from(read)),
            Err(lost) => {
                if books.open(key).is_none() {
                    self.folder.lose(&mut books, key, lost);
                }
                None
            }
        }
    }

    /// Goes on with a sequence that has not ended: what there is of it, and a journal for what comes after that.
    ///
    /// Errors: [`CheckpointError::Busy`], [`CheckpointError::Missing`], [`CheckpointError::Ended`],
    /// [`CheckpointError::Io`].
    pub fn resume(&self, key: u128, now_ms: u64) -> Result<(Found, Journal), CheckpointError> {
        let mut books = self.without_journal(key)?;
        self.folder.expire_one(&mut books, key, now_ms);
        if !books.contains(key) {
            return Err(CheckpointError::Missing { key });
        }
        let read = match self.folder.read(key) {
            Ok(read) => read,
            Err(Lost::Io(source)) => return Err(self.io(key, source)),
            Err(lost) => {
                self.folder.lose(&mut books, key, lost);
                return Err(CheckpointError::Missing { key });
            }
        };
        if read.ended {
            return Err(CheckpointError::Ended { key });
        }
        let file = self.folder.go_on(key, &read).map_err(|source| self.io(key, source))?;
        let sequence = Arc::new(Sequence::new(key, file, read.tokens.len() as u32));
        books.reopen(Arc::clone(&sequence), read.good_bytes);
        self.folder.gauge(&books);
        self.folder.count(|stats| stats.resumed += 1);
        drop(books);
        Ok((Found::from(read), Journal::new(sequence, Arc::clone(&self.folder))))
    }

    /// Has some checkpoints leave that are older than their time. Requests do the same on their way, so this is for
    /// hosts that have none for long.
    pub fn expire(&self, now_ms: u64) {
        self.folder.expire_some(&mut self.folder.books.lock(), now_ms);
    }

    /// Waits until all that was pushed before is on the disk, or has failed to get there; at most some seconds.
    pub fn flush(&self) {
        self.folder.queue.flush();
    }

    /// Counts. Cost: a copy under a lock that is never held while the disk works.
    pub fn stats(&self) -> CheckpointStats {
        self.folder.stats()
    }

    /// The books, once no journal of `key` is open. One that has been dropped is waited for.
    fn without_journal(&self, key: u128) -> Result<MutexGuard<'_, Books>, CheckpointError> {
        for _ in 0..=CLOSING_WAITS_MAX {
            let books = self.folder.books.lock();
            match books.open(key) {
                None => return Ok(books),
                Some(sequence) if !sequence.is_closed() => break,
                Some(_) => {}
            }
            drop(books);
            self.folder.queue.flush();
        }
        Err(CheckpointError::Busy { key })
    }

    fn full(&self, books: &Books) -> CheckpointError {
        let Config { entries_max, bytes_max, .. } = self.folder.config;
        CheckpointError::Full { open: books.open_len(), entries_max, bytes: books.bytes(), bytes_max }
    }

    fn io(&self, key: u128, source: io::Error) -> CheckpointError {
        self.folder.note_error("a checkpoint", &source);
        CheckpointError::Io { path: self.folder.path(key), source }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.folder.queue.close();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has said so, and left nothing that could be saved here.
            let _ = writer.join();
        }
    }
}

impl std::fmt::Debug for Checkpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoints").field("config", &self.folder.config).finish_non_exhaustive()
    }
}

impl From<format::Read> for Found {
    fn from(read: format::Read) -> Self {
        let format::Read { created_ms, header, tokens, ended, .. } = read;
        Self { header, tokens, ended, created_ms }
    }
}

/// The lock of a folder.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // By name: a process that is just being started has a copy of the file, and closing ours would leave it locked.
        let _ = self.0.unlock();
    }
}

/// Makes the folder and locks it for this process. The lock ends with the process, however that ends.
fn lock(folder: &Path) -> Result<Lock, CheckpointError> {
    let failed = |source| failed(folder, source);
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let mut options = OpenOptions::new();
    let lock = options.write(true).create(true).truncate(false).mode(0o600);
    let lock = lock.open(folder.join("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(Lock(lock)),
        Err(TryLockError::WouldBlock) => Err(CheckpointError::InUse { path: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn failed(folder: &Path, source: io::Error) -> CheckpointError {
    CheckpointError::Folder { path: folder.to_owned(), source }
}

#[cfg(test)]
mod tests;
