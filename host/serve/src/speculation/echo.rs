//! An answer as its caller will send it back with its next request.
//!
//! **Invariant:** what is made here is a guess: a wrong one costs a computation, never an answer.

use serde_json::{Map, Value, json};

use crate::prompt::OutputEvent;
use crate::request::{Protocol, Request};

/// The content of the message that stands for whatever comes next: the prefix ends before it.
pub(super) const MARK: &str = "pointsman:next-turn";

/// The answer so far.
#[derive(Debug)]
pub(super) struct Echo {
    with_reasoning: bool,
    text: String,
    reasoning: String,
    /// Id, name and arguments.
    calls: Vec<(String, String, String)>,
}

impl Echo {
    /// Nothing is said yet. Whether a caller sends reasoning back is seen in what it sent before; one of which nothing was
    /// seen, or nothing had to be read, does what its protocol is for.
    pub(super) fn of(request: &Request) -> Self {
        let assistants = || request.messages.plain().iter().filter(|message| message["role"] == "assistant");
        let has_reasoning = |message: &Value| {
            ["reasoning_content", "reasoning"]
                .iter()
                .any(|key| message.get(key).is_some_and(Value::is_string))
        };
        let with_reasoning = match assistants().next() {
            Some(_) => assistants().any(has_reasoning),
            None => matches!(request.protocol, Protocol::Messages | Protocol::Responses),
        };
        Self { with_reasoning, text: String::new(), reasoning: String::new(), calls: Vec::new() }
    }

    pub(super) fn add(&mut self, pieces: &[OutputEvent]) {
        for piece in pieces {
            match piece {
                OutputEvent::Text(text) => self.text += text,
                OutputEvent::Reasoning(text) => self.reasoning += text,
                OutputEvent::CallStart { id, name, .. } => {
                    let id = id.clone().unwrap_or_else(|| format!("call_{}", self.calls.len()));
                    self.calls.push((id, name.clone(), String::new()));
                }
                OutputEvent::CallArguments { delta, .. } => {
                    if let Some((_, _, arguments)) = self.calls.last_mut() {
                        *arguments += delta;
                    }
                }
                OutputEvent::CallEnd { .. } => {}
            }
        }
    }

    /// The answer, and a message for what follows it: the result of a call, or the user's word.
    pub(super) fn messages(&self) -> [Value; 2] {
        let mut answer = Map::new();
        answer.insert("role".to_owned(), "assistant".into());
        answer.insert("content".to_owned(), self.text.as_str().into());
        if self.with_reasoning && !self.reasoning.is_empty() {
            answer.insert("reasoning_content".to_owned(), self.reasoning.as_str().into());
        }
        let call = |(id, name, arguments): &(String, String, String)| {
            let function = json!({ "name": name, "arguments": arguments });
            json!({ "id": id, "type": "function", "function": function })
        };
        if self.calls.is_empty() {
            return [answer.into(), json!({ "role": "user", "content": MARK })];
        }
        answer.insert("tool_calls".to_owned(), self.calls.iter().map(call).collect());
        let (id, name, _) = &self.calls[0];
        [answer.into(), json!({ "role": "tool", "tool_call_id": id, "name": name, "content": MARK })]
    }
}
