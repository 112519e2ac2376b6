//! Who may call, how much, and whose cache they see.

use axum::http::Method;
use serde_json::{Value, json};
use serve::client::{Client, Trust};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use crate::process::{refused, run};
use crate::support::{Heard, Host, post, user, with_model};

pub(crate) fn sha256(key: &str) -> String {
    Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The entry of the key `sk-NAME`, whose tenant is NAME too, with more lines.
fn key(name: &str, more: &str) -> String {
    let sha256 = sha256(&format!("sk-{name}"));
    format!("[[auth.keys]]\nname = \"{name}\"\nsha256 = \"{sha256}\"\ntenant = \"{name}\"\n{more}\n")
}

/// A call on a connection of its own, with a key or without.
async fn call(host: &Host, method: &str, path: &str, key: Option<&str>) -> Heard {
    let key = key.map(|key| format!("x-api-key: {key}\r\n")).unwrap_or_default();
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{key}content-length: 0\r\n\r\n");
    Heard::of(&host.raw(request.as_bytes()).await)
}

async fn chat(host: &Host, key: &str, body: Value) -> Heard {
    host.chat_with(&[("x-api-key", key)], body).await
}

fn short() -> Value {
    json!({ "messages": user("hello"), "max_tokens": 4 })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_but_health_wants_a_key() {
    let host = Host::simulated(&key("acme", "")).await;
    for (method, path) in [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/messages/count_tokens"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/tiny-agent"),
        ("GET", "/v1/responses"),
        ("GET", "/"),
        ("DELETE", "/health"),
        ("GET", "/nowhere"),
    ] {
        for wrong in [None, Some("sk-other"), Some("")] {
            let heard = call(&host, method, path, wrong).await;
            assert_eq!(
                (heard.status(), heard.header("www-authenticate")),
                ("401", "Bearer"),
                "{method} {path}"
            );
        }
        assert_ne!(call(&host, method, path, Some("sk-acme")).await.status(), "401", "{method} {path}");
    }
    for (method, path) in [("GET", "/health"), ("GET", "/ready"), ("GET", "/metrics"), ("HEAD", "/health")] {
        assert_eq!(call(&host, method, path, None).await.status(), "200", "{method} {path}");
    }
    for path in ["/", "/api/hello"] {
        assert_ne!(call(&host, "HEAD", path, None).await.status(), "401", "HEAD {path}");
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_can_be_closed() {
    let host = Host::simulated(&format!("[auth]\nmetrics_open = false\n{}", key("acme", ""))).await;
    assert_eq!(call(&host, "GET", "/metrics", None).await.status(), "401");
    assert_eq!(call(&host, "GET", "/metrics", Some("sk-acme")).await.status(), "200");
    assert_eq!(call(&host, "GET", "/health", None).await.status(), "200");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_read_from_either_header_and_from_nowhere_else() {
    let host = Host::simulated(&key("acme", "")).await;
    for (name, value, status) in [
        ("authorization", "Bearer sk-acme", "200"),
        ("authorization", "bearer   sk-acme", "200"),
        ("x-api-key", "sk-acme", "200"),
        ("authorization", "Basic sk-acme", "401"),
        ("authorization", "sk-acme", "401"),
        ("authorization", "Bearer", "401"),
        ("authorization", "Bearer sk-acme sk-acme", "401"),
        ("x-api-key", "Bearer sk-acme", "401"),
        ("api-key", "sk-acme", "401"),
        ("cookie", "key=sk-acme", "401"),
    ] {
        let heard = host.chat_with(&[(name, value)], short()).await;
        assert_eq!(heard.status(), status, "{name}: {value} gave {}", heard.json);
    }
    let heard = call(&host, "GET", "/v1/models?api_key=sk-acme", None).await;
    assert_eq!(heard.status(), "401");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_the_shape_of_their_protocol() {
    let host = Host::simulated(&(key("acme", "") + &key("gone", "disabled = true"))).await;
    let openai = call(&host, "POST", "/v1/chat/completions", None).await.json;
    assert_eq!(openai["error"]["code"], "invalid_api_key", "{openai}");
    let anthropic = call(&host, "POST", "/v1/messages", None).await.json;
    assert_eq!(anthropic["type"], "error", "{anthropic}");
    assert_eq!(anthropic["error"]["type"], "authentication_error", "{anthropic}");
    let heard = call(&host, "POST", "/v1/messages", Some("sk-gone")).await;
    assert_eq!((heard.status(), &heard.json["error"]["type"]), ("403", &json!("permission_error")));
    let heard = chat(&host, "sk-gone", short()).await;
    assert_eq!((heard.status(), &heard.json["error"]["type"]), ("403", &json!("permission_error")));
    assert!(heard.json["error"]["message"].as_str().is_some_and(|m| m.contains("`gone` is disabled")));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_uses_the_models_that_it_may_use() {
    let keys = key("any", "") + &key("tiny", "models = [\"tiny-*\"]") + &key("big", "models = [\"big\"]");
    let host = Host::simulated(&keys).await;
    assert_eq!(chat(&host, "sk-any", short()).await.status(), "200");
    assert_eq!(chat(&host, "sk-tiny", short()).await.status(), "200");
    let heard = chat(&host, "sk-big", short()).await;
    assert_eq!(heard.status(), "403", "{}", heard.json);
    let message = heard.json["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("tiny-agent") && message.contains("it may use big"), "{message}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_a_minute_are_counted_key_by_key() {
    let host = Host::simulated(&(key("two", "requests_per_minute = 2") + &key("free", ""))).await;
    let first = chat(&host, "sk-two", short()).await;
    assert_eq!((first.status(), first.header("x-ratelimit-limit-requests")), ("200", "2"));
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "1");
    assert!(first.header("x-ratelimit-reset-requests").ends_with('s'), "as Go writes durations");
    assert_eq!(first.header("x-ratelimit-limit-tokens"), "", "there is no such limit");
    assert_eq!(chat(&host, "sk-two", short()).await.status(), "200");
    let third = chat(&host, "sk-two", short()).await;
    assert_eq!((third.status(), &third.json["error"]["code"]), ("429", &json!("rate_limit_exceeded")));
    assert_eq!(third.header("x-ratelimit-remaining-requests"), "0");
    let ms: u64 = third.header("retry-after-ms").parse().expect("it is a number");
    assert!((20_000..=30_000).contains(&ms), "{ms}");
    assert_eq!(third.header("retry-after"), ms.div_ceil(1000).to_string());
    let message = third.json["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("2 requests a minute"), "{message}");
    let other = chat(&host, "sk-free", short()).await;
    assert_eq!((other.status(), other.header("x-ratelimit-limit-requests")), ("200", ""));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tokens_of_an_answer_are_a_debt_for_the_next_request() {
    let host = Host::simulated(&key("acme", "tokens_per_minute = 100")).await;
    let first = chat(&host, "sk-acme", json!({ "messages": user("hello"), "max_tokens": 150 })).await;
    assert_eq!((first.status(), first.header("x-ratelimit-limit-tokens")), ("200", "100"));
    let used = first.json["usage"]["total_tokens"].as_u64().expect("usage is a number");
    assert!(used > 150, "{used}");
    let second = chat(&host, "sk-acme", short()).await;
    assert_eq!((second.status(), second.header("x-ratelimit-remaining-tokens")), ("429", "0"));
    let ms: u64 = second.header("retry-after-ms").parse().expect("it is a number");
    // What was used beyond the limit, and one token more, at 100 a minute.
    let due = (used - 100 + 1) * 600;
    assert!((due - 15_000..=due).contains(&ms), "{ms} of {due}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_told_their_limits_in_their_own_headers() {
    let host = Host::simulated(&key("acme", "requests_per_minute = 7\ntokens_per_minute = 5000")).await;
    let heard = call(&host, "POST", "/v1/messages", Some("sk-acme")).await;
    assert_eq!(heard.header("anthropic-ratelimit-requests-limit"), "7");
    assert_eq!(heard.header("anthropic-ratelimit-tokens-limit"), "5000");
    assert_eq!(heard.header("anthropic-ratelimit-tokens-remaining"), "5000");
    let reset = heard.header("anthropic-ratelimit-requests-reset");
    assert!(reset.len() == 20 && reset.ends_with('Z') && reset.contains('T'), "{reset}");
    assert_eq!(heard.header("x-ratelimit-limit-requests"), "");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_no_more_requests_running_than_it_may() {
    let slow = "[engine]\ndevice = \"sim\"\n[engine.sim]\nstep_us = 20000.0\n";
    let host = Host::start(&(key("one", "concurrent_max = 1") + &key("free", "") + slow)).await;
    let body =
        with_model(json!({ "messages": user("hello"), "max_tokens": 200, "stream": true })).to_string();
    let request = String::from_utf8(post("/v1/chat/completions", &body)).expect("requests are UTF-8");
    let request = request.replacen("\r\n", "\r\nx-api-key: sk-one\r\n", 1);
    let mut first = host.connect().await;
    first.write_all(request.as_bytes()).await.expect("the host reads");
    host.until("the first request is in the house", async || host.server.app.requests_running() == 1).await;
    let second = chat(&host, "sk-one", short()).await;
    assert_eq!((second.status(), second.header("retry-after")), ("429", "1"));
    let message = second.json["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("1 requests running at once"), "{message}");
    assert_eq!(chat(&host, "sk-free", short()).await.status(), "200");
    drop(first);
    host.until("its place is free again", async || host.server.app.requests_running() == 0).await;
    assert_eq!(chat(&host, "sk-one", short()).await.status(), "200");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_a_key_away_and_lets_another_in() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let file = folder.path().join("pointsman.toml");
    let write = |keys: &str| {
        std::fs::write(&file, format!("{keys}[engine]\ndevice = \"sim\"\n")).expect("it can be written");
    };
    write(&key("acme", "requests_per_minute = 1"));
    let host = Host::of_file(&file).await;
    assert_eq!(chat(&host, "sk-acme", short()).await.status(), "200");
    write(&(key("acme", "requests_per_minute = 1") + &key("other", "")));
    assert_eq!(host.admin.post("/admin/v1/reload", &json!({})).await.expect("it answers").status, 200);
    assert_eq!(chat(&host, "sk-other", short()).await.status(), "200");
    assert_eq!(chat(&host, "sk-acme", short()).await.status(), "429", "what it used is still used");
    write(&key("other", ""));
    assert_eq!(host.admin.post("/admin/v1/reload", &json!({})).await.expect("it answers").status, 200);
    assert_eq!(chat(&host, "sk-acme", short()).await.status(), "401");
    host.stop().await;
}

async fn cached(host: &Host, tenant: &str, messages: &Value) -> (u64, Heard) {
    let headers: &[(&str, &str)] = if tenant.is_empty() { &[] } else { &[("x-tenant", tenant)] };
    let heard = host.chat_with(headers, json!({ "messages": messages, "max_tokens": 40 })).await;
    assert_eq!(heard.status(), "200", "{}", heard.json);
    (heard.json["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0), heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_do_not_see_each_others_cache() {
    let host = Host::simulated("[tenants]\nheader = \"x-tenant\"").await;
    let mut messages = user(&"The quick brown fox jumps over the lazy dog. ".repeat(20));
    let (before, answer) = cached(&host, "acme", &messages).await;
    assert_eq!(before, 0);
    let (own, _) = cached(&host, "acme", &messages).await;
    assert!(own >= 64, "a tenant finds its own blocks: {own}");
    assert_eq!(cached(&host, "other", &messages).await.0, 0, "another tenant does not");
    assert_eq!(cached(&host, "", &messages).await.0, 0, "nor does a caller without one");
    assert!(cached(&host, "", &messages).await.0 >= 64, "callers without a tenant share");
    // The next turn: blocks of the output have names with the same salt.
    let list = messages.as_array_mut().expect("messages are a list");
    list.push(answer.json["choices"][0]["message"].clone());
    list.push(json!({ "role": "user", "content": "go on" }));
    assert!(cached(&host, "acme", &messages).await.0 >= own, "the turn before is found");
    assert_eq!(cached(&host, "stranger", &messages).await.0, 0);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_share_a_cache_where_they_are_told_to() {
    let host = Host::simulated("[tenants]\nheader = \"x-tenant\"\n[kv]\nshare_across_tenants = true").await;
    let messages = user(&"The quick brown fox jumps over the lazy dog. ".repeat(20));
    assert_eq!(cached(&host, "acme", &messages).await.0, 0);
    assert!(cached(&host, "other", &messages).await.0 >= 64);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_api_wants_its_token() {
    let toml = format!("[admin]\ntoken_sha256 = \"{}\"\n{}", sha256("root"), key("acme", ""));
    let host = Host::simulated(&toml).await;
    let address = format!("http://{}", host.server.admin);
    for client in [
        Client::new(&address),
        Client::new(&address).showing("wrong"),
        // A key of the API opens nothing here.
        Client::new(&address).showing("sk-acme"),
    ] {
        for (method, path) in
            [(Method::GET, "/admin/v1/plugins"), (Method::POST, "/admin/v1/rollback"), (Method::GET, "/x")]
        {
            let reply = client.send(method, path, "").await.expect("it answers");
            assert_eq!((reply.status.as_u16(), reply.header("www-authenticate")), (401, "Bearer"), "{path}");
            assert!(
                reply.json["error"]["message"].as_str().is_some_and(|m| m.contains("POINTSMAN_ADMIN_TOKEN"))
            );
        }
    }
    let reply = Client::new(&address).showing("root").get("/admin/v1/plugins").await.expect("it answers");
    assert_eq!(reply.status, 200);
    // From a terminal: as a flag, in the environment, and without.
    let list = ["plugin", "list", "--admin", &address];
    assert!(
        tokio::task::block_in_place(|| run(&[&list[..], &["--token", "root"]].concat())).status.success()
    );
    let mut command = crate::process::command(&list);
    let output = tokio::task::block_in_place(|| command.env("POINTSMAN_ADMIN_TOKEN", "root").output());
    assert!(output.expect("the process starts").status.success());
    tokio::task::block_in_place(|| refused(&list, &["token"]));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_does_not_call_the_admin_api() {
    let host = Host::simulated("").await;
    let page = [("origin", "https://evil.example")];
    let reply =
        host.admin.send_with(Method::POST, "/admin/v1/rollback", &page, "").await.expect("it answers");
    assert_eq!(reply.status, 403, "{}", reply.json);
    assert_eq!(host.admin.get("/admin/v1/plugins").await.expect("it answers").status, 200);
    host.stop().await;
}

#[test]
fn others_reach_no_admin_api_without_a_token() {
    refused(
        &["serve", "--listen", "127.0.0.1:0", "--admin-listen", "0.0.0.0:0"],
        &["listen.admin", "admin.token_sha256"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_from_the_command_line_is_let_in_by_the_lines_printed_with_it() {
    let output =
        tokio::task::block_in_place(|| run(&["key", "new", "--name", "ci \"x\"", "--tenant", "acme"]));
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).expect("it is text");
    let key = said.lines().find(|line| line.starts_with("sk-pm-")).expect("a key is printed");
    let entry = &said[said.find("[[auth.keys]]").expect("the entry is printed")..];
    let entry: String = entry.lines().take(4).map(|line| format!("{line}\n")).collect();
    assert!(!entry.contains(key), "the key is not in its entry");
    let host = Host::simulated(&entry).await;
    assert_eq!(chat(&host, key, short()).await.status(), "200");
    assert_eq!(chat(&host, "sk-pm-other", short()).await.status(), "401");
    host.stop().await;
    tokio::task::block_in_place(|| refused(&["key", "new", "--name", ""], &["--name", "1 to 128"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_believes_nobody_sends_nothing_over_https() {
    let error = Client::trusting("https://127.0.0.1:9", Trust::These(b"not a certificate")).map(|_| ());
    assert!(format!("{:#}", error.expect_err("there is none")).contains("BEGIN CERTIFICATE"));
}
