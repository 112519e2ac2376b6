//! Workers with roles: one computes prompts, another answers, and nobody can tell it from the answers.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::{Heard, Host, post, tools, user, with_model};

const ALONE: &str = "[engine]\nworkers = 1\n";
const ROLES: &str = "[engine]\nworkers = 2\nroles = [\"prefill\", \"decode\"]\n";

/// Tokens that a worker computed.
fn computed(host: &Host, worker: usize) -> u64 {
    host.server.app.workers[worker].load.step_tokens.load(Relaxed)
}

/// An answer without what is drawn anew each time.
fn answer(reply: &Value) -> Value {
    let mut choices = reply["choices"].clone();
    for choice in choices.as_array_mut().into_iter().flatten() {
        let calls = choice["message"]["tool_calls"].as_array_mut();
        calls.into_iter().flatten().for_each(|call| call["id"] = Value::Null);
    }
    choices
}

/// Sends a request to both hosts; the answers have to be equal, log-probabilities included.
async fn both(alone: &Host, apart: &Host, body: &Value) -> Value {
    let expected = alone.chat(body.clone()).await;
    assert_eq!(expected.status, 200, "{}", expected.json);
    let reply = apart.chat(body.clone()).await;
    assert_eq!(reply.status, 200, "{}", reply.json);
    assert_eq!(answer(&reply.json), answer(&expected.json), "{body}");
    if body["n"].is_null() {
        assert_eq!(reply.json["usage"], expected.json["usage"], "{body}");
    }
    reply.json
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_a_worker_that_does_both() {
    let (alone, apart) = (Host::start(ALONE).await, Host::start(ROLES).await);
    let format = json!({ "type": "json_schema", "json_schema": { "name": "answer", "schema": {
        "type": "object", "properties": { "done": { "type": "boolean" } }, "required": ["done"],
    } } });
    let kinds = [
        json!({ "temperature": 0.0 }),
        json!({ "temperature": 0.9, "seed": 7, "n": 2 }),
        json!({ "temperature": 1.0, "seed": 8, "tools": tools() }),
        json!({ "temperature": 0.5, "seed": 9, "response_format": format }),
    ];
    let (mut requests, mut output) = (0, 0);
    for (number, kind) in kinds.iter().enumerate() {
        let mut messages = user(&format!("{number} silver river stone ").repeat(40));
        for turn in 0..3 {
            let mut body = json!({ "messages": messages, "max_tokens": 24, "logprobs": true });
            body.as_object_mut().expect("an object").extend(kind.as_object().expect("an object").clone());
            let reply = both(&alone, &apart, &body).await;
            requests += 1;
            output += reply["usage"]["completion_tokens"].as_u64().expect("a number");
            let messages = messages.as_array_mut().expect("a list");
            messages.push(json!({ "role": "assistant", "content": format!("noted {turn}") }));
            messages.push(json!({ "role": "user", "content": format!("and {turn}? ").repeat(12) }));
        }
    }
    assert_eq!(apart.metric("pointsman_handoffs_total").await, requests, "each turn has new blocks");
    assert_eq!(apart.metric("pointsman_handoffs_short_total").await, 0);
    // Its part of each prompt is less than a block and the token that is drawn from, for each choice; guesses are a few.
    let [prompts, answers] = [computed(&apart, 0), computed(&apart, 1)];
    let tails = 4 * 3 * 2 * 17;
    let drafted = apart.metric("pointsman_draft_tokens_total").await;
    assert!(answers <= output + tails + drafted, "{answers} tokens where answers have {output}");
    assert!(prompts > 4 * 200, "{prompts} tokens of prompts");
    alone.stop().await;
    apart.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_computed_is_told_and_a_prompt_that_is_there_is_not_moved_again() {
    let host = Host::start(ROLES).await;
    let body = json!({ "messages": user(&"silver river stone ".repeat(40)), "max_tokens": 2 });
    let first = host.chat_with(&[], body.clone()).await;
    assert_eq!(first.header("x-pointsman-worker"), "worker-1");
    assert_eq!(first.header("x-pointsman-prefill-worker"), "worker-0");
    assert_eq!(
        first.json["usage"]["prompt_tokens_details"]["cached_tokens"], 0,
        "it was computed for this request"
    );
    let again = host.chat_with(&[], body).await;
    assert_eq!((again.status(), again.header("x-pointsman-prefill-worker")), ("200", ""));
    let short = host.chat_with(&[], json!({ "messages": user("hi"), "max_tokens": 2 })).await;
    assert_eq!(short.status(), "200");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_computes_for_a_client_that_left() {
    let slow = "step_us = 5000.0\n[schedule]\nstep_tokens_max = 16\n";
    let host = Host::start(&format!("{ROLES}device = \"sim\"\n[engine.sim]\n{slow}")).await;
    let body = with_model(json!({ "messages": user(&"silver river stone ".repeat(2000)), "max_tokens": 2 }));
    let mut socket = host.connect().await;
    socket.write_all(&post("/v1/chat/completions", &body.to_string())).await.expect("the host reads");
    host.until("its prompt is computed", async || computed(&host, 0) > 0).await;
    drop(socket);
    host.until("it is gone", async || {
        host.workers("running").await + host.workers("waiting").await + host.workers("pages_pinned").await
            == 0
    })
    .await;
    assert!(computed(&host, 0) < 6000, "{} tokens", computed(&host, 0));
    assert_eq!(computed(&host, 1), 0);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_says_where_a_prompt_is_computed() {
    let toml = "[engine]\ndevice = \"sim\"\nworkers = 2\nroles = [\"both\", \"prefill\"]\n\
                [engine.sim]\nstep_us = 2000.0\n\
                [[chain.score]]\nplugin = \"route-prefill-delay\"\n";
    let host = Host::start(toml).await;
    let prompt = |of: &str| user(&format!("{of} silver river stone ").repeat(40));
    let idle = host.chat_with(&[], json!({ "messages": prompt("a"), "max_tokens": 2 })).await;
    assert_eq!(
        (idle.header("x-pointsman-worker"), idle.header("x-pointsman-prefill-worker")),
        ("worker-0", "")
    );
    // While somebody is answered there, a prompt would hold that answer up.
    let mut socket = host.connect().await;
    let long = with_model(json!({ "messages": user("go on"), "max_tokens": 9000, "stream": true }));
    socket.write_all(&post("/v1/chat/completions", &long.to_string())).await.expect("the host reads");
    host.until("it is answered", async || host.workers("running").await == 1).await;
    let busy = host.chat_with(&[], json!({ "messages": prompt("b"), "max_tokens": 2 })).await;
    assert_eq!(busy.status(), "200", "{}", busy.json);
    let by = |heard: &Heard| heard.header("x-pointsman-prefill-worker").to_owned();
    assert_eq!((busy.header("x-pointsman-worker"), by(&busy).as_str()), ("worker-0", "worker-1"));
    drop(socket);
    host.stop().await;
}
