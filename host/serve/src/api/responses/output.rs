//! Output items while they are written: what each event says of them.
//!
//! **Invariant:** an item's text is the sum of its deltas.

use engine::Sampled;
use serde_json::{Value, json};

use super::sealed;
use super::tools::{Callable, custom_input};
use crate::app::App;

/// An event's name, and its fields beside type and number.
pub(super) type Fields = (&'static str, Value);

/// An item that is being written.
#[derive(Debug)]
pub(super) enum Item {
    Message { id: String, text: String, logprobs: Vec<Value> },
    Reasoning { id: String, text: String },
    Call { id: String, call_id: String, called: Callable, arguments: String },
}

/// A content part as it begins, or as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Empty,
    Full,
}

impl Item {
    pub(super) fn message(id: String) -> Self {
        Self::Message { id, text: String::new(), logprobs: Vec::new() }
    }

    pub(super) fn reasoning(id: String) -> Self {
        Self::Reasoning { id, text: String::new() }
    }

    pub(super) fn call(id: String, call_id: String, called: Callable) -> Self {
        Self::Call { id, call_id, called, arguments: String::new() }
    }

    pub(super) fn id(&self) -> &str {
        match self {
            Self::Message { id, .. } | Self::Reasoning { id, .. } | Self::Call { id, .. } => id,
        }
    }

    /// The item as it is announced.
    pub(super) fn begun(&self) -> Value {
        match self {
            Self::Message { id, .. } => message(id, "in_progress", json!([])),
            Self::Reasoning { id, .. } => reasoning(id, "in_progress", json!([])),
            Self::Call { id, call_id, called, .. } => call((id, call_id), called, "in_progress", ""),
        }
    }

    /// Its one content part; calls have none.
    pub(super) fn part(&self, part: Part) -> Option<Value> {
        match self {
            Self::Message { text, logprobs, .. } => Some(match part {
                Part::Empty => output_text("", &[]),
                Part::Full => output_text(text, logprobs),
            }),
            Self::Reasoning { text, .. } => {
                let text = if part == Part::Empty { "" } else { text };
                Some(json!({ "type": "reasoning_text", "text": text }))
            }
            Self::Call { .. } => None,
        }
    }

    /// Adds text; the event that tells it.
    pub(super) fn add(&mut self, more: &str, mut tokens: Vec<Value>, index: usize) -> Option<Fields> {
        match self {
            Self::Message { id, text, logprobs } => {
                text.push_str(more);
                let fields = json!({ "item_id": id, "output_index": index, "content_index": 0, "delta": more, "logprobs": tokens });
                logprobs.append(&mut tokens);
                Some(("response.output_text.delta", fields))
            }
            Self::Reasoning { id, text } => {
                text.push_str(more);
                let fields =
                    json!({ "item_id": id, "output_index": index, "content_index": 0, "delta": more });
                Some(("response.reasoning_text.delta", fields))
            }
            Self::Call { id, called, arguments, .. } => {
                arguments.push_str(more);
                // The text of a custom tool is inside of JSON, which is read when it is complete.
                let fields = json!({ "item_id": id, "output_index": index, "delta": more });
                (!called.custom).then_some(("response.function_call_arguments.delta", fields))
            }
        }
    }

    /// The events that end its content.
    pub(super) fn ended(&self, index: usize) -> Vec<Fields> {
        let id = self.id();
        match self {
            Self::Message { text, logprobs, .. } => {
                let done = json!({ "item_id": id, "output_index": index, "content_index": 0, "text": text, "logprobs": logprobs });
                vec![("response.output_text.done", done), self.part_done(index)]
            }
            Self::Reasoning { text, .. } => {
                let done = json!({ "item_id": id, "output_index": index, "content_index": 0, "text": text });
                vec![("response.reasoning_text.done", done), self.part_done(index)]
            }
            Self::Call { called, arguments, .. } if called.custom => {
                let input = custom_input(arguments);
                let delta = json!({ "item_id": id, "output_index": index, "delta": input });
                let done = json!({ "item_id": id, "output_index": index, "input": input });
                vec![
                    ("response.custom_tool_call_input.delta", delta),
                    ("response.custom_tool_call_input.done", done),
                ]
            }
            Self::Call { called, arguments, .. } => {
                let done = json!({ "item_id": id, "output_index": index, "name": called.name, "arguments": arguments });
                vec![("response.function_call_arguments.done", done)]
            }
        }
    }

    fn part_done(&self, index: usize) -> Fields {
        let part = self.part(Part::Full);
        let fields = json!({ "item_id": self.id(), "output_index": index, "content_index": 0, "part": part });
        ("response.content_part.done", fields)
    }

    /// The item as it is.
    pub(super) fn done(&self, status: &str, seal: bool) -> Value {
        match self {
            Self::Message { id, .. } => message(id, status, json!([self.part(Part::Full)])),
            Self::Reasoning { id, text } => {
                let mut item = reasoning(id, status, json!([self.part(Part::Full)]));
                if seal {
                    item["encrypted_content"] = sealed::reasoning(text).into();
                }
                item
            }
            Self::Call { id, call_id, called, arguments } => call((id, call_id), called, status, arguments),
        }
    }
}

fn message(id: &str, status: &str, content: Value) -> Value {
    json!({ "id": id, "type": "message", "status": status, "role": "assistant", "content": content })
}

fn reasoning(id: &str, status: &str, content: Value) -> Value {
    json!({ "id": id, "type": "reasoning", "status": status, "summary": [], "content": content })
}

fn output_text(text: &str, logprobs: &[Value]) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs })
}

fn call((id, call_id): (&str, &str), called: &Callable, status: &str, arguments: &str) -> Value {
    let kind = if called.custom { "custom_tool_call" } else { "function_call" };
    let mut call =
        json!({ "id": id, "type": kind, "status": status, "call_id": call_id, "name": called.name });
    if let Some(namespace) = &called.namespace {
        call["namespace"] = namespace.as_str().into();
    }
    match called.custom {
        true if arguments.is_empty() => call["input"] = "".into(),
        true => call["input"] = custom_input(arguments).into(),
        false => call["arguments"] = arguments.into(),
    }
    call
}

/// Tokens with their log-probabilities.
pub(super) fn logprobs(app: &App, tokens: &[Sampled]) -> Vec<Value> {
    let entry = |token: u32, logprob: f32| {
        let bytes = app.model.tokenizer.token_bytes(token);
        json!({ "token": String::from_utf8_lossy(&bytes), "bytes": &*bytes, "logprob": logprob })
    };
    let with_others = |sampled: &Sampled| {
        let mut own = entry(sampled.token, sampled.logprob);
        own["top_logprobs"] = sampled.top.iter().map(|other| entry(other.token, other.logprob)).collect();
        own
    };
    tokens.iter().map(with_others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callable(custom: bool) -> Callable {
        Callable { name: "f".into(), namespace: Some("n".into()), custom }
    }

    #[test]
    fn a_call_says_its_namespace_beside_its_name() {
        let mut item = Item::call("fc_1".into(), "call_1".into(), callable(false));
        assert_eq!(
            item.begun(),
            json!({"id": "fc_1", "type": "function_call", "status": "in_progress",
            "call_id": "call_1", "name": "f", "namespace": "n", "arguments": ""})
        );
        let (name, fields) = item.add("{\"a\":", Vec::new(), 2).expect("a delta");
        assert_eq!(name, "response.function_call_arguments.delta");
        assert_eq!(fields, json!({"item_id": "fc_1", "output_index": 2, "delta": "{\"a\":"}));
        item.add(" 1}", Vec::new(), 2);
        assert_eq!(item.ended(2)[0].1["arguments"], "{\"a\": 1}");
        assert_eq!(item.done("completed", false)["arguments"], "{\"a\": 1}");
    }

    #[test]
    fn a_custom_call_says_its_text_and_not_its_json() {
        let mut item = Item::call("ctc_1".into(), "call_1".into(), callable(true));
        assert_eq!(item.begun()["input"], "");
        assert_eq!(item.add("{\"input\": \"a\\n", Vec::new(), 0), None);
        assert_eq!(item.add("b\"}", Vec::new(), 0), None);
        let names: Vec<&str> = item.ended(0).iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["response.custom_tool_call_input.delta", "response.custom_tool_call_input.done"]);
        assert_eq!(item.ended(0)[0].1["delta"], "a\nb");
        assert_eq!(item.done("completed", false)["input"], "a\nb");
    }

    #[test]
    fn reasoning_is_sealed_only_if_it_was_asked_for() {
        let mut item = Item::reasoning("rs_1".into());
        item.add("why", Vec::new(), 0);
        assert_eq!(item.done("completed", false).get("encrypted_content"), None);
        let sealed = item.done("completed", true);
        assert_eq!(sealed["encrypted_content"], sealed::reasoning("why"));
        assert_eq!(sealed["content"], json!([{"type": "reasoning_text", "text": "why"}]));
    }
}
