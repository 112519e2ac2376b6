//! The load: keep-alive connections that stream answers, each one request after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What one request saw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Time to the first token.
    pub(crate) ttft: Duration,
    /// Time to the end of the stream.
    pub(crate) total: Duration,
}

/// What a load saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Requests that were answered.
    pub(crate) samples: Vec<Sample>,
    /// Requests that failed.
    pub(crate) failed: u64,
    /// How long the load ran.
    pub(crate) took: Duration,
}

/// A 200-word prompt; `turn` makes it unlike others, as users' prompts are.
pub(crate) fn prompt(turn: u64) -> String {
    const WORDS: [&str; 16] = [
        "please", "read", "the", "long", "report", "about", "rivers", "and", "tell", "me", "which", "of",
        "them", "carry", "silver", "stones",
    ];
    let mut state = turn.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut words = Vec::with_capacity(200);
    for _ in 0..200 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        words.push(WORDS[(state >> 59) as usize % WORDS.len()]);
    }
    words.join(" ")
}

/// The bytes of one request of 16 streamed tokens.
pub(crate) fn request(turn: u64) -> Vec<u8> {
    let body = json!({
        "model": "tiny-agent",
        "messages": [{ "role": "user", "content": prompt(turn) }],
        "max_tokens": 16,
        "stream": true,
    })
    .to_string();
    post("/v1/chat/completions", &body)
}

/// The bytes of a call with a JSON body.
pub(crate) fn post(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Sends a request and reads the object that answers it.
pub(crate) async fn whole(socket: &mut TcpStream, request: &[u8]) -> anyhow::Result<serde_json::Value> {
    socket.write_all(request).await?;
    let mut response = Vec::new();
    loop {
        anyhow::ensure!(socket.read_buf(&mut response).await? > 0, "the host hung up");
        let Some(body) = response.windows(4).position(|at| at == b"\r\n\r\n").map(|at| at + 4) else {
            continue;
        };
        // Part of an object is none.
        if let Ok(value) = serde_json::from_slice(&response[body..]) {
            return Ok(value);
        }
    }
}

/// When a client acknowledges what it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acks {
    /// As the operating system does, which waits for something to send along.
    AsUsual,
    /// At once.
    AtOnce,
}

/// Sends a request and reads its stream to the end.
pub(crate) async fn exchange(socket: &mut TcpStream, request: &[u8]) -> std::io::Result<Sample> {
    exchange_acking(socket, request, Acks::AsUsual).await
}

/// The same, acknowledging in a way.
pub(crate) async fn exchange_acking(
    socket: &mut TcpStream,
    request: &[u8],
    acks: Acks,
) -> std::io::Result<Sample> {
    let sent = Instant::now();
    socket.write_all(request).await?;
    let mut response = Vec::with_capacity(8 << 10);
    let mut first = None;
    loop {
        if acks == Acks::AtOnce {
            // Linux forgets it whenever it sends something along.
            rustix::net::sockopt::set_tcp_quickack(&*socket, true)?;
        }
        if socket.read_buf(&mut response).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if first.is_none() && contains(&response, b"data: ") {
            first = Some(sent.elapsed());
        }
        // The end of the stream, and of its chunked framing.
        let end = &response[response.len().saturating_sub(64)..];
        if response.ends_with(b"0\r\n\r\n") && contains(end, b"[DONE]") {
            break;
        }
    }
    if !response.starts_with(b"HTTP/1.1 200") {
        return Err(std::io::Error::other(String::from_utf8_lossy(&response).into_owned()));
    }
    let total = sent.elapsed();
    Ok(Sample { ttft: first.unwrap_or(total), total })
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|w| w == word)
}

/// Keeps `connections` busy until `stop` says so or `limit` has passed, `pace` between the starts of one's requests.
pub(crate) async fn run(
    address: &str,
    connections: usize,
    pace: Duration,
    limit: Duration,
    stop: Arc<AtomicBool>,
) -> Seen {
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for connection in 0..connections {
        let (address, stop) = (address.to_owned(), Arc::clone(&stop));
        tasks.spawn(async move {
            let mut seen = Seen::default();
            let Ok(mut socket) = TcpStream::connect(&address).await else {
                return Seen { failed: 1, ..seen };
            };
            let _ = socket.set_nodelay(true);
            let mut turn = connection as u64 * 1_000_003;
            let mut next = begun + pace.mul_f64(connection as f64 / connections as f64);
            while begun.elapsed() < limit && !stop.load(Ordering::Relaxed) {
                if !pace.is_zero() {
                    tokio::time::sleep_until(next.into()).await;
                    next = (next + pace).max(Instant::now());
                }
                turn += 1;
                match exchange(&mut socket, &request(turn)).await {
                    Ok(sample) => seen.samples.push(sample),
                    Err(error) => {
                        eprintln!("request failed: {error}");
                        return Seen { failed: seen.failed + 1, ..seen };
                    }
                }
            }
            seen
        });
    }
    let mut all = Seen::default();
    while let Some(seen) = tasks.join_next().await {
        let seen = seen.unwrap_or(Seen { failed: 1, ..Seen::default() });
        all.samples.extend(seen.samples);
        all.failed += seen.failed;
    }
    all.took = begun.elapsed();
    all
}

/// A runtime for the load: one thread, so that the host has the other core.
pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
