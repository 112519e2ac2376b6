//! What is worth keeping of a cache: wishes under pressure, sessions that end, bounds.

use serde_json::{Value, json};

use crate::support::Host;

/// 64 pages of 16 tokens, and one worker to fill them.
const CRAMPED: &str =
    "[engine]\nworkers = 1\n[model]\ncontext_tokens_max = 1024\n[kv]\nmemory_mib_per_worker = 1\n";
const RETAINING: &str =
    "[chain]\nhints = [\"hints-agent\", \"hints-cache-control\"]\nretain = \"retain-cache-control\"\n";
/// Blocks that every conversation begins with, in tokens: the system prompt of the template's own.
const COMMON_TOKENS: u64 = 32;

/// Some three hundred tokens that no other text begins with.
fn words(name: &str) -> String {
    format!("{name} ") + &"maple river stone ".repeat(24)
}

/// A turn of a session: its messages, and more of the body.
fn turn(session: &str, messages: Value, more: Value) -> Value {
    let mut body = json!({ "messages": messages, "max_tokens": 2, "temperature": 0.0 });
    body["nvext"] = json!({ "session_control": { "session_id": session } });
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    body
}

fn marked(text: &str, ttl: &str) -> Value {
    let mark = json!({ "type": "ephemeral", "ttl": ttl });
    json!({ "role": "system", "content": [{ "type": "text", "text": text, "cache_control": mark }] })
}

fn said(text: &str) -> Value {
    json!({ "role": "user", "content": text })
}

/// Prompt tokens and those of them that were cached.
async fn ask(host: &Host, body: Value) -> (u64, u64) {
    let reply = host.chat(body).await;
    assert_eq!(reply.status, 200, "{}", reply.json);
    let usage = &reply.json["usage"];
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    (count(&usage["prompt_tokens"]), count(&usage["prompt_tokens_details"]["cached_tokens"]))
}

/// Conversations of others, which together fill the cache several times over.
async fn press(host: &Host, turns: u32) {
    for i in 0..turns {
        ask(host, turn(&format!("other {i}"), json!([said(&words(&format!("other {i}")))]), json!({}))).await;
    }
}

async fn clipped(host: &Host) -> u64 {
    let reply = host.admin.get("/admin/v1/plugins").await.expect("the admin API answers");
    let plugins = reply.json["plugins"].as_array().cloned().unwrap_or_default();
    let report =
        plugins.into_iter().find(|p| p["name"] == "retain-cache-control").expect("it is in the chain");
    report["calls"]["retain"]["clipped"].as_u64().unwrap_or(0)
}

/// Tokens of a session's second turn that are cached, after others pressed; and those of its first turn.
async fn cached_after_pressure(config: &str, ttl: &str) -> (u64, u64) {
    let host = Host::start(&format!("{CRAMPED}{config}")).await;
    let system = marked(&words("system"), ttl);
    let (first, _) = ask(&host, turn("a", json!([system, said("hello")]), json!({}))).await;
    assert!((160..480).contains(&first), "a prompt that fits the share that may be kept: {first} tokens");
    press(&host, 12).await;
    assert!(host.workers("evictions").await > 0, "there was no pressure");
    let (_, cached) = ask(&host, turn("a", json!([system, said("hello again")]), json!({}))).await;
    host.stop().await;
    (first, cached)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marked_prefix_survives_the_pressure_of_others() {
    let (first, cached) = cached_after_pressure(RETAINING, "1h").await;
    assert!(cached + 64 >= first, "{cached} of {first} tokens");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_policy_a_mark_changes_nothing() {
    let (first, cached) = cached_after_pressure("", "1h").await;
    assert!(cached <= COMMON_TOKENS, "{cached} of {first} tokens");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_counted_and_bounded() {
    let host = Host::start(&format!("{CRAMPED}{RETAINING}")).await;
    let system = marked(&words("system"), "5m");
    ask(&host, turn("a", json!([system, said("hello")]), json!({}))).await;
    // An answer is out before the worker asks what of it is worth keeping.
    host.until("its prefix is kept", async || host.workers("pages_kept").await >= 8).await;
    assert!(host.workers("pages_kept").await <= 32, "half of the pages");
    assert_eq!(clipped(&host).await, 0);
    assert!(host.calls("retain-cache-control", "retain", "ok").await > 0);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_an_ended_session_go_first() {
    let host = Host::start(&format!("{CRAMPED}{RETAINING}")).await;
    let live = json!([said(&words("live"))]);
    let ended = json!([said(&words("ended"))]);
    let (first, _) = ask(&host, turn("live", live.clone(), json!({}))).await;
    let close = json!({ "nvext": { "session_control": { "session_id": "ended", "action": "close" } } });
    ask(&host, turn("ended", ended.clone(), close)).await;
    // Short turns of others take what is free, and then a little more than that.
    for i in 0..64 {
        if host.workers("evictions").await >= 5 {
            break;
        }
        ask(
            &host,
            turn(
                &format!("other {i}"),
                json!([said(&format!("{i} {}", "river stone ".repeat(12)))]),
                json!({}),
            ),
        )
        .await;
    }
    let evicted = host.workers("evictions").await;
    assert!((5..first / 16).contains(&evicted), "as much as the ended session leaves: {evicted}");
    let (_, cached) = ask(&host, turn("live", live, json!({}))).await;
    assert!(cached + 32 >= first, "the live one, used before the ended one, stays: {cached} of {first}");
    let (_, cached) = ask(&host, turn("again", ended, json!({}))).await;
    assert!(cached + 48 <= first, "the ended one gave way: {cached} of {first}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wishes_beyond_the_bounds_are_clipped_and_fail_no_request() {
    let tight = "pinned_share_max = 0.1\nttl_seconds_max = 60\nretain_mark = 0.5\n";
    let host = Host::start(&format!("{CRAMPED}{tight}{RETAINING}")).await;
    for i in 0..12 {
        let system = marked(&words(&format!("system {i}")), "1h");
        ask(&host, turn(&format!("s{i}"), json!([system, said("hello")]), json!({}))).await;
    }
    let kept = host.workers("pages_kept").await;
    assert!((1..=6).contains(&kept), "{kept} pages are within a tenth of 64");
    assert!(clipped(&host).await > 0);
    // The last step is published after its answers have left.
    host.until("all pages are given back", async || host.workers("pages_pinned").await == 0).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_expected_back_is_learned_from_those_who_came_back() {
    let learning = "[chain]\nhints = [\"hints-agent\"]\nretain = \"retain-expected-reuse\"\n";
    let host = Host::start(&format!("{CRAMPED}{learning}")).await;
    let mut messages: Vec<Value> = Vec::new();
    for round in 0..4 {
        messages.push(said(&format!("{} and {round}", if round == 0 { words("a") } else { String::new() })));
        let (prompt, cached) = ask(&host, turn("a", json!(messages), json!({}))).await;
        assert!(round == 0 || cached * 2 > prompt, "round {round}: {cached} of {prompt} tokens are found");
        messages.push(json!({ "role": "assistant", "content": "yes" }));
        press(&host, 1).await;
    }
    press(&host, 12).await;
    assert!(host.workers("evictions").await > 0, "there was no pressure");
    let outcome = async |outcome| host.calls("retain-expected-reuse", "retain", outcome).await;
    assert!(outcome("ok").await >= 8, "it is asked at the end of each turn");
    assert_eq!((outcome("trapped").await, outcome("bad_answer").await), (0, 0));
    host.stop().await;
}
