//! Mistral's calls, old and new.
//!
//! ```text
//! [TOOL_CALLS][{"name": …, "arguments": …, "id": …}, …]      [TOOL_CALLS]NAME[CALL_ID]ID[ARGS]{…}[TOOL_CALLS]…
//! ```
//!
//! In a list, an id that stands behind the arguments is dropped: the call has gone out by then, with a minted one.
//! **Invariant:** arguments are passed on as they stand, while they arrive.

use super::json_call::JsonCall;
use super::scan::{JsonSpan, leading_space};
use super::sink::Sink;
use super::{Body, Ending, Step};

pub(super) const OPEN: &str = "[TOOL_CALLS]";
const ID: &str = "[CALL_ID]";
const ARGUMENTS: &str = "[ARGS]";

/// Reads what follows `[TOOL_CALLS]`.
#[derive(Debug, Default)]
pub(super) struct Mistral {
    at: At,
    name: String,
    id: Option<String>,
}

#[derive(Debug, Default)]
enum At {
    #[default]
    Open,
    Name,
    Id,
    Lead,
    Arguments(JsonSpan),
    List(JsonCall),
}

impl Mistral {
    fn malformed(&mut self) -> Step {
        // Its end marker, if any, is not known: what stands there is text.
        Step::Verbatim(std::mem::take(&mut self.name))
    }

    fn arguments(&mut self, text: &str, sink: &mut Sink) -> (usize, Step) {
        let At::Arguments(span) = &mut self.at else { return (0, Step::Done) };
        let (len, ended) = span.pass(text, sink);
        (len, if ended { Step::Done } else { Step::More })
    }
}

impl Body for Mistral {
    fn markers(&self) -> &'static [&'static str] {
        match &self.at {
            At::Name => &[ID, ARGUMENTS, OPEN],
            At::Id => &[ARGUMENTS, OPEN],
            At::List(_) | At::Open | At::Lead | At::Arguments(_) => &[],
        }
    }

    fn marker(&mut self, marker: &'static str, sink: &mut Sink) -> Step {
        match marker {
            ID => self.at = At::Id,
            ARGUMENTS => self.at = At::Lead,
            _ => {
                sink.text(self.name.trim());
                *self = Self::default();
            }
        }
        Step::More
    }

    fn text(&mut self, text: &str, sink: &mut Sink) -> (usize, Step) {
        match &mut self.at {
            At::Open => {
                let blank = leading_space(text);
                match text[blank..].chars().next() {
                    None => (blank, Step::More),
                    Some('[') => {
                        self.at = At::List(JsonCall::list());
                        (blank + 1, Step::More)
                    }
                    Some('{') => {
                        self.at = At::List(JsonCall::list());
                        (blank, Step::More)
                    }
                    Some(_) => {
                        self.at = At::Name;
                        (blank, Step::More)
                    }
                }
            }
            At::Name => {
                let len = text.find('{').unwrap_or(text.len());
                self.name.push_str(&text[..len]);
                if len < text.len() {
                    self.at = At::Lead;
                }
                (len, Step::More)
            }
            At::Id => {
                self.id.get_or_insert_default().push_str(text);
                (text.len(), Step::More)
            }
            At::Lead => {
                let blank = leading_space(text);
                if blank == text.len() {
                    return (blank, Step::More);
                }
                let name = self.name.trim();
                let sound = !name.is_empty() && !name.contains(char::is_whitespace);
                if !sound || !text[blank..].starts_with('{') {
                    return (blank, self.malformed());
                }
                let id = self.id.take().map(|id| id.trim().to_owned()).filter(|id| !id.is_empty());
                sink.start(id, name.to_owned());
                self.at = At::Arguments(JsonSpan::default());
                (blank, Step::More)
            }
            At::Arguments(_) => self.arguments(text, sink),
            At::List(list) => list.text(text, sink),
        }
    }

    fn finish(&mut self, sink: &mut Sink) -> Ending {
        match &mut self.at {
            At::List(list) => list.finish(sink),
            At::Name if self.name.trim().contains(char::is_whitespace) => {
                Ending::Verbatim(std::mem::take(&mut self.name))
            }
            _ => Ending::Truncated,
        }
    }
}
