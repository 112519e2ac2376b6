//! Model families: what differs between architectures, as data.
//!
//! Every family here is a pre-norm decoder with RMSNorm, rotary attention over grouped KV heads and
//! a SiLU-gated feed-forward layer. A new family of that kind is one entry of [`FAMILIES`].

/// One architecture.
#[derive(Debug)]
pub(crate) struct Family {
    /// Name in `architectures` of `config.json`.
    pub(crate) architecture: &'static str,
    /// Whether queries and keys are normalised per head before rope.
    pub(crate) qk_norm: bool,
    /// Whether `config.json` has to name `head_dim`; otherwise it is `hidden_size / heads`.
    pub(crate) explicit_head_dim: bool,
    /// Base of the rotary frequencies where `config.json` names none, as old Llama 2 files do.
    pub(crate) rope_theta_default: Option<f64>,
}

/// All architectures that we compute.
pub(crate) const FAMILIES: [Family; 2] = [
    Family {
        architecture: "LlamaForCausalLM",
        qk_norm: false,
        explicit_head_dim: false,
        rope_theta_default: Some(10_000.0),
    },
    Family {
        architecture: "Qwen3ForCausalLM",
        qk_norm: true,
        explicit_head_dim: true,
        rope_theta_default: None,
    },
];

/// The family of an architecture name.
pub(crate) fn find(architecture: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.architecture == architecture)
}

/// All names, for an error message.
pub(crate) fn names() -> String {
    FAMILIES.map(|family| family.architecture).join(", ")
}
