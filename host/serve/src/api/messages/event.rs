//! The events of a stream, as they are written.

use serde::Serialize;
use serde_json::{Value, value::RawValue};

/// An event; its name is its type.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Event<'a> {
    /// The answer begins.
    MessageStart { message: &'a Value },
    /// A block begins.
    ContentBlockStart { index: u32, content_block: Block<'a> },
    /// A block goes on.
    ContentBlockDelta { index: u32, delta: Delta<'a> },
    /// A block is complete.
    ContentBlockStop { index: u32 },
    /// The answer ends.
    MessageDelta { delta: Stop<'a>, usage: &'a Value },
    /// Nothing follows.
    MessageStop,
    /// Nothing happened for a while.
    Ping,
}

impl Event<'_> {
    /// The name in its `event:` line.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
            Self::Ping => "ping",
        }
    }
}

/// A block of content.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Block<'a> {
    Text { text: &'a str },
    Thinking { thinking: &'a str, signature: &'a str },
    ToolUse { id: &'a str, name: &'a str, input: &'a RawValue },
}

/// More of a block.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Delta<'a> {
    #[serde(rename = "text_delta")]
    Text { text: &'a str },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: &'a str },
    #[serde(rename = "signature_delta")]
    Signature { signature: &'a str },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: &'a str },
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Stop<'a> {
    pub(super) stop_reason: &'a str,
    pub(super) stop_sequence: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(event: &Event<'_>, expected: &str) {
        assert_eq!(serde_json::to_string(event).expect("events are JSON"), expected);
        assert!(expected.starts_with(&format!("{{\"type\":\"{}\"", event.name())), "{expected}");
    }

    #[test]
    fn events_are_written_as_sdks_read_them() {
        let nothing = serde_json::value::to_raw_value(&serde_json::json!({})).expect("it is JSON");
        check(&Event::Ping, r#"{"type":"ping"}"#);
        check(&Event::MessageStop, r#"{"type":"message_stop"}"#);
        check(&Event::MessageStart { message: &Value::Null }, r#"{"type":"message_start","message":null}"#);
        check(
            &Event::ContentBlockStart {
                index: 1,
                content_block: Block::ToolUse { id: "a", name: "f", input: &nothing },
            },
            r#"{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"a","name":"f","input":{}}}"#,
        );
        check(
            &Event::ContentBlockDelta { index: 0, delta: Delta::InputJson { partial_json: "{\"" } },
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{\""}}"#,
        );
        check(
            &Event::MessageDelta {
                delta: Stop { stop_reason: "end_turn", stop_sequence: None },
                usage: &Value::Null,
            },
            r#"{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":null}"#,
        );
    }
}
