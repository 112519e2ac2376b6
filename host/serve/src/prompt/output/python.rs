//! Calls written in Python, as Llama 4 and some Llama 3 models do, and Python literals as JSON.
//!
//! ```text
//! [f(a=1, b="x"), g()]      f(a=[True, None]); g()
//! ```
//!
//! **Invariant:** a call comes out whole, once its last bracket is there; what is no call comes back as it was.

use super::json_call::JsonCall;
use super::scan::leading_space;
use super::schema::quoted;
use super::sink::Sink;
use super::{Body, Ending, Step};

/// Chosen: values that nest deeper are no arguments of a tool.
const DEPTH_MAX: usize = 64;

/// Reads calls.
#[derive(Debug)]
pub(super) struct Pythonic {
    /// What is not decided, from the last call's end on.
    raw: String,
    at: At,
    /// Where the call's arguments begin in `raw`.
    start: usize,
    depth: usize,
    quote: Option<char>,
    escaped: bool,
    listed: bool,
    calls: usize,
    json: Option<JsonCall>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Open,
    Start,
    Name,
    Arguments,
    After,
}

impl Pythonic {
    /// Before the first character: Python or an object. Without a list around them, calls are separated by `;`.
    pub(super) fn new() -> Self {
        Self {
            raw: String::new(),
            at: At::Open,
            start: 0,
            depth: 0,
            quote: None,
            escaped: false,
            listed: false,
            calls: 0,
            json: None,
        }
    }

    /// Reads one character; `None` goes on.
    fn step(&mut self, c: char, sink: &mut Sink) -> Option<Step> {
        match self.at {
            At::Open if c == '[' => {
                self.listed = true;
                self.at = At::Start;
            }
            At::Open | At::Start | At::After if c.is_whitespace() => {}
            At::Open | At::Start if c.is_ascii_alphabetic() || c == '_' => {
                self.raw.clear();
                if self.listed && self.calls == 0 {
                    self.raw.push('[');
                }
                self.raw.push(c);
                self.at = At::Name;
                return None;
            }
            At::Start if c == ']' && self.calls > 0 => return Some(Step::Done),
            At::Name if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') => {}
            At::Name if c == '(' => {
                self.start = self.raw.len() + 1;
                self.at = At::Arguments;
            }
            At::Arguments => return self.argument(c, sink),
            At::After if matches!(c, ',' | ';') => self.at = At::Start,
            At::After if c == ']' && self.listed => return Some(Step::Done),
            _ => return Some(self.malformed(c)),
        }
        self.raw.push(c);
        None
    }

    fn argument(&mut self, c: char, sink: &mut Sink) -> Option<Step> {
        match (self.quote, c) {
            (Some(_), _) if self.escaped => self.escaped = false,
            (Some(_), '\\') => self.escaped = true,
            (Some(quote), _) if c == quote => self.quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => self.quote = Some(c),
            (None, '(' | '[' | '{') => self.depth += 1,
            (None, ')') if self.depth == 0 => return self.call(sink),
            (None, ')' | ']' | '}') => self.depth = self.depth.saturating_sub(1),
            (None, _) => {}
        }
        self.raw.push(c);
        None
    }

    fn call(&mut self, sink: &mut Sink) -> Option<Step> {
        let name = self.raw[..self.start - 1].trim_start_matches('[');
        // Built-in tools of Llama 3.1 are called as a method.
        let name = name.strip_suffix(".call").unwrap_or(name).to_owned();
        let Some(arguments) = arguments(&self.raw[self.start..]) else { return Some(self.malformed(')')) };
        sink.start(None, name);
        sink.arguments(&arguments);
        sink.end();
        self.calls += 1;
        self.raw.clear();
        self.at = At::After;
        None
    }

    fn malformed(&mut self, c: char) -> Step {
        let mut text = std::mem::take(&mut self.raw);
        text.push(c);
        Step::Verbatim(text)
    }
}

impl Body for Pythonic {
    fn markers(&self) -> &'static [&'static str] {
        &[]
    }

    fn marker(&mut self, _: &'static str, _: &mut Sink) -> Step {
        Step::More
    }

    fn text(&mut self, text: &str, sink: &mut Sink) -> (usize, Step) {
        if let Some(json) = &mut self.json {
            return json.text(text, sink);
        }
        for (at, c) in text.char_indices() {
            if self.at == At::Open && c == '{' {
                self.json = Some(JsonCall::bare());
                return (at, Step::More);
            }
            if self.at == At::After && !self.listed && !c.is_whitespace() && !matches!(c, ',' | ';') {
                return (at, Step::Done);
            }
            if let Some(step) = self.step(c, sink) {
                return (at + c.len_utf8(), step);
            }
        }
        (text.len(), Step::More)
    }

    fn finish(&mut self, sink: &mut Sink) -> Ending {
        if let Some(json) = &mut self.json {
            return json.finish(sink);
        }
        match self.at {
            At::After => Ending::Complete,
            At::Start if self.calls > 0 => Ending::Complete,
            At::Arguments => Ending::Truncated,
            At::Open | At::Start | At::Name => Ending::Verbatim(std::mem::take(&mut self.raw)),
        }
    }
}

/// Keyword arguments as a JSON object.
fn arguments(text: &str) -> Option<String> {
    let mut reader = Literal { rest: text, out: "{".to_owned() };
    while !reader.at_end() {
        let name = reader.rest.find('=').map(|at| reader.rest[..at].trim().to_owned())?;
        if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || c == '_') {
            return None;
        }
        reader.rest = &reader.rest[reader.rest.find('=')? + 1..];
        if reader.out.len() > 1 {
            reader.out.push_str(", ");
        }
        reader.out.push_str(&quoted(&name));
        reader.out.push_str(": ");
        reader.value(DEPTH_MAX)?;
        if !reader.eat(',') && !reader.at_end() {
            return None;
        }
    }
    Some(reader.out + "}")
}

/// A Python literal as JSON.
pub(super) fn to_json(text: &str) -> Option<String> {
    let mut reader = Literal { rest: text, out: String::new() };
    reader.value(DEPTH_MAX)?;
    reader.at_end().then_some(reader.out)
}

struct Literal<'a> {
    rest: &'a str,
    out: String,
}

impl Literal<'_> {
    fn space(&mut self) {
        self.rest = &self.rest[leading_space(self.rest)..];
    }

    fn at_end(&mut self) -> bool {
        self.space();
        self.rest.is_empty()
    }

    fn eat(&mut self, c: char) -> bool {
        self.space();
        let rest = self.rest.strip_prefix(c);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        self.space();
        match self.rest.chars().next()? {
            '"' | '\'' => {
                let text = self.string()?;
                self.out.push_str(&quoted(&text));
                Some(())
            }
            '[' => self.items('[', ']', depth),
            '(' => self.items('(', ')', depth),
            '{' => self.items('{', '}', depth),
            _ => self.word(),
        }
    }

    fn items(&mut self, open: char, close: char, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        self.eat(open);
        self.out.push(if open == '{' { '{' } else { '[' });
        let mut first = true;
        while !self.eat(close) {
            if !std::mem::replace(&mut first, false) {
                self.out.push_str(", ");
            }
            if open == '{' {
                self.space();
                let key = self.string()?;
                self.out.push_str(&quoted(&key));
                self.out.push_str(": ");
                self.eat(':').then_some(())?;
            }
            self.value(depth)?;
            self.space();
            if !self.eat(',') && !self.rest.starts_with(close) {
                return None;
            }
        }
        self.out.push(if open == '{' { '}' } else { ']' });
        Some(())
    }

    fn word(&mut self) -> Option<()> {
        let ends = |c: char| c.is_whitespace() || matches!(c, ',' | ')' | ']' | '}' | ':');
        let len = self.rest.find(ends).unwrap_or(self.rest.len());
        let word = &self.rest[..len];
        self.rest = &self.rest[len..];
        let json = match word {
            "True" | "true" => "true",
            "False" | "false" => "false",
            "None" | "null" => "null",
            number => serde_json::from_str::<serde_json::Number>(number).is_ok().then_some(number)?,
        };
        self.out.push_str(json);
        Some(())
    }

    fn string(&mut self) -> Option<String> {
        let quote = self.rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let mut text = String::new();
        let mut chars = self.rest[1..].char_indices();
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.rest = &self.rest[1 + at + 1..];
                return Some(text);
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            let (_, escape) = chars.next()?;
            let digits = match escape {
                'x' => 2,
                'u' => 4,
                'U' => 8,
                _ => 0,
            };
            if digits > 0 {
                let hex: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
                text.push(char::from_u32(u32::from_str_radix(&hex, 16).ok()?)?);
                continue;
            }
            match escape {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                'r' => text.push('\r'),
                '\n' => {}
                '\\' | '\'' | '"' => text.push(escape),
                other => text.extend(['\\', other]),
            }
        }
        None
    }
}
