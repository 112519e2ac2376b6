//! Real servers on loopback: `moto_server`, which speaks S3, and `redis-server`. Continuous integration installs them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;

use super::behaviour::check_store;
use super::*;

/// A server that ends with the test.
pub(super) struct Server {
    process: Child,
    port: u16,
}

impl Server {
    /// Starts a program that takes a port, and waits until it listens.
    fn start(program: &str, args: impl FnOnce(u16) -> Vec<String>) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let port = free.local_addr().expect("it is bound").port();
        drop(free);
        let mut command = Command::new(program);
        command.args(args(port)).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().unwrap_or_else(|error| {
            panic!("`{program}` cannot be started ({error}); `.ci/run` says how it is installed")
        });
        let server = Self { process, port };
        for _ in 0..600 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return server;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("`{program}` does not listen on port {port} after half a minute");
    }

    pub(super) fn moto() -> Self {
        assert!(
            std::env::var("AWS_ACCESS_KEY_ID").is_ok() && std::env::var("AWS_SECRET_ACCESS_KEY").is_ok(),
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY have to be set, to anything: requests are signed"
        );
        let server = Self::start("moto_server", |port| {
            ["-H", "127.0.0.1", "-p", &port.to_string()].map(str::to_owned).to_vec()
        });
        let answer = server
            .ask("PUT /bucket HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        server
    }

    pub(super) fn redis() -> Self {
        Self::start("redis-server", |port| {
            let port = port.to_string();
            let args = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
            args.map(str::to_owned).to_vec()
        })
    }

    fn ask(&self, text: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit can be set");
        stream.write_all(text.as_bytes()).expect("it reads");
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        while answer.len() < 1 << 20 {
            match stream.read(&mut chunk) {
                Ok(0) | Err(_) => break,
                Ok(more) => answer.extend(&chunk[..more]),
            }
            if answer.ends_with(b"\r\n") && !text.contains("HTTP") {
                break;
            }
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(super) fn url(&self, form: &str) -> String {
        form.replace("PORT", &self.port.to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(super) const S3: &str = "s3://bucket/path?endpoint=http://127.0.0.1:PORT";
pub(super) const REDIS: &str = "redis://127.0.0.1:PORT/1";

#[test]
#[ignore = "needs `moto_server`"]
fn blocks_in_s3_are_shared_by_hosts() {
    let server = Server::moto();
    check_store(&server.url(S3));
    let listed =
        server.ask("GET /bucket?list-type=2 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let expected = "path/kv/v1/000000000000feed/10000/00/00000000000000000000000000000001";
    assert!(listed.contains(expected), "{listed}");
}

#[test]
#[ignore = "needs `moto_server`"]
fn s3_writes_only_what_is_absent() {
    let server = Server::moto();
    let (first, second) = (Rig::at(&server.url(S3)), Rig::at(&server.url(S3)));
    first.put_all(1..9);
    second.put_all(1..9);
    let (first, second) = (first.remote.stats(), second.remote.stats());
    assert_eq!((first.puts, second.puts, second.puts_present), (8, 0, 8), "{second:?}");
}

#[test]
#[ignore = "needs `moto_server`"]
fn a_bucket_that_is_not_there_fails_and_is_no_miss() {
    let server = Server::moto();
    let rig = Rig::at(&server.url("s3://other?endpoint=http://127.0.0.1:PORT"));
    assert_eq!(rig.fetched([1]), (0, End::Failed));
    assert_eq!(rig.remote.known(BlockName(1)), Known::Unknown);
}

#[test]
#[ignore = "needs `redis-server`"]
fn blocks_in_redis_are_shared_by_hosts() {
    let server = Server::redis();
    check_store(&server.url(REDIS));
}

#[test]
#[ignore = "needs `redis-server`"]
fn blocks_in_redis_leave_when_their_time_is_over() {
    let server = Server::redis();
    let rig = Rig::at(&server.url("redis://127.0.0.1:PORT/1?ttl_s=1"));
    rig.put_all([1]);
    rig.remote.forget();
    assert_eq!(rig.fetched([1]), (1, End::All));
    let key = "/kv/v1/000000000000feed/10000/00/00000000000000000000000000000001";
    let mut left = 0;
    for key in [key, &key[1..]] {
        let asked = server.ask(&format!("SELECT 1\r\nTTL {key}\r\nQUIT\r\n"));
        left += i32::from(asked.contains(":1\r\n") || asked.contains(":0\r\n"));
    }
    assert!(left <= 1, "a key has one spelling");
    thread::sleep(Duration::from_millis(1_500));
    rig.remote.forget();
    assert_eq!(rig.fetched([1]), (0, End::Miss));
}

#[test]
#[ignore = "needs `redis-server`"]
fn a_redis_that_dies_and_comes_back_is_used_again() {
    let mut server = Server::redis();
    let rig = Rig::new(&Config {
        url: server.url(REDIS),
        failures_max: 1,
        read_timeout_ms: 500,
        ..Config::default()
    });
    rig.put_all([1]);
    server.process.kill().expect("it runs");
    server.process.wait().expect("it was ours");
    let fetched = rig.fetch([1]).expect("it is accepted");
    assert!(matches!(fetched.end, End::Failed | End::TimedOut), "{:?}", fetched.end);
    assert_eq!(rig.fetch([1]).err(), Some(Outcome::Open));
    let port = server.port.to_string();
    let args = ["--port", &port, "--bind", "127.0.0.1", "--save", ""];
    server.process =
        Command::new("redis-server").args(args).stdout(Stdio::null()).spawn().expect("it started before");
    rig.remote.forget();
    for _ in 0..60 {
        rig.pass(60_000);
        thread::sleep(Duration::from_millis(100));
        if rig.fetch([1]).is_ok_and(|fetched| fetched.end == End::Miss) {
            rig.put_all([1]);
            assert_eq!(rig.fetched([1]), (1, End::All));
            return;
        }
    }
    panic!("it is not used again: {:?}", rig.remote.stats());
}
