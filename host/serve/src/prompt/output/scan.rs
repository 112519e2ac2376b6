//! Where markers stand in text that arrives in pieces, and where a JSON value ends.
//!
//! **Invariant:** what is found depends on the text alone: text that may yet become a marker waits.

use super::sink::Sink;

/// What stands at the beginning of a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lexeme {
    /// So many bytes without a marker.
    Text(usize),
    /// One of the markers.
    Marker(&'static str),
    /// Perhaps a marker: more text tells.
    Wait,
}

/// Chosen: what is read may be offered again and looked through again, so a text is looked through in parts of
/// this many bytes.
const TEXT_MAX: usize = 256;

/// Reads one lexeme off a text that is not empty. No marker begins with another.
pub(super) fn lexeme(text: &str, markers: &[&'static str]) -> Lexeme {
    let most = text.floor_char_boundary(TEXT_MAX);
    for (at, byte) in text.bytes().enumerate().take(most) {
        let mut waits = false;
        for marker in markers.iter().filter(|marker| marker.as_bytes()[0] == byte) {
            let rest = &text.as_bytes()[at..];
            let known = marker.len().min(rest.len());
            if marker.as_bytes()[..known] != rest[..known] {
                continue;
            }
            if known == marker.len() {
                return if at == 0 { Lexeme::Marker(marker) } else { Lexeme::Text(at) };
            }
            waits = true;
        }
        if waits {
            return if at == 0 { Lexeme::Wait } else { Lexeme::Text(at) };
        }
    }
    Lexeme::Text(most)
}

/// Finds the end of one JSON object or array, byte by byte.
#[derive(Debug, Default)]
pub(super) struct JsonSpan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

/// How much of a text belongs to a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Span {
    /// All of it, and more follows.
    Open,
    /// So many bytes; the value is complete.
    Ended(usize),
    /// So many bytes; then comes what no JSON has.
    Broken(usize),
}

impl JsonSpan {
    /// Reads on. White space before the value is the caller's to drop.
    pub(super) fn scan(&mut self, text: &str) -> Span {
        for (at, byte) in text.bytes().enumerate() {
            if self.in_string {
                let escaped = self.escaped;
                self.escaped = byte == b'\\' && !escaped;
                self.in_string = byte != b'"' || escaped;
                continue;
            }
            match byte {
                b'{' | b'[' => self.depth += 1,
                _ if self.depth == 0 => return Span::Broken(at),
                b'"' => self.in_string = true,
                b'}' | b']' if self.depth == 1 => return Span::Ended(at + 1),
                b'}' | b']' => self.depth -= 1,
                // Nothing in JSON, so the value was cut off by markup.
                b'<' => return Span::Broken(at),
                _ => {}
            }
        }
        Span::Open
    }

    /// Passes on what of a text belongs to the arguments of the open call, and ends the call with them. How many bytes
    /// that was, and whether they have ended.
    pub(super) fn pass(&mut self, text: &str, sink: &mut Sink) -> (usize, bool) {
        let (len, ended) = match self.scan(text) {
            Span::Open => (text.len(), false),
            Span::Ended(len) | Span::Broken(len) => (len, true),
        };
        sink.arguments(&text[..len]);
        if ended {
            sink.end();
        }
        (len, ended)
    }
}

/// Bytes of white space at the beginning.
pub(super) fn leading_space(text: &str) -> usize {
    text.len() - text.trim_start().len()
}

/// Bytes at the beginning that may stand between a call and its end marker: brackets too many, mostly.
pub(super) fn leading_noise(text: &str) -> usize {
    let noise = |c: char| c.is_whitespace() || matches!(c, '}' | ']' | ')' | '"' | ',' | ';' | '`');
    text.len() - text.trim_start_matches(noise).len()
}
