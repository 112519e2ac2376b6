//! Adapters that are read, and those that are refused.

use std::path::Path;

use serde_json::{Value, json};

use super::testing::{Written, name};
use super::{Adapter, RANK_MAX, Site};
use crate::pack::Packed;
use crate::{Experts, Model, ModelConfig};

fn shape() -> ModelConfig {
    ModelConfig {
        hidden: 20,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        ffn: 18,
        vocab: 40,
        ..ModelConfig::llama_135m()
    }
}

const PARTS: [(&str, [usize; 2]); 3] =
    [("self_attn.q_proj", [20, 24]), ("self_attn.v_proj", [20, 12]), ("mlp.up_proj", [20, 18])];

fn written() -> Written {
    Written::random(1, 2, 3, &PARTS)
}

fn load(model: &Model, written: &Written) -> Result<Adapter, String> {
    let folder = tempfile::tempdir().unwrap();
    written.write(folder.path());
    Adapter::load(model, folder.path())
        .map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
}

fn row(packed: &Packed, row: usize) -> Vec<f32> {
    let mut out = vec![0.0; packed.cols];
    packed.unpack_row(row, &mut out);
    out
}

#[test]
fn parts_of_one_matrix_stand_in_its_order_with_their_scale() {
    let model = Model::random(shape(), 3).unwrap();
    let mut written = written();
    written.tensors.iter_mut().for_each(|(name, (_, values))| {
        // Numbers that bf16 has, and that tell where they come from.
        let first = if name.contains("lora_A") { 1.0 } else { 64.0 };
        values.iter_mut().enumerate().for_each(|(i, value)| *value = first + (i % 48) as f32);
    });
    let adapter = load(&model, &written).unwrap();
    let qkv = adapter.low_rank(1, Site::Qkv).unwrap();
    assert_eq!([qkv.a.rows, qkv.a.cols, qkv.b.rows, qkv.b.cols], [6, 20, 48, 6]);
    assert_eq!(row(&qkv.a, 4)[..3], [21.0, 22.0, 23.0], "the second row of v's");
    assert_eq!(row(&qkv.b, 1), [134.0, 136.0, 138.0, 0.0, 0.0, 0.0], "q, times the scale 2");
    assert_eq!(row(&qkv.b, 24), [0.0; 6], "no k");
    assert_eq!(row(&qkv.b, 37), [0.0, 0.0, 0.0, 134.0, 136.0, 138.0], "v");
    let gate_up = adapter.low_rank(0, Site::GateUp).unwrap();
    assert_eq!([gate_up.a.rows, gate_up.b.rows, gate_up.b.cols], [4, 64, 4]);
    assert_eq!(row(&gate_up.b, 3), [0.0; 4], "no gate");
    assert_eq!(row(&gate_up.b, 17), [134.0, 136.0, 138.0, 0.0], "up, in the second half of a panel");
    assert!(adapter.low_rank(0, Site::O).is_none() && adapter.low_rank(0, Site::Down).is_none());
}

#[test]
fn fingerprints_name_the_model_the_weights_and_the_scale() {
    let model = Model::random(shape(), 3).unwrap();
    let first = load(&model, &written()).unwrap().fingerprint;
    assert_eq!(load(&model, &written()).unwrap().fingerprint, first);
    let mut others = vec![model.fingerprint];
    others.push(load(&Model::random(shape(), 4).unwrap(), &written()).unwrap().fingerprint);
    let mut other = written();
    other.tensors.get_mut(&name(1, "mlp.up_proj", "B")).unwrap().1[53] += 0.25;
    others.push(load(&model, &other).unwrap().fingerprint);
    let mut other = written();
    other.config["lora_alpha"] = json!(7);
    others.push(load(&model, &other).unwrap().fingerprint);
    let mut other = written();
    other.config["layers_to_transform"] = json!([0]);
    other.tensors.retain(|name, _| !name.contains("layers.1."));
    others.push(load(&model, &other).unwrap().fingerprint);
    assert!(!others.contains(&first));
}

/// Loads with one field of the config set.
fn with(field: &str, value: Value) -> Result<Adapter, String> {
    let mut written = written();
    written.config[field] = value;
    load(&Model::random(shape(), 3).unwrap(), &written)
}

fn refused(field: &str, value: Value, reason: &str) {
    let error = with(field, value).expect_err(field);
    assert!(error.contains(reason), "{field}: {error}");
}

#[test]
fn a_field_that_asks_for_more_than_lora_is_refused_by_name() {
    let unsupported = |field: &str, value: Value| {
        refused(
            field,
            value.clone(),
            &format!("adapter_config.json: `{field}` is {value}, which is not supported"),
        );
    };
    unsupported("use_dora", json!(true));
    unsupported("modules_to_save", json!(["lm_head"]));
    unsupported("bias", json!("all"));
    unsupported("lora_bias", json!(true));
    unsupported("fan_in_fan_out", json!(true));
    unsupported("layer_replication", json!([[0, 4], [2, 5]]));
    unsupported("trainable_token_indices", json!([3]));
    unsupported("target_parameters", json!(["mlp.experts.down_proj"]));
    unsupported("alora_invocation_tokens", json!([1, 2]));
    unsupported("task_type", json!("SEQ_CLS"));
    unsupported("a_field_of_next_year", json!({ "on": true }));
    refused("peft_type", json!("IA3"), "`peft_type` is `IA3` (supported: LORA)");
    refused("peft_type", Value::Null, "field `peft_type` is missing");
    refused("init_lora_weights", json!("pissa"), "`init_lora_weights` is `pissa`");
    assert!(with("lora_dropout", json!(0.1)).is_ok());
}

#[test]
fn targets_that_are_not_computed_are_refused_by_name() {
    let with_it = |target: &str| json!(["q_proj", "v_proj", "up_proj", target]);
    refused("target_modules", with_it("lm_head"), "`target_modules` names `lm_head`, which is not computed");
    refused("target_modules", with_it("embed_tokens"), "names `embed_tokens`");
    refused("target_modules", with_it("proj"), "names `proj`");
    refused("target_modules", Value::Null, "field `target_modules` is missing");
    refused("target_modules", json!([1]), "`target_modules` is not a list of names");
    refused("target_modules", with_it("k_proj"), "self_attn.k_proj.lora_A.weight` is missing");
    refused(
        "target_modules",
        json!(["q_proj", "up_proj"]),
        "v_proj.lora_A.weight` is there, and nothing is computed",
    );
    assert!(with("target_modules", json!("all-linear")).is_ok());
}

#[test]
fn experts_are_refused_and_attention_beside_them_is_not() {
    let experts = Some(Experts { count: 2, active: 1, normalized: true });
    let shape = ModelConfig { architecture: "Qwen3MoeForCausalLM".to_owned(), experts, ..shape() };
    let model = Model::random(shape, 3).unwrap();
    assert!(load(&model, &Written::random(1, 2, 2, &PARTS[..2])).is_ok());
    let error = load(&model, &written()).unwrap_err();
    assert!(error.contains("`target_modules` names `up_proj`"), "{error}");
    let mut written = Written::random(1, 2, 2, &[PARTS[0], ("mlp.experts.1.up_proj", [20, 18])]);
    written.config["target_modules"] = json!("all-linear");
    let error = load(&model, &written).unwrap_err();
    assert!(
        error.contains("experts.1.up_proj.lora_A.weight` is there, and nothing is computed with it"),
        "{error}"
    );
    assert!(error.contains("`Qwen3MoeForCausalLM` may have self_attn.q_proj,"), "{error}");
}

#[test]
fn ranks_and_scales_are_bounded_and_patterns_name_parts() {
    let range = format!("is not a whole number from 1 to {RANK_MAX}");
    refused("r", json!(0), &format!("rank 0 {range}"));
    refused("r", json!(100_000), &format!("rank 100000 {range}"));
    refused("r", json!(4), "lora_A.weight` has shape [3, 20], expected [4, 20]");
    refused("r", json!(-3), "`r` is not a whole number");
    refused(
        "lora_alpha",
        json!(1e300),
        "`lora_alpha` 1e300 gives no scale".replace("1e300", &1e300f64.to_string()).as_str(),
    );
    refused(
        "rank_pattern",
        json!({ "v_proj": 2 }),
        "v_proj.lora_A.weight` has shape [3, 20], expected [2, 20]",
    );
    refused("rank_pattern", json!({ "v_proj": 2.5 }), &format!("rank 2.5 {range}"));
    refused("rank_pattern", json!({ ".*v_proj": 2 }), "`rank_pattern` has `.*v_proj`, and only names");
    refused("alpha_pattern", json!({ "v_proj": "2" }), "`alpha_pattern`: `v_proj` is no number");
    let two = json!({ "v_proj": 2, "self_attn.v_proj": 4 });
    refused("alpha_pattern", two, "which both name `model.layers.0.self_attn.v_proj`");
    assert!(with("rank_pattern", json!({ "k_proj": 2, "v_proj": 3 })).is_ok());
}

/// Loads with one tensor changed.
fn changed(part: &str, factor: &str, change: impl Fn(&mut (Vec<usize>, Vec<f32>))) -> String {
    let mut written = written();
    change(written.tensors.get_mut(&name(1, part, factor)).unwrap());
    load(&Model::random(shape(), 3).unwrap(), &written).unwrap_err()
}

#[test]
fn tensors_that_do_not_fit_or_are_no_numbers_are_refused_by_name() {
    let error = changed("self_attn.v_proj", "B", |(shape, _)| *shape = vec![3, 12]);
    assert_eq!(
        error,
        "adapter_model.safetensors: tensor `base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight` has shape \
         [3, 12], expected [12, 3]"
    );
    for (factor, place) in [("A", "[1, 4]"), ("B", "[8, 0]")] {
        let error = changed("mlp.up_proj", factor, |(_, values)| values[24] = f32::NAN);
        assert!(error.contains(&format!("up_proj.lora_{factor}.weight` is NaN at {place}")), "{error}");
    }
    let error = changed("mlp.up_proj", "B", |(_, values)| values[24] = 3e38);
    assert_eq!(error, "adapter_model.safetensors: `lora_B` 3e38 times the scale 2 is no number");
    let mut written = written();
    written.tensors.insert(name(7, "mlp.up_proj", "A"), (vec![3, 20], vec![0.0; 60]));
    let error = load(&Model::random(shape(), 3).unwrap(), &written).unwrap_err();
    assert!(error.contains("layers.7.mlp.up_proj.lora_A.weight` is there, and nothing"), "{error}");
    written.tensors.clear();
    written.config["target_modules"] = json!("all-linear");
    let error = load(&Model::random(shape(), 3).unwrap(), &written).unwrap_err();
    assert_eq!(error, "adapter_model.safetensors: no tensor adapts anything");
}

#[test]
fn files_that_are_missing_or_cut_are_refused() {
    let model = Model::random(shape(), 3).unwrap();
    let error = Adapter::load(&model, Path::new("/nowhere")).unwrap_err().to_string();
    assert!(error.starts_with("cannot read /nowhere/adapter_config.json"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    written().write(folder.path());
    let weights = folder.path().join("adapter_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    let error = Adapter::load(&model, folder.path()).unwrap_err().to_string();
    assert!(error.contains("adapter_model.safetensors: "), "{error}");
}
