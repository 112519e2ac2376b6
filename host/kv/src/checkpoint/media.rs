//! What of a disk can fail while sequences run. Tests put a full or a slow disk in its place.

use std::fs::File;
use std::io::{Result, Write as _};
use std::path::Path;

pub(super) trait Media: Send + Sync {
    /// Writes all of `bytes` at the end of a file.
    fn append(&self, file: &File, bytes: &[u8]) -> Result<()>;

    /// Waits until what was written to a file is on the disk.
    fn sync(&self, file: &File) -> Result<()>;

    /// Waits until files that were made in a folder are found in it after a crash.
    fn sync_folder(&self, folder: &Path) -> Result<()>;
}

/// The disk.
pub(super) struct Disk;

impl Media for Disk {
    fn append(&self, mut file: &File, bytes: &[u8]) -> Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &File) -> Result<()> {
        file.sync_data()
    }

    fn sync_folder(&self, folder: &Path) -> Result<()> {
        File::open(folder)?.sync_all()
    }
}
