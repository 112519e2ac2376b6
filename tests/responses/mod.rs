//! The Responses API as its clients see it: bytes in, events and objects out.

mod crash;
mod events;
mod fields;
mod socket;
mod store;

use axum::http::Method;
use serde_json::{Value, json};

use self::events::finished;
use crate::support::{Host, PATIENCE, post, with_model};

/// The tools that the embedded model knows, as this API has them.
pub(crate) fn tools() -> Value {
    crate::support::tools()
        .as_array()
        .into_iter()
        .flatten()
        .map(|tool| {
            let function = &tool["function"];
            json!({ "type": "function", "name": function["name"], "parameters": function["parameters"] })
        })
        .collect()
}

/// A call, with the status of its answer.
pub(crate) async fn call(host: &Host, method: Method, path: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let reply =
        tokio::time::timeout(PATIENCE, host.api.send(method, path, body)).await.expect("an answer comes");
    let reply = reply.expect("the connection holds");
    (reply.status.as_u16(), reply.json)
}

/// A response that completes, or at least begins.
pub(crate) async fn create(host: &Host, body: Value) -> Value {
    let (status, response) = call(host, Method::POST, "/v1/responses", with_model(body)).await;
    assert_eq!(status, 200, "{response}");
    response
}

pub(crate) async fn refused(host: &Host, body: Value, expected_status: u16) -> Value {
    let (status, response) = call(host, Method::POST, "/v1/responses", with_model(body)).await;
    assert_eq!(status, expected_status, "{response}");
    response["error"].clone()
}

/// The events of a stream, their names checked against their types.
pub(crate) async fn stream(host: &Host, body: Value) -> Vec<Value> {
    let mut body = with_model(body);
    body["stream"] = json!(true);
    let response = host.raw(&post("/v1/responses", &body.to_string())).await;
    let (head, text) = response.split_once("\r\n\r\n").expect("a response has a head");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/event-stream"), "{response}");
    assert!(!text.contains("[DONE]"), "this API ends without it");
    let mut events = Vec::new();
    for block in text.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':')) {
        let (name, data) = block.split_once('\n').expect("an event has two lines");
        let data: Value =
            serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("an event is JSON");
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str(), "{block}");
        events.push(data);
    }
    events
}

pub(crate) fn text_of(response: &Value) -> String {
    let items = response["output"].as_array().into_iter().flatten();
    items.filter_map(|item| item["content"][0]["text"].as_str()).collect()
}

pub(crate) fn cached(response: &Value) -> u64 {
    response["usage"]["input_tokens_details"]["cached_tokens"].as_u64().expect("usage says what was cached")
}

/// What is random or of a moment, taken out.
fn without_ids(response: &Value) -> Value {
    let mut response = response.clone();
    for key in ["id", "created_at", "completed_at", "usage", "store"] {
        response[key] = Value::Null;
    }
    for item in response["output"].as_array_mut().into_iter().flatten() {
        item["id"] = Value::Null;
        if item.get("call_id").is_some() {
            item["call_id"] = Value::Null;
        }
    }
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_the_object_that_others_get() {
    let host = Host::start("").await;
    for body in [
        json!({ "input": "hello", "temperature": 0 }),
        json!({ "input": "what is 17 * 23?", "tools": tools(), "temperature": 0 }),
        json!({ "input": "hello", "max_output_tokens": 2, "temperature": 0 }),
    ] {
        let whole = create(&host, body.clone()).await;
        let last = finished(&stream(&host, body).await);
        assert_eq!(without_ids(&last), without_ids(&whole));
        events::check_object(&whole);
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_loop_goes_over_stored_responses() {
    let host = Host::start("").await;
    let body = json!({ "input": "what is 17 * 23?", "tools": tools(), "temperature": 0 });
    let first = finished(&stream(&host, body).await);
    let call = &first["output"][0];
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("calc")), "{first}");
    assert_eq!(call["arguments"], "{\"expression\": \"17 * 23\"}");
    let output = json!([{ "type": "function_call_output", "call_id": call["call_id"], "output": "391" }]);
    let body =
        json!({ "input": output, "previous_response_id": first["id"], "tools": tools(), "temperature": 0 });
    let second = create(&host, body).await;
    assert_eq!(text_of(&second), "17 * 23 = 391", "{second}");
    assert_eq!(second["previous_response_id"], first["id"]);
    assert!(cached(&second) > 0, "{second}");
    host.stop().await;
}

/// A turn as Codex sends it without a store: everything, each item with an id of its own.
#[tokio::test(flavor = "multi_thread")]
async fn codex_finds_each_turn_in_the_cache_of_the_one_before() {
    let host = Host::start("").await;
    let mut tools = tools().as_array().cloned().unwrap_or_default();
    tools.push(json!({ "type": "namespace", "name": "multi_agent_v1", "description": "Agents.", "tools": [
        { "type": "function", "name": "spawn_agent", "description": "Starts one.", "strict": false,
            "parameters": { "type": "object", "properties": { "task": { "type": "string" } } } }] }));
    tools.push(json!({ "type": "web_search", "external_web_access": true }));
    let message = |role: &str, text: &str, id: u32| {
        json!({ "type": "message", "role": role, "id": format!("msg_{id:04}"),
            "content": [{ "type": "input_text", "text": text }] })
    };
    let mut input = vec![
        message("developer", &"You are an agent. ".repeat(200), 1),
        message("user", "what is 6 * 7?", 2),
    ];
    let (mut before, mut prompt) = (0, 0);
    for turn in 0..4u32 {
        let body = json!({
            "model": "tiny-agent", "stream": true, "input": input, "tools": tools, "tool_choice": "auto",
            "parallel_tool_calls": false, "reasoning": { "summary": "auto" }, "store": false,
            "include": ["reasoning.encrypted_content"], "prompt_cache_key": "thread-1",
            "client_metadata": { "x-codex-installation-id": "i" }, "temperature": 0,
        });
        let response = finished(&stream(&host, body).await);
        let found = cached(&response);
        assert!(
            turn == 0 || found + 16 > prompt && found > before,
            "{found} of {prompt}: {}",
            response["usage"]
        );
        (before, prompt) = (found, response["usage"]["input_tokens"].as_u64().expect("usage"));
        for item in response["output"].as_array().cloned().unwrap_or_default() {
            if item["type"] == "function_call" {
                input.push(item.clone());
                input.push(json!({ "type": "function_call_output", "id": format!("fco_{turn}"),
                    "call_id": item["call_id"], "output": "42" }));
            } else {
                input.push(item);
            }
        }
        // The client sends what it got with ids of its own.
        for (i, item) in input.iter_mut().enumerate() {
            item["id"] = json!(format!("item_{turn}_{i}"));
        }
        input.push(message("user", &format!("and {turn} * 8?"), 100 + turn));
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_to_a_tool_of_a_namespace_says_both_names() {
    let host = Host::start("").await;
    let calc = json!({ "type": "function", "name": "calc", "parameters": { "type": "object",
        "properties": { "expression": { "type": "string" } } } });
    let tools = json!([{ "type": "namespace", "name": "math", "description": "Numbers.", "tools": [calc] }]);
    let choice = json!({ "type": "function", "name": "calc", "namespace": "math" });
    let body =
        json!({ "input": "what is 6 * 7?", "tools": tools, "tool_choice": choice, "max_output_tokens": 64 });
    let response = finished(&stream(&host, body).await);
    let call = &response["output"][0];
    assert_eq!((&call["name"], &call["namespace"]), (&json!("calc"), &json!("math")), "{response}");
    assert_eq!(response["tools"][0]["type"], "namespace");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_tool_is_called_with_text() {
    let host = Host::start("").await;
    let tools = json!([{ "type": "custom", "name": "apply_patch", "description": "Edits files." }]);
    let body = json!({ "input": "what is 6 * 7?", "tools": tools, "max_output_tokens": 64, "temperature": 0,
        "tool_choice": { "type": "custom", "name": "apply_patch" } });
    let response = finished(&stream(&host, body).await);
    let call = response["output"][0].clone();
    assert_eq!(
        (&call["type"], &call["name"]),
        (&json!("custom_tool_call"), &json!("apply_patch")),
        "{response}"
    );
    assert!(call["input"].is_string() && call.get("arguments").is_none(), "{call}");
    let output = json!([{ "type": "custom_tool_call_output", "call_id": call["call_id"], "output": "done" }]);
    let next = json!({ "input": output, "previous_response_id": response["id"], "tools": tools });
    create(&host, next).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pre_warm_computes_the_prompt_and_nothing_else() {
    let host = Host::start("").await;
    let long = "Remember this well. ".repeat(100);
    let warm = json!({ "input": long, "prompt_cache_options": { "prewarm": true, "ttl": "12h" } });
    let warmed = finished(&stream(&host, warm).await);
    assert_eq!((&warmed["status"], &warmed["output"]), (&json!("completed"), &json!([])), "{warmed}");
    assert_eq!(warmed["usage"]["output_tokens"], 0);
    assert!(warmed["usage"]["input_tokens_details"]["cache_write_tokens"].as_u64() > Some(100));
    assert_eq!(warmed["prompt_cache_options"], json!({ "mode": "implicit", "ttl": "12h" }));
    let asked = create(&host, json!({ "input": long, "max_output_tokens": 1 })).await;
    assert!(cached(&asked) + 32 > asked["usage"]["input_tokens"].as_u64().unwrap_or(u64::MAX), "{asked}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_of_the_cache_is_explained() {
    let host = Host::start("").await;
    let long = "Remember this well. ".repeat(100);
    let ask = |instructions: &str, compare: &Value| {
        json!({ "instructions": instructions, "input": [{ "role": "user", "content": long }], "max_output_tokens": 1,
            "prompt_cache_options": { "comparison_response_id": compare } })
    };
    let first = create(&host, ask("a", &json!("resp_none"))).await;
    assert_eq!(first["prompt_cache_diagnostics"]["type"], "comparison_response_not_found");
    let same = create(&host, ask("a", &first["id"])).await;
    assert_eq!(same["prompt_cache_diagnostics"]["type"], "cache_hit", "{same}");
    let other = create(&host, ask(&"b ".repeat(40), &first["id"])).await;
    let found = &other["prompt_cache_diagnostics"];
    assert_eq!(
        (&found["type"], &found["reason"]),
        (&json!("cache_miss"), &json!("input_changed")),
        "{other}"
    );
    assert!(found["cache_missed_tokens"].as_u64() > Some(100));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_counted_as_they_will_be() {
    let host = Host::start("").await;
    let body = json!({ "model": "tiny-agent", "instructions": "be brief", "input": "what is 6 * 7?", "tools": tools() });
    let (status, counted) = call(&host, Method::POST, "/v1/responses/input_tokens", body.clone()).await;
    assert_eq!((status, &counted["object"]), (200, &json!("response.input_tokens")));
    let asked = create(&host, body).await;
    assert_eq!(counted["input_tokens"], asked["usage"]["input_tokens"]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_that_is_too_long_is_cut_only_if_it_may_be() {
    let host = Host::start("[model]\ncontext_tokens_max = 1024\n").await;
    let mut input = vec![json!({ "role": "system", "content": "be brief" })];
    for i in 0..40 {
        input.push(json!({ "role": "user", "content": format!("{i} {}", "words and words ".repeat(20)) }));
        input.push(json!({ "role": "assistant", "content": "ok" }));
    }
    input.push(json!({ "role": "user", "content": "hello" }));
    let error = refused(&host, json!({ "input": input }), 400).await;
    assert_eq!(error["code"], "context_length_exceeded", "{error}");
    let (_, counted) =
        call(&host, Method::POST, "/v1/responses/input_tokens", json!({ "input": input })).await;
    assert!(counted["input_tokens"].as_u64() > Some(1024), "a count says by how much: {counted}");
    let cut = create(&host, json!({ "input": input, "truncation": "auto", "max_output_tokens": 8 })).await;
    assert!(cut["usage"]["input_tokens"].as_u64() < Some(1024), "{cut}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_conversation_goes_on() {
    let host = Host::start("").await;
    let first =
        create(&host, json!({ "input": "what is 17 * 23?", "tools": tools(), "temperature": 0 })).await;
    let call_id = &first["output"][0]["call_id"];
    let body = json!({ "previous_response_id": first["id"], "input": [
        { "type": "function_call_output", "call_id": call_id, "output": "391" },
        { "role": "developer", "content": "be brief" }, { "role": "user", "content": "hello" }] });
    let (status, compacted) = call(&host, Method::POST, "/v1/responses/compact", body).await;
    assert_eq!((status, &compacted["object"]), (200, &json!("response.compaction")), "{compacted}");
    let output = compacted["output"].as_array().cloned().unwrap_or_default();
    let kinds: Vec<&str> = output.iter().filter_map(|item| item["type"].as_str()).collect();
    assert_eq!(kinds, ["message", "message", "compaction"]);
    let (_, counted) =
        call(&host, Method::POST, "/v1/responses/input_tokens", json!({ "input": output, "tools": tools() }))
            .await;
    assert!(counted["input_tokens"].as_u64() > Some(0), "{counted}");
    create(&host, json!({ "input": output, "tools": tools(), "max_output_tokens": 8 })).await;
    host.stop().await;
}
