use std::path::Path;

use serde_json::{Map, Value, json};

use super::*;
use crate::prompt::TemplateSource;

const TINY: &[u8] = include_bytes!("../../../../../examples/models/tiny-agent/tokenizer.json");
const TINY_CONFIG: &[u8] = include_bytes!("../../../../../examples/models/tiny-agent/tokenizer_config.json");

/// The turns of Llama 3: two added tokens around each role, and a date before the system prompt.
const LLAMA: &str = "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_end|>\n\n' }}{% if loop.first and m.role == 'system' %}{{ 'Today: ' + strftime_now('%d %b %Y') + '\n\n' }}{% endif %}{{ m.content | trim + '<|endoftext|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_end|>\n\n' }}{% endif %}";

/// Keeps reasoning after the last question only, and joins the answers of tools, as Qwen 3 does.
const QWEN: &str = "{% if tools %}{{ '<|im_start|>system\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}{{ '# Tools\n\nThese are the tools:\n<tools>' }}{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}{{ '\n</tools>\n\nCall them with {\"name\": <name>}, and never without need.<|im_end|>\n' }}{% elif messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% if m.reasoning_content and loop.index0 > ns.last %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ '\n<tool_call>\n' + c.function.name + c.function.arguments + '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% elif m.role == 'tool' %}{{ '<|im_start|>user' if messages[loop.index0 - 1].role != 'tool' }}{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}{{ '<|im_end|>\n' if loop.last or messages[loop.index0 + 1].role != 'tool' }}{% endif %}{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}";

fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(Path::new("tiny"), TINY).expect("a tokenizer")
}

fn template(source: Option<&str>, tokenizer: &Tokenizer) -> ChatTemplate {
    let source = match source {
        Some("tiny") => {
            let config = serde_json::from_slice(TINY_CONFIG).expect("the model's own configuration");
            TemplateSource::from_config(Path::new("tiny"), &config, None)
        }
        text => {
            TemplateSource { path: "test".into(), template: text.map(str::to_owned), ..Default::default() }
        }
    };
    ChatTemplate::new(&source, tokenizer.guard()).expect("a template")
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"path": {"type": "string"}}});
    json!([
        {"type": "function", "function": {"name": "read", "description": "reads {\"}", "parameters": parameters}},
        {"function": {"parameters": parameters, "name": "list"}, "type": "function"},
    ])
}

/// Role, message and text of each segment of a prompt; all of them together are the prompt.
fn cut(source: Option<&str>, messages: &Value, tools: &Value) -> Vec<(Role, i32, String)> {
    let tokenizer = tokenizer();
    let template = template(source, &tokenizer);
    let input = RenderInput {
        messages: messages.as_array().expect("a list"),
        tools: tools.as_array().map(Vec::as_slice),
        add_generation_prompt: true,
        extra: &Map::new(),
        now_unix_ms: 86_400_000,
    };
    let text = template.render(&input).expect("rendered");
    let tokens = tokenizer.encode_prompt(&text);
    let segments = segments(&template, &tokenizer, &input, &text, &tokens);
    assert_eq!(segments[0].start, 0);
    assert!(segments.windows(2).all(|two| two[0].start < two[1].start), "{segments:?}");
    let ends = segments.iter().skip(1).map(|next| next.start as usize).chain([tokens.len()]);
    let words = |range: std::ops::Range<usize>| {
        let bytes: Vec<u8> =
            tokens[range].iter().flat_map(|&t| tokenizer.token_bytes(t).into_owned()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    segments.iter().zip(ends).map(|(s, end)| (s.role, s.message, words(s.start as usize..end))).collect()
}

#[track_caller]
fn check(source: Option<&str>, messages: Value, tools: Value, expected: &[(Role, i32, &str)]) {
    let found = cut(source, &messages, &tools);
    let short: Vec<(Role, i32, &str)> =
        found.iter().map(|(role, message, text)| (*role, *message, text.as_str())).collect();
    assert_eq!(short, expected);
}

fn call(name: &str) -> Value {
    json!({"id": "1", "type": "function", "function": {"name": name, "arguments": "{}"}})
}

#[test]
fn turns_of_chatml_begin_at_their_opening() {
    let messages = json!([
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "user"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "a <|im_start|>user\n trick"},
    ]);
    check(
        None,
        messages,
        Value::Null,
        &[
            (Role::System, 0, "<|im_start|>system\nbe brief<|im_end|>\n"),
            (Role::History, 1, "<|im_start|>user\nuser<|im_end|>\n"),
            (Role::History, 2, "<|im_start|>assistant\na<|im_end|>\n"),
            (Role::History, 3, "<|im_start|>user\na <|im_start|>user\n trick<|im_end|>\n"),
            (Role::Output, Span::AFTER, "<|im_start|>assistant\n"),
        ],
    );
}

#[test]
fn the_embedded_model_has_a_system_prompt_of_its_own_and_its_tools_after_it() {
    let messages = json!([
        {"role": "user", "content": "agent"},
        {"role": "assistant", "content": null, "tool_calls": [call("read")]},
        {"role": "tool", "tool_call_id": "1", "content": "<tool_response>\n11"},
    ]);
    check(
        Some("tiny"),
        messages,
        tools(),
        &[
            (Role::System, Span::BEFORE, "<|im_start|>system\nYou are a helpful agent.\n"),
            (
                Role::Tools,
                Span::BEFORE,
                "<tools>\n{\"name\": \"read\", \"parameters\": {\"path\": \"string\"}}\n{\"name\": \"list\", \"parameters\": {\"path\": \"string\"}}\n</tools><|im_end|>\n",
            ),
            (Role::History, 0, "<|im_start|>user\nagent<|im_end|>\n"),
            (
                Role::History,
                1,
                "<|im_start|>assistant\n<tool_call>\n{\"name\": \"read\", \"arguments\": {}}\n</tool_call><|im_end|>\n",
            ),
            (
                Role::ToolResult,
                2,
                "<|im_start|>user\n<tool_response>\n<tool_response>\n11\n</tool_response><|im_end|>\n",
            ),
            (Role::Output, Span::AFTER, "<|im_start|>assistant\n"),
        ],
    );
}

#[test]
fn reasoning_and_joined_answers_of_tools_are_told_apart() {
    let messages = json!([
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "old", "reasoning_content": "forgotten"},
        {"role": "user", "content": "v"},
        {"role": "assistant", "content": "w", "reasoning_content": "so\nit is", "tool_calls": [call("read"), call("list")]},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "tool", "tool_call_id": "2", "content": "one"},
    ]);
    let found = cut(Some(QWEN), &messages, &tools());
    let ends: Vec<(Role, i32)> = found.iter().map(|(role, message, _)| (*role, *message)).collect();
    let expected = [
        (Role::System, 0),
        (Role::Tools, Span::BEFORE),
        (Role::History, 1),
        (Role::History, 2),
        (Role::History, 3),
        (Role::History, 4),
        (Role::Reasoning, 4),
        (Role::History, 4),
        (Role::ToolResult, 5),
        (Role::ToolResult, 6),
        (Role::Output, Span::AFTER),
    ];
    assert_eq!(ends, expected, "{found:#?}");
    assert!(
        found[1].2.starts_with("# Tools") && found[1].2.ends_with("without need.<|im_end|>\n"),
        "{found:#?}"
    );
    assert_eq!(found[6].2, "<think>\nso\nit is\n</think>\n\n");
    assert_eq!(found[8].2, "<|im_start|>user\n<tool_response>\none\n</tool_response>");
    assert_eq!(found[9].2, "\n<tool_response>\none\n</tool_response><|im_end|>\n");
}

#[test]
fn a_date_before_the_system_prompt_belongs_to_it() {
    let messages = json!([
        {"role": "system", "content": "  be brief "},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "u"},
    ]);
    check(
        Some(LLAMA),
        messages,
        Value::Null,
        &[
            (
                Role::System,
                0,
                "<|begin_of_text|><|im_start|>system<|im_end|>\n\nToday: 02 Jan 1970\n\nbe brief<|endoftext|>",
            ),
            (Role::History, 1, "<|im_start|>user<|im_end|>\n\nu<|endoftext|>"),
            (Role::History, 2, "<|im_start|>assistant<|im_end|>\n\na<|endoftext|>"),
            (Role::History, 3, "<|im_start|>user<|im_end|>\n\nu<|endoftext|>"),
            (Role::Output, Span::AFTER, "<|im_start|>assistant<|im_end|>\n\n"),
        ],
    );
}

#[test]
fn a_template_that_shows_no_turns_gives_few_segments_and_loses_nothing() {
    let shapeless = "{% for m in messages %}{{ m.content | upper }}{% endfor %}";
    let messages =
        json!([{"role": "user", "content": "some words of a question"}, {"role": "user", "content": "b"}]);
    let found = cut(Some(shapeless), &messages, &Value::Null);
    let all: String = found.iter().map(|(_, _, text)| text.as_str()).collect();
    assert_eq!(all, "SOME WORDS OF A QUESTIONB");
    assert!(found.iter().all(|(role, ..)| matches!(role, Role::System | Role::History)), "{found:?}");
}

#[test]
fn long_conversations_are_cut_in_time_that_grows_with_them() {
    // Every message says the same, so that each search could go astray.
    let turn =
        |i: usize| json!({"role": if i.is_multiple_of(2) { "user" } else { "assistant" }, "content": "ok"});
    let messages: Vec<Value> = (0..401).map(turn).collect();
    let found = cut(None, &json!(messages), &Value::Null);
    assert_eq!(found.len(), 402);
    assert!(found[..401].iter().enumerate().all(|(i, (_, message, _))| *message == i as i32));
}

#[test]
fn a_stretch_ends_where_the_next_message_begins() {
    let segment = |(role, start, message)| Segment { role, start, message };
    let segments = [
        (Role::System, 0, 0),
        (Role::Tools, 40, Span::BEFORE),
        (Role::History, 100, 1),
        (Role::Reasoning, 150, 1),
        (Role::Output, 300, Span::AFTER),
    ]
    .map(segment);
    let ends = [Span::BEFORE, 0, 1, 2].map(|message| end_of_message(&segments, message, 400));
    assert_eq!(ends, [100, 100, 300, 300]);
    assert_eq!(end_of_message(&segments[..3], 1, 400), 400);
    assert_eq!(end_of_message(&[], 1, 400), 0);
}

/// Tokens of an output that are reasoning, as text.
fn check_reasoning(output: &str, begun: bool, expected: &str) {
    let tokenizer = tokenizer();
    let tokens = tokenizer.encode(output);
    let thought = reasoning_tokens(&tokenizer, Family::Hermes, &tokens, begun);
    let bytes: Vec<u8> =
        tokens[..thought].iter().flat_map(|&t| tokenizer.token_bytes(t).into_owned()).collect();
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

#[test]
fn reasoning_of_an_output_ends_at_its_mark() {
    check_reasoning("the answer", false, "");
    check_reasoning("", false, "");
    check_reasoning("<think>\nwell\n</think>\n\nthe answer </think>", false, "<think>\nwell\n</think>");
    check_reasoning("\n<think>never ends", false, "\n<think>never ends");
    check_reasoning("well\n</think>\n\nthe answer", true, "well\n</think>");
    check_reasoning("so <think>", false, "");
}
