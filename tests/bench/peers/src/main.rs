//! Our prefix index beside `ConcurrentRadixTreeCompressed` of `dynamo-kv-router`: equal traces, blocks and threads, in turns.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the machine's clock")]

mod peer;
#[allow(dead_code, reason = "it prints other benchmarks too")]
#[path = "../../src/table.rs"]
mod table;
#[path = "../../src/index"]
mod index {
    pub(crate) mod corpus;
    pub(crate) mod measure;
    mod recency;
    pub(crate) mod subject;
}

use std::process::Command;

use anyhow::{Context, bail, ensure};
use index::corpus::{Corpus, Source};
use index::measure::{self, Applied, Lookups};
use index::subject::Replay;
use kv::Overlaps;
use table::{Bar, head, median, row};

/// Chosen: an odd number has a middle one.
const ROUNDS: usize = 5;
const WORKERS: [usize; 2] = [64, 1024];

/// What lookups of our index have to reach: millions a CPU-second, and their middle.
struct Bars {
    lookups: Bar,
    us_p50: Bar,
}

fn bars(source: &Source) -> (usize, Bars) {
    match source {
        Source::Lines(_) => (16_384, Bars { lookups: Bar::AtLeast(2.8), us_p50: Bar::None }),
        _ => (65_536, Bars { lookups: Bar::AtLeast(1.6), us_p50: Bar::AtMost(0.6) }),
    }
}

/// Takes `--trace PATH` any number of times; `--memory ours|peer WORKERS` is what it starts itself with.
fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (mut sources, mut memory) = (Vec::new(), None);
    while let Some(argument) = arguments.next() {
        let mut next = || arguments.next().context("an argument is missing");
        match argument.as_str() {
            "--trace" => sources.push(next()?),
            "--memory" => memory = Some((next()?, next()?.parse()?)),
            other => bail!("`{other}` is not --trace PATH"),
        }
    }
    let mut paths: Vec<Option<String>> = sources.into_iter().map(Some).collect();
    if paths.is_empty() {
        paths.push(None);
    }
    for path in &paths {
        match &memory {
            Some((whose, workers)) => println!("{}", bytes(path.as_deref(), whose, *workers)?),
            None => compare(path.as_deref())?,
        }
    }
    Ok(())
}

fn corpus(path: Option<&str>, workers: usize) -> anyhow::Result<(Source, Corpus)> {
    let source = path.map_or(Source::Generated, Source::of_path);
    let corpus = Corpus::new(&source, (workers, bars(&source).0), peer::names)?;
    Ok((source, corpus))
}

/// Bytes that an index adds to this process when all events are applied, a membership.
fn bytes(path: Option<&str>, whose: &str, workers: usize) -> anyhow::Result<f64> {
    let (_, corpus) = corpus(path, workers)?;
    let grown = match whose {
        "ours" => {
            let replay = Replay::new(&corpus, workers);
            let before = resident_bytes()?;
            let index = replay.index();
            replay.apply(&index);
            let grown = resident_bytes()? - before;
            ensure!(index.stats().memberships == corpus.memberships(), "every block is there");
            grown
        }
        _ => {
            let events = peer::events(&corpus);
            let before = resident_bytes()?;
            let mut index = peer::Peer::new()?;
            // One at a time, so that events that were handed over leave no room for the index.
            events.iter().for_each(|event| index.send(event.clone()));
            index.flush();
            resident_bytes()? - before
        }
    };
    Ok(grown / corpus.memberships() as f64)
}

/// Bytes of this process that lie in memory.
fn resident_bytes() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a line VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0)
}

/// The same in a process of its own.
fn bytes_apart(path: Option<&str>, whose: &str, workers: usize) -> anyhow::Result<f64> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--memory", whose, &workers.to_string()]);
    if let Some(path) = path {
        command.args(["--trace", path]);
    }
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "measuring memory of {whose}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

fn compare(path: Option<&str>) -> anyhow::Result<()> {
    let mut p50 = Vec::new();
    for workers in WORKERS {
        let (source, corpus) = corpus(path, workers)?;
        let (stored, removed) = (corpus.stored, corpus.removed);
        head(&format!(
            "Prefix index, {}, {workers} workers: {} requests, {stored} blocks stored, {removed} removed; baseline: \
             ConcurrentRadixTreeCompressed",
            source.name(),
            corpus.requests.len(),
        ));
        p50.push(pairs(&source, &corpus, workers)?);
        let (own, peer) = (bytes_apart(path, "ours", workers)?, bytes_apart(path, "peer", workers)?);
        row("bytes a block of a worker", own, Some(peer), Bar::AtMost(32.0));
    }
    let grown = |at: usize| p50[1][at] / p50[0][at];
    row("us p50 of the larger fleet, of one of the smaller", grown(0), Some(grown(1)), Bar::AtMost(1.3));
    Ok(())
}

/// Measures both in turns, and prints it; the middle of a lookup's microseconds of both.
fn pairs(source: &Source, corpus: &Corpus, workers: usize) -> anyhow::Result<[f64; 2]> {
    let replay = Replay::new(corpus, workers);
    let (events, requests) = (peer::events(corpus), peer::requests(corpus));
    let (own, mut other) = (replay.index(), peer::Peer::new()?);
    replay.apply(&own);
    events.iter().for_each(|event| other.send(event.clone()));
    other.flush();
    let mut overlaps = Overlaps::default();
    let differ = (0..requests.len()).filter(|&at| {
        replay.ask(&own, at, &mut overlaps);
        let mut found: Vec<_> =
            overlaps.iter().map(|found| (u64::from(found.holder.worker), found.blocks)).collect();
        found.sort_unstable();
        found != other.found(&requests[at])
    });
    row("answers that differ", differ.count() as f64, None, Bar::AtMost(0.0));
    let (mut asked, mut applied): (Vec<[Lookups; 2]>, Vec<[Applied; 2]>) = (Vec::new(), Vec::new());
    let operations = corpus.stored + corpus.removed;
    for _ in 0..ROUNDS {
        asked.push([
            measure::lookups(requests.len(), |at| replay.ask(&own, at, &mut overlaps)),
            measure::lookups(requests.len(), |at| other.ask(&requests[at])),
        ]);
        let (own, mut other, events) = (replay.index(), peer::Peer::new()?, events.clone());
        applied.push([
            measure::applied(operations, || replay.apply(&own)),
            measure::applied(operations, || {
                events.into_iter().for_each(|event| other.send(event));
                other.flush();
            }),
        ]);
    }
    let bars = bars(source).1;
    // The bars of lookups are those of the smaller fleet; the larger one is held against it.
    let (lookups, us_p50) =
        if workers == WORKERS[0] { (bars.lookups, bars.us_p50) } else { (Bar::None, Bar::None) };
    let print = |what: &str, figure: &dyn Fn(usize, usize) -> f64, bar: Bar| -> [f64; 2] {
        let all = |of: usize| median((0..ROUNDS).map(|round| figure(round, of)).collect());
        row(what, all(0), Some(all(1)), bar);
        [all(0), all(1)]
    };
    let ratio = |of: &dyn Fn(usize, usize) -> f64| median((0..ROUNDS).map(|r| of(r, 0) / of(r, 1)).collect());
    print("lookups a CPU-second, millions", &|r, of| asked[r][of].per_cpu_s / 1e6, lookups);
    print("lookups a second, millions", &|r, of| asked[r][of].per_s / 1e6, Bar::None);
    row("lookups a CPU-second, times the peer's", ratio(&|r, of| asked[r][of].per_cpu_s), None, Bar::None);
    let middle = print("us a lookup, p50", &|r, of| asked[r][of].us_p50, us_p50);
    print("us a lookup, p99", &|r, of| asked[r][of].us_p99, Bar::None);
    print(
        "blocks changed a CPU-second, millions",
        &|r, of| applied[r][of].per_cpu_s / 1e6,
        Bar::AtLeast(60.0),
    );
    print("blocks changed a second, millions", &|r, of| applied[r][of].per_s / 1e6, Bar::None);
    row(
        "blocks changed a CPU-second, times the peer's",
        ratio(&|r, of| applied[r][of].per_cpu_s),
        None,
        Bar::None,
    );
    Ok(middle)
}
