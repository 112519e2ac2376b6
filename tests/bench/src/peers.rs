//! Running servers of others beside our own host, in turns: what a request costs, and how soon it is answered.
//!
//! A peer is what listens at an address; its processes are told, so that their CPU time can be read. Every figure of a peer
//! stands beside ours of the same run. Two clients are measured: one as clients are, and one that acknowledges at once, since a
//! server that leaves Nagle's algorithm on waits for acknowledgements, which others delay by 40 ms.

use std::io::{Read, Write};
use std::net::TcpStream as Blocking;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::host::{self, Host};
use crate::http;
use crate::load::{self, Acks, Sample, Seen};
use crate::table::{Bar, head, median, quantile, row, us};

/// Chosen: an odd number of turns has a middle one.
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const CONNECTIONS: [usize; 3] = [1, 16, 64];
const HISTORIES: [(&str, usize); 3] = [("4 kB", 4_000), ("40 kB", 40_000), ("400 kB", 400_000)];
/// What a turn adds to a history.
const NEWS_BYTES: usize = 1_500;
/// Histories that take turns: a server that remembers the last one alone has no use of it.
const HISTORIES_LEN: u64 = 2;

/// A server, ours or another.
pub(crate) struct Peer {
    name: String,
    address: String,
    processes: Vec<u32>,
    model: String,
}

/// What one round of one server saw.
struct Round {
    per_second: f64,
    ttft_us_p50: f64,
    ttft_us_p99: f64,
    cpu_us: f64,
}

impl Peer {
    /// From `NAME=URL[,PID...]`, and what it says its model is.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let told = || format!("`{text}` is not NAME=URL[,PID...], such as other=http://127.0.0.1:8100,4711");
        let (name, rest) = text.split_once('=').with_context(told)?;
        let mut parts = rest.split(',');
        let url = parts.next().with_context(told)?;
        let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let processes = parts.map(str::parse).collect::<Result<Vec<u32>, _>>().with_context(told)?;
        let model = model(&address).with_context(|| format!("{name} does not answer at {address}"))?;
        Ok(Self { name: name.to_owned(), address, processes, model })
    }

    fn ours(host: &Host) -> Self {
        let (name, model) = ("ours".to_owned(), "tiny-agent".to_owned());
        Self { name, address: host.api.clone(), processes: vec![host.id()], model }
    }

    fn cpu(&self) -> anyhow::Result<Duration> {
        self.processes.iter().map(|process| host::cpu(*process)).sum()
    }
}

/// The first model that a server names.
fn model(address: &str) -> anyhow::Result<String> {
    let mut socket = Blocking::connect(address)?;
    write!(socket, "GET /v1/models HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    socket.read_to_string(&mut text)?;
    // The list may come in chunks: it is what lies between the outermost braces.
    let from = text.find('{').context("there is no list of models")?;
    let to = text.rfind('}').context("the list of models does not end")?;
    let list: Value = serde_json::from_str(&text[from..=to])?;
    Ok(list["data"][0]["id"].as_str().context("there is no model")?.to_owned())
}

pub(crate) fn run(peers: Vec<Peer>) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("pointsman.toml");
    let host = start(&path)?;
    let runtime = load::runtime()?;
    let sides: Vec<Peer> = std::iter::once(Peer::ours(&host)).chain(peers).collect();
    for side in &sides {
        side.work(&runtime, &Ask { connections: 4, acks: Acks::AsUsual, request: &short }, ROUND / 2)?;
    }
    for acks in [Acks::AsUsual, Acks::AtOnce] {
        let client =
            if acks == Acks::AtOnce { "a client that acknowledges at once" } else { "a client as it is" };
        head(&format!("200-word prompt, 16 streamed tokens, {client}; value: ours, baseline: the peer"));
        for connections in CONNECTIONS {
            let ask = Ask { connections, acks, request: &short };
            let rounds = rounds(&sides, |side| side.work(&runtime, &ask, ROUND))?;
            print(&sides, &rounds, &format!("{connections} connections"));
        }
    }
    head(
        "A turn of an agent: history that was seen and 1.5 kB more, 2 tokens; value: ours, baseline: the peer",
    );
    for (name, bytes) in HISTORIES {
        let histories: Vec<String> =
            (0..HISTORIES_LEN).map(|number| words(number * 10_000_000, bytes)).collect();
        let request = |model: &str, turn: u64| long(&histories, model, turn);
        let ask = Ask { connections: 1, acks: Acks::AtOnce, request: &request };
        let rounds = rounds(&sides, |side| side.work(&runtime, &ask, ROUND))?;
        print(&sides, &rounds, name);
    }
    Ok(())
}

fn start(path: &Path) -> anyhow::Result<Host> {
    let more = "[limits]\nbody_bytes_max = 67108864\n[model]\ncontext_tokens_max = 4000000\n";
    std::fs::write(path, http::config().to_owned() + more)?;
    Host::start(path)
}

/// Rounds of all servers in turns, each server's in a row of its own.
fn rounds(sides: &[Peer], work: impl Fn(&Peer) -> anyhow::Result<Round>) -> anyhow::Result<Vec<Vec<Round>>> {
    let mut rounds: Vec<Vec<Round>> = sides.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for (side, rounds) in sides.iter().zip(&mut rounds) {
            rounds.push(work(side)?);
        }
    }
    Ok(rounds)
}

/// One figure of a round.
type Measure = fn(&Round) -> f64;

fn print(sides: &[Peer], rounds: &[Vec<Round>], what: &str) {
    let value = |rounds: &[Round], of: Measure| median(rounds.iter().map(of).collect());
    let measures: [(&str, Measure); 4] = [
        ("requests/s", |round| round.per_second),
        ("TTFT us p50", |round| round.ttft_us_p50),
        ("TTFT us p99", |round| round.ttft_us_p99),
        ("CPU us a request", |round| round.cpu_us),
    ];
    for (measure, of) in measures {
        for (peer, theirs) in sides.iter().zip(rounds).skip(1) {
            // A peer whose processes nobody named has no CPU time.
            let known = !(measure.starts_with("CPU") && peer.processes.is_empty());
            let theirs = known.then(|| value(theirs, of));
            row(&format!("{measure}, {what}, {}", peer.name), value(&rounds[0], of), theirs, Bar::None);
        }
    }
}

/// What a round asks: so many connections, acknowledging so, and the bytes of the request of a number.
struct Ask<'a> {
    connections: usize,
    acks: Acks,
    request: &'a dyn Fn(&str, u64) -> Vec<u8>,
}

impl Peer {
    /// Keeps connections busy for a time.
    fn work(&self, runtime: &Runtime, ask: &Ask<'_>, limit: Duration) -> anyhow::Result<Round> {
        let before = self.cpu()?;
        let seen = runtime.block_on(self.drive(ask, limit))?;
        let cpu = self.cpu()? - before;
        let mut ttft: Vec<f64> = seen.samples.iter().map(|sample| us(sample.ttft)).collect();
        let requests = seen.samples.len() as f64;
        Ok(Round {
            per_second: requests / seen.took.as_secs_f64(),
            ttft_us_p50: quantile(&mut ttft, 0.5),
            ttft_us_p99: quantile(&mut ttft, 0.99),
            cpu_us: us(cpu) / requests,
        })
    }

    async fn drive(&self, ask: &Ask<'_>, limit: Duration) -> anyhow::Result<Seen> {
        let begun = Instant::now();
        let connection = |number: usize| async move {
            let mut socket = TcpStream::connect(&self.address).await?;
            socket.set_nodelay(true)?;
            let mut samples: Vec<Sample> = Vec::new();
            while begun.elapsed() < limit {
                let turn = number as u64 * 1_000_003 + samples.len() as u64;
                let request = (ask.request)(&self.model, turn);
                samples.push(load::exchange_acking(&mut socket, &request, ask.acks).await?);
            }
            Ok::<_, std::io::Error>(samples)
        };
        let all = join_all((0..ask.connections).map(connection)).await;
        let mut seen = Seen { took: begun.elapsed(), ..Seen::default() };
        for samples in all {
            seen.samples.extend(samples.with_context(|| format!("{} failed", self.name))?);
        }
        ensure!(!seen.samples.is_empty(), "{} answered nothing", self.name);
        Ok(seen)
    }
}

/// A prompt of 200 words and 16 tokens of answer.
fn short(model: &str, turn: u64) -> Vec<u8> {
    ask(model, &load::prompt(turn), 16)
}

/// One of the histories and something new.
fn long(histories: &[String], model: &str, turn: u64) -> Vec<u8> {
    let history = &histories[turn as usize % histories.len()];
    ask(model, &format!("{history} {}", words(turn * 1_000 + 77, NEWS_BYTES)), 2)
}

fn ask(model: &str, text: &str, max_tokens: u32) -> Vec<u8> {
    let message = json!({ "role": "user", "content": text });
    let body = json!({ "model": model, "messages": [message], "max_tokens": max_tokens, "stream": true });
    load::post("/v1/chat/completions", &body.to_string())
}

fn words(first: u64, bytes: usize) -> String {
    let mut text = String::new();
    for number in first.. {
        if text.len() >= bytes {
            break;
        }
        text.push_str(&load::prompt(number));
        text.push(' ');
    }
    text.truncate(bytes);
    text
}
