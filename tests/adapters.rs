//! LoRA adapters as callers meet them: models of their own, whose KV is never another's.

use std::path::Path;
use std::sync::Arc;

use engine::{
    AdapterId, CpuConfig, CpuExec, Executor, Model, ModelFiles, Row, SampleSpec, SamplingParams, StepPlan,
};
use kv::PageIdx;
use serde_json::{Value, json};
use serve::app::App;
use serve::config::Config;

use crate::support::{Host, user};

/// Parts of the embedded model with their inputs and outputs.
const PARTS: [(&str, [usize; 2]); 7] = [
    ("self_attn.q_proj", [128, 128]),
    ("self_attn.k_proj", [128, 64]),
    ("self_attn.v_proj", [128, 64]),
    ("self_attn.o_proj", [128, 128]),
    ("mlp.gate_proj", [128, 384]),
    ("mlp.up_proj", [128, 384]),
    ("mlp.down_proj", [384, 128]),
];
const LAYERS: usize = 4;
const RANK: usize = 4;

/// Special tokens, which would end an answer or be left out of its text.
const SPECIAL: u32 = 9;

fn bias() -> Value {
    (0..SPECIAL).map(|token| (token.to_string(), json!(-100))).collect::<serde_json::Map<_, _>>().into()
}

/// Writes an adapter with made-up weights, as PEFT does.
fn write(folder: &Path, seed: u64) {
    std::fs::create_dir_all(folder).expect("the folder can be made");
    let names: Vec<&str> = PARTS.iter().filter_map(|(part, _)| part.rsplit('.').next()).collect();
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "r": RANK, "lora_alpha": 2 * RANK,
        "target_modules": names,
    });
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("it is written");
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut state = seed;
    for layer in 0..LAYERS {
        for (part, [inputs, outputs]) in PARTS {
            for (factor, shape) in [("A", [RANK, inputs]), ("B", [outputs, RANK])] {
                let begin = data.len();
                for _ in 0..shape[0] * shape[1] {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let value = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
                    data.extend((value * 0.6).to_le_bytes());
                }
                let name = format!("base_model.model.model.layers.{layer}.{part}.lora_{factor}.weight");
                let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()] });
                header.insert(name, entry);
            }
        }
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    std::fs::write(folder.join("adapter_model.safetensors"), file).expect("it is written");
}

/// A folder with two adapters, and the lines that name them.
fn two() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let mut lines = String::new();
    for (seed, name) in [(1, "left"), (2, "right")] {
        let source = folder.path().join(name);
        write(&source, seed);
        lines += &format!("[[model.adapters]]\nname = \"{name}\"\nsource = {source:?}\n");
    }
    (folder, lines)
}

/// Log-probabilities of the tokens of a greedy completion of tokens, and its cached tokens.
async fn complete(host: &Host, model: &str, prompt: &[u32]) -> (Vec<f64>, u64) {
    let body = json!({
        "model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0.0, "logprobs": 0,
        "logit_bias": bias(),
    });
    let reply = host.api.post("/v1/completions", &body).await.expect("the connection holds");
    assert_eq!((reply.status.as_u16(), &reply.json["model"]), (200, &json!(model)), "{}", reply.json);
    let logprobs = reply.json["choices"][0]["logprobs"]["token_logprobs"].as_array().expect("a list");
    let cached = reply.json["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
    (logprobs.iter().filter_map(Value::as_f64).collect(), cached)
}

/// The same, computed here.
fn reference(exec: &mut CpuExec, adapter: Option<AdapterId>, prompt: &[u32]) -> Vec<f64> {
    let params = SamplingParams {
        temperature: 0.0,
        logprobs: Some(0),
        logit_bias: (0..SPECIAL).map(|token| (token, -100.0)).collect(),
        ..SamplingParams::default()
    };
    let pages: Vec<PageIdx> = (0..16).map(PageIdx).collect();
    let (mut output, mut logprobs) = (Vec::new(), Vec::new());
    for _ in 0..12 {
        let tokens = [prompt, &output].concat();
        let row = Row { tokens: 0..tokens.len() as u32, position: 0, pages: 0..16, samples: 0..1, adapter };
        let position = tokens.len() as u32;
        let samples = [SampleSpec { params: &params, position, prompt: &[], output: &output, mask: None }];
        let plan = StepPlan { rows: &[row], tokens: &tokens, pages: &pages, samples: &samples };
        let ticket = exec.submit(&plan).expect("the plan is right");
        let out =
            exec.poll(ticket, true).expect("it is outstanding").expect("a blocking poll gives the step");
        output.push(out.sampled[0].token);
        logprobs.push(f64::from(out.sampled[0].logprob));
    }
    logprobs
}

fn embedded() -> ModelFiles {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/tiny-agent");
    ModelFiles::open(&folder).expect("the model is in the repository")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_answers_as_it_does_alone_and_finds_no_kv_of_another() {
    let (folder, lines) = two();
    let host = Host::start(&format!("[engine]\nworkers = 1\n{lines}")).await;
    let mut model = Model::load(&embedded()).expect("the model is right");
    let left = model.add_adapter(&folder.path().join("left")).expect("the adapter is right");
    let right = model.add_adapter(&folder.path().join("right")).expect("the adapter is right");
    let config = CpuConfig { threads: 1, pages: 16, ..CpuConfig::default() };
    let mut exec = CpuExec::new(Arc::new(model), config).expect("there is memory");
    let prompt: Vec<u32> = (0..100).map(|i| 300 + i * 37 % 400).collect();
    let mut answers = Vec::new();
    for (name, adapter) in [("tiny-agent", None), ("left", Some(left)), ("right", Some(right))] {
        let (first, cached) = complete(&host, name, &prompt).await;
        assert_eq!(cached, 0, "{name} finds what another computed");
        let expected = reference(&mut exec, adapter, &prompt);
        let same = first.iter().zip(&expected).all(|(ours, theirs)| (ours - theirs).abs() < 1e-4);
        assert!(same && first.len() == expected.len(), "{name}: {first:?}, not {expected:?}");
        let (again, cached) = complete(&host, name, &prompt).await;
        assert!(again == first && cached >= 80, "{name}: {cached} tokens of its own, {again:?}");
        answers.push(first);
    }
    assert!(answers[0] != answers[1] && answers[1] != answers[2] && answers[0] != answers[2], "{answers:?}");
    // All of them in one batch.
    let together = tokio::join!(
        complete(&host, "tiny-agent", &prompt),
        complete(&host, "left", &prompt),
        complete(&host, "right", &prompt),
        complete(&host, "left", &prompt[..40])
    );
    assert_eq!(
        [together.0.0, together.1.0, together.2.0],
        [&answers[0], &answers[1], &answers[2]].map(Vec::clone)
    );
    host.stop().await;
}

/// Text, model and cached tokens of an answer, by each protocol.
async fn asked(host: &Host, model: &str) -> Vec<(String, Value, Value)> {
    let said = "Tell me about the silver river and the garden stone. ".repeat(6);
    let mut answers = Vec::new();
    let chat = json!({ "model": model, "messages": user(&said), "max_tokens": 24, "temperature": 0.0, "logit_bias": bias() });
    let reply = host.api.post("/v1/chat/completions", &chat).await.expect("it answers").json;
    let message = reply["choices"][0]["message"].to_string();
    answers.push((
        message,
        reply["model"].clone(),
        reply["usage"]["prompt_tokens_details"]["cached_tokens"].clone(),
    ));
    let reply = host.api.post("/v1/messages", &chat).await.expect("it answers").json;
    let cached = reply["usage"]["cache_read_input_tokens"].clone();
    answers.push((reply["content"].to_string(), reply["model"].clone(), cached));
    let responses = json!({ "model": model, "input": said, "max_output_tokens": 24, "temperature": 0.0, "logit_bias": bias() });
    let reply = host.api.post("/v1/responses", &responses).await.expect("it answers").json;
    let cached = reply["usage"]["input_tokens_details"]["cached_tokens"].clone();
    answers.push((reply["output"][0]["content"].to_string(), reply["model"].clone(), cached));
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn every_protocol_serves_adapters_under_their_names() {
    let (_folder, lines) = two();
    let host = Host::start(&format!("[engine]\nworkers = 1\n{lines}")).await;
    let mut texts = Vec::new();
    for name in ["tiny-agent", "left", "right"] {
        let answers = asked(&host, name).await;
        assert!(answers.iter().all(|(_, model, _)| model == name), "{answers:?}");
        assert_eq!(answers[0].2, 0, "{name} finds a prompt of another: {answers:?}");
        texts.push(answers.into_iter().map(|(text, ..)| text).collect::<Vec<_>>());
    }
    for (left, (plain, right)) in texts[1].iter().zip(texts[0].iter().zip(&texts[2])) {
        assert_ne!(left, plain, "left answers as no adapter does");
        assert_ne!(left, right, "right answers as left does");
    }
    let streamed = host.stream(json!({ "model": "right", "messages": user("hello"), "max_tokens": 4 })).await;
    assert!(streamed.iter().all(|chunk| chunk["model"] == "right"), "{streamed:?}");
    let unknown = host.chat(json!({ "model": "middle", "messages": user("hello") })).await;
    assert_eq!((unknown.status.as_u16(), &unknown.json["error"]["code"]), (404, &json!("model_not_found")));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_are_listed_after_their_model() {
    let (_folder, lines) = two();
    let host =
        Host::start(&format!("[model]\naliases = [\"gpt-x\"]\n{lines}[engine]\ndevice = \"sim\"\n")).await;
    let list = host.api.get("/v1/models").await.expect("it answers").json;
    let cards: Vec<[&Value; 3]> = list["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|card| [&card["id"], &card["root"], &card["parent"]])
        .collect();
    let [none, tiny] = [Value::Null, json!("tiny-agent")];
    let [alias, left, right] = [json!("gpt-x"), json!("left"), json!("right")];
    assert_eq!(
        cards,
        [[&tiny, &tiny, &none], [&alias, &tiny, &none], [&left, &left, &tiny], [&right, &right, &tiny]]
    );
    let one = host.api.get("/v1/models/right").await.expect("it answers");
    assert_eq!((one.status.as_u16(), &one.json["parent"]), (200, &tiny));
    host.stop().await;
}

/// A simulated device has adapters too: what is said of names is the host's.
#[tokio::test(flavor = "multi_thread")]
async fn keys_and_rules_of_chains_are_about_the_name_as_requested() {
    let (_folder, lines) = two();
    let key = |name: &str, models: &str| {
        use sha2::{Digest, Sha256};
        let hash: String =
            Sha256::digest(format!("sk-{name}")).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("[[auth.keys]]\nsha256 = \"{hash}\"\ntenant = \"{name}\"\nmodels = {models}\n")
    };
    let host = Host::start(&format!(
        "{lines}{}{}[engine]\ndevice = \"sim\"\n[plugins.pick-left]\nsource = \"builtin:pick-max-score\"\n\
         [[chains]]\nname = \"lefts\"\nmatch = {{ models = [\"le*\"] }}\nextends = \"default\"\npick = \"pick-left\"\n",
        key("all", "[]"),
        key("lefts", "[\"left\"]")
    ))
    .await;
    let ask = async |key: &str, model: &str| {
        let body = json!({ "model": model, "messages": user("hello"), "max_tokens": 1 });
        let heard = host.chat_with(&[("x-api-key", &format!("sk-{key}"))], body).await;
        (heard.status().to_owned(), heard.header("x-pointsman-decided-by").to_owned())
    };
    let answered = |picker: &str| ("200".to_owned(), picker.to_owned());
    assert_eq!(ask("all", "left").await, answered("pick-left"));
    assert_eq!(ask("all", "right").await, answered("pick-max-score"));
    assert_eq!(ask("all", "tiny-agent").await, answered("pick-max-score"));
    assert_eq!(ask("lefts", "left").await, answered("pick-left"));
    assert_eq!(ask("lefts", "right").await.0, "403");
    assert_eq!(ask("lefts", "tiny-agent").await.0, "403");
    host.stop().await;
}

fn refused(toml: &str) -> String {
    match Config::parse(toml) {
        Err(error) => error.to_string(),
        Ok(config) => App::start(config, None).err().expect("it is refused").to_string(),
    }
}

#[test]
fn an_adapter_that_cannot_be_served_is_refused_by_its_field() {
    let (folder, lines) = two();
    let check = |more: &str, expected: &[&str]| {
        let error = refused(&format!("{lines}{more}[supply]\ncache_dir = \"off\"\n"));
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    let entry =
        |name: &str, source: &str| format!("[[model.adapters]]\nname = {name:?}\nsource = {source:?}\n");
    check(&entry("left", "x"), &["`model.adapters[2].name`", "`model.adapters[0]`"]);
    check(&entry("tiny-agent", "x"), &["`model.adapters[2].name`", "`tiny-agent`", "the model itself"]);
    check(&entry("lef*", "x"), &["`model.adapters[2].name`", "`lef*`"]);
    check(&entry("", "x"), &["`model.adapters[2].name`"]);
    check(&entry("third", ""), &["`model.adapters[2].source`"]);
    check(&entry("third", "/nowhere"), &["`model.adapters`", "`third`", "/nowhere/adapter_config.json"]);
    let file = folder.path().join("right/adapter_config.json");
    let config = std::fs::read_to_string(&file).expect("it was written");
    std::fs::write(&file, config.replacen('{', "{\"use_dora\":true,", 1)).expect("it is written");
    check("", &["`model.adapters`", "`right`", "`use_dora` is true, which is not supported"]);
}
