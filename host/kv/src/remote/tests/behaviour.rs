//! What the tier promises, over stores that work.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

fn check_round_trip(rig: &Rig) {
    assert_eq!(rig.fetched([1, 2, 3]), (0, End::Miss));
    assert_eq!(rig.remote.known(BlockName(1)), Known::Absent);
    rig.put_all([1, 2, 4]);
    assert_eq!(rig.remote.known(BlockName(1)), Known::Present);
    // Block 3 is known to be absent: the store is not asked for it.
    rig.pass(5_000);
    assert_eq!(rig.fetched([1, 2, 3, 4]), (2, End::Miss));
    assert_eq!(rig.fetched([1, 2, 3, 4]), (2, End::All));
    assert_eq!(rig.fetched([4]), (1, End::All));
    assert_eq!(rig.fetch([3]).err(), Some(Outcome::Needless));
    let stats = rig.remote.stats();
    assert_eq!((stats.hits, stats.misses, stats.puts, stats.corrupt), (5, 2, 3, 0), "{stats:?}");
    assert_eq!(stats.bytes_in, 5 * BLOCK_BYTES as u64);
    assert_eq!(stats.bytes_out, 3 * BLOCK_BYTES as u64);
    assert!(stats.read_us_ewma > 0 && stats.write_us_sum > 0);
    assert_eq!(rig.arena.free(), rig.arena.slots(), "no slot is lost");
}

/// Another host with the same store.
fn check_shared(first: &Rig, second: &Rig) {
    first.put_all(10..20);
    assert_eq!(second.fetched(10..25), (10, End::Miss));
    // The second host did not know; the store did, where it can be asked for that.
    let third = second.put(10);
    assert_eq!(third, Outcome::Needless);
    second.remote.forget();
    assert_eq!(second.remote.known(BlockName(10)), Known::Unknown);
    second.put_all([10]);
    let stats = second.remote.stats();
    assert_eq!(stats.puts + stats.puts_present, 1, "{stats:?}");
    assert_eq!(first.fetched(10..20), (10, End::All));
}

pub(super) fn check_store(url: &str) {
    check_round_trip(&Rig::at(url));
    check_shared(&Rig::at(url), &Rig::at(url));
}

fn folder() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let url = format!("file://{}", folder.path().display());
    (folder, url)
}

/// The only value in a folder.
fn value(folder: &Path) -> PathBuf {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("it is a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.pop().expect("there is one")
}

#[test]
fn blocks_come_back_as_they_were_put() {
    check_round_trip(&Rig::at("memory:"));
}

#[test]
fn blocks_in_a_folder_are_shared_by_hosts() {
    let (_folder, url) = folder();
    check_store(&url);
}

#[test]
fn a_folder_holds_whole_values_under_their_names_alone() {
    let (folder, url) = folder();
    Rig::at(&url).put_all([0xabc]);
    let path = value(folder.path());
    let expected = "kv/v1/000000000000feed/10000/00/00000000000000000000000000000abc";
    assert_eq!(path.strip_prefix(folder.path()).expect("it lies in it"), Path::new(expected));
    assert_eq!(fs::metadata(path).expect("it is there").len(), BLOCK_BYTES as u64 + 64);
}

#[test]
fn a_value_that_is_not_the_block_is_a_miss_and_is_replaced() {
    let (folder, url) = folder();
    let rig = Rig::at(&url);
    let changes: [fn(&mut Vec<u8>); 6] = [
        |value| value[5_000] ^= 1,
        |value| value[0] = 0,
        |value| value.truncate(9_000),
        |value| value.truncate(10),
        |value| value.clear(),
        |value| value.push(0),
    ];
    rig.put_all([5]);
    let path = value(folder.path());
    let whole = fs::read(&path).expect("it is there");
    for (at, change) in (1..).zip(changes) {
        let mut changed = whole.clone();
        change(&mut changed);
        fs::write(&path, changed).expect("it can be written");
        rig.remote.forget();
        assert_eq!(rig.fetched([5]), (0, End::Corrupt), "change {at}");
        assert_eq!(rig.remote.known(BlockName(5)), Known::Absent);
        assert_eq!(rig.remote.stats().corrupt, at);
        rig.put_all([5]);
        assert_eq!(fs::read(&path).expect("it is there"), whole, "change {at}");
        assert_eq!(rig.fetched([5]), (1, End::All));
    }
}

#[test]
fn a_block_of_another_model_is_not_there() {
    let (folder, url) = folder();
    Rig::at(&url).put_all([5]);
    let config = Config { url, ..Config::default() };
    let other = Rig::with(&config, Geometry { fingerprint: Fingerprint(1), ..GEOMETRY });
    assert_eq!(other.fetched([5]), (0, End::Miss));
    // Even when somebody puts it where it would be.
    let path = value(folder.path());
    let there = PathBuf::from(path.display().to_string().replace("000000000000feed", "0000000000000001"));
    fs::create_dir_all(there.parent().expect("it lies in a folder")).expect("it can be made");
    fs::copy(path, there).expect("it can be copied");
    other.remote.forget();
    assert_eq!(other.fetched([5]), (0, End::Corrupt));
}

#[test]
fn a_prompt_that_nobody_stored_costs_one_request_and_then_none() {
    let rig = Rig::at("memory:");
    assert_eq!(rig.fetched(0..40), (0, End::Miss));
    assert_eq!(rig.remote.stats().misses, 1);
    assert_eq!(rig.fetch(0..40).err(), Some(Outcome::Needless));
    assert_eq!((rig.remote.stats().misses, rig.remote.stats().misses_unasked), (1, 1));
    // It is asked again when somebody may have stored it.
    rig.pass(5_000);
    assert_eq!(rig.fetched(0..40), (0, End::Miss));
    assert_eq!(rig.remote.stats().misses, 2);
}

#[test]
fn a_block_that_is_there_is_not_written_again_until_that_is_forgotten() {
    let rig = Rig::at("memory:");
    rig.put_all([1]);
    assert_eq!(rig.put(1), Outcome::Needless);
    rig.pass(60_000);
    rig.put_all([1]);
    assert_eq!(rig.remote.stats().puts + rig.remote.stats().puts_present, 2);
}

#[test]
fn fewer_slots_than_names_fetch_fewer_blocks() {
    let rig = Rig::at("memory:");
    rig.put_all(1..5);
    let names: Vec<BlockName> = (1..5).map(BlockName).collect();
    let slots: Vec<SlotMut> = (0..2).filter_map(|_| rig.arena.take()).collect();
    let (told, done) = mpsc::channel();
    let outcome = rig.remote.fetch(&names, slots, move |fetched| told.send(fetched).expect("the test waits"));
    assert_eq!(outcome, Outcome::Accepted);
    let fetched = done.recv_timeout(PATIENCE).expect("it ends");
    assert_eq!((fetched.blocks.len(), fetched.end), (2, End::All));
    assert_eq!(rig.remote.fetch(&names, Vec::new(), |_| ()), Outcome::Needless);
}

#[test]
fn what_a_write_that_was_given_up_left_is_removed_at_a_start() {
    let (folder, url) = folder();
    drop(Rig::at(&url));
    let (old, young) = (folder.path().join(".unfinished/old"), folder.path().join(".unfinished/young"));
    fs::write(&young, "half").expect("it can be written");
    let file = fs::File::create(&old).expect("it can be made");
    let long_ago =
        file.metadata().and_then(|file| file.modified()).expect("it is there") - Duration::from_secs(7_200);
    file.set_modified(long_ago).expect("it is ours");
    let _rig = Rig::at(&url);
    for _ in 0..600 {
        if !old.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!old.exists() && young.exists());
}

#[test]
fn a_folder_that_cannot_be_made_is_said_at_once() {
    let file = tempfile::NamedTempFile::new().expect("there is a place for temporary files");
    let config = Config { url: format!("file://{}/kv", file.path().display()), ..Config::default() };
    let error = Remote::open(&config, GEOMETRY, Arc::new(|| Duration::ZERO), 0).expect_err("it is no folder");
    assert!(matches!(error, RemoteError::Store(_)), "{error:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever was put, a fetch gives the leading blocks that were, and no slot is lost.
    #[test]
    fn a_fetch_gives_the_leading_blocks_that_were_put(
        there in proptest::collection::vec(any::<bool>(), 1..24), in_flight in 1usize..6, forget: bool,
    ) {
        let config = Config { fetch_in_flight_max: in_flight, in_flight_max: 4, ..Config::default() };
        let rig = Rig::new(&config);
        let names = || (0u128..).zip(&there);
        rig.put_all(names().filter(|(_, there)| **there).map(|(name, _)| name));
        if forget {
            rig.remote.forget();
        }
        let expected = there.iter().take_while(|there| **there).count();
        match rig.fetch(names().map(|(name, _)| name)) {
            Ok(fetched) => prop_assert_eq!(fetched.blocks.len(), expected),
            Err(outcome) => prop_assert_eq!((outcome, expected), (Outcome::Needless, 0)),
        }
        prop_assert_eq!(rig.arena.free(), rig.arena.slots());
    }
}
