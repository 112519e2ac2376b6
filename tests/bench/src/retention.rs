//! What retention is worth: hits of agents' sessions at equal capacity, by least recently used, by
//! `retain-expected-reuse`, by Belady's optimum and without any bound, all over the pool of the host.

mod replay;

use std::path::Path;

use trace::Agents;

use crate::table::{Bar, head, row};
use replay::{Ranking, Room};

/// Tokens of the cache.
const CAPACITIES: [u32; 4] = [250_000, 500_000, 1_000_000, 2_000_000];
/// Share of the way from least recently used to the optimum.
const CLOSED_MIN: f64 = 60.0;

/// Replays the trace of `--trace PATH`, or sessions that are made here.
pub(crate) fn run() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let trace = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Agents::default().trace()?,
        ["--trace", path] => trace::read(Path::new(path))?,
        _ => anyhow::bail!("usage: bench retention [--trace PATH]"),
    };
    let (requests, sessions) = (trace.requests.len(), trace.sessions.len());
    head(&format!("Prompt tokens found in the cache, %: {requests} requests of {sessions} sessions"));
    // A policy cannot learn of sessions and endings what the trace does not tell.
    let is_told = trace.sessions.iter().all(|session| session.is_named);
    let closed_bar = if is_told { Bar::AtLeast(CLOSED_MIN) } else { Bar::None };
    row("without any bound", 100.0 * trace.ceiling(), None, Bar::None);
    for capacity in CAPACITIES {
        let blocks = capacity / trace.block_tokens;
        let hits = |ranking, room| 100.0 * replay::replay(&trace, blocks, ranking, room);
        let lru = hits(Ranking::LeastRecentlyUsed, Room::Beside);
        let ours = hits(Ranking::ExpectedReuse, Room::Beside);
        let within = hits(Ranking::ExpectedReuse, Room::Within);
        let belady = 100.0 * replay::belady(&trace, blocks);
        let closed = |ours: f64| 100.0 * (ours - lru) / (belady - lru);
        let tokens = f64::from(capacity) / 1e6;
        let name = |what: &str| format!("{tokens} M tokens: {what}");
        row(&name("least recently used"), lru, None, Bar::None);
        row(&name("retain-expected-reuse"), ours, Some(lru), Bar::AtLeast(lru));
        row(&name("Belady's optimum"), belady, Some(lru), Bar::None);
        row(&name("share of the gap closed"), closed(ours), None, closed_bar);
        row(&name("the same, running turns within"), closed(within), None, Bar::None);
    }
    Ok(())
}
