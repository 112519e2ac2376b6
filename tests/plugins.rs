//! The plugins that come with a host, each by its effect on requests.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Host, component, user};

fn asking(tokens: u32) -> Value {
    json!({ "messages": user("hello"), "max_tokens": tokens })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_over_its_quota_is_told_when_to_come_again_and_others_are_served() {
    let host = Host::simulated(
        "[tenants]\nheader = \"x-tenant\"\n[chain]\nadmit = [\"admit-tenant-quota\"]\n\
         [plugins.admit-tenant-quota.config]\nwait_ms_max = 0\n\
         default = { requests_per_minute = 6, burst = 2 }\n",
    )
    .await;
    let acme = [("x-tenant", "acme")];
    assert_eq!(host.chat_with(&acme, asking(1)).await.status(), "200");
    assert_eq!(host.chat_with(&acme, asking(1)).await.status(), "200");
    let refused = host.chat_with(&acme, asking(1)).await;
    assert_eq!(refused.status(), "429", "{}", refused.json);
    assert_eq!(refused.json["error"]["code"], "admission_rejected");
    let retry_after_s: u32 = refused.header("retry-after").parse().expect("whole seconds");
    assert!((1..=10).contains(&retry_after_s), "{retry_after_s} s for a request every ten");
    assert_eq!(host.chat_with(&[("x-tenant", "beta")], asking(1)).await.status(), "200");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_choices_spread_requests_over_workers() {
    let host = Host::start(
        "[chain]\nscore = []\npick = \"route-two-choices\"\n[engine]\ndevice = \"sim\"\nworkers = 4\n",
    )
    .await;
    let mut workers = BTreeSet::new();
    for _ in 0..40 {
        let heard = host.chat_with(&[], asking(1)).await;
        assert_eq!(heard.header("x-pointsman-decided-by"), "route-two-choices");
        workers.insert(heard.header("x-pointsman-worker").to_owned());
    }
    // Of two idle workers the one with the prompt in its cache is taken: the others are found when both have none.
    assert!(workers.len() >= 2, "{workers:?}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bandit_scores_and_is_told_what_became_of_it() {
    let host = Host::start(
        "[chain]\nscore = [{ plugin = \"route-thompson\" }]\n[engine]\ndevice = \"sim\"\nworkers = 3\n",
    )
    .await;
    for _ in 0..20 {
        assert_eq!(host.chat_with(&[], asking(2)).await.status(), "200");
    }
    assert_eq!(host.calls("route-thompson", "score", "ok").await, 20);
    host.until("each first token and end is told", async || {
        host.calls("route-thompson", "observe", "ok").await == 40
    })
    .await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_request_overtakes_a_long_one_that_came_before_it() {
    let host = Host::start(
        "[chain]\nschedule = \"schedule-shortest-remaining\"\n[schedule]\nstep_rows_max = 1\n\
         [engine]\ndevice = \"sim\"\nworkers = 1\n[engine.sim]\nstep_us = 2000.0\n",
    )
    .await;
    let expecting = |tokens: u32| {
        let hints = json!({ "agent_hints": { "osl": tokens } });
        json!({ "messages": user("hello"), "max_tokens": tokens, "nvext": hints })
    };
    let waiting = async |count: u64| {
        host.until("it waits", async || host.workers("waiting").await == count).await;
    };
    let first = host.chat(expecting(150));
    let (long_done, short_done) = (std::cell::Cell::new(false), std::cell::Cell::new(false));
    let long = async {
        host.until("the first runs", async || host.workers("running").await == 1).await;
        let reply = host.chat(expecting(100)).await;
        long_done.set(true);
        assert!(short_done.get(), "the long one was served first");
        reply
    };
    let short = async {
        host.until("the first runs", async || host.workers("running").await == 1).await;
        waiting(1).await;
        let reply = host.chat(expecting(3)).await;
        short_done.set(true);
        assert!(!long_done.get(), "the short one had to wait");
        reply
    };
    let (first, long, short) = tokio::join!(first, long, short);
    assert_eq!([first.status, long.status, short.status].map(|status| status.as_u16()), [200; 3]);
    assert!(host.calls("schedule-shortest-remaining", "schedule", "ok").await >= 1);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_of_openai_clients_becomes_attributes_that_decide() {
    let source = component("tagger");
    let host = Host::start(&format!(
        "[chain]\nhints = [\"hints-openai-metadata\"]\nscore = [{{ plugin = \"tagger\" }}]\n\
         [plugins.tagger]\nsource = {source:?}\n[engine]\ndevice = \"sim\"\nworkers = 3\n"
    ))
    .await;
    for row in ["2", "0", "1"] {
        let mut body = asking(1);
        body["metadata"] = json!({ "row": row, "colour": "green" });
        let heard = host.chat_with(&[], body).await;
        assert_eq!(heard.status(), "200", "{}", heard.json);
        assert_eq!(heard.header("x-pointsman-worker"), format!("worker-{row}"));
    }
    host.stop().await;
}
