//! What a GGUF file says of its tokenizer and template, in the form of the small files of a model folder.
//!
//! Called once at load. **Invariant:** a tokenizer that is not known to the letter is refused by name, for one that is
//! almost right gives other tokens than the model was trained on.

use std::path::Path;

use engine::GgufMetadata;
use serde_json::{Map, Value, json};

use super::{ModelError, Texts};
use crate::prompt::{LLAMA3_SPLIT, QWEN2_SPLIT};

/// Kinds of a token, as the format numbers them.
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

/// How a tokenizer cuts text into words.
struct Words {
    /// The pattern; none for that of GPT-2.
    split: Option<&'static str>,
    /// Whether text is brought into Unicode's form C first.
    form_c: bool,
    /// Whether a word of the vocabulary is a token, whatever its merges are.
    whole_words: bool,
    /// Whether a text begins with a token of its own where the file does not say.
    begins: bool,
}

/// Words by the name in `tokenizer.ggml.pre`.
fn words(pre: &str) -> Option<Words> {
    Some(match pre {
        "llama-bpe" | "llama3" | "llama-v3" => {
            Words { split: Some(LLAMA3_SPLIT), form_c: false, whole_words: true, begins: true }
        }
        "qwen2" => Words { split: Some(QWEN2_SPLIT), form_c: true, whole_words: false, begins: false },
        "gpt-2" => Words { split: None, form_c: false, whole_words: false, begins: false },
        _ => return None,
    })
}

/// The names above, for an error message.
const PRE_KNOWN: &str = "llama-bpe, llama3, llama-v3, qwen2, gpt-2";

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
            tokenizer: bytes(&vocabulary.tokenizer_json(metadata).map_err(malformed)?),
            tokenizer_config: bytes(&tokenizer_config),
            generation_config: bytes(&json!({ "eos_token_id": stops })),
            config: Vec::new(),
            template: Vec::new(),
        })
    }
}

/// Tokens and merges of a file.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<f64>,
    merges: Vec<&'a str>,
    words: Words,
}

impl<'a> Vocabulary<'a> {
    fn of(metadata: &GgufMetadata<'a>) -> Result<Self, String> {
        let model = metadata.text("tokenizer.ggml.model").ok_or("`tokenizer.ggml.model` is missing")?;
        if model != "gpt2" {
            return Err(format!(
                "`tokenizer.ggml.model` `{model}` is not supported (supported: gpt2, byte-level pairs); serve the model's \
                 safetensors folder, whose `tokenizer.json` is"
            ));
        }
        let pre = metadata.text("tokenizer.ggml.pre").unwrap_or("");
        let words = words(pre).ok_or_else(|| {
            format!("`tokenizer.ggml.pre` `{pre}` is not supported (supported: {PRE_KNOWN})")
        })?;
        let texts = |key: &str| -> Result<Vec<&'a str>, String> {
            Ok(metadata.texts(key).ok_or_else(|| format!("`{key}` is no list of texts"))?.collect())
        };
        let tokens = texts("tokenizer.ggml.tokens")?;
        let kinds: Vec<f64> =
            metadata.numbers("tokenizer.ggml.token_type").map(Iterator::collect).unwrap_or_default();
        if kinds.len() != tokens.len() {
            let (kinds, tokens) = (kinds.len(), tokens.len());
            return Err(format!("`tokenizer.ggml.token_type` has {kinds} entries for {tokens} tokens"));
        }
        Ok(Self { tokens, kinds, merges: texts("tokenizer.ggml.merges")?, words })
    }

    /// The same as a `tokenizer.json`.
    fn tokenizer_json(&self, metadata: &GgufMetadata<'_>) -> Result<Value, String> {
        let mut vocabulary = Map::with_capacity(self.tokens.len());
        let mut added = Vec::new();
        for (id, (token, kind)) in self.tokens.iter().zip(&self.kinds).enumerate() {
            let special = *kind == CONTROL;
            if special || *kind == USER_DEFINED {
                added.push(json!({
                    "id": id, "content": token, "special": special, "normalized": false, "single_word": false,
                    "lstrip": false, "rstrip": false,
                }));
            } else if vocabulary.insert((*token).to_owned(), id.into()).is_some() {
                return Err(format!("`tokenizer.ggml.tokens` has {token:?} twice"));
            }
        }
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
        let pre = match self.words.split {
            None => {
                json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true})
            }
            Some(split) => json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": false}, bytes,
            ]}),
        };
        Ok(json!({
            "added_tokens": added,
            "normalizer": self.words.form_c.then(|| json!({"type": "NFC"})),
            "pre_tokenizer": pre,
            "post_processor": self.prefix(metadata),
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
            "model": {
                "type": "BPE", "vocab": vocabulary, "merges": self.merges, "ignore_merges": self.words.whole_words,
            },
        }))
    }

    /// What puts a first token before a text that no template made.
    fn prefix(&self, metadata: &GgufMetadata<'_>) -> Value {
        let bos = metadata.unsigned("tokenizer.ggml.bos_token_id");
        let wanted = metadata.flag("tokenizer.ggml.add_bos_token").unwrap_or(self.words.begins);
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
