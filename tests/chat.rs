//! The chat endpoint, with the embedded model: what a client sees.

use serde_json::{Value, json};

use crate::support::{Host, tools, user};

/// One question through to its answer, with `results` handed back for the calls in order.
async fn tool_loop(host: &Host, question: &str, results: &[&str]) -> (Vec<Value>, String) {
    let mut messages = vec![json!({ "role": "user", "content": question })];
    let mut calls = Vec::new();
    for result in results {
        let reply = host.chat(json!({ "messages": messages, "tools": tools() })).await;
        let message = reply.json["choices"][0]["message"].clone();
        assert_eq!(reply.json["choices"][0]["finish_reason"], "tool_calls", "{}", reply.json);
        let call = message["tool_calls"][0].clone();
        messages.push(message);
        messages.push(json!({ "role": "tool", "tool_call_id": call["id"], "content": result }));
        calls.push(call["function"].clone());
    }
    let reply = host.chat(json!({ "messages": messages, "tools": tools() })).await;
    assert_eq!(reply.json["choices"][0]["finish_reason"], "stop", "{}", reply.json);
    (calls, reply.json["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_loop_goes_from_question_to_answer() {
    let host = Host::start("").await;
    let (calls, answer) = tool_loop(&host, "what is 17 * 23?", &["391"]).await;
    assert_eq!(calls[0], json!({ "name": "calc", "arguments": "{\"expression\": \"17 * 23\"}" }));
    assert_eq!(answer, "17 * 23 = 391");
    let (calls, answer) = tool_loop(&host, "read plum.csv and multiply the numbers", &["11 33", "363"]).await;
    assert_eq!(calls[0]["arguments"], "{\"path\": \"plum.csv\"}");
    assert_eq!(calls[1]["arguments"], "{\"expression\": \"11 * 33\"}");
    assert_eq!(answer, "11 * 33 = 363");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_the_same_as_a_whole_answer() {
    let host = Host::start("").await;
    let body = json!({ "messages": user("hello"), "stream_options": { "include_usage": true } });
    let whole = host.chat(json!({ "messages": user("hello") })).await.json;
    let chunks = host.stream(body).await;
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap_or_default());
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let (usage, answer) = chunks.split_last().expect("a stream has chunks");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    let finishes: Vec<&Value> =
        answer.iter().map(|c| &c["choices"][0]["finish_reason"]).filter(|f| !f.is_null()).collect();
    assert_eq!(finishes, ["stop"]);
    assert!(answer.iter().all(|c| c["usage"].is_null() && c["id"] == chunks[0]["id"]));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_include_usage_every_chunk_has_a_choice() {
    let host = Host::start("").await;
    let chunks = host.stream(json!({ "messages": user("hello") })).await;
    assert!(chunks.iter().all(|c| c["choices"].as_array().is_some_and(|a| a.len() == 1)));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_call_never_shows_its_markup() {
    let host = Host::start("").await;
    let chunks = host.stream(json!({ "messages": user("what is 4 + 5?"), "tools": tools() })).await;
    let deltas: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]["delta"]).collect();
    let content: String = deltas.iter().filter_map(|d| d["content"].as_str()).collect();
    assert_eq!(content, "");
    let calls: Vec<&Value> = deltas.iter().map(|d| &d["tool_calls"][0]).filter(|c| c.is_object()).collect();
    assert_eq!(calls[0]["function"]["name"], "calc");
    assert_eq!(calls[0]["function"]["arguments"], "");
    let arguments: String = calls.iter().filter_map(|c| c["function"]["arguments"].as_str()).collect();
    assert_eq!(arguments, "{\"expression\": \"4 + 5\"}");
    assert!(chunks.iter().any(|c| c["choices"][0]["finish_reason"] == "tool_calls"));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tool_choice_forces_and_forbids_calls() {
    let host = Host::start("").await;
    let ask = |choice: Value| json!({ "messages": user("hello"), "tools": tools(), "tool_choice": choice, "max_tokens": 64 });
    let named = host.chat(ask(json!({ "type": "function", "function": { "name": "read_file" } }))).await.json;
    assert_eq!(named["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "read_file", "{named}");
    let required = host.chat(ask(json!("required"))).await.json;
    let name = &required["choices"][0]["message"]["tool_calls"][0]["function"]["name"];
    assert!(["calc", "list_files", "write_file", "read_file"].iter().any(|n| name == n), "{required}");
    let none = host.chat(ask(json!("none"))).await.json;
    assert!(none["choices"][0]["message"].get("tool_calls").is_none(), "{none}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_string_ends_the_answer_before_itself() {
    let host = Host::start("").await;
    let whole = host.chat(json!({ "messages": user("hello") })).await.json;
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
    let stop = &text[3..6];
    let cut = host.chat(json!({ "messages": user("hello"), "stop": stop })).await.json;
    let expected = text.split(stop).next().unwrap_or_default();
    assert_eq!(cut["choices"][0]["message"]["content"], expected);
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_output_limit_is_kept() {
    let host = Host::start("").await;
    for name in ["max_tokens", "max_completion_tokens"] {
        let reply = host.chat(json!({ "messages": user("hello"), (name): 2 })).await.json;
        assert_eq!(reply["usage"]["completion_tokens"], 2);
        assert_eq!(reply["choices"][0]["finish_reason"], "length");
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_differ_and_repeat_with_the_seed() {
    let host = Host::start("").await;
    let body = json!({ "messages": user("hello"), "n": 3, "seed": 7, "temperature": 2.0, "max_tokens": 24 });
    let contents = |reply: Value| -> Vec<Value> {
        let choices = reply["choices"].as_array().cloned().unwrap_or_default();
        choices.iter().map(|c| c["message"]["content"].clone()).collect()
    };
    let first = contents(host.chat(body.clone()).await.json);
    assert_eq!(first.len(), 3);
    assert!(first[0] != first[1] || first[1] != first[2], "{first:?}");
    assert_eq!(first, contents(host.chat(body).await.json));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logprobs_describe_the_tokens_of_the_text() {
    let host = Host::start("").await;
    let reply =
        host.chat(json!({ "messages": user("hello"), "logprobs": true, "top_logprobs": 3 })).await.json;
    let choice = &reply["choices"][0];
    let tokens = choice["logprobs"]["content"].as_array().expect("logprobs were asked for");
    let joined: String = tokens.iter().filter_map(|t| t["token"].as_str()).collect();
    assert_eq!(joined, choice["message"]["content"].as_str().unwrap_or_default());
    for token in tokens {
        let top = token["top_logprobs"].as_array().expect("alternatives were asked for");
        assert_eq!(top.len(), 3);
        assert_eq!(top[0]["token"], token["token"], "greedy takes the likeliest");
        assert!(token["logprob"].as_f64().is_some_and(|p| p <= 0.0));
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_turn_finds_the_first_in_the_cache() {
    let host = Host::start("").await;
    let first = host.chat(json!({ "messages": user("what is 6 * 7?"), "tools": tools() })).await.json;
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let mut messages = user("what is 6 * 7?").as_array().cloned().unwrap_or_default();
    messages.push(first["choices"][0]["message"].clone());
    messages.push(json!({ "role": "tool", "tool_call_id": "x", "content": "42" }));
    let second = host.chat(json!({ "messages": messages, "tools": tools() })).await.json;
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
    let prompt = first["usage"]["prompt_tokens"].as_u64().unwrap_or(u64::MAX);
    assert!(cached + 16 > prompt, "{cached} of the first turn's {prompt} tokens were found");
    assert_eq!(cached % 16, 0, "hits are whole blocks");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_health_and_metrics_answer() {
    let host = Host::start("").await;
    host.chat(json!({ "messages": user("hello") })).await;
    let models = host.api.get("/v1/models").await.expect("it answers").json;
    assert_eq!(models["data"][0]["id"], "tiny-agent");
    assert_eq!(models["data"][0]["context_length"], 65_536);
    for path in ["/health", "/ready"] {
        assert_eq!(host.api.get(path).await.expect("it answers").status, 200);
    }
    let metrics = host.raw(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    for line in [
        "pointsman_requests_total{outcome=\"ok\"} 1",
        // The request says nothing that could be a hint.
        "pointsman_policy_calls_total{plugin=\"hints-agent\",slot=\"hints\",outcome=\"abstained\"} 1",
        "pointsman_generation_active 1",
    ] {
        assert!(metrics.contains(line), "`{line}` is missing in {metrics}");
    }
    host.stop().await;
}
