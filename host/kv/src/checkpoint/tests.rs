use std::collections::BTreeMap;
use std::fs;

use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

mod bounds;
mod crash;
mod faults;

const KEY: u128 = 7;

/// Bounds that nothing meets, and rounds as soon as there is something.
fn config(folder: &Path) -> Config {
    Config { sync_every: Duration::ZERO, ..Config::new(folder) }
}

fn open(folder: &TempDir) -> Checkpoints {
    Checkpoints::open(config(folder.path()), 0).unwrap()
}

fn file(folder: &Path, key: u128) -> PathBuf {
    folder::path(folder, key)
}

/// What is found after the checkpoints were closed and opened again.
fn check(folder: &TempDir, key: u128, tokens: &[u32], ended: bool) {
    let found = open(folder).find(key, 0).expect("it is there");
    assert_eq!((&found.tokens[..], found.ended), (tokens, ended));
}

#[test]
fn what_was_pushed_is_found_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder);
    assert_eq!(checkpoints.find(KEY, 0), None);
    let mut journal = checkpoints.begin(KEY, b"seed 5", 0).unwrap();
    journal.push(&[1, 2]);
    journal.push(&[3]);
    drop(checkpoints);
    assert_eq!(journal.synced(), 3);
    check(&folder, KEY, &[1, 2, 3], false);
    let found = open(&folder).find(KEY, 9).unwrap();
    assert_eq!((found.header, found.created_ms), (b"seed 5".to_vec(), 0));
}

#[test]
fn a_sequence_goes_on_where_it_stopped_and_ends_once() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder);
    let mut journal = checkpoints.begin(KEY, b"", 0).unwrap();
    journal.push(&[1, 2]);
    drop(journal);
    // At once: what was pushed need not be on the disk for the process that pushed it.
    let (found, mut journal) = checkpoints.resume(KEY, 0).unwrap();
    assert_eq!((found.tokens, found.ended), (vec![1, 2], false));
    journal.push(&[3]);
    journal.end();
    let found = checkpoints.find(KEY, 0).unwrap();
    assert_eq!((found.tokens, found.ended), (vec![1, 2, 3], true));
    assert!(matches!(checkpoints.resume(KEY, 0), Err(CheckpointError::Ended { key: KEY })));
    let stats = checkpoints.stats();
    assert_eq!((stats.begun, stats.resumed, stats.ended, stats.tokens), (1, 1, 1, 3));
    assert_eq!((stats.entries, stats.open, stats.stopped, stats.last_error), (1, 0, 0, None));
    assert_eq!(stats.bytes, fs::metadata(file(folder.path(), KEY)).unwrap().len());
    drop(checkpoints);
    check(&folder, KEY, &[1, 2, 3], true);
}

#[test]
fn one_journal_is_open_for_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder);
    let mut journal = checkpoints.begin(KEY, b"", 0).unwrap();
    journal.push(&[4]);
    let busy = checkpoints.begin(KEY, b"", 0).unwrap_err();
    assert_eq!(busy.to_string(), "the sequence 00000000000000000000000000000007 is being written");
    assert!(matches!(checkpoints.resume(KEY, 0), Err(CheckpointError::Busy { key: KEY })));
    let found = checkpoints.find(KEY, 0).expect("an open one is found, too");
    assert_eq!((found.tokens, found.ended), (vec![4], false));
    let _other = checkpoints.begin(KEY + 1, b"", 0).unwrap();
    assert!(matches!(checkpoints.resume(KEY + 2, 0), Err(CheckpointError::Missing { .. })));
}

#[test]
fn beginning_anew_replaces_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder);
    for first in [10, 20] {
        let mut journal = checkpoints.begin(KEY, &[first], 0).unwrap();
        journal.push(&[u32::from(first)]);
        journal.end();
    }
    let found = checkpoints.find(KEY, 0).unwrap();
    assert_eq!((found.header, found.tokens), (vec![20], vec![20]));
    assert_eq!(checkpoints.stats().entries, 1);
}

#[test]
fn a_header_has_a_largest_size() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder);
    let header = vec![1; HEADER_BYTES_MAX + 1];
    drop(checkpoints.begin(KEY, &header[1..], 0).unwrap());
    assert_eq!(checkpoints.find(KEY, 0).unwrap().header, header[1..]);
    let error = checkpoints.begin(KEY, &header, 0).unwrap_err();
    assert_eq!(error.to_string(), "a header of 65537 bytes; at most 65536 are kept");
}

#[test]
fn a_journal_that_outlives_its_checkpoints_keeps_nothing_more() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder);
    let mut journal = checkpoints.begin(KEY, b"", 0).unwrap();
    journal.push(&[1]);
    drop(checkpoints);
    journal.push(&[2]);
    assert!(journal.is_stopped());
    journal.end();
    check(&folder, KEY, &[1], false);
}

#[test]
fn tokens_of_many_sequences_are_synced_together() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { sync_every: Duration::from_secs(60), ..config(folder.path()) };
    let checkpoints = Checkpoints::open(config, 0).unwrap();
    let mut journals: Vec<Journal> = (0..20).map(|key| checkpoints.begin(key, b"", 0).unwrap()).collect();
    for token in 0..100 {
        journals.iter_mut().for_each(|journal| journal.push(&[token]));
    }
    assert!(journals.iter().all(|journal| journal.synced() == 0));
    checkpoints.flush();
    assert!(journals.iter().all(|journal| journal.synced() == 100));
    assert_eq!((checkpoints.stats().rounds, checkpoints.stats().tokens), (1, 2000));
    // One record for all that came at once.
    let bytes = fs::metadata(file(folder.path(), 3)).unwrap().len();
    assert_eq!(bytes, 44 + 9 + 4 + 400);
}

#[derive(Clone, Debug)]
enum Op {
    Begin(u128),
    Resume(u128),
    Push(u128, Vec<u32>),
    Close(u128),
    End(u128),
    Find(u128),
    Restart,
}

fn any_op() -> impl Strategy<Value = Op> {
    let key = 0u128..3;
    prop_oneof![
        key.clone().prop_map(Op::Begin),
        key.clone().prop_map(Op::Resume),
        (key.clone(), vec(any::<u32>(), 0..5)).prop_map(|(key, tokens)| Op::Push(key, tokens)),
        key.clone().prop_map(Op::Close),
        key.clone().prop_map(Op::End),
        key.prop_map(Op::Find),
        Just(Op::Restart),
    ]
}

/// Tokens and end of each key, and the journals that are open.
#[derive(Default)]
struct Model {
    kept: BTreeMap<u128, (Vec<u32>, bool)>,
    open: BTreeMap<u128, Journal>,
}

impl Model {
    fn apply(&mut self, checkpoints: &Checkpoints, op: Op) {
        match op {
            Op::Begin(key) => match checkpoints.begin(key, b"", 0) {
                Ok(journal) => {
                    assert!(self.open.insert(key, journal).is_none());
                    self.kept.insert(key, (Vec::new(), false));
                }
                Err(error) => {
                    assert!(matches!(error, CheckpointError::Busy { .. }) && self.open.contains_key(&key))
                }
            },
            Op::Resume(key) => match checkpoints.resume(key, 0) {
                Ok((found, journal)) => {
                    assert!(self.open.insert(key, journal).is_none());
                    assert_eq!((found.tokens, found.ended), self.kept[&key]);
                }
                Err(CheckpointError::Busy { .. }) => assert!(self.open.contains_key(&key)),
                Err(CheckpointError::Missing { .. }) => assert!(!self.kept.contains_key(&key)),
                Err(CheckpointError::Ended { .. }) => assert!(self.kept[&key].1),
                Err(error) => panic!("{error}"),
            },
            Op::Push(key, tokens) => {
                if let Some(journal) = self.open.get_mut(&key) {
                    journal.push(&tokens);
                    self.kept.get_mut(&key).unwrap().0.extend(tokens);
                }
            }
            Op::Close(key) => drop(self.open.remove(&key)),
            Op::End(key) => {
                if let Some(journal) = self.open.remove(&key) {
                    journal.end();
                    self.kept.get_mut(&key).unwrap().1 = true;
                }
            }
            Op::Find(key) => {
                let found = checkpoints.find(key, 0).map(|found| (found.tokens, found.ended));
                assert_eq!(found, self.kept.get(&key).cloned());
            }
            Op::Restart => unreachable!("the caller has the checkpoints"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the order of calls and restarts, each key has what was pushed under it since it was begun.
    #[test]
    fn checkpoints_match_the_model(ops in vec(any_op(), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let mut checkpoints = open(&folder);
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Restart => {
                    model.open.clear();
                    drop(checkpoints);
                    checkpoints = open(&folder);
                }
                op => model.apply(&checkpoints, op),
            }
        }
        for key in 0..3 {
            model.apply(&checkpoints, Op::Find(key));
        }
        let stats = checkpoints.stats();
        prop_assert_eq!((stats.entries, stats.open), (model.kept.len() as u64, model.open.len() as u64));
    }
}
