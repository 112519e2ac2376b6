//! Calls whose parameters are elements: Qwen3-Coder, MiniMax, DeepSeek's DSML and GLM.
//!
//! ```text
//! section ( CALL name NAME-END ( PARAMETER key KEY-END [VALUE] value CLOSE )… END )… section-end
//! ```
//!
//! Arguments are assembled as JSON in the order they are written; a value's type is that of the tool's schema.
//! A value's end counts only where the next parameter or the call's end follows: before that, it is a part
//! of the value, which may speak of markup.
//! **Invariant:** a value of text is passed on while it arrives; any other once it is complete.

use super::json_call::JsonCall;
use super::scan::{JsonSpan, leading_space};
use super::schema::{Schemas, Types, escaped, quoted};
use super::sink::Sink;
use super::{Body, Ending, Step};

/// Chosen: no template puts more white space between two elements.
const SPACE_MAX: usize = 64;
/// Chosen: longer names are text without an end in sight.
const NAME_MAX: usize = 256;

/// The pieces of a family.
#[derive(Debug)]
pub(super) struct Dialect {
    /// Before a name; empty where the section's marker is the call's.
    pub(super) call: &'static str,
    pub(super) parameter: &'static str,
    /// Before a value, if anything.
    pub(super) value: &'static [&'static str],
    pub(super) end: &'static str,
    /// What is looked for between calls, after a name, after a parameter, after a key, and after a value.
    pub(super) between: &'static [&'static str],
    pub(super) after_name: &'static [&'static str],
    pub(super) elements: &'static [&'static str],
    pub(super) after_key: &'static [&'static str],
    pub(super) close: &'static [&'static str],
    /// Whether a newline on each side of a value is markup.
    pub(super) newlines: bool,
    /// What a value is of which no schema speaks.
    pub(super) unknown: Types,
    /// End markers of a JSON object that stands there instead, if that happens.
    pub(super) json: Option<&'static [&'static str]>,
}

/// Reads a section.
#[derive(Debug)]
pub(super) struct Xml {
    dialect: &'static Dialect,
    schemas: Schemas,
    at: At,
    name: String,
    key: String,
    types: Types,
    /// A value that is not text, or white space after one that may have ended.
    value: String,
    space: String,
    /// A newline that may be the last of a value.
    newline: bool,
    /// Nothing of the value has come.
    fresh: bool,
    parameters: usize,
    calls: usize,
}

#[derive(Debug)]
enum At {
    Between,
    Name,
    Elements,
    Key,
    BeforeValue,
    Value,
    Closing,
    Object(JsonSpan),
    Json(JsonCall),
}

impl Xml {
    /// After the marker that opens a section or, where that is missing, a call.
    pub(super) fn new(dialect: &'static Dialect, opener: &str, schemas: &Schemas) -> Self {
        let at = if dialect.call.is_empty() || opener == dialect.call { At::Name } else { At::Between };
        Self {
            dialect,
            schemas: schemas.clone(),
            at,
            name: String::new(),
            key: String::new(),
            types: Types::TEXT,
            value: String::new(),
            space: String::new(),
            newline: false,
            fresh: false,
            parameters: 0,
            calls: 0,
        }
    }

    fn named(&mut self, marker: &str, sink: &mut Sink) -> Step {
        let name = self.name.trim().trim_matches('"');
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '<') {
            return Step::Malformed(std::mem::take(&mut self.name));
        }
        sink.start(None, name.to_owned());
        self.name = name.to_owned();
        self.parameters = 0;
        self.element(marker, sink)
    }

    /// A marker inside a call, outside its values.
    fn element(&mut self, marker: &str, sink: &mut Sink) -> Step {
        self.at = At::Elements;
        if marker == self.dialect.parameter {
            self.key.clear();
            self.at = At::Key;
        } else if marker == self.dialect.end || !self.dialect.after_name.contains(&marker) {
            // The section's end comes where the call's is missing.
            self.end(sink);
            let closed = self.dialect.call.is_empty() || marker != self.dialect.end;
            return if closed { Step::Done } else { Step::More };
        }
        Step::More
    }

    fn end(&mut self, sink: &mut Sink) {
        sink.arguments(if self.parameters == 0 { "{}" } else { "}" });
        sink.end();
        self.name.clear();
        self.calls += 1;
        self.at = At::Between;
    }

    fn key(&mut self, marker: &str, sink: &mut Sink) {
        let key = self.key.trim().trim_matches('"').to_owned();
        self.types = if marker.contains("=\"true\"") {
            Types::TEXT
        } else if marker.contains("=\"false\"") {
            Types::JSON
        } else {
            self.schemas.types(&self.name, &key).or(self.dialect.unknown)
        };
        let comma = if self.parameters == 0 { "{" } else { ", " };
        self.parameters += 1;
        self.key = format!("{comma}{}: ", quoted(&key));
        self.at = At::BeforeValue;
        if self.dialect.value.is_empty() {
            self.value_begins(sink);
        }
    }

    fn value_begins(&mut self, sink: &mut Sink) {
        if self.types.is_text() {
            sink.arguments(&format!("{}\"", self.key));
        }
        self.value.clear();
        self.newline = false;
        self.fresh = true;
        self.at = At::Value;
    }

    fn value(&mut self, text: &str, sink: &mut Sink) {
        if text.is_empty() {
            return;
        }
        let fresh = std::mem::replace(&mut self.fresh, false);
        let text =
            if fresh && self.dialect.newlines { text.strip_prefix('\n').unwrap_or(text) } else { text };
        if text.is_empty() {
            return;
        }
        let mut said =
            if std::mem::replace(&mut self.newline, false) { "\n".to_owned() } else { String::new() };
        said.push_str(text);
        if self.dialect.newlines && said.ends_with('\n') {
            self.newline = true;
            said.pop();
        }
        if self.types.is_text() {
            sink.arguments(&escaped(&said));
        } else {
            self.value.push_str(&said);
        }
    }

    fn value_ends(&mut self, sink: &mut Sink) {
        if self.types.is_text() {
            sink.arguments("\"");
        } else {
            sink.arguments(&format!("{}{}", self.key, self.types.json(&self.value)));
        }
    }

    fn between(&mut self, text: &str) -> (usize, Step) {
        let blank = leading_space(text);
        if blank == text.len() {
            return (blank, Step::More);
        }
        if self.calls > 0 {
            return (blank, Step::Done);
        }
        match self.dialect.json {
            Some(closers) if text[blank..].starts_with('{') => {
                self.at = At::Json(JsonCall::between(closers));
                (blank, Step::More)
            }
            _ => (blank, Step::Malformed(String::new())),
        }
    }

    fn elements(&mut self, text: &str) -> (usize, Step) {
        let blank = leading_space(text);
        if self.parameters == 0 && text[blank..].starts_with('{') {
            self.parameters = 1;
            self.at = At::Object(JsonSpan::default());
            return (blank, Step::More);
        }
        // What stands between parameters is no part of a call that has begun.
        let object = text.find('{').filter(|_| self.parameters == 0);
        (object.unwrap_or(text.len()), Step::More)
    }

    fn object(&mut self, text: &str, sink: &mut Sink) -> (usize, Step) {
        let At::Object(span) = &mut self.at else { return (0, Step::More) };
        let (len, ended) = span.pass(text, sink);
        if ended {
            self.name.clear();
            self.calls += 1;
            self.at = At::Between;
        }
        (len, Step::More)
    }

    fn closing(&mut self, text: &str, sink: &mut Sink) -> (usize, Step) {
        let blank = leading_space(text);
        self.space.push_str(&text[..blank]);
        if blank < text.len() || self.space.len() > SPACE_MAX {
            let content = format!("{}{}", self.dialect.close[0], std::mem::take(&mut self.space));
            self.at = At::Value;
            self.value(&content, sink);
        }
        (blank, Step::More)
    }
}

impl Body for Xml {
    fn markers(&self) -> &'static [&'static str] {
        match &self.at {
            At::Between => self.dialect.between,
            At::Name => self.dialect.after_name,
            At::Elements | At::Closing => self.dialect.elements,
            At::Key => self.dialect.after_key,
            At::BeforeValue => self.dialect.value,
            At::Value => self.dialect.close,
            At::Object(_) => &[],
            At::Json(call) => call.markers(),
        }
    }

    fn marker(&mut self, marker: &'static str, sink: &mut Sink) -> Step {
        match &mut self.at {
            At::Between if marker == self.dialect.call => {
                self.name.clear();
                self.at = At::Name;
            }
            At::Between if marker == self.dialect.end => {}
            At::Between => return Step::Done,
            At::Name => return self.named(marker, sink),
            At::Elements => return self.element(marker, sink),
            At::Key => self.key(marker, sink),
            At::BeforeValue => self.value_begins(sink),
            At::Value => {
                self.space.clear();
                self.at = At::Closing;
            }
            At::Closing => {
                self.value_ends(sink);
                return self.element(marker, sink);
            }
            At::Object(_) => {}
            At::Json(call) => return call.marker(marker, sink),
        }
        Step::More
    }

    fn text(&mut self, text: &str, sink: &mut Sink) -> (usize, Step) {
        match &mut self.at {
            At::Between => return self.between(text),
            At::Name => {
                self.name.push_str(text);
                if self.name.len() > NAME_MAX {
                    return (text.len(), Step::Malformed(std::mem::take(&mut self.name)));
                }
            }
            At::Elements => return self.elements(text),
            At::Key => self.key.push_str(text),
            At::BeforeValue => {}
            At::Value => self.value(text, sink),
            At::Closing => return self.closing(text, sink),
            At::Object(_) => return self.object(text, sink),
            At::Json(call) => return call.text(text, sink),
        }
        (text.len(), Step::More)
    }

    fn finish(&mut self, sink: &mut Sink) -> Ending {
        match &mut self.at {
            At::Json(call) => call.finish(sink),
            At::Between if self.calls > 0 => Ending::Complete,
            _ => Ending::Truncated,
        }
    }
}
