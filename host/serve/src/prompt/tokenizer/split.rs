//! Hand-written scanners for the split patterns that byte-level tokenizers use.
//!
//! A scanner does what the regular expression does, one branch for each alternative, in its order.
//! **Invariant:** only patterns equal to the letter are recognised; a scanner covers every character.

use super::class::{Class, class_at};

/// `use_regex` of the `ByteLevel` pre-tokenizer.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// The pattern of Llama 3.
pub(crate) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The pattern of Qwen 2 and 3.
pub(crate) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Where words end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Splitter {
    /// GPT-2's pattern.
    Gpt2,
    /// The pattern of cl100k and its kin.
    Cl100k {
        /// Most digits of a word.
        digits_max: usize,
        /// Whether marks belong to words, as letters do.
        marks: bool,
    },
}

impl Splitter {
    /// The scanner for a pattern, if there is one.
    pub(super) fn recognise(pattern: &str) -> Option<Self> {
        match pattern {
            GPT2 => Some(Self::Gpt2),
            LLAMA3 => Some(Self::Cl100k { digits_max: 3, marks: false }),
            QWEN2 => Some(Self::Cl100k { digits_max: 1, marks: false }),
            QWEN35 => Some(Self::Cl100k { digits_max: 1, marks: true }),
            _ => None,
        }
    }

    /// End of the word that starts at byte `at`, which is before the end of the text.
    #[inline]
    pub(super) fn word_end(self, text: &str, at: usize) -> usize {
        match self {
            Self::Gpt2 => gpt2(text, at),
            Self::Cl100k { digits_max, marks } => cl100k(text, at, digits_max, marks),
        }
    }
}

/// The first place from byte `from` on, if any, at which a text can be cut: its parts have the words of the whole, whichever
/// pattern it is.
///
/// That is before a space that follows a letter. No alternative has one after the other, and none looks ahead to it.
pub(super) fn cut(text: &str, from: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut spaces = memchr::memchr_iter(b' ', bytes.get(from..)?).map(|at| from + at);
    spaces.find(|&at| at > 0 && bytes[at - 1].is_ascii_alphabetic())
}

fn gpt2(text: &str, at: usize) -> usize {
    let (first, len) = kind_at(text, at, false).expect("a word starts before the end");
    if let Some(end) = contraction(text, at, false) {
        return end;
    }
    let lead = if text.as_bytes()[at] == b' ' { 1 } else { 0 };
    let body = if lead == 1 { kind_at(text, at + 1, false).map(|(class, _)| class) } else { Some(first) };
    match body {
        Some(class @ (Class::Letter | Class::Number | Class::Other)) => run(text, at + lead, class, false),
        _ => whitespace(text, at, len, false),
    }
}

fn cl100k(text: &str, at: usize, digits_max: usize, marks: bool) -> usize {
    let (first, len) = kind_at(text, at, marks).expect("a word starts before the end");
    if let Some(end) = contraction(text, at, true) {
        return end;
    }
    if first == Class::Letter {
        return run(text, at, Class::Letter, marks);
    }
    if first == Class::Number {
        let is_number = |&end: &usize| matches!(kind_at(text, end, marks), Some((Class::Number, _)));
        let next = |end: &usize| Some(end + kind_at(text, *end, marks)?.1).filter(|_| is_number(end));
        let ends = std::iter::successors(Some(at), next);
        return ends.take(digits_max + 1).last().unwrap_or(at);
    }
    let second = kind_at(text, at + len, marks).map(|(class, _)| class);
    if first != Class::Newline && second == Some(Class::Letter) {
        return run(text, at + len, Class::Letter, marks);
    }
    let symbols = match first {
        Class::Other => Some(at),
        _ if text.as_bytes()[at] == b' ' && second == Some(Class::Other) => Some(at + 1),
        _ => None,
    };
    match symbols {
        Some(start) => run(text, run(text, start, Class::Other, marks), Class::Newline, marks),
        None => whitespace(text, at, len, true),
    }
}

/// The class of a character for one pattern: a mark is a letter or a symbol there.
#[inline]
fn kind_at(text: &str, at: usize, marks: bool) -> Option<(Class, usize)> {
    let (class, len) = class_at(text, at)?;
    let class = match class {
        Class::Mark if marks => Class::Letter,
        Class::Mark => Class::Other,
        class => class,
    };
    Some((class, len))
}

/// End of the run of one class that starts at `at`; `at` itself if there is none.
#[inline]
fn run(text: &str, mut at: usize, class: Class, marks: bool) -> usize {
    while let Some((next, len)) = kind_at(text, at, marks) {
        if next != class {
            break;
        }
        at += len;
    }
    at
}

/// `'s|'t|'re|'ve|'m|'ll|'d`; without case, `s` is also U+017F, the long s.
#[inline]
fn contraction(text: &str, at: usize, any_case: bool) -> Option<usize> {
    let bytes = text.as_bytes();
    if bytes[at] != b'\'' {
        return None;
    }
    let fold = |byte: Option<&u8>| byte.map(|b| if any_case { b.to_ascii_lowercase() } else { *b });
    match (fold(bytes.get(at + 1))?, fold(bytes.get(at + 2))) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(at + 3),
        (0xc5, _) if any_case && text[at + 1..].starts_with('\u{17f}') => Some(at + 3),
        _ => None,
    }
}

/// `\s*[\r\n]+` where `newlines`, then `\s+(?!\S)`, then `\s+`; `len` is that of the first character.
fn whitespace(text: &str, at: usize, len: usize, newlines: bool) -> usize {
    let (mut end, mut last, mut after_newline) = (at, at, None);
    while let Some((class @ (Class::Space | Class::Newline), len)) = class_at(text, end) {
        last = end;
        end += len;
        if class == Class::Newline {
            after_newline = Some(end);
        }
    }
    match after_newline {
        Some(end) if newlines => end,
        _ if end == text.len() => end,
        // The last space belongs to the word after it, unless it is the only one.
        _ => last.max(at + len),
    }
}
