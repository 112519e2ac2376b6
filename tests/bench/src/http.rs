//! The frontend alone: parse, template, tokenise, route, stream; the device costs nothing.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::host::Host;
use crate::load::{self, Seen};
use crate::peers::{self, Peer};
use crate::table::{Bar, head, median, quantile, row, us};
use crate::turns;

/// Chosen: an odd number of turns has a middle one.
const TURNS: usize = 5;
const TURN: Duration = Duration::from_secs(3);

/// A host whose device is free of cost, and quiet logs.
pub(crate) fn config() -> &'static str {
    "[listen]\napi = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[engine]\ndevice = \"sim\"\n[telemetry]\nlog = \"warn\"\n"
}

struct Turn {
    per_second: f64,
    cpu_us: f64,
    ttft_us_p50: f64,
    ttft_us_p99: f64,
    total_us_p50: f64,
}

/// With `--peer NAME=URL[,PID...]`, as often as there are peers, we and they are measured in turns; without, we alone.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut peers = Vec::new();
    let mut args = std::env::args().skip(2);
    while let Some(arg) = args.next() {
        anyhow::ensure!(arg == "--peer", "`{arg}` is unknown; there is --peer NAME=URL[,PID...]");
        peers.push(Peer::parse(&args.next().unwrap_or_default())?);
    }
    if peers.is_empty() { alone() } else { peers::run(peers) }
}

fn alone() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("pointsman.toml");
    std::fs::write(&path, config())?;
    let (host, bare) = (Host::start(&path)?, Host::bare()?);
    let runtime = load::runtime()?;
    let never = Arc::new(AtomicBool::new(false));
    let drive = |host: &Host, connections, limit| {
        runtime.block_on(load::run(&host.api, connections, Duration::ZERO, limit, Arc::clone(&never)))
    };
    drive(&host, 16, Duration::from_secs(1));
    let counts = [1, 16, 64];
    let mut turns: Vec<Vec<Turn>> = counts.iter().map(|_| Vec::new()).collect();
    let mut nothing: Vec<Vec<f64>> = counts.iter().map(|_| Vec::new()).collect();
    for _ in 0..TURNS {
        for ((of_count, of_nothing), &connections) in turns.iter_mut().zip(&mut nothing).zip(&counts) {
            let before = host.cpu()?;
            let seen = drive(&host, connections, TURN);
            anyhow::ensure!(seen.failed == 0, "{} requests failed", seen.failed);
            of_count.push(turn(&seen, host.cpu()? - before));
            let before = bare.cpu()?;
            let seen = drive(&bare, connections, TURN / 3);
            of_nothing.push(turn(&seen, bare.cpu()? - before).cpu_us);
        }
    }
    head("HTTP frontend: 200-word prompt, 16 streamed tokens, keep-alive, simulated device of no cost");
    println!("(baselines: Dynamo 1.6.1 with KV routing, measured elsewhere on the same kind of machine)");
    for ((of_count, of_nothing), connections) in turns.iter().zip(nothing).zip(counts) {
        let value = |field: fn(&Turn) -> f64| median(of_count.iter().map(field).collect());
        let name = |what: &str| format!("{what}, {connections} connections");
        let peer = if connections == 64 { (Some(535.0), Some(1175.0)) } else { (None, None) };
        row(&name("CPU us a request"), value(|t| t.cpu_us), peer.0, Bar::AtMost(150.0));
        row(&name("the same of a server that does nothing"), median(of_nothing), None, Bar::None);
        row(&name("requests/s"), value(|t| t.per_second), peer.1, Bar::None);
        let bar = if connections == 1 { Bar::AtMost(300.0) } else { Bar::None };
        row(&name("TTFT us p50"), value(|t| t.ttft_us_p50), None, bar);
        row(&name("TTFT us p99"), value(|t| t.ttft_us_p99), None, Bar::None);
        row(&name("whole stream us p50"), value(|t| t.total_us_p50), None, Bar::None);
    }
    row("resident memory, MiB", host.rss_mib()?, Some(180.0), Bar::AtMost(40.0));
    drop((host, bare));
    turns::run()
}

fn turn(seen: &Seen, cpu: Duration) -> Turn {
    let mut ttft: Vec<f64> = seen.samples.iter().map(|s| us(s.ttft)).collect();
    let mut total: Vec<f64> = seen.samples.iter().map(|s| us(s.total)).collect();
    let requests = seen.samples.len() as f64;
    Turn {
        per_second: requests / seen.took.as_secs_f64(),
        cpu_us: us(cpu) / requests,
        ttft_us_p50: quantile(&mut ttft, 0.5),
        ttft_us_p99: quantile(&mut ttft, 0.99),
        total_us_p50: quantile(&mut total, 0.5),
    }
}
