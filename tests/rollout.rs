//! A plugin's way to all requests: shadow, canary, promotion; and back when it breaks. Through the admin API.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::http::Method;
use serde_json::{Value, json};
use serve::client::Reply;

use crate::support::{Host, component, component_bytes, user};

const PLUGIN: &str = "/admin/v1/plugins/scorer";
const ROLLOUT: &str = "/admin/v1/rollout";

async fn put(host: &Host, query: &str, component: Vec<u8>) -> Reply {
    let path = format!("{PLUGIN}{query}");
    host.admin.send(Method::PUT, &path, component).await.expect("the admin API answers")
}

async fn send(host: &Host, method: Method, path: &str, body: &Value) -> Reply {
    host.admin.send(method, path, body.to_string()).await.expect("the admin API answers")
}

async fn status(host: &Host) -> Value {
    host.admin.get(ROLLOUT).await.expect("the admin API answers").json
}

/// A host whose only scorer is the guest `first-plugin`, with time enough on a busy machine.
async fn host(rollout: &str) -> Host {
    let source = component("first-plugin");
    Host::simulated(&format!(
        "[chain]\nscore = [{{ plugin = \"scorer\" }}]\n[plugins.scorer]\nsource = {source:?}\n\
         [plugins.scorer.limits]\ndeadline_us = 2000000\n[rollout]\ndeadline_rate_max = 1.0\n{rollout}"
    ))
    .await
}

/// Clients that ask until they are told to stop, in sessions of their own. Each answer must be a good one.
struct Load {
    done: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    clients: tokio::task::JoinSet<()>,
}

impl Load {
    fn begin(host: &Arc<Host>) -> Self {
        let (done, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..6u32 {
            let (host, done, served) = (Arc::clone(host), Arc::clone(&done), Arc::clone(&served));
            clients.spawn(async move {
                for round in 0u32.. {
                    let session = format!("session-{client}-{}", round % 40);
                    let reply = host.chat(body(&session)).await;
                    assert_eq!(reply.status, 200, "{}", reply.json);
                    served.fetch_add(1, Ordering::Relaxed);
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        Self { done, served, clients }
    }

    async fn more(&self, host: &Host, requests: u64) {
        let until = self.served.load(Ordering::Relaxed) + requests;
        host.until("requests are served", async || self.served.load(Ordering::Relaxed) >= until).await;
    }

    async fn end(mut self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        while let Some(client) = self.clients.join_next().await {
            client.expect("no request failed");
        }
        self.served.load(Ordering::Relaxed)
    }
}

fn body(session: &str) -> Value {
    json!({
        "messages": user("hello"),
        "max_tokens": 4,
        "nvext": { "session_control": { "session_id": session } },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_way_and_back_fails_no_request() {
    let host = Arc::new(host("").await);
    let load = Load::begin(&host);
    load.more(&host, 20).await;

    let begun = put(&host, "?rollout=shadow", component_bytes("first-plugin")).await;
    assert_eq!((begun.status.as_u16(), &begun.json), (200, &json!({ "generation": 2, "state": "shadow" })));
    load.more(&host, 40).await;
    host.until("the shadow agrees", async || {
        let seen = status(&host).await["rollout"]["shadow"]["route"].clone();
        seen["compared"].as_u64().is_some_and(|compared| compared >= 20) && seen["agreement"] == 1.0
    })
    .await;
    assert_eq!(host.generation().await, 1, "a shadow decides nothing");

    let moved = send(&host, Method::POST, ROLLOUT, &json!({ "mode": "canary", "percent": 30 })).await;
    assert_eq!(moved.json, json!({ "generation": 2, "state": "canary" }));
    host.until("both sides decide", async || {
        let requests = status(&host).await["rollout"]["requests"].clone();
        ["active", "candidate"].iter().all(|side| requests[side].as_u64().is_some_and(|n| n >= 10))
    })
    .await;
    let promoted = send(&host, Method::POST, "/admin/v1/rollout/promote", &json!({})).await;
    assert_eq!(promoted.json, json!({ "generation": 2, "state": "promoted" }));
    load.more(&host, 20).await;
    assert_eq!(host.chat(body("x")).await.header("x-pointsman-generation"), "2");

    // A component that behaves in its trial and traps at every request.
    let broken = put(&host, "", component_bytes("broken")).await;
    assert_eq!(broken.json, json!({ "generation": 3 }));
    host.until("it is taken back", async || host.generation().await == 2).await;
    let told = status(&host).await;
    let taken_back = told["rollbacks"][0].clone();
    assert_eq!((&taken_back["generation"], &taken_back["to"]), (&json!(3), &json!(2)), "{told}");
    let why = taken_back["why"].as_str().unwrap_or_default().to_owned();
    assert!(why.contains("trap rate") && why.ends_with("calls of plugin `scorer`"), "{why}");
    load.more(&host, 20).await;
    let served = load.end().await;
    assert!(served >= 100, "{served}");

    let metrics = host.raw(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    for line in [
        "pointsman_policy_rollbacks_total{reason=\"trap_rate\"} 1",
        "pointsman_rollout_state{state=\"promoted\"} 1",
        "pointsman_rollouts_ended_total{state=\"promoted\"} 1",
    ] {
        assert!(metrics.contains(line), "`{line}` is missing in {metrics}");
    }
    let history = host.admin.get("/admin/v1/generations").await.expect("it answers").json;
    assert_eq!(history["generations"][2]["note"], format!("rolled_back: {why}"), "{history}");
    let diff = host.admin.get("/admin/v1/generations/2/diff/3").await.expect("it answers").json;
    assert_eq!(diff["changed"][0]["plugin"], "scorer", "{diff}");
    Arc::into_inner(host).expect("all clients are gone").stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_stays_on_its_side_of_a_canary() {
    let host = host("").await;
    let begun = put(&host, "?rollout=canary&percent=50", component_bytes("first-plugin")).await;
    assert_eq!(begun.json, json!({ "generation": 2, "state": "canary" }));
    let side = async |session: &str| {
        let reply = host.chat(body(session)).await;
        assert_eq!(reply.status, 200, "{}", reply.json);
        reply.header("x-pointsman-generation").to_owned()
    };
    let mut sides = std::collections::BTreeSet::new();
    for session in 0..24 {
        let session = format!("agent-{session}");
        let first = side(&session).await;
        for _ in 0..3 {
            assert_eq!(side(&session).await, first, "{session} changed sides");
        }
        sides.insert(first);
    }
    assert_eq!(sides.len(), 2, "half of the sessions are on each side");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_by_header_gets_those_requests_alone() {
    let host = host("").await;
    let query = "?rollout=canary&percent=100&header=x-pointsman-ring:early*";
    assert_eq!(put(&host, query, component_bytes("first-plugin")).await.status, 200);
    let body = crate::support::with_model(body("x")).to_string();
    let ask = async |ring: &str| {
        let call = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-pointsman-ring: {ring}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        host.raw(call.as_bytes()).await
    };
    assert!(ask("early-1").await.contains("x-pointsman-generation: 2"));
    assert!(ask("late").await.contains("x-pointsman-generation: 1"));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_traps_is_taken_back_and_no_request_sees_it() {
    let host = Arc::new(host("").await);
    let load = Load::begin(&host);
    let begun = put(&host, "?rollout=canary&percent=50", component_bytes("broken")).await;
    assert_eq!(begun.status, 200, "{}", begun.json);
    host.until("it is taken back", async || status(&host).await["rollout"]["state"] == "rolled_back").await;
    let rollout = status(&host).await["rollout"].clone();
    assert!(rollout["why"].as_str().is_some_and(|why| why.contains("trap rate")), "{rollout}");
    load.end().await;
    assert_eq!(host.generation().await, 1);
    Arc::into_inner(host).expect("all clients are gone").stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_probation_a_broken_generation_stays_and_every_request_falls_back() {
    let host = host("probation_seconds = 0.0").await;
    assert_eq!(put(&host, "", component_bytes("broken")).await.json, json!({ "generation": 2 }));
    for _ in 0..30 {
        assert_eq!(host.chat(body("x")).await.status, 200);
    }
    assert_eq!(host.generation().await, 2);
    assert!(host.calls("scorer", "score", "trapped").await >= 1);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wishes_that_make_no_sense_are_refused_by_name() {
    let host = host("").await;
    let first = || component_bytes("first-plugin");
    for (query, field, words) in [
        ("?rollout=canary&percent=0", "percent", "above 0 and at most 100, is 0"),
        ("?rollout=canary&percent=101", "percent", "at most 100, is 101"),
        ("?rollout=canary&percent=NaN", "percent", "at most 100"),
        ("?rollout=canary&percent=ten", "percent", "`ten`, which is no number"),
        ("?rollout=canary", "percent", "missing"),
        ("?rollout=shadow&percent=5", "percent", "belongs to a canary"),
        ("?rollout=shadow&tenant=acme", "match", "belongs to a canary"),
        ("?rollout=green", "mode", "`shadow` or `canary`"),
        ("?percent=5", "rollout", "missing"),
        ("?rollout=canary&percent=5&tenants=a", "tenants", "unknown"),
        ("?rollout=canary&percent=5&header=x", "header", "a colon"),
        ("?rollout=canary&percent=5&header=cookie:x", "header", "credentials"),
        ("?rollout=canary&percent=5&header=X-Ring:x", "header", "lower case"),
    ] {
        let reply = put(&host, query, first()).await;
        assert_eq!(reply.status, 400, "{query}: {}", reply.json);
        assert_eq!(reply.json["error"]["field"], field, "{query}: {}", reply.json);
        let message = reply.json["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(words), "{query}: `{words}` is missing in `{message}`");
    }
    let none = send(&host, Method::POST, "/admin/v1/rollout/promote", &json!({})).await;
    assert_eq!(none.status, 404, "{}", none.json);
    assert_eq!(send(&host, Method::DELETE, ROLLOUT, &json!({})).await.status, 404);
    let unknown = host.admin.get("/admin/v1/generations/1/diff/9").await.expect("it answers");
    assert_eq!(unknown.status, 404, "{}", unknown.json);

    assert_eq!(put(&host, "?rollout=shadow", first()).await.status, 200);
    for (reply, status) in [
        (put(&host, "?rollout=shadow", first()).await, 409),
        (put(&host, "", first()).await, 409),
        (send(&host, Method::POST, "/admin/v1/rollback", &json!({})).await, 409),
        (send(&host, Method::POST, ROLLOUT, &json!({ "mode": "canary", "percent": 200 })).await, 400),
        (send(&host, Method::POST, ROLLOUT, &json!({ "mode": "canary", "share": 2 })).await, 400),
    ] {
        assert_eq!(reply.status.as_u16(), status, "{}", reply.json);
        let message = reply.json["error"]["message"].as_str().unwrap_or_default();
        assert!(
            status != 409 || message.contains("generation 2 (shadow): promote it or abort it"),
            "{message}"
        );
    }
    let aborted = send(&host, Method::DELETE, ROLLOUT, &json!({})).await;
    assert_eq!(aborted.json, json!({ "generation": 2, "state": "aborted" }));
    assert_eq!(host.generation().await, 1);
    host.stop().await;
}
