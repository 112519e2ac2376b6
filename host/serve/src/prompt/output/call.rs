//! The body of one tool call: `{"name": …, "arguments": …}`, read byte by byte.
//!
//! A JSON string may contain `</tool_call>`, so only a reader that knows strings finds the end. Arguments are
//! passed on as they stand in the text, while they arrive if the name came before them.
//! **Invariant:** a call starts once its name is certain and its arguments have begun or are known to be
//! absent; what was passed on of the arguments is a part of the text.

use std::ops::Range;

/// Reads one call.
#[derive(Debug, Default)]
pub(super) struct CallReader {
    /// The body so far.
    raw: String,
    at: At,
    key: Key,
    name: Option<String>,
    /// Where a string or another value began.
    start: usize,
    /// Brackets open inside a value.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Where the arguments are, once they have ended.
    arguments: Option<Range<usize>>,
    /// Whether the call has been reported.
    started: bool,
    /// Arguments before this have been passed on.
    passed: usize,
    id: Option<String>,
    /// Only a body of known keys, with arguments, is a call: it has no markup around it.
    strict: bool,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum At {
    #[default]
    Open,
    FirstKey,
    NextKey,
    Key,
    Colon,
    Value,
    InValue,
    AfterValue,
}

/// Which value a key announces.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Key {
    Name,
    Arguments,
    Id,
    #[default]
    Other,
}

/// How a body ended. What follows it is given back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was a call, which has started.
    Call { rest: String },
    /// It was none; this is its text so far.
    Malformed { body: String, rest: String },
}

/// What a piece of text brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The call starts.
    pub(super) name: Option<String>,
    /// With this id.
    pub(super) id: Option<String>,
    /// Arguments to pass on.
    pub(super) arguments: String,
    /// The body has ended.
    pub(super) end: Option<End>,
}

/// One byte was not what JSON has there.
struct Unexpected;

impl CallReader {
    /// Of a body that has no markup around it, so that not every object is a call.
    pub(super) fn strict() -> Self {
        Self { strict: true, ..Self::default() }
    }

    /// The body so far, where it is not a call yet.
    pub(super) fn unstarted(&mut self) -> Option<String> {
        (!self.started).then(|| std::mem::take(&mut self.raw))
    }

    /// Reads on.
    pub(super) fn push(&mut self, text: &str) -> Progress {
        let mut at = self.raw.len();
        self.raw.push_str(text);
        let mut progress = Progress::default();
        let was_started = self.started;
        while at < self.raw.len() && progress.end.is_none() {
            match self.step(at) {
                Ok(false) => at += 1,
                Ok(true) => progress.end = Some(self.closed(at + 1)),
                Err(Unexpected) => progress.end = Some(self.unexpected(at)),
            }
        }
        if self.started && !was_started {
            progress.name.clone_from(&self.name);
            progress.id = self.id.take();
        }
        progress.arguments = self.new_arguments();
        progress
    }

    /// Reads one byte; whether it closed the body.
    fn step(&mut self, at: usize) -> Result<bool, Unexpected> {
        let byte = self.raw.as_bytes()[at];
        let space = byte.is_ascii_whitespace();
        match self.at {
            At::Key => {
                if self.string_ends(byte) {
                    self.key = match &self.raw[self.start..at] {
                        "name" => Key::Name,
                        "arguments" | "parameters" => Key::Arguments,
                        "id" => Key::Id,
                        other if self.strict && other != "type" => return Err(Unexpected),
                        _ => Key::Other,
                    };
                    self.at = At::Colon;
                }
            }
            At::InValue => return self.in_value(byte, at),
            _ if space => {}
            At::Open if byte == b'{' => self.at = At::FirstKey,
            At::FirstKey | At::NextKey if byte == b'"' => (self.at, self.start) = (At::Key, at + 1),
            At::Colon if byte == b':' => self.at = At::Value,
            At::Value => self.value_begins(byte, at)?,
            At::AfterValue if byte == b',' => self.at = At::NextKey,
            // A comma before the end is a slip that models make.
            At::FirstKey | At::NextKey | At::AfterValue if byte == b'}' => return Ok(true),
            _ => return Err(Unexpected),
        }
        Ok(false)
    }

    fn value_begins(&mut self, byte: u8, at: usize) -> Result<(), Unexpected> {
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth = 1,
            b'-' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {}
            _ => return Err(Unexpected),
        }
        (self.at, self.start) = (At::InValue, at);
        if self.key == Key::Arguments && self.arguments.is_none() && self.name.is_some() && !self.started {
            self.started = true;
            self.passed = at;
        }
        Ok(())
    }

    fn in_value(&mut self, byte: u8, at: usize) -> Result<bool, Unexpected> {
        if self.in_string {
            self.in_string = !self.string_ends(byte);
            return if self.in_string || self.depth > 0 { Ok(false) } else { self.value_ends(at + 1) };
        }
        match byte {
            b'"' if self.depth > 0 => self.in_string = true,
            b'{' | b'[' if self.depth > 0 => self.depth += 1,
            b'}' | b']' if self.depth > 0 => {
                self.depth -= 1;
                if self.depth == 0 {
                    return self.value_ends(at + 1);
                }
            }
            // Nothing in JSON, so the value was cut off by markup.
            b'<' if self.depth > 0 => return Err(Unexpected),
            _ if self.depth > 0 => {}
            b'-' | b'+' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {}
            // A number or a word ends where something else begins.
            _ => {
                self.value_ends(at)?;
                return self.step(at);
            }
        }
        Ok(false)
    }

    fn value_ends(&mut self, end: usize) -> Result<bool, Unexpected> {
        self.at = At::AfterValue;
        let value = self.start..end;
        match self.key {
            Key::Name if self.name.is_none() => {
                let name = serde_json::from_str(&self.raw[value]).map_err(|_| Unexpected)?;
                self.name = Some(name);
            }
            Key::Arguments if self.arguments.is_none() => self.arguments = Some(value),
            Key::Id => self.id = serde_json::from_str(&self.raw[value]).ok(),
            Key::Name | Key::Arguments | Key::Other => {}
        }
        if let (Some(arguments), Some(_), false) = (&self.arguments, &self.name, self.started) {
            self.passed = arguments.start;
            self.started = true;
        }
        Ok(false)
    }

    /// Whether a byte inside a string is the quote that ends it.
    fn string_ends(&mut self, byte: u8) -> bool {
        let escaped = self.escaped;
        self.escaped = byte == b'\\' && !escaped;
        byte == b'"' && !escaped
    }

    /// The body's last bracket came.
    fn closed(&mut self, end: usize) -> End {
        let rest = self.raw.split_off(end);
        if self.name.is_none() || self.strict && !self.started {
            return End::Malformed { body: std::mem::take(&mut self.raw), rest };
        }
        if !self.started {
            // A call without arguments: callers parse what they get, so they get an empty object.
            self.started = true;
            self.passed = self.raw.len();
            self.raw.push_str("{}");
            self.arguments = Some(self.passed..self.raw.len());
        }
        End::Call { rest }
    }

    /// The text stopped being JSON. A call that has started cannot be taken back: it ends here.
    fn unexpected(&mut self, at: usize) -> End {
        let rest = self.raw.split_off(at);
        if self.started {
            End::Call { rest }
        } else {
            End::Malformed { body: std::mem::take(&mut self.raw), rest }
        }
    }

    /// Arguments that have not been passed on.
    fn new_arguments(&mut self) -> String {
        if !self.started {
            return String::new();
        }
        let end = self.arguments.as_ref().map_or(self.raw.len(), |arguments| arguments.end);
        let new = self.raw.get(self.passed..end).unwrap_or_default().to_owned();
        self.passed = end.max(self.passed);
        new
    }
}
