//! Prompts of conversations that come again: what is kept serves, and nothing that a client varies gets in its way.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use crate::support::{Host, tools, user};

const BLOCK_TOKENS: u64 = 16;

fn tokens(answer: &Value, what: &str) -> u64 {
    answer["usage"].pointer(what).and_then(Value::as_u64).expect("usage is told")
}

/// A host with one worker, so that a prompt finds its pages.
async fn start(more: &str) -> Host {
    Host::start(&format!("{more}\n[engine]\nworkers = 1\n")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_has_the_whole_of_the_last_one_in_the_cache() {
    let host = start("").await;
    let mut messages = user("list the files, then read one of them and tell me what it says");
    let mut computed = 0;
    for turn in 0..5 {
        let body = json!({ "messages": messages, "tools": tools(), "max_tokens": 60, "temperature": 0.9, "seed": turn });
        let answer = host.chat(body).await;
        assert_eq!(answer.status, 200, "{}", answer.json);
        let cached = tokens(&answer.json, "/prompt_tokens_details/cached_tokens");
        assert!(
            cached + 2 * BLOCK_TOKENS >= computed,
            "turn {turn}: {cached} of {computed} tokens are cached"
        );
        computed = tokens(&answer.json, "/prompt_tokens");
        let said = &answer.json["choices"][0]["message"];
        let list = messages.as_array_mut().expect("a list");
        list.push(said.clone());
        for call in said["tool_calls"].as_array().into_iter().flatten() {
            list.push(
                json!({ "role": "tool", "tool_call_id": call["id"], "content": format!("result {turn}") }),
            );
        }
        if said["tool_calls"].is_null() {
            list.push(json!({ "role": "user", "content": format!("go on, {turn}") }));
        }
    }
    let counts = host.server.app.prompts.counts();
    assert_eq!((counts.hits.load(Relaxed), counts.misses.load(Relaxed)), (4, 1));
    assert!(counts.said_tokens.load(Relaxed) > 0, "no answer came back as it was written");
    let metrics = host.raw(b"GET /metrics HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    assert!(metrics.contains("pointsman_prompts_kept_total{outcome=\"hit\"} 4"), "{metrics}");
    host.stop().await;
}

/// The two bodies have the same prompt, and the second finds what the first one left.
async fn check_same(one: Value, other: Value) {
    let host = start("").await;
    let mut prompts = Vec::new();
    for body in [one, other] {
        let mut body = body;
        body["max_tokens"] = 1.into();
        let answer = host.chat(body).await;
        assert_eq!(answer.status, 200, "{}", answer.json);
        prompts.push(tokens(&answer.json, "/prompt_tokens"));
    }
    assert_eq!(prompts[0], prompts[1]);
    let counts = host.server.app.prompts.counts();
    assert_eq!((counts.hits.load(Relaxed), counts.misses.load(Relaxed)), (1, 1));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spellings_and_marks_do_not_change_a_prompt() {
    let mark = json!({"type": "ephemeral"});
    check_same(
        json!({ "messages": [
            {"role": "system", "content": [
                {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.329.a19; cc_entrypoint=cli"},
                {"type": "text", "text": "You are an agent."}]},
            {"role": "user", "content": [{"type": "text", "text": "hello", "cache_control": mark}]},
        ]}),
        json!({ "messages": [
            {"content": "You are an agent.", "role": "system", "cache_control": mark},
            {"id": "msg_1", "status": null, "role": "user", "content": "hello"},
        ]}),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deferred_tool_is_no_part_of_the_prompt() {
    let mut deferred = tools();
    let later =
        json!({"type": "function", "defer_loading": true, "function": {"name": "later", "parameters": {}}});
    deferred.as_array_mut().expect("a list").push(later);
    let host = start("").await;
    let mut prompts = Vec::new();
    for tools in [tools(), deferred] {
        let answer = host.chat(json!({ "messages": user("hello"), "tools": tools, "max_tokens": 1 })).await;
        prompts.push(tokens(&answer.json, "/prompt_tokens"));
    }
    assert_eq!(prompts[0], prompts[1]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_where_nothing_may_be() {
    let host = start("[prompts]\nmemory_mib = 0").await;
    for _ in 0..2 {
        let answer = host.chat(json!({ "messages": user("hello"), "max_tokens": 4 })).await;
        assert_eq!(answer.status, 200, "{}", answer.json);
    }
    assert_eq!(host.server.app.prompts.counts().hits.load(Relaxed), 0);
    host.stop().await;
}
