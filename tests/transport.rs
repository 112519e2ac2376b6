//! What reaches a request at all: connections, TLS, heads and bodies within their limits, pages of a browser.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use serve::app::App;
use serve::client::{Client, Trust};
use serve::config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::process::{command, run, signal};
use crate::support::{Heard, Host, PATIENCE, post, user, with_model};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("support/certificates").join(name)
}

fn pem(name: &str) -> Vec<u8> {
    std::fs::read(file(name)).expect("the test's certificates are there")
}

/// `tls_cert` and `tls_key`.
fn pair(cert: &Path, key: &Path) -> String {
    format!("tls_cert = {cert:?}\ntls_key = {key:?}\n")
}

fn listening_with(name: &str) -> String {
    pair(&file(&format!("{name}.cert.pem")), &file(&format!("{name}.key.pem")))
}

fn short() -> Value {
    with_model(json!({ "messages": user("hello"), "max_tokens": 4 }))
}

/// Reads until the host closes, or for as long as nothing here takes.
async fn rest(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A host that closes with bytes of ours unread resets the connection; what it said came before.
    let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut bytes));
    let _ = read.await.expect("the host closes");
    String::from_utf8_lossy(&bytes).into_owned()
}

// --- TLS ---------------------------------------------------------------------------------------

fn trusted(base: &str, name: &str) -> Client {
    Client::trusting(base, Trust::These(&pem(name))).expect("the certificate can be read")
}

#[tokio::test(flavor = "multi_thread")]
async fn both_listeners_speak_tls_with_their_own_certificates() {
    let toml = format!("[listen]\n{}[admin]\n{}", listening_with("one"), listening_with("two"));
    let host = Host::simulated(&toml).await;
    let api = format!("https://{}", host.server.api);
    let reply =
        trusted(&api, "one.cert.pem").post("/v1/chat/completions", &short()).await.expect("it answers");
    assert_eq!(reply.status, 200, "{}", reply.json);
    let admin = format!("https://{}", host.server.admin);
    let list = trusted(&admin, "two.cert.pem").get("/admin/v1/plugins").await.expect("it answers");
    assert_eq!(list.status, 200);
    for (base, wrong) in [(&api, "two.cert.pem"), (&admin, "one.cert.pem")] {
        let error = trusted(base, wrong).get("/health").await.expect_err("that is another's").to_string();
        assert!(error.contains("certificate"), "{error}");
    }
    let mut plain = host.connect().await;
    plain.write_all(&post("/v1/chat/completions", &short().to_string())).await.expect("the host reads");
    assert!(!rest(&mut plain).await.contains("200"), "nothing is answered without TLS");
    let ca = file("two.cert.pem");
    let ca = ca.to_str().expect("the path is UTF-8");
    let output = tokio::task::block_in_place(|| run(&["plugin", "list", "--admin", &admin, "--ca", ca]));
    assert!(output.status.success(), "{output:?}");
    host.stop().await;
}

/// A connection that offers these protocols, believing one certificate.
async fn shake_hands(
    host: &Host,
    believed: &str,
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&pem(believed)).expect("it is PEM"))
        .expect("it is a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    let name = ServerName::try_from("localhost").expect("that is a name");
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, host.connect().await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_choose_http_2_or_http_1() {
    let host = Host::simulated(&format!("[listen]\n{}", listening_with("one"))).await;
    let mut two = shake_hands(&host, "one.cert.pem", &["h2", "http/1.1"]).await.expect("hands are shaken");
    assert_eq!(two.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    two.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("the host reads");
    let mut frame = [0; 9];
    two.read_exact(&mut frame).await.expect("a frame comes");
    assert_eq!(frame[3], 4, "HTTP/2 begins with the server's settings");
    for offered in [&["http/1.1"][..], &[]] {
        let mut one = shake_hands(&host, "one.cert.pem", offered).await.expect("hands are shaken");
        one.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .expect("the host reads");
        let mut said = Vec::new();
        let _ = one.read_to_end(&mut said).await;
        assert!(said.starts_with(b"HTTP/1.1 200"), "{said:?}");
    }
    drop(two);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_shown_to_connections_after_the_reload() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let place = |name: &str| folder.path().join(name);
    let put = |name: &str| {
        for part in ["cert", "key"] {
            std::fs::copy(file(&format!("{name}.{part}.pem")), place(&format!("{part}.pem")))
                .expect("it can be copied");
        }
    };
    put("one");
    // Relative paths are relative to the file.
    let toml = "[listen]\ntls_cert = \"cert.pem\"\ntls_key = \"key.pem\"\n[engine]\ndevice = \"sim\"\n";
    std::fs::write(place("pointsman.toml"), toml).expect("it can be written");
    let host = Host::of_file(&place("pointsman.toml")).await;
    let api = format!("https://{}", host.server.api);
    let kept = trusted(&api, "one.cert.pem");
    assert_eq!(kept.get("/health").await.expect("it answers").status, 200);
    put("two");
    std::fs::copy(file("one.key.pem"), place("key.pem")).expect("it can be copied");
    let reply = host.admin.post("/admin/v1/reload", &json!({})).await.expect("it answers");
    let message = reply.json["error"]["message"].as_str().unwrap_or_default();
    assert_eq!(reply.status, 422, "a key of another certificate is refused");
    assert!(message.contains("listen.tls_key") && message.contains("key.pem"), "{message}");
    assert!(shake_hands(&host, "one.cert.pem", &[]).await.is_ok(), "and the pair in use stays");
    put("two");
    assert_eq!(host.admin.post("/admin/v1/reload", &json!({})).await.expect("it answers").status, 200);
    assert!(shake_hands(&host, "one.cert.pem", &[]).await.is_err());
    assert!(shake_hands(&host, "two.cert.pem", &[]).await.is_ok());
    assert_eq!(
        kept.get("/health").await.expect("it answers").status,
        200,
        "a connection from before goes on"
    );
    host.stop().await;
}

#[test]
fn a_certificate_that_cannot_be_used_is_named_at_the_start() {
    let start = |toml: &str, words: &[&str]| {
        let config = Config::parse(toml).expect("the text is right");
        let error = App::start(config, None).map(|_| ()).expect_err(toml).to_string();
        for word in words {
            assert!(error.contains(word), "`{word}` is missing in `{error}`");
        }
    };
    let listen = |cert: &str, key: &str| format!("[listen]\n{}", pair(&file(cert), &file(key)));
    start(&listen("none.pem", "one.key.pem"), &["listen.tls_cert", "none.pem"]);
    start(&listen("one.cert.pem", "none.pem"), &["listen.tls_key", "none.pem"]);
    start(&listen("one.key.pem", "one.key.pem"), &["listen.tls_cert", "one.key.pem", "BEGIN CERTIFICATE"]);
    start(&listen("one.cert.pem", "two.key.pem"), &["listen.tls_cert", "one.cert.pem", "two.key.pem"]);
    let admin = pair(&file("one.cert.pem"), &file("one.cert.pem"));
    start(&format!("[admin]\n{admin}"), &["admin.tls_key", "one.cert.pem"]);
    for (toml, words) in [
        ("[listen]\ntls_cert = \"x\"", ["listen.tls_key", "needs both"]),
        ("[admin]\ntls_key = \"x\"", ["admin.tls_cert", "needs both"]),
        ("[listen]\ncors_origins = [\"app.example\"]", ["listen.cors_origins[0]", "https://app.example.com"]),
        ("[listen]\ncors_origins = [\"*\", \"http://a\"]", ["listen.cors_origins", "and others"]),
        ("[listen]\nadmin = \"0.0.0.0:1\"", ["listen.admin", "admin.token_sha256"]),
        ("[admin]\ntoken_sha256 = \"secret\"", ["admin.token_sha256", "64 hexadecimal"]),
    ] {
        let error = Config::parse(toml).expect_err(toml).to_string();
        assert!(words.iter().all(|word| error.contains(word)) && !error.contains("secret"), "{error}");
    }
}

// --- slow and large ----------------------------------------------------------------------------

const HASTY: &str = "[limits]\nhead_seconds_max = 1\nbody_idle_seconds_max = 1\nbody_seconds_max = 2\n";

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_is_not_waited_for() {
    let host = Host::simulated(HASTY).await;
    for said in ["", "P", "PRI * HT", "GET /health HTTP/1.1\r\nhost: x\r\n", "GET /health HTTP/1.1\r\nx: "] {
        let mut socket = host.connect().await;
        socket.write_all(said.as_bytes()).await.expect("the host reads");
        let heard = rest(&mut socket).await;
        assert!(!heard.contains("200"), "{said:?} got {heard}");
    }
    host.stop().await;
    let host = Host::simulated(&format!("[listen]\n{}{HASTY}", listening_with("one"))).await;
    for said in [&b""[..], b"\x16\x03\x01"] {
        let mut socket = host.connect().await;
        socket.write_all(said).await.expect("the host reads");
        assert_eq!(rest(&mut socket).await, "", "a handshake ends in time");
    }
    host.stop().await;
}

fn head(length: usize) -> String {
    format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_408() {
    let host = Host::simulated(HASTY).await;
    // Nothing after a beginning.
    let mut socket = host.connect().await;
    socket.write_all(format!("{}{{\"mes", head(1000)).as_bytes()).await.expect("the host reads");
    let stalled = Heard::of(&rest(&mut socket).await);
    assert_eq!((stalled.status(), stalled.header("connection")), ("408", "close"));
    assert!(stalled.json["error"]["message"].as_str().is_some_and(|m| m.contains("nothing came for 1 s")));
    // Something all the time, and never enough.
    let mut socket = host.connect().await;
    socket.write_all(head(1000).as_bytes()).await.expect("the host reads");
    let (mut reading, mut writing) = socket.split();
    let trickle = async {
        for _ in 0..1000 {
            if writing.write_all(b" ").await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let mut bytes = Vec::new();
    tokio::select! {
        () = trickle => panic!("a body of a minute and more was waited for"),
        _ = reading.read_to_end(&mut bytes) => {}
    }
    let trickled = Heard::of(&String::from_utf8_lossy(&bytes));
    assert_eq!(trickled.status(), "408");
    assert!(trickled.json["error"]["message"].as_str().is_some_and(|m| m.contains("more than 2 s")));
    assert_eq!(host.server.app.requests_running(), 0, "no seat is held");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_too_large_are_431() {
    let host = Host::simulated("[limits]\nheader_bytes_max = 10000\nheaders_max = 20\n").await;
    let get =
        |headers: &str| format!("GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    let many = |count: usize| (0..count).map(|i| format!("x-{i}: 1\r\n")).collect::<String>();
    for (headers, status) in [
        (format!("x: {}\r\n", "a".repeat(9000)), "200"),
        (format!("x: {}\r\n", "a".repeat(20_000)), "431"),
        (many(18), "200"),
        (many(19), "431"),
    ] {
        let mut socket = host.connect().await;
        socket.write_all(get(&headers).as_bytes()).await.expect("the host reads");
        let heard = rest(&mut socket).await;
        assert_eq!(heard.split(' ').nth(1), Some(status), "{heard}");
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_says_it_is_too_large_is_refused_before_it_is_sent() {
    let host = Host::simulated("").await;
    let mut socket = host.connect().await;
    socket.write_all(head((32 << 20) + 1).as_bytes()).await.expect("the host reads");
    let mut said = [0; 12];
    tokio::time::timeout(PATIENCE, socket.read_exact(&mut said))
        .await
        .expect("it answers")
        .expect("it answers");
    assert_eq!(&said, b"HTTP/1.1 413");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_connections_are_served_than_may_be() {
    let host = Host::simulated("[limits]\nconnections_max = 2\n").await;
    let (first, second) = (host.connect().await, host.connect().await);
    let mut third = host.connect().await;
    third
        .write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .expect("it is queued");
    let mut byte = [0];
    let early = tokio::time::timeout(Duration::from_millis(300), third.read(&mut byte)).await;
    assert!(early.is_err(), "it waits for a place");
    drop(first);
    assert!(rest(&mut third).await.starts_with("HTTP/1.1 200"));
    drop(second);
    host.stop().await;
}

// --- what a body may be ------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn json_is_read_to_its_depth_and_no_deeper() {
    let host = Host::simulated("").await;
    let nested = |depth: usize| {
        // The object around it is one level more.
        let inner = "[".repeat(depth - 1) + &"]".repeat(depth - 1);
        short().to_string().replacen('{', &format!("{{\"x\":{inner},"), 1)
    };
    assert_eq!(Heard::of(&host.raw(&post("/v1/chat/completions", &nested(100))).await).status(), "200");
    for depth in [101, 10_000, 1_000_000] {
        let heard = Heard::of(&host.raw(&post("/v1/chat/completions", &nested(depth))).await);
        let message = heard.json["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(heard.status(), "400", "{depth}: {}", heard.json);
        assert!(message.contains("100 deep") && message.contains("json_depth_max"), "{message}");
    }
    let unclosed = format!("{{\"messages\":{}", "[".repeat(200_000));
    assert_eq!(Heard::of(&host.raw(&post("/v1/chat/completions", &unclosed)).await).status(), "400");
    assert_eq!(host.chat(short()).await.status, 200);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_plain_utf_8_is_read() {
    let host = Host::simulated("").await;
    let send = async |headers: &[(&str, &str)], body: Vec<u8>| {
        let reply = host
            .api
            .send_with(Method::POST, "/v1/chat/completions", headers, body)
            .await
            .expect("it answers");
        (reply.status.as_u16(), reply.json["error"]["message"].as_str().unwrap_or_default().to_owned())
    };
    for encoding in ["gzip", "zstd", "br", "deflate", "identity, gzip"] {
        let (status, message) =
            send(&[("content-encoding", encoding)], short().to_string().into_bytes()).await;
        assert_eq!(status, 415, "{encoding}");
        assert!(message.contains(encoding) && message.contains("without that header"), "{message}");
    }
    assert_eq!(send(&[("content-encoding", "identity")], short().to_string().into_bytes()).await.0, 200);
    let latin = short().to_string().replace("hello", "hell@").into_bytes();
    let latin = latin.into_iter().map(|b| if b == b'@' { 0xf6 } else { b }).collect();
    let (status, message) = send(&[], latin).await;
    assert_eq!(status, 400);
    assert!(message.contains("UTF-8") && message.contains("byte "), "{message}");
    host.stop().await;
}

// --- pages of a browser ------------------------------------------------------------------------

const PREFLIGHT: &str =
    "access-control-request-method: POST\r\naccess-control-request-headers: authorization,content-type\r\n";

async fn ask(host: &Host, method: &str, path: &str, headers: &str) -> Heard {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: 0\r\n\r\n"
    );
    Heard::of(&host.raw(request.as_bytes()).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_listed_origins_may_read_answers() {
    let key = "[[auth.keys]]\nsha256 = \"5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5\"\ntenant = \"a\"\n";
    let host = Host::simulated(&format!("[listen]\ncors_origins = [\"https://app.example\"]\n{key}")).await;
    let listed = "origin: https://app.example\r\n";
    let preflight = ask(&host, "OPTIONS", "/v1/chat/completions", &format!("{listed}{PREFLIGHT}")).await;
    assert_eq!(preflight.status(), "200", "a preflight shows no key");
    assert_eq!(preflight.header("access-control-allow-origin"), "https://app.example");
    assert!(preflight.header("access-control-allow-headers").contains("authorization"));
    assert!(preflight.header("access-control-allow-methods").contains("POST"));
    // Refusals can be read too, or a page could not say what is wrong.
    let without_key = ask(&host, "GET", "/v1/models", listed).await;
    assert_eq!(
        (without_key.status(), without_key.header("access-control-allow-origin")),
        ("401", "https://app.example")
    );
    let other = ask(
        &host,
        "OPTIONS",
        "/v1/chat/completions",
        &format!("origin: https://evil.example\r\n{PREFLIGHT}"),
    )
    .await;
    assert_eq!(other.header("access-control-allow-origin"), "");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_list_no_origin_may_and_with_a_star_all() {
    let host = Host::simulated("").await;
    let heard = ask(&host, "GET", "/v1/models", "origin: https://app.example\r\n").await;
    assert_eq!((heard.status(), heard.header("access-control-allow-origin")), ("200", ""));
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let heard =
        ask(&host, "GET", "/v1/responses", &format!("{upgrade}origin: https://app.example\r\n")).await;
    assert_eq!((heard.status(), &heard.json["error"]["type"]), ("403", &json!("permission_error")));
    host.stop().await;
    let host = Host::simulated("[listen]\ncors_origins = [\"*\"]").await;
    let heard = ask(&host, "GET", "/v1/models", "origin: https://app.example\r\n").await;
    assert_eq!((heard.status(), heard.header("access-control-allow-origin")), ("200", "*"));
    host.stop().await;
}

// --- logs --------------------------------------------------------------------------------------

#[test]
fn nothing_of_a_request_is_in_the_log() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let config = folder.path().join("pointsman.toml");
    let toml =
        "[telemetry]\nlog = \"debug,serve=trace,policy=trace,hyper=trace\"\n[engine]\ndevice = \"sim\"\n";
    std::fs::write(&config, toml).expect("it can be written");
    let log = std::fs::File::create(folder.path().join("log")).expect("it can be made");
    let args = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--config"];
    let mut child = command(&[&args[..], &[config.to_str().expect("the path is UTF-8")]].concat())
        .stderr(log)
        .spawn()
        .expect("the process starts");
    let mut stdout = std::io::BufReader::new(child.stdout.take().expect("stdout is piped"));
    let address = address(&mut stdout);
    let secret = "xylophone-7319";
    let tool =
        json!([{ "type": "function", "function": { "name": secret, "parameters": { "type": "object" } } }]);
    let good = json!({ "messages": user(secret), "max_tokens": 8, "tools": tool, "stop": [secret], "user": secret,
        "metadata": { "session": secret } });
    let streamed = json!({ "messages": user(secret), "max_tokens": 8, "stream": true });
    let bad = json!({ "messages": [{ "role": secret, "content": secret }] });
    for body in [
        with_model(good).to_string(),
        with_model(streamed).to_string(),
        with_model(bad).to_string(),
        format!("{{\"{secret}\""),
    ] {
        for path in ["/v1/chat/completions", "/v1/messages", "/v1/responses"] {
            let request = String::from_utf8(post(path, &body)).expect("requests are UTF-8");
            let headers = format!(
                "\r\nauthorization: Bearer {secret}\r\nx-claude-code-session-id: {secret}\r\ncookie: {secret}\r\n"
            );
            let mut socket = std::net::TcpStream::connect(&address).expect("the host listens");
            std::io::Write::write_all(&mut socket, request.replacen("\r\n", &headers, 1).as_bytes())
                .expect("the host reads");
            let mut said = String::new();
            socket.read_to_string(&mut said).expect("it answers");
            assert!(said.starts_with("HTTP/1.1 "), "{said}");
        }
    }
    signal(&child, "-TERM");
    assert!(child.wait().expect("it ends").success());
    let log = std::fs::read_to_string(folder.path().join("log")).expect("it can be read");
    assert!(log.contains("request finished") && log.contains("request refused"), "{log}");
    let told: Vec<&str> = log.lines().filter(|line| line.contains(secret)).collect();
    assert!(told.is_empty(), "{told:#?}");
}

/// The address that a serving child prints.
fn address(stdout: &mut impl std::io::BufRead) -> String {
    let mut line = String::new();
    while stdout.read_line(&mut line).expect("the child prints") > 0 {
        if let Some(rest) = line.strip_prefix("api ") {
            let address = rest.trim().trim_start_matches("http://");
            return address.split('/').next().expect("a text has a first part").to_owned();
        }
        line.clear();
    }
    panic!("the child did not say where it listens");
}
