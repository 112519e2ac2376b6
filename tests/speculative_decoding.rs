//! Speculative decoding: answers are what they would have been, token by token, and take fewer steps.

use serde_json::{Value, json};

use crate::support::{Host, tools, user};

/// What agents repeat: a text with names in it, and a call whose arguments stand in the question.
fn requests() -> Vec<Value> {
    let words = user(&"copy the words silver river stone ".repeat(12));
    let path = user("Read the file notes/alpha_release_plan.txt and then notes/alpha_release_plan.md");
    let mut bodies = Vec::new();
    let schema = json!({
        "type": "object", "required": ["first_long_name", "second_long_name"], "additionalProperties": false,
        "properties": { "first_long_name": { "type": "boolean" }, "second_long_name": { "enum": ["alpha", "beta"] } },
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "answer", "schema": schema } });
    let required = json!({ "tools": tools(), "tool_choice": "required" });
    // Its state cannot be taken back.
    let grammar = "start: x \"!\"\nx[max_tokens=24]: /[a-z ]*/";
    for (messages, more) in [
        (&words, json!({ "guided_grammar": grammar })),
        (&words, json!({})),
        (&path, json!({ "tools": tools() })),
        (&path, required),
        (&words, json!({ "response_format": format })),
    ] {
        for (temperature, seed) in [(0.0, 1), (0.7, 2), (1.0, 3)] {
            let mut body = json!({
                "messages": messages, "max_tokens": 96, "temperature": temperature, "seed": seed, "logprobs": true,
                "repetition_penalty": 1.05, "frequency_penalty": 0.1,
            });
            body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            bodies.push(body);
        }
    }
    bodies
}

/// The same request with a word about it.
fn hinted(mut body: Value, wish: bool) -> Value {
    body["nvext"] = json!({ "agent_hints": { "speculative_decoding": wish } });
    body
}

/// Drafted and accepted tokens, and steps.
async fn counts(host: &Host) -> [u64; 3] {
    let names = ["draft_tokens_total", "draft_tokens_accepted_total", "steps_total"];
    let mut counts = [0; 3];
    for (count, name) in counts.iter_mut().zip(names) {
        *count = host.metric(&format!("pointsman_{name}")).await;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_the_same_and_take_fewer_steps() {
    let host = Host::start("[engine]\nworkers = 1\n").await;
    let mut answers = Vec::new();
    for body in requests() {
        let reply = host.chat(hinted(body, false)).await;
        assert_eq!(reply.status, 200, "{}", reply.json);
        answers.push(reply.json["choices"].clone());
    }
    let [drafted, _, before] = counts(&host).await;
    assert_eq!(drafted, 0, "a hint turns it off");
    for (body, answer) in requests().into_iter().zip(&answers) {
        let reply = host.chat(body).await;
        assert_eq!(without_ids(reply.json["choices"].clone()), without_ids(answer.clone()));
    }
    let [drafted, accepted, after] = counts(&host).await;
    assert!(accepted > 0 && accepted < drafted, "{accepted} of {drafted} were right");
    assert!(after - before < before, "{} steps with, {before} without", after - before);
    host.stop().await;
}

/// Ids of calls are drawn anew each time.
fn without_ids(mut choices: Value) -> Value {
    let calls = choices[0]["message"]["tool_calls"].as_array_mut();
    calls.into_iter().flatten().for_each(|call| call["id"] = Value::Null);
    choices
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_turned_off() {
    let host = Host::start("[engine]\nworkers = 1\n[schedule]\ndraft_tokens_max = 0\n").await;
    for body in requests() {
        assert_eq!(host.chat(hinted(body, true)).await.status, 200);
    }
    assert_eq!(counts(&host).await[0], 0);
    host.stop().await;
}

/// Guesses of the draft model, and those that were right.
async fn of_the_model(host: &Host) -> [u64; 2] {
    let label = "{worker=\"worker-0\",source=\"model\"}";
    let names = ["draft_tokens_total", "draft_tokens_accepted_total"];
    let mut counts = [0; 2];
    for (count, name) in counts.iter_mut().zip(names) {
        *count = host.metric(&format!("pointsman_{name}{label}")).await;
    }
    counts
}

/// The answers to all requests, and the steps that they took.
async fn answered(host: &Host, wish: bool) -> (Vec<Value>, u64) {
    let [_, _, before] = counts(host).await;
    let mut answers = Vec::new();
    for body in requests() {
        let reply = host.chat(hinted(body, wish)).await;
        assert_eq!(reply.status, 200, "{}", reply.json);
        answers.push(without_ids(reply.json["choices"].clone()));
    }
    let [_, _, after] = counts(host).await;
    (answers, after - before)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_guesses_for_itself_is_always_right() {
    let host = Host::start("[engine]\nworkers = 1\n[model.draft]\nsource = \"embedded\"\n").await;
    let (without, steps_without) = answered(&host, false).await;
    assert_eq!(of_the_model(&host).await, [0, 0], "a hint turns it off");
    let (with, steps) = answered(&host, true).await;
    assert_eq!(with, without);
    let [drafted, accepted] = of_the_model(&host).await;
    assert!(accepted > 0 && accepted == drafted, "{accepted} of {drafted} were right");
    assert!(steps < steps_without, "{steps} steps with, {steps_without} without");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_model_that_costs_little_saves_most_steps() {
    let config = "[model.draft]\nsource = \"embedded\"\n[engine]\nworkers = 1\ndevice = \"sim\"\n[engine.sim]\nstep_us = 500\n";
    let host = Host::start(config).await;
    let body = json!({ "messages": user("Say something."), "max_tokens": 256, "seed": 1 });
    let mut answers = Vec::new();
    let mut steps = Vec::new();
    for wish in [false, true] {
        let [_, _, before] = counts(&host).await;
        let reply = host.chat(hinted(body.clone(), wish)).await;
        assert_eq!(reply.status, 200, "{}", reply.json);
        answers.push(reply.json["choices"].clone());
        steps.push(counts(&host).await[2] - before);
    }
    assert_eq!(answers[0], answers[1]);
    assert!(steps[1] * 4 < steps[0], "{} steps with, {} without", steps[1], steps[0]);
    host.stop().await;
}

/// A copy of the embedded model in a folder, as `change` makes its files.
fn copied(change: impl Fn(&str, Vec<u8>) -> Vec<u8>) -> tempfile::TempDir {
    let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/tiny-agent");
    let to = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        let bytes = std::fs::read(from.join(name)).expect("the embedded model lies in the tree");
        std::fs::write(to.path().join(name), change(name, bytes)).expect("it is written");
    }
    to
}

/// The same tensors with other weights: small halves of both signs.
fn random_weights(name: &str, mut bytes: Vec<u8>) -> Vec<u8> {
    if name == "model.safetensors" {
        let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        let mut state = 7u32;
        for half in bytes[8 + header as usize..].chunks_exact_mut(2) {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let sign = (state >> 16) as u16 & 0x8000;
            half.copy_from_slice(&(sign | (0x2800 + (state >> 22) as u16)).to_le_bytes());
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_model_that_knows_nothing_changes_no_answer() {
    let folder = copied(random_weights);
    let draft = format!("[model.draft]\nsource = {:?}\n", folder.path());
    let host = Host::start(&format!("[engine]\nworkers = 1\n{draft}")).await;
    let (without, _) = answered(&host, false).await;
    let (with, _) = answered(&host, true).await;
    assert_eq!(with, without);
    let [drafted, accepted] = of_the_model(&host).await;
    assert!(drafted > 0 && accepted * 2 < drafted, "{accepted} of {drafted} were right");
    assert_eq!(host.metric("pointsman_draft_model_failures_total").await, 0);
    host.stop().await;
}

#[test]
fn a_draft_model_of_another_vocabulary_is_refused_by_name() {
    let folder = copied(|name, bytes| match name {
        "tokenizer.json" => {
            let mut tokenizer: Value = serde_json::from_slice(&bytes).expect("it is JSON");
            tokenizer["added_tokens"][2]["content"] = json!("<|other|>");
            tokenizer.to_string().into_bytes()
        }
        _ => bytes,
    });
    for (source, reason) in [
        (format!("{:?}", folder.path()), "must have the vocabulary of the served model, but token"),
        ("\"/no/such/folder\"".to_owned(), "/no/such/folder"),
    ] {
        let config =
            serve::config::Config::parse(&format!("[model.draft]\nsource = {source}\n")).expect("it is read");
        let error = serve::app::App::start(config, None).err().expect("it is refused").to_string();
        assert!(error.contains("`model.draft.source`") && error.contains(reason), "{error}");
    }
}
