//! Policies are replaced while requests are in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::http::Method;
use serde_json::{Value, json};
use serve::client::Reply;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Host, component, component_bytes, faulty_scorer, post, user, with_model};

const SWAPPED: &str = "/admin/v1/plugins/route-prefix-affinity";

async fn swap(host: &Host, path: &str, component: Vec<u8>) -> Reply {
    host.admin.send(Method::PUT, path, component).await.expect("the admin API answers")
}

/// A refusal says the stage and why, and leaves the active generation alone.
async fn refused(host: &Host, component: Vec<u8>, stage: &str, words: &[&str]) {
    let before = host.generation().await;
    let reply = swap(host, SWAPPED, component).await;
    assert_eq!(reply.status, 422, "{}", reply.json);
    assert_eq!(reply.json["error"]["stage"], stage, "{}", reply.json);
    let message = reply.json["error"]["message"].as_str().unwrap_or_default();
    for word in words {
        assert!(message.contains(word), "`{word}` is missing in `{message}`");
    }
    assert_eq!(host.generation().await, before);
    assert_eq!(host.chat(json!({ "messages": user("hello"), "max_tokens": 1 })).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn components_that_cannot_serve_are_refused_with_their_stage() {
    let host = Host::simulated("").await;
    refused(&host, b"this is not a component".to_vec(), "compiled", &["route-prefix-affinity"]).await;
    refused(&host, b"\0asm\x01\0\0\0".to_vec(), "compiled", &["component"]).await;
    let foreign = b"(component (import \"acme:secrets/vault@1.0.0\" (instance (export \"open\" (func)))))";
    refused(&host, foreign.to_vec(), "compiled", &[]).await;
    let pick_only = std::fs::read(component("pick-max-score")).expect("it was built");
    refused(&host, pick_only, "described", &["score"]).await;
    let reply = swap(&host, "/admin/v1/plugins/no-such", Vec::new()).await;
    assert_eq!(reply.status, 404);
    let message = reply.json["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("route-prefix-affinity"), "{message}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streaming_request_ends_on_the_generation_it_began_with() {
    let host = Host::start("[engine]\ndevice = \"sim\"\n[engine.sim]\nstep_us = 5000.0\n").await;
    let body = with_model(json!({ "messages": user("hello"), "max_tokens": 800, "stream": true }));
    let mut socket = host.connect().await;
    socket.write_all(&post("/v1/chat/completions", &body.to_string())).await.expect("the host reads");
    let mut head = vec![0; 2048];
    let read = socket.read(&mut head).await.expect("tokens come");
    let head = String::from_utf8_lossy(&head[..read]).into_owned();
    assert!(head.contains("x-pointsman-generation: 1"), "{head}");

    let reply = swap(&host, SWAPPED, component_bytes("first-plugin")).await;
    assert_eq!((reply.status.as_u16(), &reply.json), (200, &json!({ "generation": 2 })));
    let after = host.chat(json!({ "messages": user("hello"), "max_tokens": 1 })).await;
    assert_eq!(after.header("x-pointsman-generation"), "2");
    let pinned = |generations: &Value| generations["generations"].to_string();
    let during = host.admin.get("/admin/v1/generations").await.expect("it answers").json;
    assert!(pinned(&during).contains("draining"), "{during}");

    let mut rest = String::new();
    socket.read_to_string(&mut rest).await.expect("the stream goes on");
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"), "{rest}");
    host.until("the old generation is retired", async || {
        !pinned(&host.admin.get("/admin/v1/generations").await.expect("it answers").json).contains("draining")
    })
    .await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_back_brings_the_old_component_back() {
    let host = Host::simulated("").await;
    let digest = async || {
        let plugins = host.admin.get("/admin/v1/plugins").await.expect("it answers").json["plugins"].clone();
        let plugins = plugins.as_array().cloned().unwrap_or_default();
        plugins.into_iter().find(|p| p["name"] == "route-prefix-affinity").expect("it is there")["digest"]
            .clone()
    };
    let before = digest().await;
    let nothing = host.admin.send(Method::POST, "/admin/v1/rollback", "").await.expect("it answers");
    assert_eq!(nothing.status, 422, "{}", nothing.json);
    assert_eq!(swap(&host, SWAPPED, component_bytes("first-plugin")).await.status, 200);
    assert_ne!(digest().await, before);
    let back = host.admin.send(Method::POST, "/admin/v1/rollback", "").await.expect("it answers");
    assert_eq!(back.status, 200, "{}", back.json);
    assert_eq!(digest().await, before);
    assert_eq!(host.chat(json!({ "messages": user("hello"), "max_tokens": 1 })).await.status, 200);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swaps_under_load_fail_no_request() {
    let host = Arc::new(Host::simulated("").await);
    let (done, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (host, done, served) = (Arc::clone(&host), Arc::clone(&done), Arc::clone(&served));
        clients.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let reply = host.chat(json!({ "messages": user("hello"), "max_tokens": 8 })).await;
                assert_eq!(reply.status, 200, "{}", reply.json);
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let (first, second) = (component_bytes("first-plugin"), component_bytes("route-prefix-affinity"));
    for round in 0..12u64 {
        let component = if round % 2 == 0 { first.clone() } else { second.clone() };
        assert_eq!(swap(&host, SWAPPED, component).await.json, json!({ "generation": round + 2 }));
        let seen = served.load(Ordering::Relaxed);
        host.until("requests are served by it", async || served.load(Ordering::Relaxed) > seen + 8).await;
    }
    done.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.expect("no request failed");
    }
    for fault in ["trapped", "over_deadline", "bad_answer"] {
        assert_eq!(host.calls("route-prefix-affinity", "score", fault).await, 0, "{fault}");
    }
    Arc::into_inner(host).expect("all clients are gone").stop().await;
}

/// One host, a configuration file, and what the file's changes do.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_becomes_a_generation_or_a_reason() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let path = folder.path().join("pointsman.toml");
    let write = |fault: &str| {
        let text = format!(
            "{}\n[listen]\napi = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[engine]\ndevice = \"sim\"\n",
            faulty_scorer(fault, "")
        );
        std::fs::write(&path, text).expect("the file can be written");
    };
    write("ok");
    let config = serve::config::Config::load(&path).expect("the file is right");
    let start = {
        let path = path.clone();
        move || serve::app::App::start(config, Some(path))
    };
    let app = tokio::task::spawn_blocking(start).await.expect("no panic").expect("the host starts");
    let server = serve::server::Server::start(app).await.expect("ports are free");
    let _watch = serve::reload::watch(&server.app).expect("files can be watched");
    let active = || server.app.generations.active().id().0;
    assert_eq!(active(), 1);
    write("abstain");
    for _ in 0..2000 {
        if active() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(active(), 2, "the watched file was not reloaded");

    write("fail_configure");
    let app = Arc::clone(&server.app);
    let error = tokio::task::spawn_blocking(move || app.reload())
        .await
        .expect("no panic")
        .expect_err("it is refused");
    let error = error.to_string();
    assert!(error.contains("configured") && error.contains("these settings are refused"), "{error}");
    assert_eq!(active(), 2);
    assert!(server.stop().await);
}
