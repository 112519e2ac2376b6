//! `tokenizer.json`, as far as the fast path understands it.
//!
//! Called once at load. What it does not understand in full it refuses, and the reference library serves.
//! **Invariant:** a file is either encoded exactly as the reference does, or not at all.

use std::borrow::Cow;

use rustc_hash::FxHashMap;
use serde::Deserialize;
use serde_json::Value;

use super::bpe::{Bpe, Merges};
use super::split::Splitter;

/// The parts of `tokenizer.json` that are used.
#[derive(Deserialize)]
pub(super) struct File {
    #[serde(default)]
    pub(super) added_tokens: Vec<Added>,
    #[serde(default)]
    pub(super) normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

/// An added token.
#[derive(Clone, Deserialize)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) special: bool,
    #[serde(default)]
    pub(super) normalized: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    /// An object for BPE; other kinds have other shapes.
    vocab: Value,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    dropout: Option<f32>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

impl Merge {
    fn pair(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pair(left, right) => Some((left, right)),
            Self::Line(line) => line.split_once(' '),
        }
    }
}

impl File {
    /// Whether text is brought into Unicode's form C first; `None` for any other normaliser.
    pub(super) fn form_c(&self) -> Option<bool> {
        match (&self.normalizer, self.normalizer.get("type").and_then(Value::as_str)) {
            (Value::Null, _) => Some(false),
            (_, Some("NFC")) => Some(true),
            _ => None,
        }
    }

    /// Whether decoding is byte-level: tokens are bytes, joined.
    pub(super) fn decodes_bytes(&self) -> bool {
        self.decoder.get("type").and_then(Value::as_str) == Some("ByteLevel")
    }

    /// Token texts by id, in the file's own spelling; empty for models that are not BPE.
    pub(super) fn tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        let vocab = self.model.vocab.as_object().into_iter().flatten();
        vocab.filter_map(|(text, id)| Some((text.as_str(), id.as_u64()? as u32)))
    }

    /// Tokens put before a text that no template made, such as `<|begin_of_text|>`.
    pub(super) fn prefix(&self) -> Vec<u32> {
        let steps = self.post_processor.get("processors").and_then(Value::as_array);
        let steps = steps.map_or(std::slice::from_ref(&self.post_processor), Vec::as_slice);
        let single = steps.iter().find_map(|step| Some((step.get("single")?.as_array()?, step)));
        let Some((single, step)) = single else { return Vec::new() };
        let before = single.iter().map_while(|part| part.get("SpecialToken")?.get("id")?.as_str());
        let ids = before.filter_map(|name| step.get("special_tokens")?.get(name)?.get("ids")?.as_array());
        ids.flatten().filter_map(|id| Some(id.as_u64()? as u32)).collect()
    }

    /// The fast model, or why there is none.
    pub(super) fn bpe(&self) -> Result<Bpe, Cow<'static, str>> {
        let model = &self.model;
        let plain = model.kind.as_deref().is_none_or(|kind| kind == "BPE")
            && model.dropout.is_none_or(|dropout| dropout == 0.0)
            && model.continuing_subword_prefix.as_deref().unwrap_or("").is_empty()
            && model.end_of_word_suffix.as_deref().unwrap_or("").is_empty()
            && !model.byte_fallback;
        if !plain {
            return Err("its model is not plain byte-pair encoding".into());
        }
        if self.form_c().is_none() {
            return Err("its normaliser is not known".into());
        }
        if self.added_tokens.iter().any(|t| t.single_word || t.lstrip || t.rstrip || t.content.is_empty()) {
            return Err("an added token takes text around it".into());
        }
        let splitter = self.splitter().ok_or("its split pattern is not known")?;
        let ids: FxHashMap<&str, u32> = self.tokens().collect();
        let mut bytes = [0; 256];
        for (c, byte) in byte_chars() {
            let id = ids.get(c.encode_utf8(&mut [0; 4]) as &str);
            bytes[usize::from(byte)] = *id.ok_or("its vocabulary lacks a byte")?;
        }
        let merges = self.merges(&ids).ok_or("a merge is not in its vocabulary")?;
        let words = model.ignore_merges.then(|| self.words());
        Ok(Bpe::new(splitter, bytes, merges, words))
    }

    fn merges(&self, ids: &FxHashMap<&str, u32>) -> Option<Merges> {
        let mut merges = Merges::default();
        let mut both = String::new();
        for (merge, rank) in self.model.merges.iter().zip(0..) {
            let (left, right) = merge.pair()?;
            both.clear();
            both.push_str(left);
            both.push_str(right);
            merges.insert((*ids.get(left)?, *ids.get(right)?), (rank, *ids.get(both.as_str())?));
        }
        Some(merges)
    }

    fn words(&self) -> FxHashMap<Box<[u8]>, u32> {
        let table = ByteTable::new();
        let words = self.tokens().filter_map(|(text, id)| Some((table.bytes(text)?.into(), id)));
        words.collect()
    }

    fn splitter(&self) -> Option<Splitter> {
        let is = |step: &Value, kind: &str| step.get("type").and_then(Value::as_str) == Some(kind);
        let flag = |step: &Value, name: &str| step.get(name).and_then(Value::as_bool);
        // Both flags default to true.
        let bare = |step: &Value| is(step, "ByteLevel") && flag(step, "add_prefix_space") == Some(false);
        let steps = &self.pre_tokenizer;
        if bare(steps) && flag(steps, "use_regex") != Some(false) {
            return Some(Splitter::Gpt2);
        }
        let [split, bytes] = steps.get("pretokenizers")?.as_array()?.as_slice() else { return None };
        let isolated = is(split, "Split")
            && split.get("behavior").and_then(Value::as_str) == Some("Isolated")
            && flag(split, "invert") != Some(true);
        if !is(steps, "Sequence") || !isolated || !bare(bytes) || flag(bytes, "use_regex") != Some(false) {
            return None;
        }
        Splitter::recognise(split.get("pattern")?.get("Regex")?.as_str()?)
    }
}

/// The characters that stand for bytes in byte-level vocabularies.
///
/// Source: `bytes_to_unicode` of GPT-2's encoder; printable Latin-1 stands for itself.
fn byte_chars() -> impl Iterator<Item = (char, u8)> {
    let mut stand_in = 0x100..;
    (0..=255u8).map(move |byte| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => (char::from(byte), byte),
        _ => (stand_in.next().and_then(char::from_u32).expect("68 bytes need a stand-in"), byte),
    })
}

/// Turns the stand-ins of a vocabulary back into bytes.
pub(super) struct ByteTable(FxHashMap<char, u8>);

impl ByteTable {
    pub(super) fn new() -> Self {
        Self(byte_chars().collect())
    }

    /// The bytes of a token; `None` if a character stands for none.
    pub(super) fn bytes(&self, text: &str) -> Option<Vec<u8>> {
        text.chars().map(|c| self.0.get(&c).copied()).collect()
    }
}
