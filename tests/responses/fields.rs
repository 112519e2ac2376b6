//! Fields of a body: what is refused, by name, and what is tolerated.

use serde_json::{Value, json};

use super::{create, refused, text_of, tools};
use crate::support::{Host, post};

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_is_wrong_is_refused_by_name() {
    let host = Host::start("").await;
    for (param, body) in [
        ("input", json!({})),
        ("input", json!({ "input": [] })),
        ("input", json!({ "input": 7 })),
        ("input[0].role", json!({ "input": [{ "role": "robot", "content": "a" }] })),
        ("input[0].content", json!({ "input": [{ "role": "user" }] })),
        (
            "input[0].content[0].type",
            json!({ "input": [{ "role": "user", "content": [{ "type": "input_image" }] }] }),
        ),
        (
            "input[0].call_id",
            json!({ "input": [{ "type": "function_call", "name": "f", "arguments": "{}" }] }),
        ),
        ("input[0].output", json!({ "input": [{ "type": "function_call_output", "call_id": "c" }] })),
        ("input[0].type", json!({ "input": [{ "type": "compaction_trigger" }] })),
        (
            "input[0].encrypted_content",
            json!({ "input": [{ "type": "compaction", "encrypted_content": "x" }] }),
        ),
        ("instructions", json!({ "input": "a", "instructions": 1 })),
        ("tools", json!({ "input": "a", "tools": {} })),
        ("tools[0].name", json!({ "input": "a", "tools": [{ "type": "function" }] })),
        (
            "tools[0].parameters",
            json!({ "input": "a", "tools": [{ "type": "function", "name": "f", "parameters": 1 }] }),
        ),
        ("tool_choice", json!({ "input": "a", "tool_choice": "some" })),
        ("tool_choice", json!({ "input": "a", "tool_choice": "required" })),
        ("tool_choice.type", json!({ "input": "a", "tool_choice": { "type": "file_search" } })),
        ("temperature", json!({ "input": "a", "temperature": 2.5 })),
        ("top_p", json!({ "input": "a", "top_p": -1 })),
        ("max_output_tokens", json!({ "input": "a", "max_output_tokens": 0 })),
        ("metadata", json!({ "input": "a", "metadata": { "a": 1 } })),
        ("include", json!({ "input": "a", "include": "reasoning.encrypted_content" })),
        ("store", json!({ "input": "a", "store": "yes" })),
        ("stream", json!({ "input": "a", "stream": 1 })),
        ("text.format.type", json!({ "input": "a", "text": { "format": { "type": "xml" } } })),
        ("prompt_cache_options.ttl", json!({ "input": "a", "prompt_cache_options": { "ttl": "1h" } })),
        ("background", json!({ "input": "a", "background": true })),
        ("conversation", json!({ "input": "a", "conversation": "conv_1" })),
        ("prompt", json!({ "input": "a", "prompt": { "id": "pmpt_1" } })),
    ] {
        let error = refused(&host, body, 400).await;
        assert_eq!(
            (&error["param"], &error["type"]),
            (&json!(param), &json!("invalid_request_error")),
            "{error}"
        );
        assert!(error["message"].as_str().is_some_and(|m| m.contains(&format!("`{param}`"))), "{error}");
    }
    let unknown = refused(&host, json!({ "model": "gpt-none", "input": "a" }), 404).await;
    assert_eq!((&unknown["code"], &unknown["param"]), (&json!("model_not_found"), &json!("model")));
    for body in ["", "{", "[]", "3", "{\"input\":"] {
        let response = host.raw(&post("/v1/responses", body)).await;
        assert!(response.starts_with("HTTP/1.1 400") && response.contains("valid JSON"), "{response}");
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_change_an_answer_here_is_tolerated() {
    let host = Host::start("").await;
    let plain = create(&host, json!({ "input": "hello", "temperature": 0 })).await;
    let more = json!({
        "input": [
            { "type": "web_search_call", "id": "ws_1", "status": "completed", "action": { "type": "search" } },
            { "type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA" },
            { "role": "user", "content": [{ "type": "input_text", "text": "hello",
                "prompt_cache_breakpoint": { "mode": "explicit" } }], "id": "msg_x" },
        ],
        "tools": [{ "type": "web_search", "external_web_access": true }, { "type": "file_search", "vector_store_ids": [] },
            { "type": "mcp", "server_label": "x" }],
        "tool_choice": "auto", "parallel_tool_calls": true, "temperature": 0, "truncation": "disabled",
        "service_tier": "priority", "safety_identifier": "s", "user": "u", "prompt_cache_key": "k",
        "prompt_cache_retention": "24h", "stream_options": { "include_obfuscation": false }, "background": false,
        "conversation": null, "context_management": [{ "type": "compaction" }], "moderation": null,
        "max_output_tokens": 1_000_000, "max_tool_calls": 3, "client_metadata": { "a": 1 }, "made_up": [1, 2],
        "text": { "verbosity": "low" }, "reasoning": { "effort": "medium", "summary": "auto" },
        "include": ["file_search_call.results"], "instructions": null,
    });
    let tolerant = create(&host, more).await;
    assert_eq!(text_of(&tolerant), text_of(&plain));
    assert_eq!(tolerant["usage"]["input_tokens"], plain["usage"]["input_tokens"], "the prompt is the same");
    assert_eq!((&tolerant["tools"], &tolerant["max_tool_calls"]), (&json!([]), &json!(3)));
    // LM Studio's probe, as Codex sends it.
    let probe = create(&host, json!({ "input": "", "max_output_tokens": 1 })).await;
    assert_eq!((&probe["status"], &probe["usage"]["output_tokens"]), (&json!("incomplete"), &json!(1)));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instructions_are_of_one_response_only() {
    let host = Host::start("").await;
    let ask = |more: Value| {
        let mut body = json!({ "input": "hello", "max_output_tokens": 1 });
        body.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        body
    };
    let tokens = |response: &Value| response["usage"]["input_tokens"].as_u64().expect("usage");
    let first =
        create(&host, ask(json!({ "instructions": "Always answer in rhymes, and never in prose." }))).await;
    let plain = create(&host, ask(json!({}))).await;
    assert!(tokens(&first) > tokens(&plain));
    let on_first = create(&host, ask(json!({ "previous_response_id": first["id"] }))).await;
    let on_plain = create(&host, ask(json!({ "previous_response_id": plain["id"] }))).await;
    assert_eq!(tokens(&on_first), tokens(&on_plain), "what was said before does not hold the instructions");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_can_be_forced_forbidden_and_allowed() {
    let host = Host::start("").await;
    let ask = |choice: Value| json!({ "input": "hello", "tools": tools(), "tool_choice": choice, "max_output_tokens": 64 });
    let kind_and_name = |response: &Value| {
        let item = &response["output"][0];
        (item["type"].clone(), item["name"].clone())
    };
    let named = create(&host, ask(json!({ "type": "function", "name": "read_file" }))).await;
    assert_eq!(kind_and_name(&named), (json!("function_call"), json!("read_file")), "{named}");
    let allowed = json!({ "type": "allowed_tools", "mode": "required",
        "tools": [{ "type": "function", "name": "list_files" }] });
    assert_eq!(kind_and_name(&create(&host, ask(allowed)).await).0, "function_call");
    assert_eq!(kind_and_name(&create(&host, ask(json!("required"))).await).0, "function_call");
    assert_eq!(kind_and_name(&create(&host, ask(json!("none"))).await).0, "message");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_probabilities_come_with_the_text_that_they_are_of() {
    let host = Host::start("").await;
    let body = json!({ "input": "hello", "temperature": 0, "top_logprobs": 2, "include": ["message.output_text.logprobs"] });
    let events = super::stream(&host, body).await;
    let response = super::events::finished(&events);
    let part = &response["output"][0]["content"][0];
    let tokens = part["logprobs"].as_array().expect("they were asked for");
    let joined: String = tokens.iter().filter_map(|t| t["token"].as_str()).collect();
    assert_eq!(joined, part["text"].as_str().unwrap_or_default());
    assert!(tokens.iter().all(|t| t["top_logprobs"].as_array().is_some_and(|top| top.len() == 2)));
    let told: usize = events
        .iter()
        .filter(|e| e["type"] == "response.output_text.delta")
        .map(|e| e["logprobs"].as_array().map_or(0, Vec::len))
        .sum();
    assert_eq!(told, tokens.len());
    assert_eq!(
        create(&host, json!({ "input": "hello" })).await["output"][0]["content"][0]["logprobs"],
        json!([])
    );
    host.stop().await;
}
