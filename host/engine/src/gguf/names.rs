//! The names that tensors of a GGUF file have in safetensors, and rows that it stores in another order.

use super::Header;
use crate::family::Family;
use crate::tensors::{Entry, TensorMap};

/// Tensors that say numbers of the config, and are read with it.
const READ_WITH_THE_CONFIG: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// Every tensor under its name in safetensors; the experts of a layer apart.
///
/// `head_dim` is the width of a head and `experts` their count, as the metadata states them.
pub(crate) fn tensor_map(header: &Header, family: &Family, [head_dim, experts]: [usize; 2]) -> TensorMap {
    let mut tensors = TensorMap::new();
    for (name, info) in &header.tensors {
        if READ_WITH_THE_CONFIG.contains(&name.as_str()) {
            continue;
        }
        let mut entry = Entry::plain(0, info.encoding, info.shape.clone(), info.bytes.clone());
        // What is unknown keeps its name, and is refused as a tensor that nothing is computed with.
        let known = safetensors_name(name, family).unwrap_or_else(|| name.clone());
        let halves_alternate = family.gguf == "llama" && is_query_or_key(&known);
        if halves_alternate {
            if entry.shape.len() == 1 {
                entry = entry.single_values();
            }
            entry.order.interleaved = head_dim;
        }
        match known.split_once(".mlp.experts.") {
            // As many as there are: a first dimension of any other size is no list of experts.
            Some((layer, part)) if entry.shape.len() > 1 && entry.shape[0] == experts => {
                insert_experts(&mut tensors, layer, part, &entry);
            }
            _ => drop(tensors.insert(known, entry)),
        }
    }
    tensors
}

fn is_query_or_key(name: &str) -> bool {
    name.contains(".self_attn.q_proj.") || name.contains(".self_attn.k_proj.")
}

/// One tensor for each expert, of one that has them along its first dimension.
fn insert_experts(tensors: &mut TensorMap, layer: &str, part: &str, entry: &Entry) {
    let Some((count, shape)) = entry.shape.split_first() else { return };
    let rows = if shape.len() == 2 { shape[0] } else { 1 };
    for expert in 0..*count {
        let name = format!("{layer}.mlp.experts.{expert}.{part}");
        tensors.insert(name, entry.rows(expert * rows, 1, shape));
    }
}

fn safetensors_name(name: &str, family: &Family) -> Option<String> {
    let fixed = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(fixed) = fixed {
        return Some(fixed.to_owned());
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = part.rsplit_once('.')?;
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_qkv" => "self_attn.qkv_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "attn_sinks" => return Some(format!("model.layers.{layer}.self_attn.sinks")),
        "post_attention_norm" => "post_attention_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        "ffn_norm" => family.norms.ffn_in?,
        "ffn_up" if family.gguf == "phi3" => "mlp.gate_up_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "ffn_gate_inp" => "mlp.gate",
        "ffn_gate_exps" => "mlp.experts.gate_proj",
        "ffn_up_exps" => "mlp.experts.up_proj",
        "ffn_down_exps" => "mlp.experts.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.{kind}"))
}
