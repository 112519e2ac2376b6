//! Gemma's calls: objects with bare keys, whose strings stand between special tokens.
//!
//! ```text
//! <|tool_call>call:NAME{key:<|"|>text<|"|>,n:1,list:[…],object:{…}}<tool_call|>
//! ```
//!
//! **Invariant:** arguments come out as JSON in the order they are written, while they arrive.

use super::scan::leading_noise;
use super::schema::{escaped, quoted};
use super::sink::Sink;
use super::{Body, Ending, Step};

const QUOTE: &str = "<|\"|>";
pub(super) const CLOSE: &str = "<tool_call|>";

/// Reads one call.
#[derive(Debug, Default)]
pub(super) struct Gemma {
    at: At,
    name: String,
    /// Brackets open; whether each is an object's.
    objects: Vec<bool>,
    /// A key, or a value that is no string.
    word: String,
    /// A key comes next.
    key: bool,
    in_string: bool,
    comma: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum At {
    #[default]
    Name,
    Arguments,
    Tail,
}

impl Gemma {
    fn begin_item(&mut self, out: &mut String) {
        if std::mem::take(&mut self.comma) {
            out.push_str(", ");
        }
    }

    /// A value without quotes: JSON if it is, and text if not.
    fn end_word(&mut self, out: &mut String) {
        let word = std::mem::take(&mut self.word);
        let word = word.trim();
        if word.is_empty() {
            return;
        }
        self.begin_item(out);
        match serde_json::from_str::<serde::de::IgnoredAny>(word) {
            Ok(_) => out.push_str(word),
            Err(_) => out.push_str(&quoted(word)),
        }
    }

    fn open(&mut self, object: bool, out: &mut String) {
        self.begin_item(out);
        out.push(if object { '{' } else { '[' });
        self.objects.push(object);
        self.key = object;
    }

    /// Reads one character; whether it closed the arguments.
    fn step(&mut self, c: char, out: &mut String) -> bool {
        match c {
            '{' if !self.key => self.open(true, out),
            '[' if !self.key => self.open(false, out),
            ':' if self.key => {
                self.begin_item(out);
                let key = std::mem::take(&mut self.word);
                out.push_str(&quoted(key.trim()));
                out.push_str(": ");
                self.key = false;
            }
            ',' => {
                if !self.key {
                    self.end_word(out);
                }
                self.comma = true;
                self.key = self.objects.last() == Some(&true);
            }
            '}' | ']' => {
                if !self.key {
                    self.end_word(out);
                }
                self.comma = false;
                self.word.clear();
                let object = self.objects.pop().unwrap_or(true);
                out.push(if object { '}' } else { ']' });
                self.key = false;
            }
            c => self.word.push(c),
        }
        self.objects.is_empty()
    }

    fn malformed(&mut self) -> Step {
        Step::Malformed(std::mem::take(&mut self.name))
    }
}

impl Body for Gemma {
    fn markers(&self) -> &'static [&'static str] {
        match self.at {
            At::Arguments if self.in_string => &[QUOTE],
            At::Arguments => &[QUOTE, CLOSE],
            At::Name | At::Tail => &[CLOSE],
        }
    }

    fn marker(&mut self, marker: &'static str, sink: &mut Sink) -> Step {
        if marker == QUOTE {
            self.in_string = !self.in_string;
            if !self.key {
                let mut out = String::new();
                if self.in_string {
                    self.word.clear();
                    self.begin_item(&mut out);
                }
                out.push('"');
                sink.arguments(&out);
            }
            return Step::More;
        }
        match self.at {
            At::Name => sink.text(self.name.trim()),
            // A call that has begun cannot be taken back.
            At::Arguments => sink.end(),
            At::Tail => {}
        }
        Step::Done
    }

    fn text(&mut self, text: &str, sink: &mut Sink) -> (usize, Step) {
        match self.at {
            At::Name => {
                let len = text.find('{').unwrap_or(text.len());
                self.name.push_str(&text[..len]);
                if len == text.len() {
                    return (len, Step::More);
                }
                let name = self.name.trim().strip_prefix("call:").map(str::trim);
                let Some(name) = name.filter(|name| !name.is_empty()) else { return (len, self.malformed()) };
                sink.start(None, name.to_owned());
                self.at = At::Arguments;
                let mut out = String::new();
                self.open(true, &mut out);
                sink.arguments(&out);
                (len + 1, Step::More)
            }
            At::Arguments if self.in_string => {
                if self.key {
                    self.word.push_str(text);
                } else {
                    sink.arguments(&escaped(text));
                }
                (text.len(), Step::More)
            }
            At::Arguments => {
                let mut out = String::new();
                for (at, c) in text.char_indices() {
                    if self.step(c, &mut out) {
                        sink.arguments(&out);
                        sink.end();
                        self.at = At::Tail;
                        return (at + c.len_utf8(), Step::More);
                    }
                }
                sink.arguments(&out);
                (text.len(), Step::More)
            }
            At::Tail => {
                let noise = leading_noise(text);
                (noise, if noise < text.len() { Step::Done } else { Step::More })
            }
        }
    }

    fn finish(&mut self, _: &mut Sink) -> Ending {
        if self.at == At::Tail { Ending::Complete } else { Ending::Truncated }
    }
}
