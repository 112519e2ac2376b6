//! Turns of agents: a history that the host has seen, and a little more. What is compared is the host with its memory
//! for prompts and without it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::host::Host;
use crate::http;
use crate::load::{self, Sample};
use crate::table::{Bar, head, quantile, row, us};

/// Bytes of a tool's result, of which a history is made.
const RESULT_BYTES: usize = 2 << 10;
/// CPU time of a process is counted in steps of 10 ms: turns that take as much as a hundred of them.
const MEASURED: Duration = Duration::from_secs(4);
const TURNS_MIN: usize = 10;
const TURNS_MAX: usize = 2000;

struct Turns {
    cpu_us: f64,
    ttft_us_p50: f64,
    ttft_us_p99: f64,
}

/// A host that takes a history of 4 MB.
fn start(folder: &Path, memory_mib: u64) -> anyhow::Result<Host> {
    let path = folder.join(format!("turns-{memory_mib}.toml"));
    let more = format!(
        "[limits]\nbody_bytes_max = 67108864\n[model]\ncontext_tokens_max = 4000000\n[prompts]\nmemory_mib = {memory_mib}\n"
    );
    std::fs::write(&path, http::config().replace("[engine]\n", "[engine]\nworkers = 1\n") + &more)?;
    Host::start(&path)
}

fn result(turn: u64, bytes: usize) -> String {
    let mut text = String::new();
    for line in 0u64.. {
        if text.len() >= bytes {
            break;
        }
        let words = load::prompt(turn * 1000 + line);
        text.push_str(&format!("{line:4} | {}\n", &words[..words.len().min(70)]));
    }
    text.truncate(bytes);
    text
}

fn turn(number: u64, bytes: usize) -> [Value; 2] {
    let id = format!("call_{number:08}");
    let arguments = format!("{{\"path\": \"src/file_{number}.rs\"}}");
    let call = json!({"id": id, "type": "function", "function": {"name": "read", "arguments": arguments}});
    [
        json!({"role": "assistant", "content": "", "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": id, "content": result(number, bytes)}),
    ]
}

fn history(bytes: usize) -> Vec<Value> {
    let mut messages = vec![
        json!({"role": "system", "content": result(1, RESULT_BYTES.min(bytes / 4))}),
        json!({"role": "user", "content": "Find the bug and mend it."}),
    ];
    let turns = bytes / (RESULT_BYTES + 250);
    messages.extend((0..turns as u64).flat_map(|number| turn(number, RESULT_BYTES)));
    messages
}

fn request(messages: &[Value], output_tokens: u32, streamed: bool) -> Vec<u8> {
    let parameters = json!({"type": "object", "properties": {"path": {"type": "string"}}});
    let tool = json!({"type": "function", "function": {"name": "read", "parameters": parameters}});
    let body = json!({
        "model": "tiny-agent", "messages": messages, "tools": [tool], "max_tokens": output_tokens, "stream": streamed,
    })
    .to_string();
    load::post("/v1/chat/completions", &body)
}

/// Turns after one history: each adds its own increment to the same beginning.
fn measure(host: &Host, runtime: &Runtime, bytes: usize, increment: usize) -> anyhow::Result<Turns> {
    let mut messages = history(bytes);
    let length = messages.len();
    let exchange = |socket: &mut TcpStream, request: &[u8]| runtime.block_on(load::exchange(socket, request));
    let mut socket = runtime.block_on(TcpStream::connect(&host.api))?;
    socket.set_nodelay(true)?;
    for _ in 0..3 {
        exchange(&mut socket, &request(&messages, 1, true))?;
    }
    let (mut samples, mut cpu): (Vec<Sample>, Duration) = (Vec::new(), Duration::ZERO);
    let begun = Instant::now();
    while samples.len() < TURNS_MIN || (begun.elapsed() < MEASURED && samples.len() < TURNS_MAX) {
        // What is sent is made before the clock runs.
        let batch: Vec<Vec<u8>> = (0..TURNS_MIN)
            .map(|i| {
                messages.truncate(length);
                messages.extend(turn(1_000_000 + (samples.len() + i) as u64, increment));
                request(&messages, 1, true)
            })
            .collect();
        let before = host.cpu()?;
        for request in &batch {
            samples.push(exchange(&mut socket, request)?);
        }
        cpu += host.cpu()? - before;
    }
    let mut ttft: Vec<f64> = samples.iter().map(|sample| us(sample.ttft)).collect();
    Ok(Turns {
        cpu_us: us(cpu) / samples.len() as f64,
        ttft_us_p50: quantile(&mut ttft, 0.5),
        ttft_us_p99: quantile(&mut ttft, 0.99),
    })
}

pub(crate) fn run() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let runtime = load::runtime()?;
    let (kept, without, bare) = (start(folder.path(), 256)?, start(folder.path(), 0)?, Host::bare()?);
    head("Turns of agents: a history that was seen and 2 kB more; baseline: prompts.memory_mib = 0");
    for (name, bytes) in [("4 kB", 4 << 10), ("40 kB", 40 << 10), ("400 kB", 400 << 10), ("4 MB", 4 << 20)] {
        let own = measure(&kept, &runtime, bytes, RESULT_BYTES)?;
        let old = measure(&without, &runtime, bytes, RESULT_BYTES)?;
        let nothing = measure(&bare, &runtime, bytes, RESULT_BYTES)?;
        let at_400 = bytes == 400 << 10;
        let bar = |us: f64| if at_400 { Bar::AtMost(us) } else { Bar::None };
        row(&format!("CPU us a turn, {name}"), own.cpu_us, Some(old.cpu_us), bar(800.0));
        let what = format!("the same of a server that does nothing, {name}");
        row(&what, nothing.cpu_us, None, Bar::None);
        row(&format!("TTFT us p50, {name}"), own.ttft_us_p50, Some(old.ttft_us_p50), bar(1000.0));
        let what = format!("the same of a server that does nothing, {name}");
        row(&what, nothing.ttft_us_p50, None, Bar::None);
        row(&format!("TTFT us p99, {name}"), own.ttft_us_p99, Some(old.ttft_us_p99), Bar::None);
    }
    head("The same history with a small and a large increment: CPU us a turn");
    let bytes_a_token = bytes_a_token(&kept, &runtime)?;
    for (name, tokens) in [("10k", 10_000.0), ("100k", 100_000.0), ("500k", 500_000.0)] {
        let bytes = (tokens * bytes_a_token) as usize;
        for (size, increment) in [("256 B", 256), ("16 kB", 16 << 10)] {
            let own = measure(&kept, &runtime, bytes, increment)?;
            row(&format!("{name} tokens of history, {size} more"), own.cpu_us, None, Bar::None);
        }
    }
    streamed(&kept, &runtime)?;
    row("resident memory, MiB", kept.rss_mib()?, Some(without.rss_mib()?), Bar::None);
    Ok(())
}

/// Bytes of a history for each of its tokens.
fn bytes_a_token(host: &Host, runtime: &Runtime) -> anyhow::Result<f64> {
    let messages = history(40 << 10);
    let mut socket = runtime.block_on(TcpStream::connect(&host.api))?;
    let answer = runtime.block_on(load::whole(&mut socket, &request(&messages, 1, false)))?;
    let tokens = answer["usage"]["prompt_tokens"].as_f64().context("usage is told")?;
    Ok((40 << 10) as f64 / tokens)
}

/// CPU time of each token of long answers.
fn streamed(host: &Host, runtime: &Runtime) -> anyhow::Result<()> {
    const TOKENS: u32 = 4000;
    let mut socket = runtime.block_on(TcpStream::connect(&host.api))?;
    let (mut cpu, mut answers) = (Duration::ZERO, 0);
    let begun = Instant::now();
    while begun.elapsed() < MEASURED {
        let message = json!({"role": "user", "content": load::prompt(answers)});
        let before = host.cpu()?;
        runtime.block_on(load::exchange(&mut socket, &request(&[message], TOKENS, true)))?;
        cpu += host.cpu()? - before;
        answers += 1;
    }
    let per_token = us(cpu) / (answers as f64 * f64::from(TOKENS));
    row("CPU us a streamed token, answers of 4000 tokens", per_token, None, Bar::AtMost(10.0));
    Ok(())
}
