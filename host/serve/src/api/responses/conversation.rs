//! Items become chat messages, which is what templates read.
//!
//! ```text
//! reasoning, message, function_call, function_call ─► one message of the assistant
//! function_call_output                             ─► one message of the tool
//! ```
//!
//! A turn of the model is one message, its parts in the order of a template: reasoning, text, calls. An item that
//! comes later than this order allows begins the next message.
//! **Invariant:** the same items give the same messages, whether they came in one request or over many.

use serde_json::{Map, Value, json};

use super::items::{reasoning_text, type_of};
use super::sealed::{self, Compacted};
use super::tools::{custom_arguments, written};

/// A mark of the caller: the prompt is worth keeping up to this message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Index of the message.
    pub(super) message: usize,
    /// For how long, if it says so.
    pub(super) ttl: Option<String>,
}

/// What items come to.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    /// Messages.
    pub(super) messages: Vec<Value>,
    /// Where the caller put marks.
    pub(super) marks: Vec<Mark>,
    /// Tools that items bring along.
    pub(super) tools: Vec<Value>,
    open: Option<Turn>,
    /// Messages at the head that are not part of the items.
    head: usize,
}

/// A message of the assistant that is not complete yet.
#[derive(Debug, Default)]
struct Turn {
    reasoning: Option<String>,
    content: Option<Value>,
    calls: Vec<Value>,
}

impl Conversation {
    /// The messages of these items, after `instructions`.
    pub(super) fn of<'a>(instructions: Option<&str>, items: impl Iterator<Item = &'a Value>) -> Self {
        let mut conversation = Self::default();
        if let Some(text) = instructions {
            conversation.messages.push(json!({ "role": "system", "content": text }));
            conversation.head = 1;
        }
        for item in items {
            conversation.add(item);
        }
        conversation.close();
        conversation
    }

    fn add(&mut self, item: &Value) {
        match type_of(item) {
            "message" if item["role"] == "assistant" => self.said(item),
            "message" => {
                let message = json!({ "role": item["role"], "content": plain(&item["content"]) });
                self.push(message, &item["content"]);
            }
            "reasoning" => self.thought(item),
            "function_call" => self.called(item, text(item, "arguments").to_owned()),
            "custom_tool_call" => self.called(item, custom_arguments(text(item, "input"))),
            "function_call_output" | "custom_tool_call_output" => {
                let output = &item["output"];
                let message =
                    json!({ "role": "tool", "tool_call_id": item["call_id"], "content": plain(output) });
                self.push(message, output);
            }
            "compaction" => self.compacted(item),
            "additional_tools" | "tool_search_output" => {
                self.tools.extend(item["tools"].as_array().into_iter().flatten().cloned());
            }
            // What others' tools did is theirs: its form is no message of any template.
            _ => {}
        }
    }

    fn push(&mut self, message: Value, content: &Value) {
        self.close();
        self.mark(content);
        self.messages.push(message);
    }

    /// Takes the marks of a message that is the next to be pushed.
    fn mark(&mut self, content: &Value) {
        for part in content.as_array().into_iter().flatten() {
            if let Some(mark) = part.get("prompt_cache_breakpoint").filter(|mark| mark.is_object()) {
                let ttl = mark["ttl"].as_str().map(str::to_owned);
                self.marks.push(Mark { message: self.messages.len(), ttl });
            }
        }
    }

    fn thought(&mut self, item: &Value) {
        let Some(more) = reasoning_text(item) else { return };
        if self.open.as_ref().is_some_and(|turn| turn.content.is_some() || !turn.calls.is_empty()) {
            self.close();
        }
        let turn = self.open.get_or_insert_default();
        turn.reasoning = Some(match turn.reasoning.take() {
            None => more,
            Some(known) => known + "\n\n" + &more,
        });
    }

    fn said(&mut self, item: &Value) {
        if self.open.as_ref().is_some_and(|turn| turn.content.is_some() || !turn.calls.is_empty()) {
            self.close();
        }
        self.mark(&item["content"]);
        self.open.get_or_insert_default().content = Some(plain(&item["content"]));
    }

    fn called(&mut self, item: &Value, arguments: String) {
        let name = written(item["namespace"].as_str(), text(item, "name"));
        let function = json!({ "name": name, "arguments": arguments });
        let call = json!({ "id": item["call_id"], "type": "function", "function": function });
        self.open.get_or_insert_default().calls.push(call);
    }

    /// What became of a longer conversation: its head goes to the head, its digest stands where the rest was.
    fn compacted(&mut self, item: &Value) {
        let Some(Compacted { head, digest }) =
            item["encrypted_content"].as_str().and_then(sealed::open_compaction)
        else {
            return;
        };
        self.close();
        let moved = head.len();
        self.messages.splice(self.head..self.head, head);
        self.head += moved;
        for mark in &mut self.marks {
            mark.message += moved;
        }
        if !digest.is_empty() {
            self.messages.push(json!({ "role": "user", "content": digest }));
        }
    }

    fn close(&mut self) {
        let Some(turn) = self.open.take() else { return };
        let mut message = Map::from_iter([("role".to_owned(), "assistant".into())]);
        message.insert("content".into(), turn.content.unwrap_or_else(|| "".into()));
        if let Some(reasoning) = turn.reasoning {
            message.insert("reasoning_content".into(), reasoning.into());
        }
        if !turn.calls.is_empty() {
            message.insert("tool_calls".into(), turn.calls.into());
        }
        self.messages.push(message.into());
    }
}

fn text<'a>(item: &'a Value, key: &str) -> &'a str {
    item[key].as_str().unwrap_or_default()
}

/// Content as chat messages have it: the text, or the texts of several parts. Ids, marks and annotations stay behind.
fn plain(content: &Value) -> Value {
    let Some(parts) = content.as_array() else { return content.clone() };
    let texts: Vec<Value> = parts
        .iter()
        .map(|part| match (part["text"].as_str(), part["refusal"].as_str()) {
            (Some(text), _) | (None, Some(text)) => text.into(),
            (None, None) => {
                let kind = part["type"].as_str().unwrap_or("part");
                format!("[{kind} left out: this model reads text]").into()
            }
        })
        .collect();
    match <[Value; 1]>::try_from(texts) {
        Ok([one]) => one,
        Err(texts) => texts.into_iter().map(|text| json!({ "type": "text", "text": text })).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(items: Value) -> Vec<Value> {
        let items = items.as_array().cloned().unwrap_or_default();
        Conversation::of(None, items.iter()).messages
    }

    fn check(items: Value, expected: Value) {
        assert_eq!(Value::from(messages(items)), expected);
    }

    fn said(text: &str) -> Value {
        json!({"id": "msg_9", "type": "message", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]})
    }

    fn thought(text: &str) -> Value {
        json!({"id": "rs_9", "type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]})
    }

    fn call(id: &str, arguments: &str) -> Value {
        json!({"id": "fc_9", "type": "function_call", "call_id": id, "name": "f", "arguments": arguments})
    }

    fn chat_call(id: &str, name: &str, arguments: &str) -> Value {
        json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
    }

    #[test]
    fn a_turn_is_one_message() {
        let items = json!([
            {"role": "user", "content": "go"},
            thought("t"), said("a"), call("c1", "{\"x\":  1}"), call("c2", "{}"),
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
        ]);
        check(
            items,
            json!([
                {"role": "user", "content": "go"},
                {"role": "assistant", "content": "a", "reasoning_content": "t",
                    "tool_calls": [chat_call("c1", "f", "{\"x\":  1}"), chat_call("c2", "f", "{}")]},
                {"role": "tool", "tool_call_id": "c1", "content": "1"},
                {"role": "tool", "tool_call_id": "c2", "content": "2"},
            ]),
        );
    }

    #[test]
    fn what_comes_out_of_order_begins_the_next_message() {
        check(
            json!([said("a"), said("b"), thought("t"), call("c", "{}"), thought("u")]),
            json!([
                {"role": "assistant", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "assistant", "content": "", "reasoning_content": "t", "tool_calls": [chat_call("c", "f", "{}")]},
                {"role": "assistant", "content": "", "reasoning_content": "u"},
            ]),
        );
    }

    #[test]
    fn names_are_those_that_the_model_writes() {
        let spawn = json!({"type": "function_call", "call_id": "c", "namespace": "agents", "name": "spawn", "arguments": "{}"});
        let patch = json!({"type": "custom_tool_call", "call_id": "d", "name": "patch", "input": "a\nb"});
        let made = messages(json!([spawn, patch]));
        let expected =
            [chat_call("c", "agents__spawn", "{}"), chat_call("d", "patch", "{\"input\": \"a\\nb\"}")];
        assert_eq!(made[0]["tool_calls"], Value::from(expected.to_vec()));
    }

    #[test]
    fn nothing_that_is_random_reaches_a_message() {
        let with = |id: &str| {
            messages(json!([
                {"id": id, "type": "message", "status": "completed", "role": "user",
                    "content": [{"type": "input_text", "text": "a"}]},
                {"id": id, "type": "reasoning", "summary": [], "encrypted_content": "gAAA"},
                {"id": id, "type": "web_search_call"},
                said("b"),
            ]))
        };
        assert_eq!(with("msg_1"), with("msg_2"));
        assert_eq!(with("a").len(), 2);
    }

    #[test]
    fn marks_name_the_message_of_their_part() {
        let marked = |text: &str, mark: Value| json!({"type": "input_text", "text": text, "prompt_cache_breakpoint": mark});
        let items = [
            json!({"role": "developer", "content": [marked("a", json!({"mode": "explicit", "ttl": "12h"}))]}),
            said("b"),
            json!({"role": "user", "content": [marked("c", json!({"mode": "explicit"})), marked("d", json!(null))]}),
        ];
        let made = Conversation::of(Some("i"), items.iter());
        let mark = |message, ttl: Option<&str>| Mark { message, ttl: ttl.map(str::to_owned) };
        assert_eq!(made.marks, [mark(1, Some("12h")), mark(3, None)]);
    }

    #[test]
    fn a_compacted_conversation_keeps_its_head_at_the_head() {
        let compacted =
            Compacted { head: vec![json!({"role": "developer", "content": "d"})], digest: "was".into() };
        let item = json!({"type": "compaction", "encrypted_content": sealed::compaction(&compacted)});
        let items = [json!({"role": "user", "content": "a"}), item, json!({"role": "user", "content": "b"})];
        let made = Conversation::of(Some("i"), items.iter());
        let roles: Vec<(&str, &str)> =
            made.messages.iter().map(|m| (text(m, "role"), text(m, "content"))).collect();
        assert_eq!(
            roles,
            [("system", "i"), ("developer", "d"), ("user", "a"), ("user", "was"), ("user", "b")]
        );
    }

    #[test]
    fn a_picture_in_a_tools_output_is_told_to_be_left_out() {
        let items = json!([{"type": "function_call_output", "call_id": "c", "output": [
            {"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "data:"}]}]);
        let made = messages(items);
        assert_eq!(made[0]["content"][1]["text"], "[input_image left out: this model reads text]");
    }
}
