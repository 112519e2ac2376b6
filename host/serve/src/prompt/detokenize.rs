//! Tokens to text, one at a time, never half a character.
//!
//! A token is bytes, and a character may span tokens: bytes wait until their character is complete.
//! Called for every token of an answer.
//! **Invariant:** all that was pushed, with what `finish` gives, is the text of the whole list of tokens.

use std::sync::Arc;

use super::{Family, Tokenizer};

/// What becomes of special tokens, which carry no text of the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Specials {
    /// None has text.
    Drop,
    /// Those that structure an answer of this family have: reasoning and calls, which the output parser needs to see.
    Markers(Family),
    /// All have, end of turn included.
    All,
}

/// Turns the tokens of one sequence into text.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    specials: Specials,
    /// Bytes of a character that is not complete; at most three.
    bytes: Vec<u8>,
    window: Window,
    out: String,
}

/// Where tokens are not bytes: the last tokens, and how many of them have been given out.
#[derive(Debug, Default)]
struct Window {
    tokens: Vec<u32>,
    /// Tokens whose text is out; the rest wait.
    given: usize,
    /// Bytes of text of the given ones.
    given_len: usize,
}

/// Most tokens that wait for a character to be complete. Chosen: a character has four bytes, and a model
/// that only writes broken ones must not make each step slower.
const WAITING_MAX: usize = 8;

impl Detokenizer {
    /// For one sequence, before its first token.
    pub fn new(tokenizer: Arc<Tokenizer>, family: Family) -> Self {
        Self::with_specials(tokenizer, Specials::Markers(family))
    }

    /// The same, with a choice of what special tokens become.
    pub fn with_specials(tokenizer: Arc<Tokenizer>, specials: Specials) -> Self {
        Self { tokenizer, specials, bytes: Vec::new(), window: Window::default(), out: String::new() }
    }

    /// Text that a token completes; often one word, sometimes nothing.
    pub fn push(&mut self, token: u32) -> &str {
        self.out.clear();
        if self.has_text(token) {
            match self.tokenizer.spelled(token) {
                Some(bytes) => {
                    self.bytes.extend_from_slice(bytes);
                    complete(&mut self.bytes, &mut self.out);
                }
                None => self.window.push(token, &self.tokenizer, &mut self.out),
            }
        }
        &self.out
    }

    /// What is left when no token follows; what never became a character is U+FFFD.
    pub fn finish(&mut self) -> &str {
        self.out.clear();
        self.window.flush(&self.tokenizer, &mut self.out);
        if !self.bytes.is_empty() {
            self.out.push(char::REPLACEMENT_CHARACTER);
            self.bytes.clear();
        }
        &self.out
    }

    fn has_text(&self, token: u32) -> bool {
        match (self.specials, self.tokenizer.special(token)) {
            (Specials::All, _) | (_, None) => true,
            (Specials::Markers(family), Some(text)) => family.is_marker(text),
            (Specials::Drop, Some(_)) => false,
        }
    }
}

/// Moves complete characters from `bytes` to `out`; what can be no character becomes U+FFFD, as in
/// [`String::from_utf8_lossy`].
fn complete(bytes: &mut Vec<u8>, out: &mut String) {
    let mut done = 0;
    loop {
        match std::str::from_utf8(&bytes[done..]) {
            Ok(text) => {
                out.push_str(text);
                done = bytes.len();
            }
            Err(error) => {
                let valid = done + error.valid_up_to();
                out.push_str(&String::from_utf8_lossy(&bytes[done..valid]));
                done = valid;
                if let Some(len) = error.error_len() {
                    out.push(char::REPLACEMENT_CHARACTER);
                    done += len;
                    continue;
                }
            }
        }
        break;
    }
    bytes.drain(..done);
}

impl Window {
    /// Decodes the window with and without the new token. The given tokens stay in it, since a decoder may
    /// treat the first token of a text differently, such as dropping its space.
    fn push(&mut self, token: u32, tokenizer: &Tokenizer, out: &mut String) {
        self.tokens.push(token);
        let text = tokenizer.decode_by_reference(&self.tokens);
        let waiting = self.tokens.len() - self.given;
        let complete = text.len() > self.given_len && !text.ends_with(char::REPLACEMENT_CHARACTER);
        if complete || waiting > WAITING_MAX {
            out.push_str(text.get(self.given_len..).unwrap_or_default());
            self.tokens.drain(..self.given);
            self.given = self.tokens.len();
            self.given_len = tokenizer.decode_by_reference(&self.tokens).len();
        }
    }

    fn flush(&mut self, tokenizer: &Tokenizer, out: &mut String) {
        if self.given < self.tokens.len() {
            let text = tokenizer.decode_by_reference(&self.tokens);
            out.push_str(text.get(self.given_len..).unwrap_or_default());
        }
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn tiny() -> Arc<Tokenizer> {
        let json = include_bytes!("../../../../examples/models/tiny-agent/tokenizer.json");
        Arc::new(Tokenizer::from_bytes(Path::new("tiny"), json).expect("a tokenizer"))
    }

    fn check(tokens: &[u32], specials: Specials, expected: &[&str]) {
        let mut detokenizer = Detokenizer::with_specials(tiny(), specials);
        let mut out: Vec<String> = tokens.iter().map(|&token| detokenizer.push(token).to_owned()).collect();
        out.push(detokenizer.finish().to_owned());
        assert_eq!(out, expected);
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let tokens = tiny().encode("é🚂");
        check(&tokens, Specials::Drop, &["", "é", "", "", "", "🚂", ""]);
        check(&tokens[..4], Specials::Drop, &["", "é", "", "", "\u{fffd}"]);
    }

    #[test]
    fn special_tokens_have_text_where_it_is_wanted() {
        check(&[3, 2], Specials::Drop, &["", "", ""]);
        check(&[3, 2], Specials::Markers(Family::Plain), &["", "", ""]);
        check(&[3, 2], Specials::Markers(Family::Hermes), &["<tool_call>", "", ""]);
        check(&[3, 2], Specials::All, &["<tool_call>", "<|im_end|>", ""]);
        check(&[5000], Specials::All, &["", ""]);
    }

    #[test]
    fn tokens_that_are_no_bytes_are_decoded_in_a_window() {
        let json = serde_json::json!({
            "added_tokens": [], "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "byte_fallback": true, "vocab": {"▁a": 0, "b": 1, "<0xC3>": 2, "<0xA9>": 3}, "merges": []},
        });
        let tokenizer = Arc::new(
            Tokenizer::from_bytes(Path::new("test"), json.to_string().as_bytes()).expect("a tokenizer"),
        );
        let mut detokenizer = Detokenizer::with_specials(tokenizer, Specials::Drop);
        let out: Vec<String> =
            [0, 1, 0, 2, 3, 0, 2].iter().map(|&token| detokenizer.push(token).to_owned()).collect();
        assert_eq!(out, ["a", "b", " a", "", "é", " a", ""]);
        assert_eq!(detokenizer.finish(), "\u{fffd}");
        assert!(detokenizer.window.tokens.is_empty());
    }

    proptest! {
        /// Whatever the tokens, the pieces are the text of all of them.
        #[test]
        fn the_pieces_make_the_text(tokens in vec(0u32..780, 0..60)) {
            let tokenizer = tiny();
            let bytes: Vec<u8> = tokens.iter().flat_map(|&t| tokenizer.spelled(t).expect("bytes")).copied().collect();
            let mut detokenizer = Detokenizer::with_specials(tokenizer, Specials::All);
            let mut text = String::new();
            for &token in &tokens {
                text.push_str(detokenizer.push(token));
                prop_assert!(detokenizer.bytes.len() < 4);
            }
            text.push_str(detokenizer.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
