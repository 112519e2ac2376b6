//! Model families: what differs between architectures, as data.
//!
//! Every family is a decoder with RMSNorm, rotary attention over grouped KV heads and a gated feed-forward
//! layer, dense or cut into experts. A family is one entry of [`FAMILIES`]; one whose files store tensors in
//! shapes of their own has a small file beside it that cuts them into the usual ones.
//!
//! **Invariant:** the tensors of every family have the names that Llama gives them, once cut.

use crate::ModelConfig;
use crate::tensors::TensorMap;

mod gpt_oss;
mod phi3;

/// One architecture.
#[derive(Debug)]
pub(crate) struct Family {
    /// Name in `architectures` of `config.json`.
    pub(crate) architecture: &'static str,
    /// Name in `general.architecture` of a GGUF file.
    pub(crate) gguf: &'static str,
    pub(crate) norms: Norms,
    /// What is added to a norm's weights as safetensors stores them.
    pub(crate) norm_offset: f32,
    pub(crate) qk_norm: QkNorm,
    /// Whether queries, keys and values have a bias, and whether the attention output has one.
    pub(crate) bias: (bool, bool),
    /// Whether each query head has a score without a value.
    pub(crate) sinks: bool,
    pub(crate) windows: Windows,
    pub(crate) activation: Activation,
    /// What names the experts in `config.json`; none for a dense layer.
    pub(crate) experts: Option<ExpertFields>,
    /// Whether `query_pre_attn_scalar` divides scores instead of the head's width.
    pub(crate) scores_divided: bool,
    /// Whether embeddings are multiplied by the root of their width.
    pub(crate) embed_scaled: bool,
    /// Whether the output projection is the embedding table where `config.json` does not say.
    pub(crate) tied_default: bool,
    /// Whether `config.json` has to name `head_dim`; otherwise it is `hidden_size / heads`.
    pub(crate) explicit_head_dim: bool,
    /// Base of the rotary frequencies where `config.json` names none, as old files do.
    pub(crate) rope_theta_default: Option<f64>,
    /// Fields of this family that are read by nobody, with the one value that is what we compute; `*` is
    /// for a field that changes nothing in a pass.
    pub(crate) accepted: &'static [(&'static str, &'static str)],
    /// Whether its own code has queries, keys and values as one layer `qkv_proj`, gate and up as one `gate_up_proj`, so
    /// that adapters name those.
    pub(crate) fused: bool,
    /// Cuts tensors that the family's files fuse into those of [`crate::Model`].
    pub(crate) cut: fn(&ModelConfig, &mut TensorMap) -> Result<(), String>,
}

/// Names of the norms around attention and around the feed-forward layer: before it, on its input; after it, on
/// what it adds to the residual stream.
#[derive(Debug)]
pub(crate) struct Norms {
    pub(crate) attn_in: Option<&'static str>,
    pub(crate) attn_out: Option<&'static str>,
    pub(crate) ffn_in: Option<&'static str>,
    pub(crate) ffn_out: Option<&'static str>,
}

/// Norms of queries and keys before rope.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum QkNorm {
    None,
    /// Each head for itself.
    Head,
    /// All heads as one vector.
    Whole,
}

/// Which layers see a window of tokens where `config.json` does not list them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Windows {
    /// None; a window is refused.
    Never,
    /// All, when `sliding_window` is given.
    All,
    /// Those from `max_window_layers` on, when `use_sliding_window` asks for it.
    Asked,
    /// All but every `sliding_window_pattern`th, 6 by default.
    Pattern,
    /// The first, the third, and so on.
    Alternate,
}

/// The gate of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    /// `silu(gate) * up`.
    Silu,
    /// `gelu(gate) * up`, by the tanh formula.
    GeluTanh,
    /// `gate * sigmoid(1.702 gate) * (up + 1)`, the gate at most 7 and `up` within 7 of 0.
    ClampedSwiglu,
}

impl Activation {
    /// Its name in `hidden_act`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Silu | Self::ClampedSwiglu => "silu",
            Self::GeluTanh => "gelu_pytorch_tanh",
        }
    }
}

/// Names of the fields that describe experts.
#[derive(Debug)]
pub(crate) struct ExpertFields {
    pub(crate) count: &'static str,
    pub(crate) active: &'static str,
    pub(crate) width: &'static str,
    /// The flag that makes the weights of the chosen experts sum to 1; none where they always do.
    pub(crate) normalized: Option<&'static str>,
    /// Whether router and experts have biases.
    pub(crate) bias: bool,
}

const PRE: Norms = Norms {
    attn_in: Some("input_layernorm"),
    attn_out: None,
    ffn_in: Some("post_attention_layernorm"),
    ffn_out: None,
};

const LLAMA: Family = Family {
    architecture: "LlamaForCausalLM",
    gguf: "llama",
    norms: PRE,
    norm_offset: 0.0,
    qk_norm: QkNorm::None,
    bias: (false, false),
    sinks: false,
    windows: Windows::Never,
    activation: Activation::Silu,
    experts: None,
    scores_divided: false,
    embed_scaled: false,
    tied_default: false,
    explicit_head_dim: false,
    rope_theta_default: Some(10_000.0),
    accepted: &[],
    fused: false,
    cut: |_, _| Ok(()),
};

/// All architectures that we compute.
pub(crate) const FAMILIES: [Family; 9] = [
    LLAMA,
    Family {
        architecture: "Qwen2ForCausalLM",
        gguf: "qwen2",
        bias: (true, false),
        windows: Windows::Asked,
        ..LLAMA
    },
    Family {
        architecture: "Qwen3ForCausalLM",
        gguf: "qwen3",
        qk_norm: QkNorm::Head,
        windows: Windows::Asked,
        explicit_head_dim: true,
        rope_theta_default: None,
        ..LLAMA
    },
    // Its GGUF files call themselves `llama`.
    Family { architecture: "MistralForCausalLM", gguf: "", windows: Windows::All, ..LLAMA },
    Family {
        architecture: "Gemma3ForCausalLM",
        gguf: "gemma3",
        norms: Norms {
            attn_in: Some("input_layernorm"),
            attn_out: Some("post_attention_layernorm"),
            ffn_in: Some("pre_feedforward_layernorm"),
            ffn_out: Some("post_feedforward_layernorm"),
        },
        norm_offset: 1.0,
        qk_norm: QkNorm::Head,
        windows: Windows::Pattern,
        activation: Activation::GeluTanh,
        scores_divided: true,
        embed_scaled: true,
        tied_default: true,
        explicit_head_dim: true,
        rope_theta_default: Some(1_000_000.0),
        // What later files note beside `layer_types`.
        accepted: &[("_sliding_window_pattern", "*")],
        ..LLAMA
    },
    Family {
        architecture: "Phi3ForCausalLM",
        gguf: "phi3",
        windows: Windows::All,
        fused: true,
        cut: phi3::cut,
        ..LLAMA
    },
    Family {
        architecture: "Olmo2ForCausalLM",
        gguf: "olmo2",
        norms: Norms {
            attn_in: None,
            attn_out: Some("post_attention_layernorm"),
            ffn_in: None,
            ffn_out: Some("post_feedforward_layernorm"),
        },
        qk_norm: QkNorm::Whole,
        ..LLAMA
    },
    Family {
        architecture: "Qwen3MoeForCausalLM",
        gguf: "qwen3moe",
        qk_norm: QkNorm::Head,
        experts: Some(ExpertFields {
            count: "num_experts",
            active: "num_experts_per_tok",
            width: "moe_intermediate_size",
            normalized: Some("norm_topk_prob"),
            bias: false,
        }),
        explicit_head_dim: true,
        rope_theta_default: None,
        // A window counts only with `use_sliding_window`, which is refused; dense layers are not computed.
        accepted: &[
            ("decoder_sparse_step", "1"),
            ("intermediate_size", "*"),
            ("max_window_layers", "*"),
            ("sliding_window", "*"),
        ],
        ..LLAMA
    },
    Family {
        architecture: "GptOssForCausalLM",
        gguf: "gpt-oss",
        bias: (true, true),
        sinks: true,
        windows: Windows::Alternate,
        activation: Activation::ClampedSwiglu,
        experts: Some(ExpertFields {
            count: "num_local_experts",
            active: "num_experts_per_tok",
            width: "intermediate_size",
            normalized: None,
            bias: true,
        }),
        explicit_head_dim: true,
        rope_theta_default: None,
        accepted: &[
            ("attention_bias", "true"),
            ("experts_per_token", "*"),
            ("initial_context_length", "*"),
            ("swiglu_limit", "7.0"),
        ],
        cut: gpt_oss::cut,
        ..LLAMA
    },
];

/// The family of an architecture name.
pub(crate) fn find(architecture: &str) -> Option<&'static Family> {
    const ALL: &[Family] = &FAMILIES;
    ALL.iter().find(|family| family.architecture == architecture)
}

/// The family of a GGUF file's architecture.
pub(crate) fn find_gguf(architecture: &str) -> Option<&'static Family> {
    const ALL: &[Family] = &FAMILIES;
    ALL.iter().find(|family| !family.gguf.is_empty() && family.gguf == architecture)
}

/// All names, for an error message.
pub(crate) fn names() -> String {
    FAMILIES.map(|family| family.architecture).join(", ")
}

/// All names in GGUF files, for an error message.
pub(crate) fn gguf_names() -> String {
    let named: Vec<_> = FAMILIES.iter().map(|family| family.gguf).filter(|name| !name.is_empty()).collect();
    named.join(", ")
}
