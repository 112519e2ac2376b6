//! A model's shape, read from `config.json`.
//!
//! Called by [`crate::Model`] when it loads, and by benchmarks that make up a shape.
//! **Invariant:** whatever a config asks for and we do not compute is an error, never ignored.

use std::path::Path;

use serde_json::{Map, Value};

use crate::EngineError;
use crate::family::{self, Family};
use crate::rope::{Rope, RopeScaling};

/// Shape and constants of a decoder-only model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Architecture name as in `config.json`, such as `Qwen3ForCausalLM`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Width of the gated feed-forward layer.
    pub ffn: usize,
    /// Number of token ids.
    pub vocab: usize,
    /// Most positions the model was made for.
    pub context_max: usize,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// Whether the output projection is the embedding table.
    pub tied: bool,
    /// Token ids that end a text, as `config.json` names them; may be empty.
    pub eos_tokens: Vec<u32>,
}

impl ModelConfig {
    /// Reads the bytes of a `config.json`; `path` names it in errors.
    ///
    /// Errors: [`EngineError::Architecture`] for an unknown family, [`EngineError::Malformed`] for a
    /// missing field or one that asks for what we do not compute.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, EngineError> {
        let fields: Map<String, Value> =
            serde_json::from_slice(json).map_err(|error| malformed(path, error.to_string()))?;
        let fields = Fields { path, fields: &fields };
        let family = fields.family()?;
        fields.refuse_what_we_do_not_compute()?;
        let hidden = fields.size("hidden_size")?;
        let heads = fields.size("num_attention_heads")?;
        let head_dim = match fields.fields.get("head_dim") {
            Some(Value::Null) | None if family.explicit_head_dim => return Err(fields.missing("head_dim")),
            Some(Value::Null) | None => hidden / heads.max(1),
            Some(_) => fields.size("head_dim")?,
        };
        let config = Self {
            architecture: family.architecture.to_owned(),
            hidden,
            layers: fields.size("num_hidden_layers")?,
            heads,
            kv_heads: fields.size_or("num_key_value_heads", heads)?,
            head_dim,
            ffn: fields.size("intermediate_size")?,
            vocab: fields.size("vocab_size")?,
            context_max: fields.size("max_position_embeddings")?,
            norm_eps: fields.number("rms_norm_eps")? as f32,
            rope: fields.rope(family)?,
            tied: fields.flag("tie_word_embeddings"),
            eos_tokens: fields.tokens("eos_token_id"),
        };
        config.check().map_err(|reason| malformed(path, reason))?;
        Ok(config)
    }

    /// The shape of a 135 M model (Llama family), the one that benchmarks use: 30 layers of 576,
    /// 9 query and 3 KV heads of 64, feed-forward 1,536, vocabulary 49,152, tied.
    pub fn llama_135m() -> Self {
        Self {
            architecture: "LlamaForCausalLM".to_owned(),
            hidden: 576,
            layers: 30,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            ffn: 1536,
            vocab: 49_152,
            context_max: 8192,
            norm_eps: 1e-5,
            rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
            tied: true,
            eos_tokens: Vec::new(),
        }
    }

    /// Parameters in matrices, the embedding counted once: what a decode step reads.
    pub fn matrix_parameters(&self) -> u64 {
        let attention = self.hidden * (2 * self.heads + 2 * self.kv_heads) * self.head_dim;
        let layer = attention + 3 * self.hidden * self.ffn;
        (layer * self.layers + self.hidden * self.vocab) as u64
    }

    /// Checks what the arithmetic needs; the text says what is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        let sizes =
            [self.hidden, self.layers, self.heads, self.kv_heads, self.head_dim, self.ffn, self.vocab];
        if sizes.contains(&0) {
            return Err("a size is zero".to_owned());
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "`num_attention_heads` {} is not a multiple of `num_key_value_heads` {}",
                self.heads, self.kv_heads
            ));
        }
        // Matrices are packed in pairs along their inner dimension, and rope turns pairs.
        for (name, size) in
            [("hidden_size", self.hidden), ("head_dim", self.head_dim), ("intermediate_size", self.ffn)]
        {
            if !size.is_multiple_of(2) {
                return Err(format!("`{name}` {size} is odd"));
            }
        }
        Ok(())
    }
}

/// The object in `config.json`, with its path for errors.
struct Fields<'a> {
    path: &'a Path,
    fields: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn family(&self) -> Result<&'static Family, EngineError> {
        let architecture = self
            .fields
            .get("architectures")
            .and_then(|list| list.get(0))
            .and_then(Value::as_str)
            .ok_or_else(|| self.missing("architectures"))?;
        family::find(architecture).ok_or_else(|| EngineError::Architecture {
            path: self.path.to_owned(),
            architecture: architecture.to_owned(),
            supported: family::names(),
        })
    }

    fn refuse_what_we_do_not_compute(&self) -> Result<(), EngineError> {
        for name in ["attention_bias", "mlp_bias", "use_sliding_window"] {
            if self.flag(name) {
                return Err(malformed(self.path, format!("`{name}` is true, which is not supported")));
            }
        }
        let layer_types = self.fields.get("layer_types").and_then(Value::as_array);
        let other = layer_types.and_then(|types| types.iter().find(|kind| *kind != "full_attention"));
        if let Some(other) = other {
            let reason = format!("`layer_types` names {other}, supported is \"full_attention\"");
            return Err(malformed(self.path, reason));
        }
        if let Some(quantization) = self.fields.get("quantization_config").filter(|value| !value.is_null()) {
            let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
            let reason = format!("`quantization_config` asks for method `{method}`, which is not supported");
            return Err(malformed(self.path, reason));
        }
        match self.fields.get("hidden_act").and_then(Value::as_str) {
            Some("silu") | None => Ok(()),
            Some(other) => Err(malformed(
                self.path,
                format!("`hidden_act` `{other}` is not supported (supported: silu)"),
            )),
        }
    }

    /// Reads both shapes: `rope_parameters`, or `rope_theta` beside an optional `rope_scaling`.
    fn rope(&self, family: &Family) -> Result<Rope, EngineError> {
        let nested = self.object("rope_parameters")?.or(self.object("rope_scaling")?);
        let empty = Map::new();
        let inner = Fields { path: self.path, fields: nested.unwrap_or(&empty) };
        for fields in [self, &inner] {
            let share = fields.fields.get("partial_rotary_factor").and_then(Value::as_f64).unwrap_or(1.0);
            if share != 1.0 {
                let reason = format!("`partial_rotary_factor` {share} is not supported (supported: 1)");
                return Err(malformed(self.path, reason));
            }
        }
        let theta = match (inner.fields.get("rope_theta"), self.fields.get("rope_theta")) {
            (Some(_), _) => inner.number("rope_theta")?,
            (None, Some(_)) => self.number("rope_theta")?,
            (None, None) => family.rope_theta_default.ok_or_else(|| self.missing("rope_theta"))?,
        };
        let kind = inner.fields.get("rope_type").or(inner.fields.get("type"));
        let scaling = match kind.and_then(Value::as_str).unwrap_or("default") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: inner.number("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: inner.number("factor")?,
                low_freq_factor: inner.number("low_freq_factor")?,
                high_freq_factor: inner.number("high_freq_factor")?,
                original_context: inner.number("original_max_position_embeddings")?,
            },
            other => {
                let reason =
                    format!("rope type `{other}` is not supported (supported: default, linear, llama3)");
                return Err(malformed(self.path, reason));
            }
        };
        Ok(Rope { theta, scaling })
    }

    fn object(&self, name: &str) -> Result<Option<&Map<String, Value>>, EngineError> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(_) => Err(malformed(self.path, format!("`{name}` is not an object"))),
        }
    }

    fn number(&self, name: &str) -> Result<f64, EngineError> {
        let value = self.fields.get(name).ok_or_else(|| self.missing(name))?;
        value.as_f64().ok_or_else(|| malformed(self.path, format!("`{name}` is not a number")))
    }

    fn size(&self, name: &str) -> Result<usize, EngineError> {
        let value = self.fields.get(name).ok_or_else(|| self.missing(name))?;
        let size = value.as_u64().and_then(|value| u32::try_from(value).ok());
        size.map(|size| size as usize)
            .ok_or_else(|| malformed(self.path, format!("`{name}` is not a whole number below 2^32")))
    }

    fn size_or(&self, name: &str, default: usize) -> Result<usize, EngineError> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(_) => self.size(name),
        }
    }

    fn flag(&self, name: &str) -> bool {
        self.fields.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    fn tokens(&self, name: &str) -> Vec<u32> {
        let one = |value: &Value| value.as_u64().and_then(|token| u32::try_from(token).ok());
        match self.fields.get(name) {
            Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
            Some(value) => one(value).into_iter().collect(),
            None => Vec::new(),
        }
    }

    fn missing(&self, name: &str) -> EngineError {
        malformed(self.path, format!("field `{name}` is missing"))
    }
}

fn malformed(path: &Path, reason: impl Into<String>) -> EngineError {
    EngineError::Malformed { path: path.to_owned(), reason: reason.into() }
}
