//! An answer goes on where it was cut off: by a lost connection, or by the end of the process.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::process::{self, Served};
use crate::support::{Host, user};

const TOKENS: u64 = 96;

fn request(temperature: f64, seed: Option<u64>, streamed: bool) -> Value {
    let mut body = json!({
        "model": "tiny-agent", "messages": user("Tell me about the silver river."), "max_tokens": TOKENS,
        "temperature": temperature, "stream": streamed,
    });
    if let Some(seed) = seed {
        body["seed"] = seed.into();
    }
    body
}

async fn start(config: &Path) -> Served {
    let path = config.to_str().expect("the path is UTF-8").to_owned();
    tokio::task::spawn_blocking(move || process::serve(&["--config", &path])).await.expect("no panic")
}

fn post(api: &str, key: Option<&str>, body: &Value) -> TcpStream {
    let mut socket = TcpStream::connect(api).expect("the host listens");
    let body = body.to_string();
    let key = key.map(|key| format!("idempotency-key: {key}\r\n")).unwrap_or_default();
    let length = body.len();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{key}content-length: {length}"
    );
    write!(socket, "{head}\r\n\r\n{body}").expect("the host reads");
    socket
}

/// The text of all events so far.
fn text(events: &str) -> String {
    let data = events.lines().filter_map(|line| line.strip_prefix("data: "));
    let chunks = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}

/// Everything that is left of an answer.
fn rest(mut socket: TcpStream) -> String {
    let mut all = Vec::new();
    // A host that is killed ends it anyhow.
    let _ = socket.read_to_end(&mut all);
    String::from_utf8_lossy(&all).into_owned()
}

/// What came before `bytes` of events had been read.
fn first(socket: &mut TcpStream, bytes: usize) -> String {
    let mut all = Vec::new();
    let mut piece = [0; 1024];
    while all.len() < bytes {
        let read = socket.read(&mut piece).expect("events come");
        assert!(read > 0, "the answer goes on");
        all.extend_from_slice(&piece[..read]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn steps(api: &str) -> u64 {
    let mut socket = TcpStream::connect(api).expect("the host listens");
    write!(socket, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("the host reads");
    let all = rest(socket);
    let lines = all.lines().filter(|line| line.starts_with("pointsman_steps_total{"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

/// Kills a host in the middle of an answer and asks again; the text before, the whole text, and steps it took to end.
async fn killed(file: &Path, key: &str, body: &Value) -> (String, String, u64) {
    let mut served = start(file).await;
    let mut socket = post(&served.api, Some(key), body);
    let before = first(&mut socket, 12_000);
    // Long enough for the tokens of the last round to be synced.
    std::thread::sleep(std::time::Duration::from_millis(100));
    served.child.kill().expect("it is there");
    served.child.wait().expect("it ended");
    let before = text(&(before + &rest(socket)));
    let mut served = start(file).await;
    let whole = text(&rest(post(&served.api, Some(key), body)));
    let steps = steps(&served.api);
    served.child.kill().expect("it is there");
    served.child.wait().expect("it ended");
    (before, whole, steps)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_survives_a_kill_and_is_the_one_that_it_would_have_been() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let file = folder.path().join("pointsman.toml");
    let slow = "[engine]\ndevice = \"sim\"\nworkers = 1\n[engine.sim]\nstep_us = 15000.0\n";
    std::fs::write(&file, format!("{slow}[checkpoints]\nfolder = \"answers\"\nsync_ms = 5\n"))
        .expect("it is written");
    for (key, temperature, seed) in [("greedy", 0.0, None), ("seeded", 1.0, Some(7)), ("drawn", 1.0, None)] {
        let body = request(temperature, seed, true);
        let (before, whole, steps) = killed(&file, key, &body).await;
        assert!(before.len() > 40 && whole.len() > before.len(), "{before:?} then {whole:?}");
        assert!(whole.starts_with(&before), "{before:?} is not how {whole:?} begins");
        assert!(steps < TOKENS - 10, "{key}: {steps} steps are those of a whole answer");
        if key != "drawn" {
            let mut served = start(&file).await;
            let control = text(&rest(post(&served.api, None, &body)));
            served.child.kill().expect("it is there");
            served.child.wait().expect("it ended");
            assert_eq!(whole, control, "{key}");
        }
    }
}

fn host(folder: &Path, more: &str) -> String {
    format!("[checkpoints]\nfolder = {folder:?}\n[engine]\nworkers = 1\n{more}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_answered_is_answered_alike() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let host = Host::start(&host(folder.path(), "")).await;
    let mut body = request(1.0, None, false);
    body["max_tokens"] = 24.into();
    let ask = async |key: &str| host.chat_with(&[("idempotency-key", key)], body.clone()).await;
    let (one, again, other) = (ask("a").await, ask("a").await, ask("b").await);
    let said = |heard: &crate::support::Heard| heard.json["choices"][0]["message"]["content"].clone();
    assert_eq!(said(&one), said(&again));
    assert_ne!(said(&one), said(&other), "another key draws other tokens");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_for_one_request_at_a_time() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let slow = "device = \"sim\"\n[engine.sim]\nstep_us = 20000.0\n";
    let host = Host::start(&host(folder.path(), slow)).await;
    let key = [("idempotency-key", "a")];
    let body = request(0.0, None, false);
    let (mut short, long) = (body.clone(), host.chat_with(&key, body.clone()));
    short["max_tokens"] = 1.into();
    let (busy, _) = tokio::join!(
        async {
            tokio::time::sleep(std::time::Duration::from_millis(400)).await;
            host.chat_with(&key, body.clone()).await
        },
        long
    );
    assert!(busy.status().contains("409"), "{}", busy.json);
    assert_eq!(busy.json["error"]["code"], "idempotency_key_in_use");
    let reused = host.chat_with(&key, short.clone()).await;
    assert!(reused.status().contains("400"), "{}", reused.json);
    assert_eq!(reused.json["error"]["param"], "Idempotency-Key");
    let empty = host.chat_with(&[("idempotency-key", "")], short).await;
    assert!(empty.status().contains("400"), "{}", empty.json);
    assert!(empty.json.to_string().contains("1 to 255"), "{}", empty.json);
    host.stop().await;
}
