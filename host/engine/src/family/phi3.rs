//! Phi-3 stores queries, keys and values as one tensor, and gate and up as one.

use crate::ModelConfig;
use crate::tensors::TensorMap;

/// Cuts the fused tensors of every layer by rows.
pub(super) fn cut(config: &ModelConfig, tensors: &mut TensorMap) -> Result<(), String> {
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    for layer in 0..config.layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let qkv = [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)];
        let gate_up = [("mlp.gate_proj", config.ffn), ("mlp.up_proj", config.ffn)];
        for (fused, parts) in [("self_attn.qkv_proj", &qkv[..]), ("mlp.gate_up_proj", &gate_up[..])] {
            let fused = name(fused);
            // An absent one is missed when its parts are asked for.
            let Some(entry) = tensors.remove(&fused) else { continue };
            let shape = [parts.iter().map(|(_, rows)| rows).sum(), config.hidden];
            if entry.shape != shape {
                return Err(format!("tensor `{fused}` has shape {:?}, expected {shape:?}", entry.shape));
            }
            let mut first = 0;
            for (part, rows) in parts {
                tensors.insert(name(part), entry.rows(first, 1, &[*rows, config.hidden]));
                first += rows;
            }
        }
    }
    Ok(())
}
