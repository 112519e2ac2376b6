//! The folder of a recording: numbered files within a total, and the components that they name.
//!
//! ```text
//! FOLDER/decisions-000001.plog  decisions-000002.plog  …  components/<sha256>.wasm
//! ```
//!
//! **Invariant:** log files together never exceed their bound; a component is there whole or not at all.

use crate::runtime::Digest;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Where components lie.
pub(super) const COMPONENTS: &str = "components";
const PREFIX: &str = "decisions-";
const SUFFIX: &str = ".plog";

/// Number of a log file, by its name.
fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
}

/// The log files of a folder, by number.
pub(super) fn files(folder: &Path) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if let Some(number) = entry.file_name().to_str().and_then(number_of) {
            found.insert(number, entry.path());
        }
    }
    Ok(found)
}

/// Path of a component.
pub(super) fn component_path(folder: &Path, digest: Digest) -> PathBuf {
    folder.join(COMPONENTS).join(format!("{digest}.wasm"))
}

/// A folder that is written to.
pub(super) struct Folder {
    path: PathBuf,
    total_bytes_max: u64,
    // Files from before this recording: what components they name is not known.
    older: BTreeSet<u64>,
    // Files of this recording, with the components that they name.
    named: BTreeMap<u64, BTreeSet<[u8; 32]>>,
    current: Option<fs::File>,
}

impl Folder {
    /// Takes a folder into use. Returns the number of the next file.
    pub(super) fn open(path: &Path, total_bytes_max: u64) -> io::Result<(Self, u64)> {
        fs::create_dir_all(path.join(COMPONENTS))?;
        let older: BTreeSet<u64> = files(path)?.into_keys().collect();
        let next = older.last().map_or(1, |last| last + 1);
        let path = path.to_owned();
        Ok((Self { path, total_bytes_max, older, named: BTreeMap::new(), current: None }, next))
    }

    /// Begins a file, once the oldest ones have made room for the largest that it can become.
    pub(super) fn begin(&mut self, number: u64, file_bytes_max: u64) -> io::Result<()> {
        self.current = None;
        self.make_room(file_bytes_max)?;
        let file = fs::File::create_new(self.path.join(format!("{PREFIX}{number:06}{SUFFIX}")))?;
        self.named.insert(number, BTreeSet::new());
        self.current = Some(file);
        Ok(())
    }

    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        let mut sizes = vec![];
        for (number, path) in files(&self.path)? {
            sizes.push((number, fs::metadata(&path)?.len(), path));
        }
        let mut total: u64 = sizes.iter().map(|(_, size, _)| size).sum();
        for (number, size, path) in sizes {
            if total + bytes <= self.total_bytes_max {
                break;
            }
            fs::remove_file(path)?;
            self.older.remove(&number);
            self.named.remove(&number);
            total -= size;
        }
        self.prune()
    }

    /// Removes components that no file names, once all files are of this recording.
    fn prune(&self) -> io::Result<()> {
        if !self.older.is_empty() {
            return Ok(());
        }
        let named: BTreeSet<String> =
            self.named.values().flatten().map(|digest| format!("{}.wasm", Digest::from(*digest))).collect();
        for entry in fs::read_dir(self.path.join(COMPONENTS))? {
            let entry = entry?;
            let is_ours = entry.path().extension().is_some_and(|ending| ending == "wasm");
            if is_ours && !entry.file_name().to_str().is_some_and(|name| named.contains(name)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Appends to the file that was begun last.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.current {
            Some(file) => file.write_all(bytes),
            None => Ok(()),
        }
    }

    /// Keeps a component that the file begun last names.
    pub(super) fn keep(&mut self, digest: Digest, component: &[u8]) -> io::Result<()> {
        if let Some(mut named) = self.named.last_entry() {
            named.get_mut().insert(digest.bytes());
        }
        let path = component_path(&self.path, digest);
        if path.exists() {
            return Ok(());
        }
        let draft = path.with_extension("draft");
        fs::write(&draft, component)?;
        fs::rename(draft, path)
    }
}
