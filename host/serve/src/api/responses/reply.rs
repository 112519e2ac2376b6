//! The answer to a request for a response: its events, and the object that they add up to.
//!
//! ```text
//! created, in_progress, ( output_item.added, …deltas…, output_item.done )*, completed | incomplete | failed
//! ```
//!
//! Items come in the order in which the model wrote them, one after the other.
//! **Invariant:** the last event holds the object that a caller without a stream gets.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use super::diagnosis::Lineage;
use super::history::Latest;
use super::ids::Ids;
use super::object::{Head, Status, usage_json};
use super::output::{Item, Part};
use super::store::{Record, Saved};
use super::tools::Tools;
use crate::answer::{Answer, Delta, FinishReason};
use crate::api::stream::{Events, Writer};
use crate::api::{Vendor, error};
use crate::prompt::{Family, OutputEvent};
use crate::request::Refusal;

/// What of an answer outlives it.
pub(super) struct Keeping {
    pub(super) tenant: String,
    /// Whether it is stored.
    pub(super) store: bool,
    pub(super) previous: Option<String>,
    /// The first response of the conversation, if this is not it.
    pub(super) first: Option<String>,
    /// The items before this request's own.
    pub(super) before: Vec<Value>,
    pub(super) input: Vec<Value>,
    pub(super) created_ms: u64,
    /// The connection, which remembers its latest response.
    pub(super) tell: Option<oneshot::Sender<Latest>>,
}

/// What a caller wants to see of an answer.
#[derive(Clone, Debug)]
pub(super) struct Style {
    /// Whether reasoning items hold their content sealed, too.
    pub(super) sealed: bool,
    /// Whether nothing is generated.
    pub(super) prewarm: bool,
    /// What the prompt is made of, and what it is to be compared with.
    pub(super) lineage: Lineage,
}

/// An answer as it is written.
pub struct Reply {
    head: Head,
    ids: Ids,
    tools: Tools,
    style: Style,
    keeping: Keeping,
    /// Whose templates read the ids of calls, once the answer has begun.
    family: Family,
    sequence: u64,
    begun: bool,
    calls: usize,
    finish: Option<FinishReason>,
    open: Option<Item>,
    items: Vec<Value>,
    last: Value,
    saved: Option<Saved>,
}

impl Reply {
    /// Nothing is written yet.
    pub(super) fn new((head, ids, tools): (Head, Ids, Tools), style: Style, keeping: Keeping) -> Self {
        Self {
            head,
            ids,
            tools,
            style,
            keeping,
            family: Family::Plain,
            sequence: 0,
            begun: false,
            calls: 0,
            finish: None,
            open: None,
            items: Vec::new(),
            last: Value::Null,
            saved: None,
        }
    }

    fn emit(&mut self, name: &str, fields: Value, events: &mut Events) {
        let mut event = Map::from_iter([("type".to_owned(), name.into())]);
        event.insert("sequence_number".into(), self.sequence.into());
        if let Value::Object(fields) = fields {
            event.extend(fields);
        }
        self.sequence += 1;
        events.named(name, &event);
    }

    fn piece(&mut self, piece: OutputEvent, logprobs: &mut Vec<Value>, events: &mut Events) {
        match piece {
            OutputEvent::Reasoning(text) => {
                if !matches!(self.open, Some(Item::Reasoning { .. })) {
                    let id = self.ids.output("rs", self.next_index(true));
                    self.begin_item(Item::reasoning(id), events);
                }
                self.more(&text, Vec::new(), events);
            }
            OutputEvent::Text(text) => {
                if !matches!(self.open, Some(Item::Message { .. })) {
                    let id = self.ids.output("msg", self.next_index(true));
                    self.begin_item(Item::message(id), events);
                }
                self.more(&text, std::mem::take(logprobs), events);
            }
            OutputEvent::CallStart { id: own, name, .. } => {
                let called = self.tools.called(&name);
                let id = self.ids.output(if called.custom { "ctc" } else { "fc" }, self.next_index(true));
                let call_id = own.unwrap_or_else(|| self.family.call_id(self.ids.call(self.calls)));
                self.calls += 1;
                self.begin_item(Item::call(id, call_id, called), events);
            }
            OutputEvent::CallArguments { delta, .. } => self.more(&delta, Vec::new(), events),
            OutputEvent::CallEnd { .. } => self.end_item("completed", events),
        }
    }

    /// The index of the item that comes next; `after` the one that is open.
    fn next_index(&self, after: bool) -> usize {
        self.items.len() + usize::from(after && self.open.is_some())
    }

    fn begin_item(&mut self, item: Item, events: &mut Events) {
        self.end_item("completed", events);
        let index = self.items.len();
        self.emit(
            "response.output_item.added",
            json!({ "output_index": index, "item": item.begun() }),
            events,
        );
        if let Some(part) = item.part(Part::Empty) {
            let place =
                json!({ "item_id": item.id(), "output_index": index, "content_index": 0, "part": part });
            self.emit("response.content_part.added", place, events);
        }
        self.open = Some(item);
    }

    fn more(&mut self, text: &str, logprobs: Vec<Value>, events: &mut Events) {
        let index = self.items.len();
        let Some(item) = &mut self.open else { return };
        if let Some((name, fields)) = item.add(text, logprobs, index) {
            self.emit(name, fields, events);
        }
    }

    fn end_item(&mut self, status: &'static str, events: &mut Events) {
        let Some(item) = self.open.take() else { return };
        let index = self.items.len();
        for (name, fields) in item.ended(index) {
            self.emit(name, fields, events);
        }
        let done = item.done(status, self.style.sealed);
        self.emit("response.output_item.done", json!({ "output_index": index, "item": done }), events);
        self.items.push(done);
    }

    /// The last event.
    fn close(&mut self, status: Status, more: Vec<(&str, Value)>, events: &mut Events) {
        self.last = self.head.object(status, &self.items, more);
        self.emit(status.event(), json!({ "response": self.last }), events);
    }

    fn keep(&mut self, answer: &Answer) {
        let keeping = &mut self.keeping;
        let id = self.head.id().to_owned();
        let record = Record {
            first: keeping.first.take().unwrap_or_else(|| id.clone()),
            id,
            previous: keeping.previous.take(),
            created_ms: keeping.created_ms,
            input: std::mem::take(&mut keeping.input),
            response: self.last.clone(),
        };
        if keeping.store {
            self.saved = answer.pinned.app.responses.put(&keeping.tenant, &record);
        }
        if let Some(tell) = keeping.tell.take() {
            let before = Arc::new(std::mem::take(&mut keeping.before));
            // A connection that is gone remembers nothing.
            let _ = tell.send(Latest { record, before });
        }
    }
}

impl Writer for Reply {
    fn begin(&mut self, answer: &Answer, events: &mut Events) {
        self.family = answer.pinned.app.model.family;
        self.begun = true;
        let object = self.head.object(Status::InProgress, &[], vec![]);
        self.emit("response.created", json!({ "response": object }), events);
        self.emit(Status::InProgress.event(), json!({ "response": object }), events);
    }

    fn delta(&mut self, answer: &Answer, delta: Delta, events: &mut Events) {
        let mut logprobs = super::output::logprobs(&answer.pinned.app, &delta.logprobs);
        self.finish = self.finish.or(delta.finish);
        for piece in delta.joined() {
            self.piece(piece, &mut logprobs, events);
        }
    }

    fn heartbeat(&mut self, events: &mut Events) {
        events.comment("still computing");
    }

    fn fail(&mut self, _: &Answer, refusal: &Refusal, events: &mut Events) {
        let mut error = error::object(refusal, Vendor::OpenAi)["error"].take();
        if !self.begun {
            // There is no response yet that could be said to have failed.
            let fields =
                json!({ "code": error["code"], "message": error["message"], "param": error["param"] });
            return self.emit("error", fields, events);
        }
        self.end_item("incomplete", events);
        // The codes of a failed response are fewer than those of a refusal.
        let code =
            if error["code"] == "rate_limit_exceeded" { "rate_limit_exceeded" } else { "server_error" };
        let error = json!({ "code": code, "message": error["message"].take() });
        self.close(Status::Failed, vec![("error", error)], events);
    }

    fn end(&mut self, answer: &Answer, events: &mut Events) {
        let cut = self.finish == Some(FinishReason::Length) && !self.style.prewarm;
        if self.open.is_none() && self.items.is_empty() && !self.style.prewarm {
            // The model said nothing: its turn is an empty message, so that a conversation goes on in turns.
            self.begin_item(Item::message(self.ids.output("msg", 0)), events);
        }
        self.end_item(if cut { "incomplete" } else { "completed" }, events);
        let status = if cut { Status::Incomplete } else { Status::Completed };
        let mut more = vec![("usage", usage_json(answer))];
        if !cut {
            more.push(("completed_at", (answer.pinned.app.ctx.unix_ms() / 1000).into()));
        }
        let tenant = &self.keeping.tenant;
        if let Some(found) = self.style.lineage.diagnosis(answer, tenant, self.head.id()) {
            more.push(("prompt_cache_diagnostics", found));
        }
        self.close(status, more, events);
        self.keep(answer);
    }

    fn whole(&mut self, _: &Answer) -> Value {
        std::mem::take(&mut self.last)
    }

    fn saving(&mut self) -> Option<Saved> {
        self.saved.take()
    }
}
