//! `POST /v1/completions` and `GET /v1/models` to the byte, as clients read them.

use serde_json::{Value, json};

use crate::support::{Host, PATIENCE, post, user, with_model};

async fn complete(host: &Host, body: Value) -> (u16, Value) {
    let reply = tokio::time::timeout(PATIENCE, host.api.post("/v1/completions", &with_model(body)))
        .await
        .expect("an answer comes")
        .expect("the connection holds");
    (reply.status.as_u16(), reply.json)
}

fn greedy(prompt: Value) -> Value {
    json!({ "prompt": prompt, "max_tokens": 4, "temperature": 0.0 })
}

/// The texts of an answer, in order.
fn texts(json: &Value) -> Vec<String> {
    let choices = json["choices"].as_array().expect("there are choices");
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index, "{json}");
    }
    choices.iter().map(|choice| choice["text"].as_str().expect("a text").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_is_one_object() {
    let host = Host::start("").await;
    let (status, json) = complete(&host, greedy(json!("silver river"))).await;
    assert_eq!(status, 200, "{json}");
    let keys: Vec<&str> = json.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["id", "object", "created", "model", "choices", "usage"]);
    assert!(json["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")));
    assert_eq!((&json["object"], &json["model"]), (&json!("text_completion"), &json!("tiny-agent")));
    let choice = &json["choices"][0];
    let keys: Vec<&str> = choice.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["index", "text", "logprobs", "finish_reason"]);
    assert_eq!(choice["logprobs"], Value::Null);
    let usage = &json["usage"];
    let count = |name: &str| usage[name].as_u64().expect("a count");
    assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
    assert!(count("completion_tokens") <= 4 && count("prompt_tokens") > 0);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_prompt_of_a_list_has_its_choices_and_they_are_what_it_gets_alone() {
    let host = Host::start("").await;
    let prompts = ["silver river", "the garden stone", "maple"];
    let mut alone = Vec::new();
    let mut prompt_tokens = 0;
    for prompt in prompts {
        let (_, json) = complete(&host, greedy(json!(prompt))).await;
        prompt_tokens += json["usage"]["prompt_tokens"].as_u64().expect("a count");
        alone.extend(texts(&json));
    }
    let (status, together) = complete(&host, greedy(json!(prompts))).await;
    assert_eq!(status, 200, "{together}");
    assert_eq!(texts(&together), alone);
    assert_eq!(together["usage"]["prompt_tokens"], prompt_tokens);
    let mut twice = greedy(json!(prompts));
    twice["n"] = json!(2);
    twice["best_of"] = json!(2);
    let (_, twice) = complete(&host, twice).await;
    let doubled: Vec<String> = alone.iter().flat_map(|text| [text.clone(), text.clone()]).collect();
    assert_eq!(texts(&twice), doubled);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_a_prompt_and_echo_spells_them() {
    let host = Host::start("").await;
    let mut body = greedy(json!("silver river"));
    body["echo"] = json!(true);
    body["max_tokens"] = json!(0);
    let (status, json) = complete(&host, body).await;
    assert_eq!(status, 200, "{json}");
    assert_eq!(texts(&json), ["silver river"]);
    assert_eq!(json["choices"][0]["finish_reason"], "length");
    assert_eq!(json["usage"]["completion_tokens"], 0);
    for (prompt, count) in [(json!([70, 71, 72]), 1), (json!([[70, 71, 72], [73]]), 2)] {
        let mut body = greedy(prompt);
        body["echo"] = json!(true);
        let (status, json) = complete(&host, body).await;
        assert_eq!(status, 200, "{json}");
        assert_eq!(json["usage"]["prompt_tokens"], if count == 1 { 3 } else { 4 });
        assert_eq!(texts(&json).len(), count);
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completions_markup_is_text() {
    // What the model writes is not taken apart, however it looks.
    let host = Host::start("").await;
    let prompt = "<|im_start|>user\ncalculate 2 + 3<|im_end|>\n<|im_start|>assistant\n<think>";
    let (status, json) = complete(&host, json!({ "prompt": prompt, "max_tokens": 24, "echo": true })).await;
    assert_eq!(status, 200, "{json}");
    assert!(texts(&json)[0].starts_with(prompt), "{json}");
    assert!(json["choices"][0].get("message").is_none());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logprobs_have_the_old_form() {
    let host = Host::start("").await;
    let mut body = greedy(json!("silver river"));
    body["logprobs"] = json!(2);
    let (status, json) = complete(&host, body).await;
    assert_eq!(status, 200, "{json}");
    let (text, logprobs) = (&texts(&json)[0], &json["choices"][0]["logprobs"]);
    let list = |name: &str| logprobs[name].as_array().unwrap_or_else(|| panic!("{name}: {json}")).clone();
    let tokens = list("tokens");
    let joined: String = tokens.iter().filter_map(Value::as_str).collect();
    assert_eq!(joined, *text);
    let offsets: Vec<u64> = list("text_offset").iter().filter_map(Value::as_u64).collect();
    let mut offset = 0;
    for (token, seen) in tokens.iter().filter_map(Value::as_str).zip(&offsets) {
        assert_eq!(*seen, offset);
        offset += token.chars().count() as u64;
    }
    for (i, top) in list("top_logprobs").iter().enumerate() {
        let top = top.as_object().expect("an object");
        assert!((2..=3).contains(&top.len()), "{json}");
        assert_eq!(top[tokens[i].as_str().expect("a text")], list("token_logprobs")[i]);
    }
    host.stop().await;
}

/// Data lines of a stream, `[DONE]` left out.
async fn stream(host: &Host, mut body: Value) -> Vec<Value> {
    body["stream"] = json!(true);
    let response = host.raw(&post("/v1/completions", &with_model(body).to_string())).await;
    assert!(response.contains("content-type: text/event-stream"), "{response}");
    let body = response.split_once("\r\n\r\n").expect("a response has a head").1;
    let mut events: Vec<&str> = body.split("\n\n").filter(|event| !event.is_empty()).collect();
    assert_eq!(events.pop(), Some("data: [DONE]"), "{response}");
    let json = |event: &&str| {
        let data = event.strip_prefix("data: ").expect("events have no names");
        serde_json::from_str(data).expect("a chunk is JSON")
    };
    events.iter().map(json).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_say_what_a_whole_answer_says() {
    let host = Host::start("").await;
    for prompt in [json!("silver river"), json!(["silver river", "maple stone"])] {
        let mut body = greedy(prompt);
        body["echo"] = json!(true);
        let whole = complete(&host, body.clone()).await.1;
        let chunks = stream(&host, body).await;
        let mut said = vec![String::new(); texts(&whole).len()];
        let mut finished = vec![Value::Null; said.len()];
        for chunk in &chunks {
            let keys: Vec<&str> = chunk.as_object().expect("an object").keys().map(String::as_str).collect();
            assert_eq!(keys, ["id", "object", "created", "model", "choices"], "{chunk}");
            assert_eq!((&chunk["object"], &chunk["id"]), (&json!("text_completion"), &chunks[0]["id"]));
            let choice = &chunk["choices"][0];
            let index = choice["index"].as_u64().expect("an index") as usize;
            assert_eq!(finished[index], Value::Null, "nothing follows the end");
            said[index] += choice["text"].as_str().expect("a text");
            finished[index] = choice["finish_reason"].clone();
        }
        assert_eq!(said, texts(&whole));
        let ends: Vec<Value> =
            (0..said.len()).map(|i| whole["choices"][i]["finish_reason"].clone()).collect();
        assert_eq!(finished, ends);
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_usage_where_it_is_asked_for() {
    let host = Host::start("").await;
    let mut body = greedy(json!("silver river"));
    body["stream_options"] = json!({ "include_usage": true });
    let chunks = stream(&host, body).await;
    let (last, others) = chunks.split_last().expect("there are chunks");
    assert_eq!(last["choices"], json!([]));
    assert!(last["usage"]["prompt_tokens"].as_u64().is_some_and(|tokens| tokens > 0));
    assert!(others.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_by_name() {
    let host = Host::start("[limits]\nrequests_max = 2\n").await;
    for (more, param) in [
        (json!({ "prompt": null }), "prompt"),
        (json!({ "prompt": "a", "suffix": "b" }), "suffix"),
        (json!({ "prompt": "a", "best_of": 3 }), "best_of"),
        (json!({ "prompt": "a", "echo": true, "logprobs": 1 }), "echo"),
        (json!({ "prompt": [999_999_999] }), "prompt[0]"),
        (json!({ "prompt": ["a", "b", "c"] }), "prompt"),
        (json!({ "prompt": "a", "max_tokens": -1 }), "max_tokens"),
    ] {
        let (status, json) = complete(&host, more).await;
        assert_eq!((status, &json["error"]["param"]), (400, &json!(param)), "{json}");
        assert_eq!(json["error"]["type"], "invalid_request_error");
    }
    let (status, json) = complete(&host, json!({ "prompt": "a", "model": "other" })).await;
    assert_eq!((status, &json["error"]["code"]), (404, &json!("model_not_found")));
    // Nothing of that keeps a seat.
    assert_eq!(complete(&host, greedy(json!(["a", "b"]))).await.0, 200);
    host.stop().await;
}

/// A GET on a connection of its own: status and body.
async fn get(host: &Host, path: &str, headers: &str) -> (String, Value) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n");
    let response = host.raw(request.as_bytes()).await;
    let (head, body) = response.split_once("\r\n\r\n").expect("a response has a head");
    let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

const ANTHROPIC: &str = "anthropic-version: 2023-06-01\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn models_are_listed_in_the_shape_of_whoever_asks() {
    let host = Host::start("[model]\ncontext_tokens_max = 4096\naliases = [\"claude-*\", \"gpt-x\"]\n").await;
    let (status, list) = get(&host, "/v1/models", "").await;
    assert_eq!((status.as_str(), &list["object"]), ("200", &json!("list")));
    let ids: Vec<&Value> = list["data"].as_array().expect("a list").iter().map(|card| &card["id"]).collect();
    assert_eq!(ids, [&json!("tiny-agent"), &json!("gpt-x")], "patterns are no names");
    let card = &list["data"][0];
    assert_eq!(
        (&card["object"], &card["max_model_len"], &card["context_length"]),
        (&json!("model"), &json!(4096), &json!(4096))
    );
    assert_eq!(get(&host, "/v1/models/tiny-agent", "").await.1, *card);

    let (status, list) = get(&host, "/v1/models?limit=1000", ANTHROPIC).await;
    assert_eq!(status, "200", "{list}");
    let keys: Vec<&str> = list.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["data", "has_more", "first_id", "last_id"]);
    assert_eq!(
        (&list["has_more"], &list["first_id"], &list["last_id"]),
        (&json!(false), &json!("tiny-agent"), &json!("gpt-x"))
    );
    let card = &list["data"][0];
    let keys: Vec<&str> = card.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["type", "id", "display_name", "created_at", "max_input_tokens", "max_tokens"]);
    assert_eq!((&card["type"], &card["max_input_tokens"]), (&json!("model"), &json!(4096)));
    assert!(card["created_at"].as_str().is_some_and(|at| at.starts_with("20") && at.ends_with('Z')));
    let (_, page) = get(&host, "/v1/models?limit=1", ANTHROPIC).await;
    assert_eq!((&page["has_more"], &page["last_id"]), (&json!(true), &json!("tiny-agent")));
    let (status, card) = get(&host, "/v1/models/claude-opus", ANTHROPIC).await;
    assert_eq!((status.as_str(), &card["id"]), ("200", &json!("claude-opus")));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_said_in_the_shape_of_whoever_asks() {
    let host = Host::start("").await;
    let (status, json) = get(&host, "/v1/models/other", "").await;
    assert_eq!((status.as_str(), &json["error"]["code"]), ("404", &json!("model_not_found")));
    let (status, json) = get(&host, "/v1/models/other", ANTHROPIC).await;
    assert_eq!((status.as_str(), &json["error"]["type"]), ("404", &json!("not_found_error")));
    let (status, json) = get(&host, "/v1/models?limit=0", ANTHROPIC).await;
    assert_eq!((status.as_str(), &json["error"]["type"]), ("400", &json!("invalid_request_error")));
    for path in ["/v1/embeddings", "/v1/images/generations", "/v1/audio/speech", "/v1/moderations"] {
        let heard = host.post_with(path, &[], json!({ "input": "a" })).await;
        assert_eq!((heard.status(), &heard.json["error"]["code"]), ("404", &json!("out_of_scope")), "{path}");
        let message = heard.json["error"]["message"].as_str().expect("a message");
        assert!(message.contains(path) && message.contains("out of scope"), "{message}");
    }
    let heard = host.post_with("/v1/embeddingsx", &[], json!({ "messages": user("a") })).await;
    assert_eq!(heard.json["error"]["code"], "unknown_url");
    host.stop().await;
}

/// A folder of the embedded model, whose tokenizer has a token more than its embedding, as that of a text model may that
/// was made from one for images.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_model_lacks_is_refused_and_harms_nobody() {
    let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/tiny-agent");
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(from.join(name), folder.path().join(name)).expect("the model lies in the tree");
    }
    let text = std::fs::read(from.join("tokenizer.json")).expect("the model lies in the tree");
    let mut tokenizer: Value = serde_json::from_slice(&text).expect("JSON");
    let mut added = tokenizer["added_tokens"][0].clone();
    added["id"] = 768.into();
    added["content"] = "<image_mark>".into();
    tokenizer["added_tokens"].as_array_mut().expect("a list").push(added);
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string())
        .expect("the folder takes a file");
    let source = folder.path().display().to_string();
    let host =
        Host::start(&format!("[engine]\nworkers = 1\n[model]\nname = \"tiny-agent\"\nsource = {source:?}\n"))
            .await;
    let complete = async |prompt: &str| {
        let body = json!({ "model": "tiny-agent", "prompt": prompt, "max_tokens": 4 });
        host.post_with("/v1/completions", &[], body).await
    };
    let refused = complete("a <image_mark> b").await;
    assert_eq!(refused.status(), "400", "{}", refused.json);
    let message = refused.json["error"]["message"].as_str().expect("a text");
    assert!(message.contains("`prompt` has token 768") && message.contains("below 768"), "{message}");
    assert_eq!(complete("a b").await.status(), "200");
    host.stop().await;
}
