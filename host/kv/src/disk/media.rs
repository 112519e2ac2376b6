//! Files as the tier uses them: made at their full size, read and written in aligned parts, synced.
//!
//! Called by slabs and by the tier's threads. The traits are what tests replace to have a disk fail.
//! **Invariant:** a read or a write does all of it or is an error.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::path::Path;
use std::sync::Arc;

/// Makes and opens files.
pub(super) trait Media: Send + Sync {
    /// Makes a file, or makes it afresh, and takes its space.
    fn create(&self, path: &Path, bytes: u64) -> Result<Arc<dyn SlabFile>>;

    /// Opens a file that is there.
    fn open(&self, path: &Path) -> Result<Arc<dyn SlabFile>>;
}

/// One file. Offsets, lengths and memory are multiples of [`HEADER_BYTES`](super::layout::HEADER_BYTES).
pub(super) trait SlabFile: Send + Sync {
    /// Fills both parts from `at` on.
    fn read(&self, at: u64, head: &mut [u8], body: &mut [u8]) -> Result<()>;

    /// Writes both parts from `at` on, in one call where the system takes it.
    fn write(&self, at: u64, head: &[u8], body: &[u8]) -> Result<()>;

    /// Returns when what was written is on the device.
    fn sync(&self) -> Result<()>;

    /// Bytes of the file.
    fn bytes(&self) -> Result<u64>;

    /// Cuts the file.
    fn truncate(&self, bytes: u64) -> Result<()>;

    /// Whether reads and writes go past the page cache.
    fn is_direct(&self) -> bool;
}

/// Files of the system.
pub(super) struct SystemMedia;

struct SystemFile {
    file: File,
    direct: bool,
}

impl Media for SystemMedia {
    fn create(&self, path: &Path, bytes: u64) -> Result<Arc<dyn SlabFile>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        allocate(&file, bytes)?;
        drop(file);
        self.open(path)
    }

    fn open(&self, path: &Path) -> Result<Arc<dyn SlabFile>> {
        if let Some(file) = open_direct(path)? {
            let file = SystemFile { file, direct: true };
            if file.reads_directly() {
                return Ok(Arc::new(file));
            }
        }
        open_buffered(path)
    }
}

/// The file through the page cache.
pub(super) fn open_buffered(path: &Path) -> Result<Arc<dyn SlabFile>> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    Ok(Arc::new(SystemFile { file, direct: false }))
}

/// The file without the page cache; `None` where the file system has no such thing.
#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Result<Option<File>> {
    use std::os::unix::fs::OpenOptionsExt;
    let flag = rustix::fs::OFlags::DIRECT.bits() as i32;
    match OpenOptions::new().read(true).write(true).custom_flags(flag).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_path: &Path) -> Result<Option<File>> {
    Ok(None)
}

/// Takes the space, so that no later write finds the disk full.
#[cfg(target_os = "linux")]
fn allocate(file: &File, bytes: u64) -> Result<()> {
    use rustix::io::Errno;
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        // Not every file system can; then a write may find the disk full, which is one failed write.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(bytes),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate(file: &File, bytes: u64) -> Result<()> {
    file.set_len(bytes)
}

impl SystemFile {
    /// Some file systems open a file for direct I/O and refuse every read of it.
    fn reads_directly(&self) -> bool {
        let Ok(arena) = crate::Arena::new(1, super::layout::HEADER_BYTES) else { return false };
        let Some(mut slot) = arena.take() else { return false };
        let read = rustix::io::pread(&self.file, &mut *slot, 0);
        read != Err(rustix::io::Errno::INVAL)
    }
}

impl SlabFile for SystemFile {
    fn read(&self, at: u64, head: &mut [u8], body: &mut [u8]) -> Result<()> {
        let (head_len, len) = (head.len(), head.len() + body.len());
        let mut done = 0;
        // Each turn moves on by at least one byte.
        while done < len {
            let (skip_head, skip_body) = (done.min(head_len), done.saturating_sub(head_len));
            let mut parts =
                [IoSliceMut::new(&mut head[skip_head..]), IoSliceMut::new(&mut body[skip_body..])];
            match rustix::io::preadv(&self.file, &mut parts, at + done as u64) {
                Ok(0) => return Err(Error::new(ErrorKind::UnexpectedEof, "the slab ends before its slot")),
                Ok(read) => done += read,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn write(&self, at: u64, head: &[u8], body: &[u8]) -> Result<()> {
        let (head_len, len) = (head.len(), head.len() + body.len());
        let mut done = 0;
        // Each turn moves on by at least one byte.
        while done < len {
            let (skip_head, skip_body) = (done.min(head_len), done.saturating_sub(head_len));
            let parts = [IoSlice::new(&head[skip_head..]), IoSlice::new(&body[skip_body..])];
            match rustix::io::pwritev(&self.file, &parts, at + done as u64) {
                Ok(0) => return Err(Error::new(ErrorKind::WriteZero, "the slab takes no more")),
                Ok(written) => done += written,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data()
    }

    fn bytes(&self) -> Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn truncate(&self, bytes: u64) -> Result<()> {
        self.file.set_len(bytes)?;
        self.file.sync_all()
    }

    fn is_direct(&self) -> bool {
        self.direct
    }
}

/// Makes what was made, renamed and removed in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)?.sync_all()
}
