//! Prefill as callers see it: what a prefix hit saves, and how long a long prompt of another caller holds up an answer, on workers
//! that do both and on workers with roles. The embedded model.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::host::Host;
use crate::load;
use crate::table::{Bar, head, median, quantile, row, us};

/// Chosen: odd numbers have a middle one.
const HITS: usize = 15;
const PAIRS: usize = 5;
/// Parts of 200 words each; the table says how many tokens they are.
const PROMPT: u64 = 5;
const LONG_PROMPT: u64 = 12;
/// Answers that run beside the long prompt.
const ANSWERS: u64 = 2;
/// Until the answers run.
const WARM_UP: Duration = Duration::from_millis(300);
/// The token that ends an answer of the embedded model.
const END: &str = "2";

pub(crate) fn run() -> anyhow::Result<()> {
    let runtime = load::runtime()?;
    hits(&runtime)?;
    roles(&runtime)
}

fn host(folder: &Path, engine: &str) -> anyhow::Result<Host> {
    let path = folder.join("pointsman.toml");
    let config = format!(
        "[listen]\napi = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[kv]\nmemory_mib_per_worker = 256\n\
         [telemetry]\nlog = \"warn\"\n[engine]\nthreads_per_worker = 1\n{engine}\n"
    );
    std::fs::write(&path, config)?;
    Host::start(&path)
}

/// A prompt of so many parts, unlike that of any other turn.
fn prompt(turn: u64, parts: u64) -> String {
    (0..parts).map(|part| load::prompt(turn * 1_000 + part + 1)).collect::<Vec<_>>().join("\n")
}

fn streamed(text: &str, output: u32) -> Vec<u8> {
    let body = json!({
        "model": "tiny-agent", "messages": [{ "role": "user", "content": text }], "max_tokens": output, "stream": true,
        "temperature": 1.0, "logit_bias": { END: -100 },
        "nvext": { "agent_hints": { "speculative_decoding": false } },
    });
    load::post("/v1/chat/completions", &body.to_string())
}

/// How many tokens a prompt of so many parts has.
async fn tokens(host: &Host, parts: u64) -> anyhow::Result<f64> {
    let messages = json!([{ "role": "user", "content": prompt(0, parts) }]);
    let body = json!({ "model": "tiny-agent", "messages": messages });
    let mut socket = TcpStream::connect(&host.api).await?;
    let request = load::post("/v1/messages/count_tokens", &body.to_string());
    let counted = load::whole(&mut socket, &request).await?;
    counted["input_tokens"].as_f64().context("the host counts tokens")
}

/// Time to the first token of a prompt that is in the cache, beside the time that it took to compute.
fn hits(runtime: &Runtime) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let host = host(folder.path(), "workers = 1")?;
    let (mut shares, mut cold, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    runtime.block_on(async {
        let mut socket = TcpStream::connect(&host.api).await?;
        for turn in 0..HITS {
            let request = streamed(&prompt(turn as u64, PROMPT), 2);
            let first = load::exchange(&mut socket, &request).await?.ttft;
            let again = load::exchange(&mut socket, &request).await?.ttft;
            shares.push(again.as_secs_f64() / first.as_secs_f64());
            cold.push(us(first));
            warm.push(us(again));
        }
        anyhow::Ok(())
    })?;
    head("A prefix hit, through the endpoint");
    row("tokens of the prompt", runtime.block_on(tokens(&host, PROMPT))?, None, Bar::None);
    row("TTFT us p50, hit (baseline: computed)", median(warm), Some(median(cold)), Bar::None);
    row("share of the TTFT of a prompt that is computed", median(shares), None, Bar::AtMost(0.05));
    Ok(())
}

/// Gaps between the tokens of answers while a long prompt is computed, by turns on both hosts.
fn roles(runtime: &Runtime) -> anyhow::Result<()> {
    let folders = [tempfile::tempdir()?, tempfile::tempdir()?];
    let hosts = [
        host(folders[0].path(), "workers = 2")?,
        host(folders[1].path(), "workers = 2\nroles = [\"prefill\", \"decode\"]")?,
    ];
    let mut longest = [Vec::new(), Vec::new()];
    let mut ttfts = [Vec::new(), Vec::new()];
    for turn in 0..PAIRS as u64 {
        for (kind, host) in hosts.iter().enumerate() {
            let (gap, ttft) = runtime.block_on(beside(host, turn))?;
            longest[kind].push(gap);
            ttfts[kind].push(us(ttft));
        }
    }
    let [both, apart] = longest.map(median);
    let [both_ttft, apart_ttft] = ttfts.map(median);
    head("A long prompt beside two answers: two workers with roles (baseline: two that do both)");
    row("tokens of the prompt", runtime.block_on(tokens(&hosts[0], LONG_PROMPT))?, None, Bar::None);
    row("longest gap of the answers, us", apart, Some(both), Bar::None);
    row("TTFT of the long prompt, us", apart_ttft, Some(both_ttft), Bar::None);
    row("times as even, the answers", both / apart, Some(1.0), Bar::None);
    Ok(())
}

/// The longest gap of answers from the long prompt to its first token, in microseconds, and its time to
/// the first token.
async fn beside(host: &Host, turn: u64) -> anyhow::Result<(f64, Duration)> {
    let mut answers = tokio::task::JoinSet::new();
    let stop = Arc::new(AtomicBool::new(false));
    for answer in 0..ANSWERS {
        let socket = TcpStream::connect(&host.api).await?;
        let request = streamed(&prompt(10_000 + turn * 10 + answer, 1), 60_000);
        answers.spawn(arrivals(socket, request, Arc::clone(&stop)));
    }
    tokio::time::sleep(WARM_UP).await;
    let mut socket = TcpStream::connect(&host.api).await?;
    let begun = Instant::now();
    let sample = load::exchange(&mut socket, &streamed(&prompt(20_000 + turn, LONG_PROMPT), 2)).await?;
    let until = begun + sample.ttft;
    stop.store(true, Relaxed);
    let mut gaps = Vec::new();
    while let Some(seen) = answers.join_next().await {
        let seen = seen??;
        let within = seen.windows(2).filter(|two| two[1] >= begun && two[0] <= until);
        gaps.extend(within.map(|two| us(two[1] - two[0])));
    }
    anyhow::ensure!(!gaps.is_empty(), "answers ran beside the prompt");
    Ok((quantile(&mut gaps, 1.0), sample.ttft))
}

/// When parts of an answer came, until it ends or `stop` says so.
async fn arrivals(
    mut socket: TcpStream,
    request: Vec<u8>,
    stop: Arc<AtomicBool>,
) -> std::io::Result<Vec<Instant>> {
    socket.set_nodelay(true)?;
    socket.write_all(&request).await?;
    let (mut seen, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    while !stop.load(Relaxed) && socket.read(&mut buffer).await? > 0 {
        seen.push(Instant::now());
    }
    Ok(seen)
}
