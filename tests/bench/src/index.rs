//! The prefix index: lookups, batches of events and memory, on traces or made-up sessions; beside a peer with `--peer`.

pub(crate) mod corpus;
mod measure;
mod recency;
mod subject;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};
use corpus::{Corpus, Source, mix};
use kv::{Overlaps, PrefixIndex};
use subject::Replay;

use crate::table::{Bar, head, median, row};

/// Chosen: an odd number has a middle one.
const ROUNDS: usize = 5;
/// Workers of the smaller fleet and the larger one.
const WORKERS: [usize; 2] = [64, 1024];
/// The part of a fleet's size by which a lookup may get slower.
const GROWTH_MAX: f64 = 1.3;

/// Takes `--trace PATH` any number of times, and `--peer`.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(2);
    let (mut sources, mut has_peer, mut passed) = (Vec::new(), false, Vec::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--trace" => {
                let path = arguments.next().context("--trace takes a path")?;
                sources.push(Source::of_path(&path));
                passed.extend([
                    "--trace".to_owned(),
                    std::fs::canonicalize(path)?.to_string_lossy().into_owned(),
                ]);
            }
            "--peer" => has_peer = true,
            other => bail!("`{other}` is not --trace PATH or --peer"),
        }
    }
    if has_peer {
        return beside_peer(&passed);
    }
    if sources.is_empty() {
        sources.push(Source::Generated);
    }
    sources.iter().try_for_each(alone)
}

/// Runs the package that links both, which has a lock file of its own.
fn beside_peer(arguments: &[String]) -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(folder)
        .args(["run", "--release", "--locked", "--"])
        .args(arguments)
        .status()?;
    ensure!(status.success(), "the benchmark beside the peer ended with {status}");
    Ok(())
}

/// Blocks of one worker's cache, by what is replayed.
pub(crate) fn cache_blocks(source: &Source) -> usize {
    match source {
        Source::Lines(_) => 16_384,
        Source::Conversations(_) | Source::Generated => 65_536,
    }
}

/// Names as a chain of hashes.
fn chain(contents: &[u64]) -> Vec<u64> {
    let mut last = 0u64;
    contents
        .iter()
        .map(|content| {
            last = mix(last.rotate_left(17) ^ content);
            last
        })
        .collect()
}

fn alone(source: &Source) -> anyhow::Result<()> {
    let mut p50 = Vec::new();
    for workers in WORKERS {
        let corpus = Corpus::new(source, (workers, cache_blocks(source)), chain)?;
        let replay = Replay::new(&corpus, workers);
        let index = replay.index();
        replay.apply(&index);
        let bytes = index.stats().bytes as f64 / corpus.memberships() as f64;
        head(&format!(
            "Prefix index, {}, {workers} workers: {} requests, {} blocks stored, {} removed",
            source.name(),
            corpus.requests.len(),
            corpus.stored,
            corpus.removed
        ));
        p50.push(figures(&replay, &index, &corpus));
        row("bytes a block of a worker", bytes, None, Bar::AtMost(32.0));
    }
    row("us of the larger fleet, of one of the smaller", p50[1] / p50[0], None, Bar::AtMost(GROWTH_MAX));
    Ok(())
}

/// Prints what one index does; the middle of a lookup's microseconds.
fn figures(replay: &Replay, index: &PrefixIndex, corpus: &Corpus) -> f64 {
    let mut overlaps = Overlaps::default();
    let (mut asked, mut applied) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        asked.push(measure::lookups(replay.requests.len(), |at| replay.ask(index, at, &mut overlaps)));
        let fresh = replay.index();
        applied.push(measure::applied(corpus.stored + corpus.removed, || replay.apply(&fresh)));
    }
    let of = |figure: fn(&measure::Lookups) -> f64| median(asked.iter().map(figure).collect());
    row("lookups a CPU-second, millions", of(|a| a.per_cpu_s) / 1e6, None, Bar::None);
    row("lookups a second, millions", of(|a| a.per_s) / 1e6, None, Bar::None);
    row("us a lookup, p50", of(|a| a.us_p50), None, Bar::None);
    row("us a lookup, p99", of(|a| a.us_p99), None, Bar::None);
    let of = |figure: fn(&measure::Applied) -> f64| median(applied.iter().map(figure).collect());
    row(
        "blocks stored or removed a CPU-second, millions",
        of(|a| a.per_cpu_s) / 1e6,
        None,
        Bar::AtLeast(60.0),
    );
    row("blocks stored or removed a second, millions", of(|a| a.per_s) / 1e6, None, Bar::None);
    median(asked.iter().map(|a| a.us_p50).collect())
}
