//! Calls whose parts stand between special tokens, their arguments in JSON: Kimi K2, DeepSeek V3, R1 and V3.1.
//!
//! ```text
//! section ( call HEAD separator [LEAD] {…} end )… section-end
//! ```
//!
//! The name is in the head, or in DeepSeek's first form in the lead: `function<sep>NAME\n` and a fence.
//! **Invariant:** arguments are passed on as they stand, while they arrive.

use super::scan::{JsonSpan, leading_noise, leading_space};
use super::sink::Sink;
use super::{Body, Ending, Step};

/// The tokens of a family.
#[derive(Debug)]
pub(super) struct Marks {
    pub(super) call: &'static str,
    pub(super) separator: &'static str,
    pub(super) end: &'static str,
    /// All of them, those of the section included.
    pub(super) all: &'static [&'static str],
    /// Whether the head is an id, `functions.NAME:INDEX`.
    pub(super) has_ids: bool,
}

pub(super) const KIMI: Marks = Marks {
    call: "<|tool_call_begin|>",
    separator: "<|tool_call_argument_begin|>",
    end: "<|tool_call_end|>",
    all: &[
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        "<|tool_calls_section_begin|>",
        "<|tool_call_section_begin|>",
        "<|tool_calls_section_end|>",
        "<|tool_call_section_end|>",
    ],
    has_ids: true,
};

pub(super) const DEEPSEEK: Marks = Marks {
    call: "<｜tool▁call▁begin｜>",
    separator: "<｜tool▁sep｜>",
    end: "<｜tool▁call▁end｜>",
    all: &[
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
    ],
    has_ids: false,
};

/// Reads a section.
#[derive(Debug)]
pub(super) struct Marked {
    marks: &'static Marks,
    at: At,
    /// Head of the call at hand.
    head: String,
    /// What stands between separator and arguments.
    lead: String,
    calls: bool,
}

#[derive(Debug)]
enum At {
    Between,
    Head,
    Lead,
    Arguments(JsonSpan),
}

impl Marked {
    /// After the marker that opens a section or, where that is missing, a call.
    pub(super) fn new(marks: &'static Marks, opener: &str) -> Self {
        let at = if opener == marks.call { At::Head } else { At::Between };
        Self { marks, at, head: String::new(), lead: String::new(), calls: false }
    }

    /// Id and name of the call at hand; none where no name stands there.
    fn name(&self) -> Option<(Option<String>, String)> {
        let (head, lead) = (self.head.trim(), self.lead.trim());
        if self.marks.has_ids {
            let name = head.strip_prefix("functions.").unwrap_or(head);
            let numbered = name
                .rsplit_once(':')
                .filter(|(_, index)| !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit()));
            let (id, name) = numbered.map_or((None, name), |(name, _)| (Some(head.to_owned()), name));
            return (!name.is_empty()).then(|| (id, name.to_owned()));
        }
        // A fence alone is no name.
        let named = lead.lines().next().map(str::trim).filter(|line| !line.starts_with("```"));
        let name = named.unwrap_or(head);
        (!name.is_empty()).then(|| (None, name.to_owned()))
    }

    fn malformed(&mut self) -> Step {
        Step::Malformed(std::mem::take(&mut self.head) + &std::mem::take(&mut self.lead))
    }

    /// A marker before any arguments: a call without them if its name is certain.
    fn without_arguments(&mut self, marker: &str, sink: &mut Sink) -> Step {
        let named = self.name().filter(|_| matches!(self.at, At::Lead) && marker == self.marks.end);
        let Some((id, name)) = named else {
            let text = format!("{}{}", self.head.trim(), self.lead.trim());
            sink.text(&text);
            return self.between(marker);
        };
        sink.start(id, name);
        sink.arguments("{}");
        sink.end();
        self.calls = true;
        self.between(marker)
    }

    fn between(&mut self, marker: &str) -> Step {
        self.head.clear();
        self.lead.clear();
        let marks = self.marks;
        self.at = if marker == marks.call { At::Head } else { At::Between };
        if marker.contains("section_end") || marker.contains("calls▁end") { Step::Done } else { Step::More }
    }
}

impl Body for Marked {
    fn markers(&self) -> &'static [&'static str] {
        // A string may contain any of them.
        if matches!(self.at, At::Arguments(_)) { &[] } else { self.marks.all }
    }

    fn marker(&mut self, marker: &'static str, sink: &mut Sink) -> Step {
        match self.at {
            At::Head if marker == self.marks.separator => {
                self.at = At::Lead;
                Step::More
            }
            At::Head | At::Lead => self.without_arguments(marker, sink),
            At::Between | At::Arguments(_) => self.between(marker),
        }
    }

    fn text(&mut self, text: &str, sink: &mut Sink) -> (usize, Step) {
        match &mut self.at {
            At::Between => {
                let blank = if self.calls { leading_noise(text) } else { leading_space(text) };
                (blank, if blank < text.len() { Step::Done } else { Step::More })
            }
            At::Head => {
                self.head.push_str(text);
                (text.len(), Step::More)
            }
            At::Lead => {
                let len = text.find('{').unwrap_or(text.len());
                self.lead.push_str(&text[..len]);
                if len == text.len() {
                    return (len, Step::More);
                }
                let Some((id, name)) = self.name() else { return (len, self.malformed()) };
                sink.start(id, name);
                self.at = At::Arguments(JsonSpan::default());
                (len, Step::More)
            }
            At::Arguments(span) => {
                let (len, ended) = span.pass(text, sink);
                if ended {
                    self.calls = true;
                    self.head.clear();
                    self.lead.clear();
                    self.at = At::Between;
                }
                (len, Step::More)
            }
        }
    }

    fn finish(&mut self, _: &mut Sink) -> Ending {
        if matches!(self.at, At::Between) && self.calls { Ending::Complete } else { Ending::Truncated }
    }
}
