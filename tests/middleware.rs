//! Middleware built for the vLLM router: it runs unmodified, after authentication, and sees what it may see.

use serde_json::json;

use crate::support::{Host, component, user};

/// A host with the gate in its chain.
async fn gated(more: &str) -> Host {
    let gate = component("gate");
    Host::simulated(&format!("[chain]\nmiddleware = [\"gate\"]\n[plugins.gate]\nsource = {gate:?}\n{more}\n"))
        .await
}

fn body(text: &str) -> serde_json::Value {
    json!({ "messages": user(text), "max_tokens": 9 })
}

#[tokio::test(flavor = "multi_thread")]
async fn it_lets_pass_turns_away_and_changes_a_body() {
    let host = gated("").await;
    let reply = host.chat(body("hello")).await;
    assert_eq!((reply.status.as_u16(), &reply.json["usage"]["completion_tokens"]), (200, &json!(9)));
    let reply = host.chat(body("please __reject__ this")).await;
    assert_eq!(reply.status, 403);
    assert_eq!(reply.json["error"]["code"], "refused_by_middleware");
    assert_eq!(reply.json["error"]["type"], "invalid_request_error");
    let reply = host.chat(body("be __short__")).await;
    assert_eq!((reply.status.as_u16(), &reply.json["usage"]["completion_tokens"]), (200, &json!(1)));
    assert_eq!(host.calls("gate", "middleware", "ok").await, 3);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_never_reach_it_and_a_forged_one_is_left_out() {
    let host = gated("").await;
    let headers =
        [("authorization", "Bearer sk-secret"), ("cookie", "a=b"), ("x-api-key", "sk"), ("x-team", "t")];
    let reply = host.chat_with(&headers, body("hello")).await;
    assert_eq!(reply.status(), "200", "{}", reply.json);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_traps_refuses_the_request_unless_it_may_be_skipped() {
    let host = gated("").await;
    let reply = host.chat(body("__trap__")).await;
    assert_eq!((reply.status.as_u16(), &reply.json["error"]["code"]), (503, &json!("unavailable")));
    assert_eq!(host.chat(body("hello")).await.status, 200, "a fresh instance serves the next one");
    host.stop().await;
    let host = gated("on_failure = \"skip\"").await;
    assert_eq!(host.chat(body("__trap__")).await.status, 200);
    assert_eq!(host.calls("gate", "middleware", "trapped").await, 1);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_it_sets_is_read_by_hint_policies() {
    let host = gated("").await;
    let reply = host.chat_with(&[("x-team", "search")], body("hello")).await;
    assert_eq!(reply.status(), "200", "{}", reply.json);
    // `hints-agent` takes `x-session-id`; a request without it says nothing.
    assert_eq!(host.calls("hints-agent", "hints", "ok").await, 1);
    let reply = host.chat_with(&[], body("hello")).await;
    assert_eq!(reply.status(), "200", "{}", reply.json);
    assert_eq!(host.calls("hints-agent", "hints", "ok").await, 1);
    host.stop().await;
}
