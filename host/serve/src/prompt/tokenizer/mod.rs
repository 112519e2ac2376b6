//! Text to tokens and back, exactly as the model's `tokenizer.json` says.
//!
//! Byte-level tokenizers whose split pattern is known (GPT-2, Llama 3, Qwen 2 to 3.5 and their kin) are
//! encoded here, in microseconds; all others go through the reference library, at about a hundred times
//! the cost.
//! Called once a request with the rendered prompt, and for every token that comes out.
//! **Invariant:** the fast path gives the tokens of the reference library, for any text.

mod added;
mod bpe;
mod class;
mod file;
mod split;
mod stretch;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use tokenizers::{ModelWrapper, NormalizedString, Normalizer};

use self::added::{AddedTokens, LITERAL, Piece, unguarded};
use self::bpe::Bpe;
use self::file::{Added, ByteTable, File};
use self::stretch::Stretches;
use super::PromptError;

pub use self::added::Guard;
pub(crate) use self::split::{LLAMA3 as LLAMA3_SPLIT, QWEN2 as QWEN2_SPLIT};

/// A model's tokenizer. Shared by all requests.
pub struct Tokenizer {
    encoder: Encoder,
    added: BTreeMap<u32, Added>,
    prefix: Vec<u32>,
    guard: Guard,
    /// Bytes of every token, where tokens are bytes.
    spelling: Option<Spelling>,
    vocab_size: u32,
    longest_added: usize,
}

/// A place in a text behind an added token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Bytes before it.
    pub(crate) bytes: usize,
    /// Tokens before it.
    pub(crate) tokens: usize,
}

enum Encoder {
    Fast(Box<Fast>),
    Reference(Box<tokenizers::Tokenizer>),
}

/// Added tokens are found in two passes, before and after normalising, as the reference does.
struct Fast {
    raw: Option<AddedTokens>,
    form_c: bool,
    normalized: Option<AddedTokens>,
    bpe: Bpe,
    stretches: Stretches,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; `path` is for messages.
    ///
    /// Errors: [`PromptError::Model`] when it is none.
    pub fn from_bytes(path: &Path, json: &[u8]) -> Result<Self, PromptError> {
        let model_error = |reason: String| PromptError::Model { path: path.to_owned(), reason };
        let file: File = serde_json::from_slice(json).map_err(|error| model_error(error.to_string()))?;
        let encoder = match fast(&file) {
            Ok(fast) => Encoder::Fast(Box::new(fast)),
            Err(reason) => {
                tracing::warn!(path = %path.display(), %reason, "tokenizer has no fast path");
                Encoder::Reference(Box::new(reference(json).map_err(|error| model_error(error.to_string()))?))
            }
        };
        let last =
            file.tokens().map(|(_, id)| id).chain(file.added_tokens.iter().map(|added| added.id)).max();
        let texts = file.added_tokens.iter().map(|added| added.content.as_str());
        Ok(Self {
            encoder,
            prefix: file.prefix(),
            guard: Guard::new(texts, path)?,
            spelling: file.decodes_bytes().then(|| Spelling::new(&file)),
            vocab_size: last.map_or(0, |id| id + 1),
            longest_added: file.added_tokens.iter().map(|added| added.content.len()).max().unwrap_or(0),
            added: file.added_tokens.into_iter().map(|added| (added.id, added)).collect(),
        })
    }

    /// Tokens of a text. Added tokens that it spells are taken for what they are.
    ///
    /// For text of the operator or of `/v1/completions`; a rendered conversation goes through
    /// [`Tokenizer::encode_prompt`]. Nothing is put before it: see [`Tokenizer::prefix`].
    pub fn encode(&self, text: &str) -> Vec<u32> {
        match &self.encoder {
            Encoder::Fast(fast) => fast.encode(text, false),
            Encoder::Reference(reference) => encode_by_reference(reference, text),
        }
    }

    /// Tokens of a rendered prompt, in which [`Guard`] has marked what content spelled.
    ///
    /// On the fast path, marked text has the tokens of the plain text. Through the reference library, marked
    /// text is cut at the marks: it yields no added token either, but its tokens may differ from those of
    /// one piece.
    pub fn encode_prompt(&self, text: &str) -> Vec<u32> {
        match &self.encoder {
            Encoder::Fast(fast) => fast.encode(text, true),
            Encoder::Reference(reference) => {
                let mut tokens = Vec::new();
                let mut rest = text;
                while let Some(at) = rest.find(LITERAL) {
                    tokens.extend(encode_by_reference(reference, &rest[..at]));
                    // A second mark is content, and stays with what follows.
                    rest = &rest[at + LITERAL.len_utf8()..];
                    if let Some(after) = rest.strip_prefix(LITERAL) {
                        tokens.extend(encode_by_reference(reference, &rest[..rest.len() - after.len()]));
                        rest = after;
                    }
                }
                tokens.extend(encode_by_reference(reference, rest));
                tokens
            }
        }
    }

    /// The same, and where added tokens end in it: there a text can be cut, and its parts encoded by themselves.
    ///
    /// Through the reference library, a text has no such places.
    pub(crate) fn encode_with_cuts(&self, text: &str) -> (Vec<u32>, Vec<Cut>) {
        match &self.encoder {
            Encoder::Fast(fast) => {
                let mut cuts = Vec::new();
                let tokens = fast.encode_noting(text, true, |cut| cuts.push(cut));
                (tokens, cuts)
            }
            Encoder::Reference(_) => (self.encode_prompt(text), Vec::new()),
        }
    }

    /// Bytes of the longest added token. A text that changes this far behind a [`Cut`] keeps the cut.
    pub(crate) fn longest_added(&self) -> usize {
        self.longest_added
    }

    /// Whether a text begins with a token before which it can be cut.
    pub(crate) fn begins_with_added(&self, text: &str) -> bool {
        match &self.encoder {
            Encoder::Fast(fast) => fast.raw.as_ref().is_some_and(|added| added.starts(text)),
            Encoder::Reference(_) => false,
        }
    }

    /// Tokens before each of these places of a rendered prompt, which ascend; `tokens` is what it was encoded to.
    ///
    /// A place within a token counts it. `None` where tokens cannot be found again in the text.
    pub fn places(&self, text: &str, tokens: &[u32], bytes: &[usize]) -> Option<Vec<usize>> {
        let Encoder::Fast(fast) = &self.encoder else { return None };
        let spelling = self.spelling.as_ref()?;
        // Added tokens are where text and tokens meet; what is between them is counted in bytes.
        let in_text = fast.added_in(text, &self.added);
        let in_tokens: Vec<usize> =
            (0..tokens.len()).filter(|&at| self.added.contains_key(&tokens[at])).collect();
        let same = in_text.len() == in_tokens.len()
            && in_text.iter().zip(&in_tokens).all(|((_, id), &at)| tokens[at] == *id);
        if !same {
            return None;
        }
        let place = |&at: &usize| {
            let before = in_text.partition_point(|(range, _)| range.end <= at);
            let (from, first) = match before.checked_sub(1) {
                Some(last) => (in_text[last].0.end, in_tokens[last] + 1),
                None => (0, 0),
            };
            let end = in_tokens.get(before).copied().unwrap_or(tokens.len());
            let mut left = unguarded(&text[from..at]).len();
            let mut token = first;
            while left > 0 && token < end {
                left = left.saturating_sub(spelling.bytes(tokens[token]).len());
                token += 1;
            }
            token
        };
        Some(bytes.iter().map(place).collect())
    }

    /// Tokens that stand before a text which no template made, such as a begin-of-text token; often none.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// What keeps content from spelling added tokens.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Whether prompts are encoded on the fast path.
    pub fn is_fast(&self) -> bool {
        matches!(self.encoder, Encoder::Fast(_))
    }

    /// One more than the largest token id. A model's own vocabulary may be padded beyond it.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// The first token that another tokenizer spells differently, or takes for something else, of those that both have.
    ///
    /// Cost: a look at each token of both, and on the reference path a decoding.
    pub fn first_difference(&self, other: &Self) -> Option<u32> {
        let both = self.vocab_size.min(other.vocab_size);
        let same = |token: &u32| {
            self.special(*token) == other.special(*token)
                && self.token_bytes(*token) == other.token_bytes(*token)
        };
        (0..both).find(|token| !same(token))
    }

    /// The token that an added token's text has; `None` for texts that are no added token.
    pub fn added_id(&self, text: &str) -> Option<u32> {
        self.added.values().find(|added| added.content == text).map(|added| added.id)
    }

    /// Added tokens that carry no text of the answer, such as end of turn: id and text.
    pub fn specials(&self) -> impl Iterator<Item = (u32, &str)> {
        self.added.values().filter(|added| added.special).map(|added| (added.id, added.content.as_str()))
    }

    /// All added tokens: id, text, and whether the model's files call it special.
    pub(super) fn added(&self) -> impl Iterator<Item = (u32, &str, bool)> {
        self.added.values().map(|added| (added.id, added.content.as_str(), added.special))
    }

    /// Bytes that a token adds to a text; empty for an unknown one. `None` where that depends on the tokens around it.
    pub(super) fn raw_bytes(&self, token: u32) -> Option<Vec<u8>> {
        match &self.encoder {
            _ if self.spelling.is_some() => self.spelled(token).map(<[u8]>::to_vec),
            Encoder::Fast(_) => None,
            Encoder::Reference(reference) => match reference.get_model() {
                ModelWrapper::BPE(_) | ModelWrapper::Unigram(_) => {
                    Some(reference.id_to_token(token).map(|piece| piece_bytes(&piece)).unwrap_or_default())
                }
                ModelWrapper::WordPiece(_) | ModelWrapper::WordLevel(_) => None,
            },
        }
    }

    /// The text of a token that is one of [`Tokenizer::specials`].
    pub fn special(&self, token: u32) -> Option<&str> {
        self.added.get(&token).filter(|added| added.special).map(|added| added.content.as_str())
    }

    /// The longest run of token ids without an added token among them.
    pub fn text_tokens(&self) -> Range<u32> {
        let ends = self.added.keys().copied().chain([self.vocab_size]);
        let starts = std::iter::once(0).chain(self.added.keys().map(|id| id + 1));
        starts.zip(ends).map(|(start, end)| start..end).max_by_key(|run| run.len()).unwrap_or(0..0)
    }

    /// Bytes of a token on its own, which may be a part of a character; none for an unknown token.
    pub fn token_bytes(&self, token: u32) -> Cow<'_, [u8]> {
        match self.spelled(token) {
            Some(bytes) => Cow::Borrowed(bytes),
            None => Cow::Owned(self.decode_by_reference(&[token]).into_bytes()),
        }
    }

    /// Bytes of a token; `None` where tokens are not bytes. An unknown token has an empty slice.
    pub(super) fn spelled(&self, token: u32) -> Option<&[u8]> {
        self.spelling.as_ref().map(|spelling| spelling.bytes(token))
    }

    /// Text of tokens by the reference library, special tokens included; empty on the fast path.
    pub(super) fn decode_by_reference(&self, tokens: &[u32]) -> String {
        match &self.encoder {
            Encoder::Fast(_) => String::new(),
            Encoder::Reference(reference) => reference.decode(tokens, false).unwrap_or_default(),
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut fields = f.debug_struct("Tokenizer");
        fields.field("vocab_size", &self.vocab_size).field("is_fast", &self.is_fast()).finish_non_exhaustive()
    }
}

impl Fast {
    fn encode(&self, text: &str, marked: bool) -> Vec<u32> {
        self.encode_noting(text, marked, |_| {})
    }

    /// Tokens of a text; `cut` is told where those added tokens end that are found before anything else happens.
    fn encode_noting(&self, text: &str, marked: bool, mut cut: impl FnMut(Cut)) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(text.len() / 3);
        let mut bytes = 0;
        split(self.raw.as_ref(), text, |piece| match piece {
            Piece::Added(id) => {
                tokens.push(id);
                bytes += self.raw.as_ref().map_or(0, |added| added.len_of(id));
                cut(Cut { bytes, tokens: tokens.len() });
            }
            Piece::Text(text) => {
                bytes += text.len();
                let text = if self.form_c { form_c(text) } else { Cow::Borrowed(text) };
                split(self.normalized.as_ref(), &text, |piece| match piece {
                    Piece::Added(id) => tokens.push(id),
                    Piece::Text(text) => {
                        let text = if marked { unguarded(text) } else { Cow::Borrowed(text) };
                        self.stretches
                            .encode(&text, &mut tokens, |part, tokens| self.bpe.encode(part, tokens));
                    }
                });
            }
        });
        tokens
    }
}

impl Fast {
    /// The added tokens of a rendered prompt and where they stand.
    fn added_in(&self, text: &str, added: &BTreeMap<u32, Added>) -> Vec<(Range<usize>, u32)> {
        let (mut found, mut at) = (Vec::new(), 0);
        let mut note = |piece: Piece<'_>| match piece {
            Piece::Text(text) => at += text.len(),
            Piece::Added(id) => {
                let len = added.get(&id).map_or(0, |added| added.content.len());
                found.push((at..at + len, id));
                at += len;
            }
        };
        split(self.raw.as_ref(), text, |piece| match piece {
            Piece::Text(text) => split(self.normalized.as_ref(), text, &mut note),
            added => note(added),
        });
        found
    }
}

fn split<'a>(added: Option<&AddedTokens>, text: &'a str, mut piece: impl FnMut(Piece<'a>)) {
    match added {
        Some(added) => added.split(text, piece),
        None => piece(Piece::Text(text)),
    }
}

/// The text in Unicode's form C.
fn form_c(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_inert) {
        return Cow::Borrowed(text);
    }
    let mut normalized = NormalizedString::from(text);
    match tokenizers::normalizers::NFC.normalize(&mut normalized) {
        Ok(()) => Cow::Owned(normalized.get().to_owned()),
        // It has no way to fail; the text as it is would be the next best.
        Err(_) => Cow::Borrowed(text),
    }
}

/// Whether form C leaves a character alone whatever stands around it. Not complete: a part of what is
/// common, to save the work for plain Latin, Greek, Cyrillic, Chinese, Japanese and Korean text and emoji.
fn is_inert(c: char) -> bool {
    matches!(c,
        '\0'..='\u{2ff}' | '\u{391}'..='\u{3a1}' | '\u{3a3}'..='\u{3ce}' | '\u{400}'..='\u{482}'
        | '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{205e}' | '\u{2190}'..='\u{21cc}' | '\u{2500}'..='\u{27ff}'
        | '\u{3001}'..='\u{3003}' | '\u{3005}'..='\u{3029}' | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fe}'
        | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}' | '\u{ff01}'..='\u{ff5e}'
        | '\u{1f300}'..='\u{1faff}' | LITERAL)
}

fn fast(file: &File) -> Result<Fast, Cow<'static, str>> {
    let bpe = file.bpe()?;
    class::prepare();
    let find = |normalized| {
        let chosen = file.added_tokens.iter().filter(|added| added.normalized == normalized);
        let texts: Vec<_> = chosen.map(|added| (added.content.clone(), added.id)).collect();
        if texts.is_empty() { Ok(None) } else { AddedTokens::new(&texts).map(Some) }
    };
    let form_c = file.form_c().ok_or("its normaliser is not known")?;
    let late_text =
        file.added_tokens.iter().filter(|added| added.normalized).all(|added| added.content.is_ascii());
    if form_c && !late_text {
        return Err("an added token would have to be normalised".into());
    }
    Ok(Fast { raw: find(false)?, form_c, normalized: find(true)?, bpe, stretches: Stretches::new() })
}

fn reference(json: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut reference = tokenizers::Tokenizer::from_bytes(json)?;
    // Files keep what their training used; neither is for serving.
    reference.with_truncation(None)?;
    reference.with_padding(None);
    Ok(reference)
}

fn encode_by_reference(reference: &tokenizers::Tokenizer, text: &str) -> Vec<u32> {
    // The only failures are of models that lack both the text's pieces and an unknown token.
    reference.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default()
}

/// Bytes of a piece of a SentencePiece vocabulary, which writes a space as U+2581 and single bytes as `<0x0A>`.
fn piece_bytes(piece: &str) -> Vec<u8> {
    let byte = piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    match byte.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
        Some(byte) => vec![byte],
        None => piece.replace('\u{2581}', " ").into_bytes(),
    }
}

/// Bytes of all tokens, one after the other.
struct Spelling {
    bytes: Vec<u8>,
    /// Where each token's bytes start; one more entry than tokens.
    starts: Vec<u32>,
}

impl Spelling {
    fn new(file: &File) -> Self {
        let table = ByteTable::new();
        let mut spelled = BTreeMap::new();
        for (text, id) in file.tokens() {
            // What is not spelled in stand-ins stands for itself, as in the reference.
            spelled.insert(id, table.bytes(text).unwrap_or_else(|| text.as_bytes().to_vec()));
        }
        for added in &file.added_tokens {
            spelled.insert(added.id, added.content.as_bytes().to_vec());
        }
        let (mut bytes, mut starts) = (Vec::new(), vec![0]);
        for (id, spelling) in spelled {
            // A gap in the ids is a run of tokens without bytes.
            starts.resize(id as usize + 1, bytes.len() as u32);
            bytes.extend(spelling);
            starts.push(bytes.len() as u32);
        }
        Self { bytes, starts }
    }

    fn bytes(&self, token: u32) -> &[u8] {
        let token = token as usize;
        match (self.starts.get(token), self.starts.get(token + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests;
