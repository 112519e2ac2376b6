//! One spelling for what callers spell in several ways, so that turn N+1 has turn N as its exact prefix.
//!
//! Clients send the same message as a string in one turn and as a list of parts in the next, with `null`
//! or nothing, with `reasoning` or `reasoning_content`, with ids that they make up. A message is first brought into
//! a form that no template has a say in, which is what it is known by; then into the one that a template wants.
//! Called before a template renders.
//! **Invariant:** messages that mean the same come out equal; text is never changed, only joined, but for a header
//! that a client puts before its system prompt.

use serde_json::{Map, Value, json};

use super::PromptError;
use super::template::python_json;

/// What a template wants; found out when it is loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Rules {
    pub(super) content: Content,
    pub(super) arguments: Arguments,
    /// Whether it knows the role `developer`; otherwise that is `system`.
    pub(super) developer: bool,
    /// Whether it writes a system message in the middle of a conversation where it stands.
    pub(super) late_system: bool,
}

/// The form of a message's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Content {
    /// One string; parts are joined by a newline, as vLLM does.
    #[default]
    Text,
    /// A list of text parts.
    Parts,
}

/// The form of a tool call's arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Arguments {
    /// The JSON text, to the byte as the model wrote it.
    #[default]
    Text,
    /// An object, which prints as that text.
    Object,
}

/// What Claude Code puts before its system prompt. It differs between sessions that have all else in common.
const BILLING: &str = "x-anthropic-billing-header:";

/// Keys that have a place of their own, or are about a message and not of it.
const KNOWN: [&str; 10] = [
    "role",
    "content",
    "reasoning",
    "reasoning_content",
    "tool_calls",
    "cache_control",
    "id",
    "status",
    "annotations",
    "index",
];

/// A message in the form that it is known by.
///
/// Errors: [`PromptError::Refused`] naming what is not a message or not text.
pub(crate) fn neutral(message: &Value, field: &str) -> Result<Value, PromptError> {
    let fail = |reason: &str| refused(field.to_owned(), reason);
    let message = message.as_object().ok_or_else(|| fail("a message is an object"))?;
    let role = message.get("role").and_then(Value::as_str).ok_or_else(|| fail("a message has a role"))?;
    let mut out = Map::from_iter([("role".to_owned(), role.into())]);
    out.insert("content".to_owned(), content(message.get("content"), role, field)?);
    for spelling in ["reasoning", "reasoning_content"] {
        reasoning(message.get(spelling).unwrap_or(&Value::Null), &mut out);
    }
    tool_calls(message.get("tool_calls").unwrap_or(&Value::Null), field, &mut out)?;
    // A key without a value means the same as no key.
    let is_own = |(key, value): &(&String, &Value)| !value.is_null() && !KNOWN.contains(&key.as_str());
    let mut rest: Vec<(&String, &Value)> = message.iter().filter(is_own).collect();
    // The order of keys is that of the client's program.
    rest.sort_unstable_by_key(|(key, _)| *key);
    out.extend(rest.into_iter().map(|(key, value)| (key.clone(), value.clone())));
    Ok(out.into())
}

/// Neutral messages as a template wants them.
pub(super) fn spelled(messages: &[Value], rules: &Rules) -> Vec<Value> {
    let one = |message: &Value| {
        let mut message = message.clone();
        if message["role"] == "developer" && !rules.developer {
            message["role"] = "system".into();
        }
        let content = &mut message["content"];
        *content = match (rules.content, content.take()) {
            (Content::Text, Value::Array(texts)) => {
                let texts: Vec<&str> = texts.iter().filter_map(Value::as_str).collect();
                texts.join("\n").into()
            }
            (Content::Text, text) => text,
            (Content::Parts, Value::Array(texts)) => texts.into_iter().map(text_part).collect(),
            (Content::Parts, text) => json!([text_part(text)]),
        };
        message
    };
    let messages: Vec<Value> = messages.iter().map(one).collect();
    if rules.late_system { messages } else { folded(messages) }
}

/// Whether a neutral message is one that [`folded`] moves into a neighbour when it is not at the head.
pub(crate) fn is_system(message: &Value) -> bool {
    message["role"] == "system" || message["role"] == "developer"
}

/// System messages behind the first other one become a part of the user's turn after them, of the user's turn or
/// the tool's result before them, or else a user's turn of their own. They stay where they are: at the head, they
/// would change everything that was said before.
fn folded(messages: Vec<Value>) -> Vec<Value> {
    let head = messages.iter().take_while(|message| is_system(message)).count();
    if !messages[head..].iter().any(is_system) {
        return messages;
    }
    let mut out: Vec<Value> = Vec::with_capacity(messages.len());
    let mut waiting: Vec<Value> = Vec::new();
    for (i, mut message) in messages.into_iter().enumerate() {
        if i >= head && is_system(&message) {
            waiting.push(message["content"].take());
            continue;
        }
        let before = std::mem::take(&mut waiting);
        if message["role"] == "user" {
            message["content"] =
                before.into_iter().rfold(message["content"].take(), |after, one| joined(one, after));
        } else {
            settle(before, &mut out);
        }
        out.push(message);
    }
    settle(waiting, &mut out);
    out
}

/// Contents that no user's turn follows.
fn settle(waiting: Vec<Value>, out: &mut Vec<Value>) {
    for content in waiting {
        match out.last_mut().filter(|last| last["role"] == "user" || last["role"] == "tool") {
            Some(last) => last["content"] = joined(last["content"].take(), content),
            None => out.push(json!({"role": "user", "content": content})),
        }
    }
}

fn joined(one: Value, other: Value) -> Value {
    match (one, other) {
        (Value::Array(mut one), Value::Array(other)) => {
            one.extend(other);
            one.into()
        }
        (one, other) => {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            format!("{}\n\n{}", text(&one), text(&other)).into()
        }
    }
}

fn text_part(text: Value) -> Value {
    json!({"type": "text", "text": text})
}

/// Content as one string, or as a list of strings where it has several parts; nothing is an empty string.
fn content(content: Option<&Value>, role: &str, field: &str) -> Result<Value, PromptError> {
    let mut texts = match content {
        None | Some(Value::Null) => vec![""],
        Some(Value::String(text)) => vec![text.as_str()],
        Some(Value::Array(parts)) => {
            let texts = parts
                .iter()
                .enumerate()
                .map(|(i, part)| self::part(part, || format!("{field}.content[{i}]")));
            texts.collect::<Result<_, _>>()?
        }
        Some(_) => {
            return Err(refused(format!("{field}.content"), "content is a string or a list of parts"));
        }
    };
    if role == "system" {
        texts = texts.into_iter().filter_map(without_billing).collect();
    }
    Ok(match texts.as_slice() {
        [] => "".into(),
        [text] => (*text).into(),
        texts => texts.iter().copied().collect(),
    })
}

/// A text of a system prompt without the header that is about one session.
fn without_billing(text: &str) -> Option<&str> {
    if !text.starts_with(BILLING) {
        return Some(text);
    }
    let rest = text.split_once('\n').map_or("", |(_, rest)| rest).trim_start_matches('\n');
    (!rest.is_empty()).then_some(rest)
}

fn refused(param: String, reason: &str) -> PromptError {
    PromptError::Refused { message: format!("`{param}`: {reason}"), param }
}

/// The text of one part.
fn part(part: &Value, field: impl Fn() -> String) -> Result<&str, PromptError> {
    if let Some(text) = part.as_str() {
        return Ok(text);
    }
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
    let text = match kind {
        "text" | "input_text" | "output_text" => part.get("text"),
        "refusal" => part.get("refusal"),
        _ => {
            let reason = format!("content of type `{kind}` is not supported: this model reads text");
            return Err(refused(field(), &reason));
        }
    };
    let missing = || refused(field(), &format!("a part of type `{kind}` has text"));
    text.and_then(Value::as_str).ok_or_else(missing)
}

/// Either spelling becomes `reasoning_content`, the one that templates read.
fn reasoning(value: &Value, out: &mut Map<String, Value>) {
    if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
        out.insert("reasoning_content".to_owned(), text.into());
    }
}

/// Tool calls, if there are any; an empty list means the same as none.
fn tool_calls(value: &Value, field: &str, out: &mut Map<String, Value>) -> Result<(), PromptError> {
    if value.is_null() {
        return Ok(());
    }
    let calls =
        value.as_array().ok_or_else(|| refused(format!("{field}.tool_calls"), "tool calls are a list"))?;
    let one = |(i, call): (usize, &Value)| {
        let function = call.get("function").and_then(Value::as_object);
        let missing = || refused(format!("{field}.tool_calls[{i}]"), "a tool call has a function");
        let function = function.ok_or_else(missing)?;
        let mut out = Map::new();
        out.extend(call.get("id").filter(|id| !id.is_null()).map(|id| ("id".to_owned(), id.clone())));
        let name = function.get("name").cloned().unwrap_or_default();
        let arguments = arguments(function.get("arguments").unwrap_or(&Value::Null));
        out.insert("type".to_owned(), "function".into());
        out.insert("function".to_owned(), json!({"name": name, "arguments": arguments}));
        Ok(Value::from(out))
    };
    let calls: Vec<Value> = calls.iter().enumerate().map(one).collect::<Result<_, PromptError>>()?;
    if !calls.is_empty() {
        out.insert("tool_calls".to_owned(), calls.into());
    }
    Ok(())
}

/// Arguments as the text that the model wrote, JSON or not: the conversation goes on with what was said.
fn arguments(arguments: &Value) -> String {
    match arguments {
        Value::Null => "{}".into(),
        Value::String(text) if text.trim().is_empty() => "{}".into(),
        Value::String(text) => text.clone(),
        parsed => python_json(parsed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Rules =
        Rules { content: Content::Text, arguments: Arguments::Text, developer: false, late_system: true };
    const OBJECT: Rules =
        Rules { content: Content::Parts, arguments: Arguments::Object, developer: true, late_system: false };

    fn canonical(messages: &[Value], rules: &Rules) -> Result<Vec<Value>, PromptError> {
        let one = |(i, message): (usize, &Value)| neutral(message, &format!("messages[{i}]"));
        let messages: Vec<Value> = messages.iter().enumerate().map(one).collect::<Result<_, _>>()?;
        Ok(spelled(&messages, rules))
    }

    fn check(rules: Rules, message: Value, expected: Value) {
        assert_eq!(canonical(&[message], &rules).expect("canonical"), [expected]);
    }

    fn check_error(message: Value, expected: &str) {
        let error =
            canonical(&[json!({"role": "user", "content": "a"}), message], &TEXT).expect_err("refused");
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_list_and_a_string_are_the_same_message() {
        let expected = json!({"role": "user", "content": "a"});
        let part = json!({"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}});
        check(TEXT, json!({"role": "user", "content": [part]}), expected.clone());
        check(TEXT, json!({"content": "a", "role": "user", "name": null, "cache_control": {}}), expected);
        check(
            TEXT,
            json!({"role": "user", "content": ["a", {"type": "input_text", "text": "b"}]}),
            json!({"role": "user", "content": "a\nb"}),
        );
        check(
            OBJECT,
            json!({"role": "user", "content": "a"}),
            json!({"role": "user", "content": [{"type": "text", "text": "a"}]}),
        );
    }

    #[test]
    fn nothing_is_an_empty_string() {
        let expected = json!({"role": "assistant", "content": ""});
        check(TEXT, json!({"role": "assistant", "content": null, "tool_calls": null}), expected.clone());
        check(TEXT, json!({"role": "assistant", "tool_calls": [], "reasoning": null}), expected);
    }

    #[test]
    fn a_developer_is_the_system_where_a_template_knows_no_developer() {
        check(TEXT, json!({"role": "developer", "content": "a"}), json!({"role": "system", "content": "a"}));
        check(
            Rules { developer: true, ..TEXT },
            json!({"role": "developer", "content": "a"}),
            json!({"role": "developer", "content": "a"}),
        );
    }

    #[test]
    fn reasoning_has_one_name() {
        let expected = json!({"role": "assistant", "content": "b", "reasoning_content": "a"});
        check(TEXT, json!({"role": "assistant", "content": "b", "reasoning": "a"}), expected.clone());
        check(
            TEXT,
            json!({"role": "assistant", "content": "b", "reasoning_content": "a", "reasoning": "a"}),
            expected,
        );
    }

    fn check_arguments(rules: Rules, sent: Value, expected: Value) {
        let call = |arguments| json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]);
        let out =
            canonical(&[json!({"role": "assistant", "tool_calls": call(sent)})], &rules).expect("canonical");
        assert_eq!(out[0]["tool_calls"], call(expected));
    }

    #[test]
    fn arguments_have_the_form_that_the_template_wants() {
        check_arguments(TEXT, json!("{\"a\":  1}"), json!("{\"a\":  1}"));
        check_arguments(TEXT, json!({"a": [1, 2]}), json!("{\"a\": [1, 2]}"));
        check_arguments(TEXT, json!(""), json!("{}"));
        check_arguments(OBJECT, json!("{\"b\":1,\"a\":2}"), json!("{\"b\":1,\"a\":2}"));
        check_arguments(OBJECT, json!({"a": 1}), json!("{\"a\": 1}"));
        check_arguments(OBJECT, json!("{\"a\":"), json!("{\"a\":"));
        check_arguments(OBJECT, json!(null), json!("{}"));
    }

    #[test]
    fn a_header_about_billing_does_not_tell_sessions_apart() {
        let header = "x-anthropic-billing-header: cc_version=2.1.329.a19; cc_entrypoint=cli";
        let expected = json!({"role": "system", "content": "You are an agent."});
        check(TEXT, json!({"role": "system", "content": [header, "You are an agent."]}), expected.clone());
        check(TEXT, json!({"role": "system", "content": format!("{header}\nYou are an agent.")}), expected);
        let user = json!({"role": "user", "content": header});
        check(TEXT, user.clone(), user);
    }

    #[test]
    fn what_is_beside_a_message_is_left_out_and_keys_have_one_order() {
        check(
            TEXT,
            json!({"name": "f", "id": "msg_1", "status": "completed", "annotations": [], "tool_call_id": "1",
                "content": "a", "role": "tool"}),
            json!({"role": "tool", "content": "a", "name": "f", "tool_call_id": "1"}),
        );
        let one = neutral(&json!({"role": "tool", "tool_call_id": "1", "name": "f", "content": "a"}), "m");
        let other =
            neutral(&json!({"name": "f", "content": ["a"], "tool_call_id": "1", "role": "tool"}), "m");
        assert_eq!(one.expect("neutral").to_string(), other.expect("neutral").to_string());
    }

    fn check_folded(messages: Value, expected: Value) {
        let rules = Rules { late_system: false, ..TEXT };
        let found = canonical(messages.as_array().expect("a list"), &rules).expect("canonical");
        let short: Vec<Value> = found.iter().map(|m| json!([m["role"], m["content"]])).collect();
        assert_eq!(json!(short), expected);
    }

    #[test]
    fn a_late_system_message_is_folded_where_it_stands() {
        let message = |role: &str, text: &str| json!({"role": role, "content": text});
        let (system, late) = (message("system", "s"), message("system", "late"));
        let (user, said, tool) = (message("user", "u"), message("assistant", "a"), message("tool", "t"));
        check_folded(json!([system, system, user]), json!([["system", "s"], ["system", "s"], ["user", "u"]]));
        check_folded(
            json!([system, user, said, late, user]),
            json!([["system", "s"], ["user", "u"], ["assistant", "a"], ["user", "late\n\nu"]]),
        );
        check_folded(
            json!([user, said, tool, late, late]),
            json!([["user", "u"], ["assistant", "a"], ["tool", "t\n\nlate\n\nlate"]]),
        );
        check_folded(
            json!([user, said, late, said]),
            json!([["user", "u"], ["assistant", "a"], ["user", "late"], ["assistant", "a"]]),
        );
    }

    #[test]
    fn what_is_not_text_is_refused_by_name() {
        check_error(
            json!({"role": "user", "content": ["a", {"type": "image_url", "image_url": {"url": "x"}}]}),
            "`messages[1].content[1]`: content of type `image_url` is not supported: this model reads text",
        );
        check_error(
            json!({"role": "user", "content": [{"type": "text"}]}),
            "`messages[1].content[0]`: a part of type `text` has text",
        );
        check_error(
            json!({"role": "user", "content": 3}),
            "`messages[1].content`: content is a string or a list of parts",
        );
        check_error(json!("hi"), "`messages[1]`: a message is an object");
        check_error(json!({"content": "hi"}), "`messages[1]`: a message has a role");
        check_error(
            json!({"role": "assistant", "tool_calls": [{}]}),
            "`messages[1].tool_calls[0]`: a tool call has a function",
        );
    }
}
