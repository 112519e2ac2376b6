use axum::http::HeaderMap;
use engine::SamplingParams;
use serde_json::{Value, json};

use super::body::{Style, parse};
use super::signature;
use crate::api::sampling::Rules;
use crate::config::Config;
use crate::prompt::Prompts;
use crate::request::{Format, Refusal, Request, ToolChoice};

pub(super) fn parsed(body: &Value) -> Result<(Request, Style), Refusal> {
    let config = Config::parse("").expect("the defaults are right");
    let prompts = Prompts::new(0, || 1);
    let rules = Rules {
        model: "m",
        aliases: &["claude-*".to_owned()],
        adapters: &[],
        vocab: 100,
        sampling: &SamplingParams::default(),
        limits: &config.limits,
        hints: &config.hints,
        prompts: &prompts,
        tenant: 0,
    };
    parse(body, &HeaderMap::new(), &rules, 1)
}

/// A body that asks for little, with these fields.
pub(super) fn body(fields: Value) -> Value {
    let mut body = json!({"model": "m", "max_tokens": 16, "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in fields.as_object().expect("fields are an object") {
        body[name] = value.clone();
    }
    body
}

fn request(fields: Value) -> Request {
    parsed(&body(fields)).expect("the body is right").0
}

/// What templates are given for these messages.
fn check(messages: Value, expected: Value) {
    assert_eq!(Value::from(request(json!({"messages": messages})).messages.plain()), expected);
}

fn check_refused(fields: Value, expected: &str) {
    let refusal = parsed(&body(fields)).expect_err("the body is wrong");
    assert!(matches!(refusal, Refusal::Field { .. }), "{refusal:?}");
    assert_eq!(refusal.to_string(), expected);
}

fn user(content: Value) -> Value {
    json!({"role": "user", "content": content})
}

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn call(id: &str) -> Value {
    json!({"type": "tool_use", "id": id, "name": "f", "input": {"b": 1, "a": [1.50]}})
}

fn tool(name: &str) -> Value {
    json!({"name": name, "description": "d", "input_schema": {"type": "object"}})
}

fn function(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "description": "d", "parameters": {"type": "object"}}})
}

#[test]
fn a_string_and_one_block_of_text_are_the_same_message() {
    let expected = json!([{"role": "user", "content": "hi"}]);
    check(json!([user(json!("hi"))]), expected.clone());
    check(json!([user(json!([text("hi")]))]), expected);
    let marked =
        json!({"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}, "citations": null});
    check(json!([user(json!([marked]))]), json!([{"role": "user", "content": "hi"}]));
    check(json!([user(json!([text("a"), text("b")]))]), json!([user(json!([text("a"), text("b")]))]));
    check(json!([user(json!([]))]), json!([user(json!(""))]));
}

#[test]
fn results_of_tools_stand_where_they_stood() {
    let result =
        |id: &str, content: Value| json!({"type": "tool_result", "tool_use_id": id, "content": content});
    let said = json!({"role": "assistant", "content": [text("so"), call("t1"), call("t2")]});
    let results = user(json!([
        result("t1", json!("one")),
        result("t2", json!([text("two"), text("2")])),
        text("go on")
    ]));
    let function = json!({"name": "f", "arguments": {"b": 1, "a": [1.50]}});
    let called = |id: &str| json!({"id": id, "type": "function", "function": function});
    let answered = |id: &str, content: Value| json!({"role": "tool", "tool_call_id": id, "name": "f", "content": content});
    check(
        json!([user(json!("hi")), said, results]),
        json!([
            user(json!("hi")),
            {"role": "assistant", "content": "so", "tool_calls": [called("t1"), called("t2")]},
            answered("t1", json!("one")),
            answered("t2", json!([text("two"), text("2")])),
            user(json!("go on")),
        ]),
    );
}

fn check_result(result: Value, expected: &str) {
    let mut block = json!({"type": "tool_result", "tool_use_id": "t1"});
    for (name, value) in result.as_object().expect("fields are an object") {
        block[name] = value.clone();
    }
    let messages =
        json!([user(json!("hi")), {"role": "assistant", "content": [call("t1")]}, user(json!([block]))]);
    let tools = json!([{"name": "late", "input_schema": {"type": "object"}, "defer_loading": true}]);
    let request = request(json!({"messages": messages, "tools": tools}));
    assert_eq!(request.messages.plain()[2]["content"], expected);
}

#[test]
fn a_result_is_taken_as_far_as_it_can_be_read() {
    check_result(json!({}), "");
    check_result(json!({"is_error": true}), "Error");
    check_result(json!({"content": "no such file", "is_error": true}), "Error: no such file");
    check_result(json!({"content": "Error: gone", "is_error": true}), "Error: gone");
    check_result(json!({"content": [text("<tool_use_error>x")], "is_error": true}), "<tool_use_error>x");
    let image = json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}});
    check_result(json!({"content": [image]}), "[image left out: this model reads text]");
    let found = json!({"type": "search_result", "title": "T", "source": "S", "content": [text("C")]});
    check_result(json!({"content": [found]}), "T\nS\nC");
    let known = json!({"type": "tool_reference", "tool_name": "other"});
    check_result(json!({"content": [known]}), "The tool `other` is available.");
    let late = json!({"type": "tool_reference", "tool_name": "late"});
    let definition =
        json!({"type": "function", "function": {"name": "late", "parameters": {"type": "object"}}});
    check_result(json!({"content": [late]}), &format!("<tools>\n{definition}\n</tools>"));
}

#[test]
fn reasoning_comes_back_shown_or_kept_back() {
    let think = |thinking: &str, signature: &str| json!({"type": "thinking", "thinking": thinking, "signature": signature});
    let turn = |blocks: Value| json!([user(json!("hi")), {"role": "assistant", "content": blocks}, user(json!("b"))]);
    let expected = |fields: Value| json!([user(json!("hi")), fields, user(json!("b"))]);
    let said = json!({"role": "assistant", "content": "a", "reasoning_content": "so"});
    check(turn(json!([think("so", "EqoB"), text("a")])), expected(said.clone()));
    check(turn(json!([think("", &signature::holding("so")), text("a")])), expected(said));
    let silent = json!({"role": "assistant", "content": "a"});
    check(
        turn(json!([think("", "EqoB"), {"type": "redacted_thinking", "data": "x"}, text("a")])),
        expected(silent),
    );
}

#[test]
fn system_prompts_stay_where_they_stand() {
    let request = request(json!({
        "system": [text("x-anthropic-billing-header: a"), text("b"), text("c")],
        "messages": [user(json!("1")), {"role": "system", "content": [text("mid")]}, user(json!("2"))],
    }));
    let parts = json!([text("x-anthropic-billing-header: a"), text("b"), text("c")]);
    let expected = json!([
        {"role": "system", "content": parts},
        user(json!("1")),
        {"role": "system", "content": "mid"},
        user(json!("2")),
    ]);
    assert_eq!(Value::from(request.messages.plain()), expected);
    check(json!([user(json!("1"))]), json!([user(json!("1"))]));
}

#[test]
fn a_system_message_of_one_turn_goes_with_it() {
    let passing = json!({"role": "system", "content": "now", "clear_at": "next_user_message"});
    check(
        json!([user(json!("1")), passing]),
        json!([user(json!("1")), {"role": "system", "content": "now"}]),
    );
    check(json!([user(json!("1")), passing, user(json!("2"))]), json!([user(json!("1")), user(json!("2"))]));
}

#[test]
fn tools_that_come_and_go_are_said_in_their_place() {
    let added =
        json!({"type": "tool_addition", "tool": {"type": "tool_definition", "definition": tool("g")}});
    let removed = json!({"type": "tool_removal", "tool": {"type": "tool_reference", "name": "f"}});
    let request = request(json!({
        "tools": [tool("f")],
        "messages": [user(json!("1")), {"role": "system", "content": [added, removed]}],
    }));
    let expected = json!([
        text(&format!("<tools>\n{}\n</tools>", function("g"))),
        text("The tool `f` is not available any more."),
    ]);
    assert_eq!(request.messages.plain()[1]["content"], expected);
}

#[test]
fn tools_are_functions_and_foreign_ones_are_left_out() {
    let mut marked = tool("f");
    marked["cache_control"] = json!({"type": "ephemeral"});
    let server = json!({"type": "web_search_20250305", "name": "web_search"});
    let later = json!({"name": "late", "input_schema": {}, "defer_loading": true});
    let custom = json!({"type": "custom", "name": "g", "input_schema": {}, "strict": true});
    let request = request(json!({"tools": [marked, server, later, custom]}));
    let strict = json!({"type": "function", "function": {"name": "g", "parameters": {}, "strict": true}});
    assert_eq!(request.tools.as_deref(), Some([function("f"), strict].as_slice()));
    assert_eq!(request.tool_choice, ToolChoice::Auto);
    assert_eq!(self::request(json!({"tools": []})).tools, None);
    let server_only = self::request(json!({"tools": [server]}));
    assert_eq!((server_only.tools, server_only.tool_choice), (None, ToolChoice::None));
}

#[test]
fn tool_choices_have_their_words() {
    let chosen = |choice: Value| {
        let request = request(json!({"tools": [tool("f")], "tool_choice": choice}));
        (request.tool_choice, request.parallel_calls)
    };
    assert_eq!(chosen(json!({"type": "auto"})), (ToolChoice::Auto, true));
    assert_eq!(
        chosen(json!({"type": "any", "disable_parallel_tool_use": true})),
        (ToolChoice::Required, false)
    );
    assert_eq!(chosen(json!({"type": "tool", "name": "f"})), (ToolChoice::Named("f".into()), true));
    assert_eq!(chosen(json!({"type": "none"})), (ToolChoice::None, true));
    assert_eq!(request(json!({"tools": [tool("f")], "tool_choice": {"type": "none"}})).tools, None);
}

/// The marks that policies see.
fn check_marks(fields: Value, expected: Value) {
    let (request, style) = parsed(&body(fields)).expect("the body is right");
    let written = request.extensions.iter().find(|(name, _)| name == "cache_control");
    let written = written.map_or(Value::Null, |(_, json)| serde_json::from_str(json).expect("it is JSON"));
    assert_eq!(written, expected);
    assert_eq!(request.is_marked(), !style.marks.is_empty());
}

#[test]
fn marks_name_the_message_that_templates_see() {
    let mark = |block: Value, ttl: Option<&str>| {
        let mut block = block;
        block["cache_control"] = json!({"type": "ephemeral"});
        if let Some(ttl) = ttl {
            block["cache_control"]["ttl"] = ttl.into();
        }
        block
    };
    check_marks(json!({}), Value::Null);
    check_marks(
        json!({"cache_control": {"type": "ephemeral", "ttl": "1h"}}),
        json!([{"segment": 0, "ttl": "1h"}]),
    );
    let result = json!({"type": "tool_result", "tool_use_id": "t1", "content": "r"});
    check_marks(
        json!({
            "tools": [tool("e"), mark(tool("f"), Some("1h"))],
            "system": [text("a"), mark(text("b"), None), mark(text("c"), None)],
            "messages": [
                user(json!("hi")),
                {"role": "assistant", "content": [text("so"), mark(call("t1"), None)]},
                user(json!([result, mark(text("go on"), Some("5m"))])),
            ],
        }),
        json!([
            {"segment": -1, "ttl": "1h"}, {"segment": 0}, {"segment": 0}, {"segment": 2}, {"segment": 4, "ttl": "5m"},
        ]),
    );
}

#[test]
fn what_is_asked_of_the_answer_is_read() {
    let (request, style) = parsed(&body(json!({
        "model": "claude-x",
        "max_tokens": 0,
        "tools": [tool("f")],
        "tool_choice": {"type": "any"},
        "thinking": {"type": "adaptive", "display": "omitted"},
        "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        "stop_sequences": ["END"],
        "stream": true,
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "context_management": {"edits": []},
        "container": "c",
        "temperature": 0.5,
    })))
    .expect("the body is right");
    assert_eq!((request.output_tokens_max, request.tool_choice), (Some(0), ToolChoice::Auto));
    assert_eq!(request.template_args["enable_thinking"], true);
    assert_eq!(
        request.format,
        Format::JsonSchema {
            schema: json!({"type": "object"}),
            strict: false,
            param: "output_config.format.schema".into(),
        }
    );
    assert_eq!((request.stop, request.streamed, request.begins_early), (vec!["END".to_owned()], true, true));
    assert_eq!((style.model.as_str(), style.thinking_omitted), ("claude-x", true));
    let off = self::request(json!({"thinking": {"type": "disabled"}, "max_tokens": 1u64 << 40}));
    assert_eq!(
        (off.template_args["enable_thinking"].clone(), off.output_tokens_max),
        (json!(false), Some(u32::MAX))
    );
    assert!(self::request(json!({})).template_args.is_empty());
}

#[test]
fn every_refusal_names_its_field() {
    check_refused(
        json!({"max_tokens": null}),
        "`max_tokens` is missing: it must be an integer of at least 0",
    );
    check_refused(json!({"max_tokens": "1"}), "`max_tokens` must be an integer of at least 0, got a string");
    check_refused(json!({"model": null}), "`model` is missing: it must be the name of a model");
    check_refused(json!({"messages": null}), "`messages` is missing: it must be a list of messages");
    check_refused(json!({"messages": []}), "`messages`: at least one message is required");
    check_refused(json!({"messages": ["hi"]}), "`messages.0` must be an object, got a string");
    check_refused(
        json!({"messages": [{"content": "hi"}]}),
        "`messages.0.role` is missing: it must be a string",
    );
    check_refused(
        json!({"messages": [{"role": "tool", "content": "hi"}]}),
        "`messages.0.role` must be \"user\", \"assistant\" or \"system\", got a string",
    );
    check_refused(
        json!({"messages": [user(json!("a")), {"role": "user"}]}),
        "`messages.1.content` is missing: it must be a string or a list of content blocks",
    );
    check_refused(
        json!({"messages": [user(json!([text("a"), {"text": "b"}]))]}),
        "`messages.0.content.1.type` is missing: it must be a string",
    );
    check_refused(
        json!({"messages": [user(json!([{"type": "image", "source": {}}]))]}),
        "`messages.0.content.0.type`: content of type `image` is not supported: this model reads text",
    );
    check_refused(
        json!({"messages": [user(json!([{"type": "tool_result", "tool_use_id": "t9"}]))]}),
        "`messages.0.content.0.tool_use_id`: unexpected `tool_use_id` found in `tool_result` blocks: t9. Each \
         `tool_result` block must have a corresponding `tool_use` block in a message before it",
    );
    check_refused(
        json!({"messages": [user(json!("a")), {"role": "assistant", "content": "b"}]}),
        "this model does not support assistant message prefill: the conversation must end with a user message",
    );
    check_refused(json!({"system": 3}), "`system` must be a string or a list of content blocks, got 3");
    check_refused(
        json!({"stop_sequences": [""]}),
        "`stop_sequences` must be a list of up to 16 strings, none of them empty, got a list",
    );
    check_refused(
        json!({"thinking": {"type": "loud"}}),
        "`thinking.type` must be \"enabled\", \"adaptive\" or \"disabled\", got a string",
    );
    check_refused(
        json!({"output_config": {"format": {"type": "xml"}}}),
        "`output_config.format.type` must be \"text\", \"json_object\" or \"json_schema\", got a string",
    );
}

#[test]
fn tools_are_checked_by_name() {
    check_refused(
        json!({"tools": [{"name": "f"}]}),
        "`tools.0.input_schema` is missing: it must be a JSON schema",
    );
    check_refused(
        json!({"tools": [{"input_schema": {}}]}),
        "`tools.0.name` is missing: it must be the name of a tool",
    );
    check_refused(
        json!({"tools": [tool("f"), tool("f")]}),
        "`tools.1.name`: tool names must be unique, and `f` is there twice",
    );
    check_refused(
        json!({"tools": [tool("f")], "tool_choice": {"type": "tool", "name": "g"}}),
        "`tool_choice.name`: the tool `g` is not in `tools` (f)",
    );
    check_refused(
        json!({"tool_choice": {"type": "any"}}),
        "`tool_choice.type` must be \"auto\" or \"none\" where `tools` has no tool that can be called, got a string",
    );
}
