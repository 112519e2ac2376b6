use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use super::*;

/// A disk with so many bytes left, whose syncs can be made to fail.
#[derive(Clone, Default)]
struct Failing(Arc<Left>);

#[derive(Default)]
struct Left {
    bytes: AtomicU64,
    no_sync: AtomicBool,
    no_sync_folder: AtomicBool,
}

impl Failing {
    fn open(folder: &TempDir, bytes: u64) -> (Self, Checkpoints) {
        let disk = Self::default();
        disk.0.bytes.store(bytes, Ordering::Relaxed);
        let checkpoints = Checkpoints::open_on(config(folder.path()), Box::new(disk.clone()), 0).unwrap();
        (disk, checkpoints)
    }
}

fn fail_if(failing: &AtomicBool) -> io::Result<()> {
    match failing.load(Ordering::Relaxed) {
        true => Err(io::Error::other("it is broken")),
        false => Ok(()),
    }
}

impl Media for Failing {
    fn append(&self, file: &File, bytes: &[u8]) -> io::Result<()> {
        let left = self.0.bytes.load(Ordering::Relaxed);
        let fits = left.min(bytes.len() as u64);
        self.0.bytes.store(left - fits, Ordering::Relaxed);
        Disk.append(file, &bytes[..fits as usize])?;
        match fits == bytes.len() as u64 {
            true => Ok(()),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        fail_if(&self.0.no_sync)?;
        Disk.sync(file)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        fail_if(&self.0.no_sync_folder)?;
        Disk.sync_folder(folder)
    }
}

#[test]
fn on_a_full_disk_a_sequence_keeps_what_was_written_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    // The first record fits, the second is torn.
    let (disk, checkpoints) = Failing::open(&folder, 44 + 21 + 10);
    let mut journal = checkpoints.begin(KEY, b"", 0).unwrap();
    journal.push(&[1, 2]);
    checkpoints.flush();
    for token in 3..1000 {
        journal.push(&[token]);
        if token == 3 {
            checkpoints.flush();
        }
    }
    assert!(journal.is_stopped());
    assert_eq!(journal.synced(), 2);
    journal.end();
    let found = checkpoints.find(KEY, 0).unwrap();
    assert_eq!((found.tokens, found.ended), (vec![1, 2], false));
    let error = checkpoints.begin(KEY + 1, b"", 0).unwrap_err();
    assert!(
        matches!(error, CheckpointError::Io { .. })
            && error.to_string().contains(&format!("{:032x}", KEY + 1))
    );
    assert!(!file(folder.path(), KEY + 1).exists(), "nothing is left of it");
    let stats = checkpoints.stats();
    assert_eq!((stats.stopped, stats.errors, stats.open, stats.entries, stats.cut), (1, 2, 0, 1, 0));
    assert!(stats.last_error.unwrap().contains("no storage space"));

    // Space again: the torn record gives way to the next one.
    disk.0.bytes.store(1000, Ordering::Relaxed);
    let (_, mut journal) = checkpoints.resume(KEY, 0).unwrap();
    journal.push(&[3]);
    journal.end();
    drop(checkpoints);
    check(&folder, KEY, &[1, 2, 3], true);
}

#[test]
fn what_cannot_be_synced_does_not_count_as_synced() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, checkpoints) = Failing::open(&folder, 1000);
    let mut journal = checkpoints.begin(KEY, b"", 0).unwrap();
    journal.push(&[1]);
    checkpoints.flush();
    disk.0.no_sync.store(true, Ordering::Relaxed);
    journal.push(&[2]);
    checkpoints.flush();
    assert_eq!((journal.synced(), journal.is_stopped()), (1, true));
    journal.end();
    disk.0.no_sync.store(false, Ordering::Relaxed);
    checkpoints.flush();
    assert!(!checkpoints.find(KEY, 0).unwrap().ended, "its end was not kept");
    assert_eq!(checkpoints.stats().stopped, 1);
}

#[test]
fn a_file_that_may_not_be_found_after_a_crash_does_not_count_as_synced() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, checkpoints) = Failing::open(&folder, 1000);
    disk.0.no_sync_folder.store(true, Ordering::Relaxed);
    let mut journal = checkpoints.begin(KEY, b"", 0).unwrap();
    journal.push(&[1]);
    checkpoints.flush();
    assert_eq!((journal.synced(), journal.is_stopped()), (0, true));
    disk.0.no_sync_folder.store(false, Ordering::Relaxed);
    let mut other = checkpoints.begin(KEY + 1, b"", 0).unwrap();
    other.push(&[1]);
    checkpoints.flush();
    assert_eq!((other.synced(), checkpoints.stats().stopped), (1, 1));
}

/// A disk whose syncs wait until they are let go.
#[derive(Clone, Default)]
struct Slow(Arc<(Mutex<bool>, Condvar)>);

impl Media for Slow {
    fn append(&self, file: &File, bytes: &[u8]) -> io::Result<()> {
        Disk.append(file, bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let (open, opened) = &*self.0;
        opened.wait_while(&mut open.lock(), |open| !*open);
        Disk.sync(file)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        Disk.sync_folder(folder)
    }
}

#[test]
fn a_disk_that_hangs_holds_up_no_push_and_loses_none() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Slow::default();
    let checkpoints = Checkpoints::open_on(config(folder.path()), Box::new(disk.clone()), 0).unwrap();
    let tokens: Vec<u32> = (0..100_000).collect();
    let mut journal = checkpoints.begin(KEY, b"", 0).unwrap();
    // Would never come back if any of them waited.
    tokens.chunks(3).for_each(|tokens| journal.push(tokens));
    assert_eq!(journal.synced(), 0);
    assert_eq!(checkpoints.stats().stopped, 0);
    journal.end();
    let (open, opened) = &*disk.0;
    *open.lock() = true;
    opened.notify_all();
    drop(checkpoints);
    check(&folder, KEY, &tokens, true);
}

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = Checkpoints::open(config(&path), 0).unwrap_err();
        assert!(matches!(error, CheckpointError::Folder { .. }));
        let message = format!("checkpoints cannot be kept in `{}`; ", path.display());
        assert!(error.to_string().starts_with(&message), "{error}");
    }
}

#[test]
fn a_folder_is_used_once() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder);
    let error = Checkpoints::open(config(folder.path()), 0).unwrap_err();
    assert!(matches!(error, CheckpointError::InUse { .. }));
    let message = format!("`{}` is in use by another process; ", folder.path().display());
    assert!(error.to_string().starts_with(&message), "{error}");
    drop(checkpoints);
    drop(open(&folder));
}

/// Checkpoints over a folder in which the file of [`KEY`] has these bytes.
fn with_file(bytes: &[u8]) -> (TempDir, Checkpoints) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(file(folder.path(), KEY), bytes).unwrap();
    let checkpoints = open(&folder);
    (folder, checkpoints)
}

fn sample() -> Vec<u8> {
    let mut bytes = format::preamble(KEY, 0, b"header");
    format::add_tokens(&mut bytes, 0, &[1, 2]);
    format::add_tokens(&mut bytes, 2, &[3]);
    format::add_end(&mut bytes, 3);
    bytes
}

#[test]
fn a_file_cut_anywhere_is_found_up_to_a_record_and_goes_on_from_there() {
    let bytes = sample();
    let preamble = format::preamble(KEY, 0, b"header").len();
    let ends = [(preamble, 0), (preamble + 21, 2), (preamble + 38, 3)];
    for cut in 0..=bytes.len() {
        let (folder, checkpoints) = with_file(&bytes[..cut]);
        let Some(&(end, count)) = ends.iter().rev().find(|(end, _)| *end <= cut) else {
            assert_eq!(checkpoints.find(KEY, 0), None);
            assert_eq!((checkpoints.stats().bad, file(folder.path(), KEY).exists()), (1, false));
            continue;
        };
        let ended = cut == bytes.len();
        let found = checkpoints.find(KEY, 0).unwrap();
        assert_eq!((&found.tokens[..], found.ended), (&[1, 2, 3][..count], ended));
        assert_eq!(checkpoints.stats().cut, u64::from(!ended && cut > end));
        if !ended {
            checkpoints.resume(KEY, 0).unwrap().1.push(&[9]);
            let found = checkpoints.find(KEY, 0).unwrap();
            assert_eq!(found.tokens, [&[1, 2, 3][..count], &[9]].concat());
        }
    }
}

#[test]
fn a_file_that_is_damaged_while_the_host_runs_is_not_served() {
    let (folder, checkpoints) = with_file(&sample());
    let mut bytes = sample();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(file(folder.path(), KEY), &bytes).unwrap();
    let found = checkpoints.find(KEY, 0).unwrap();
    assert_eq!((found.tokens, found.ended), (vec![1, 2, 3], false));
    bytes[20] ^= 1;
    fs::write(file(folder.path(), KEY), &bytes).unwrap();
    assert!(matches!(checkpoints.resume(KEY, 0), Err(CheckpointError::Missing { .. })));
    assert!(!file(folder.path(), KEY).exists());
    assert_eq!((checkpoints.stats().bad, checkpoints.stats().entries), (1, 0));
}

#[test]
fn a_file_that_somebody_removed_is_missing() {
    let (folder, checkpoints) = with_file(&sample());
    fs::remove_file(file(folder.path(), KEY)).unwrap();
    assert_eq!(checkpoints.find(KEY, 0), None);
    assert_eq!((checkpoints.stats().entries, checkpoints.stats().errors), (0, 0));
}

#[test]
fn a_file_of_another_version_is_removed_and_counted() {
    let mut bytes = sample();
    bytes[8] = 9;
    let (folder, checkpoints) = with_file(&bytes);
    assert_eq!(checkpoints.find(KEY, 0), None);
    assert_eq!((checkpoints.stats().other_version, checkpoints.stats().bad), (1, 0));
    assert!(!file(folder.path(), KEY).exists());
}

#[test]
fn what_cannot_be_read_is_left_alone_and_costs_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(file(folder.path(), KEY)).unwrap();
    let checkpoints = open(&folder);
    assert_eq!(checkpoints.find(KEY, 0), None);
    let stats = checkpoints.stats();
    assert_eq!((stats.unreadable, stats.errors, stats.entries), (1, 1, 0));
    assert!(matches!(checkpoints.begin(KEY, b"", 0), Err(CheckpointError::Io { .. })));
    drop(checkpoints.begin(KEY + 1, b"", 0).unwrap());
}
