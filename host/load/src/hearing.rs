//! What a stream says, event by event, in the words of each protocol.
//!
//! **Invariant:** an answer is whole only if its stream said so.

use serde::Deserialize;

use crate::api::{Answer, Api, Call};
use crate::sse::Event;

/// Tokens as the server counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Prompt tokens, cached ones included.
    pub(crate) input: Option<u64>,
    /// Those of them that came from a cache.
    pub(crate) cached: Option<u64>,
    /// Tokens of the answer.
    pub(crate) output: Option<u64>,
}

/// An answer so far.
#[derive(Debug)]
pub(crate) struct Hearing {
    api: Api,
    pub(crate) answer: Answer,
    pub(crate) usage: Usage,
    /// Whether the stream has said that it is over.
    pub(crate) is_whole: bool,
    pub(crate) fault: Option<Fault>,
}

/// What went wrong within a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The server says that it failed.
    Told { kind: String, message: String },
    /// It says something that the protocol does not know.
    Protocol(String),
}

/// Whether an event brought something of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Brought {
    Tokens,
    Nothing,
}

impl Hearing {
    pub(crate) fn new(api: Api) -> Self {
        let (answer, usage) = (Answer::default(), Usage::default());
        Self { api, answer, usage, is_whole: false, fault: None }
    }

    /// Takes an event.
    ///
    /// Cost: one parse of its JSON.
    pub(crate) fn hear(&mut self, event: Event<'_>) -> Brought {
        if self.api != Api::Messages && event.data == b"[DONE]" {
            self.is_whole = true;
            return Brought::Nothing;
        }
        let heard = match self.api {
            Api::Chat | Api::Completions => serde_json::from_slice(event.data).map(|c| self.chunk(c)),
            Api::Messages => serde_json::from_slice(event.data).map(|e| self.event(e)),
        };
        heard.unwrap_or_else(|error| {
            self.fault.get_or_insert(Fault::Protocol(format!("an event cannot be read: {error}")));
            Brought::Nothing
        })
    }

    fn chunk(&mut self, chunk: Chunk) -> Brought {
        let mut brought = Brought::Nothing;
        if let Some(told) = chunk.error {
            self.fault = Some(told.fault());
        }
        if let Some(usage) = chunk.usage {
            let cached = usage.prompt_tokens_details.and_then(|details| details.cached_tokens);
            self.usage = Usage { input: usage.prompt_tokens, cached, output: usage.completion_tokens };
        }
        for choice in chunk.choices.into_iter().flatten().take(1) {
            let delta = choice.delta.unwrap_or_default();
            let silent = [delta.reasoning_content, delta.reasoning];
            if silent.iter().flatten().any(|text| !text.is_empty()) {
                brought = Brought::Tokens;
            }
            for text in [choice.text, delta.content].into_iter().flatten().filter(|text| !text.is_empty()) {
                self.answer.text.push_str(&text);
                brought = Brought::Tokens;
            }
            for call in delta.tool_calls.into_iter().flatten() {
                self.call(call);
                brought = Brought::Tokens;
            }
        }
        brought
    }

    /// Joins a part of a tool call with what came of it.
    fn call(&mut self, part: CallPart) {
        // Chosen: no answer has as many calls; an index beyond them would make us fill the memory.
        const CALLS_MAX: usize = 256;
        let index = part.index.unwrap_or(0).min(CALLS_MAX - 1);
        let calls = &mut self.answer.calls;
        if calls.len() <= index {
            calls.resize(index + 1, Call::default());
        }
        let call = &mut calls[index];
        call.id.push_str(&part.id.unwrap_or_default());
        let function = part.function.unwrap_or_default();
        call.name.push_str(&function.name.unwrap_or_default());
        call.arguments.push_str(&function.arguments.unwrap_or_default());
    }

    fn event(&mut self, event: MessageEvent) -> Brought {
        let mut brought = Brought::Nothing;
        match event.kind.as_str() {
            "message_start" => self.counted(event.message.and_then(|message| message.usage)),
            "message_delta" => self.counted(event.usage),
            "message_stop" => self.is_whole = true,
            "error" => self.fault = Some(event.error.unwrap_or_default().fault()),
            "content_block_start" => {
                let block = event.content_block.unwrap_or_default();
                if block.kind == "tool_use" {
                    let (id, name) = (block.id.unwrap_or_default(), block.name.unwrap_or_default());
                    self.answer.calls.push(Call { id, name, arguments: String::new() });
                    brought = Brought::Tokens;
                }
            }
            "content_block_delta" => {
                let delta = event.delta.unwrap_or_default();
                if let Some(json) = delta.partial_json
                    && let Some(call) = self.answer.calls.last_mut()
                {
                    call.arguments.push_str(&json);
                    brought = Brought::Tokens;
                }
                if let Some(text) = delta.text.filter(|text| !text.is_empty()) {
                    self.answer.text.push_str(&text);
                    brought = Brought::Tokens;
                }
                if delta.thinking.is_some_and(|text| !text.is_empty()) {
                    brought = Brought::Tokens;
                }
            }
            // Pings, ends of blocks, and what later versions add.
            _ => {}
        }
        brought
    }

    fn counted(&mut self, usage: Option<MessageUsage>) {
        let Some(usage) = usage else { return };
        if let Some(fresh) = usage.input_tokens {
            let cached = usage.cache_read_input_tokens;
            let written = usage.cache_creation_input_tokens.unwrap_or(0);
            self.usage.cached = cached.or(self.usage.cached);
            self.usage.input = Some(fresh + written + self.usage.cached.unwrap_or(0));
        }
        self.usage.output = usage.output_tokens.or(self.usage.output);
    }
}

/// What a server says of its failure.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Told {
    #[serde(rename = "type")]
    kind: Option<String>,
    message: Option<String>,
}

impl Told {
    fn fault(self) -> Fault {
        Fault::Told { kind: self.kind.unwrap_or_default(), message: self.message.unwrap_or_default() }
    }

    /// From the body of a refusal: `error`, or that it is the error itself.
    pub(crate) fn of(body: &[u8]) -> (String, String) {
        #[derive(Deserialize)]
        struct Body {
            error: Option<Told>,
            #[serde(flatten)]
            bare: Told,
        }
        match serde_json::from_slice::<Body>(body) {
            Ok(body) => {
                let told = body.error.unwrap_or(body.bare);
                (told.kind.unwrap_or_default(), told.message.unwrap_or_default())
            }
            Err(_) => (String::new(), String::from_utf8_lossy(body).trim().to_owned()),
        }
    }
}

#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<ChatUsage>,
    error: Option<Told>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Option<Delta>,
    text: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<Vec<CallPart>>,
}

#[derive(Deserialize)]
struct CallPart {
    index: Option<usize>,
    id: Option<String>,
    function: Option<FunctionPart>,
}

#[derive(Default, Deserialize)]
struct FunctionPart {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Deserialize)]
struct ChatUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct MessageEvent {
    #[serde(rename = "type")]
    kind: String,
    message: Option<Message>,
    usage: Option<MessageUsage>,
    content_block: Option<Block>,
    delta: Option<BlockDelta>,
    error: Option<Told>,
}

#[derive(Deserialize)]
struct Message {
    usage: Option<MessageUsage>,
}

#[derive(Deserialize)]
struct MessageUsage {
    input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

#[derive(Default, Deserialize)]
struct Block {
    #[serde(rename = "type", default)]
    kind: String,
    id: Option<String>,
    name: Option<String>,
}

#[derive(Default, Deserialize)]
struct BlockDelta {
    text: Option<String>,
    thinking: Option<String>,
    partial_json: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(api: Api, events: &[&str]) -> (Hearing, usize) {
        let mut hearing = Hearing::new(api);
        let event = |data: &'static str| data;
        let mut tokens = 0;
        for data in events {
            let brought = hearing.hear(Event { name: event("").as_bytes(), data: data.as_bytes() });
            tokens += usize::from(brought == Brought::Tokens);
        }
        (hearing, tokens)
    }

    #[test]
    fn a_chat_is_heard_with_its_calls_and_usage() {
        let (hearing, tokens) = heard(
            Api::Chat,
            &[
                r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
                r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#,
                r#"{"choices":[{"delta":{"content":"Hel"}}],"usage":null}"#,
                r#"{"choices":[{"delta":{"content":"lo","tool_calls":null}}]}"#,
                r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c1","function":{"name":"ls","arguments":"{"}}]}}]}"#,
                r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]}}]}"#,
                r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":4}}}"#,
                "[DONE]",
            ],
        );
        assert_eq!((hearing.answer.text.as_str(), tokens, hearing.is_whole), ("Hello", 5, true));
        let call = Call { id: "c1".to_owned(), name: "ls".to_owned(), arguments: "{}".to_owned() };
        assert_eq!(hearing.answer.calls, [call]);
        assert_eq!(hearing.usage, Usage { input: Some(9), cached: Some(4), output: Some(5) });
        assert_eq!(hearing.fault, None);
    }

    #[test]
    fn a_message_is_heard_and_its_prompt_counted_with_what_was_cached() {
        let (hearing, tokens) = heard(
            Api::Messages,
            &[
                r#"{"type":"message_start","message":{"usage":{"input_tokens":3,"cache_read_input_tokens":5,"cache_creation_input_tokens":2,"output_tokens":1}}}"#,
                r#"{"type":"ping"}"#,
                r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}"#,
                r#"{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"t","name":"ls","input":{}}}"#,
                r#"{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{}"}}"#,
                r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":7}}"#,
                r#"{"type":"message_stop"}"#,
            ],
        );
        assert_eq!((hearing.answer.text.as_str(), tokens, hearing.is_whole), ("Hi", 3, true));
        assert_eq!(hearing.answer.calls[0].arguments, "{}");
        assert_eq!(hearing.usage, Usage { input: Some(10), cached: Some(5), output: Some(7) });
    }

    #[test]
    fn failures_within_a_stream_are_told() {
        let told = |api, event: &str| heard(api, &[event]).0.fault.expect("it failed");
        let error = r#"{"type":"error","error":{"type":"overloaded_error","message":"later"}}"#;
        let expected = Fault::Told { kind: "overloaded_error".to_owned(), message: "later".to_owned() };
        assert_eq!(told(Api::Messages, error), expected);
        assert_eq!(told(Api::Chat, error), expected);
        assert!(matches!(told(Api::Chat, "{\"choices\":"), Fault::Protocol(_)));
        let (hearing, _) = heard(Api::Chat, &[r#"{"choices":[{"delta":{"content":"x"}}]}"#]);
        assert!(!hearing.is_whole, "nobody said that it is over");
    }

    #[test]
    fn refusals_are_read_in_every_shape() {
        assert_eq!(Told::of(br#"{"error":{"type":"a","message":"b"}}"#), ("a".to_owned(), "b".to_owned()));
        assert_eq!(
            Told::of(br#"{"object":"error","type":"a","message":"b","code":4}"#),
            ("a".to_owned(), "b".to_owned())
        );
        assert_eq!(Told::of(b"busy\n"), (String::new(), "busy".to_owned()));
    }
}
