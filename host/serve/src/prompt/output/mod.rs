//! What a model wrote, taken apart: reasoning, text and tool calls, in order, while it arrives.
//!
//! | family | a call | reasoning |
//! |---|---|---|
//! | `hermes` | `<tool_call>{"name": …, "arguments": …}</tool_call>` | `<think>` |
//! | `qwen-coder` | `<tool_call><function=N><parameter=K>V</parameter></function></tool_call>` | `<think>` |
//! | `llama`, `llama-pythonic` | `{"name": …, "parameters": …}`; `[f(a=1), g()]` | `<think>` |
//! | `mistral`, `mistral-json` | `[TOOL_CALLS]N[ARGS]{…}`; `[TOOL_CALLS][{…}]` | `[THINK]` |
//! | `deepseek`, `deepseek-v3.1`, `deepseek-dsml` | `<｜tool▁call▁begin｜>N<｜tool▁sep｜>{…}`; `<｜DSML｜invoke name="N">` | `<think>` |
//! | `glm` | `<tool_call>N<arg_key>K</arg_key><arg_value>V</arg_value></tool_call>` | `<think>` |
//! | `kimi` | `<\|tool_call_begin\|>functions.N:0<\|tool_call_argument_begin\|>{…}<\|tool_call_end\|>` | `<think>` |
//! | `harmony` | `<\|channel\|>commentary to=functions.N<\|message\|>{…}<\|call\|>` | the analysis channel |
//! | `minimax` | `<minimax:tool_call><invoke name="N"><parameter name="K">V</parameter></invoke>…` | `<think>` |
//! | `gemma` | `<\|tool_call>call:N{k:<\|"\|>v<\|"\|>}<tool_call\|>` | `<\|channel>thought` |
//! | `plain` | – | – |
//!
//! Reasoning opens where no text has begun; later the same letters are text. Calls are looked for only where
//! the request has tools. Newlines around markup belong to it. A body that is no call becomes text, without markup.
//! **Invariant:** the events depend on the text alone, not on how it was cut into pieces, save that one
//! delta may come as several.

mod call;
mod family;
mod gemma;
mod harmony;
mod json_call;
mod marked;
mod mistral;
mod python;
mod scan;
mod schema;
mod sink;
mod syntax;
mod xml;
mod xml_dialects;

use serde_json::Value;

pub use self::family::{Family, ReasoningMarks};
use self::scan::{Lexeme, leading_space, lexeme};
use self::schema::Schemas;
use self::sink::Sink;
pub use self::syntax::{ArgumentStyle, CallSyntax, NameStyle};

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
        /// The id that the model gave it, where its grammar has ids.
        id: Option<String>,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments: JSON, to the byte as written where the model writes JSON.
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

/// Reads from the marker that opens calls to where they end.
trait Body: std::fmt::Debug + Send {
    /// What is looked for from here on.
    fn markers(&self) -> &'static [&'static str];
    /// One of them came.
    fn marker(&mut self, marker: &'static str, sink: &mut Sink) -> Step;
    /// Text without one of them; how many bytes were read. The rest is offered again.
    fn text(&mut self, text: &str, sink: &mut Sink) -> (usize, Step);
    /// No text follows.
    fn finish(&mut self, sink: &mut Sink) -> Ending;
    /// Whether what comes is reasoning.
    fn in_reasoning(&self) -> bool {
        false
    }
}

/// What follows a part of a body.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// More of it.
    More,
    /// Text: the calls are complete.
    Done,
    /// It is no call; this was read of it, and the rest up to the end marker is text, too.
    Malformed(String),
    /// It is no call and has no markup: this is text, and text follows.
    Verbatim(String),
}

/// How a body ends where the answer does.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    Complete,
    Truncated,
    Verbatim(String),
}

/// Takes the text of one sequence apart.
#[derive(Debug)]
pub struct OutputParser {
    family: Family,
    tools: Option<Schemas>,
    state: State,
    /// Text that is not decided yet.
    held: String,
    sink: Sink,
    truncated: bool,
}

#[derive(Debug)]
enum State {
    /// `begun` once something was given out; `newlines` wait.
    Reasoning { begun: bool, newlines: usize },
    /// Newlines after reasoning.
    Gap,
    /// `begun` once something was given out; `space` waits. Reasoning may open `first` of all.
    Text { first: bool, begun: bool, space: String },
    /// In calls, before which `space` stands.
    Call { body: Box<dyn Body>, space: String },
    /// In a body that is no call, up to its end marker.
    Malformed { body: String },
}

impl State {
    const TEXT: Self = Self::Text { first: false, begun: false, space: String::new() };
}

impl OutputParser {
    /// For one sequence. `tools`: those of the request; without any, what would be a call is text.
    /// `in_reasoning`: the prompt ends inside reasoning, so the answer begins with it.
    pub fn new(family: Family, tools: Option<&[Value]>, in_reasoning: bool) -> Self {
        let state = match family.whole(in_reasoning) {
            Some(body) => State::Call { body, space: String::new() },
            None if in_reasoning => State::Reasoning { begun: false, newlines: 0 },
            None => State::Text { first: true, begun: false, space: String::new() },
        };
        let tools = tools.map(Schemas::new);
        Self { family, tools, state, held: String::new(), sink: Sink::default(), truncated: false }
    }

    /// Adds text; what it decides.
    ///
    /// Cost: linear in the text.
    pub fn push(&mut self, text: &str) -> Vec<OutputEvent> {
        let mut held = std::mem::take(&mut self.held);
        held.push_str(text);
        let mut at = 0;
        while at < held.len() {
            match lexeme(&held[at..], self.markers()) {
                Lexeme::Wait => break,
                Lexeme::Marker(marker) => {
                    at += marker.len();
                    self.marker(marker);
                }
                Lexeme::Text(len) => at += self.text(&held[at..at + len]),
            }
        }
        held.drain(..at);
        self.held = held;
        std::mem::take(&mut self.sink.events)
    }

    /// Whether the text so far ends inside reasoning.
    pub fn in_reasoning(&self) -> bool {
        match &self.state {
            State::Reasoning { .. } => true,
            State::Call { body, .. } => body.in_reasoning(),
            _ => false,
        }
    }

    /// Whether the answer ended inside a call. If that call was started, no `CallEnd` was given for it.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// What waited, when no text follows.
    pub fn finish(&mut self) -> Vec<OutputEvent> {
        // What may have become a marker is text.
        let rest = std::mem::take(&mut self.held);
        let mut at = 0;
        while at < rest.len() {
            at += self.text(&rest[at..]);
        }
        match std::mem::replace(&mut self.state, State::Gap) {
            // White space alone is what stands between calls, not an answer.
            State::Text { begun: false, .. } if self.tools.is_some() => {}
            State::Text { space, .. } => self.sink.text(&space),
            State::Malformed { body } => self.sink.text(body.trim()),
            State::Call { mut body, space } => match body.finish(&mut self.sink) {
                Ending::Complete => {}
                Ending::Truncated => self.truncated = true,
                Ending::Verbatim(text) => self.sink.text(&(space + &text)),
            },
            State::Reasoning { .. } | State::Gap => {}
        }
        std::mem::take(&mut self.sink.events)
    }

    /// What is looked for in this state.
    fn markers(&self) -> &'static [&'static str] {
        match &self.state {
            State::Reasoning { .. } => self.family.ends_reasoning(self.tools.is_some()),
            State::Gap => &[],
            State::Text { first, begun, .. } => self.family.in_text(self.tools.is_some(), *first && !*begun),
            State::Call { body, .. } => body.markers(),
            State::Malformed { .. } => self.family.closers(),
        }
    }

    fn marker(&mut self, marker: &'static str) {
        let reasoning = self.family.reasoning();
        let is =
            |side: fn(&ReasoningMarks) -> &'static str| reasoning.as_ref().is_some_and(|r| side(r) == marker);
        match std::mem::replace(&mut self.state, State::Gap) {
            State::Reasoning { .. } if is(|r| r.close) => {}
            State::Reasoning { .. } => self.opened(marker, String::new()),
            State::Text { .. } if is(|r| r.open) => {
                self.state = State::Reasoning { begun: false, newlines: 0 };
            }
            state @ State::Text { .. } if self.family.is_stray(marker) => self.state = state,
            State::Text { begun, space, .. } => {
                self.opened(marker, if begun { String::new() } else { space });
            }
            State::Call { mut body, space } => {
                let step = body.marker(marker, &mut self.sink);
                self.stepped(step, body, space);
            }
            State::Malformed { body } => {
                self.sink.text(body.trim());
                self.state = State::TEXT;
            }
            State::Gap => {}
        }
    }

    fn opened(&mut self, marker: &'static str, space: String) {
        let schemas = self.tools.as_ref().expect("calls are looked for only where there are tools");
        let body = self.family.body(marker, schemas);
        self.state = State::Call { body, space };
    }

    fn stepped(&mut self, step: Step, body: Box<dyn Body>, space: String) {
        self.state = match step {
            Step::More => State::Call { body, space },
            // Models that think between calls open their reasoning again.
            Step::Done => State::Text { first: true, begun: false, space: String::new() },
            Step::Malformed(body) => State::Malformed { body },
            Step::Verbatim(text) => {
                self.sink.text(&(space + &text));
                State::Text { first: false, begun: true, space: String::new() }
            }
        };
    }

    /// Reads text; how many bytes of it.
    fn text(&mut self, text: &str) -> usize {
        match std::mem::replace(&mut self.state, State::Gap) {
            State::Reasoning { begun, newlines } => self.reason(text, begun, newlines),
            State::Gap => {
                let kept = text.trim_start_matches('\n').len();
                if kept > 0 {
                    self.state = State::Text { first: false, begun: false, space: String::new() };
                }
                text.len() - kept
            }
            State::Text { first, begun: false, space } => self.begin(text, first, space),
            State::Text { begun: true, space, .. } => {
                self.say(text, space);
                text.len()
            }
            State::Call { mut body, space } => {
                let (read, step) = body.text(text, &mut self.sink);
                self.stepped(step, body, space);
                read
            }
            State::Malformed { mut body } => {
                body.push_str(text);
                self.state = State::Malformed { body };
                text.len()
            }
        }
    }

    fn reason(&mut self, text: &str, begun: bool, newlines: usize) -> usize {
        let said = if begun { text } else { text.trim_start_matches('\n') };
        let kept = said.trim_end_matches('\n');
        if kept.is_empty() {
            self.state = State::Reasoning { begun, newlines: newlines + said.len() };
            return text.len();
        }
        self.sink.reasoning(&("\n".repeat(newlines) + kept));
        self.state = State::Reasoning { begun: true, newlines: said.len() - kept.len() };
        text.len()
    }

    /// Text before anything has been said.
    fn begin(&mut self, text: &str, first: bool, mut space: String) -> usize {
        let blank = leading_space(text);
        space.push_str(&text[..blank]);
        let rest = &text[blank..];
        if rest.is_empty() {
            self.state = State::Text { first, begun: false, space };
            return blank;
        }
        if self.tools.is_some()
            && let Some(body) = self.family.bare(rest)
        {
            self.state = State::Call { body, space };
            return blank;
        }
        self.say(rest, space);
        text.len()
    }

    /// Text goes out, save newlines that may belong to the markup of a call.
    fn say(&mut self, text: &str, mut space: String) {
        space.push_str(text);
        let most = if self.tools.is_some() { self.family.newlines() } else { 0 };
        let newlines = (space.len() - space.trim_end_matches('\n').len()).min(most);
        let waiting = space.split_off(space.len() - newlines);
        self.sink.text(&space);
        self.state = State::Text { first: false, begun: true, space: waiting };
    }
}

#[cfg(test)]
mod tests;
