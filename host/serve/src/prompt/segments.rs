//! Segments: runs of a sequence's tokens that are of one kind, for policies that say what is worth keeping.
//!
//! Called by the journey for prompts, and by a worker for outputs, only where a policy wants to know.
//! **Invariant:** the segments of a prompt lie one after the other and have all of its tokens.

use decide::Role;

use super::{ChatTemplate, Family, RenderInput, Tokenizer};

/// A stretch of a rendered text, up to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// What it is.
    pub role: Role,
    /// Its first byte.
    pub start: usize,
    /// The message it belongs to, or one of the two below.
    pub message: i32,
}

impl Span {
    /// Of no message: tools, and a system prompt of the template's own.
    pub const BEFORE: i32 = -1;
    /// Of no message: where the model's turn begins.
    pub const AFTER: i32 = i32::MAX;
}

/// A run of tokens, up to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What it is.
    pub role: Role,
    /// Its first token.
    pub start: u32,
    /// The message it belongs to, as in [`Span`].
    pub message: i32,
}

/// The segments of a prompt; one of history where its text and its tokens cannot be matched.
///
/// `text` was rendered from `input` and encoded to `tokens`; more may stand at its end.
pub fn segments(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    input: &RenderInput<'_>,
    text: &str,
    tokens: &[u32],
) -> Vec<Segment> {
    segments_of(tokenizer, &template.spans(input, text), text, tokens)
}

/// The segments of a text whose spans are known.
pub(crate) fn segments_of(tokenizer: &Tokenizer, spans: &[Span], text: &str, tokens: &[u32]) -> Vec<Segment> {
    let bytes: Vec<usize> = spans.iter().map(|span| span.start).collect();
    let places = tokenizer.places(text, tokens, &bytes).filter(|places| places.first() == Some(&0));
    let Some(places) = places else {
        return vec![Segment { role: Role::History, start: 0, message: Span::BEFORE }];
    };
    let mut segments: Vec<Segment> = Vec::with_capacity(spans.len());
    for (span, place) in spans.iter().zip(places) {
        let segment = Segment { role: span.role, start: place as u32, message: span.message };
        match segments.last_mut() {
            // A stretch of text without a token of its own.
            Some(last) if last.start >= segment.start => *last = Segment { start: last.start, ..segment },
            _ => segments.push(segment),
        }
    }
    segments
}

/// Where the stretch of a prompt ends that holds everything up to and including a message, in tokens of `all`.
///
/// Messages are numbered as in [`Span`]; what stands before them is part of every stretch.
pub fn end_of_message(segments: &[Segment], message: i32, all: u32) -> u32 {
    let last = segments.iter().rposition(|segment| segment.message <= message);
    match last {
        None => 0,
        Some(last) => segments.get(last + 1).map_or(all, |next| next.start),
    }
}

/// How many of an output's first tokens are reasoning, the marks around it included. `begun`: the prompt ends inside
/// a reasoning section.
pub fn reasoning_tokens(tokenizer: &Tokenizer, family: Family, output: &[u32], begun: bool) -> usize {
    let Some(marks) = family.reasoning() else { return 0 };
    let (open, close) = (marks.open.as_bytes(), marks.close.as_bytes());
    let mut text: Vec<u8> = Vec::new();
    let mut inside = begun;
    for (at, &token) in output.iter().enumerate() {
        text.extend_from_slice(&tokenizer.token_bytes(token));
        if !inside {
            let said = text.trim_ascii_start();
            if said.len() < open.len() {
                if open.starts_with(said) {
                    continue;
                }
                return 0;
            }
            if !said.starts_with(open) {
                return 0;
            }
            inside = true;
        }
        // The mark may have begun in a token before this one.
        let own = tokenizer.token_bytes(token).len() + close.len();
        let tail = &text[text.len().saturating_sub(own)..];
        if tail.windows(close.len()).any(|part| part == close) {
            return at + 1;
        }
    }
    if inside { output.len() } else { 0 }
}

#[cfg(test)]
mod tests;
