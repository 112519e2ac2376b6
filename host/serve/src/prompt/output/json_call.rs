//! Calls that are JSON objects with a name: Hermes, Qwen, Llama, and Mistral's list of them.
//!
//! ```text
//! <tool_call>{"name": …, "arguments": …}</tool_call>      [TOOL_CALLS][{…}, {…}]      {"name": …, "parameters": …}
//! ```
//!
//! **Invariant:** an object that is no call comes back as it was.

use super::call::{CallReader, End};
use super::scan::leading_noise;
use super::sink::Sink;
use super::{Body, Ending, Step};

/// Reads objects up to an end marker, if the family has one.
#[derive(Debug)]
pub(super) struct JsonCall {
    closers: &'static [&'static str],
    reader: Option<CallReader>,
    /// What stood there is text where it is no call.
    bare: bool,
    /// More objects may follow in the same body.
    list: bool,
}

impl JsonCall {
    /// One object between markers.
    pub(super) fn between(closers: &'static [&'static str]) -> Self {
        Self { closers, reader: Some(CallReader::default()), bare: false, list: false }
    }

    /// Objects in a list, whose opening bracket is read.
    pub(super) fn list() -> Self {
        Self { list: true, ..Self::between(&[]) }
    }

    /// An object that stands in the open.
    pub(super) fn bare() -> Self {
        Self { closers: &[], reader: Some(CallReader::strict()), bare: true, list: false }
    }

    fn tail(&mut self, text: &str) -> (usize, Step) {
        let noise = leading_noise(text);
        match text[noise..].chars().next() {
            None => (noise, Step::More),
            Some('{') if self.list => {
                self.reader = Some(CallReader::default());
                (noise, Step::More)
            }
            // Where the end marker is missing, what follows is text or the next call.
            Some(_) => (noise, Step::Done),
        }
    }
}

impl Body for JsonCall {
    fn markers(&self) -> &'static [&'static str] {
        if self.reader.is_some() { &[] } else { self.closers }
    }

    fn marker(&mut self, _: &'static str, _: &mut Sink) -> Step {
        Step::Done
    }

    fn text(&mut self, text: &str, sink: &mut Sink) -> (usize, Step) {
        let Some(reader) = &mut self.reader else { return self.tail(text) };
        let progress = reader.push(text);
        if let Some(name) = progress.name {
            sink.start(progress.id, name);
        }
        sink.arguments(&progress.arguments);
        match progress.end {
            None => (text.len(), Step::More),
            Some(End::Call { rest }) => {
                sink.end();
                self.reader = None;
                (text.len() - rest.len(), Step::More)
            }
            Some(End::Malformed { body, rest }) => {
                let step = if self.bare { Step::Verbatim(body) } else { Step::Malformed(body) };
                (text.len() - rest.len(), step)
            }
        }
    }

    fn finish(&mut self, _: &mut Sink) -> Ending {
        match &mut self.reader {
            None => Ending::Complete,
            Some(reader) if self.bare => reader.unstarted().map_or(Ending::Truncated, Ending::Verbatim),
            Some(_) => Ending::Truncated,
        }
    }
}
