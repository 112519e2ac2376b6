//! What a model wrote, taken apart: reasoning, text and tool calls, in order, while it arrives.
//!
//! ```text
//! <think>\n reasoning \n</think>\n\n text \n<tool_call>\n{"name": …, "arguments": …}\n</tool_call> …
//! ```
//!
//! The format of Hermes and of Qwen 2.5 and 3. Reasoning opens at the start of an answer only; later the
//! same letters are text. Calls are looked for only where the request has tools, and not inside reasoning.
//! Newlines that the template puts around the markup belong to it. A body that is no call becomes text,
//! without the markup around it: nothing that a model wrote is lost without a trace.
//! **Invariant:** the events depend on the text alone, not on how it was cut into pieces, save that one
//! delta may come as several.

mod call;
mod syntax;

use self::call::{CallReader, End};
pub use self::syntax::{ArgumentStyle, CallSyntax, NameStyle};

pub(super) const THINK_OPEN: &str = "<think>";
pub(super) const THINK_CLOSE: &str = "</think>";
pub(super) const CALL_OPEN: &str = "<tool_call>";
pub(super) const CALL_CLOSE: &str = "</tool_call>";

/// A part of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OutputEvent {
    /// More reasoning.
    Reasoning(String),
    /// More text of the answer.
    Text(String),
    /// A tool call begins. The name is as written, whether or not such a tool exists.
    CallStart {
        /// Which call of the answer, from 0.
        index: u32,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments: JSON, to the byte as written.
    CallArguments {
        /// Which call.
        index: u32,
        /// The next part.
        delta: String,
    },
    /// A tool call is complete.
    CallEnd {
        /// Which call.
        index: u32,
    },
}

/// Takes the text of one sequence apart.
#[derive(Debug)]
pub struct OutputParser {
    tools: bool,
    state: State,
    /// Text that is not decided yet.
    held: String,
    calls: u32,
    truncated: bool,
}

#[derive(Debug)]
enum State {
    /// Nothing but white space yet.
    Start,
    /// `begun` once something was given out.
    Reasoning { begun: bool },
    /// Newlines after reasoning.
    Gap,
    /// `begun` once something was given out.
    Text { begun: bool },
    /// In a call.
    Call(Box<CallReader>),
    /// In a body that is no call, up to its end marker.
    Malformed { body: String },
    /// After a call's last bracket, up to its end marker.
    Tail,
}

/// What may stand between a call and its end marker: brackets too many, mostly.
const TAIL_NOISE: &[char] = &['}', ']', ')', '"', ',', ';'];

/// Whether a state goes on at once or waits for text.
type Ready = bool;

impl OutputParser {
    /// For one sequence. `tools`: the request has some, otherwise `<tool_call>` is text. `in_reasoning`: the
    /// prompt ends inside `<think>`, so the answer begins with reasoning.
    pub fn new(tools: bool, in_reasoning: bool) -> Self {
        let state = if in_reasoning { State::Reasoning { begun: false } } else { State::Start };
        Self { tools, state, held: String::new(), calls: 0, truncated: false }
    }

    /// Adds text; what it decides.
    ///
    /// Cost: linear in the text.
    pub fn push(&mut self, text: &str) -> Vec<OutputEvent> {
        let mut out = Vec::new();
        self.held.push_str(text);
        while self.advance(&mut out) {}
        out
    }

    /// Whether the text so far ends inside reasoning.
    pub fn in_reasoning(&self) -> bool {
        matches!(self.state, State::Reasoning { .. })
    }

    /// Whether the answer ended inside a call. If that call was started, no `CallEnd` was given for it.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// What waited, when no text follows.
    pub fn finish(&mut self) -> Vec<OutputEvent> {
        let mut events = Vec::new();
        let out = &mut events;
        let rest = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.state, State::Gap) {
            State::Start if self.tools && rest.trim().is_empty() => {}
            State::Start => text(&rest, out),
            State::Reasoning { .. } => reasoning(rest.trim_end_matches('\n'), out),
            // White space alone is what stands between calls, not an answer.
            State::Text { begun: false } if self.tools && rest.trim().is_empty() => {}
            State::Text { .. } => text(&rest, out),
            State::Malformed { body } => text((body + &rest).trim(), out),
            State::Call(_) => self.truncated = true,
            State::Gap | State::Tail => {}
        }
        events
    }

    /// Does what the held text decides in this state.
    fn advance(&mut self, out: &mut Vec<OutputEvent>) -> Ready {
        match std::mem::replace(&mut self.state, State::Start) {
            State::Start => self.start(),
            State::Reasoning { begun } => self.reasoning(begun, out),
            State::Gap => self.gap(),
            State::Text { begun } => self.text(begun, out),
            State::Call(call) => self.call(call, out),
            State::Malformed { body } => self.malformed(body, out),
            State::Tail => self.tail(),
        }
    }

    fn become_state(&mut self, state: State, ready: Ready) -> Ready {
        self.state = state;
        ready
    }

    fn start(&mut self) -> Ready {
        let begun = self.held.trim_start();
        if let Some(rest) = begun.strip_prefix(THINK_OPEN) {
            self.held = rest.to_owned();
            return self.become_state(State::Reasoning { begun: false }, true);
        }
        if THINK_OPEN.starts_with(begun) {
            return self.become_state(State::Start, false);
        }
        self.become_state(State::Text { begun: false }, true)
    }

    fn reasoning(&mut self, mut begun: bool, out: &mut Vec<OutputEvent>) -> Ready {
        if !begun {
            drop_leading(&mut self.held, '\n');
        }
        let closed = self.held.find(THINK_CLOSE);
        let end = closed.unwrap_or_else(|| self.held.len() - beginning_of(THINK_CLOSE, &self.held));
        let certain = self.held[..end].trim_end_matches('\n').len();
        reasoning(&self.held[..certain], out);
        begun |= certain > 0;
        match closed {
            Some(at) => {
                self.held.drain(..at + THINK_CLOSE.len());
                self.become_state(State::Gap, true)
            }
            None => {
                self.held.drain(..certain);
                self.become_state(State::Reasoning { begun }, false)
            }
        }
    }

    fn gap(&mut self) -> Ready {
        drop_leading(&mut self.held, '\n');
        if self.held.is_empty() {
            return self.become_state(State::Gap, false);
        }
        self.become_state(State::Text { begun: false }, true)
    }

    fn text(&mut self, begun: bool, out: &mut Vec<OutputEvent>) -> Ready {
        if !self.tools {
            text(&std::mem::take(&mut self.held), out);
            return self.become_state(State::Text { begun: true }, false);
        }
        let opened = self.held.find(CALL_OPEN);
        let end = opened.unwrap_or_else(|| self.held.len() - beginning_of(CALL_OPEN, &self.held));
        // One newline before a call is the template's.
        let certain = self.held[..end].strip_suffix('\n').map_or(end, str::len);
        let begun = begun || !self.held[..certain].trim().is_empty();
        if begun {
            text(&self.held[..certain], out);
        }
        match opened {
            Some(at) => {
                self.held.drain(..at + CALL_OPEN.len());
                self.become_state(State::Call(Box::default()), true)
            }
            None => {
                self.held.drain(..if begun { certain } else { 0 });
                self.become_state(State::Text { begun }, false)
            }
        }
    }

    fn call(&mut self, mut call: Box<CallReader>, out: &mut Vec<OutputEvent>) -> Ready {
        let index = self.calls;
        let progress = call.push(&std::mem::take(&mut self.held));
        if let Some(name) = progress.name {
            out.push(OutputEvent::CallStart { index, name });
        }
        if !progress.arguments.is_empty() {
            out.push(OutputEvent::CallArguments { index, delta: progress.arguments });
        }
        match progress.end {
            None => self.become_state(State::Call(call), false),
            Some(End::Call { rest }) => {
                out.push(OutputEvent::CallEnd { index });
                self.calls += 1;
                self.held = rest;
                self.become_state(State::Tail, true)
            }
            Some(End::Malformed { body, rest }) => {
                self.held = rest;
                self.become_state(State::Malformed { body }, true)
            }
        }
    }

    fn malformed(&mut self, mut body: String, out: &mut Vec<OutputEvent>) -> Ready {
        let closed = self.held.find(CALL_CLOSE);
        let end = closed.unwrap_or_else(|| self.held.len() - beginning_of(CALL_CLOSE, &self.held));
        body.push_str(&self.held[..end]);
        self.held.drain(..end);
        if closed.is_none() {
            return self.become_state(State::Malformed { body }, false);
        }
        text(body.trim(), out);
        self.held.drain(..CALL_CLOSE.len());
        self.become_state(State::Text { begun: false }, true)
    }

    fn tail(&mut self) -> Ready {
        let noise = |c: char| c.is_whitespace() || TAIL_NOISE.contains(&c);
        let rest = self.held.trim_start_matches(noise);
        if rest.is_empty() || CALL_CLOSE.starts_with(rest) && rest != CALL_CLOSE {
            return self.become_state(State::Tail, false);
        }
        // Where the end marker is missing, what follows is text or the next call.
        self.held = rest.strip_prefix(CALL_CLOSE).unwrap_or(rest).to_owned();
        self.become_state(State::Text { begun: false }, true)
    }
}

fn text(delta: &str, out: &mut Vec<OutputEvent>) {
    if !delta.is_empty() {
        out.push(OutputEvent::Text(delta.to_owned()));
    }
}

fn reasoning(delta: &str, out: &mut Vec<OutputEvent>) {
    if !delta.is_empty() {
        out.push(OutputEvent::Reasoning(delta.to_owned()));
    }
}

fn drop_leading(text: &mut String, c: char) {
    let kept = text.trim_start_matches(c).len();
    text.drain(..text.len() - kept);
}

/// Bytes at the end of `text` that may be the beginning of `marker`.
fn beginning_of(marker: &str, text: &str) -> usize {
    let most = (marker.len() - 1).min(text.len());
    (1..=most).rev().find(|&len| text.as_bytes().ends_with(&marker.as_bytes()[..len])).unwrap_or(0)
}

#[cfg(test)]
mod tests;
