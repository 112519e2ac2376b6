//! `cache_control` marks: where a caller wants its prompt cached up to, as gateways pass them on from Anthropic's API.
//!
//! Marks stand on messages, on parts of their content and on tools. Hint policies get them as the extension
//! `cache_control`: a JSON list such as `[{"segment":3,"ttl":"1h"}]`, in the order of the prompt, where `segment` is
//! the index of a message, and -1 are the tools.
//! **Invariant:** a mark is advice: one that cannot be read is as good as absent, and none reaches a template.

use serde_json::{Map, Value, json};

use crate::prompt::Span;
use crate::request;

/// Name of the extension, and of the field that is a mark.
pub(super) const EXTENSION: &str = request::MARKS;
/// The tools, which belong to no message.
pub(super) const TOOLS: i32 = Span::BEFORE;
/// Most marks that are passed on, the last ones. Anthropic's API takes 4.
const MARKS_MAX: usize = 16;
/// Longest ttl that is passed on, in bytes.
const TTL_BYTES_MAX: usize = 16;

/// A place up to which a caller wants its prompt cached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The message that ends there, as templates see it, or [`TOOLS`].
    pub(super) segment: i32,
    /// For how long, in the caller's words.
    pub(super) ttl: Option<String>,
}

impl Mark {
    /// The mark on something that belongs to a segment, if there is one.
    pub(super) fn on(marked: &Value, segment: i32) -> Option<Self> {
        mark(marked).map(|mark| Self::said(mark, segment))
    }

    /// What a mark says of a segment.
    fn said(mark: &Map<String, Value>, segment: i32) -> Self {
        let ttl = mark.get("ttl").and_then(Value::as_str);
        let ttl = ttl.filter(|ttl| ttl.len() <= TTL_BYTES_MAX).map(str::to_owned);
        Self { segment, ttl }
    }

    fn word(&self) -> Value {
        match &self.ttl {
            Some(ttl) => json!({"segment": self.segment, "ttl": ttl}),
            None => json!({"segment": self.segment}),
        }
    }
}

/// The marks of a conversation in the shape of chat completions, in the order of the prompt.
pub(super) fn of_conversation<'a>(
    messages: impl Iterator<Item = &'a [Map<String, Value>]>,
    tools: &'a [Map<String, Value>],
) -> Vec<Mark> {
    let of_tools = tools.iter().map(|mark| Mark::said(mark, TOOLS));
    let of_messages =
        messages.enumerate().flat_map(|(i, marks)| marks.iter().map(move |mark| Mark::said(mark, i as i32)));
    of_tools.chain(of_messages).collect()
}

/// Marks in the order of the prompt, as the extension; `None` if there are none.
pub(super) fn written(marks: &[Mark]) -> Option<(String, String)> {
    let last = marks.len().saturating_sub(MARKS_MAX);
    let words: Vec<Value> = marks[last..].iter().map(Mark::word).collect();
    (!words.is_empty()).then(|| (EXTENSION.to_owned(), Value::from(words).to_string()))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(messages: Value, tools: Value, expected: Option<&str>) {
        let list = |list: Value| list.as_array().cloned().unwrap_or_default();
        let of_messages: Vec<Vec<_>> = list(messages).iter().map(of_message).collect();
        let of_tools: Vec<_> = list(tools).iter().filter_map(of_tool).collect();
        let found = written(&of_conversation(of_messages.iter().map(Vec::as_slice), &of_tools));
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
