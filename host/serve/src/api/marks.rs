//! `cache_control` marks: where a caller wants its prompt cached up to, as gateways pass them on from Anthropic's API.
//!
//! Marks stand on messages, on parts of their content and on tools. Hint policies get them as the extension
//! `cache_control`: a JSON list such as `[{"segment":3,"ttl":"1h"}]`, in the order of the prompt, where `segment` is
//! the index of a message, and -1 are the tools.
//! **Invariant:** a mark is advice: one that cannot be read is as good as absent, and none reaches a template.

use serde_json::{Map, Value, json};

/// Name of the extension.
pub(super) const EXTENSION: &str = "cache_control";
/// The tools, which belong to no message.
const TOOLS: i64 = -1;
/// Most marks that are passed on, the last ones. Anthropic's API takes 4.
const MARKS_MAX: usize = 16;
/// Longest ttl that is passed on, in bytes.
const TTL_BYTES_MAX: usize = 16;

/// The marks of a body, by name as extensions are; `None` if there are none.
pub(super) fn extension<'a>(
    messages: impl Iterator<Item = &'a [Map<String, Value>]>,
    tools: &'a [Map<String, Value>],
) -> Option<(String, String)> {
    let of_tools = tools.iter().map(|mark| (TOOLS, mark));
    let of_messages =
        messages.enumerate().flat_map(|(i, marks)| marks.iter().map(move |mark| (i as i64, mark)));
    let marks: Vec<Value> = of_tools.chain(of_messages).map(|(segment, mark)| word(segment, mark)).collect();
    let last = marks.len().saturating_sub(MARKS_MAX);
    (!marks.is_empty()).then(|| (EXTENSION.to_owned(), json!(marks[last..]).to_string()))
}

/// The marks of a message: those of its parts, and its own.
pub(super) fn of_message(message: &Value) -> Vec<Map<String, Value>> {
    let parts = message["content"].as_array().into_iter().flatten().filter_map(mark);
    parts.chain(mark(message)).cloned().collect()
}

/// The mark of a tool.
pub(super) fn of_tool(tool: &Value) -> Option<Map<String, Value>> {
    mark(tool).or_else(|| mark(&tool["function"])).cloned()
}

/// A tool without marks: templates print tools as they are, and a mark that moves must not change a prompt.
pub(super) fn unmarked(tool: &Value) -> Value {
    let mut tool = tool.clone();
    for at in ["", "/function"] {
        if let Some(object) = tool.pointer_mut(at).and_then(Value::as_object_mut) {
            object.shift_remove(EXTENSION);
        }
    }
    tool
}

fn mark(on: &Value) -> Option<&Map<String, Value>> {
    on.get(EXTENSION)?.as_object()
}

fn word(segment: i64, mark: &Map<String, Value>) -> Value {
    let ttl = mark.get("ttl").and_then(Value::as_str).filter(|ttl| ttl.len() <= TTL_BYTES_MAX);
    match ttl {
        Some(ttl) => json!({"segment": segment, "ttl": ttl}),
        None => json!({"segment": segment}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(messages: Value, tools: Value, expected: Option<&str>) {
        let list = |list: Value| list.as_array().cloned().unwrap_or_default();
        let of_messages: Vec<Vec<_>> = list(messages).iter().map(of_message).collect();
        let of_tools: Vec<_> = list(tools).iter().filter_map(of_tool).collect();
        let found = extension(of_messages.iter().map(Vec::as_slice), &of_tools);
        assert_eq!(found.as_ref().map(|(_, json)| json.as_str()), expected);
    }

    #[test]
    fn marks_are_found_on_messages_parts_and_tools() {
        let mark = json!({"type": "ephemeral"});
        let hour = json!({"type": "ephemeral", "ttl": "1h"});
        let messages = json!([
            {"role": "system", "content": [
                {"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": hour}]},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d", "cache_control": mark},
        ]);
        let tools = json!([{"type": "function", "function": {"name": "f"}, "cache_control": mark}]);
        let expected = r#"[{"segment":-1},{"segment":0,"ttl":"1h"},{"segment":2}]"#;
        check(messages, tools, Some(expected));
    }

    #[test]
    fn what_is_no_mark_is_as_good_as_absent() {
        check(json!([{"role": "user", "content": "c", "cache_control": null}]), Value::Null, None);
        check(json!([{"role": "user", "content": ["x"], "cache_control": "1h"}]), Value::Null, None);
        let long = json!([{"role": "user", "content": "c", "cache_control": {"ttl": "1".repeat(17)}}]);
        check(long, Value::Null, Some(r#"[{"segment":0}]"#));
    }

    #[test]
    fn a_marked_tool_is_printed_as_an_unmarked_one() {
        let plain = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
        let mut marked = plain.clone();
        marked["cache_control"] = json!({"type": "ephemeral"});
        marked["function"]["cache_control"] = json!({});
        assert_eq!(unmarked(&marked).to_string(), plain.to_string());
    }
}
