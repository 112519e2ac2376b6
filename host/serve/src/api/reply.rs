//! Answers as chat completions: one object, or server-sent events.
//!
//! **Invariant:** a streamed answer and a whole one say the same; dropping the body drops the answer, and
//! with it the sequences.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use engine::Sampled;
use serde_json::{Map, Value, json};

use super::error;
use crate::answer::{Answer, Delta, FinishReason, Usage};
use crate::app::App;
use crate::config::DEFAULT_CHAIN;
use crate::prompt::OutputEvent;
use crate::request::{Request, Stream};

/// Chosen: proxies and clients commonly give up on a silent connection after 30 s or more.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The response to `request`.
pub async fn reply(answer: Answer, request: &Request) -> Response {
    let decided = decision_headers(&answer);
    let mut response = match request.stream {
        Stream::No => whole(answer, request.choices).await,
        Stream::Events => events(answer, false),
        Stream::EventsWithUsage => events(answer, true),
    };
    response.headers_mut().extend(decided);
    response
}

/// Who decided: for people at a terminal, and for tests of swaps.
fn decision_headers(answer: &Answer) -> Vec<(HeaderName, HeaderValue)> {
    let pinned = &answer.pinned;
    let worker = pinned.app.workers[pinned.routed.worker].name.as_ref();
    let generation = pinned.policies.id().0.to_string();
    let chain = Some(pinned.policies.chain().as_ref()).filter(|name| *name != DEFAULT_CHAIN);
    [
        ("x-request-id", pinned.id.as_str()),
        ("x-pointsman-generation", generation.as_str()),
        ("x-pointsman-worker", worker),
        ("x-pointsman-decided-by", &pinned.routed.decided_by),
    ]
    .into_iter()
    .chain(chain.map(|name| ("x-pointsman-chain", name)))
    .filter_map(|(name, value)| Some((HeaderName::from_static(name), HeaderValue::from_str(value).ok()?)))
    .collect()
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
    name: String,
    arguments: String,
}

impl Message {
    fn add(&mut self, delta: Delta) {
        for piece in delta.pieces {
            match piece {
                OutputEvent::Reasoning(text) => self.reasoning += &text,
                OutputEvent::Text(text) => self.content += &text,
                OutputEvent::CallStart { name, .. } => {
                    self.calls.push(Call { name, arguments: String::new() });
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
            let calls = self.calls.iter().enumerate().map(|(i, call)| {
                json!({
                    "id": call_id(id, index, i),
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

async fn whole(mut answer: Answer, choices: u32) -> Response {
    let mut messages: Vec<Message> = (0..choices).map(|_| Message::default()).collect();
    while let Some(delta) = answer.next().await {
        match delta {
            Ok(delta) => messages[delta.choice as usize].add(delta),
            Err(refusal) => return refusal.into_response(),
        }
    }
    let app = &answer.pinned.app;
    let id = answer.pinned.id.as_str();
    let choices: Vec<Value> = messages.iter().enumerate().map(|(i, m)| m.json(app, id, i)).collect();
    super::json_reply(&json!({
        "id": id,
        "object": "chat.completion",
        "created": app.ctx.unix_ms() / 1000,
        "model": app.model.name,
        "choices": choices,
        "usage": usage_json(answer.usage()),
    }))
}

// --- events ------------------------------------------------------------------------------------

/// The part of every chunk that stays the same, written once.
struct Chunks {
    answer: Answer,
    head: String,
    usage: bool,
    begun: Vec<bool>,
    ended: bool,
}

fn events(answer: Answer, usage: bool) -> Response {
    let app = &answer.pinned.app;
    let head = format!(
        "data: {{\"id\":{},\"object\":\"chat.completion.chunk\",\"created\":{},\"model\":{},",
        Value::from(answer.pinned.id.as_str()),
        app.ctx.unix_ms() / 1000,
        Value::from(app.model.name.as_str()),
    );
    let chunks = Chunks { answer, head, usage, begun: Vec::new(), ended: false };
    let stream = futures_util::stream::unfold(chunks, |mut chunks| async move {
        let bytes = chunks.next().await?;
        Some((Ok::<_, Infallible>(bytes), chunks))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(stream)).into_response()
}

impl Chunks {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let Ok(delta) = tokio::time::timeout(HEARTBEAT, self.answer.next()).await else {
            return Some(Bytes::from_static(b": still computing\n\n"));
        };
        let mut out = String::with_capacity(512);
        match delta {
            Some(Ok(delta)) => self.write(delta, &mut out),
            Some(Err(refusal)) => {
                out += &format!("data: {}\n\n", error::object(&refusal));
                self.ended = true;
            }
            None => {
                if self.usage {
                    let usage = usage_json(self.answer.usage());
                    out += &format!("{}\"choices\":[],\"usage\":{usage}}}\n\n", self.head);
                }
                out += "data: [DONE]\n\n";
                self.ended = true;
            }
        }
        Some(out.into())
    }

    fn write(&mut self, delta: Delta, out: &mut String) {
        let choice = delta.choice as usize;
        if self.begun.len() <= choice {
            self.begun.resize(choice + 1, false);
        }
        if !std::mem::replace(&mut self.begun[choice], true) {
            self.chunk(choice, &json!({ "role": "assistant", "content": "" }), (None, &Value::Null), out);
        }
        let mut logprobs = logprobs_json(&self.answer.pinned.app, &delta.logprobs);
        for piece in joined(delta.pieces) {
            let is_text = matches!(piece, OutputEvent::Text(_));
            let logprobs = if is_text { std::mem::take(&mut logprobs) } else { Value::Null };
            if let Some(body) = self.piece_json(choice, piece) {
                self.chunk(choice, &body, (None, &logprobs), out);
            }
        }
        if delta.finish.is_some() {
            self.chunk(choice, &json!({}), (delta.finish, &logprobs), out);
        }
    }

    fn piece_json(&self, choice: usize, piece: OutputEvent) -> Option<Value> {
        Some(match piece {
            OutputEvent::Text(text) => json!({ "content": text }),
            OutputEvent::Reasoning(text) => json!({ "reasoning_content": text, "reasoning": text }),
            OutputEvent::CallStart { index, name } => json!({ "tool_calls": [{
                "index": index,
                "id": call_id(&self.answer.pinned.id, choice, index as usize),
                "type": "function",
                "function": { "name": name, "arguments": "" },
            }] }),
            OutputEvent::CallArguments { index, delta } => {
                json!({ "tool_calls": [{ "index": index, "function": { "arguments": delta } }] })
            }
            OutputEvent::CallEnd { .. } => return None,
        })
    }

    fn chunk(
        &self,
        choice: usize,
        delta: &Value,
        (finish, logprobs): (Option<FinishReason>, &Value),
        out: &mut String,
    ) {
        use std::fmt::Write;
        let usage = if self.usage { ",\"usage\":null" } else { "" };
        let finish = finish_json(finish);
        // Writing into a string cannot fail.
        let _ = write!(
            out,
            "{}\"choices\":[{{\"index\":{choice},\"delta\":{delta},\"logprobs\":{logprobs},\"finish_reason\":{finish}}}]{usage}}}\n\n",
            self.head,
        );
    }
}

/// Neighbouring pieces of the same kind become one: fewer chunks when tokens come faster than they are sent.
fn joined(pieces: Vec<OutputEvent>) -> Vec<OutputEvent> {
    let mut out: Vec<OutputEvent> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match (out.last_mut(), piece) {
            (Some(OutputEvent::Text(a)), OutputEvent::Text(b)) => *a += &b,
            (Some(OutputEvent::Reasoning(a)), OutputEvent::Reasoning(b)) => *a += &b,
            (
                Some(OutputEvent::CallArguments { index: i, delta: a }),
                OutputEvent::CallArguments { index, delta },
            ) if *i == index => *a += &delta,
            (_, piece) => out.push(piece),
        }
    }
    out
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
