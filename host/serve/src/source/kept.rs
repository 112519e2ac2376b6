//! Blobs that came from registries, kept by digest; and which manifest a tag meant when it was last asked.
//!
//! Called by `oci`. **Invariant:** a blob is handed out under its digest only after it was hashed again, so
//! nobody who writes into the folder can put one thing in the place of another.

use std::fs::DirBuilder;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::address::is_hex;
use super::digest;

/// Chosen: some fifty Python components, or thousands in Rust.
const BYTES_MAX: u64 = 1 << 30;
const FILES_MAX: usize = 4096;

/// The folder.
pub(super) struct Kept {
    blobs: PathBuf,
    tags: PathBuf,
}

impl Kept {
    /// Opens the folder; makes it if it is not there.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let kept = Self { blobs: folder.join("blobs"), tags: folder.join("tags") };
        let mut folders = DirBuilder::new();
        folders.recursive(true).mode(0o700);
        folders.create(&kept.blobs)?;
        folders.create(&kept.tags)?;
        Ok(kept)
    }

    /// The blob of a digest, if it is here and whole.
    pub(super) fn blob(&self, hex: &str) -> Option<Vec<u8>> {
        let path = self.blobs.join(hex);
        let bytes = std::fs::read(&path).ok()?;
        if digest(&bytes) == hex {
            return Some(bytes);
        }
        tracing::warn!(blob = %path.display(), "a kept blob is not what it was; it is thrown away");
        let _ = std::fs::remove_file(path);
        None
    }

    pub(super) fn keep_blob(&self, bytes: &[u8]) {
        said(write(&self.blobs, &digest(bytes), bytes));
    }

    /// The digest of the manifest that a tag meant when it was last asked.
    pub(super) fn tag(&self, address: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.tags.join(digest(address.as_bytes()))).ok()?;
        is_hex(&text).then_some(text)
    }

    pub(super) fn keep_tag(&self, address: &str, manifest: &str) {
        said(write(&self.tags, &digest(address.as_bytes()), manifest.as_bytes()));
    }
}

/// What cannot be kept is fetched again; no more comes of it.
fn said(kept: io::Result<()>) {
    if let Err(error) = kept {
        tracing::warn!(%error, "what came from a registry is not kept");
    }
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = tempfile(folder, name)?;
    temporary.1.write_all(bytes)?;
    std::fs::rename(&temporary.0, folder.join(name))?;
    trim(folder, BYTES_MAX, FILES_MAX)
}

/// A file that no other writer of this name has: threads and processes may keep the same blob at once.
fn tempfile(folder: &Path, name: &str) -> io::Result<(PathBuf, std::fs::File)> {
    let thread = format!("{:?}", std::thread::current().id());
    let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
    let path = folder.join(format!("{name}.{}-{thread}.part", std::process::id()));
    let file = std::fs::File::create(&path)?;
    Ok((path, file))
}

/// Removes what came longest ago, until the rest is within the bounds.
fn trim(folder: &Path, bytes_max: u64, files_max: usize) -> io::Result<()> {
    let mut files = Vec::new();
    for file in std::fs::read_dir(folder)?.flatten() {
        // What another process removed in the meantime is not there to be counted.
        let Ok(is) = file.metadata() else { continue };
        files.push((is.modified()?, is.len(), file.path()));
    }
    files.sort();
    let (mut bytes, mut count) = (files.iter().map(|(_, bytes, _)| bytes).sum::<u64>(), files.len());
    for (_, size, path) in files {
        if bytes <= bytes_max && count <= files_max {
            break;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // Gone is gone, whichever process removed it.
            _ => (bytes, count) = (bytes - size, count - 1),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_comes_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("there is a place for temporary files");
        let kept = Kept::open(folder.path()).expect("it can be made");
        let hex = digest(b"a blob");
        assert_eq!(kept.blob(&hex), None);
        kept.keep_blob(b"a blob");
        assert_eq!(kept.blob(&hex).as_deref(), Some(&b"a blob"[..]));
        std::fs::write(folder.path().join("blobs").join(&hex), "a blow").expect("it can be written");
        assert_eq!(kept.blob(&hex), None);
        assert!(!folder.path().join("blobs").join(&hex).exists(), "it is thrown away");
    }

    #[test]
    fn a_tag_means_what_it_meant_last() {
        let folder = tempfile::tempdir().expect("there is a place for temporary files");
        let kept = Kept::open(folder.path()).expect("it can be made");
        let (one, two) = ("1".repeat(64), "2".repeat(64));
        assert_eq!(kept.tag("oci://r/it:1"), None);
        kept.keep_tag("oci://r/it:1", &one);
        kept.keep_tag("oci://r/it:1", &two);
        assert_eq!((kept.tag("oci://r/it:1"), kept.tag("oci://r/it:2")), (Some(two), None));
        kept.keep_tag("oci://r/it:1", "junk");
        assert_eq!(kept.tag("oci://r/it:1"), None);
    }

    #[test]
    fn the_oldest_leave_when_there_is_too_much() {
        let folder = tempfile::tempdir().expect("there is a place for temporary files");
        for (number, name) in ["a", "b", "c", "d"].iter().enumerate() {
            let file = std::fs::File::create(folder.path().join(name)).expect("it can be made");
            (&file).write_all(&[0; 10]).expect("it can be written");
            let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            file.set_times(std::fs::FileTimes::new().set_modified(time)).expect("it is ours");
        }
        let there = || ["a", "b", "c", "d"].map(|name| folder.path().join(name).exists());
        trim(folder.path(), 30, 9).expect("it can be read");
        assert_eq!(there(), [false, true, true, true]);
        trim(folder.path(), 30, 1).expect("it can be read");
        assert_eq!(there(), [false, false, false, true]);
    }
}
