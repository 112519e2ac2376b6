//! Disks that fail, files that change behind the tier's back, and folders that are not what they should be.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::super::layout::{HEADER_BYTES, Place, Record};
use super::super::media::{SlabFile, open_buffered};
use super::super::meta::{Digest, MetaError, MetaStore};
use super::*;

/// What fails at the moment.
#[derive(Default)]
struct Faults {
    create: AtomicBool,
    read: AtomicBool,
    write: AtomicBool,
    sync: AtomicBool,
}

#[derive(Clone, Default)]
struct FaultyMedia(Arc<Faults>);

struct FaultyFile(Arc<Faults>, Arc<dyn SlabFile>);

/// Raw numbers of Linux's `EIO` and `ENOSPC`.
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn fail_if(fault: &AtomicBool, errno: i32) -> io::Result<()> {
    if fault.load(SeqCst) { Err(io::Error::from_raw_os_error(errno)) } else { Ok(()) }
}

impl Media for FaultyMedia {
    fn create(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn SlabFile>> {
        fail_if(&self.0.create, ENOSPC)?;
        Ok(Arc::new(FaultyFile(Arc::clone(&self.0), SystemMedia.create(path, bytes)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn SlabFile>> {
        Ok(Arc::new(FaultyFile(Arc::clone(&self.0), SystemMedia.open(path)?)))
    }
}

impl SlabFile for FaultyFile {
    fn read(&self, at: u64, head: &mut [u8], body: &mut [u8]) -> io::Result<()> {
        fail_if(&self.0.read, EIO)?;
        self.1.read(at, head, body)
    }

    fn write(&self, at: u64, head: &[u8], body: &[u8]) -> io::Result<()> {
        if self.0.write.load(SeqCst) {
            // A write that fails may have been done in part.
            self.1.write(at, head, &body[..body.len() / 2 / HEADER_BYTES * HEADER_BYTES])?;
        }
        fail_if(&self.0.write, ENOSPC)?;
        self.1.write(at, head, body)
    }

    fn sync(&self) -> io::Result<()> {
        fail_if(&self.0.sync, EIO)?;
        self.1.sync()
    }

    fn bytes(&self) -> io::Result<u64> {
        self.1.bytes()
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.1.truncate(bytes)
    }

    fn is_direct(&self) -> bool {
        self.1.is_direct()
    }
}

fn faulty(folder: &Path, slots: u64) -> (Rig, Arc<Faults>) {
    let media = FaultyMedia::default();
    let faults = Arc::clone(&media.0);
    let config = config(folder, slots);
    let (tier, recovered) = DiskTier::open_on(Arc::new(media), meta::open_sled, config, GEOMETRY, 0).unwrap();
    (Rig::of(tier, recovered), faults)
}

/// Longer than the first pause of a breaker, and its second.
fn wait_for_another_try() {
    std::thread::sleep(Duration::from_millis(120));
}

/// Changes bytes of a slab as nobody should.
fn poke(folder: &Path, at: u64, change: impl FnOnce(&mut [u8])) {
    let file = OpenOptions::new().read(true).write(true).open(slab_path(folder)).unwrap();
    let mut bytes = vec![0; STRIDE as usize];
    file.read_exact_at(&mut bytes, at).unwrap();
    change(&mut bytes);
    file.write_all_at(&bytes, at).unwrap();
    file.sync_all().unwrap();
}

/// The folder of the index in use.
fn index_of(folder: &Path) -> PathBuf {
    let is_index = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("index-");
    fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).find(is_index).unwrap()
}

fn slot_at(slot: u64) -> u64 {
    4096 + slot * STRIDE
}

#[test]
fn a_flipped_bit_is_a_miss_and_its_slot_is_used_again() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 4);
    rig.fill(0..4);
    // One in a header, one in a payload, one at the payload's end.
    for (n, at) in [(0, 30), (1, 4096), (2, 4096 + BLOCK_BYTES - 1)] {
        poke(folder.path(), slot_at(slot_of(&rig, n)), |bytes| bytes[at] ^= 4);
        assert_eq!(rig.get(n), Err(Miss::Corrupt));
        assert_eq!(rig.get(n), Err(Miss::Absent));
    }
    rig.settle();
    let stats = rig.tier.stats();
    assert_eq!((stats.corrupt, stats.blocks, stats.quarantined), (3, 1, 0));
    assert!(stats.last_error.unwrap().contains("damaged"));
    rig.fill(10..13);
    assert_eq!(rig.resident(0..13), [3, 10, 11, 12]);
    (10..13).for_each(|n| assert_eq!(rig.get(n), Ok(())));
    assert_eq!(rig.tier.stats().bytes, quota(4));
}

#[test]
fn padding_after_a_block_means_nothing() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 1);
    rig.fill([0]);
    poke(folder.path(), slot_at(0), |bytes| bytes[4096 + BLOCK_BYTES] ^= 1);
    assert_eq!(rig.get(0), Ok(()));
}

#[test]
fn a_slot_with_parts_of_two_blocks_is_served_under_neither_name() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 2);
    rig.fill([0]);
    let mut old = Vec::new();
    poke(folder.path(), slot_at(slot_of(&rig, 0)), |bytes| old = bytes.to_vec());
    rig.tier.remove(&name(0));
    rig.settle();
    rig.fill([1]);
    assert_eq!(slot_of(&rig, 1), 0);
    let mut new = Vec::new();
    poke(folder.path(), slot_at(0), |bytes| new = bytes.to_vec());
    drop(rig);
    // What a power cut may leave: any part of the one over the other, header first or last.
    for cut in [4096, 8192, 12_288] {
        for (first, last) in [(&old, &new), (&new, &old)] {
            fs::remove_dir_all(index_of(folder.path())).unwrap();
            let mixed: Vec<u8> = first[..cut].iter().chain(&last[cut..]).copied().collect();
            poke(folder.path(), slot_at(0), |bytes| bytes.copy_from_slice(&mixed));
            let rig = Rig::open(folder.path(), 2);
            for n in [0, 1] {
                assert!(matches!(rig.get(n), Err(Miss::Corrupt | Miss::Absent)), "cut {cut}");
            }
            assert_eq!(rig.resident([0, 1]), [] as [u64; 0]);
        }
    }
}

#[test]
fn slots_that_changed_places_are_served_under_no_name() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 2);
    rig.fill([0, 1]);
    let mut both = [Vec::new(), Vec::new()];
    for (slot, held) in (0..).zip(&mut both) {
        poke(folder.path(), slot_at(slot), |bytes| *held = bytes.to_vec());
    }
    for (slot, held) in (0..).zip(both.iter().rev()) {
        poke(folder.path(), slot_at(slot), |bytes| bytes.copy_from_slice(held));
    }
    assert_eq!((rig.get(0), rig.get(1)), (Err(Miss::Corrupt), Err(Miss::Corrupt)));
}

#[test]
fn a_slab_that_is_cut_loses_what_was_cut_off() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 8);
    rig.fill(0..8);
    let whole = slot_of(&rig, 5);
    let file = OpenOptions::new().write(true).open(slab_path(folder.path())).unwrap();
    // In the middle of the last slot.
    file.set_len(quota(7) + 5000).unwrap();
    assert!(matches!(rig.get(7), Err(Miss::Failed | Miss::Absent)));
    assert_eq!((rig.resident(7..8), rig.tier.stats().quarantined), (vec![], 1));
    drop(rig);
    file.set_len(quota(6) + 5000).unwrap();
    let rig = Rig::open(folder.path(), 8);
    assert_eq!((rig.resident(0..8), rig.recovered.rebuilt), ((0..6).collect(), true));
    assert_eq!((rig.get(5), slot_of(&rig, 5)), (Ok(()), whole));
    assert_eq!(fs::metadata(slab_path(folder.path())).unwrap().len(), quota(6));
    rig.fill(10..12);
    assert!(rig.tier.stats().bytes <= quota(8));
    drop(rig);
    file.set_len(100).unwrap();
    let rig = Rig::open(folder.path(), 8);
    assert!(rig.resident(0..6).is_empty());
    rig.fill(20..28);
    // A slab of one slot had been added.
    (21..28).for_each(|n| assert_eq!(rig.get(n), Ok(())));
}

#[test]
fn a_lost_index_is_made_from_headers() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 600);
    let kept = Retention { priority: 80, until_ms: 90_000, drop: false };
    rig.put_worth(0, kept);
    rig.put_after(2, Some(1));
    rig.settle();
    rig.fill(10..40);
    rig.fill([1]);
    drop(rig);
    fs::remove_dir_all(index_of(folder.path())).unwrap();
    let rig = Rig::open(folder.path(), 600);
    assert_eq!(rig.recovered, Recovered { blocks: 33, rebuilt: true, ..Recovered::default() });
    assert_eq!(rig.tier.retention(&name(0)), Some(kept));
    for n in [0, 1, 2].into_iter().chain(10..40) {
        assert_eq!(rig.get(n), Ok(()));
    }
    drop(rig);
    assert!(!Rig::open(folder.path(), 600).recovered.rebuilt);
}

#[test]
fn an_index_of_garbage_is_moved_aside() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 8);
    rig.fill(0..5);
    drop(rig);
    let index = index_of(folder.path());
    for file in fs::read_dir(&index).unwrap().flatten().filter(|file| file.path().is_file()) {
        let mut bytes = fs::read(file.path()).unwrap();
        bytes.iter_mut().step_by(3).for_each(|byte| *byte = byte.wrapping_mul(31) ^ 0x5a);
        fs::write(file.path(), bytes).unwrap();
    }
    let rig = Rig::open(folder.path(), 8);
    assert_eq!((rig.resident(0..5).len(), rig.recovered.rebuilt), (5, true));
    assert!(!index.exists());
    (0..5).for_each(|n| assert_eq!(rig.get(n), Ok(())));
    drop(rig);
    assert!(!Rig::open(folder.path(), 8).recovered.rebuilt);
}

#[test]
fn an_index_that_disagrees_with_headers_is_not_believed() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 3);
    rig.fill(0..3);
    drop(rig);
    let saved = TempDir::new().unwrap();
    copy(&index_of(folder.path()), &saved.path().join("index-0"));
    let rig = Rig::open(folder.path(), 3);
    rig.fill(10..12);
    drop(rig);
    let index = index_of(folder.path());
    fs::remove_dir_all(&index).unwrap();
    copy(&saved.path().join("index-0"), &index);
    let rig = Rig::open(folder.path(), 3);
    assert!(rig.recovered.rebuilt);
    assert_eq!(rig.resident(0..12), [2, 10, 11]);
    for n in [2, 10, 11] {
        assert_eq!(rig.get(n), Ok(()));
    }
}

/// Copies a folder as it is at the moment.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn what_was_synced_is_there_after_an_end_without_warning() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 50);
    rig.fill(0..30);
    rig.tier.remove(&name(4));
    rig.tier.sync().unwrap();
    assert_eq!(rig.tier.stats().unsynced, 0);
    let after = TempDir::new().unwrap();
    copy(folder.path(), after.path());
    let after = Rig::open(after.path(), 50);
    assert_eq!((after.recovered.rebuilt, after.recovered.blocks), (true, 29));
    assert_eq!(after.get(4), Err(Miss::Absent), "removed is removed");
    (0..30).filter(|n| *n != 4).for_each(|n| assert_eq!(after.get(n), Ok(())));
}

#[test]
fn a_full_disk_makes_a_smaller_cache() {
    let folder = TempDir::new().unwrap();
    let (rig, faults) = faulty(folder.path(), 600);
    faults.create.store(true, SeqCst);
    assert_eq!(rig.put(0), Put::Queued);
    rig.settle();
    let stats = rig.tier.stats();
    assert_eq!((stats.blocks, stats.grow_errors, stats.declined_worth), (0, 1, 1));
    assert!(stats.last_error.unwrap().contains("No space left"));
    faults.create.store(false, SeqCst);
    wait_for_another_try();
    rig.fill(0..256);
    faults.create.store(true, SeqCst);
    wait_for_another_try();
    rig.fill(1000..1300);
    let stats = rig.tier.stats();
    assert_eq!((stats.blocks, stats.bytes), (256, quota(256)), "{stats:?}");
    assert_eq!(rig.get(1299), Ok(()));
    faults.create.store(false, SeqCst);
    std::thread::sleep(Duration::from_millis(400));
    rig.fill(2000..2010);
    assert!(rig.tier.stats().bytes > quota(256), "it grows when there is room again");
}

#[test]
fn writes_that_fail_are_paused_and_tried_again() {
    let folder = TempDir::new().unwrap();
    let (rig, faults) = faulty(folder.path(), 8);
    rig.fill(0..2);
    faults.write.store(true, SeqCst);
    for n in 10..20 {
        rig.put(n);
        rig.settle();
    }
    let stats = rig.tier.stats();
    assert!(stats.writes_paused && stats.write_errors >= 4 && stats.blocks == 2, "{stats:?}");
    assert_eq!((rig.put(20), rig.get(1)), (Put::Declined, Ok(())), "reads go on");
    faults.write.store(false, SeqCst);
    wait_for_another_try();
    rig.fill(30..36);
    assert_eq!(rig.resident(0..36), [0, 1, 30, 31, 32, 33, 34, 35]);
    drop(rig);
    fs::remove_dir_all(index_of(folder.path())).unwrap();
    let rig = Rig::open(folder.path(), 8);
    for n in (0..2).chain(30..36) {
        assert_eq!(rig.get(n), Ok(()));
    }
    (10..20).for_each(|n| assert!(rig.get(n).is_err(), "a write that failed left nothing to serve"));
}

#[test]
fn a_read_that_fails_is_a_miss_and_may_succeed_the_next_time() {
    let folder = TempDir::new().unwrap();
    let (rig, faults) = faulty(folder.path(), 8);
    rig.fill(0..8);
    faults.read.store(true, SeqCst);
    assert_eq!(rig.get(0), Err(Miss::Failed));
    faults.read.store(false, SeqCst);
    assert_eq!(rig.get(0), Ok(()));
    faults.read.store(true, SeqCst);
    assert_eq!((rig.get(1), rig.get(1)), (Err(Miss::Failed), Err(Miss::Failed)));
    assert_eq!((rig.get(1), rig.tier.stats().quarantined), (Err(Miss::Absent), 1), "twice is too often");
    assert_eq!((rig.get(2), rig.get(3)), (Err(Miss::Failed), Err(Miss::Failed)));
    assert_eq!(rig.get(4), Err(Miss::Declined), "the disk is left alone");
    assert!(rig.tier.stats().reads_paused);
    faults.read.store(false, SeqCst);
    wait_for_another_try();
    (2..8).for_each(|n| assert_eq!(rig.get(n), Ok(())));
}

#[test]
fn a_sync_that_fails_is_said_and_tried_again() {
    let folder = TempDir::new().unwrap();
    let (rig, faults) = faulty(folder.path(), 8);
    rig.fill([0]);
    rig.tier.sync().unwrap();
    faults.sync.store(true, SeqCst);
    rig.fill([1]);
    let error = rig.tier.sync().unwrap_err().to_string();
    assert!(error.contains("slab 0"), "{error}");
    assert_eq!(rig.tier.stats().unsynced, 1);
    faults.sync.store(false, SeqCst);
    rig.tier.sync().unwrap();
    assert_eq!(rig.tier.stats().unsynced, 0);
    faults.sync.store(true, SeqCst);
    rig.fill([2]);
    drop(rig);
    assert!(Rig::open(folder.path(), 8).recovered.rebuilt, "an end that could not sync is not clean");
}

#[test]
fn a_tier_without_direct_io_works_and_says_so() {
    struct Buffered;
    impl Media for Buffered {
        fn create(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn SlabFile>> {
            SystemMedia.create(path, bytes)?;
            open_buffered(path)
        }

        fn open(&self, path: &Path) -> io::Result<Arc<dyn SlabFile>> {
            open_buffered(path)
        }
    }
    let folder = TempDir::new().unwrap();
    let config = config(folder.path(), 8);
    let (tier, recovered) =
        DiskTier::open_on(Arc::new(Buffered), meta::open_sled, config, GEOMETRY, 0).unwrap();
    let rig = Rig::of(tier, recovered);
    rig.fill(0..3);
    (0..3).for_each(|n| assert_eq!(rig.get(n), Ok(())));
    assert!(!rig.tier.stats().direct);
}

#[test]
fn an_index_that_fails_costs_the_next_start_a_scan_and_nothing_else() {
    struct Failing;
    impl MetaStore for Failing {
        fn load(&mut self, _: &mut dyn FnMut(Place, Record)) -> Result<Option<Digest>, MetaError> {
            Ok(None)
        }

        fn apply(&mut self, _: &[(Place, Option<Record>)]) -> Result<(), MetaError> {
            Err(MetaError("no space".to_owned()))
        }

        fn mark(&mut self, _: Option<Digest>) -> Result<(), MetaError> {
            Ok(())
        }

        fn flush(&mut self) -> Result<(), MetaError> {
            Ok(())
        }

        fn bytes(&self) -> u64 {
            0
        }
    }
    let folder = TempDir::new().unwrap();
    let open = |open_index: OpenMeta| {
        let media = Arc::new(SystemMedia);
        let (tier, recovered) =
            DiskTier::open_on(media, open_index, config(folder.path(), 8), GEOMETRY, 0).unwrap();
        Rig::of(tier, recovered)
    };
    for open_index in [(|_| Ok(Box::new(Failing) as _)) as OpenMeta, |_| Err(MetaError("none".to_owned()))] {
        let rig = open(open_index);
        rig.tier.flush().unwrap();
        rig.fill(0..3);
        rig.tier.sync().unwrap();
        assert_eq!(rig.get(1), Ok(()));
        let stats = rig.tier.stats();
        assert_eq!((stats.index_errors, stats.blocks), (1, 3), "{stats:?}");
    }
    let rig = open(meta::open_sled);
    assert_eq!((rig.recovered.rebuilt, rig.recovered.blocks), (true, 3));
}

#[test]
fn slabs_of_another_geometry_are_given_up_with_their_space() {
    for other in [
        Geometry { block_bytes: 9_000, ..GEOMETRY },
        Geometry { block_tokens: 32, ..GEOMETRY },
        Geometry { fingerprint: Fingerprint(43), ..GEOMETRY },
    ] {
        let folder = TempDir::new().unwrap();
        let rig = Rig::open(folder.path(), 8);
        rig.fill(0..3);
        drop(rig);
        let (tier, recovered) = DiskTier::open(config(folder.path(), 8), other, 0).unwrap();
        assert_eq!((recovered.blocks, recovered.reclaimed_bytes), (0, quota(8)));
        assert!(!tier.contains(&name(0)) && tier.stats().bytes == 0);
        assert!(!slab_path(folder.path()).exists());
        let rig = Rig::of(tier, recovered);
        rig.fill(0..3);
        assert_eq!(rig.get(1), Ok(()));
    }
}

#[test]
fn slabs_of_another_version_are_given_up_and_other_files_left_alone() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 8);
    rig.fill(0..3);
    drop(rig);
    poke(folder.path(), 0, |bytes| {
        bytes[8] += 1;
        // Magic, version, geometry, number and slots lie before the checksum.
        let crc = crc32fast::hash(&bytes[..40]);
        bytes[40..44].copy_from_slice(&crc.to_le_bytes());
    });
    fs::write(folder.path().join("slab-readme.kv"), "a note").unwrap();
    let rig = Rig::open(folder.path(), 8);
    assert_eq!((rig.recovered.blocks, rig.recovered.reclaimed_bytes), (0, quota(8)));
    assert!(folder.path().join("slab-readme.kv").exists());
}

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    // Nobody may make anything in the latter, the superuser included.
    for path in [file.join("cache"), PathBuf::from("/proc/self/cache")] {
        let error = DiskTier::open(config(&path, 8), GEOMETRY, 0).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, DiskError::Folder { .. }) && text.contains(path.to_str().unwrap()), "{text}");
        assert!(text.contains("may be written"), "{text}");
    }
}

#[test]
fn a_second_tier_in_one_folder_is_refused() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::open(folder.path(), 8);
    rig.fill(0..2);
    let error = DiskTier::open(config(folder.path(), 8), GEOMETRY, 0).unwrap_err();
    assert!(matches!(error, DiskError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(folder.path().to_str().unwrap()), "{error}");
    assert_eq!(rig.get(1), Ok(()));
    drop(rig);
    assert_eq!(Rig::open(folder.path(), 8).recovered.blocks, 2);
}

#[test]
fn a_quota_without_room_for_a_block_is_refused() {
    let folder = TempDir::new().unwrap();
    let config = Config { bytes_max: quota(1) - 1, ..config(folder.path(), 1) };
    let error = DiskTier::open(config, GEOMETRY, 0).unwrap_err().to_string();
    assert!(error.contains("hold no block"), "{error}");
}
