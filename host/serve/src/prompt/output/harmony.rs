//! Harmony, the format of gpt-oss: an answer is messages, each with a channel and perhaps a recipient.
//!
//! ```text
//! <|channel|>analysis<|message|> … <|end|><|start|>assistant<|channel|>commentary to=functions.N <|constrain|>json<|message|>{…}<|call|>
//! ```
//!
//! What goes to the analysis channel is reasoning, what has a recipient is a call, all else is text.
//! `<|call|>` and `<|return|>` end the output, so a call is complete with its last bracket.
//! **Invariant:** no header and no marker comes out; a call's arguments are passed on as they stand.

use super::scan::{JsonSpan, leading_space};
use super::sink::Sink;
use super::{Body, Ending, Step};

const MESSAGE: &str = "<|message|>";
const CONSTRAIN: &str = "<|constrain|>";
const CHANNEL: &str = "<|channel|>";
const START: &str = "<|start|>";

/// Every marker, in headers and in contents alike.
pub(super) const MARKERS: &[&str] =
    &[MESSAGE, CHANNEL, START, CONSTRAIN, "<|end|>", "<|call|>", "<|return|>"];

/// Reads all messages of an answer.
#[derive(Debug)]
pub(super) struct Harmony {
    at: At,
    header: String,
}

#[derive(Debug)]
enum At {
    /// Nothing yet: a header, or text where the model leaves it out.
    Open,
    Header,
    Analysis,
    Text,
    /// Before the first bracket of a call.
    Lead,
    Arguments(JsonSpan),
    /// In a call that takes code, as tools of the model's own do.
    Code,
    /// After a message.
    Between,
}

impl Harmony {
    /// From the beginning of an answer, or inside analysis.
    pub(super) fn new(in_reasoning: bool) -> Self {
        Self { at: if in_reasoning { At::Analysis } else { At::Open }, header: String::new() }
    }

    /// What a header announces.
    fn content(&mut self, sink: &mut Sink) -> At {
        let header = std::mem::take(&mut self.header);
        let to = header.split_whitespace().find_map(|word| word.strip_prefix("to="));
        if let Some(to) = to.filter(|to| *to != "assistant" && !to.is_empty()) {
            sink.start(None, to.strip_prefix("functions.").unwrap_or(to).to_owned());
            return At::Lead;
        }
        if header.contains("analysis") { At::Analysis } else { At::Text }
    }

    fn lead(&mut self, text: &str) -> (usize, Step) {
        let blank = leading_space(text);
        if blank < text.len() {
            if text[blank..].starts_with(['{', '[']) {
                self.at = At::Arguments(JsonSpan::default());
            } else {
                self.at = At::Code;
            }
        }
        (blank, Step::More)
    }
}

impl Body for Harmony {
    fn markers(&self) -> &'static [&'static str] {
        // A string may contain any of them.
        if matches!(self.at, At::Arguments(_)) { &[] } else { MARKERS }
    }

    fn marker(&mut self, marker: &'static str, sink: &mut Sink) -> Step {
        if sink.in_call() {
            sink.arguments(if matches!(self.at, At::Lead) { "{}" } else { "" });
            sink.end();
        }
        match (&self.at, marker) {
            (At::Header | At::Open, MESSAGE) => self.at = self.content(sink),
            (At::Header | At::Open, CONSTRAIN) => self.header.push(' '),
            (At::Header | At::Open, CHANNEL) => {
                self.header.push(' ');
                self.at = At::Header;
            }
            (_, CHANNEL | START) => {
                self.header.clear();
                self.at = At::Header;
            }
            (_, MESSAGE | CONSTRAIN) => {}
            _ => {
                self.header.clear();
                self.at = At::Between;
            }
        }
        Step::More
    }

    fn text(&mut self, text: &str, sink: &mut Sink) -> (usize, Step) {
        match &mut self.at {
            At::Open => {
                self.header.push_str(text);
                let said = self.header.trim_start();
                let known = said.len().min(3);
                if said.as_bytes()[..known] == b"to="[..known] {
                    return (text.len(), Step::More);
                }
                sink.text(&std::mem::take(&mut self.header));
                self.at = At::Text;
            }
            At::Header => self.header.push_str(text),
            At::Analysis => sink.reasoning(text),
            At::Text => sink.text(text),
            At::Code => sink.arguments(text),
            At::Lead => return self.lead(text),
            At::Arguments(span) => {
                let (len, ended) = span.pass(text, sink);
                if ended {
                    self.at = At::Between;
                }
                return (len, Step::More);
            }
            At::Between => {}
        }
        (text.len(), Step::More)
    }

    fn finish(&mut self, sink: &mut Sink) -> Ending {
        match self.at {
            At::Open => Ending::Verbatim(std::mem::take(&mut self.header)),
            At::Lead | At::Code | At::Arguments(_) if sink.in_call() => Ending::Truncated,
            _ => Ending::Complete,
        }
    }

    fn in_reasoning(&self) -> bool {
        matches!(self.at, At::Analysis)
    }
}
