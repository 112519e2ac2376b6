//! The Messages endpoint, byte for byte: the order of events, what each has to have, and what errors look like.

use serde_json::{Value, json};
use serve::client::Reply;

use crate::support::{Host, PATIENCE, post};

/// The fields of a message, from its first event to its last.
const MESSAGE_FIELDS: [&str; 8] =
    ["id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"];
const USAGE_FIELDS: [&str; 4] =
    ["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens"];

/// A body that asks for little, with these fields.
fn body(fields: Value) -> Value {
    let mut body = json!({ "model": "tiny-agent", "max_tokens": 64, "messages": hello() });
    for (name, value) in fields.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body
}

fn hello() -> Value {
    json!([{ "role": "user", "content": "hello" }])
}

/// The tools that the embedded model knows, as this protocol has them.
fn tools() -> Value {
    let tool = |tool: &Value| {
        let function = &tool["function"];
        json!({ "name": function["name"], "input_schema": function["parameters"] })
    };
    crate::support::tools().as_array().expect("tools are a list").iter().map(tool).collect()
}

async fn send(host: &Host, path: &str, body: &Value) -> Reply {
    tokio::time::timeout(PATIENCE, host.api.post(path, body))
        .await
        .expect("an answer comes")
        .expect("the connection holds")
}

/// A whole message.
async fn message(host: &Host, fields: Value) -> Value {
    let reply = send(host, "/v1/messages", &body(fields)).await;
    assert_eq!(reply.status, 200, "{}", reply.json);
    assert_eq!(reply.header("request-id"), reply.json["id"].as_str().unwrap_or_default());
    check_message(&reply.json);
    reply.json
}

async fn count(host: &Host, fields: Value) -> u64 {
    let mut body = body(fields);
    body.as_object_mut().expect("a body is an object").remove("max_tokens");
    let reply = send(host, "/v1/messages/count_tokens?beta=true", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.json);
    reply.json["input_tokens"].as_u64().expect("a count is a number")
}

fn check_message(message: &Value) {
    for field in MESSAGE_FIELDS {
        assert!(message.get(field).is_some(), "`{field}` is missing in {message}");
    }
    assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")));
    check_usage(&message["usage"]);
    let creation = &message["usage"]["cache_creation"];
    let part = |name: &str| creation[name].as_u64().expect("parts are numbers");
    let parts = part("ephemeral_5m_input_tokens") + part("ephemeral_1h_input_tokens");
    assert_eq!(message["usage"]["cache_creation_input_tokens"], parts);
}

fn check_usage(usage: &Value) {
    for field in USAGE_FIELDS {
        assert!(usage[field].is_u64(), "`{field}` is no number in {usage}");
    }
}

fn input_tokens(usage: &Value) -> u64 {
    USAGE_FIELDS[..3].iter().filter_map(|field| usage[field].as_u64()).sum()
}

/// The events of a stream, each with its name; the framing is checked.
async fn events(host: &Host, fields: Value) -> Vec<Value> {
    let mut body = body(fields);
    body["stream"] = true.into();
    let response = host.raw(&post("/v1/messages?beta=true", &body.to_string())).await;
    let (head, stream) = response.split_once("\r\n\r\n").expect("a response has a head");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/event-stream"), "{response}");
    let mut events = Vec::new();
    for event in stream.split_terminator("\n\n") {
        let (name, data) = event.split_once('\n').expect("an event has two lines");
        let name = name.strip_prefix("event: ").expect("the first has its name");
        let data = data.strip_prefix("data: ").expect("the second has its data");
        let data: Value = serde_json::from_str(data).expect("data is JSON");
        assert_eq!(data["type"], name, "an event is named by its type");
        events.push(data);
    }
    events
}

/// Reads a stream as an SDK does, refusing every event that may not stand where it stands.
fn assembled(events: &[Value]) -> Value {
    let mut events = events.iter().filter(|event| event["type"] != "ping");
    let mut message = events.next().expect("a stream has events")["message"].clone();
    check_message(&message);
    assert_eq!((&message["content"], &message["stop_reason"]), (&json!([]), &Value::Null));
    let mut blocks: Vec<Value> = Vec::new();
    let mut open = false;
    let mut json = String::new();
    let mut rest = events.by_ref().peekable();
    while let Some(event) = rest.next_if(|event| event["type"] != "message_delta") {
        let kind = event["type"].as_str().unwrap_or_default();
        let index = if open { blocks.len() - 1 } else { blocks.len() };
        assert_eq!(event["index"], index, "{event}");
        match (kind, open) {
            ("content_block_start", false) => {
                blocks.push(event["content_block"].clone());
                check_empty(&blocks[index]);
                json.clear();
                open = true;
            }
            ("content_block_delta", true) => grow(&mut blocks[index], &event["delta"], &mut json),
            ("content_block_stop", true) => open = false,
            _ => panic!("{event} may not stand here"),
        }
    }
    assert!(!open, "every block is closed");
    let end = rest.next().expect("a stream says why it ended");
    check_usage(&end["usage"]);
    assert!(end["delta"]["stop_reason"].is_string() && end["delta"].get("stop_sequence").is_some(), "{end}");
    assert_eq!(input_tokens(&end["usage"]), input_tokens(&message["usage"]));
    message["stop_reason"] = end["delta"]["stop_reason"].clone();
    message["stop_sequence"] = end["delta"]["stop_sequence"].clone();
    for (name, value) in end["usage"].as_object().into_iter().flatten() {
        message["usage"][name] = value.clone();
    }
    assert_eq!(rest.next(), Some(&json!({ "type": "message_stop" })));
    assert_eq!(rest.next(), None, "nothing follows");
    message["content"] = blocks.into();
    message
}

fn check_empty(block: &Value) {
    let empty = match block["type"].as_str() {
        Some("text") => block["text"] == "",
        Some("thinking") => block["thinking"] == "" && block["signature"] == "",
        Some("tool_use") => {
            block["input"] == json!({}) && block["id"].is_string() && block["name"].is_string()
        }
        _ => false,
    };
    assert!(empty, "{block} is no block that begins");
}

fn grow(block: &mut Value, delta: &Value, json: &mut String) {
    let (field, more) = match delta["type"].as_str() {
        Some("text_delta") => ("text", &delta["text"]),
        Some("thinking_delta") => ("thinking", &delta["thinking"]),
        Some("signature_delta") => ("signature", &delta["signature"]),
        Some("input_json_delta") => {
            *json += delta["partial_json"].as_str().expect("partial JSON is text");
            if let Ok(input) = serde_json::from_str(json) {
                block["input"] = input;
            }
            return;
        }
        _ => panic!("{delta} is unknown"),
    };
    let so_far = block[field].as_str().expect("a delta is of its block's kind");
    block[field] = format!("{so_far}{}", more.as_str().expect("more is text")).into();
}

/// What a message says, without what no two messages share.
fn said(message: &Value) -> Value {
    let mut said = message.clone();
    said["id"] = Value::Null;
    for block in said["content"].as_array_mut().into_iter().flatten() {
        if block["type"] == "tool_use" {
            block["id"] = Value::Null;
        }
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_the_same_as_a_whole_message() {
    let host = Host::start("[engine]\nworkers = 1\n").await;
    let question = json!([{ "role": "user", "content": "what is 4 + 5?" }]);
    for fields in [
        json!({}),
        json!({ "max_tokens": 2 }),
        json!({ "stop_sequences": ["o"] }),
        json!({ "messages": question, "tools": tools() }),
        json!({ "messages": question, "tools": tools(), "tool_choice": { "type": "any" } }),
        json!({ "tools": tools(), "tool_choice": { "type": "tool", "name": "read_file" }, "max_tokens": 3 }),
        json!({ "max_tokens": 0 }),
    ] {
        // The first fills the cache for both that are compared.
        message(&host, fields.clone()).await;
        let whole = message(&host, fields.clone()).await;
        let streamed = assembled(&events(&host, fields.clone()).await);
        assert_eq!(said(&streamed), said(&whole), "{fields}");
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reasons_to_stop_are_told_apart() {
    let host = Host::start("").await;
    let text = message(&host, json!({})).await["content"][0]["text"].as_str().unwrap_or_default().to_owned();
    let stop = &text[3..6];
    let stopped = message(&host, json!({ "stop_sequences": ["never", stop] })).await;
    assert_eq!((&stopped["stop_reason"], &stopped["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    assert_eq!(stopped["content"][0]["text"], text[..3]);
    assert_eq!(message(&host, json!({ "max_tokens": 1 })).await["stop_reason"], "max_tokens");
    assert_eq!(message(&host, json!({ "max_tokens": 128_000 })).await["stop_reason"], "end_turn");
    let called = json!({ "messages": [{ "role": "user", "content": "what is 4 + 5?" }], "tools": tools() });
    let called = message(&host, called).await;
    assert_eq!((&called["stop_reason"], &called["stop_sequence"]), (&json!("tool_use"), &Value::Null));
    assert_eq!(called["content"][0]["input"], json!({ "expression": "4 + 5" }));
    host.stop().await;
    // Made-up tokens never end.
    let host = Host::simulated("[model]\ncontext_tokens_max = 64\n").await;
    let full = message(&host, json!({ "max_tokens": 128_000 })).await;
    assert_eq!(full["stop_reason"], "model_context_window_exceeded");
    host.stop().await;
}

/// A coding agent's request, as it is in the given turn of a session: the billing block, the mark that moves, a message
/// that is a list with a mark in one turn and a string in the next, and a system message in the middle.
fn agent_body(turn: usize, session: &str) -> Value {
    let mark = json!({ "type": "ephemeral" });
    let text = |text: &str| json!({ "type": "text", "text": text });
    let marked = |text: &str| json!({ "type": "text", "text": text, "cache_control": mark });
    let call = |id: &str, path: &str| json!({ "type": "tool_use", "id": id, "name": "read_file", "input": { "path": path }, "caller": { "type": "direct" } });
    let result = |id: &str, content: Value, last: bool| {
        let mut block = json!({ "type": "tool_result", "tool_use_id": id, "content": content });
        if last {
            block["cache_control"] = mark.clone();
        }
        block
    };
    let question = "read plum.csv and fig.csv and multiply the numbers";
    let reminder = "<system-reminder>Use the tools.</system-reminder>";
    let first = match turn {
        0 => json!([text(reminder), marked(question)]),
        _ => json!([text(reminder), text(question)]),
    };
    let mut messages = vec![json!({ "role": "user", "content": first })];
    messages.push(json!({ "role": "system", "content": if turn == 0 { json!([text("The date is set.")]) } else { json!("The date is set.") } }));
    if turn > 0 {
        messages.push(json!({ "role": "assistant", "content": [call("toolu_a", "plum.csv")] }));
        messages.push(json!({ "role": "user", "content": [result("toolu_a", json!("11 33"), turn == 1)] }));
    }
    if turn > 1 {
        messages.push(json!({ "role": "assistant", "content": [text("Next."), call("toolu_b", "fig.csv")] }));
        let content = json!([{ "type": "text", "text": "12 40" }]);
        messages
            .push(json!({ "role": "user", "content": [result("toolu_b", content, true), text("Go on.")] }));
    }
    let rules = "You keep to the rules of the house. ".repeat(20);
    let mut tools = tools();
    tools[0]["description"] = "Computes.".into();
    json!({
        "model": "tiny-agent",
        "messages": messages,
        "system": [
            text(&format!("x-anthropic-billing-header: cc_version=2.1.329.{session}; cc_entrypoint=cli;")),
            marked("You are an agent."),
            marked(&rules),
        ],
        "tools": tools,
        "metadata": { "user_id": "{\"device_id\":\"d\",\"session_id\":\"s\"}" },
        "max_tokens": 32_000,
        "thinking": { "type": "adaptive", "display": "omitted" },
        "context_management": { "edits": [{ "type": "clear_thinking_20251015", "keep": "all" }] },
        "output_config": { "effort": "high" },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn each_turn_of_an_agent_finds_the_one_before_in_the_cache() {
    let host = Host::start("[engine]\nworkers = 1\n").await;
    let mut before = 0;
    for turn in 0..3 {
        let fields = agent_body(turn, "a19");
        let counted = count(&host, fields.clone()).await;
        let message = assembled(&events(&host, fields).await);
        let usage = &message["usage"];
        let read = usage["cache_read_input_tokens"].as_u64().unwrap_or_default();
        assert!(read + 32 > before, "turn {turn} read {read} of {before} tokens: {usage}");
        assert!(turn > 0 || read == 0, "{usage}");
        assert!(usage["cache_creation_input_tokens"].as_u64() > Some(0), "{usage}");
        assert_eq!(input_tokens(usage), counted, "{usage}");
        before = counted;
    }
    // Another session of the same agent differs in its billing block alone.
    let other = message(&host, agent_body(0, "b98")).await;
    let usage = &other["usage"];
    assert!(usage["cache_read_input_tokens"].as_u64() > Some(0), "{usage}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_say_what_was_written_and_for_how_long() {
    let host = Host::start("[engine]\nworkers = 1\n").await;
    let rules = "Keep to the rules of the house. ".repeat(20);
    let system =
        json!([{ "type": "text", "text": rules, "cache_control": { "type": "ephemeral", "ttl": "1h" } }]);
    let ask = |text: &str, mark: Value| {
        json!({ "system": system, "messages": [{ "role": "user", "content": [
            { "type": "text", "text": text, "cache_control": mark }, { "type": "text", "text": "hello" }] }] })
    };
    let usage = message(&host, ask("hi", json!({ "type": "ephemeral" }))).await["usage"].clone();
    let written = |name: &str| usage["cache_creation"][name].as_u64().unwrap_or_default();
    assert!(written("ephemeral_1h_input_tokens") > written("ephemeral_5m_input_tokens"), "{usage}");
    assert!(written("ephemeral_5m_input_tokens") > 0, "{usage}");
    assert!(usage["input_tokens"].as_u64().is_some_and(|rest| rest > 0 && rest < 16), "{usage}");
    let again = message(&host, ask("hi", json!({ "type": "ephemeral" }))).await["usage"].clone();
    assert!(
        again["cache_read_input_tokens"].as_u64()
            > usage["cache_creation"]["ephemeral_1h_input_tokens"].as_u64()
    );
    assert_eq!(again["cache_creation"]["ephemeral_1h_input_tokens"], 0);
    let unmarked = message(&host, json!({ "system": "Be brief." })).await["usage"].clone();
    assert_eq!(unmarked["cache_creation_input_tokens"], 0);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_no_tokens_warms_the_cache() {
    let host = Host::start("[engine]\nworkers = 1\n").await;
    let system = "Keep to the rules of the house. ".repeat(20);
    let fields = json!({ "system": system, "max_tokens": 0, "cache_control": { "type": "ephemeral" } });
    let warm = message(&host, fields.clone()).await;
    assert_eq!((&warm["content"], &warm["stop_reason"]), (&json!([]), &json!("max_tokens")));
    assert_eq!(warm["usage"]["output_tokens"], 0);
    let written = warm["usage"]["cache_creation_input_tokens"].as_u64().unwrap_or_default();
    assert!(written > 100, "{warm}");
    let kinds: Vec<Value> =
        events(&host, fields).await.into_iter().map(|event| event["type"].clone()).collect();
    assert_eq!(kinds, ["message_start", "message_delta", "message_stop"]);
    let read = message(&host, json!({ "system": system })).await["usage"]["cache_read_input_tokens"].as_u64();
    assert!(read > Some(written - 32), "{read:?} of {written}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_counted_as_they_are_charged() {
    let host = Host::start("").await;
    let question = json!([{ "role": "user", "content": "what is 4 + 5?" }]);
    for fields in [
        json!({}),
        json!({ "system": "Be brief.", "messages": question, "tools": tools() }),
        json!({ "messages": question, "tools": tools(), "tool_choice": { "type": "tool", "name": "calc" } }),
        json!({ "thinking": { "type": "disabled" } }),
    ] {
        let counted = count(&host, fields.clone()).await;
        assert_eq!(input_tokens(&message(&host, fields).await["usage"]), counted);
    }
    assert!(count(&host, json!({ "tools": [] })).await > 0);
    // What an agent's gauge asks: parts of a conversation, and more than fits.
    let said = json!([{ "role": "assistant", "content": "hi" }]);
    assert!(count(&host, json!({ "messages": said })).await > 0);
    let long = json!([{ "role": "user", "content": "maple river ".repeat(40_000) }]);
    assert!(count(&host, json!({ "messages": long })).await > 65_536);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn diagnostics_name_what_changed() {
    let host = Host::start("[engine]\nworkers = 1\n").await;
    let rules = |word: &str| format!("{word} ").repeat(100);
    let ask = async |fields: Value, previous: Value| {
        let mut fields = fields;
        fields["diagnostics"] = json!({ "previous_message_id": previous });
        let message = message(&host, fields).await;
        (message["id"].clone(), message["diagnostics"].clone())
    };
    let fields = |system: &str, words: &str| json!({ "system": rules(system), "messages": [{ "role": "user", "content": rules(words) }] });
    let (first, told) = ask(fields("maple", "stone"), Value::Null).await;
    assert_eq!(told, Value::Null);
    let (_, told) = ask(fields("maple", "stone"), first.clone()).await;
    assert_eq!(told, Value::Null);
    let (_, told) = ask(fields("maple", "river"), first.clone()).await;
    assert_eq!(told["cache_miss_reason"]["type"], "messages_changed");
    assert!(told["cache_miss_reason"]["cache_missed_input_tokens"].as_u64() > Some(50), "{told}");
    let (_, told) = ask(fields("cedar", "stone"), first.clone()).await;
    assert_eq!(told["cache_miss_reason"]["type"], "system_changed");
    let mut with_tools = fields("birch", "stone");
    let (other, _) = ask(with_tools.clone(), Value::Null).await;
    with_tools["tools"] = tools();
    let (_, told) = ask(with_tools, other).await;
    assert_eq!(told["cache_miss_reason"]["type"], "tools_changed");
    let (_, told) = ask(json!({}), json!("msg_unknown")).await;
    assert_eq!(told, json!({ "cache_miss_reason": { "type": "previous_message_not_found" } }));
    assert_eq!(message(&host, json!({})).await["diagnostics"], Value::Null);
    let mut streamed = fields("cedar", "stone");
    streamed["diagnostics"] = json!({ "previous_message_id": first });
    streamed["system"] = rules("aspen").into();
    let begun = events(&host, streamed).await.remove(0);
    assert_eq!(begun["message"]["diagnostics"]["cache_miss_reason"]["type"], "system_changed");
    host.stop().await;
}

/// A turn of a conversation that the host holds.
async fn turn(host: &Host, previous: Option<&Value>, fields: Value) -> Reply {
    let mut fields = fields;
    fields["thread"] = match previous {
        None => json!({ "type": "create" }),
        Some(id) => json!({ "type": "continue", "previous_message_id": id }),
    };
    send(host, "/v1/messages?beta=true", &body(fields)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_that_the_host_holds_goes_on_with_what_is_sent() {
    let host = Host::start("[engine]\nworkers = 1\n").await;
    let question = json!({ "role": "user", "content": "what is 4 + 5?" });
    let first = turn(&host, None, json!({ "messages": [question], "tools": tools(), "system": "Be brief." }))
        .await
        .json;
    let called = &first["content"][0];
    assert_eq!(called["input"], json!({ "expression": "4 + 5" }), "{first}");
    let result = json!([{ "type": "tool_result", "tool_use_id": called["id"], "content": "9" }]);
    let sent = json!({ "messages": [{ "role": "user", "content": result }] });
    // The same, sent in full.
    let said = json!({ "role": "assistant", "content": first["content"] });
    let full = json!([question, said, sent["messages"][0]]);
    let whole = message(&host, json!({ "messages": full, "tools": tools(), "system": "Be brief." })).await;
    let mut repeated = sent.clone();
    repeated["system"] = "Be brief.".into();
    let reply = turn(&host, Some(&first["id"]), repeated).await;
    assert_eq!((reply.status.as_u16(), &reply.json["error"]["type"]), (400, &json!("invalid_request_error")));
    // One that was refused can be sent again.
    let second = turn(&host, Some(&first["id"]), sent.clone()).await.json;
    assert_eq!(second["content"], whole["content"]);
    assert_eq!(input_tokens(&second["usage"]), input_tokens(&whole["usage"]));
    for (previous, status, code) in
        [(&first["id"], 400, "thread_already_continued"), (&json!("msg_unknown"), 404, "thread_not_found")]
    {
        let reply = turn(&host, Some(previous), sent.clone()).await;
        let details = &reply.json["error"]["details"];
        assert_eq!((reply.status.as_u16(), &details["error_code"]), (status, &json!(code)), "{}", reply.json);
    }
    let third = json!({ "messages": [{ "role": "user", "content": "what is 6 * 7?" }],
        "thread": { "type": "continue", "previous_message_id": second["id"] } });
    let third = assembled(&events(&host, third).await);
    assert_eq!(third["content"][0]["input"], json!({ "expression": "6 * 7" }), "{third}");
    assert!(third["usage"]["cache_read_input_tokens"].as_u64() > Some(0), "{third}");
    host.stop().await;
}

/// Sends a body and checks the error: its status, its type, and words of its message.
async fn check_error(host: &Host, path: &str, body: &Value, expected: (u16, &str), words: &str) {
    let reply = send(host, path, body).await;
    let error = &reply.json["error"];
    let kind = error["type"].as_str().unwrap_or_default();
    assert_eq!((reply.status.as_u16(), kind), expected, "{body} gave {}", reply.json);
    assert_eq!(reply.json["type"], "error");
    assert_eq!(reply.json["request_id"], reply.header("request-id"));
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains(words), "`{words}` is missing in `{message}`");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_field_that_has_to_be_there_is_named() {
    let host = Host::simulated("").await;
    const INVALID: (u16, &str) = (400, "invalid_request_error");
    for path in ["/v1/messages", "/v1/messages/count_tokens"] {
        for (field, wrong) in [("model", json!(1)), ("messages", json!("hi")), ("max_tokens", json!("1"))] {
            if path.ends_with("count_tokens") && field == "max_tokens" {
                continue;
            }
            let mut without = body(json!({}));
            without.as_object_mut().expect("a body is an object").remove(field);
            check_error(&host, path, &without, INVALID, &format!("`{field}` is missing")).await;
            check_error(
                &host,
                path,
                &body(json!({ (field): wrong })),
                INVALID,
                &format!("`{field}` must be"),
            )
            .await;
        }
        for (field, wrong) in [
            ("system", json!(1)),
            ("tools", json!({})),
            ("tool_choice", json!("auto")),
            ("stop_sequences", json!("x")),
            ("stream", json!("yes")),
            ("thinking", json!(true)),
            ("temperature", json!("hot")),
            ("cache_control", json!("5m")),
        ] {
            check_error(
                &host,
                path,
                &body(json!({ (field): wrong })),
                INVALID,
                &format!("`{field}` must be"),
            )
            .await;
        }
        let result = json!([{ "type": "tool_result", "tool_use_id": "toolu_9", "content": "x" }]);
        let orphan = json!({ "messages": [{ "role": "user", "content": result }] });
        check_error(&host, path, &body(orphan), INVALID, "`messages.0.content.0.tool_use_id`").await;
    }
    let reply = host.raw(&post("/v1/messages", "{\"model\":")).await;
    assert!(reply.starts_with("HTTP/1.1 400") && reply.contains("invalid_request_error"), "{reply}");
    assert_eq!(
        message(&host, json!({ "max_tokens": 4, "novel": { "a": 1 } })).await["stop_reason"],
        "max_tokens"
    );
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_shape_that_sdks_read() {
    let host = Host::simulated("[limits]\nbody_bytes_max = 1000000\n").await;
    let unknown = body(json!({ "model": "claude-none" }));
    check_error(&host, "/v1/messages", &unknown, (404, "not_found_error"), "`claude-none`").await;
    check_error(&host, "/v1/messages/batches", &unknown, (404, "not_found_error"), "out of scope").await;
    let long = body(json!({ "messages": [{ "role": "user", "content": "maple river ".repeat(60_000) }] }));
    let reply = send(&host, "/v1/messages", &long).await;
    let said = reply.json["error"]["message"].as_str().unwrap_or_default().to_owned();
    let numbers: Vec<u64> = said.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert_eq!(said, format!("prompt is too long: {} tokens > 65536 maximum", numbers[0]));
    assert!(numbers[0] > 65_536);
    let huge = body(json!({ "system": "x".repeat(1_000_000) }));
    check_error(&host, "/v1/messages", &huge, (413, "request_too_large"), "1000000 bytes").await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_house_is_overloaded() {
    let host = Host::simulated("[limits]\nrequests_max = 1\n[engine.sim]\nstep_us = 1000000.0\n").await;
    let first = body(json!({ "max_tokens": 3 }));
    let first = host.api.post("/v1/messages", &first);
    let second = async {
        host.until("it runs", async || host.workers("running").await == 1).await;
        send(&host, "/v1/messages", &body(json!({}))).await
    };
    let (first, reply) = tokio::join!(first, second);
    assert_eq!((reply.status.as_u16(), &reply.json["error"]["type"]), (529, &json!("overloaded_error")));
    assert!(reply.header("retry-after").parse::<u32>().is_ok());
    first.expect("the first is served");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usage_is_known_before_the_first_token() {
    // A second for the prompt's step, and one for each token after it.
    let host = Host::simulated("[engine.sim]\nstep_us = 400000.0\n").await;
    let mut body = body(json!({ "max_tokens": 2 }));
    body["stream"] = true.into();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = host.connect().await;
    socket.write_all(&post("/v1/messages", &body.to_string())).await.expect("the host reads");
    let mut seen = String::new();
    while !seen.contains("message_start") {
        let mut some = [0; 4096];
        let read = socket.read(&mut some).await.expect("events come");
        assert!(read > 0, "{seen}");
        seen += &String::from_utf8_lossy(&some[..read]);
    }
    assert!(!seen.contains("content_block_start"), "{seen}");
    assert!(seen.contains("\"input_tokens\":"), "{seen}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_knock_are_let_in() {
    let host = Host::simulated("").await;
    for path in ["/", "/api/hello"] {
        let reply = host
            .raw(format!("HEAD {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await;
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    }
    host.stop().await;
}
