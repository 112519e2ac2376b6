//! Tiers of the KV cache: what they cost beside the memory and the disk themselves, and what they save a prompt.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kv::disk::{self, DiskTier, Put, Urgency};
use kv::{Arena, BlockName, BlockPool, Fingerprint, Geometry, Retention, Slot};
use serde_json::{Value, json};
use serve::client::Client;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::host::{self, Host};
use crate::load;
use crate::table::{Bar, head, median, row, us};

/// Chosen: an odd number has a middle one.
const ROUNDS: usize = 5;
const MIB: usize = 1 << 20;

pub(crate) fn run() -> anyhow::Result<()> {
    // The folder for temporary files may be memory.
    let folder = tempfile::tempdir_in(std::env::current_dir()?)?;
    for block_bytes in [MIB / 2, MIB] {
        disk_speed(folder.path(), block_bytes)?;
    }
    books()?;
    restored(folder.path())?;
    stalls(folder.path())
}

/// Blocks of one direction of one round.
const DISK_BLOCKS: u64 = 256;

fn disk_speed(folder: &Path, block_bytes: usize) -> anyhow::Result<()> {
    head(&format!(
        "Disk tier, blocks of {} KiB, MiB/s; baseline: the same file, O_DIRECT, block by block",
        block_bytes >> 10
    ));
    let geometry = Geometry { block_bytes, block_tokens: 16, fingerprint: Fingerprint(1) };
    let (mut put, mut get, mut raw_put, mut raw_get) = (vec![], vec![], vec![], vec![]);
    let arena = Arena::new(DISK_BLOCKS as u32 * 2, block_bytes)?;
    for round in 0..ROUNDS as u64 {
        let path = folder.join(format!("raw-{round}"));
        // Once before the clock runs: what is measured is writing over what is there, as a tier does that is full.
        raw(&path, block_bytes, true)?;
        raw_put.push(raw(&path, block_bytes, true)?);
        let own = folder.join(format!("tier-{round}"));
        let config = disk::Config { queue_max: DISK_BLOCKS as usize, ..disk::Config::new(&own, 2 << 30) };
        let (tier, _) = DiskTier::open(config, geometry, 0)?;
        put_all(&tier, &arena, block_bytes)?;
        for n in 0..DISK_BLOCKS {
            tier.remove(&name(n));
        }
        tier.sync()?;
        put.push(put_all(&tier, &arena, block_bytes)?);
        raw_get.push(raw(&path, block_bytes, false)?);
        get.push(get_all(&tier, &arena, block_bytes)?);
        drop(tier);
        std::fs::remove_file(&path)?;
        std::fs::remove_dir_all(&own)?;
    }
    let share = |own: &[f64], raw: &[f64]| median(own.iter().zip(raw).map(|(own, raw)| own / raw).collect());
    let (put_share, get_share) = (share(&put, &raw_put), share(&get, &raw_get));
    row("put and sync", median(put), Some(median(raw_put)), Bar::None);
    row("get", median(get), Some(median(raw_get)), Bar::None);
    row("share of the raw speed, put", put_share, None, Bar::AtLeast(0.8));
    row("share of the raw speed, get", get_share, None, Bar::AtLeast(0.8));
    Ok(())
}

fn name(n: u64) -> BlockName {
    BlockName(u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64 | u128::from(n + 1))
}

fn rate(blocks: u64, block_bytes: usize, took: Duration) -> f64 {
    blocks as f64 * block_bytes as f64 / MIB as f64 / took.as_secs_f64()
}

fn put_all(tier: &DiskTier, arena: &Arena, block_bytes: usize) -> anyhow::Result<f64> {
    let mut slots = Vec::new();
    for n in 0..DISK_BLOCKS {
        let mut slot = arena.take().context("a slot is free")?;
        slot.fill(n as u8 + 1);
        slots.push(slot.freeze());
    }
    let begun = Instant::now();
    for (n, slot) in (0..DISK_BLOCKS).zip(slots) {
        let block =
            disk::Block { name: name(n), parent: n.checked_sub(1).map(name), retention: Retention::ORDINARY };
        ensure!(tier.put(block, slot) == Put::Queued, "a block is taken");
    }
    tier.sync()?;
    Ok(rate(DISK_BLOCKS, block_bytes, begun.elapsed()))
}

fn get_all(tier: &DiskTier, arena: &Arena, block_bytes: usize) -> anyhow::Result<f64> {
    let (done, came) = channel();
    let begun = Instant::now();
    for n in 0..DISK_BLOCKS {
        let done = done.clone();
        let slot = arena.take().context("a slot is free")?;
        tier.get(&name(n), slot, Urgency::Demand, Box::new(move |block| drop(done.send((n, block)))));
    }
    let mut blocks: Vec<Slot> = Vec::new();
    for _ in 0..DISK_BLOCKS {
        let (n, block) = came.recv()?;
        let block = block.map_err(|miss| anyhow::anyhow!("block {n}: {miss}"))?;
        ensure!(block[block_bytes - 1] == n as u8 + 1, "a block is what was put");
        blocks.push(block);
    }
    Ok(rate(DISK_BLOCKS, block_bytes, begun.elapsed()))
}

/// MiB a second of a file alone, by as many threads as the tier has.
fn raw(path: &Path, block_bytes: usize, write: bool) -> anyhow::Result<f64> {
    const THREADS: u64 = 4;
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(direct)
        .open(path)?;
    if write {
        rustix::fs::fallocate(
            &file,
            rustix::fs::FallocateFlags::empty(),
            0,
            DISK_BLOCKS * block_bytes as u64,
        )?;
    }
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let move_some = |first: u64| -> anyhow::Result<()> {
            // Aligned as direct I/O wants it.
            let mut memory = Arena::new(1, block_bytes)?.take().context("a slot is free")?;
            for n in (first..DISK_BLOCKS).step_by(THREADS as usize) {
                let at = n * block_bytes as u64;
                match write {
                    true => file.write_all_at(memory.padded_mut(), at)?,
                    false => file.read_exact_at(memory.padded_mut(), at)?,
                }
            }
            Ok(())
        };
        let threads: Vec<_> = (0..THREADS).map(|first| scope.spawn(move || move_some(first))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a thread of the benchmark"))
    })?;
    if write {
        file.sync_data()?;
    }
    Ok(rate(DISK_BLOCKS, block_bytes, begun.elapsed()))
}

/// Bookkeeping of ten million blocks, in chains as prompts have them.
fn books() -> anyhow::Result<()> {
    const BLOCKS: u32 = 10_000_000;
    const CHAIN: u32 = 100;
    head("Bookkeeping of ten million blocks, in prompts of 100");
    let rss_bytes = || anyhow::Ok(host::rss_mib(std::process::id())? * MIB as f64);
    let before = rss_bytes()?;
    let mut pool = BlockPool::new(BLOCKS, 16);
    let mut times = [0.0; 4];
    let chain = |first: u32| -> Vec<BlockName> { (first..first + CHAIN).map(|n| name(n.into())).collect() };
    for first in (0..BLOCKS).step_by(CHAIN as usize) {
        let names = chain(first);
        let begun = Instant::now();
        let pages = pool.allocate(CHAIN)?;
        for (at, page) in pages.iter().enumerate() {
            pool.seal(*page, names[at], at.checked_sub(1).map(|up| names[up]));
        }
        times[0] += begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        pool.release(&pages);
        times[1] += begun.elapsed().as_secs_f64();
        pool.drain_events().for_each(drop);
    }
    let bytes = (rss_bytes()? - before) / f64::from(BLOCKS);
    for first in (0..BLOCKS).step_by(CHAIN as usize) {
        let names = chain((first.wrapping_mul(7919)) % (BLOCKS / CHAIN) * CHAIN);
        let begun = Instant::now();
        let pages = pool.pin_prefix(&names);
        pool.release(&pages[pages.len().saturating_sub(1)..]);
        times[2] += begun.elapsed().as_secs_f64();
    }
    for first in (BLOCKS..BLOCKS + BLOCKS / 4).step_by(CHAIN as usize) {
        let names = chain(first);
        let begun = Instant::now();
        let pages = pool.allocate(CHAIN)?;
        times[3] += begun.elapsed().as_secs_f64();
        for (at, page) in pages.iter().enumerate() {
            pool.seal(*page, names[at], at.checked_sub(1).map(|up| names[up]));
        }
        pool.release(&pages);
        pool.drain_events().for_each(drop);
    }
    let ns = |seconds: f64, blocks: u32| seconds * 1e9 / f64::from(blocks);
    row("bytes a block", bytes, None, Bar::AtMost(150.0));
    row("ns a block, allocate and seal", ns(times[0], BLOCKS), None, Bar::AtMost(600.0));
    row("ns a block, give back", ns(times[1], BLOCKS), None, Bar::AtMost(300.0));
    row("ns a block, find, pin and give back", ns(times[2], BLOCKS), None, Bar::AtMost(300.0));
    row("ns a block, allocate by evicting", ns(times[3], BLOCKS / 4), None, Bar::AtMost(300.0));
    Ok(())
}

/// About four thousand tokens of the embedded model.
fn long(turn: u64) -> String {
    (0..4).map(|part| load::prompt(turn * 4 + part)).collect::<Vec<_>>().join(". ")
}

fn request(turn: u64) -> Vec<u8> {
    let body = json!({ "model": "tiny-agent", "messages": [{ "role": "user", "content": long(turn) }], "max_tokens": 1,
        "temperature": 0.0, "stream": true });
    load::post("/v1/chat/completions", &body.to_string())
}

fn start(folder: &Path, name: &str, more: &str) -> anyhow::Result<Host> {
    let path: PathBuf = folder.join(format!("{name}.toml"));
    let text = format!(
        "[listen]\napi = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[telemetry]\nlog = \"warn\"\n[engine]\nworkers = 1\n{more}"
    );
    std::fs::write(&path, text)?;
    Host::start(&path)
}

fn post(runtime: &Runtime, host: &Host, path: &str, body: &Value) -> anyhow::Result<Value> {
    let client = Client::new(format!("http://{}", host.admin));
    let reply = runtime.block_on(client.post(path, body))?;
    ensure!(reply.status == 200, "{path}: {}", reply.json);
    Ok(reply.json)
}

/// Time to the first token of a long prompt: computed, restored from memory of the host, restored from disk.
fn restored(folder: &Path) -> anyhow::Result<()> {
    let runtime = load::runtime()?;
    let more = "[kv.host]\nmemory_mib = 256\n[kv.disk]\nfolder = \"blocks\"\nsync_ms = 5\n";
    let host = start(folder, "restored", more)?;
    let mut socket = runtime.block_on(TcpStream::connect(&host.api))?;
    let mut ttft = |turn: u64| -> anyhow::Result<f64> {
        Ok(us(runtime.block_on(load::exchange(&mut socket, &request(turn)))?.ttft))
    };
    let flush = |tier: &str| post(&runtime, &host, "/admin/v1/kv/flush", &json!({ "tier": tier }));
    ttft(1000)?;
    let (mut cold, mut warm, mut memory, mut disk) = (vec![], vec![], vec![], vec![]);
    for turn in 0..ROUNDS as u64 * 2 + 1 {
        cold.push(ttft(turn)?);
        warm.push(ttft(turn)?);
        // What was computed is saved behind the answer.
        std::thread::sleep(Duration::from_millis(300));
        flush("hbm")?;
        memory.push(ttft(turn)?);
        flush("hbm")?;
        flush("host")?;
        disk.push(ttft(turn)?);
    }
    head("TTFT us p50 of a long prompt of the embedded model on the CPU executor; baseline: computed");
    let (cold, memory, disk) = (median(cold), median(memory), median(disk));
    row("in the worker's memory", median(warm), Some(cold), Bar::None);
    row("restored from memory of the host", memory, Some(cold), Bar::None);
    row("restored from disk", disk, Some(cold), Bar::None);
    row("times as fast, memory of the host", cold / memory, None, Bar::AtLeast(10.0));
    row("times as fast, disk", cold / disk, None, Bar::AtLeast(5.0));
    Ok(())
}

/// Steps that computed and moved blocks for longer than a millisecond.
fn stalls(folder: &Path) -> anyhow::Result<()> {
    let runtime = load::runtime()?;
    let more =
        "[kv]\nmemory_mib_per_worker = 16\n[kv.host]\nmemory_mib = 256\n[kv.disk]\nfolder = \"stalls\"\n";
    let host = start(folder, "stalls", more)?;
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for connection in 0..8u64 {
            let api = host.api.clone();
            tasks.spawn(async move {
                let mut socket = TcpStream::connect(&api).await?;
                for turn in 0..24u64 {
                    // Each comes back to prompts that fell out of the worker's memory.
                    load::exchange(&mut socket, &request(connection * 6 + turn % 6)).await?;
                }
                Ok::<(), std::io::Error>(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok::<(), anyhow::Error>(())
    })?;
    let metrics = host.metrics()?;
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    };
    let (moves, long) = (value("pointsman_kv_busy_moves_total"), value("pointsman_kv_busy_moves_long_total"));
    ensure!(moves > 0.0, "blocks were moved while others computed");
    head("Steps that moved blocks while sequences computed");
    row("steps", moves, None, Bar::None);
    row("share of them that moved for more than 1 ms", long / moves, None, Bar::AtMost(0.01));
    Ok(())
}
