//! The next turn of a session, with what was computed ahead of it and without: a simulated device whose prefill costs time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use crate::host::Host;
use crate::table::{Bar, head, quantile, row, us};

/// Chosen: an odd number has a middle one.
const SESSIONS: usize = 21;
/// Chosen: a short tool call.
const TOOL: Duration = Duration::from_millis(300);
/// What a device of this class takes: 20 us a prompt token.
const DEVICE: &str = "[engine]\ndevice = \"sim\"\nworkers = 1\n[engine.sim]\nprefill_us_per_token = 20.0\n";

/// One answer: the object, and when its first byte was there.
fn ask(host: &Host, messages: &Value, session: usize, tokens: u32) -> anyhow::Result<(Value, Duration)> {
    let session = json!({ "session_id": format!("session {session}") });
    let nvext = json!({ "session_control": session, "agent_hints": { "speculative_prefill": true } });
    let body = json!({ "model": "tiny-agent", "messages": messages, "max_tokens": tokens, "nvext": nvext });
    let body = body.to_string();
    let mut socket = TcpStream::connect(&host.api)?;
    let begun = Instant::now();
    write!(
        socket,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut first = [0; 1];
    socket.read_exact(&mut first)?;
    let took = begun.elapsed();
    let mut rest = String::new();
    socket.read_to_string(&mut rest)?;
    let body = rest.split_once("\r\n\r\n").context("a response has a head")?.1;
    Ok((serde_json::from_str(body)?, took))
}

/// Times to first token of second turns, in microseconds, and their cached tokens.
fn second_turns(when: &str) -> anyhow::Result<(Vec<f64>, f64)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("pointsman.toml");
    let listen = "[listen]\napi = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[telemetry]\nlog = \"warn\"\n";
    std::fs::write(&path, format!("{listen}[speculation]\nwhen = {when:?}\n{DEVICE}"))?;
    let host = Host::start(&path)?;
    let (mut times, mut cached) = (Vec::new(), 0.0);
    for session in 0..SESSIONS {
        let asked = format!("session {session}: {}", crate::load::prompt(session as u64));
        let mut messages = json!([{ "role": "user", "content": asked }]);
        let (reply, _) = ask(&host, &messages, session, 512)?;
        let list = messages.as_array_mut().context("messages are a list")?;
        list.push(reply["choices"][0]["message"].clone());
        list.push(json!({ "role": "user", "content": "go on" }));
        std::thread::sleep(TOOL);
        // Of the second turn the first token is all that is looked at.
        let (reply, took) = ask(&host, &messages, session, 1)?;
        times.push(us(took));
        let found = &reply["usage"]["prompt_tokens_details"]["cached_tokens"];
        cached += found.as_f64().context("a count")? / SESSIONS as f64;
    }
    Ok((times, cached))
}

pub(crate) fn run() -> anyhow::Result<()> {
    let (mut without, found_without) = second_turns("off")?;
    let (mut with, found_with) = second_turns("hint")?;
    head(
        "Second turn of a session: 200-word prompt, 512 tokens of answer, 300 ms between, simulated prefill of 20 us a token",
    );
    row("TTFT us p50, nothing ahead", quantile(&mut without, 0.5), None, Bar::None);
    row("TTFT us p50, prefill ahead of need", quantile(&mut with, 0.5), None, Bar::None);
    row("cached tokens, nothing ahead", found_without, None, Bar::None);
    row("cached tokens, prefill ahead of need", found_with, None, Bar::None);
    Ok(())
}
