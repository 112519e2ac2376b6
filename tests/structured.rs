//! Structured output: what a model says fits the format and the tools, whatever the model is.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Host, user};

/// A schema in which everything has an end, so that a model of random weights comes to it.
fn bounded() -> Value {
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "name": { "type": "string", "minLength": 1, "maxLength": 8 },
            "kind": { "enum": ["plan", "act", null] },
            "score": { "type": "integer", "minimum": -5, "maximum": 100 },
            "steps": { "type": "array", "items": { "$ref": "#/$defs/step" }, "minItems": 1, "maxItems": 3 },
        },
        "required": ["name", "kind", "score", "steps"],
        "additionalProperties": false,
        "$defs": { "step": {
            "type": "object",
            "properties": { "done": { "type": "boolean" }, "id": { "type": "string", "pattern": "^[a-f]{2}-[0-9]$" } },
            "required": ["done", "id"], "additionalProperties": false,
        } },
    })
}

fn tools() -> Value {
    let tool = |name: &str, parameters: Value| json!({ "type": "function", "function": { "name": name, "parameters": parameters, "strict": true } });
    let switch = json!({ "type": "object", "properties": { "on": { "type": "boolean" } },
        "required": ["on"], "additionalProperties": false });
    json!([tool("report", bounded()), tool("switch", switch)])
}

fn format(schema: Value) -> Value {
    json!({ "type": "json_schema", "json_schema": { "name": "answer", "strict": true, "schema": schema } })
}

fn assert_fits(value: &Value, schema: Value) {
    let mut schemas = boon::Schemas::new();
    let mut compiler = boon::Compiler::new();
    compiler.add_resource("schema.json", schema).expect("a schema");
    let index = compiler.compile("schema.json", &mut schemas).expect("a schema");
    assert!(schemas.validate(value, index).is_ok(), "{value}");
}

/// Compact JSON that fits.
fn assert_answers(text: &str, schema: Value) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert!(value.to_string().len() <= text.len() && !text.contains(": ") && !text.contains('\n'), "{text}");
    assert_fits(&value, schema);
}

fn assert_calls(choice: &Value, names: &[&str]) {
    assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
    let calls = choice["message"]["tool_calls"].as_array().expect("calls were forced");
    for call in calls {
        let name = call["function"]["name"].as_str().unwrap_or_default();
        assert!(names.contains(&name), "{choice}");
        let schema = match name {
            "report" => bounded(),
            _ => {
                json!({ "type": "object", "properties": { "on": { "type": "boolean" } }, "required": ["on"] })
            }
        };
        let arguments = call["function"]["arguments"].as_str().unwrap_or_default();
        assert_fits(&serde_json::from_str(arguments).expect("arguments are JSON"), schema);
    }
}

/// The embedded model's files with other weights: random, of one size.
fn random_weights(folder: &Path) {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/tiny-agent");
    for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tiny.join(file), folder.join(file)).expect("a file of the embedded model");
    }
    let mut weights = std::fs::read(tiny.join("model.safetensors")).expect("the embedded weights");
    let header = u64::from_le_bytes(weights[..8].try_into().expect("eight bytes")) as usize;
    let mut state = 1u64;
    for half in weights[8 + header..].chunks_exact_mut(2) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Half floats of exponent -3: from 1/8 to 1/4, of either sign.
        let bits = ((state >> 48) as u16 & 0x83ff) | 0x3000;
        half.copy_from_slice(&bits.to_le_bytes());
    }
    std::fs::write(folder.join("model.safetensors"), weights).expect("the folder can be written");
}

async fn with_random_weights() -> (Host, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    random_weights(folder.path());
    let toml = format!("[model]\nsource = {:?}\nname = \"tiny-agent\"\n", folder.path());
    (Host::start(&toml).await, folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_random_weights_fits_the_schema() {
    let (host, _folder) = with_random_weights().await;
    for (seed, temperature) in [(1, 1.0), (2, 1.7), (3, 0.0)] {
        let reply = host
            .chat(json!({ "messages": user("report"), "response_format": format(bounded()), "n": 3, "seed": seed,
                "temperature": temperature, "max_tokens": 300 }))
            .await
            .json;
        for choice in reply["choices"].as_array().expect("choices") {
            assert_eq!(choice["finish_reason"], "stop", "{reply}");
            assert_answers(choice["message"]["content"].as_str().unwrap_or_default(), bounded());
        }
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_random_weights_makes_the_calls_that_are_forced() {
    let (host, _folder) = with_random_weights().await;
    let named = json!({ "type": "function", "function": { "name": "report" } });
    for (choice, names) in [(json!("required"), vec!["report", "switch"]), (named, vec!["report"])] {
        for seed in 0..3 {
            let reply = host
                .chat(json!({ "messages": user("go"), "tools": tools(), "tool_choice": choice, "n": 2, "seed": seed,
                    "temperature": 1.0, "max_tokens": 3000 }))
                .await
                .json;
            for choice in reply["choices"].as_array().expect("choices") {
                assert_calls(choice, &names);
            }
        }
    }
    let reply = host
        .chat(json!({ "messages": user("go"), "tools": tools(), "tool_choice": "required", "max_tokens": 600,
            "parallel_tool_calls": false }))
        .await
        .json;
    assert_eq!(reply["choices"][0]["message"]["tool_calls"].as_array().map(Vec::len), Some(1), "{reply}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn constrained_and_free_answers_run_side_by_side() {
    let host = Host::simulated("[schedule]\nstep_tokens_max = 16\n").await;
    let ask = |seed: u64| {
        json!({ "messages": user("report"), "response_format": format(bounded()), "seed": seed, "temperature": 1.0,
            "max_tokens": 300 })
    };
    let free = json!({ "messages": user("tell"), "max_tokens": 40 });
    let (a, b, c, free) =
        tokio::join!(host.chat(ask(1)), host.chat(ask(2)), host.stream(ask(3)), host.chat(free));
    for reply in [a, b] {
        assert_answers(
            reply.json["choices"][0]["message"]["content"].as_str().unwrap_or_default(),
            bounded(),
        );
    }
    let streamed: String = c.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_answers(&streamed, bounded());
    assert_eq!(free.json["usage"]["completion_tokens"], 40);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_stop_strings_cut_a_constrained_answer() {
    let host = Host::simulated("").await;
    let cut = host
        .chat(json!({ "messages": user("x"), "response_format": format(bounded()), "max_tokens": 5 }))
        .await
        .json;
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    let stopped = host
        .chat(json!({ "messages": user("x"), "response_format": format(bounded()), "stop": "\"kind\"" }))
        .await
        .json;
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let content = stopped["choices"][0]["message"]["content"].as_str().unwrap_or_default();
    assert!(content.starts_with("{\"name\":") && content.ends_with(','), "{content}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vllms_fields_constrain_too() {
    let host = Host::simulated("").await;
    for seed in 0..4 {
        let ask = |extra: Value| {
            let mut body =
                json!({ "messages": user("x"), "seed": seed, "temperature": 1.0, "max_tokens": 200 });
            body.as_object_mut().expect("an object").extend(extra.as_object().cloned().unwrap_or_default());
            body
        };
        let content =
            |reply: &Value| reply["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
        let reply = host.chat(ask(json!({ "guided_choice": ["left", "right"] }))).await.json;
        assert!(["left", "right"].contains(&content(&reply).as_str()), "{reply}");
        let reply = host.chat(ask(json!({ "structured_outputs": { "regex": "[0-9]{3}-[xyz]" } }))).await.json;
        let text = content(&reply);
        let (number, letter) = text.split_once('-').expect("a dash");
        assert!(number.len() == 3 && number.parse::<u32>().is_ok() && "xyz".contains(letter), "{text}");
        let reply = host.chat(ask(json!({ "guided_json": bounded().to_string() }))).await.json;
        assert_answers(&content(&reply), bounded());
        let reply =
            host.chat(ask(json!({ "guided_grammar": "start: \"a\" (\"b\" | \"c\")~2\n" }))).await.json;
        let text = content(&reply);
        assert!(
            text.len() == 3 && text.starts_with('a') && text[1..].chars().all(|c| "bc".contains(c)),
            "{text}"
        );
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_format_that_cannot_be_met_is_refused_by_its_path() {
    let host = Host::simulated("").await;
    let check = async |body: Value, param: &str| {
        let reply = host.chat(body).await;
        assert_eq!(
            (reply.status.as_u16(), reply.json["error"]["param"].as_str()),
            (400, Some(param)),
            "{}",
            reply.json
        );
        let message = reply.json["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(param) && !message.contains('\n'), "{message}");
    };
    let with = |schema: Value| json!({ "messages": user("x"), "response_format": format(schema) });
    let base = "response_format.json_schema.schema";
    let wrong = json!({ "properties": { "x": { "type": "strin" } } });
    check(with(wrong), &format!("{base}.properties.x.type")).await;
    check(with(json!({ "items": { "not": {} } })), &format!("{base}.items.not")).await;
    check(with(json!({ "type": "string", "minLength": 3, "maxLength": 1 })), base).await;
    check(json!({ "messages": user("x"), "guided_grammar": "start: nowhere" }), "guided_grammar").await;
    check(json!({ "messages": user("x"), "guided_regex": "[" }), "guided_regex").await;
    let tool =
        json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "objct" } } }]);
    check(
        json!({ "messages": user("x"), "tools": tool, "tool_choice": "required" }),
        "tools[0].function.parameters.type",
    )
    .await;
    // Nobody is refused for a tool that need not be called.
    assert_eq!(host.chat(json!({ "messages": user("x"), "tools": tool, "max_tokens": 4 })).await.status, 200);
    host.stop().await;
}
