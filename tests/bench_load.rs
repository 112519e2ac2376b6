//! `pointsman bench` as a process, against our own host and against servers that do not behave.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::access::sha256;
use crate::process::{Served, command, refused, serve, signal};

/// What a run said, and the reports that it wrote.
struct Ran {
    output: Output,
    json: Value,
    page: String,
}

impl Ran {
    fn table(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    fn errors(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    fn count(&self, what: &str) -> u64 {
        self.json["requests"][what].as_u64().unwrap_or_else(|| panic!("{what}: {:#}", self.json))
    }
}

fn bench(url: &str, args: &[&str]) -> Ran {
    bench_with(url, args, &[])
}

/// The same, with more variables of the environment.
fn bench_with(url: &str, args: &[&str], variables: &[(&str, &str)]) -> Ran {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let file = |name: &str| folder.path().join(name);
    let text = |path: PathBuf| path.to_str().expect("the path is UTF-8").to_owned();
    let (json, html) = (text(file("report.json")), text(file("report.html")));
    let mut all = vec!["bench", url, "--json", &json, "--html", &html];
    all.extend(args);
    let output = command(&all).envs(variables.iter().copied()).output().expect("the process starts");
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    Ran { output, json: serde_json::from_str(&read(&json)).unwrap_or_default(), page: read(&html) }
}

fn host(toml: &str) -> Served {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let file = folder.path().join("pointsman.toml");
    std::fs::write(&file, toml).expect("it can be written");
    serve(&["--config", file.to_str().expect("the path is UTF-8")])
}

fn stop(mut served: Served) {
    signal(&served.child, "-TERM");
    assert!(served.child.wait().expect("it ends").success());
}

/// Nobody reads what the host logs: a line for each of thousands of requests would fill its pipe.
const SIMULATED: &str = "[telemetry]\nlog = \"warn\"\n[engine]\ndevice = \"sim\"\n\
                         [engine.sim]\nstep_us = 200.0\nprefill_us_per_token = 5.0\n";
/// Small sessions without pauses.
const SMALL: [&str; 12] = [
    "--turns",
    "4",
    "--system-tokens",
    "200",
    "--first-tokens",
    "100",
    "--turn-tokens",
    "60",
    "--output-tokens",
    "12",
    "--ignore-pauses",
    "--seed=7",
];

#[test]
fn agents_are_answered_by_every_protocol_and_later_turns_come_from_the_cache() {
    let served = host(SIMULATED);
    for api in ["chat", "completions", "messages"] {
        let args = [&SMALL[..], &["--api", api, "--concurrency", "3", "--sessions", "5"]].concat();
        let ran = bench(&format!("http://{}", served.api), &args);
        assert!(ran.output.status.success(), "{api}: {} {}", ran.table(), ran.errors());
        assert_eq!((ran.count("succeeded"), ran.count("failed")), (20, 0), "{api}");
        let json = &ran.json;
        assert_eq!(
            (&json["api"], &json["model"], &json["ended_by"]),
            (&api.into(), &"tiny-agent".into(), &"sessions".into())
        );
        assert_eq!(json["sessions"]["finished"], 5);
        let cached =
            json["later_turns"]["cached_share"].as_f64().expect("our host says what its cache saved");
        assert!((0.5..1.0).contains(&cached), "{api}: {cached}");
        assert_eq!(json["turns"].as_array().map(Vec::len), Some(4));
        // The simulated device needs 200 us for a step, and a request has twelve.
        let e2e = json["e2e_ms"]["p50"].as_f64().expect("requests were answered");
        let (ttft, itl) =
            (json["ttft_ms"]["p50"].as_f64().expect("they began"), json["itl_mean_ms"]["p50"].as_f64());
        assert!(ttft > 0.1 && ttft < e2e, "{api}: {ttft} {e2e}");
        assert!(itl.is_some_and(|itl| itl > 0.1), "{api}: {itl:?}");
        let text = ran.table();
        assert!(text.contains("TTFT") && text.contains("20 answered, 0 failed"), "{text}");
        assert!(ran.page.starts_with("<!DOCTYPE html>") && ran.page.contains("<polyline"));
    }
    stop(served);
}

#[test]
fn a_host_that_wants_keys_is_asked_with_one_over_tls() {
    let certificate = |part: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("support/certificates");
        folder.join(format!("one.{part}.pem")).to_str().expect("the path is UTF-8").to_owned()
    };
    let (cert, key) = (certificate("cert"), certificate("key"));
    let sha256 = sha256("sk-load");
    let served = host(&format!(
        "[listen]\ntls_cert = {cert:?}\ntls_key = {key:?}\n{SIMULATED}\
         [[auth.keys]]\nsha256 = {sha256:?}\ntenant = \"load\"\n"
    ));
    let port = served.api.rsplit(':').next().expect("an address has a port");
    let url = format!("https://localhost:{port}");
    let sessions = ["--concurrency", "2", "--sessions", "3", "--model", "tiny-agent"];
    let with_key = [&SMALL[..], &sessions, &["--api-key-env", "LOAD_KEY"]].concat();
    let trusted = ("SSL_CERT_FILE", cert.as_str());
    for api in ["chat", "messages"] {
        let args = [&with_key[..], &["--api", api]].concat();
        let ran = bench_with(&url, &args, &[trusted, ("LOAD_KEY", "sk-load")]);
        assert!(ran.output.status.success(), "{api}: {} {}", ran.table(), ran.errors());
        assert_eq!((ran.count("succeeded"), ran.count("failed")), (12, 0), "{api}");
    }
    let wrong = bench_with(&url, &with_key, &[trusted, ("LOAD_KEY", "sk-other")]);
    assert_eq!((wrong.count("succeeded"), wrong.output.status.success()), (0, false), "{}", wrong.table());
    assert!(format!("{}{}", wrong.table(), wrong.errors()).contains("401"), "{}", wrong.table());
    let untrusted = bench_with(&url, &with_key, &[("LOAD_KEY", "sk-load")]);
    assert!(!untrusted.output.status.success(), "{}", untrusted.table());
    let said = format!("{}{}", untrusted.table(), untrusted.errors());
    assert!(said.contains("certificate"), "{said}");
    stop(served);
}

#[test]
fn prompts_are_as_long_as_was_asked_for() {
    let served = host(SIMULATED);
    let args = [&SMALL[..], &["--spread", "0", "--sessions", "4", "--replay-answers"]].concat();
    let ran = bench(&format!("http://{}", served.api), &args);
    // 208 tokens of the system prompt's whole blocks and 100 of the first message; a turn adds 60 and the answer's 12.
    for (turn, wanted) in [(0, 308.0), (3, 308.0 + 3.0 * 72.0)] {
        let mean = ran.json["turns"][turn]["input_tokens_mean"].as_f64().expect("tokens are counted");
        assert!((wanted * 0.9..wanted * 1.25).contains(&mean), "turn {turn}: {mean} tokens, {wanted} wanted");
    }
    assert_eq!(ran.json["load"]["tokens_per_word_is"], "measured");
    stop(served);
}

#[test]
fn an_open_loop_keeps_its_rate_and_its_end() {
    let served = host(SIMULATED);
    let url = format!("http://{}", served.api);
    let args = [&SMALL[..], &["--rate", "40", "--rate-of", "requests", "--duration", "3", "--warmup", "1s"]]
        .concat();
    let ran = bench(&url, &args);
    assert_eq!(ran.json["ended_by"], "duration");
    // 120 are expected; 4 standard deviations of a Poisson process are 44.
    assert!((76..164).contains(&ran.count("succeeded")), "{}", ran.table());
    assert!((10..80).contains(&ran.count("warmup")), "{}", ran.table());
    assert!(ran.json["first_turn"]["requests"].as_u64() < ran.json["later_turns"]["requests"].as_u64());
    let args = [&SMALL[..], &["--rate", "20", "--arrivals", "constant", "--requests", "30"]].concat();
    let ran = bench(&url, &args);
    assert_eq!((&ran.json["ended_by"], ran.count("succeeded")), (&"requests".into(), 30));
    assert!(ran.json["generator"]["lag_ms"]["count"].as_u64() == Some(30));
    stop(served);
}

#[test]
fn a_trace_is_replayed_at_its_times_with_its_shared_blocks() {
    let served = host(SIMULATED);
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let file = folder.path().join("trace.jsonl");
    let row = |at: u32, tokens: u32, ids: &str| {
        format!(
            "{{\"timestamp\": {at}, \"input_length\": {tokens}, \"output_length\": 5, \"hash_ids\": [{ids}]}}\n"
        )
    };
    let rows = [row(0, 1300, "0,1,2"), row(1000, 600, "7,8"), row(2000, 1600, "0,1,3,4")].concat();
    std::fs::write(&file, &rows).expect("it can be written");
    let path = file.to_str().expect("the path is UTF-8");
    let args = ["--trace", path, "--schedule", "--speedup", "2", "--replay-answers"];
    let ran = bench(&format!("http://{}", served.api), &args);
    assert_eq!(
        (ran.count("succeeded"), &ran.json["load"]["mode"]),
        (3, &"schedule".into()),
        "{}",
        ran.table()
    );
    let window = ran.json["window_s"].as_f64().expect("it took its time");
    assert!((1.0..3.0).contains(&window), "two seconds at twice their speed: {window}");
    let shared = ran.json["later_turns"]["cached_share"].as_f64().expect("the host says it");
    assert!(shared > 0.6, "1024 of 1600 tokens are shared blocks: {shared}");
    std::fs::write(&file, rows.replace("2000", "500")).expect("it can be written");
    refused(&["bench", "--trace", path], &["trace.jsonl, line 3", "goes back"]);
    stop(served);
}

/// A server that answers each request with these bytes and hangs up. It says its address, and runs until the process ends.
fn misbehaving(answer: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback ports are free");
    let address = listener.local_addr().expect("it is bound").to_string();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let (mut socket, answer) = (socket, answer.clone());
            std::thread::spawn(move || {
                if read_request(&mut socket).is_some() {
                    let _ = socket.write_all(answer.as_bytes());
                }
            });
        }
    });
    address
}

/// Reads a request, so that hanging up does not reset what it is answered with.
fn read_request(socket: &mut TcpStream) -> Option<()> {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        let count = socket.read(&mut part).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.split("content-length: ").nth(1)?.split("\r\n").next()?.parse::<usize>().ok()?;
        if body.len() >= length {
            return Some(());
        }
    }
}

/// Checks that every request fails by one kind, which the report and the exit code tell.
fn check_fails(answer: String, kind: &str) {
    let url = format!("http://{}", misbehaving(answer));
    let ran = bench(&url, &["--model", "m", "--concurrency", "2", "--requests", "4", "--ignore-pauses"]);
    assert_eq!(ran.output.status.code(), Some(101), "the child is a test, whose failure is its exit code");
    assert_eq!((ran.count("succeeded"), ran.count("failed")), (0, 4), "{}", ran.table());
    assert_eq!(ran.json["errors"][0]["kind"], kind, "{:#}", ran.json["errors"]);
    assert!(ran.errors().contains(&format!("every request failed, most by `{kind}`")), "{}", ran.errors());
    assert!(ran.table().contains(kind), "{}", ran.table());
}

/// A response with a body that is sent whole.
fn response(status: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

#[test]
fn refusals_are_counted_by_status_and_type() {
    let body = "{\"error\":{\"type\":\"rate_limit_exceeded\",\"message\":\"come later\"}}";
    let busy = response("429 Too Many Requests", "application/json", body);
    check_fails(busy, "http 429 rate_limit_exceeded");
    check_fails(response("503 Service Unavailable", "text/plain", "busy"), "http 503");
}

#[test]
fn streams_that_are_cut_are_no_answers() {
    let event = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let whole = response("200 OK", "text/event-stream", event);
    check_fails(whole.clone(), "stream cut");
    let longer = format!("content-length: {}", event.len() + 100);
    check_fails(whole.replace(&format!("content-length: {}", event.len()), &longer), "stream cut");
    check_fails(String::new(), "stream cut");
    check_fails(response("200 OK", "application/json", "{}"), "protocol");
    check_fails(response("200 OK", "text/event-stream", "data: {\"choices\"\n\n"), "protocol");
    let told = "data: {\"error\":{\"type\":\"server_error\",\"message\":\"out of memory\"}}\n\n";
    check_fails(response("200 OK", "text/event-stream", told), "error event server_error");
}

#[test]
fn a_server_that_is_not_there_is_told_and_left_alone() {
    let nobody =
        TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("loopback ports are free");
    let url = format!("http://{nobody}");
    refused(&["bench", &url], &["cannot ask", "refused", "is it running?"]);
    let ran = bench(&url, &["--model", "m", "--duration", "60"]);
    assert!(!ran.output.status.success());
    assert_eq!(
        (&ran.json["ended_by"], &ran.json["errors"][0]["kind"]),
        (&"unreachable".into(), &"connect".into())
    );
    assert!(ran.table().contains("nobody listened"), "{}", ran.table());
}

#[test]
fn a_server_that_dies_midway_leaves_a_report_of_what_it_did() {
    let mut served = host(SIMULATED);
    let url = format!("http://{}", served.api);
    let args = [&SMALL[..], &["--model", "tiny-agent", "--duration", "30"]].concat();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(3));
        served.child.kill().expect("it runs");
        served.child.wait().expect("it ends")
    });
    let ran = bench(&url, &args);
    assert!(!killer.join().expect("it does not panic").success());
    assert!(ran.output.status.success(), "something was answered: {}", ran.errors());
    assert!(ran.count("succeeded") > 0 && ran.count("failed") > 0, "{}", ran.table());
    assert_eq!(ran.json["ended_by"], "unreachable");
    assert!(ran.json["window_s"].as_f64().is_some_and(|s| s < 15.0));
}

#[test]
fn an_interrupt_prints_what_there_is() {
    let served = host(SIMULATED);
    let url = format!("http://{}", served.api);
    let args = [&["bench", &url, "--duration", "600"], &SMALL[..]].concat();
    let mut command: Command = crate::process::command(&args);
    let child = command.spawn().expect("the process starts");
    std::thread::sleep(Duration::from_secs(3));
    signal(&child, "-INT");
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("the load was interrupted"), "{text}");
    assert!(text.contains("throughput"), "{text}");
    stop(served);
}

#[test]
fn wrong_arguments_are_named_with_what_would_be_right() {
    refused(&["bench", "ftp://x"], &["URL: `ftp://x`", "http://127.0.0.1:8080"]);
    refused(&["bench", "--rate", "0"], &["--rate: is 0; it lies between"]);
    refused(&["bench", "--extra", "{\"messages\":[]}"], &["--extra: `messages` is written by the load"]);
    refused(&["bench", "--concurrency", "two"], &["--concurrency", "invalid value"]);
}
