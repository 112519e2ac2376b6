//! Added tokens: texts such as `<|im_start|>` that are one token wherever they stand, and how content is
//! kept from spelling them.
//!
//! What a caller writes must not become a control token. Before a template renders, the guard puts
//! U+FDD0 into every added token that content spells, after its first character; the tokenizer finds no
//! added token there, takes the mark out again, and encodes the plain text. A mark in content is doubled.
//! Text that spells no added token is not touched at all, so its tokens are those of the reference.
//! **Invariant:** content never yields an added token; unmarked text is encoded as if there were no guard.

use std::borrow::Cow;
use std::path::Path;

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind, StartKind};
use rustc_hash::FxHashMap;
use serde_json::Value;

use super::PromptError;

/// "The next character is meant literally". A noncharacter, so text for interchange has none.
pub(super) const LITERAL: char = '\u{fdd0}';

/// Finds added tokens in text, the longest at the leftmost place.
#[derive(Debug)]
pub(super) struct AddedTokens {
    finder: AhoCorasick,
    ids: Vec<u32>,
    /// Bytes of each, by id.
    lens: FxHashMap<u32, usize>,
}

impl AddedTokens {
    /// Errors: a message when the automaton would be too large.
    pub(super) fn new(tokens: &[(String, u32)]) -> Result<Self, String> {
        let texts = tokens.iter().map(|(text, _)| text);
        let builder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .start_kind(StartKind::Both)
            .build(texts);
        let finder = builder.map_err(|error| error.to_string())?;
        let lens = tokens.iter().map(|(text, id)| (*id, text.len())).collect();
        Ok(Self { finder, ids: tokens.iter().map(|&(_, id)| id).collect(), lens })
    }

    /// Bytes of a token's text.
    pub(super) fn len_of(&self, id: u32) -> usize {
        self.lens.get(&id).copied().unwrap_or(0)
    }

    /// Whether a text begins with one.
    pub(super) fn starts(&self, text: &str) -> bool {
        self.finder.find(Input::new(text).anchored(Anchored::Yes)).is_some()
    }

    /// Calls `piece` with every stretch of plain text and every added token, in order.
    pub(super) fn split<'a>(&self, text: &'a str, mut piece: impl FnMut(Piece<'a>)) {
        let mut done = 0;
        for found in self.finder.find_iter(text) {
            if found.start() > done {
                piece(Piece::Text(&text[done..found.start()]));
            }
            piece(Piece::Added(self.ids[found.pattern().as_usize()]));
            done = found.end();
        }
        if done < text.len() {
            piece(Piece::Text(&text[done..]));
        }
    }
}

/// A part of a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Piece<'a> {
    /// Between added tokens.
    Text(&'a str),
    /// An added token.
    Added(u32),
}

/// Takes the marks out of a stretch of text: each one goes, the character after it stays.
pub(super) fn unguarded(text: &str) -> Cow<'_, str> {
    let Some(first) = text.find(LITERAL) else { return Cow::Borrowed(text) };
    let mut plain = String::with_capacity(text.len());
    plain.push_str(&text[..first]);
    let mut chars = text[first..].chars();
    while let Some(c) = chars.next() {
        plain.extend(if c == LITERAL { chars.next() } else { Some(c) });
    }
    Cow::Owned(plain)
}

/// Keeps content from spelling control tokens.
#[derive(Clone)]
pub struct Guard {
    all: AhoCorasick,
    /// All but the reasoning markers, which come back in what a model said before.
    said: AhoCorasick,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("texts", &self.all.patterns_len()).finish()
    }
}

impl Guard {
    /// A guard against these texts.
    ///
    /// Errors: [`PromptError::Model`] when there are too many for an automaton.
    pub(super) fn new<'a>(tokens: impl Iterator<Item = &'a str>, path: &Path) -> Result<Self, PromptError> {
        let build = |texts: &[String]| {
            let builder = AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).build(texts);
            builder.map_err(|error| PromptError::Model { path: path.to_owned(), reason: error.to_string() })
        };
        let mark = LITERAL.to_string();
        // A token of one character cannot be broken, and is no control token either.
        let mut texts: Vec<String> =
            tokens.filter(|t| t.chars().nth(1).is_some()).map(str::to_owned).collect();
        texts.push(mark);
        let all = build(&texts)?;
        texts.retain(|text| !matches!(text.as_str(), "<think>" | "</think>"));
        Ok(Self { all, said: build(&texts)? })
    }

    /// The text so marked that it is encoded as plain text.
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        guarded(&self.all, text)
    }

    /// Whether a text spells an added token.
    pub(crate) fn spells_added(&self, text: &str) -> bool {
        self.all.is_match(text)
    }

    /// Marks every string of a JSON value, keys included. What an assistant said keeps `<think>`, since
    /// templates look for it to drop old reasoning.
    pub fn value(&self, value: &mut Value, said_by_assistant: bool) {
        mark(if said_by_assistant { &self.said } else { &self.all }, value);
    }
}

fn mark(finder: &AhoCorasick, value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(marked) = guarded(finder, text) {
                *text = marked;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| mark(finder, item)),
        Value::Object(map) => {
            if map.keys().any(|key| finder.is_match(key.as_str())) {
                let marked =
                    std::mem::take(map).into_iter().map(|(k, v)| (guarded(finder, &k).into_owned(), v));
                *map = marked.collect();
            }
            map.values_mut().for_each(|item| mark(finder, item));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Puts the mark after the first character of each added token, and before each mark.
fn guarded<'a>(finder: &AhoCorasick, text: &'a str) -> Cow<'a, str> {
    let (mut marked, mut done, mut from) = (String::new(), 0, 0);
    // Searching goes on behind the first character: tokens may overlap, and each must be broken.
    while let Some(found) = finder.find(Input::new(text).range(from..)) {
        let start = found.start();
        let len = text[start..].chars().next().map_or(1, char::len_utf8);
        marked.push_str(&text[done..start]);
        if text[start..].starts_with(LITERAL) {
            marked.push(LITERAL);
            marked.push(LITERAL);
        } else {
            marked.push_str(&text[start..start + len]);
            marked.push(LITERAL);
        }
        from = start + len;
        done = from;
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    marked.push_str(&text[done..]);
    Cow::Owned(marked)
}
