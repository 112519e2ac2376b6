//! Answers as messages: one object, or events.
//!
//! An answer is a row of blocks, one open at a time: reasoning, text, calls. A stream shows how they grow; the whole
//! message is what a reader of that stream has in the end.
//! **Invariant:** a block is closed before the next is opened and before the answer ends, and reasoning with its signature.

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::body::Style;
use super::diagnosis::Diagnosis;
use super::event::{Block, Delta, Event, Stop};
use super::signature;
use super::thread;
use super::usage::Input;
use crate::answer::{self, Answer, FinishReason};
use crate::api::stream::{Events, Writer};
use crate::api::{Vendor, error};
use crate::ctx::name_id;
use crate::prompt::{Family, OutputEvent};
use crate::request::{Refusal, Request};
use crate::threads::Turn;

/// An answer as it is written.
pub struct Reply {
    id: String,
    tenant: String,
    style: Style,
    /// Whose templates read the ids of calls, once the answer has begun.
    family: Family,
    diagnosis: Option<Diagnosis>,
    /// Cached tokens and marks, once they are known.
    input: Input,
    diagnostics: Value,
    open: Open,
    /// Blocks that were opened.
    blocks: u32,
    /// Blocks that are complete.
    content: Vec<Value>,
    /// Whether somebody will ask for them.
    keeps: bool,
    /// The conversation that the answer belongs to, where the host holds it.
    turn: Option<Turn>,
    /// Ids and arguments of complete calls, until they are handed on.
    written: Vec<(String, String)>,
    finish: Option<FinishReason>,
}

/// The block that is growing.
#[derive(Debug)]
enum Open {
    Nothing,
    Text(String),
    Thinking(String),
    ToolUse { id: String, name: String, input: String },
}

impl Reply {
    /// Nothing is written yet.
    pub(super) fn new(request: &Request, tenant: &str, mut style: Style, turn: Option<Turn>) -> Self {
        Self {
            id: request.id.clone(),
            tenant: tenant.to_owned(),
            diagnosis: style.diagnosis.take(),
            style,
            family: Family::Plain,
            input: Input::default(),
            diagnostics: Value::Null,
            open: Open::Nothing,
            blocks: 0,
            content: Vec::new(),
            keeps: !request.streamed || turn.is_some(),
            turn,
            written: Vec::new(),
            finish: None,
        }
    }

    fn piece(&mut self, piece: OutputEvent, events: &mut Events) {
        match piece {
            OutputEvent::Reasoning(text) => self.reasoning(&text, events),
            OutputEvent::Text(text) => self.text(&text, events),
            OutputEvent::CallStart { index, id, name } => {
                self.close(events);
                let id = id.unwrap_or_else(|| self.family.call_id(call_id(&self.id, index)));
                let block = Block::ToolUse { id: &id, name: &name, input: nothing() };
                self.start(block, events);
                self.open = Open::ToolUse { id, name, input: String::new() };
            }
            OutputEvent::CallArguments { delta, .. } => {
                self.more(Delta::InputJson { partial_json: &delta }, events);
                if let Open::ToolUse { input, .. } = &mut self.open {
                    *input += &delta;
                }
            }
            OutputEvent::CallEnd { .. } => self.close(events),
        }
    }

    fn text(&mut self, text: &str, events: &mut Events) {
        if !matches!(self.open, Open::Text(_)) {
            self.close(events);
            self.start(Block::Text { text: "" }, events);
            self.open = Open::Text(String::new());
        }
        self.more(Delta::Text { text }, events);
        self.keep(text);
    }

    fn reasoning(&mut self, text: &str, events: &mut Events) {
        if !matches!(self.open, Open::Thinking(_)) {
            self.close(events);
            self.start(Block::Thinking { thinking: "", signature: "" }, events);
            self.open = Open::Thinking(String::new());
        }
        if !self.style.thinking_omitted {
            self.more(Delta::Thinking { thinking: text }, events);
        }
        self.keep(text);
    }

    fn keep(&mut self, text: &str) {
        match &mut self.open {
            // A stream's text has left, and reasoning is signed.
            Open::Text(_) if !self.keeps => {}
            Open::Text(so_far) | Open::Thinking(so_far) => *so_far += text,
            Open::Nothing | Open::ToolUse { .. } => {}
        }
    }

    fn start(&mut self, content_block: Block<'_>, events: &mut Events) {
        send(&Event::ContentBlockStart { index: self.blocks, content_block }, events);
        self.blocks += 1;
    }

    /// More of the block that is open.
    fn more(&self, delta: Delta<'_>, events: &mut Events) {
        send(&Event::ContentBlockDelta { index: self.blocks - 1, delta }, events);
    }

    fn close(&mut self, events: &mut Events) {
        let block = match std::mem::replace(&mut self.open, Open::Nothing) {
            Open::Nothing => return,
            Open::Text(text) => json!({"type": "text", "text": text}),
            Open::Thinking(text) => {
                let omitted = self.style.thinking_omitted;
                let signature = if omitted { signature::holding(&text) } else { signature::of_shown(&text) };
                self.more(Delta::Signature { signature: &signature }, events);
                let text = if omitted { String::new() } else { text };
                json!({"type": "thinking", "thinking": text, "signature": signature})
            }
            Open::ToolUse { id, name, input } => {
                let block = json!({"type": "tool_use", "id": &id, "name": name, "input": object(&input)});
                self.written.push((id, input));
                block
            }
        };
        send(&Event::ContentBlockStop { index: self.blocks - 1 }, events);
        if self.keeps {
            self.content.push(block);
        }
    }

    fn message(&self, answer: &Answer, content: &[Value], stop: Option<Stop<'_>>) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.style.model,
            "content": content,
            "stop_reason": stop.map(|stop| stop.stop_reason),
            "stop_sequence": stop.and_then(|stop| stop.stop_sequence),
            "stop_details": null,
            "container": null,
            "diagnostics": self.diagnostics,
            "usage": self.input.message(answer.usage()),
        })
    }

    fn stop<'a>(&self, answer: &'a Answer) -> Stop<'a> {
        let stop_sequence = answer.stopped_by(0);
        let clamped = answer.pinned.prompt.output_tokens_max < self.style.output_tokens_max;
        let stop_reason = match (self.finish, stop_sequence) {
            (_, Some(_)) => "stop_sequence",
            (Some(FinishReason::ToolCalls), _) => "tool_use",
            // The caller would have had more, and the context had no room for it.
            (Some(FinishReason::Length), _) if clamped => "model_context_window_exceeded",
            (Some(FinishReason::Length), _) => "max_tokens",
            (Some(FinishReason::Stop) | None, _) => "end_turn",
        };
        Stop { stop_reason, stop_sequence }
    }
}

impl Writer for Reply {
    fn begin(&mut self, answer: &Answer, events: &mut Events) {
        self.family = answer.pinned.app.model.family;
        self.input = Input::of(answer.usage(), &answer.pinned.prompt, &self.style.marks);
        if let Some(diagnosis) = self.diagnosis.take() {
            self.diagnostics = diagnosis.tell(answer, &self.tenant);
        }
        send(&Event::MessageStart { message: &self.message(answer, &[], None) }, events);
    }

    fn delta(&mut self, answer: &Answer, delta: answer::Delta, events: &mut Events) {
        self.finish = delta.finish.or(self.finish);
        for piece in delta.joined() {
            self.piece(piece, events);
        }
        if self.finish.is_some() {
            self.close(events);
        }
        for (id, arguments) in self.written.drain(..) {
            answer.pinned.app.prompts.remember_call(name_id(&self.tenant), &id, &arguments);
        }
    }

    fn heartbeat(&mut self, events: &mut Events) {
        send(&Event::Ping, events);
    }

    fn fail(&mut self, answer: &Answer, refusal: &Refusal, events: &mut Events) {
        let mut object = error::object(refusal, Vendor::Anthropic);
        object["request_id"] = answer.pinned.id.as_str().into();
        events.named("error", &object);
    }

    fn end(&mut self, answer: &Answer, events: &mut Events) {
        if let Some(mut turn) = self.turn.take() {
            thread::answered(&mut turn, &self.content);
            turn.settle(&self.id);
        }
        let usage = self.input.cumulative(answer.usage());
        send(&Event::MessageDelta { delta: self.stop(answer), usage: &usage }, events);
        send(&Event::MessageStop, events);
    }

    fn whole(&mut self, answer: &Answer) -> Value {
        let content = std::mem::take(&mut self.content);
        self.message(answer, &content, Some(self.stop(answer)))
    }
}

fn send(event: &Event<'_>, events: &mut Events) {
    events.named(event.name(), event);
}

/// Ids are derived, so that a stream and a log agree without keeping a table.
fn call_id(message: &str, call: u32) -> String {
    format!("toolu_{}{call:02}", message.trim_start_matches("msg_"))
}

/// An input before its first delta.
fn nothing() -> &'static RawValue {
    serde_json::from_str("{}").expect("it is an object")
}

/// The arguments of a call as an object. Those of a call that was cut off are none: half of an input is not one.
fn object(arguments: &str) -> Value {
    serde_json::from_str(arguments).ok().filter(Value::is_object).unwrap_or_else(|| json!({}))
}

#[cfg(test)]
mod tests;
