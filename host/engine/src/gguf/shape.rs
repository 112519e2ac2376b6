//! The metadata of a GGUF file said as a `config.json`, so that one reader checks both.
//!
//! **Invariant:** a key of the architecture that is neither said nor known to change nothing is refused.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::metadata::GgufMetadata;
use super::{Header, TensorInfo};
use crate::EngineError;
use crate::family::{self, Family, Windows};

/// Keys below the architecture's name that are said in `config.json`.
const SAID: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_used_count",
    "feed_forward_length",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
];

const DIVISOR: &str = "query_pre_attn_scalar";

/// Keys that are checked here or change nothing.
const CHECKED: &[&str] =
    &["attention.value_length", "rope.dimension_count", "rope.scaling.finetuned", "vocab_size"];

/// The family, and a `config.json` for it; `path` names the file in errors.
///
/// Errors: [`EngineError::Architecture`] for an unknown family, [`EngineError::Malformed`] for a key that is missing or
/// asks for what we do not compute.
pub(crate) fn config_json(
    path: &Path,
    header: &Header,
    bytes: &[u8],
) -> Result<(&'static Family, Value), EngineError> {
    let metadata = GgufMetadata { values: &header.values, bytes };
    let malformed = |reason: String| EngineError::Malformed { path: path.to_owned(), reason };
    let name = metadata.text("general.architecture");
    let name = name.ok_or_else(|| malformed("`general.architecture` is missing".to_owned()))?;
    let family = family::find_gguf(name).ok_or_else(|| EngineError::Architecture {
        path: path.to_owned(),
        architecture: name.to_owned(),
        supported: family::gguf_names(),
    })?;
    let keys = Keys { metadata, family, name };
    let fields = keys.fields(header, bytes).map_err(malformed)?;
    Ok((family, Value::Object(fields)))
}

/// The keys of one architecture.
struct Keys<'a> {
    metadata: GgufMetadata<'a>,
    family: &'static Family,
    name: &'a str,
}

impl Keys<'_> {
    fn fields(&self, header: &Header, bytes: &[u8]) -> Result<Map<String, Value>, String> {
        let metadata = &self.metadata;
        if metadata.unsigned("split.count").is_some_and(|count| count > 1) {
            return Err(
                "the model is split over several files, which is not supported: merge them".to_owned()
            );
        }
        self.refuse_others()?;
        let mut fields = Map::new();
        fields.insert("architectures".to_owned(), json!([self.family.architecture]));
        self.sizes(&mut fields)?;
        self.windows(&mut fields)?;
        self.experts(&mut fields)?;
        self.rope(&mut fields, header, bytes)?;
        let embedding =
            header.tensors.get("token_embd.weight").ok_or("tensor `token_embd.weight` is missing")?;
        let vocab = embedding.shape[0];
        if let Some(tokens) = metadata.list_len("tokenizer.ggml.tokens").filter(|tokens| *tokens > vocab) {
            return Err(format!("`tokenizer.ggml.tokens` names {tokens} tokens, the embedding has {vocab}"));
        }
        fields.insert("vocab_size".to_owned(), json!(vocab));
        fields.insert("tie_word_embeddings".to_owned(), json!(!header.tensors.contains_key("output.weight")));
        if let Some(token) = metadata.unsigned("tokenizer.ggml.eos_token_id") {
            fields.insert("eos_token_id".to_owned(), json!(token));
        }
        Ok(fields)
    }

    fn key(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    fn unsigned(&self, part: &str) -> Result<Option<u64>, String> {
        let key = self.key(part);
        match self.metadata.unsigned(&key) {
            None if self.metadata.has(&key) => Err(format!("`{key}` is not a whole number")),
            value => Ok(value),
        }
    }

    fn required(&self, part: &str) -> Result<u64, String> {
        self.unsigned(part)?.ok_or_else(|| format!("`{}` is missing", self.key(part)))
    }

    fn number(&self, part: &str) -> Option<f64> {
        // Written as f32: the nearest decimal is what the writer was given.
        let number = self.metadata.number(&self.key(part))?;
        (number as f32).to_string().parse().ok()
    }

    fn refuse_others(&self) -> Result<(), String> {
        let prefix = format!("{}.", self.name);
        let parts = self.metadata.keys().filter_map(|key| key.strip_prefix(&prefix));
        for part in parts {
            let zero = self.metadata.number(&self.key(part)) == Some(0.0);
            if !zero && !SAID.contains(&part) && !CHECKED.contains(&part) {
                return Err(format!("`{prefix}{part}` asks for what is not supported"));
            }
        }
        Ok(())
    }

    fn sizes(&self, fields: &mut Map<String, Value>) -> Result<(), String> {
        let (hidden, heads) = (self.required("embedding_length")?, self.required("attention.head_count")?);
        let head_dim = match self.unsigned("attention.key_length")? {
            Some(head_dim) => head_dim,
            None => hidden / heads.max(1),
        };
        for part in ["attention.value_length", "rope.dimension_count"] {
            if let Some(other) = self.unsigned(part)?.filter(|other| *other != head_dim) {
                return Err(format!("`{}` is {other}, supported is the head's {head_dim}", self.key(part)));
            }
        }
        let eps = self.number("attention.layer_norm_rms_epsilon");
        let eps =
            eps.ok_or_else(|| format!("`{}` is missing", self.key("attention.layer_norm_rms_epsilon")))?;
        for (name, value) in [
            ("hidden_size", json!(hidden)),
            ("num_attention_heads", json!(heads)),
            ("num_key_value_heads", json!(self.unsigned("attention.head_count_kv")?)),
            ("head_dim", json!(head_dim)),
            ("num_hidden_layers", json!(self.required("block_count")?)),
            ("intermediate_size", json!(self.unsigned("feed_forward_length")?)),
            ("max_position_embeddings", json!(self.required("context_length")?)),
            ("rms_norm_eps", json!(eps)),
        ] {
            fields.insert(name.to_owned(), value);
        }
        if let Some(scale) = self.number("attention.scale") {
            // Written as f32: the whole number that it comes from.
            let divisor = 1.0 / (scale * scale);
            let near = (divisor - divisor.round()).abs() < 1e-3;
            fields.insert(DIVISOR.to_owned(), json!(if near { divisor.round() } else { divisor }));
        } else if self.name == "gemma3" && self.required("block_count")? == 62 {
            // The 27 B of Gemma 3 has another divisor than its head's width, and most of its files do not say so.
            fields.insert(DIVISOR.to_owned(), json!(hidden / heads.max(1)));
        }
        Ok(())
    }

    fn windows(&self, fields: &mut Map<String, Value>) -> Result<(), String> {
        let window = self.unsigned("attention.sliding_window")?.filter(|window| *window > 0);
        let Some(window) = window else {
            if matches!(self.family.windows, Windows::Pattern | Windows::Alternate) {
                return Err(format!("`{}` is missing", self.key("attention.sliding_window")));
            }
            return Ok(());
        };
        if matches!(self.family.windows, Windows::Never | Windows::Asked) {
            return Err(format!(
                "`{}` is {window}, which is not supported",
                self.key("attention.sliding_window")
            ));
        }
        fields.insert("sliding_window".to_owned(), json!(window));
        if let Some(pattern) = self.unsigned("attention.sliding_window_pattern")? {
            fields.insert("sliding_window_pattern".to_owned(), json!(pattern));
        }
        Ok(())
    }

    fn experts(&self, fields: &mut Map<String, Value>) -> Result<(), String> {
        let Some(names) = &self.family.experts else {
            return match self.unsigned("expert_count")? {
                None | Some(0) => Ok(()),
                Some(count) => {
                    Err(format!("`{}` is {count}, which is not supported", self.key("expert_count")))
                }
            };
        };
        fields.insert(names.count.to_owned(), json!(self.required("expert_count")?));
        fields.insert(names.active.to_owned(), json!(self.required("expert_used_count")?));
        fields.insert(names.width.to_owned(), json!(self.required("expert_feed_forward_length")?));
        // What every file of these architectures means.
        if let Some(normalized) = names.normalized {
            fields.insert(normalized.to_owned(), json!(true));
        }
        Ok(())
    }

    fn rope(&self, fields: &mut Map<String, Value>, header: &Header, bytes: &[u8]) -> Result<(), String> {
        if let Some(base) = self.number("rope.freq_base") {
            fields.insert("rope_theta".to_owned(), json!(base));
        }
        if self.name == "gemma3" {
            let local = self.number("rope.freq_base_swa").unwrap_or(10_000.0);
            fields.insert("rope_local_base_freq".to_owned(), json!(local));
        }
        let key = self.key("rope.scaling.type");
        let kind = match self.metadata.text(&key) {
            None if self.metadata.has(&key) => return Err(format!("`{key}` is not a text")),
            kind => kind.unwrap_or("none"),
        };
        let factors = |name| header.tensors.get(name).map(|info| factors(name, info, bytes)).transpose();
        let per_pair = factors("rope_freqs.weight")?;
        let short = factors("rope_factors_short.weight")?;
        let original = self.unsigned("rope.scaling.original_context_length")?;
        let factor = self.number("rope.scaling.factor");
        let scaling = match (kind, per_pair, short) {
            ("none" | "longrope", None, Some(short)) => json!({
                "rope_type": "longrope",
                "short_factor": short,
                "attention_factor": self.number("rope.scaling.attn_factor"),
                "original_max_position_embeddings": original,
            }),
            // How files say the stretching of Llama 3: with a factor for each pair, and for every context.
            ("none", Some(per_pair), None) => json!({
                "rope_type": "longrope",
                "short_factor": per_pair,
                "attention_factor": 1.0,
            }),
            ("none", None, None) => Value::Null,
            ("linear", None, None) => json!({"rope_type": "linear", "factor": factor}),
            ("yarn", None, None) => json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
                "beta_fast": self.number("rope.scaling.yarn_beta_fast"),
                "beta_slow": self.number("rope.scaling.yarn_beta_slow"),
                // Ramps of GGUF's readers begin and end at whole pairs, but for gpt-oss.
                "truncate": self.name != "gpt-oss",
            }),
            (other, ..) => return Err(format!("rope scaling `{other}` is not supported with these factors")),
        };
        fields.insert("rope_scaling".to_owned(), scaling);
        Ok(())
    }
}

/// The numbers of a small tensor of floats.
fn factors(name: &str, info: &TensorInfo, bytes: &[u8]) -> Result<Vec<f64>, String> {
    if info.shape.len() != 1 || info.encoding != crate::encoding::Encoding::F32 {
        return Err(format!("tensor `{name}` {:?} is no list of F32", info.shape));
    }
    let numbers = bytes[info.bytes.clone()].as_chunks::<4>().0;
    Ok(numbers.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect())
}
