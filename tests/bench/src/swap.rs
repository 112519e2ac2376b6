//! Swaps of the whole chain under load: what fails, who sees two generations, what it costs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serve::client::Client;

use crate::host::Host;
use crate::http;
use crate::load::{self, Seen};
use crate::table::{Bar, head, median, quantile, row, us};

const TURNS: usize = 5;
const TURN: Duration = Duration::from_secs(4);
const CONNECTIONS: usize = 16;
/// 16 connections, each a request every 20 ms: 800 requests/s.
const PACE: Duration = Duration::from_millis(20);
const SWAP_EVERY: Duration = Duration::from_millis(50);

/// A chain whose scorer checks that the same generation interpreted the request's hints.
fn config(guest: &Path, stamp: u64) -> String {
    format!(
        "{}[chain]\nhints = [\"stamp\"]\nscore = [{{ plugin = \"stamp\" }}, {{ plugin = \"route-prefix-affinity\" }}, {{ plugin = \"route-least-load\" }}]\n[plugins.stamp]\nsource = {guest:?}\nconfig = {{ stamp = {stamp} }}\n",
        http::config()
    )
}

pub(crate) fn run() -> anyhow::Result<()> {
    let guest = crate::host::guests(&["stamp"])?.remove(0);
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("pointsman.toml");
    std::fs::write(&path, config(&guest, 0))?;
    let host = Host::start(&path)?;
    let runtime = load::runtime()?;
    let (mut still, mut swapping) = (Vec::new(), Vec::new());
    let mut swaps = 0;
    drive(&runtime, &host, TURN / 4, None)?;
    for _ in 0..TURNS {
        still.push(drive(&runtime, &host, TURN, None)?);
        let swapper =
            Swapper { file: path.clone(), guest: guest.clone(), admin: host.admin.clone(), first: swaps + 1 };
        let seen = drive(&runtime, &host, TURN, Some(swapper))?;
        swaps += seen.1;
        swapping.push(seen);
    }
    report(&host, &still, &swapping, swaps)
}

struct Swapper {
    file: std::path::PathBuf,
    guest: std::path::PathBuf,
    admin: String,
    first: u64,
}

/// Runs the load, with a thread that swaps if there is one; returns what was seen and how many swaps there were.
fn drive(
    runtime: &tokio::runtime::Runtime,
    host: &Host,
    limit: Duration,
    swapper: Option<Swapper>,
) -> anyhow::Result<(Seen, u64)> {
    let stop = Arc::new(AtomicBool::new(false));
    let swapping = swapper.map(|swapper| {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || swap_until(&swapper, &stop))
    });
    let seen = runtime.block_on(load::run(&host.api, CONNECTIONS, PACE, limit, Arc::clone(&stop)));
    stop.store(true, Ordering::Relaxed);
    let swaps = match swapping {
        Some(thread) => thread.join().map_err(|_| anyhow::anyhow!("the swapper panicked"))??,
        None => 0,
    };
    ensure!(!seen.samples.is_empty(), "no request was answered");
    Ok((seen, swaps))
}

fn swap_until(swapper: &Swapper, stop: &AtomicBool) -> anyhow::Result<u64> {
    let runtime = load::runtime()?;
    let admin = Client::new(format!("http://{}", swapper.admin));
    let mut swaps = 0;
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        // Written beside and renamed: the host watches this file, and must not see half of it.
        let beside = swapper.file.with_extension("new");
        std::fs::write(&beside, config(&swapper.guest, swapper.first + swaps))?;
        std::fs::rename(&beside, &swapper.file)?;
        let reply = runtime.block_on(admin.post("/admin/v1/reload", &serde_json::Value::Null))?;
        ensure!(reply.status.is_success(), "swap refused: {}", reply.json);
        swaps += 1;
        std::thread::sleep(SWAP_EVERY.saturating_sub(begun.elapsed()));
    }
    Ok(swaps)
}

fn report(host: &Host, still: &[(Seen, u64)], swapping: &[(Seen, u64)], swaps: u64) -> anyhow::Result<()> {
    let p = |turn: &(Seen, u64), share| {
        quantile(&mut turn.0.samples.iter().map(|s| us(s.total)).collect::<Vec<_>>(), share)
    };
    let middle = |turns: &[(Seen, u64)], share| median(turns.iter().map(|t| p(t, share)).collect());
    let added = median(still.iter().zip(swapping).map(|(a, b)| p(b, 0.99) - p(a, 0.99)).collect());
    let failed: u64 = still.iter().chain(swapping).map(|t| t.0.failed).sum();
    let requests: usize = swapping.iter().map(|t| t.0.samples.len()).sum();
    let seconds: f64 = swapping.iter().map(|t| t.0.took.as_secs_f64()).sum();
    // The plugin `stamp` abstains where hints and route agree on the generation, and traps where they do not.
    let metrics = host.metrics()?;
    let checked = calls(&metrics, "abstained");
    let mixed = calls(&metrics, "trapped");
    head("Swap of the whole chain under load (baseline: the same load without swaps, in turns)");
    row("swaps", swaps as f64, None, Bar::None);
    row("requests/s during swaps", requests as f64 / seconds, None, Bar::AtLeast(500.0));
    row("failed requests", failed as f64, None, Bar::AtMost(0.0));
    row("requests checked for one generation", checked, None, Bar::AtLeast(requests as f64));
    row("requests that saw two generations", mixed, None, Bar::AtMost(0.0));
    row("whole stream us p50", middle(swapping, 0.5), Some(middle(still, 0.5)), Bar::None);
    row("whole stream us p99", middle(swapping, 0.99), Some(middle(still, 0.99)), Bar::None);
    row("added p99 us, pair by pair", added, None, Bar::AtMost(1000.0));
    Ok(())
}

/// Calls of the plugin `stamp` in `score` with an outcome, over all generations.
fn calls(metrics: &str, outcome: &str) -> f64 {
    let name =
        format!("pointsman_policy_calls_total{{plugin=\"stamp\",slot=\"score\",outcome=\"{outcome}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(f64::NAN)
}
