//! Models in GGUF files: the same weights and tokenizer answer as those of a folder, and what is not understood is refused.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use serve::app::App;
use serve::config::Config;

use crate::support::{Host, tools, user};

fn model_file(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/tiny-agent");
    std::fs::read(folder.join(name)).expect("the embedded model lies in the tree")
}

fn model_json(name: &str) -> Value {
    serde_json::from_slice(&model_file(name)).expect("its small files are JSON")
}

/// Metadata: a key, the number of its type, the bytes of its value.
type Entry = (String, u32, Vec<u8>);

fn text_bytes(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn text(key: &str, value: &str) -> Entry {
    (key.to_owned(), 8, text_bytes(value))
}

fn unsigned(key: &str, value: u64) -> Entry {
    (key.to_owned(), 4, u32::try_from(value).expect("it fits").to_le_bytes().to_vec())
}

fn float(key: &str, value: f64) -> Entry {
    (key.to_owned(), 6, (value as f32).to_le_bytes().to_vec())
}

fn list(key: &str, kind: u32, values: Vec<Vec<u8>>) -> Entry {
    let head = [&kind.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
    (key.to_owned(), 9, [head, values.concat()].concat())
}

/// The embedded model's shape and tokenizer as metadata.
fn metadata() -> Vec<Entry> {
    let config = model_json("config.json");
    let size = |key: &str| config[key].as_u64().expect("a size");
    let number = |key: &str| config[key].as_f64().expect("a number");
    let tokenizer = model_json("tokenizer.json");
    let mut tokens = vec![(String::new(), 1i32); size("vocab_size") as usize];
    for (token, id) in tokenizer["model"]["vocab"].as_object().expect("an object") {
        tokens[id.as_u64().expect("an id") as usize] = (token.clone(), 1);
    }
    for added in tokenizer["added_tokens"].as_array().expect("a list") {
        let kind = if added["special"] == true { 3 } else { 4 };
        let content = added["content"].as_str().expect("a text");
        tokens[added["id"].as_u64().expect("an id") as usize] = (content.to_owned(), kind);
    }
    let merge = |merge: &Value| match merge {
        Value::String(line) => text_bytes(line),
        pair => text_bytes(&[0, 1].map(|i| pair[i].as_str().expect("a text")).join(" ")),
    };
    let merges = tokenizer["model"]["merges"].as_array().expect("a list").iter().map(merge).collect();
    let template = model_json("tokenizer_config.json")["chat_template"].as_str().expect("a text").to_owned();
    vec![
        text("general.architecture", "qwen3"),
        unsigned("qwen3.context_length", size("max_position_embeddings")),
        unsigned("qwen3.embedding_length", size("hidden_size")),
        unsigned("qwen3.block_count", size("num_hidden_layers")),
        unsigned("qwen3.feed_forward_length", size("intermediate_size")),
        unsigned("qwen3.attention.head_count", size("num_attention_heads")),
        unsigned("qwen3.attention.head_count_kv", size("num_key_value_heads")),
        unsigned("qwen3.attention.key_length", size("head_dim")),
        unsigned("qwen3.attention.value_length", size("head_dim")),
        float("qwen3.attention.layer_norm_rms_epsilon", number("rms_norm_eps")),
        float("qwen3.rope.freq_base", number("rope_theta")),
        text("tokenizer.ggml.model", "gpt2"),
        text("tokenizer.ggml.pre", "qwen2"),
        list("tokenizer.ggml.tokens", 8, tokens.iter().map(|(token, _)| text_bytes(token)).collect()),
        list(
            "tokenizer.ggml.token_type",
            5,
            tokens.iter().map(|(_, kind)| kind.to_le_bytes().to_vec()).collect(),
        ),
        list("tokenizer.ggml.merges", 8, merges),
        unsigned("tokenizer.ggml.bos_token_id", size("bos_token_id")),
        unsigned("tokenizer.ggml.eos_token_id", size("eos_token_id")),
        text("tokenizer.chat_template", &template),
    ]
}

/// The name of a tensor in GGUF files.
fn tensor_name(name: &str) -> String {
    const PARTS: [(&str, &str); 11] = [
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ];
    let name = name.replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm");
    let name = name.replace("model.layers.", "blk.");
    PARTS.iter().fold(name, |name, (long, short)| name.replace(long, short))
}

/// The embedded model's f16 weights with this metadata, as a file in `folder`.
fn write(folder: &Path, metadata: &[Entry]) -> PathBuf {
    let weights = model_file("model.safetensors");
    let header_len = u64::from_le_bytes(weights[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&weights[8..8 + header_len]).expect("a header");
    let tensors: Vec<_> =
        header.as_object().expect("an object").iter().filter(|(name, _)| *name != "__metadata__").collect();
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((metadata.len() as u64).to_le_bytes());
    for (key, kind, value) in metadata {
        file.extend([text_bytes(key), kind.to_le_bytes().to_vec(), value.clone()].concat());
    }
    let mut data = Vec::new();
    for (name, tensor) in tensors {
        assert_eq!(tensor["dtype"], "F16");
        let shape = tensor["shape"].as_array().expect("a list");
        file.extend(text_bytes(&tensor_name(name)));
        file.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|size| file.extend(size.as_u64().expect("a size").to_le_bytes()));
        file.extend(1u32.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        let at = |i: usize| 8 + header_len + tensor["data_offsets"][i].as_u64().expect("an offset") as usize;
        data.extend_from_slice(&weights[at(0)..at(1)]);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    let path = folder.join("tiny.gguf");
    std::fs::write(&path, file).expect("the folder takes a file");
    path
}

fn config(path: &Path) -> String {
    format!(
        "[engine]\nworkers = 1\n[model]\nname = \"tiny-agent\"\nsource = {:?}\n",
        path.display().to_string()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gguf_file_answers_as_the_folder_of_the_same_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let embedded = Host::start("[engine]\nworkers = 1\n").await;
    let same = Host::start(&config(&write(folder.path(), &metadata()))).await;
    let bodies = [
        json!({ "messages": user("What is 17 plus 25?"), "max_tokens": 48, "temperature": 0.0, "logprobs": true }),
        json!({ "messages": user("Read the file notes.txt"), "tools": tools(), "max_tokens": 64, "temperature": 0.0 }),
        json!({ "messages": user("é 日本 <|im_end|> 12345"), "max_tokens": 32, "seed": 7, "temperature": 0.8 }),
    ];
    for body in bodies {
        let (one, other) = (embedded.chat(body.clone()).await, same.chat(body).await);
        assert_eq!(one.status, 200, "{}", one.json);
        assert_eq!(other.status, 200, "{}", other.json);
        let said = |reply: &Value| {
            let mut choices = reply["choices"].clone();
            let calls = choices[0]["message"]["tool_calls"].as_array_mut();
            calls.into_iter().flatten().for_each(|call| call["id"] = Value::Null);
            (choices, reply["usage"].clone())
        };
        assert_eq!(said(&other.json), said(&one.json));
    }
    embedded.stop().await;
    same.stop().await;
}

/// The embedded model's weights under a tokenizer that SentencePiece trained: what it says means nothing, and is cut as it should.
#[tokio::test(flavor = "multi_thread")]
async fn a_tokenizer_of_sentencepiece_cuts_as_it_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/serve/src/model/gguf/sentencepiece.json");
    let trained: Value = serde_json::from_slice(&std::fs::read(path).expect("a fixture")).expect("JSON");
    let trained = &trained[0];
    let mut metadata = metadata();
    let vocab = model_json("config.json")["vocab_size"].as_u64().expect("a size") as usize;
    let column = |name: &str| trained[name].as_array().expect("a list").clone();
    let mut tokens: Vec<String> =
        column("tokens").iter().map(|token| token.as_str().expect("a text").to_owned()).collect();
    assert!(tokens.len() <= vocab, "{} pieces", tokens.len());
    (tokens.len()..vocab).for_each(|at| tokens.push(format!("<unused{at}>")));
    let padded = |name: &str, fill: f64| -> Vec<f64> {
        let known = column(name).into_iter().map(|value| value.as_f64().expect("a number"));
        known.chain(std::iter::repeat(fill)).take(vocab).collect()
    };
    metadata.retain(|(key, ..)| !key.starts_with("tokenizer."));
    metadata.extend([
        text("tokenizer.ggml.model", "llama"),
        list("tokenizer.ggml.tokens", 8, tokens.iter().map(|token| text_bytes(token)).collect()),
        list(
            "tokenizer.ggml.scores",
            6,
            padded("scores", -1e6).iter().map(|score| (*score as f32).to_le_bytes().to_vec()).collect(),
        ),
        list(
            "tokenizer.ggml.token_type",
            5,
            padded("kinds", 5.0).iter().map(|kind| (*kind as i32).to_le_bytes().to_vec()).collect(),
        ),
        unsigned("tokenizer.ggml.bos_token_id", 1),
        unsigned("tokenizer.ggml.eos_token_id", 2),
        text("tokenizer.chat_template", "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"),
    ]);
    let folder = tempfile::tempdir().expect("a folder");
    let host = Host::start(&config(&write(folder.path(), &metadata))).await;
    for case in trained["cases"].as_array().expect("a list").iter().take(40) {
        let (prompt, count) = (&case[0], case[1].as_array().expect("a list").len());
        if count == 0 {
            continue;
        }
        let body = json!({ "model": "tiny-agent", "prompt": prompt, "max_tokens": 1 });
        let reply = host.api.post("/v1/completions", &body).await.expect("it answers");
        assert_eq!(reply.json["usage"]["prompt_tokens"], count + 1, "{prompt}: {}", reply.json);
    }
    let chat = json!({ "model": "tiny-agent", "messages": user("hello"), "max_tokens": 16, "seed": 3, "temperature": 1.0 });
    let reply = host.chat(chat).await;
    assert_eq!(reply.status, 200, "{}", reply.json);
    // The first token, and what text has behind a control token.
    assert_eq!(reply.json["usage"]["prompt_tokens"], 1 + 3, "{}", reply.json);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tokenizer_that_is_not_known_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    for (key, value, expected) in [
        (
            "tokenizer.ggml.pre",
            "viking",
            "`tokenizer.ggml.pre` `viking` is not supported (supported: llama-bpe,",
        ),
        ("tokenizer.ggml.model", "bert", "`tokenizer.ggml.model` `bert` is not supported (supported: gpt2"),
    ] {
        let mut metadata = metadata();
        let entry = metadata.iter_mut().find(|(known, ..)| known == key).expect("it is there");
        *entry = text(key, value);
        let path = write(folder.path(), &metadata);
        let config = Config::parse(&config(&path)).expect("the configuration is right");
        let refused = tokio::task::spawn_blocking(move || App::start(config, None)).await.expect("no panic");
        let error = refused.err().expect("it is refused").to_string();
        assert!(error.contains(expected) && error.contains("tiny.gguf"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_of_8_bits_make_the_same_calls() {
    let ask = json!({
        "messages": user("Read the file notes.txt"), "tools": tools(), "max_tokens": 64, "temperature": 0.0,
    });
    let mut calls = Vec::new();
    for weights in ["bf16", "int8"] {
        let host = Host::start(&format!("[engine]\nworkers = 1\nweights = \"{weights}\"\n")).await;
        let reply = host.chat(ask.clone()).await;
        assert_eq!(reply.status, 200, "{}", reply.json);
        calls.push(reply.json["choices"][0]["message"]["tool_calls"][0]["function"].clone());
        host.stop().await;
    }
    assert!(calls[0]["name"].is_string(), "{}", calls[0]);
    assert_eq!(calls[0], calls[1]);
    let error = Config::parse("[engine]\nweights = \"int4\"\n").expect_err("no such form").to_string();
    assert!(error.contains("bf16") && error.contains("int8"), "{error}");
}
