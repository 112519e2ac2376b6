//! Who started a request and whether it is its session's last: said by clients in their own words, known to every slot.

use serde_json::{Value, json};

use crate::support::{Host, component, user};

fn witnessed() -> String {
    let source = component("kin");
    format!(
        "[chain]\nhints = [\"hints-agent\"]\nadmit = [\"kin\"]\nroute = \"kin\"\nschedule = \"kin\"\nretain = \"kin\"\n\
         [plugins.kin]\nsource = {source:?}\n[engine]\ndevice = \"sim\"\nworkers = 1\n"
    )
}

async fn count(host: &Host, metric: &str) -> u64 {
    host.said("kin", metric).await.as_u64().unwrap_or(0)
}

/// Sends one request and says what each slot saw: requests of kin, and those that end their session.
async fn check(path: &str, headers: &[(&str, &str)], body: Value, ends: bool) {
    let host = Host::start(&witnessed()).await;
    let heard = host.post_with(path, headers, body).await;
    assert_eq!(heard.status(), "200", "{}", heard.json);
    // A first token and an end, to each instance of the plugin.
    host.until("outcomes are told", async || count(&host, "observe").await >= 2).await;
    for slot in ["admit", "route", "schedule"] {
        let seen = count(&host, slot).await;
        assert!(seen >= 1, "{slot}");
        assert_eq!(count(&host, &format!("{slot}_ends")).await, if ends { seen } else { 0 }, "{slot}");
    }
    host.until("every outcome says whether it was the last", async || {
        let told = if ends { count(&host, "observe").await } else { 0 };
        count(&host, "observe_ends").await == told
    })
    .await;
    host.until("the cache is asked about", async || {
        host.calls("kin", "retain", "abstained").await > 0
            && count(&host, "retain_ends").await == u64::from(ends)
    })
    .await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sub_agent_of_dynamo_ends_its_session_for_every_slot() {
    let headers = [
        ("x-dynamo-session-id", "child"),
        ("x-dynamo-parent-session-id", "root"),
        ("x-dynamo-session-final", "true"),
    ];
    let body = json!({ "messages": user(&"river ".repeat(40)), "max_tokens": 2 });
    check("/v1/chat/completions", &headers, body, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sub_agent_of_codex_is_one_for_every_slot() {
    let headers =
        [("thread-id", "child"), ("x-codex-parent-thread-id", "root"), ("x-openai-subagent", "review")];
    let body = json!({ "messages": user(&"river ".repeat(40)), "max_tokens": 2 });
    check("/v1/chat/completions", &headers, body, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_has_a_lineage_too() {
    let headers = [("x-session-id", "child"), ("x-parent-session-id", "root")];
    let nvext = json!({ "session_control": { "action": "close" } });
    let body = json!({ "prompt": "river ".repeat(40), "max_tokens": 2, "nvext": nvext });
    check("/v1/completions", &headers, body, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_column_of_its_own_is_an_attribute() {
    let host = Host::start(&witnessed()).await;
    let headers =
        [("x-claude-code-prev-tool-durations", "Bash=742;Read=9"), ("x-claude-code-session-id", "s")];
    let client = json!({ "x-codex-turn-metadata": "{\"turn_id\":\"t2\"}" });
    let mut body = json!({ "messages": user("hello"), "max_tokens": 1, "client_metadata": client });
    body["nvext"] = json!({ "agent_hints": { "speculative_prefill": false } });
    assert_eq!(host.chat_with(&headers, body).await.status(), "200");
    assert_eq!(host.said("kin", "tool_ms_total").await.as_f64(), Some(751.0));
    assert_eq!(host.said("kin", "speculative_prefill").await.as_f64(), Some(-1.0));
    assert_eq!(count(&host, "turns").await, 1);
    host.stop().await;
}
