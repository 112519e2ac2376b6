//! The executor against Hugging Face transformers: `fixtures/README.md` says how the numbers were made.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::testing::{TestRow, logprob_of, run_adapted};
use crate::{
    AdapterId, CpuConfig, CpuExec, EngineError, Executor, Isa, Model, ModelFiles, Sampled, WeightFormat,
};

pub(crate) const FAMILIES: [&str; 11] = [
    "llama2",
    "llama3",
    "llama_linear",
    "qwen3",
    "qwen2",
    "mistral",
    "gemma3",
    "phi3",
    "olmo2",
    "qwen3_moe",
    "gpt_oss",
];

/// Limits on a family's deviation from float32 arithmetic on the same weights.
///
/// The reference's own bfloat16 arithmetic deviates by 0.0100 in the mean and 0.037 at p99. Ours
/// rounds less (the residual stream and all sums are f32), so these are tighter.
const MEAN_MAX: f64 = 0.008;
const P99_MAX: f64 = 0.032;
/// Where another token is best, by how much the reference prefers its own.
const REGRET_MAX: f64 = 0.06;

pub(crate) fn fixture(family: &str) -> PathBuf {
    // On a machine that only runs the tests, the fixtures are where that says.
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    std::env::var_os("POINTSMAN_FIXTURES").map_or(own, PathBuf::from).join(family)
}

pub(crate) struct Deviation {
    mean: f64,
    p99: f64,
    regret: f64,
    agreement: f64,
}

impl Deviation {
    pub(crate) fn check(&self, what: &str) {
        let Self { mean, p99, regret, agreement } = self;
        println!("{what}: mean {mean:.5} p99 {p99:.4} regret {regret:.4} agreement {agreement:.4}");
        assert!(*mean <= MEAN_MAX, "{what}: mean {mean}");
        assert!(*p99 <= P99_MAX, "{what}: p99 {p99}");
        assert!(*regret <= REGRET_MAX, "{what}: regret {regret}");
    }
}

/// Teacher-forces every golden sequence, one token a step, and compares the 16 likeliest tokens.
fn deviation(family: &str, exec: &mut dyn Executor) -> Deviation {
    deviation_from(&fixture(family).join("golden.json"), exec)
}

fn deviation_from(golden: &Path, exec: &mut dyn Executor) -> Deviation {
    deviation_of(golden, exec, None)
}

fn deviation_of(golden: &Path, exec: &mut dyn Executor, adapter: Option<AdapterId>) -> Deviation {
    compare(golden, |tokens| {
        let one = |(position, token): (usize, &u32)| {
            let row =
                TestRow { tokens: &[*token], position: position as u32, pages: (0..10).rev().collect() };
            run_adapted(exec, &[row], (|_| 1, |_| adapter)).unwrap().remove(0)
        };
        tokens.iter().enumerate().map(one).collect()
    })
}

/// Compares the 16 likeliest tokens after each token of every golden sequence; `ours` computes a sequence.
pub(crate) fn compare(golden: &Path, mut ours: impl FnMut(&[u32]) -> Vec<Sampled>) -> Deviation {
    let golden = std::fs::read(golden).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let (mut errors, mut regrets) = (Vec::new(), Vec::new());
    for sequence in golden["sequences"].as_array().unwrap() {
        let list = |value: &Value| -> Vec<u32> {
            value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
        };
        let tokens = list(&sequence["tokens"]);
        for (position, ours) in ours(&tokens).into_iter().enumerate() {
            let top = list(&sequence["top_tokens"][position]);
            let logprobs: Vec<f64> = sequence["top_logprobs"][position]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_f64().unwrap())
                .collect();
            let pairs = top.iter().zip(&logprobs);
            errors.extend(pairs.map(|(token, theirs)| (f64::from(logprob_of(&ours, *token)) - theirs).abs()));
            let place = top.iter().position(|token| *token == ours.token).unwrap_or(top.len() - 1);
            regrets.push(logprobs[0] - logprobs[place]);
        }
    }
    errors.sort_by(f64::total_cmp);
    Deviation {
        mean: errors.iter().sum::<f64>() / errors.len() as f64,
        p99: errors[errors.len() * 99 / 100],
        regret: regrets.iter().copied().fold(0.0, f64::max),
        agreement: regrets.iter().filter(|regret| **regret == 0.0).count() as f64 / regrets.len() as f64,
    }
}

fn config_of(isa: Isa) -> CpuConfig {
    CpuConfig { threads: 1, pages: 10, isa, ..CpuConfig::default() }
}

fn check(isa: Isa) {
    for family in FAMILIES {
        let files = ModelFiles::open(&fixture(family)).unwrap();
        let mut exec = match CpuExec::load(&files, config_of(isa)) {
            Ok(exec) => exec,
            Err(EngineError::Config(reason)) => return println!("not checked: {reason}"),
            Err(error) => panic!("{error}"),
        };
        deviation(family, &mut exec).check(&format!("{isa:?} {family}"));
    }
}

#[test]
fn avx512_agrees_with_the_reference() {
    check(Isa::Avx512Bf16);
}

#[test]
fn avx2_agrees_with_the_reference() {
    check(Isa::Avx2);
}

#[test]
fn portable_agrees_with_the_reference() {
    check(Isa::Portable);
}

/// The `gguf` package wrote the weights of the fixture in blocks, and transformers computed with what they stand for.
#[test]
fn blocks_of_a_gguf_file_agree_with_the_reference() {
    let files = ModelFiles::open(&fixture("gguf/quantised.gguf")).unwrap();
    let mut exec = CpuExec::load(&files, config_of(Isa::Auto)).unwrap();
    deviation_from(&fixture("gguf/quantised.json"), &mut exec).check("quantised.gguf");
}

/// As above, with blocks of Q8_0 kept as they are and activations rounded to 8 bits. The limits are four times those of
/// bf16: an activation keeps 8 bits of its group's largest value, where bf16 keeps 8 of each.
#[test]
fn blocks_kept_as_they_are_agree_with_the_reference() {
    let files = ModelFiles::open(&fixture("gguf/quantised.gguf")).unwrap();
    let model = Arc::new(Model::load_as(&files, WeightFormat::Int8).unwrap());
    let mut exec = CpuExec::new(model, config_of(Isa::Auto)).unwrap();
    let Deviation { mean, p99, regret, .. } = deviation_from(&fixture("gguf/quantised.json"), &mut exec);
    println!("quantised.gguf in int8: mean {mean:.5} p99 {p99:.4} regret {regret:.4}");
    assert!(
        mean <= 4.0 * MEAN_MAX && p99 <= 4.0 * P99_MAX && regret <= 4.0 * REGRET_MAX,
        "{mean} {p99} {regret}"
    );
}

/// The `gguf` package wrote the same weights, in other shapes, orders and names.
#[test]
fn a_gguf_file_gives_what_its_safetensors_give() {
    for family in ["llama3", "gemma3", "phi3", "olmo2", "qwen3_moe", "gpt_oss"] {
        let files = ModelFiles::open(&fixture("gguf").join(format!("{family}.gguf"))).unwrap();
        let mut exec = CpuExec::load(&files, config_of(Isa::Auto)).unwrap();
        let from_gguf = deviation(family, &mut exec);
        from_gguf.check(&format!("{family}.gguf"));
        let mut exec =
            CpuExec::load(&ModelFiles::open(&fixture(family)).unwrap(), config_of(Isa::Auto)).unwrap();
        let difference = from_gguf.mean - deviation(family, &mut exec).mean;
        // Files say the rope factors of these two in f32.
        let exact = !["llama3", "phi3"].contains(&family);
        assert!(difference.abs() <= if exact { 0.0 } else { 1e-4 }, "{family}: {difference}");
    }
}

/// The limits are worth something: the smallest common mistakes of every family are far outside them.
#[test]
fn common_mistakes_are_far_outside_the_limits() {
    for (family, from, to) in [
        ("llama3", "\"rope_theta\": 500000.0", "\"rope_theta\": 1000000.0"),
        ("qwen3", "1000000.0", "2000000.0"),
        ("qwen2", "\"rope_theta\": 1000000.0", "\"rope_theta\": 2000000.0"),
        ("qwen2", "\"max_window_layers\": 1", "\"max_window_layers\": 2"),
        ("mistral", "\"sliding_window\": 48", "\"sliding_window\": 47"),
        ("gemma3", "\"sliding_window_pattern\": 2", "\"sliding_window_pattern\": 1"),
        ("gemma3", "\"rope_local_base_freq\": 10000", "\"rope_local_base_freq\": 1000000"),
        ("gemma3", "\"query_pre_attn_scalar\": 24", "\"query_pre_attn_scalar\": 32"),
        ("phi3", "\"sliding_window\": 72", "\"sliding_window\": 71"),
        ("phi3", "\"max_position_embeddings\": 4096", "\"max_position_embeddings\": 256"),
        ("olmo2", "\"rope_theta\": 500000", "\"rope_theta\": 1000000"),
        ("qwen3_moe", "\"norm_topk_prob\": true", "\"norm_topk_prob\": false"),
        ("gpt_oss", "\"sliding_window\": 32", "\"sliding_window\": 31"),
        ("gpt_oss", "\"truncate\": false", "\"truncate\": true"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let json = std::fs::read_to_string(fixture(family).join("config.json")).unwrap();
        assert!(json.contains(from), "{family}: {from}");
        std::fs::write(dir.path().join("config.json"), json.replace(from, to)).unwrap();
        let weights = fixture(family).join("model.safetensors");
        std::fs::copy(weights, dir.path().join("model.safetensors")).unwrap();
        let mut exec = CpuExec::load(&ModelFiles::open(dir.path()).unwrap(), config_of(Isa::Auto)).unwrap();
        let Deviation { mean, p99, .. } = deviation(family, &mut exec);
        println!("{family} with {to}: mean {mean:.4} p99 {p99:.3}");
        assert!(mean > 4.0 * MEAN_MAX && p99 > 5.0 * P99_MAX, "{family} with {to}: mean {mean} p99 {p99}");
    }
}

const ADAPTERS: [&str; 4] = ["llama3", "phi3", "gemma3", "qwen3_moe"];

/// Deviation of a family with the adapter of its name, from what PEFT computes with both. `change` edits a copy of the
/// adapter's config.
fn adapted(
    family: &str,
    (format, isa): (WeightFormat, Isa),
    change: impl Fn(String) -> String,
) -> Option<Deviation> {
    let mut model = Model::load_as(&ModelFiles::open(&fixture(family)).unwrap(), format).unwrap();
    let (from, folder) = (fixture("adapters").join(family), tempfile::tempdir().unwrap());
    let config = std::fs::read_to_string(from.join("adapter_config.json")).unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), change(config)).unwrap();
    let weights = "adapter_model.safetensors";
    std::fs::copy(from.join(weights), folder.path().join(weights)).unwrap();
    let id = model.add_adapter(folder.path()).unwrap();
    let mut exec = CpuExec::new(Arc::new(model), config_of(isa)).ok()?;
    Some(deviation_of(&from.join("golden.json"), &mut exec, Some(id)))
}

#[test]
fn adapters_agree_with_the_reference() {
    for isa in [Isa::Avx512Bf16, Isa::Avx2, Isa::Portable] {
        for family in ADAPTERS {
            let Some(deviation) = adapted(family, (WeightFormat::Bf16, isa), |config| config) else {
                continue;
            };
            deviation.check(&format!("{isa:?} {family} with its adapter"));
        }
    }
}

/// With the weights of the model in 8 bits, an adapter adds no error of its own.
#[test]
fn adapters_of_rounded_weights_agree_as_their_model_does() {
    for family in ADAPTERS {
        let files = ModelFiles::open(&fixture(family)).unwrap();
        let model = Arc::new(Model::load_as(&files, WeightFormat::Int8).unwrap());
        let bare = deviation(family, &mut CpuExec::new(model, config_of(Isa::Auto)).unwrap());
        let with = adapted(family, (WeightFormat::Int8, Isa::Auto), |config| config).unwrap();
        println!("{family} in int8: mean {:.4}, with its adapter {:.4}", bare.mean, with.mean);
        assert!(with.mean <= 1.5 * bare.mean, "{family}: {} with, {} without", with.mean, bare.mean);
    }
}

/// An adapter left out, and the smallest mistakes in its scale, are far outside the limits.
#[test]
fn mistakes_with_adapters_are_far_outside_the_limits() {
    let far = |what: &str, Deviation { mean, p99, .. }: Deviation| {
        println!("{what}: mean {mean:.4} p99 {p99:.3}");
        assert!(mean > 4.0 * MEAN_MAX && p99 > 5.0 * P99_MAX, "{what}: mean {mean} p99 {p99}");
    };
    for family in ADAPTERS {
        let mut exec =
            CpuExec::load(&ModelFiles::open(&fixture(family)).unwrap(), config_of(Isa::Auto)).unwrap();
        let golden = fixture("adapters").join(family).join("golden.json");
        far(&format!("{family} without its adapter"), deviation_from(&golden, &mut exec));
    }
    for (family, from, to) in [
        ("llama3", "\"use_rslora\": false", "\"use_rslora\": true"),
        ("llama3", "\"q_proj\": 12", "\"q_proj\": 8"),
        ("phi3", "\"use_rslora\": true", "\"use_rslora\": false"),
        ("gemma3", "\"lora_alpha\": 8", "\"lora_alpha\": 4"),
        ("qwen3_moe", "\"lora_alpha\": 8", "\"lora_alpha\": 4"),
    ] {
        let change = |config: String| {
            assert!(config.contains(from), "{family}: {from}");
            config.replace(from, to)
        };
        let deviation = adapted(family, (WeightFormat::Bf16, Isa::Auto), change).unwrap();
        far(&format!("{family} with {to}"), deviation);
    }
}
