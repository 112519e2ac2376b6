//! What a loader says about weights that are broken, hostile or not what the config says, in every family.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{EngineError, Model, ModelConfig, ModelFiles, Rope, RopeScaling};

fn fixture(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(family)
}

/// A copy of a family's files whose header and data `edit` has changed.
fn edited(family: &str, edit: impl FnOnce(&mut Value, &mut Vec<u8>)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture(family).join("config.json"), dir.path().join("config.json")).unwrap();
    let bytes = fs::read(fixture(family).join("model.safetensors")).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let mut data = bytes[8 + len..].to_vec();
    edit(&mut header, &mut data);
    let header = header.to_string();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&data);
    fs::write(dir.path().join("model.safetensors"), out).unwrap();
    dir
}

fn message(dir: &TempDir) -> String {
    let refused = ModelFiles::open(dir.path()).and_then(|files| Model::load(&files)).unwrap_err();
    refused.to_string().replace(&format!("{}/", dir.path().display()), "")
}

fn check(family: &str, edit: impl FnOnce(&mut Value, &mut Vec<u8>), expected: &str) {
    assert_eq!(message(&edited(family, edit)), expected);
}

/// A header that safetensors' own rules forbid.
fn check_header(edit: impl FnOnce(&mut Value, &mut Vec<u8>)) {
    let message = message(&edited("qwen2", edit));
    assert!(message.starts_with("model.safetensors: not a whole safetensors file: "), "{message}");
}

/// Where a tensor's data begins and ends.
fn place(header: &Value, name: &str) -> [usize; 2] {
    let offsets = &header[name]["data_offsets"];
    [0, 1].map(|end| offsets[end].as_u64().unwrap() as usize)
}

/// The bytes of value `index` of a tensor of two-byte values.
fn value<'a>(header: &Value, data: &'a mut [u8], name: &str, index: usize) -> &'a mut [u8] {
    let start = place(header, name)[0] + 2 * index;
    &mut data[start..start + 2]
}

const Q_PROJ: &str = "model.layers.1.self_attn.q_proj.weight";
const NORM: &str = "model.layers.0.input_layernorm.weight";

#[test]
fn a_weight_that_is_not_finite_is_named_with_its_place() {
    let nan = 0x7fc1u16.to_le_bytes();
    let infinite = 0xff80u16.to_le_bytes();
    check(
        "qwen2",
        |header, data| value(header, data, Q_PROJ, 3 * 64 + 5).copy_from_slice(&nan),
        &format!("model.safetensors: tensor `{Q_PROJ}` is NaN at [3, 5]"),
    );
    check(
        "qwen2",
        |header, data| value(header, data, Q_PROJ, 63 * 64 + 63).copy_from_slice(&infinite),
        &format!("model.safetensors: tensor `{Q_PROJ}` is infinite at [63, 63]"),
    );
    check(
        "qwen2",
        |header, data| value(header, data, NORM, 7).copy_from_slice(&nan),
        &format!("model.safetensors: tensor `{NORM}` is NaN at [0, 7]"),
    );
    check(
        "qwen3_moe",
        |header, data| {
            let name = "model.layers.1.mlp.experts.4.up_proj.weight";
            value(header, data, name, 2 * 64 + 1).copy_from_slice(&infinite);
        },
        "model.safetensors: tensor `model.layers.1.mlp.experts.4.up_proj.weight` is infinite at [2, 1]",
    );
}

#[test]
fn a_block_scale_that_stands_for_nan_is_named_by_its_first_value() {
    check(
        "gpt_oss",
        |header, data| {
            let name = "model.layers.0.mlp.experts.gate_up_proj_scales";
            // Expert 1 of 4, whose rows are 64 of gate and 64 of up in turn; row 6 is the fourth of gate.
            let at = place(header, name)[0] + (128 + 6) * 2 + 1;
            data[at] = 255;
        },
        "model.safetensors: tensor `model.layers.0.mlp.experts.1.gate_proj.weight` is NaN at [3, 32]",
    );
}

#[test]
fn fused_tensors_of_another_shape_are_told_with_both() {
    check(
        "phi3",
        |header, _| header["model.layers.1.self_attn.qkv_proj.weight"]["shape"] = json!([64, 128]),
        "model.safetensors: tensor `model.layers.1.self_attn.qkv_proj.weight` has shape [64, 128], \
         expected [128, 64]",
    );
    check(
        "gpt_oss",
        |header, _| header["model.layers.0.mlp.experts.down_proj_scales"]["shape"] = json!([2, 64, 4]),
        "model.safetensors: tensor `model.layers.0.mlp.experts.down_proj_scales` has shape [2, 64, 4], \
         expected [4, 64, 2]",
    );
}

#[test]
fn a_missing_tensor_of_a_fused_one_is_named() {
    let rename = |header: &mut Value, name: &str| {
        let entry = header.as_object_mut().unwrap().remove(name).unwrap();
        header[format!("{name}.old")] = entry;
    };
    check(
        "gpt_oss",
        |header, _| rename(header, "model.layers.0.mlp.experts.gate_up_proj_bias"),
        "model.safetensors: tensor `model.layers.0.mlp.experts.0.gate_proj.weight` is missing",
    );
    check(
        "olmo2",
        |header, _| rename(header, "model.layers.1.self_attn.k_norm.weight"),
        "model.safetensors: tensor `model.layers.1.self_attn.k_norm.weight` is missing",
    );
}

#[test]
fn a_tensor_that_nothing_is_computed_with_is_refused() {
    check(
        "mistral",
        |header, data| {
            header["model.layers.0.self_attn.q_proj.bias"] =
                json!({"dtype": "BF16", "shape": [4], "data_offsets": [data.len(), data.len() + 8]});
            data.extend([0; 8]);
        },
        "model.safetensors: tensor `model.layers.0.self_attn.q_proj.bias` is there, and `MistralForCausalLM` \
         computes nothing with it",
    );
}

#[test]
fn what_old_files_carry_along_is_passed_over() {
    let dir = edited("qwen2", |header, data| {
        for (name, bytes) in [("model.layers.0.self_attn.rotary_emb.inv_freq", 16), ("lm_head.weight", 4)] {
            let end = data.len() + bytes;
            header[name] = json!({"dtype": "F32", "shape": [bytes / 4], "data_offsets": [data.len(), end]});
            data.resize(end, 0);
        }
    });
    Model::load(&ModelFiles::open(dir.path()).unwrap()).unwrap();
}

#[test]
fn hostile_headers_are_refused() {
    // On another tensor, with a hole before it, beyond the file, backwards, larger than its shape, and so many values
    // that their count overflows.
    check_header(|header, _| {
        let [start, end] = place(header, Q_PROJ);
        header[Q_PROJ]["data_offsets"] = json!([start - 2, end - 2]);
    });
    check_header(|header, _| {
        let [start, end] = place(header, Q_PROJ);
        header[Q_PROJ]["data_offsets"] = json!([start + 2, end]);
    });
    check_header(|header, data| {
        header["more"] =
            json!({"dtype": "BF16", "shape": [8], "data_offsets": [data.len(), data.len() + 16]});
    });
    check_header(|header, _| header[Q_PROJ]["data_offsets"] = json!([100, 50]));
    check_header(|header, _| header[Q_PROJ]["shape"] = json!([64, 63]));
    check_header(|header, _| header[Q_PROJ]["shape"] = json!([u64::MAX, u64::MAX]));
    check_header(|header, _| header[Q_PROJ]["shape"] = json!([-1, 64]));
    check_header(|header, _| header[Q_PROJ]["dtype"] = json!("Q8"));
    check_header(|_, data| data.extend([0; 100]));
}

#[test]
fn a_header_longer_than_its_file_is_refused() {
    for len in [u64::MAX, 1 << 40, 200_000_000] {
        let dir = edited("qwen2", |_, _| {});
        let path = dir.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        bytes[..8].copy_from_slice(&len.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        let message = message(&dir);
        assert!(message.starts_with("model.safetensors: not a whole safetensors file: "), "{message}");
    }
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let dir = edited("qwen2", |_, _| {});
    let whole = dir.path().join("model.safetensors");
    fs::copy(&whole, dir.path().join("b.safetensors")).unwrap();
    fs::rename(&whole, dir.path().join("a.safetensors")).unwrap();
    let index = json!({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}).to_string();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let message = message(&dir);
    assert!(message.starts_with("b.safetensors: tensor `"), "{message}");
    assert!(message.ends_with("is in another file, too"), "{message}");
}

/// A family's config after `edit`.
fn parsed(family: &str, edit: impl FnOnce(&mut Value)) -> Result<ModelConfig, EngineError> {
    let path = fixture(family).join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut config);
    ModelConfig::parse(Path::new("config.json"), config.to_string().as_bytes())
}

fn check_config(family: &str, edit: impl FnOnce(&mut Value), expected: &str) {
    assert_eq!(parsed(family, edit).unwrap_err().to_string(), format!("config.json: {expected}"));
}

#[test]
fn gemma_says_its_two_rotary_embeddings_in_either_way() {
    let nested = |config: &mut Value| {
        for field in ["rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern"] {
            config.as_object_mut().unwrap().remove(field);
        }
        config["_sliding_window_pattern"] = json!(6);
        config["layer_types"] = json!(["sliding_attention", "full_attention"]);
        config["rope_parameters"] = json!({
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        });
    };
    let config = parsed("gemma3", nested).unwrap();
    assert_eq!(config, parsed("gemma3", |_| {}).unwrap());
    let local = Rope { theta: 10_000.0, scaling: RopeScaling::None };
    assert_eq!(config.sliding.unwrap().rope, local);
}

#[test]
fn longrope_ends_at_its_original_context() {
    let config = parsed("phi3", |_| {}).unwrap();
    assert_eq!(config.context_max, 256);
    let early = parsed("phi3", |config| config["rope_scaling"]["type"] = json!("su")).unwrap();
    assert_eq!(early, config);
    check_config(
        "phi3",
        |config| config["rope_scaling"]["short_factor"] = json!([1.0, 2.0]),
        "2 rope factors for 8 pairs of a head",
    );
}

#[test]
fn what_a_family_does_not_compute_is_refused() {
    check_config(
        "gpt_oss",
        |config| config["swiglu_limit"] = json!(10.0),
        "`swiglu_limit` is 10.0, which is not supported (supported: 7.0)",
    );
    check_config(
        "qwen3_moe",
        |config| config["mlp_only_layers"] = json!([0]),
        "`mlp_only_layers` is [0], which is not supported",
    );
    check_config(
        "qwen3_moe",
        |config| config["decoder_sparse_step"] = json!(2),
        "`decoder_sparse_step` is 2, which is not supported (supported: 1)",
    );
    check_config(
        "qwen3_moe",
        |config| config["num_experts_per_tok"] = json!(7),
        "7 of 6 experts cannot compute a token",
    );
    check_config(
        "gemma3",
        |config| config["attn_logit_softcapping"] = json!(50.0),
        "`attn_logit_softcapping` is 50.0, which is not supported",
    );
    check_config(
        "llama2",
        |config| config["sliding_window"] = json!(100),
        "`sliding_window` is 100, which is not supported",
    );
    check_config(
        "phi3",
        |config| config["partial_rotary_factor"] = json!(0.75),
        "`partial_rotary_factor` 0.75 is not supported (supported: 1)",
    );
    check_config(
        "llama3",
        |config| config["quantization_config"] = json!({"quant_method": "mxfp4"}),
        "`quantization_config` asks for method `mxfp4`, which is not supported",
    );
}

#[test]
fn layer_types_are_as_many_as_layers() {
    check_config(
        "gpt_oss",
        |config| config["layer_types"] = json!(["sliding_attention"]),
        "`layer_types` names 1 layers of 2",
    );
    check_config(
        "gpt_oss",
        |config| config["layer_types"] = json!(["sliding_attention", "chunked_attention"]),
        "`layer_types` names \"chunked_attention\", supported are \"full_attention\" and \"sliding_attention\"",
    );
}

#[test]
fn counts_beyond_any_model_are_refused_before_memory_is_taken() {
    check_config(
        "mistral",
        |config| config["num_hidden_layers"] = json!(4_000_000_000_u64),
        "`num_hidden_layers` 4000000000 is more than 4096",
    );
    check_config(
        "mistral",
        |config| config["head_dim"] = json!(1_000_000),
        "1000000 layers, head values or experts are more than 4096",
    );
}
