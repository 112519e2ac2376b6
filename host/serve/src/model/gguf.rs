//! What a GGUF file says of its tokenizer and template, in the form of the small files of a model folder.
//!
//! Called once at load. **Invariant:** a tokenizer that is not known to the letter is refused by name, for one that is
//! almost right gives other tokens than the model was trained on.

mod sentencepiece;

use std::path::Path;

use engine::GgufMetadata;
use serde_json::{Map, Value, json};

use self::sentencepiece::Spaces;
use super::{ModelError, Texts};
use crate::prompt::{LLAMA3_SPLIT, QWEN2_SPLIT};

/// Kinds of a token, as the format numbers them.
const NORMAL: f64 = 1.0;
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;
const BYTE: f64 = 6.0;

/// How a tokenizer cuts text into tokens.
enum Words<'a> {
    /// Words of bytes, by merges.
    Pairs { split: &'static Split, merges: Vec<&'a str> },
    /// Text with its spaces, by scores.
    Sentencepiece { scores: Vec<f64>, spaces: Spaces },
}

/// How text is cut into words.
struct Split {
    /// Names in `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// The pattern; none for that of GPT-2.
    pattern: Option<&'static str>,
    /// Whether text is brought into Unicode's form C first.
    form_c: bool,
    /// Whether a word of the vocabulary is a token, whatever its merges are.
    whole_words: bool,
    /// Whether a text begins with a token of its own where the file does not say.
    begins: bool,
}

static SPLITS: [Split; 3] = [
    Split {
        names: &["llama-bpe", "llama3", "llama-v3"],
        pattern: Some(LLAMA3_SPLIT),
        form_c: false,
        whole_words: true,
        begins: true,
    },
    Split { names: &["qwen2"], pattern: Some(QWEN2_SPLIT), form_c: true, whole_words: false, begins: false },
    Split { names: &["gpt-2"], pattern: None, form_c: false, whole_words: false, begins: false },
];

impl Texts {
    /// Those of a GGUF file at `path`.
    ///
    /// Errors: [`ModelError::Malformed`], naming the key and what is supported.
    pub(super) fn of_gguf(path: &Path, metadata: &GgufMetadata<'_>) -> Result<Self, ModelError> {
        let malformed = |reason| ModelError::Malformed { path: path.to_owned(), reason };
        let vocabulary = Vocabulary::of(metadata).map_err(malformed)?;
        let spelled = |key: &str| {
            let id = metadata.unsigned(&format!("tokenizer.ggml.{key}_token_id"))?;
            vocabulary.tokens.get(usize::try_from(id).ok()?).copied()
        };
        let stops =
            ["eos", "eot", "eom"].map(|key| metadata.unsigned(&format!("tokenizer.ggml.{key}_token_id")));
        let stops: Vec<u64> = stops.into_iter().flatten().collect();
        let tokenizer_config = json!({
            "chat_template": metadata.text("tokenizer.chat_template"),
            "bos_token": spelled("bos"),
            "eos_token": spelled("eos"),
        });
        let bytes = |value: &Value| value.to_string().into_bytes();
        Ok(Self {
            folder: path.to_owned(),
            tokenizer: bytes(&vocabulary.tokenizer_json(vocabulary.prefix(metadata)).map_err(malformed)?),
            tokenizer_config: bytes(&tokenizer_config),
            generation_config: bytes(&json!({ "eos_token_id": stops })),
            config: Vec::new(),
            template: Vec::new(),
        })
    }
}

/// Tokens of a file.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<f64>,
    words: Words<'a>,
}

impl<'a> Vocabulary<'a> {
    fn of(metadata: &GgufMetadata<'a>) -> Result<Self, String> {
        let tokens = texts(metadata, "tokenizer.ggml.tokens")?;
        let numbers = |key: &str| -> Result<Vec<f64>, String> {
            let numbers: Vec<f64> = metadata.numbers(key).map(Iterator::collect).unwrap_or_default();
            match numbers.len() == tokens.len() {
                true => Ok(numbers),
                false => Err(format!("`{key}` has {} entries for {} tokens", numbers.len(), tokens.len())),
            }
        };
        let words = match metadata.text("tokenizer.ggml.model") {
            Some("gpt2") => Words::Pairs {
                split: split(metadata.text("tokenizer.ggml.pre").unwrap_or(""))?,
                merges: texts(metadata, "tokenizer.ggml.merges")?,
            },
            Some("llama") => Words::Sentencepiece {
                scores: numbers("tokenizer.ggml.scores")?,
                spaces: Spaces { before: metadata.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true) },
            },
            Some(model) => {
                return Err(format!(
                    "`tokenizer.ggml.model` `{model}` is not supported (supported: gpt2, byte-level pairs; llama, \
                     SentencePiece's pairs); serve the model's safetensors folder, whose `tokenizer.json` is"
                ));
            }
            None => return Err("`tokenizer.ggml.model` is missing".to_owned()),
        };
        let kinds = numbers("tokenizer.ggml.token_type")?;
        Ok(Self { tokens, kinds, words })
    }

    /// The same as a `tokenizer.json`. `prefix`: what puts a first token before a text.
    fn tokenizer_json(&self, prefix: Value) -> Result<Value, String> {
        let mut vocabulary = Map::with_capacity(self.tokens.len());
        let mut added = Vec::new();
        let is_pieces = matches!(self.words, Words::Sentencepiece { .. });
        for (id, (token, kind)) in self.tokens.iter().zip(&self.kinds).enumerate() {
            let special = *kind == CONTROL || *kind == UNKNOWN;
            let is_added = special || *kind == USER_DEFINED;
            if is_added {
                added.push(json!({
                    "id": id, "content": token, "special": special, "normalized": false, "single_word": false,
                    "lstrip": false, "rstrip": false,
                }));
            }
            // The reference library takes the ids of added tokens from here, too.
            if (is_pieces || !is_added) && vocabulary.insert((*token).to_owned(), id.into()).is_some() {
                return Err(format!("`tokenizer.ggml.tokens` has {token:?} twice"));
            }
        }
        let mut json = json!({ "added_tokens": added, "post_processor": prefix });
        let parts = match &self.words {
            Words::Pairs { split, merges } => pairs(split, vocabulary, merges),
            Words::Sentencepiece { scores, spaces } => {
                self.sentencepiece(vocabulary, scores, *spaces).into_iter().collect()
            }
        };
        parts.into_iter().for_each(|(name, part)| json[name] = part);
        Ok(json)
    }

    /// What puts a first token before a text that no template made.
    fn prefix(&self, metadata: &GgufMetadata<'_>) -> Value {
        let bos = metadata.unsigned("tokenizer.ggml.bos_token_id");
        let begins = match &self.words {
            Words::Pairs { split, .. } => split.begins,
            Words::Sentencepiece { .. } => true,
        };
        let wanted = metadata.flag("tokenizer.ggml.add_bos_token").unwrap_or(begins);
        let token = bos.and_then(|id| self.tokens.get(usize::try_from(id).ok()?));
        let (Some(id), Some(token), true) = (bos, token, wanted) else { return Value::Null };
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": token, "type_id": 0}}, text],
            "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": { *token: {"id": token, "ids": [id], "tokens": [token]} },
        })
    }
}

fn texts<'a>(metadata: &GgufMetadata<'a>, key: &str) -> Result<Vec<&'a str>, String> {
    Ok(metadata.texts(key).ok_or_else(|| format!("`{key}` is no list of texts"))?.collect())
}

/// How words are cut, by the name in `tokenizer.ggml.pre`.
fn split(pre: &str) -> Result<&'static Split, String> {
    SPLITS.iter().find(|split| split.names.contains(&pre)).ok_or_else(|| {
        let known: Vec<&str> = SPLITS.iter().flat_map(|split| split.names).copied().collect();
        format!("`tokenizer.ggml.pre` `{pre}` is not supported (supported: {})", known.join(", "))
    })
}

/// The parts of a `tokenizer.json` of byte-level pairs.
fn pairs(split: &Split, vocabulary: Map<String, Value>, merges: &[&str]) -> Vec<(&'static str, Value)> {
    let bytes = |words: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": words});
    let pre = match split.pattern {
        None => bytes(true),
        Some(pattern) => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}, bytes(false),
        ]}),
    };
    let model = json!({
        "type": "BPE", "vocab": vocabulary, "merges": merges, "ignore_merges": split.whole_words,
    });
    vec![
        ("normalizer", split.form_c.then(|| json!({"type": "NFC"})).into()),
        ("pre_tokenizer", pre),
        ("decoder", bytes(true)),
        ("model", model),
    ]
}
