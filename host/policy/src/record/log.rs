//! A log on the disk: one file, or all files of a folder in their order.
//!
//! **Invariant:** a file that is cut or damaged is read up to there, and says so.

use super::folder;
use super::format::{Entry, FORMAT, FileHead};
use super::frame::{Frames, Tail};
use super::replay::ReplayError;
use std::path::{Path, PathBuf};

/// Which files are read, and where components lie.
pub(super) struct Log {
    pub(super) folder: PathBuf,
    pub(super) files: Vec<PathBuf>,
}

impl Log {
    /// A file, or the files of a folder.
    pub(super) fn open(path: &Path) -> Result<Self, ReplayError> {
        let unread = |source| ReplayError::Read { path: path.to_owned(), source };
        if !path.is_dir() {
            std::fs::metadata(path).map_err(unread)?;
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new(".")).to_owned();
            return Ok(Self { folder, files: vec![path.to_owned()] });
        }
        let files: Vec<PathBuf> = folder::files(path).map_err(unread)?.into_values().collect();
        match files.is_empty() {
            true => Err(ReplayError::NoLog { path: path.to_owned(), why: "has no decisions-*.plog".into() }),
            false => Ok(Self { folder: path.to_owned(), files }),
        }
    }
}

/// The bytes of one file.
pub(super) struct LogFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl LogFile {
    pub(super) fn read(path: &Path) -> Result<Self, ReplayError> {
        let unread = |source| ReplayError::Read { path: path.to_owned(), source };
        Ok(Self { path: path.to_owned(), bytes: std::fs::read(path).map_err(unread)? })
    }

    /// Its head, and its other entries. `None`: it was cut off before its head was written.
    pub(super) fn entries(&self) -> Result<Option<(FileHead, Frames<'_>)>, ReplayError> {
        let no_log = |why: String| ReplayError::NoLog { path: self.path.clone(), why };
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let mut frames =
            Frames::new(&self.bytes).ok_or_else(|| no_log("does not begin as a log does".into()))?;
        match frames.next() {
            Some(Entry::File(head)) if head.format == FORMAT => Ok(Some((head, frames))),
            Some(Entry::File(head)) => {
                Err(no_log(format!("has format {}; this host reads {FORMAT}", head.format)))
            }
            Some(_) => Err(no_log("does not begin with its head".into())),
            None => Ok(None),
        }
    }

    /// What an operator should know of how it ended.
    pub(super) fn note(&self, tail: &Tail) -> Option<String> {
        let Tail::Torn(at, why) = tail else { return None };
        let rest = self.bytes.len() - at;
        Some(format!("{}: {why} at byte {at}; the last {rest} bytes are not replayed", self.path.display()))
    }
}
