use super::*;

/// A checkpoint of `tokens` tokens.
fn keep(checkpoints: &Checkpoints, key: u128, tokens: u32, ended: bool) {
    let mut journal = checkpoints.begin(key, b"", key as u64).unwrap();
    journal.push(&(0..tokens).collect::<Vec<_>>());
    match ended {
        true => journal.end(),
        false => drop(journal),
    }
    checkpoints.flush();
}

/// Which of the first ten keys have a file.
fn files(folder: &TempDir) -> Vec<u128> {
    (0..10).filter(|&key| file(folder.path(), key).exists()).collect()
}

/// Which of the first ten keys are there, in the books and in the folder.
fn keys(folder: &TempDir, checkpoints: &Checkpoints) -> Vec<u128> {
    let found: Vec<u128> = (0..10).filter(|&key| checkpoints.find(key, 0).is_some()).collect();
    assert_eq!(found, files(folder));
    assert_eq!(found.len() as u64, checkpoints.stats().entries);
    found
}

#[test]
fn the_oldest_that_ended_leaves_first_then_the_oldest_and_never_an_open_one() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(Config { entries_max: 4, ..config(folder.path()) }, 0).unwrap();
    let _open = checkpoints.begin(0, b"", 0).unwrap();
    keep(&checkpoints, 1, 1, false);
    keep(&checkpoints, 2, 1, true);
    keep(&checkpoints, 3, 1, true);
    for (key, left) in [(4, [0, 1, 3, 4]), (5, [0, 1, 4, 5]), (6, [0, 4, 5, 6]), (7, [0, 5, 6, 7])] {
        keep(&checkpoints, key, 1, false);
        assert_eq!(keys(&folder, &checkpoints), left);
    }
    assert_eq!(checkpoints.stats().evicted, 4);
}

#[test]
fn a_folder_that_is_too_full_is_brought_within_its_bounds_when_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder);
    (0..6).for_each(|key| keep(&checkpoints, key, 1, key % 2 == 0));
    drop(checkpoints);
    fs::write(folder.path().join("notes.txt"), "not ours").unwrap();
    let checkpoints = Checkpoints::open(Config { entries_max: 4, ..config(folder.path()) }, 10).unwrap();
    assert_eq!(keys(&folder, &checkpoints), [1, 3, 4, 5]);
    drop(checkpoints);
    let bytes_max = 2 * fs::metadata(file(folder.path(), 1)).unwrap().len();
    let checkpoints = Checkpoints::open(Config { bytes_max, ..config(folder.path()) }, 10).unwrap();
    assert_eq!(keys(&folder, &checkpoints), [3, 5]);
    assert!(checkpoints.stats().bytes <= bytes_max);
    assert!(folder.path().join("notes.txt").exists());
}

#[test]
fn when_all_are_open_there_is_no_room_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(Config { entries_max: 1, ..config(folder.path()) }, 0).unwrap();
    let journal = checkpoints.begin(0, b"", 0).unwrap();
    let error = checkpoints.begin(1, b"", 0).unwrap_err();
    assert_eq!(error.to_string(), "no room for a checkpoint: 1 of 1 are open, with 44 of 268435456 bytes");
    journal.end();
    checkpoints.flush();
    let _journal = checkpoints.begin(1, b"", 0).unwrap();
    assert_eq!(keys(&folder, &checkpoints), [1]);
}

#[test]
fn bytes_are_bounded_while_sequences_grow() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { bytes_max: 4000, ..config(folder.path()) };
    let checkpoints = Checkpoints::open(config, 0).unwrap();
    keep(&checkpoints, 1, 300, true);
    let mut journal = checkpoints.begin(2, b"", 2).unwrap();
    journal.push(&[5; 400]);
    checkpoints.flush();
    assert_eq!(keys(&folder, &checkpoints), [1, 2]);
    journal.push(&[5; 400]);
    checkpoints.flush();
    assert_eq!((keys(&folder, &checkpoints), journal.synced()), (vec![2], 800), "what has ended makes room");
    keep(&checkpoints, 3, 1, true);
    journal.push(&[5; 400]);
    checkpoints.flush();
    assert!(journal.is_stopped(), "no room can be made");
    assert_eq!(keys(&folder, &checkpoints), [2, 3], "and none is made in vain");
    journal.push(&[6]);
    journal.end();
    let found = checkpoints.find(2, 2).unwrap();
    assert_eq!((found.tokens, found.ended), (vec![5; 800], false));
    let stats = checkpoints.stats();
    assert_eq!((stats.stopped, stats.evicted, stats.errors), (1, 1, 0));
    assert_eq!(stats.last_error.as_deref(), Some("open sequences have more than bytes_max = 4000 bytes"));
}

#[test]
fn a_sequence_longer_than_its_bound_keeps_what_fits() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(Config { tokens_max: 3, ..config(folder.path()) }, 0).unwrap();
    let mut journal = checkpoints.begin(KEY, b"", 0).unwrap();
    journal.push(&[1, 2]);
    journal.push(&[3, 4]);
    journal.push(&[3]);
    journal.end();
    let found = checkpoints.find(KEY, 0).unwrap();
    assert_eq!((found.tokens, found.ended), (vec![1, 2], false));
    assert_eq!(checkpoints.stats().stopped, 1);
}

#[test]
fn a_checkpoint_expires_unless_it_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { ttl_ms: 100, ..config(folder.path()) };
    let checkpoints = Checkpoints::open(config.clone(), 0).unwrap();
    drop(checkpoints.begin(1, b"", 0).unwrap());
    let open = checkpoints.begin(2, b"", 0).unwrap();
    drop(checkpoints.begin(3, b"", 50).unwrap());
    checkpoints.flush();
    assert!(checkpoints.find(1, 99).is_some());
    assert!(checkpoints.find(1, 100).is_none(), "its time is over");
    assert!(checkpoints.find(2, 100).is_some(), "it is open");
    drop(open);
    assert!(matches!(checkpoints.resume(2, 100), Err(CheckpointError::Missing { .. })));
    checkpoints.expire(150);
    assert_eq!(keys(&folder, &checkpoints), [] as [u128; 0]);
    assert_eq!(checkpoints.stats().expired, 3);

    drop(checkpoints.begin(4, b"", 200).unwrap());
    drop(checkpoints);
    let checkpoints = Checkpoints::open(config, 300).unwrap();
    assert_eq!((keys(&folder, &checkpoints).len(), checkpoints.stats().expired), (0, 1));
}

#[test]
fn a_clock_that_jumps_back_neither_expires_nor_keeps_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { ttl_ms: 100, entries_max: 2, ..config(folder.path()) };
    let checkpoints = Checkpoints::open(config.clone(), 1_000_000).unwrap();
    drop(checkpoints.begin(1, b"", 1_000_000).unwrap());
    assert!(checkpoints.find(1, 1000).is_some());
    drop(checkpoints.begin(2, b"", 1050).unwrap());
    checkpoints.flush();
    drop(checkpoints.begin(3, b"", 1060).unwrap());
    assert_eq!(files(&folder), [2, 3], "the first that came is the oldest");
    assert!(checkpoints.find(2, 1149).is_some());
    assert!(checkpoints.find(2, 1150).is_none());
    checkpoints.flush();
    drop(checkpoints.begin(4, b"", 5000).unwrap());
    drop(checkpoints);
    let checkpoints = Checkpoints::open(config, 10).unwrap();
    assert_eq!(files(&folder), [4]);
    assert!(checkpoints.find(4, 110).is_none(), "it was found at 10");
    drop(checkpoints.begin(5, b"", 1_000_000).unwrap());
    checkpoints.flush();
    assert!(checkpoints.find(5, 200).is_some());
    assert!(checkpoints.find(5, 299).is_some());
    assert!(checkpoints.find(5, 300).is_none(), "seen at 200, it is taken to be from then");
}
