//! Answers on their way to the socket, whatever the protocol: one object, server-sent events, or frames.
//!
//! A protocol says what its events are by a [`Writer`]; when they are written, and what becomes of a failure, is
//! decided here, once.
//! **Invariant:** a streamed answer and a whole one are written by the same writer and say the same; dropping the
//! body drops the answer, and with it the sequences.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::answer::{Answer, Delta};
use crate::config::DEFAULT_CHAIN;
use crate::request::Refusal;

/// Chosen: proxies and clients commonly give up on a silent connection after 30 s or more.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Chosen: an answer is worth more than the promise that it is stored.
const SAVE_MAX: Duration = Duration::from_secs(5);
/// Chosen: the events of one token fit; more grows.
const EVENTS_BYTES: usize = 512;

/// What a protocol makes of an answer, in the order in which the methods are called: `begin`, any number of
/// `delta` and `heartbeat`, then one of `end` and `fail`.
pub trait Writer: Send {
    /// The answer has a worker. With [`Request::begins_early`](crate::request::Request::begins_early) this is
    /// before its first token, and the cached tokens are known.
    fn begin(&mut self, answer: &Answer, events: &mut Events);

    /// A choice gained something.
    fn delta(&mut self, answer: &Answer, delta: Delta, events: &mut Events);

    /// Nothing happened for a while; it may be before `begin`.
    fn heartbeat(&mut self, events: &mut Events);

    /// The answer failed; nothing follows.
    fn fail(&mut self, answer: &Answer, refusal: &Refusal, events: &mut Events);

    /// Every choice has ended.
    fn end(&mut self, answer: &Answer, events: &mut Events);

    /// The whole answer as one object, after `end`.
    fn whole(&mut self, answer: &Answer) -> Value;

    /// What has to be on the disk before a caller hears the end; nothing for most.
    fn saving(&mut self) -> Option<oneshot::Receiver<()>> {
        None
    }
}

/// Events that leave together.
#[derive(Debug, Default)]
pub struct Events {
    bytes: Vec<u8>,
    /// Where each frame ends, where events travel as frames.
    frames: Option<Vec<usize>>,
}

impl Events {
    /// Events of a stream.
    pub fn sse() -> Self {
        Self { bytes: Vec::with_capacity(EVENTS_BYTES), frames: None }
    }

    /// Events that travel as messages of their own; comments are left out.
    pub fn frames() -> Self {
        Self { bytes: Vec::with_capacity(EVENTS_BYTES), frames: Some(Vec::new()) }
    }

    /// An event with a name and a JSON object.
    pub fn named(&mut self, name: &str, data: &impl Serialize) {
        if self.frames.is_none() {
            self.bytes.extend_from_slice(b"event: ");
            self.bytes.extend_from_slice(name.as_bytes());
            self.bytes.push(b'\n');
        }
        self.data(data);
    }

    /// An event without a name.
    pub fn data(&mut self, data: &impl Serialize) {
        self.open();
        serde_json::to_writer(&mut self.bytes, data).expect("a vector takes every JSON value");
        self.close();
    }

    /// An event without a name whose data is text on one line.
    pub fn raw(&mut self, data: std::fmt::Arguments<'_>) {
        use std::io::Write;
        self.open();
        self.bytes.write_fmt(data).expect("a vector takes every text");
        self.close();
    }

    /// Something that keeps a stream open and says nothing.
    pub fn comment(&mut self, text: &str) {
        if self.frames.is_none() {
            self.bytes.extend_from_slice(b": ");
            self.bytes.extend_from_slice(text.as_bytes());
            self.bytes.extend_from_slice(b"\n\n");
        }
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes of a stream.
    pub fn into_bytes(self) -> Bytes {
        self.bytes.into()
    }

    /// The frames, each a JSON text.
    pub fn into_frames(self) -> Vec<String> {
        let mut from = 0;
        let mut frame = |end: usize| {
            let text = String::from_utf8_lossy(&self.bytes[from..end]).into_owned();
            from = end;
            text
        };
        self.frames.iter().flatten().map(|end| frame(*end)).collect()
    }

    fn open(&mut self) {
        if self.frames.is_none() {
            self.bytes.extend_from_slice(b"data: ");
        }
    }

    fn close(&mut self) {
        match &mut self.frames {
            None => self.bytes.extend_from_slice(b"\n\n"),
            Some(frames) => frames.push(self.bytes.len()),
        }
    }
}

/// An answer and who writes it.
pub struct Pump {
    answer: Answer,
    writer: Box<dyn Writer>,
    begun: bool,
    ended: bool,
}

impl Pump {
    /// Nothing is written yet.
    pub fn new(answer: Answer, writer: Box<dyn Writer>) -> Self {
        Self { answer, writer, begun: false, ended: false }
    }

    /// Waits for what comes next and writes it. False after the end.
    pub async fn next(&mut self, events: &mut Events) -> bool {
        while !self.ended && events.is_empty() {
            match tokio::time::timeout(HEARTBEAT, self.answer.next()).await {
                Err(_) => self.writer.heartbeat(events),
                Ok(Some(Ok(delta))) => self.write(delta, events),
                Ok(Some(Err(refusal))) => {
                    self.writer.fail(&self.answer, &refusal, events);
                    self.ended = true;
                    return true;
                }
                Ok(None) => {
                    self.writer.end(&self.answer, events);
                    self.ended = true;
                    self.save().await;
                    return true;
                }
            }
        }
        !events.is_empty()
    }

    fn write(&mut self, delta: Delta, events: &mut Events) {
        if !std::mem::replace(&mut self.begun, true) {
            self.writer.begin(&self.answer, events);
        }
        self.writer.delta(&self.answer, delta, events);
    }

    /// Waits for all of it.
    async fn whole(mut self) -> Result<Value, Refusal> {
        // Of a whole answer nobody reads the events.
        while let Some(delta) = self.answer.next().await {
            self.write(delta?, &mut Events::sse());
        }
        self.writer.end(&self.answer, &mut Events::sse());
        self.save().await;
        Ok(self.writer.whole(&self.answer))
    }

    async fn save(&mut self) {
        let Some(saved) = self.writer.saving() else { return };
        if tokio::time::timeout(SAVE_MAX, saved).await.is_err() {
            tracing::warn!(request = %self.answer.pinned.id, "the disk is slow: an answer left before it was stored");
        }
    }
}

/// The response: a stream, or one object when the answer is complete.
pub async fn respond(answer: Answer, streamed: bool, writer: Box<dyn Writer>) -> Result<Response, Refusal> {
    let decided = decision_headers(&answer);
    let pump = Pump::new(answer, writer);
    let mut response = match streamed {
        true => stream(pump),
        false => super::json_reply(&pump.whole().await?),
    };
    response.headers_mut().extend(decided);
    Ok(response)
}

fn stream(pump: Pump) -> Response {
    let stream = futures_util::stream::unfold(pump, |mut pump| async move {
        let mut events = Events::sse();
        let more = pump.next(&mut events).await;
        more.then(|| (Ok::<_, Infallible>(events.into_bytes()), pump))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(stream)).into_response()
}

/// Who decided: for people at a terminal, and for tests of swaps.
fn decision_headers(answer: &Answer) -> Vec<(HeaderName, HeaderValue)> {
    let pinned = &answer.pinned;
    let worker = pinned.app.workers[pinned.routed.worker].name.as_ref();
    let generation = pinned.policies.id().0.to_string();
    let prefill = pinned.routed.prefill.as_ref();
    let prefill = prefill.map(|prefill| pinned.app.workers[prefill.worker].name.as_ref());
    let chain = Some(pinned.policies.chain().as_ref()).filter(|name| *name != DEFAULT_CHAIN);
    [
        ("x-request-id", pinned.id.as_str()),
        ("request-id", pinned.id.as_str()),
        ("x-pointsman-generation", generation.as_str()),
        ("x-pointsman-worker", worker),
        ("x-pointsman-decided-by", &pinned.routed.decided_by),
    ]
    .into_iter()
    .chain(chain.map(|name| ("x-pointsman-chain", name)))
    .chain(prefill.map(|name| ("x-pointsman-prefill-worker", name)))
    .filter_map(|(name, value)| Some((HeaderName::from_static(name), HeaderValue::from_str(value).ok()?)))
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_lines_of_a_stream() {
        let mut events = Events::sse();
        events.named("ping", &json!({"type": "ping"}));
        events.comment("still computing");
        events.raw(format_args!("[DONE]"));
        let expected = "event: ping\ndata: {\"type\":\"ping\"}\n\n: still computing\n\ndata: [DONE]\n\n";
        assert_eq!(events.into_bytes(), expected);
    }

    #[test]
    fn events_are_frames_without_comments() {
        let mut events = Events::frames();
        events.comment("still computing");
        assert!(events.is_empty());
        events.named("a", &json!({"type": "a"}));
        events.data(&json!("ä"));
        assert_eq!(events.into_frames(), [r#"{"type":"a"}"#, "\"ä\""]);
    }
}
