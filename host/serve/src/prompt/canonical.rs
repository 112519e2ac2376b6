//! One spelling for what callers spell in several ways, so that turn N+1 has turn N as its exact prefix.
//!
//! Clients send the same message as a string in one turn and as a list of parts in the next, with `null`
//! or nothing, with `reasoning` or `reasoning_content`. Templates see one form.
//! Called before a template renders.
//! **Invariant:** messages that mean the same come out equal; text is never changed, only joined.

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
    /// The parsed object.
    Object,
}

/// The messages as a template wants them.
///
/// Errors: [`PromptError::Refused`] naming what is not a message or not text.
pub(super) fn canonical(messages: &[Value], rules: &Rules) -> Result<Vec<Value>, PromptError> {
    let one = |(i, message): (usize, &Value)| self::message(message, &format!("messages[{i}]"), rules);
    messages.iter().enumerate().map(one).collect()
}

fn message(message: &Value, field: &str, rules: &Rules) -> Result<Value, PromptError> {
    let fail = |reason: &str| refused(field.to_owned(), reason);
    let message = message.as_object().ok_or_else(|| fail("a message is an object"))?;
    let role = message.get("role").and_then(Value::as_str).ok_or_else(|| fail("a message has a role"))?;
    let role = if role == "developer" && !rules.developer { "system" } else { role };
    let mut out = Map::from_iter([("role".to_owned(), role.into())]);
    out.insert("content".to_owned(), content(message.get("content"), field, rules.content)?);
    for (key, value) in message {
        match key.as_str() {
            "role" | "content" | "cache_control" => {}
            "reasoning" | "reasoning_content" => reasoning(value, &mut out),
            "tool_calls" => tool_calls(value, field, rules.arguments, &mut out)?,
            // A key without a value means the same as no key.
            _ if value.is_null() => {}
            _ => drop(out.insert(key.clone(), value.clone())),
        }
    }
    Ok(out.into())
}

/// Content as one string or as text parts; nothing is an empty string.
fn content(content: Option<&Value>, field: &str, form: Content) -> Result<Value, PromptError> {
    let texts = match content {
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
    Ok(match form {
        Content::Text => texts.join("\n").into(),
        Content::Parts => texts.iter().map(|text| json!({"type": "text", "text": text})).collect(),
    })
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
fn tool_calls(
    value: &Value,
    field: &str,
    form: Arguments,
    out: &mut Map<String, Value>,
) -> Result<(), PromptError> {
    if value.is_null() {
        return Ok(());
    }
    let calls =
        value.as_array().ok_or_else(|| refused(format!("{field}.tool_calls"), "tool calls are a list"))?;
    let mut calls = calls.clone();
    for (i, call) in calls.iter_mut().enumerate() {
        let function = call.get_mut("function").and_then(Value::as_object_mut);
        let missing = || refused(format!("{field}.tool_calls[{i}]"), "a tool call has a function");
        let function = function.ok_or_else(missing)?;
        let arguments = function.get_mut("arguments").map(Value::take).unwrap_or(Value::Null);
        function.insert("arguments".to_owned(), self::arguments(arguments, form));
    }
    if !calls.is_empty() {
        out.insert("tool_calls".to_owned(), calls.into());
    }
    Ok(())
}

/// Arguments in the form that a template wants. What a model wrote and is not JSON stays as it is: the
/// conversation goes on with what was said.
fn arguments(arguments: Value, form: Arguments) -> Value {
    match (form, arguments) {
        (Arguments::Text, Value::Null) => "{}".into(),
        (Arguments::Text, Value::String(text)) if text.trim().is_empty() => "{}".into(),
        (Arguments::Text, Value::String(text)) => text.into(),
        (Arguments::Text, parsed) => python_json(&parsed).into(),
        (Arguments::Object, Value::Null) => json!({}),
        (Arguments::Object, Value::String(text)) if text.trim().is_empty() => json!({}),
        (Arguments::Object, Value::String(text)) => {
            serde_json::from_str(&text).unwrap_or(Value::String(text))
        }
        (Arguments::Object, parsed) => parsed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Rules = Rules { content: Content::Text, arguments: Arguments::Text, developer: false };
    const OBJECT: Rules = Rules { content: Content::Parts, arguments: Arguments::Object, developer: true };

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
        check_arguments(OBJECT, json!("{\"b\":1,\"a\":2}"), json!({"b": 1, "a": 2}));
        check_arguments(OBJECT, json!({"a": 1}), json!({"a": 1}));
        check_arguments(OBJECT, json!("{\"a\":"), json!("{\"a\":"));
        check_arguments(OBJECT, json!(null), json!({}));
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
