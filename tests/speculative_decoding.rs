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
