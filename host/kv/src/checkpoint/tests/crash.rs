use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use super::*;

const FOLDER: &str = "KV_CHECKPOINT_CHILD_FOLDER";
const SEQUENCES: u128 = 4;
const ROUNDS: usize = 6;
/// A child that nobody kills ends by itself after so many pushes.
const PUSHES_MAX: u32 = 200_000;

/// Token number `at` of a sequence, as a sampler with a seed would draw it.
fn token(key: u128, at: u32) -> u32 {
    (key as u32 ^ at).wrapping_mul(0x9e37_79b9)
}

fn is_prefix(key: u128, tokens: &[u32]) -> bool {
    (0..).zip(tokens).all(|(at, &drawn)| drawn == token(key, at))
}

/// What the test below starts in a process of its own, and kills.
#[test]
fn a_child_that_writes_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let config = Config { sync_every: Duration::from_millis(1), ..Config::new(folder) };
    let checkpoints = Checkpoints::open(config, 0).unwrap();
    let mut journals: Vec<(u128, u32, Journal)> = (0..SEQUENCES)
        .map(|key| match checkpoints.resume(key, 0) {
            Ok((found, journal)) => (key, found.tokens.len() as u32, journal),
            Err(CheckpointError::Missing { .. }) => (key, 0, checkpoints.begin(key, b"", 0).unwrap()),
            Err(error) => panic!("{error}"),
        })
        .collect();
    let mut out = std::io::stdout();
    for _ in 0..PUSHES_MAX {
        for (key, at, journal) in &mut journals {
            journal.push(&[token(*key, *at)]);
            *at += 1;
            writeln!(out, "synced {key} {}", journal.synced()).unwrap();
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn start(folder: &Path) -> Child {
    let child = "checkpoint::tests::crash::a_child_that_writes_until_it_is_killed";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", child, "--nocapture"]).env(FOLDER, folder);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_killed_process_loses_no_synced_token_and_its_sequences_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut synced = [0; SEQUENCES as usize];
    for round in 0..ROUNDS {
        let mut child = start(folder.path());
        let mut refused = false;
        // Between one and a few hundred rounds of the writer.
        let lines_max = 200 + 700 * round;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        for line in lines.by_ref().filter(|line| line.starts_with("synced")).take(lines_max) {
            take_down(&line, &mut synced);
            if !std::mem::replace(&mut refused, true) {
                let error = Checkpoints::open(config(folder.path()), 0).unwrap_err();
                assert!(matches!(error, CheckpointError::InUse { .. }), "{error}");
            }
        }
        child.kill().unwrap();
        // What it said before it was killed. The last line may be torn.
        lines.filter(|line| line.starts_with("synced")).for_each(|line| take_down(&line, &mut synced));
        child.wait().unwrap();
        let checkpoints = open(&folder);
        for (key, &synced) in (0..).zip(&synced) {
            let found = checkpoints.find(key, 0).expect("it was synced");
            assert!(found.tokens.len() >= synced, "{} of {synced} tokens of {key}", found.tokens.len());
            assert!(is_prefix(key, &found.tokens));
            assert!(!found.ended);
        }
        assert_eq!(checkpoints.stats().bad, 0);
    }
    assert!(synced.iter().all(|&tokens| tokens > 0), "{synced:?}");
}

/// Reads `synced KEY TOKENS`; of a torn line at most less than was said.
fn take_down(line: &str, synced: &mut [usize]) {
    let mut numbers = line.split(' ').skip(1).map_while(|number| number.parse::<usize>().ok());
    if let (Some(key), Some(tokens)) = (numbers.next(), numbers.next()) {
        synced[key] = synced[key].max(tokens);
    }
}
