//! A host in this process on ports of its own, and ways to talk to it as clients do.

pub(crate) mod standin;

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use serve::app::App;
use serve::client::{Client, Reply};
use serve::config::Config;
use serve::server::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Chosen: far beyond what anything here takes, so that only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running host.
pub(crate) struct Host {
    pub(crate) server: Server,
    pub(crate) api: Client,
    pub(crate) admin: Client,
}

/// A response as it came over the wire.
pub(crate) struct Heard {
    head: String,
    pub(crate) json: Value,
}

impl Heard {
    /// From the bytes of a response, unchunked.
    pub(crate) fn of(response: &str) -> Self {
        let (head, body) = response.split_once("\r\n\r\n").expect("a response has a head");
        Self { head: head.to_owned(), json: serde_json::from_str(body).unwrap_or(Value::Null) }
    }

    pub(crate) fn status(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// A header; empty if it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }
}

impl Host {
    /// A host with the embedded model and what `toml` changes.
    pub(crate) async fn start(toml: &str) -> Self {
        Self::start_with(toml, 20).await
    }

    /// The same, with a stop that waits for so many seconds.
    pub(crate) async fn start_with(toml: &str, drain_seconds: u64) -> Self {
        let config = Config::parse(toml).expect("the test's configuration is right");
        Self::start_config(config, None, drain_seconds).await
    }

    /// A host with the configuration of a file, which it may be told to read again.
    pub(crate) async fn of_file(path: &std::path::Path) -> Self {
        let config = Config::load(path).expect("the test's configuration is right");
        Self::start_config(config, Some(path.to_owned()), 20).await
    }

    async fn start_config(mut config: Config, path: Option<std::path::PathBuf>, drain_seconds: u64) -> Self {
        config.listen.api = SocketAddr::from(([127, 0, 0, 1], 0));
        config.listen.admin = SocketAddr::from(([127, 0, 0, 1], 0));
        config.limits.drain_seconds = drain_seconds;
        if config.supply.cache_dir.is_empty() {
            // Tests leave nothing in the folders of whoever runs them.
            "off".clone_into(&mut config.supply.cache_dir);
        }
        let app = tokio::task::spawn_blocking(move || App::start(config, path))
            .await
            .expect("start does not panic");
        let server = Server::start(app.expect("the host starts")).await.expect("loopback ports are free");
        let api = Client::new(format!("http://{}", server.api));
        let admin = Client::new(format!("http://{}", server.admin));
        Self { server, api, admin }
    }

    /// A host whose device costs nothing and makes up tokens.
    pub(crate) async fn simulated(toml: &str) -> Self {
        Self::start(&format!("{toml}\n[engine]\ndevice = \"sim\"\n")).await
    }

    pub(crate) async fn chat(&self, body: Value) -> Reply {
        tokio::time::timeout(PATIENCE, self.api.post("/v1/chat/completions", &with_model(body)))
            .await
            .expect("an answer comes")
            .expect("the connection holds")
    }

    /// A streamed answer: its data lines in order, without `[DONE]`, which must be last.
    pub(crate) async fn stream(&self, body: Value) -> Vec<Value> {
        let mut body = with_model(body);
        body["stream"] = json!(true);
        let response = self.raw(&post("/v1/chat/completions", &body.to_string())).await;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        let mut lines: Vec<&str> = response.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
        assert_eq!(lines.pop(), Some("[DONE]"), "{response}");
        lines.into_iter().map(|l| serde_json::from_str(l).expect("a chunk is JSON")).collect()
    }

    /// Bytes in, bytes out, until the host closes; chunked framing is taken off.
    pub(crate) async fn raw(&self, request: &[u8]) -> String {
        let mut socket = self.connect().await;
        socket.write_all(request).await.expect("the host reads");
        let mut response = Vec::new();
        let read = socket.read_to_end(&mut response);
        tokio::time::timeout(PATIENCE, read).await.expect("an answer comes").expect("the connection holds");
        unchunked(&String::from_utf8(response).expect("answers are UTF-8"))
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server.api).await.expect("the host listens")
    }

    /// A value of a metric, summed over its labels.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let response = self.raw(request).await;
        let named = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        response.lines().filter(named).filter_map(value).sum::<f64>() as u64
    }

    /// The active generation's id.
    pub(crate) async fn generation(&self) -> u64 {
        let reply = self.admin.get("/admin/v1/generations").await.expect("the admin API answers");
        reply.json["active"].as_u64().expect("an id is a number")
    }

    /// A chat on a connection of its own, with these headers.
    pub(crate) async fn chat_with(&self, headers: &[(&str, &str)], body: Value) -> Heard {
        self.post_with("/v1/chat/completions", headers, body).await
    }

    /// A POST on a connection of its own, with these headers.
    pub(crate) async fn post_with(&self, path: &str, headers: &[(&str, &str)], body: Value) -> Heard {
        let mut request = with_model(body).to_string();
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        request = String::from_utf8(post(path, &request)).expect("requests are UTF-8").replacen(
            "\r\n",
            &format!("\r\n{headers}"),
            1,
        );
        Heard::of(&self.raw(request.as_bytes()).await)
    }

    /// A metric of a plugin; null if it never said it.
    pub(crate) async fn said(&self, plugin: &str, metric: &str) -> Value {
        let reply = self.admin.get("/admin/v1/plugins").await.expect("the admin API answers");
        let plugins = reply.json["plugins"].as_array().cloned().unwrap_or_default();
        let report = plugins.into_iter().find(|p| p["name"] == plugin).expect("the plugin is in the chain");
        report["metrics"][metric]["value"].clone()
    }

    /// Calls of a plugin in a slot with an outcome.
    pub(crate) async fn calls(&self, plugin: &str, slot: &str, outcome: &str) -> u64 {
        let reply = self.admin.get("/admin/v1/plugins").await.expect("the admin API answers");
        let plugins = reply.json["plugins"].as_array().cloned().unwrap_or_default();
        let report = plugins.into_iter().find(|p| p["name"] == plugin).expect("the plugin is in the chain");
        report["calls"][slot]["outcomes"][outcome].as_u64().unwrap_or(0)
    }

    /// Sums a field over all workers.
    pub(crate) async fn workers(&self, field: &str) -> u64 {
        let reply = self.admin.get("/admin/v1/workers").await.expect("the admin API answers");
        let workers = reply.json["workers"].as_array().cloned().unwrap_or_default();
        workers.iter().filter_map(|w| w[field].as_u64()).sum()
    }

    /// Waits until a condition holds.
    pub(crate) async fn until<F: Future<Output = bool>>(&self, what: &str, condition: impl Fn() -> F) {
        let wait = async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never happened: {what}"));
    }

    pub(crate) async fn stop(self) {
        assert!(self.server.stop().await, "everything ends within the drain limit");
    }
}

pub(crate) fn with_model(mut body: Value) -> Value {
    if body.get("model").is_none() {
        body["model"] = json!("tiny-agent");
    }
    body
}

/// A POST on a connection that closes after it.
pub(crate) fn post(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn unchunked(response: &str) -> String {
    let Some((head, mut rest)) = response.split_once("\r\n\r\n") else { return response.to_owned() };
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return response.to_owned();
    }
    let mut body = String::new();
    while let Some((size, tail)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk begins with its size");
        if size == 0 {
            break;
        }
        body += &tail[..size];
        rest = tail[size..].trim_start_matches("\r\n");
    }
    format!("{head}\r\n\r\n{body}")
}

pub(crate) fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

/// The tools that the embedded model knows.
pub(crate) fn tools() -> Value {
    let tool = |name: &str, properties: Value| {
        json!({ "type": "function", "function": {
            "name": name, "parameters": { "type": "object", "properties": properties } } })
    };
    let string = || json!({ "type": "string" });
    json!([
        tool("calc", json!({ "expression": string() })),
        tool("list_files", json!({ "path": string() })),
        tool("write_file", json!({ "path": string(), "content": string() })),
        tool("read_file", json!({ "path": string() })),
    ])
}

/// The component of a guest or an example of this workspace, built once.
pub(crate) fn component(package: &str) -> std::path::PathBuf {
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    let root =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the project");
    let target = guest_build::target_dir_of_test().expect("a test knows its own path");
    let built = guest_build::build(root, &target, &[package.to_owned()], |line| eprintln!("{line}"));
    built.unwrap_or_else(|e| panic!("{e}")).remove(0)
}

/// The same, as bytes.
pub(crate) fn component_bytes(package: &str) -> Vec<u8> {
    std::fs::read(component(package)).expect("a component that was built can be read")
}

/// A configuration in which the guest `faulty`, set to `fault`, scores alone.
pub(crate) fn faulty_scorer(fault: &str, more: &str) -> String {
    format!(
        "[chain]\nscore = [{{ plugin = \"faulty\" }}]\n[plugins.faulty]\nsource = {:?}\nconfig = {{ fault = \"{fault}\" }}\n{more}\n",
        component("faulty")
    )
}
