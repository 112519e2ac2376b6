//! Tokenizers of SentencePiece in GGUF files: tokens with scores, of which merges are made.
//!
//! **Invariant:** the tokens of a text are those of SentencePiece, except that a space is put before a text that follows a
//! control token too, as llama.cpp and the first converted tokenizers do. Where a token can be made of two in several ways that
//! overlap, merges go by their order and SentencePiece by place; no text of the fixtures shows it.

use rustc_hash::FxHashSet;
use serde_json::{Map, Value, json};

use super::{BYTE, NORMAL, UNKNOWN, Vocabulary};

/// Stands for a space.
const SPACE: &str = "▁";

/// What is put to and taken from a text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spaces {
    /// Whether a space is put before it.
    pub(super) before: bool,
}

impl Vocabulary<'_> {
    /// The parts of a `tokenizer.json` that SentencePiece decides: normalizer, decoder, model.
    pub(super) fn sentencepiece(
        &self,
        vocabulary: Map<String, Value>,
        scores: &[f64],
        spaces: Spaces,
    ) -> [(&'static str, Value); 3] {
        let spaced = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
        let back = json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "});
        let mut normalizers = vec![spaced];
        let mut decoders = vec![back, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        if spaces.before {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let bytes = self.kinds.contains(&BYTE);
        let unknown = self.kinds.iter().position(|kind| *kind == UNKNOWN).map(|at| self.tokens[at]);
        let model = json!({
            "type": "BPE", "unk_token": unknown, "fuse_unk": true, "byte_fallback": bytes,
            "merges": self.merges_by(scores), "vocab": vocabulary,
        });
        [
            ("normalizer", json!({"type": "Sequence", "normalizers": normalizers})),
            ("decoder", json!({"type": "Sequence", "decoders": decoders})),
            ("model", model),
        ]
    }

    /// All ways to make a token of two, the token with the highest score first.
    fn merges_by(&self, scores: &[f64]) -> Vec<[&str; 2]> {
        let pieces = self.tokens.iter().zip(&self.kinds).filter(|(_, kind)| **kind != BYTE);
        let pieces: FxHashSet<&str> = pieces.map(|(token, _)| *token).collect();
        let mut merges = Vec::new();
        for ((token, kind), score) in self.tokens.iter().zip(&self.kinds).zip(scores) {
            if *kind != NORMAL {
                continue;
            }
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if pieces.contains(left) && pieces.contains(right) {
                    merges.push((score, [left, right]));
                }
            }
        }
        // Of equal scores the longer left part first, as SentencePiece's pieces are turned into merges elsewhere.
        merges.sort_by(|(a, one), (b, other)| {
            b.total_cmp(a).then(other[0].len().cmp(&one[0].len())).then(other[1].len().cmp(&one[1].len()))
        });
        merges.into_iter().map(|(_, merge)| merge).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::*;
    use crate::model::gguf::Words;
    use crate::prompt::Tokenizer;

    /// Models that SentencePiece 0.2 trained on our documents (byte-pair encoding of 600 pieces, byte fallback, split
    /// digits, no normalisation), and what it makes of texts.
    #[derive(Deserialize)]
    struct Trained {
        space_prefix: bool,
        tokens: Vec<String>,
        scores: Vec<f64>,
        kinds: Vec<f64>,
        cases: Vec<(String, Vec<u32>)>,
    }

    fn tokenizer(trained: &Trained) -> Tokenizer {
        let spaces = Spaces { before: trained.space_prefix };
        let vocabulary = Vocabulary {
            tokens: trained.tokens.iter().map(String::as_str).collect(),
            kinds: trained.kinds.clone(),
            words: Words::Sentencepiece { scores: trained.scores.clone(), spaces },
        };
        let json = vocabulary.tokenizer_json(Value::Null).expect("a tokenizer");
        Tokenizer::from_bytes(Path::new("test"), json.to_string().as_bytes()).expect("a tokenizer")
    }

    fn trained() -> Vec<Trained> {
        serde_json::from_str(include_str!("sentencepiece.json")).expect("a fixture")
    }

    #[test]
    fn texts_have_the_tokens_of_sentencepiece() {
        for trained in trained() {
            let tokenizer = tokenizer(&trained);
            for (text, expected) in &trained.cases {
                assert_eq!(tokenizer.encode(text), *expected, "{text:?}, prefix {}", trained.space_prefix);
            }
            assert!(trained.cases.len() > 50);
        }
    }

    #[test]
    fn a_control_token_is_one_token_and_a_space_follows_it() {
        let trained = trained();
        let id = |of: &Trained, token: &str| {
            of.tokens.iter().position(|known| known == token).expect("it is there") as u32
        };
        for (trained, space) in [(&trained[0], true), (&trained[1], false)] {
            let tokens = tokenizer(trained).encode("</s>.");
            let between = space.then(|| id(trained, SPACE));
            let expected: Vec<u32> =
                [Some(id(trained, "</s>")), between, Some(id(trained, "."))].into_iter().flatten().collect();
            assert_eq!(tokens, expected);
        }
    }
}
