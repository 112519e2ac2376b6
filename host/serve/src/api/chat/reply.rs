//! Answers as chat completions: one object, or chunks.

use engine::Sampled;
use serde_json::{Map, Value, json};

use crate::answer::{Answer, Delta, FinishReason, Pinned, Usage};
use crate::api::chunks::Chunks;
use crate::api::stream::{Events, Writer};
use crate::app::App;
use crate::prompt::OutputEvent;
use crate::request::{Refusal, Request};

/// What a caller wants to see of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Whether a stream ends with usage.
    pub usage: bool,
}

/// An answer as it is written.
pub struct Reply {
    chunks: Chunks,
    streamed: bool,
    begun: Vec<bool>,
    messages: Vec<Message>,
}

impl Reply {
    /// Nothing is written yet.
    pub fn new(app: &App, request: &Request, style: Style) -> Self {
        let chunks = Chunks::new(app, request, "chat.completion.chunk", style.usage);
        let choices = request.choices as usize;
        let messages = if request.streamed { 0 } else { choices };
        Self {
            chunks,
            streamed: request.streamed,
            begun: vec![false; choices],
            messages: (0..messages).map(|_| Message::default()).collect(),
        }
    }
}

impl Writer for Reply {
    fn begin(&mut self, _: &Answer, _: &mut Events) {}

    fn delta(&mut self, answer: &Answer, delta: Delta, events: &mut Events) {
        match self.streamed {
            true => self.chunks(answer, delta, events),
            false => self.messages[delta.choice as usize].add(delta),
        }
    }

    fn heartbeat(&mut self, events: &mut Events) {
        self.chunks.heartbeat(events);
    }

    fn fail(&mut self, _: &Answer, refusal: &Refusal, events: &mut Events) {
        self.chunks.fail(refusal, events);
    }

    fn end(&mut self, answer: &Answer, events: &mut Events) {
        self.chunks.end(|| usage_json(answer.usage()), events);
    }

    fn whole(&mut self, answer: &Answer) -> Value {
        let app = &answer.pinned.app;
        let id = answer.pinned.id.as_str();
        let choices: Vec<Value> = self.messages.iter().enumerate().map(|(i, m)| m.json(app, id, i)).collect();
        json!({
            "id": id,
            "object": "chat.completion",
            "created": app.ctx.unix_ms() / 1000,
            "model": app.model_name(answer.pinned.prompt.adapter),
            "choices": choices,
            "usage": usage_json(answer.usage()),
        })
    }
}

// --- one object --------------------------------------------------------------------------------

#[derive(Default)]
struct Message {
    content: String,
    reasoning: String,
    calls: Vec<Call>,
    logprobs: Vec<Sampled>,
    finish: Option<FinishReason>,
}

struct Call {
    /// As the model wrote it, if its grammar has ids.
    id: Option<String>,
    name: String,
    arguments: String,
}

impl Message {
    fn add(&mut self, delta: Delta) {
        for piece in delta.pieces {
            match piece {
                OutputEvent::Reasoning(text) => self.reasoning += &text,
                OutputEvent::Text(text) => self.content += &text,
                OutputEvent::CallStart { id, name, .. } => {
                    self.calls.push(Call { id, name, arguments: String::new() });
                }
                OutputEvent::CallArguments { index, delta } => self.calls[index as usize].arguments += &delta,
                OutputEvent::CallEnd { .. } => {}
            }
        }
        self.logprobs.extend(delta.logprobs);
        self.finish = self.finish.or(delta.finish);
    }

    fn json(&self, app: &App, id: &str, index: usize) -> Value {
        let mut message = Map::new();
        message.insert("role".into(), "assistant".into());
        let silent = self.content.is_empty() && !self.calls.is_empty();
        message.insert("content".into(), if silent { Value::Null } else { self.content.as_str().into() });
        if !self.reasoning.is_empty() {
            message.insert("reasoning_content".into(), self.reasoning.as_str().into());
            message.insert("reasoning".into(), self.reasoning.as_str().into());
        }
        if !self.calls.is_empty() {
            let family = app.model.family;
            let calls = self.calls.iter().enumerate().map(|(i, call)| {
                json!({
                    "id": call.id.clone().unwrap_or_else(|| family.call_id(call_id(id, index, i))),
                    "type": "function",
                    "function": { "name": call.name, "arguments": call.arguments },
                })
            });
            message.insert("tool_calls".into(), calls.collect());
        }
        let logprobs = logprobs_json(app, &self.logprobs);
        json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_json(self.finish) })
    }
}

// --- chunks ------------------------------------------------------------------------------------

impl Reply {
    fn chunks(&mut self, answer: &Answer, delta: Delta, out: &mut Events) {
        let choice = delta.choice as usize;
        if !delta.is_empty() && !std::mem::replace(&mut self.begun[choice], true) {
            self.chunk(choice, &json!({ "role": "assistant", "content": "" }), (None, &Value::Null), out);
        }
        let mut logprobs = logprobs_json(&answer.pinned.app, &delta.logprobs);
        let finish = delta.finish;
        for piece in delta.joined() {
            let is_text = matches!(piece, OutputEvent::Text(_));
            let logprobs = if is_text { std::mem::take(&mut logprobs) } else { Value::Null };
            if let Some(body) = piece_json(&answer.pinned, choice, piece) {
                self.chunk(choice, &body, (None, &logprobs), out);
            }
        }
        if finish.is_some() {
            self.chunk(choice, &json!({}), (finish, &logprobs), out);
        }
    }

    fn chunk(
        &self,
        choice: usize,
        delta: &Value,
        (finish, logprobs): (Option<FinishReason>, &Value),
        out: &mut Events,
    ) {
        let finish = finish_json(finish);
        let fields = format_args!(
            "\"index\":{choice},\"delta\":{delta},\"logprobs\":{logprobs},\"finish_reason\":{finish}"
        );
        self.chunks.choice(fields, out);
    }
}

fn piece_json(pinned: &Pinned, choice: usize, piece: OutputEvent) -> Option<Value> {
    Some(match piece {
        OutputEvent::Text(text) => json!({ "content": text }),
        OutputEvent::Reasoning(text) => json!({ "reasoning_content": text, "reasoning": text }),
        OutputEvent::CallStart { index, id: own, name } => json!({ "tool_calls": [{
            "index": index,
            "id": own.unwrap_or_else(|| pinned.app.model.family.call_id(call_id(&pinned.id, choice, index as usize))),
            "type": "function",
            "function": { "name": name, "arguments": "" },
        }] }),
        OutputEvent::CallArguments { index, delta } => {
            json!({ "tool_calls": [{ "index": index, "function": { "arguments": delta } }] })
        }
        OutputEvent::CallEnd { .. } => return None,
    })
}

// --- shared ------------------------------------------------------------------------------------

/// Ids are derived, so that a stream and a log agree without keeping a table.
fn call_id(request: &str, choice: usize, call: usize) -> String {
    let tail = request.rsplit('-').next().unwrap_or(request);
    format!("call_{}{choice}{call}", &tail[..tail.len().min(22)])
}

fn finish_json(finish: Option<FinishReason>) -> Value {
    match finish {
        None => Value::Null,
        Some(FinishReason::Stop) => "stop".into(),
        Some(FinishReason::Length) => "length".into(),
        Some(FinishReason::ToolCalls) => "tool_calls".into(),
    }
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
        "completion_tokens_details": { "reasoning_tokens": usage.reasoning_tokens },
    })
}

fn logprobs_json(app: &App, tokens: &[Sampled]) -> Value {
    if tokens.is_empty() {
        return Value::Null;
    }
    let entry = |token: u32, logprob: f32| {
        let bytes = app.model.tokenizer.token_bytes(token);
        json!({ "token": String::from_utf8_lossy(&bytes), "logprob": logprob, "bytes": &*bytes })
    };
    let content: Vec<Value> = tokens
        .iter()
        .map(|s| {
            let mut object = entry(s.token, s.logprob);
            object["top_logprobs"] = s.top.iter().map(|t| entry(t.token, t.logprob)).collect();
            object
        })
        .collect();
    json!({ "content": content })
}
