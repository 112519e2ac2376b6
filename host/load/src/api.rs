//! The protocols as a caller writes them: paths, and messages as fragments of a body.
//!
//! **Invariant:** a history grows at its end alone, so that a turn costs what it adds.

use clap::ValueEnum;
use serde_json::{Map, Value, json};

/// Which endpoint is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Api {
    /// OpenAI's chat completions, `/v1/chat/completions`.
    Chat,
    /// OpenAI's completions, `/v1/completions`: the history is one text.
    Completions,
    /// Anthropic's messages, `/v1/messages`.
    Messages,
}

/// What a model said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) calls: Vec<Call>,
}

/// A tool call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) arguments: String,
}

impl Api {
    /// As the command line names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Messages => "messages",
        }
    }

    /// Below `/v1`.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chat => "/chat/completions",
            Self::Completions => "/completions",
            Self::Messages => "/messages",
        }
    }

    /// The fields that all bodies of a run begin with, up to the comma before the next one.
    pub(crate) fn head(self, model: &str, extra: &Map<String, Value>) -> String {
        let mut fields = Map::new();
        fields.insert("model".to_owned(), json!(model));
        fields.insert("stream".to_owned(), json!(true));
        if self != Self::Messages {
            fields.insert("stream_options".to_owned(), json!({ "include_usage": true }));
        }
        fields.extend(extra.clone());
        let mut head = Value::Object(fields).to_string();
        head.pop();
        head.push(',');
        head
    }

    /// A body. `system` is empty if there is none; `max_tokens` is none if `head` has it.
    pub(crate) fn body(self, head: &str, max_tokens: Option<u64>, system: &str, history: &str) -> String {
        let mut body = String::with_capacity(head.len() + system.len() + history.len() + 64);
        body.push_str(head);
        if let Some(max_tokens) = max_tokens {
            body.push_str(&format!("\"max_tokens\":{max_tokens},"));
        }
        let (open, close) = match self {
            Self::Completions => ("\"prompt\":\"", "\"}"),
            Self::Chat | Self::Messages => ("\"messages\":[", "]}"),
        };
        if self == Self::Messages && !system.is_empty() {
            body.push_str(&format!("\"system\":\"{system}\","));
        }
        body.push_str(open);
        if self != Self::Messages {
            body.push_str(system);
        }
        body.push_str(history);
        body.push_str(close);
        body
    }

    /// A system message as [`Api::body`] takes it. `text` needs no escaping.
    pub(crate) fn system(self, text: &str) -> String {
        match self {
            Self::Chat => format!("{{\"role\":\"system\",\"content\":\"{text}\"}},"),
            Self::Completions => format!("{text} "),
            Self::Messages => text.to_owned(),
        }
    }

    /// Appends what a user says. `text` needs no escaping.
    pub(crate) fn user(self, history: &mut String, text: &str) {
        self.separate(history);
        match self {
            Self::Completions => history.push_str(text),
            Self::Chat | Self::Messages => {
                history.push_str("{\"role\":\"user\",\"content\":\"");
                history.push_str(text);
                history.push_str("\"}");
            }
        }
    }

    /// Appends what tools said. `text` needs no escaping, and is the first one's result; the others have done what was asked.
    pub(crate) fn results(self, history: &mut String, calls: &[String], text: &str) {
        let result = |nth: usize| if nth == 0 { text } else { "done" };
        let each = calls.iter().enumerate();
        match self {
            Self::Completions => self.user(history, text),
            Self::Chat => each.for_each(|(nth, id)| {
                self.separate(history);
                let said = json!({ "role": "tool", "tool_call_id": id, "content": result(nth) });
                history.push_str(&said.to_string());
            }),
            Self::Messages => {
                let blocks = each.map(
                    |(nth, id)| json!({ "type": "tool_result", "tool_use_id": id, "content": result(nth) }),
                );
                let said = json!({ "role": "user", "content": blocks.collect::<Vec<_>>() });
                self.separate(history);
                history.push_str(&said.to_string());
            }
        }
    }

    /// Appends what the model said.
    pub(crate) fn answer(self, history: &mut String, answer: &Answer) {
        // No protocol of the three takes an assistant that said nothing at all everywhere.
        let silent = answer.text.is_empty() && answer.calls.is_empty();
        let text = if silent { "." } else { answer.text.as_str() };
        self.separate(history);
        match self {
            Self::Completions => {
                let quoted = json!(text).to_string();
                history.push_str(&quoted[1..quoted.len() - 1]);
            }
            Self::Chat => history.push_str(&chat_answer(text, &answer.calls).to_string()),
            Self::Messages => history.push_str(&messages_answer(text, &answer.calls).to_string()),
        }
    }

    fn separate(self, history: &mut String) {
        if !history.is_empty() {
            history.push(if self == Self::Completions { ' ' } else { ',' });
        }
    }
}

fn chat_answer(text: &str, calls: &[Call]) -> Value {
    let mut said = json!({ "role": "assistant", "content": text });
    if !calls.is_empty() {
        let calls = calls.iter().map(|call| {
            let function = json!({ "name": call.name, "arguments": call.arguments });
            json!({ "id": call.id, "type": "function", "function": function })
        });
        said["tool_calls"] = calls.collect();
    }
    said
}

fn messages_answer(text: &str, calls: &[Call]) -> Value {
    let mut blocks = Vec::new();
    if !text.is_empty() {
        blocks.push(json!({ "type": "text", "text": text }));
    }
    for call in calls {
        // Arguments that were cut off are no object, and nothing else is taken.
        let input: Map<String, Value> = serde_json::from_str(&call.arguments).unwrap_or_default();
        blocks.push(json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": input }));
    }
    json!({ "role": "assistant", "content": blocks })
}
