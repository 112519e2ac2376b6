//! What a loader says about files that are not as they should be.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{EngineError, Model, ModelFiles, WeightFormat};

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/qwen3").join(name)
}

fn copy() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture(name), dir.path().join(name)).unwrap();
    }
    dir
}

fn load(dir: &TempDir) -> Result<Model, EngineError> {
    Model::load(&ModelFiles::open(dir.path())?)
}

/// The message of a failed load, without the folder.
fn message(dir: &TempDir) -> String {
    load(dir).unwrap_err().to_string().replace(&format!("{}/", dir.path().display()), "")
}

/// The message after `edit` changed `config.json`.
fn check_config(edit: impl FnOnce(&mut Value), expected: &str) {
    let dir = copy();
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(&path, config.to_string()).unwrap();
    assert_eq!(message(&dir), expected);
}

/// Rewrites the header of `model.safetensors`.
fn edit_header(dir: &TempDir, edit: impl FnOnce(&mut Value)) {
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    edit(&mut header);
    let header = header.to_string();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&bytes[8 + len..]);
    fs::write(&path, out).unwrap();
}

const Q_PROJ: &str = "model.layers.0.self_attn.q_proj.weight";

#[test]
fn a_whole_model_loads() {
    let model = load(&copy()).unwrap();
    assert_eq!(model.config.head_dim, 32);
    assert_eq!(model.config.eos_tokens, [1]);
}

#[test]
fn how_far_it_is_is_told_after_each_layer() {
    let dir = copy();
    let files = ModelFiles::open(dir.path()).unwrap();
    let mut told = Vec::new();
    let model = Model::load_telling(&files, WeightFormat::Bf16, &mut |share| told.push(share)).unwrap();
    assert_eq!(told.len(), model.config.layers);
    assert!(told.windows(2).all(|two| two[0] < two[1]) && told.last() == Some(&1.0), "{told:?}");
}

#[test]
fn a_missing_config_is_named() {
    let dir = copy();
    fs::remove_file(dir.path().join("config.json")).unwrap();
    assert_eq!(message(&dir), "cannot read config.json: No such file or directory (os error 2)");
}

#[test]
fn missing_weights_are_named() {
    let dir = copy();
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert_eq!(message(&dir), "cannot read model.safetensors: No such file or directory (os error 2)");
}

#[test]
fn truncated_weights_are_refused_at_any_length() {
    let bytes = fs::read(fixture("model.safetensors")).unwrap();
    for len in [0, 7, 100, 5000, bytes.len() - 1] {
        let dir = copy();
        fs::write(dir.path().join("model.safetensors"), &bytes[..len]).unwrap();
        let message = message(&dir);
        assert!(message.starts_with("model.safetensors: not a whole safetensors file: "), "{len}: {message}");
    }
}

#[test]
fn a_wrong_shape_is_told_with_both_shapes() {
    let expected = format!("model.safetensors: tensor `{Q_PROJ}` has shape [128, 64], expected [160, 64]");
    check_config(
        |config| {
            config["num_attention_heads"] = json!(5);
            config["num_key_value_heads"] = json!(1);
        },
        &expected,
    );
}

#[test]
fn a_wrong_dtype_is_named() {
    let dir = copy();
    edit_header(&dir, |header| header[Q_PROJ]["dtype"] = json!("I16"));
    let expected = format!("model.safetensors: tensor `{Q_PROJ}` has dtype I16, expected F16, BF16 or F32");
    assert_eq!(message(&dir), expected);
}

#[test]
fn a_missing_tensor_is_named() {
    check_config(
        |config| config["tie_word_embeddings"] = json!(false),
        "model.safetensors: tensor `lm_head.weight` is missing",
    );
}

#[test]
fn an_unknown_architecture_is_told_with_those_we_know() {
    check_config(
        |config| config["architectures"] = json!(["MambaForCausalLM"]),
        "config.json: architecture `MambaForCausalLM` is not supported \
         (supported: LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, MistralForCausalLM, Gemma3ForCausalLM, \
         Phi3ForCausalLM, Olmo2ForCausalLM, Qwen3MoeForCausalLM, GptOssForCausalLM)",
    );
}

#[test]
fn an_unknown_rope_type_is_told_with_those_we_know() {
    for kind in ["ntk", "dynamic"] {
        let expected = format!(
            "config.json: rope type `{kind}` is not supported (supported: default, linear, llama3, yarn, longrope)"
        );
        check_config(|config| config["rope_parameters"]["rope_type"] = json!(kind), &expected);
        let older = |config: &mut Value| {
            config["rope_parameters"] = Value::Null;
            config["rope_theta"] = json!(10_000);
            config["rope_scaling"] = json!({ "type": kind });
        };
        check_config(older, &expected);
    }
}

#[test]
fn a_missing_field_is_named() {
    for field in ["hidden_size", "head_dim", "rms_norm_eps", "vocab_size", "architectures"] {
        let expected = format!("config.json: field `{field}` is missing");
        check_config(|config| drop(config.as_object_mut().unwrap().remove(field)), &expected);
    }
    check_config(
        |config| drop(config["rope_parameters"].as_object_mut().unwrap().remove("rope_theta")),
        "config.json: field `rope_theta` is missing",
    );
}

#[test]
fn what_is_not_computed_is_refused() {
    for field in ["attention_bias", "mlp_bias", "use_bidirectional_attention", "a_field_of_tomorrow"] {
        let expected = format!("config.json: `{field}` is true, which is not supported");
        check_config(|config| config[field] = json!(true), &expected);
    }
    check_config(
        |config| config["layer_types"] = json!(["full_attention", "sliding_attention"]),
        "config.json: `layer_types` names \"sliding_attention\", supported is \"full_attention\"",
    );
    check_config(
        |config| config["hidden_act"] = json!("gelu"),
        "config.json: `hidden_act` `gelu` is not supported (supported: silu)",
    );
    check_config(
        |config| config["quantization_config"] = json!({"quant_method": "awq"}),
        "config.json: `quantization_config` asks for method `awq`, which is not supported",
    );
    check_config(
        |config| config["final_logit_softcapping"] = json!(30.0),
        "config.json: `final_logit_softcapping` is 30.0, which is not supported",
    );
    check_config(
        |config| config["rope_parameters"]["mrope_section"] = json!([16, 24]),
        "config.json: `mrope_section` is [16,24], which is not supported",
    );
    check_config(
        |config| config["eos_token_id"] = json!([1, 320]),
        "config.json: `eos_token_id` names token 320 of 320",
    );
    check_config(
        |config| config["num_key_value_heads"] = json!(3),
        "config.json: `num_attention_heads` 4 is not a multiple of `num_key_value_heads` 3",
    );
}

/// Splits the fixture in two shards with an index.
fn sharded(rename: impl Fn(&str) -> String) -> TempDir {
    let dir = copy();
    let whole = dir.path().join("model.safetensors");
    let bytes = fs::read(&whole).unwrap();
    fs::remove_file(&whole).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors();
    let mut map = serde_json::Map::new();
    for (index, part) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let name = format!("model-{index}.safetensors");
        let data = safetensors::serialize(part.iter().map(|(name, view)| (name, view)), None).unwrap();
        fs::write(dir.path().join(&name), data).unwrap();
        for (tensor, _) in part {
            map.insert(tensor.clone(), json!(rename(&name)));
        }
    }
    let index = json!({ "weight_map": map }).to_string();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    dir
}

#[test]
fn a_sharded_model_is_the_same_model() {
    let dir = sharded(str::to_owned);
    assert_eq!(load(&dir).unwrap().fingerprint, load(&copy()).unwrap().fingerprint);
}

#[test]
fn a_missing_shard_is_named() {
    let dir = sharded(|name| name.replace('1', "7"));
    assert_eq!(message(&dir), "cannot read model-7.safetensors: No such file or directory (os error 2)");
}

#[test]
fn an_index_may_not_point_outside_its_folder() {
    let dir = sharded(|name| format!("../{name}"));
    let message = message(&dir);
    assert!(message.starts_with("model.safetensors.index.json: "), "{message}");
    assert!(message.contains("names a file outside the folder: `../model-0.safetensors`"), "{message}");
}

#[test]
fn an_embedded_model_is_the_same_model() {
    let config = include_bytes!("../fixtures/qwen3/config.json");
    let weights = include_bytes!("../fixtures/qwen3/model.safetensors");
    let model = Model::load(&ModelFiles::embedded("tiny", config, weights).unwrap()).unwrap();
    assert_eq!(model.fingerprint, load(&copy()).unwrap().fingerprint);
    let error = ModelFiles::embedded("tiny", config, &weights[..99]).err().unwrap();
    assert!(error.to_string().starts_with("tiny/model.safetensors: "), "{error}");
}

#[test]
fn one_changed_weight_or_rope_field_changes_the_fingerprint() {
    let plain = load(&copy()).unwrap().fingerprint;
    let dir = copy();
    let path = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let weight = load(&dir).unwrap().fingerprint;
    let dir = copy();
    let path = dir.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace("1000000.0", "1000001.0")).unwrap();
    let rope = load(&dir).unwrap().fingerprint;
    assert!(plain != weight && plain != rope && weight != rope);
}
