//! The served model's vocabulary as grammars need it: a trie of the bytes of all tokens.
//!
//! Control tokens spell no text: a grammar reaches them by their number alone, and content never does.
//! **Invariant:** the bytes of text tokens are what the detokenizer makes of them.

use std::sync::Arc;

use llguidance::toktrie::{INVALID_TOKEN, SimpleVob, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::prompt::Tokenizer;

/// Bytes of a token, a trie over all of them, and a few sets.
pub(super) struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
    /// Added tokens that are no text, longest text first.
    control: Vec<(String, u32)>,
    /// All tokens but those that end an answer.
    pub(super) all: SimpleVob,
    /// Tokens of one or two newlines, and how many.
    pub(super) newlines: Vec<(u32, usize)>,
}

impl Vocabulary {
    /// Errors: a message where tokens have no bytes of their own.
    pub(super) fn new(tokenizer: Arc<Tokenizer>, stop_tokens: &[u32]) -> Result<Self, String> {
        let vocab = tokenizer.vocab_size();
        let mut control: Vec<(String, u32)> = tokenizer
            .added()
            .filter(|(_, text, special)| *special || is_markup(text))
            .map(|(token, text, _)| (text.to_owned(), token))
            .collect();
        control.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        let mut words = Vec::with_capacity(vocab as usize);
        for token in 0..vocab {
            words
                .push(tokenizer.raw_bytes(token).ok_or("the tokenizer's tokens have no bytes of their own")?);
        }
        for (text, token) in &control {
            let marker = [TokTrie::SPECIAL_TOKEN_MARKER];
            words[*token as usize] = [&marker, text.as_bytes()].concat();
        }
        let newlines = words.iter().zip(0..).filter(|(word, _)| matches!(word.as_slice(), b"\n" | b"\n\n"));
        let newlines = newlines.map(|(word, token)| (token, word.len())).collect();
        let ends: Vec<u32> = stop_tokens.iter().copied().filter(|token| *token < vocab).collect();
        let info = TokRxInfo::new(vocab, ends.first().copied().unwrap_or(INVALID_TOKEN));
        let mut trie = TokTrie::from(&info, &words);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(&ends);
        }
        let mut all = trie.alloc_token_set();
        all.set_all(true);
        ends.iter().for_each(|&token| all.disallow_token(token));
        Ok(Self { tokenizer, trie, control, all, newlines })
    }

    /// The control token with this text.
    pub(super) fn control(&self, text: &str) -> Option<u32> {
        self.control.iter().find(|(known, _)| known == text).map(|(_, token)| *token)
    }

    /// Bytes of a token, of a control token its text.
    pub(super) fn bytes(&self, token: u32) -> &[u8] {
        let bytes = self.trie.token(token);
        bytes.strip_prefix(&[TokTrie::SPECIAL_TOKEN_MARKER]).filter(|rest| !rest.is_empty()).unwrap_or(bytes)
    }

    /// Calls `piece` with every stretch of plain text and every control token of a text, in order.
    pub(super) fn pieces<'a>(&self, text: &'a str, mut piece: impl FnMut(Result<&'a str, u32>)) {
        let (mut done, mut at) = (0, 0);
        while at < text.len() {
            let found = self.control.iter().find(|(control, _)| text[at..].starts_with(control.as_str()));
            if let Some((control, token)) = found {
                if done < at {
                    piece(Ok(&text[done..at]));
                }
                piece(Err(*token));
                at += control.len();
                done = at;
            } else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
            }
        }
        if done < text.len() {
            piece(Ok(&text[done..]));
        }
    }
}

/// Whether an added token is markup, whatever its file says of it.
fn is_markup(text: &str) -> bool {
    let within = |open, close| text.len() > 2 && text.starts_with(open) && text.ends_with(close);
    within('<', '>') || within('[', ']')
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let encode = |text: &str| self.tokenizer.encode_prompt(&self.tokenizer.guard().text(text));
        self.trie.tokenize_with_greedy_fallback(bytes, encode)
    }

    /// Where a text has one list of tokens, a grammar that leaves no choice of text leaves none of tokens.
    fn tokenize_is_canonical(&self) -> bool {
        self.tokenizer.is_fast()
    }
}
