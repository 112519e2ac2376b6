//! A model's shape, read from `config.json`.
//!
//! Called by [`crate::Model`] when it loads, and by benchmarks that make up a shape.
//! **Invariant:** whatever a config asks for and we do not compute is an error, never ignored.

use std::path::Path;

use serde_json::{Map, Value};

use crate::EngineError;
use crate::family::{self, Family, Windows};
use crate::fields::Fields;
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
    /// Width of the gated feed-forward layer, of one expert where there are experts.
    pub ffn: usize,
    /// Number of token ids.
    pub vocab: usize,
    /// Most positions the model was made for.
    pub context_max: usize,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// Layers that see a window of tokens; none when all see everything before them.
    pub sliding: Option<Sliding>,
    /// What attention divides scores by the root of; none for `head_dim`.
    pub score_divisor: Option<f32>,
    /// Experts that share the feed-forward layers; none for dense ones.
    pub experts: Option<Experts>,
    /// Whether the output projection is the embedding table.
    pub tied: bool,
    /// Token ids that end a text, as `config.json` names them; may be empty.
    pub eos_tokens: Vec<u32>,
}

/// Layers whose tokens see only the last tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Sliding {
    /// Tokens seen, a token itself included.
    pub window: usize,
    /// Which layers, one flag for each.
    pub layers: Vec<bool>,
    /// Rotary embedding in these layers.
    pub rope: Rope,
}

/// Experts of every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that compute a token.
    pub active: usize,
    /// Whether the weights of a token's experts sum to 1; otherwise they are their shares among all.
    pub normalized: bool,
}

/// Most layers, values of a head and experts of a layer. Chosen: far beyond any model, so that a wrong number in a file
/// is refused before memory is taken for it.
const COUNT_MAX: usize = 4096;

/// Fields that [`ModelConfig::parse`] reads in every family.
const READ: &[&str] = &[
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "hidden_size",
    "layer_types",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "quantization_config",
    "rms_norm_eps",
    "rope_local_base_freq",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
];

impl ModelConfig {
    /// Reads the bytes of a `config.json`; `path` names it in errors.
    ///
    /// Errors: [`EngineError::Architecture`] for an unknown family, [`EngineError::Malformed`] for a
    /// missing field or one that asks for what we do not compute.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, EngineError> {
        let fields: Map<String, Value> = serde_json::from_slice(json)
            .map_err(|error| EngineError::Malformed { path: path.to_owned(), reason: error.to_string() })?;
        let fields = Fields { path, fields: &fields };
        let family = family_of(fields)?;
        refuse_what_we_do_not_compute(fields, family)?;
        let hidden = fields.size("hidden_size")?;
        let heads = fields.size("num_attention_heads")?;
        let head_dim = match fields.value("head_dim") {
            None if family.explicit_head_dim => return Err(fields.missing("head_dim")),
            None => hidden / heads.max(1),
            Some(_) => fields.size("head_dim")?,
        };
        let layers = fields.size("num_hidden_layers")?;
        if layers > COUNT_MAX {
            return Err(fields.malformed(format!("`num_hidden_layers` {layers} is more than {COUNT_MAX}")));
        }
        let width = family.experts.as_ref().map_or("intermediate_size", |experts| experts.width);
        let rope = Rope::parse(fields, family.rope_theta_default)?;
        let divisor = fields.value("query_pre_attn_scalar").map(|_| fields.number("query_pre_attn_scalar"));
        let config = Self {
            architecture: family.architecture.to_owned(),
            hidden,
            layers,
            heads,
            kv_heads: fields.size_or("num_key_value_heads", heads)?,
            head_dim,
            ffn: fields.size(width)?,
            vocab: fields.size("vocab_size")?,
            context_max: Rope::context_max(fields)?,
            norm_eps: fields.number("rms_norm_eps")? as f32,
            sliding: sliding(fields, family, layers, &rope)?,
            rope,
            score_divisor: divisor.transpose()?.map(|divisor| divisor as f32),
            experts: experts(fields, family)?,
            tied: fields.flag_or("tie_word_embeddings", family.tied_default)?,
            eos_tokens: fields.tokens("eos_token_id")?,
        };
        config.check().map_err(|reason| fields.malformed(reason))?;
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
            sliding: None,
            score_divisor: None,
            experts: None,
            tied: true,
            eos_tokens: Vec::new(),
        }
    }

    /// Parameters in matrices, the embedding counted once: what a decode step of one sequence reads.
    pub fn matrix_parameters(&self) -> u64 {
        let attention = self.hidden * (2 * self.heads + 2 * self.kv_heads) * self.head_dim;
        let gated = 3 * self.hidden * self.ffn;
        let ffn = self.experts.map_or(gated, |experts| experts.active * gated + experts.count * self.hidden);
        ((attention + ffn) * self.layers + self.hidden * self.vocab) as u64
    }

    /// Bytes of a KV page of so many tokens: keys and values of all layers, in bf16.
    pub fn page_bytes(&self, block_tokens: u32) -> u64 {
        (self.layers * 2 * self.kv_heads * self.head_dim * 2) as u64 * u64::from(block_tokens)
    }

    /// Most tokens of a sequence where so many are asked for; 0 asks for all that the model was made for.
    pub(crate) fn context_within(&self, asked: u32) -> u32 {
        let limit = self.context_max as u32;
        if asked == 0 { limit } else { asked.min(limit) }
    }

    /// Checks what the arithmetic needs; the text says what is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        let sizes =
            [self.hidden, self.layers, self.heads, self.kv_heads, self.head_dim, self.ffn, self.vocab];
        if sizes.contains(&0) {
            return Err("a size is zero".to_owned());
        }
        let counts = [self.layers, self.head_dim, self.experts.map_or(0, |experts| experts.count)];
        if let Some(count) = counts.iter().find(|count| **count > COUNT_MAX) {
            return Err(format!("{count} layers, head values or experts are more than {COUNT_MAX}"));
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
        if let Some(token) = self.eos_tokens.iter().find(|token| **token as usize >= self.vocab) {
            return Err(format!("`eos_token_id` names token {token} of {}", self.vocab));
        }
        if self.score_divisor.is_some_and(|divisor| divisor <= 0.0) {
            return Err("`query_pre_attn_scalar` is not above 0".to_owned());
        }
        self.rope.check(self.head_dim)?;
        self.check_sliding()?;
        match self.experts {
            Some(Experts { count, active, .. }) if active == 0 || active > count => {
                Err(format!("{active} of {count} experts cannot compute a token"))
            }
            _ => Ok(()),
        }
    }

    fn check_sliding(&self) -> Result<(), String> {
        let Some(Sliding { window, layers, rope }) = &self.sliding else { return Ok(()) };
        if *window == 0 {
            return Err("`sliding_window` 0 leaves nothing to see".to_owned());
        }
        if layers.len() != self.layers {
            return Err(format!("`layer_types` names {} layers of {}", layers.len(), self.layers));
        }
        rope.check(self.head_dim)
    }
}

fn family_of(fields: Fields<'_>) -> Result<&'static Family, EngineError> {
    let architectures = fields.value("architectures").and_then(|list| list.get(0));
    let architecture =
        architectures.and_then(Value::as_str).ok_or_else(|| fields.missing("architectures"))?;
    family::find(architecture).ok_or_else(|| EngineError::Architecture {
        path: fields.path.to_owned(),
        architecture: architecture.to_owned(),
        supported: family::names(),
    })
}

fn refuse_what_we_do_not_compute(fields: Fields<'_>, family: &Family) -> Result<(), EngineError> {
    let mut read = READ.to_vec();
    read.extend_from_slice(match family.windows {
        Windows::Never => &[],
        Windows::All | Windows::Alternate => &["sliding_window"],
        Windows::Asked => &["sliding_window", "use_sliding_window", "max_window_layers"],
        Windows::Pattern => &["sliding_window", "sliding_window_pattern"],
    });
    if family.scores_divided {
        read.push("query_pre_attn_scalar");
    }
    match &family.experts {
        None => read.push("intermediate_size"),
        Some(experts) => {
            read.extend([experts.count, experts.active, experts.width]);
            read.extend(experts.normalized);
        }
    }
    fields.refuse_others(&read, family.accepted)?;
    if let Some(quantization) = fields.object("quantization_config")? {
        let method = quantization.text("quant_method")?.unwrap_or("unnamed");
        if family.architecture != "GptOssForCausalLM" || method != "mxfp4" {
            return Err(fields.malformed(format!(
                "`quantization_config` asks for method `{method}`, which is not supported"
            )));
        }
    }
    let supported = family.activation.name();
    for name in ["hidden_act", "hidden_activation"] {
        if let Some(other) = fields.text(name)?.filter(|name| *name != supported) {
            return Err(
                fields.malformed(format!("`{name}` `{other}` is not supported (supported: {supported})"))
            );
        }
    }
    Ok(())
}

/// Which layers have a window. The family's habit counts where `layer_types` does not list them.
fn sliding(
    fields: Fields<'_>,
    family: &Family,
    layers: usize,
    rope: &Rope,
) -> Result<Option<Sliding>, EngineError> {
    let asked = match family.windows {
        Windows::Asked => fields.flag_or("use_sliding_window", false)?,
        _ => true,
    };
    let mut windowed: Vec<bool> = match family.windows {
        _ if !asked => vec![false; layers],
        Windows::Never => vec![false; layers],
        Windows::All => vec![fields.value("sliding_window").is_some(); layers],
        Windows::Asked => {
            let first = fields.size_or("max_window_layers", 28)?;
            (0..layers).map(|layer| layer >= first).collect()
        }
        Windows::Pattern => {
            let every = fields.size_or("sliding_window_pattern", 6)?.max(1);
            (1..=layers).map(|layer| !layer.is_multiple_of(every)).collect()
        }
        Windows::Alternate => (0..layers).map(|layer| layer.is_multiple_of(2)).collect(),
    };
    if let Some(kinds) = fields.value("layer_types") {
        windowed = layer_types(fields, kinds)?;
    }
    if !windowed.contains(&true) {
        return Ok(None);
    }
    if family.windows == Windows::Never || !asked {
        let reason = "`layer_types` names \"sliding_attention\", supported is \"full_attention\"";
        return Err(fields.malformed(reason));
    }
    let rope = Rope::parse_sliding(fields)?.unwrap_or_else(|| rope.clone());
    Ok(Some(Sliding { window: fields.size("sliding_window")?, layers: windowed, rope }))
}

fn layer_types(fields: Fields<'_>, kinds: &Value) -> Result<Vec<bool>, EngineError> {
    let kinds = kinds.as_array().ok_or_else(|| fields.malformed("`layer_types` is not a list"))?;
    kinds
        .iter()
        .map(|kind| match kind.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(fields.malformed(format!(
                "`layer_types` names {kind}, supported are \"full_attention\" and \"sliding_attention\""
            ))),
        })
        .collect()
}

fn experts(fields: Fields<'_>, family: &Family) -> Result<Option<Experts>, EngineError> {
    let Some(names) = &family.experts else { return Ok(None) };
    Ok(Some(Experts {
        count: fields.size(names.count)?,
        active: fields.size(names.active)?,
        normalized: names.normalized.map_or(Ok(true), |name| fields.flag_or(name, false))?,
    }))
}
