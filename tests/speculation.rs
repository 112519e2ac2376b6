//! Prefill ahead of need: a next turn finds what was prepared for it, and nobody who waits is held up.

use serde_json::{Value, json};

use crate::support::{Host, tools, user};

/// A device that makes tokens up: what it wrote is other tokens when it comes back as text. It can be had without and with
/// a word about speculation.
fn simulated(more: &str) -> String {
    format!("{more}\n[engine]\ndevice = \"sim\"\nworkers = 1\n")
}

/// A turn of a session that wishes for speculation, or not.
fn turn(messages: &Value, wish: Option<bool>) -> Value {
    let mut body = json!({ "messages": messages, "max_tokens": 96, "temperature": 0.0 });
    body["nvext"] = json!({ "session_control": { "session_id": "s" } });
    if let Some(wish) = wish {
        body["nvext"]["agent_hints"] = json!({ "speculative_prefill": wish });
    }
    body
}

/// The conversation after an answer.
fn followed(messages: &Value, reply: &Value, more: &str) -> Value {
    let mut messages = messages.clone();
    let list = messages.as_array_mut().expect("messages are a list");
    list.push(reply["choices"][0]["message"].clone());
    list.push(json!({ "role": "user", "content": more }));
    messages
}

fn cached(reply: &Value) -> u64 {
    reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count")
}

/// Cached tokens of the second turn of a session.
async fn second_turn(config: &str, wish: Option<bool>) -> (u64, Host) {
    let host = Host::start(&simulated(config)).await;
    let first = user(&"silver river ".repeat(40));
    let reply = host.chat(turn(&first, wish)).await;
    assert_eq!(reply.status, 200, "{}", reply.json);
    if wish == Some(true) && !config.contains("off") {
        host.until("the next prompt is prepared", async || {
            host.metric("pointsman_speculations_finished_total").await == 1
        })
        .await;
    }
    let reply = host.chat(turn(&followed(&first, &reply.json, "and then?"), wish)).await;
    assert_eq!(reply.status, 200, "{}", reply.json);
    (cached(&reply.json), host)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_next_turn_finds_what_was_prepared_for_it() {
    let (without, host) = second_turn("", None).await;
    assert_eq!(
        host.metric("pointsman_speculations_total").await,
        0,
        "a turn without calls has to ask for it"
    );
    host.stop().await;
    let (with, host) = second_turn("", Some(true)).await;
    assert!(with >= without + 32, "{with} tokens with it, {without} without");
    let (computed, found) = (
        host.metric("pointsman_speculated_tokens_total").await,
        host.metric("pointsman_speculated_hit_tokens_total").await,
    );
    assert!(found >= 32 && found <= computed, "{found} of {computed} were found");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_no_and_who_is_not_heard_get_nothing() {
    for (config, wish) in [("", Some(false)), ("[speculation]\nwhen = \"off\"", Some(true))] {
        let (_, host) = second_turn(config, wish).await;
        assert_eq!(host.metric("pointsman_speculations_total").await, 0, "{config} {wish:?}");
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_ends_with_calls_prepares_the_next_without_being_asked() {
    let host = Host::start("[engine]\nworkers = 1\n").await;
    let mut body = turn(&user("calculate 12 + 30"), None);
    body["tools"] = tools();
    body["tool_choice"] = json!({ "type": "function", "function": { "name": "calc" } });
    let reply = host.chat(body.clone()).await;
    assert_eq!(reply.json["choices"][0]["finish_reason"], "tool_calls", "{}", reply.json);
    host.until("it was thought of", async || host.metric("pointsman_speculations_total").await == 1).await;
    assert_eq!(host.metric("pointsman_speculations_cancelled_total").await, 0);
    // The last of its session prepares nothing.
    body["nvext"]["session_control"]["action"] = json!("close");
    assert_eq!(host.chat(body).await.status, 200);
    assert_eq!(host.metric("pointsman_speculations_total").await, 1);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_yields_to_whoever_waits() {
    // A preparation of some 500 tokens takes two seconds in steps of 16 tokens; a request that comes then ends it.
    let slow = "[speculation]\nidle_tokens_max = 16\n[engine.sim]\nprefill_us_per_token = 4000.0\n";
    let host = Host::start(&format!("{slow}[engine]\ndevice = \"sim\"\nworkers = 1\n")).await;
    let mut body = turn(&user("hello"), Some(true));
    body["max_tokens"] = json!(400);
    assert_eq!(host.chat(body).await.status, 200);
    host.until("it began", async || host.metric("pointsman_speculations_started_total").await == 1).await;
    let other = json!({ "messages": user("somebody else"), "max_tokens": 1 });
    assert_eq!(host.chat(other).await.status, 200);
    assert_eq!(host.metric("pointsman_speculations_cancelled_total{reason=\"load\"}").await, 1);
    assert_eq!(host.metric("pointsman_speculations_finished_total").await, 0);
    host.stop().await;
}
