//! Where parsers put what they found.
//!
//! **Invariant:** calls are numbered in order, and each ends before the next part begins.

use super::OutputEvent;

/// Events on their way out.
#[derive(Debug, Default)]
pub(super) struct Sink {
    pub(super) events: Vec<OutputEvent>,
    calls: u32,
    open: bool,
}

impl Sink {
    pub(super) fn text(&mut self, delta: &str) {
        if !delta.is_empty() {
            self.events.push(OutputEvent::Text(delta.to_owned()));
        }
    }

    pub(super) fn reasoning(&mut self, delta: &str) {
        if !delta.is_empty() {
            self.events.push(OutputEvent::Reasoning(delta.to_owned()));
        }
    }

    pub(super) fn start(&mut self, id: Option<String>, name: String) {
        assert!(!self.open, "a call begins after the one before it");
        self.open = true;
        self.events.push(OutputEvent::CallStart { index: self.calls, id, name });
    }

    pub(super) fn arguments(&mut self, delta: &str) {
        if !delta.is_empty() {
            self.events.push(OutputEvent::CallArguments { index: self.calls, delta: delta.to_owned() });
        }
    }

    pub(super) fn end(&mut self) {
        assert!(self.open, "a call ends after it began");
        self.open = false;
        self.events.push(OutputEvent::CallEnd { index: self.calls });
        self.calls += 1;
    }

    /// Whether a call has begun and not ended.
    pub(super) fn in_call(&self) -> bool {
        self.open
    }
}
