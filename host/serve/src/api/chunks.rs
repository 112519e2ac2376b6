//! What the streams of chat completions and of completions have in common: chunks without names, and how they end.
//!
//! **Invariant:** all chunks of a stream begin alike; with usage wanted, each says that it has none, but for the last.

use std::fmt::Arguments;

use serde_json::Value;

use super::stream::Events;
use super::{Vendor, error};
use crate::app::App;
use crate::request::{Refusal, Request};

/// The chunks of one answer.
#[derive(Debug)]
pub(super) struct Chunks {
    /// The part of every chunk that stays the same, written once.
    head: String,
    usage: bool,
}

impl Chunks {
    /// Chunks that call themselves `object`. `usage`: whether the stream ends with it.
    pub(super) fn new(app: &App, request: &Request, object: &str, usage: bool) -> Self {
        let head = format!(
            "{{\"id\":{},\"object\":\"{object}\",\"created\":{},\"model\":{},",
            Value::from(request.id.as_str()),
            app.ctx.unix_ms() / 1000,
            Value::from(app.model_name(request.adapter)),
        );
        Self { head, usage }
    }

    /// A chunk about one choice, which is the fields of a JSON object.
    pub(super) fn choice(&self, fields: Arguments<'_>, events: &mut Events) {
        let usage = if self.usage { ",\"usage\":null" } else { "" };
        events.raw(format_args!("{}\"choices\":[{{{fields}}}]{usage}}}", self.head));
    }

    /// Nothing happened for a while.
    pub(super) fn heartbeat(&self, events: &mut Events) {
        events.comment("still computing");
    }

    /// The answer failed.
    pub(super) fn fail(&self, refusal: &Refusal, events: &mut Events) {
        events.data(&error::object(refusal, Vendor::OpenAi));
    }

    /// Every choice has ended.
    pub(super) fn end(&self, usage: impl FnOnce() -> Value, events: &mut Events) {
        if self.usage {
            events.raw(format_args!("{}\"choices\":[],\"usage\":{}}}", self.head, usage()));
        }
        events.raw(format_args!("[DONE]"));
    }
}
