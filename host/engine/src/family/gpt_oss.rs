//! gpt-oss stores the experts of a layer as one tensor, in blocks of 32 four-bit values with a scale each, the
//! rows of gate and up alternating.
//!
//! ```text
//! gate_up_proj_blocks [experts, 2 ffn, hidden / 32, 16] u8    gate_up_proj_scales [experts, 2 ffn, hidden / 32] u8
//! down_proj_blocks    [experts, hidden, ffn / 32, 16] u8      down_proj_scales    [experts, hidden, ffn / 32] u8
//! gate_up_proj_bias   [experts, 2 ffn]                        down_proj_bias      [experts, hidden]
//! ```

use crate::ModelConfig;
use crate::encoding::Encoding;
use crate::tensors::{Entry, TensorMap};

/// Values that share a scale.
const BLOCK: usize = 32;

/// Cuts the experts of every layer, and gives the router its usual name.
pub(super) fn cut(config: &ModelConfig, tensors: &mut TensorMap) -> Result<(), String> {
    let count = config.experts.map_or(0, |experts| experts.count);
    let (hidden, ffn) = (config.hidden, config.ffn);
    for layer in 0..config.layers {
        let prefix = format!("model.layers.{layer}.mlp");
        for part in ["weight", "bias"] {
            if let Some(router) = tensors.remove(&format!("{prefix}.router.{part}")) {
                tensors.insert(format!("{prefix}.gate.{part}"), router);
            }
        }
        let expert = |index: usize, part: &str| format!("{prefix}.experts.{index}.{part}");
        if let Some((weight, bias)) = fused(tensors, &prefix, "gate_up_proj", [count, 2 * ffn, hidden])? {
            for index in 0..count {
                for (parity, part) in ["gate_proj", "up_proj"].into_iter().enumerate() {
                    let first = index * 2 * ffn + parity;
                    let name = expert(index, part);
                    tensors.insert(format!("{name}.weight"), weight.rows(first, 2, &[ffn, hidden]));
                    tensors.insert(format!("{name}.bias"), bias.rows(first, 2, &[ffn]));
                }
            }
        }
        if let Some((weight, bias)) = fused(tensors, &prefix, "down_proj", [count, hidden, ffn])? {
            for index in 0..count {
                let (first, name) = (index * hidden, expert(index, "down_proj"));
                tensors.insert(format!("{name}.weight"), weight.rows(first, 1, &[hidden, ffn]));
                tensors.insert(format!("{name}.bias"), bias.rows(first, 1, &[hidden]));
            }
        }
    }
    Ok(())
}

/// Takes one projection of all experts: its weights [experts, rows, cols], and its biases as rows of one value.
fn fused(
    tensors: &mut TensorMap,
    prefix: &str,
    name: &str,
    [count, rows, cols]: [usize; 3],
) -> Result<Option<(Entry, Entry)>, String> {
    if !cols.is_multiple_of(BLOCK) {
        return Err(format!("{cols} inputs of `{name}` are no blocks of {BLOCK}"));
    }
    let mut take = |part: &str, shape: &[usize]| -> Result<Option<Entry>, String> {
        let name = format!("{prefix}.experts.{name}_{part}");
        match tensors.remove(&name) {
            Some(entry) if entry.shape != shape => {
                Err(format!("tensor `{name}` has shape {:?}, expected {shape:?}", entry.shape))
            }
            entry => Ok(entry),
        }
    };
    let blocks = cols / BLOCK;
    let weight = take("blocks", &[count, rows, blocks, BLOCK / 2])?;
    let scales = take("scales", &[count, rows, blocks])?;
    let bias = take("bias", &[count, rows])?;
    let (Some(weight), Some(scales), Some(bias)) = (weight, scales, bias) else { return Ok(None) };
    for (part, entry) in [("blocks", &weight), ("scales", &scales)] {
        if entry.encoding != Encoding::Unread("U8") {
            return Err(format!("`{prefix}.experts.{name}_{part}` does not hold bytes"));
        }
    }
    let scales = Some((scales.shard, scales.bytes));
    let weight = Entry { encoding: Encoding::Mxfp4, shape: vec![count, rows, cols], cols, scales, ..weight };
    Ok(Some((weight, bias.single_values())))
}
