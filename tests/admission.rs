//! Who comes in, who waits at the door, who is turned away; and that nobody is counted when they are gone.

use policy::name_id;
use serde_json::{Value, json};
use serve::door::Count;
use tokio::io::AsyncWriteExt;

use crate::support::{Host, component, post, user, with_model};

/// A host whose tokens take 2 ms each, with a doorman of these settings at its door.
fn guarded(doorman: &str, limits: &str) -> String {
    let source = component("doorman");
    format!(
        "[tenants]\nheader = \"x-tenant\"\n[limits]\n{limits}\n[chain]\nadmit = [\"doorman\"]\n\
         [plugins.doorman]\nsource = {source:?}\nconfig = {{ {doorman} }}\nlimits = {{ deadline_us = 200000 }}\n\
         [engine]\ndevice = \"sim\"\n[engine.sim]\nstep_us = 2000.0\n"
    )
}

fn asking(tokens: u32) -> Value {
    json!({ "messages": user("hello"), "max_tokens": tokens })
}

const ACME: &[(&str, &str)] = &[("x-tenant", "acme")];

/// Requests of the host, and of `acme`.
fn counted(host: &Host) -> (Count, Count) {
    host.server.app.door.count(name_id("acme"))
}

async fn metric(host: &Host, line: &str) -> bool {
    let text = host.raw(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    text.lines().any(|known| known == line)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_over_the_quota_waits_until_another_of_its_tenant_ends() {
    let host = Host::start(&guarded("running_max = 1", "")).await;
    let first = host.chat_with(ACME, asking(150));
    let others = async {
        host.until("the first is in", async || counted(&host).1.running == 1).await;
        let meanwhile = async {
            host.until("the second waits", async || counted(&host).1.deferred == 1).await;
            let other = host.chat_with(&[("x-tenant", "beta")], asking(1)).await;
            assert_eq!(other.status(), "200", "another tenant comes in at once");
            assert_eq!(
                counted(&host).1,
                Count { running: 1, deferred: 1 },
                "the second is still at the door"
            );
        };
        tokio::join!(host.chat_with(ACME, asking(1)), meanwhile).0
    };
    let (first, second) = tokio::join!(first, others);
    assert_eq!((first.status(), second.status()), ("200", "200"), "{}", second.json);
    host.until("nobody is counted", async || counted(&host) == Default::default()).await;
    assert!(metric(&host, "pointsman_admissions_total{verdict=\"admitted\"} 3").await);
    assert!(metric(&host, "pointsman_requests_deferred 0").await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_turned_away_is_told_why_and_when_to_come_again() {
    let host = Host::start(&guarded("running_max = 0, patience_ms = 0.0, retry_after_ms = 1001", "")).await;
    let heard = host.chat_with(ACME, asking(1)).await;
    assert_eq!((heard.status(), heard.header("retry-after")), ("429", "2"), "rounded up");
    let expected = json!({ "error": {
        "message": "too many requests of this tenant", "type": "rate_limit_error", "param": null,
        "code": "admission_rejected",
    }});
    assert_eq!(heard.json, expected);
    assert_eq!(counted(&host), Default::default());
    assert!(metric(&host, "pointsman_admissions_total{verdict=\"rejected\"} 1").await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reason_that_is_too_long_is_a_bad_answer_and_turns_nobody_away() {
    let reason = "no ".repeat(200);
    let settings = format!("running_max = 0, patience_ms = 0.0, reason = {reason:?}");
    let host = Host::start(&guarded(&settings, "")).await;
    assert_eq!(host.chat_with(ACME, asking(1)).await.status(), "200");
    assert_eq!(host.calls("doorman", "admit", "bad_answer").await, 1);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_it_waits_takes_its_place_with_it() {
    let host = Host::start(&guarded("running_max = 0, step_ms = 60000", "defer_ms_max = 60000")).await;
    let mut socket = host.connect().await;
    let body = with_model(asking(1)).to_string();
    socket.write_all(&post("/v1/chat/completions", &body)).await.expect("the host reads");
    host.until("it waits", async || counted(&host).0.deferred == 1).await;
    assert_eq!(host.server.app.requests_running(), 1);
    drop(socket);
    host.until("its place is free", async || counted(&host) == Default::default()).await;
    host.until("its seat is free", async || host.server.app.requests_running() == 0).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_longer_than_the_host_allows() {
    // The policy wants it to come again in ten hours.
    let host = Host::start(&guarded("running_max = 0, step_ms = 36000000", "defer_ms_max = 40")).await;
    let heard = host.chat_with(ACME, asking(1)).await;
    assert_eq!((heard.status(), heard.header("retry-after")), ("429", "3600"), "{}", heard.json);
    assert_eq!(heard.json["error"]["code"], "rate_limit_exceeded");
    let message = heard.json["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("to be admitted, which is the limit"), "{message}");
    assert_eq!(host.calls("doorman", "admit", "ok").await, 2, "it is asked again at the end");
    assert_eq!(counted(&host), Default::default());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_defers_to_the_present_does_not_spin() {
    let host = Host::start(&guarded("running_max = 0, step_ms = 0", "defer_ms_max = 50")).await;
    assert_eq!(host.chat_with(ACME, asking(1)).await.status(), "429");
    assert!(host.calls("doorman", "admit", "ok").await <= 52, "at most once a millisecond");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_wait_at_the_door_than_may() {
    let host = Host::start(&guarded("running_max = 0", "defer_ms_max = 2000\ndeferred_max = 1")).await;
    let second = async {
        host.until("one waits", async || counted(&host).0.deferred == 1).await;
        host.chat_with(&[("x-tenant", "beta")], asking(1)).await
    };
    let (first, second) = tokio::join!(host.chat_with(ACME, asking(1)), second);
    assert_eq!((first.status(), second.status()), ("429", "429"));
    let message = second.json["error"]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("1 requests wait to be admitted"), "{message}");
    assert!(metric(&host, "pointsman_admissions_total{verdict=\"door_full\"} 1").await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_a_request_in_that_waited_before_it() {
    let host = Host::start(&guarded("running_max = 1", "")).await;
    let app = std::sync::Arc::clone(&host.server.app);
    let (first, second) = (host.chat_with(ACME, asking(100)), async {
        host.until("the first is in", async || counted(&host).1.running == 1).await;
        let drain = async {
            host.until("the second waits", async || counted(&host).1.deferred == 1).await;
            app.drain();
        };
        tokio::join!(host.chat_with(ACME, asking(1)), drain).0
    });
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.status(), second.status()), ("200", "200"), "{}", second.json);
    assert_eq!(host.chat_with(ACME, asking(1)).await.status(), "503", "nobody else comes in");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_sends_those_away_who_would_wait_for_longer() {
    let toml = guarded("running_max = 0, step_ms = 60000", "defer_ms_max = 60000");
    let host = Host::start_with(&toml, 1).await;
    let mut socket = host.connect().await;
    let body = with_model(asking(1)).to_string();
    socket.write_all(&post("/v1/chat/completions", &body)).await.expect("the host reads");
    host.until("it waits", async || counted(&host).0.deferred == 1).await;
    let mut response = String::new();
    let heard = tokio::io::AsyncReadExt::read_to_string(&mut socket, &mut response);
    let (heard, ()) = tokio::join!(heard, host.stop());
    heard.expect("the connection holds");
    assert!(response.starts_with("HTTP/1.1 503"), "{response}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_lets_everybody_in_asks_nobody() {
    let host = Host::simulated("").await;
    assert_eq!(host.chat(asking(1)).await.status, 200);
    assert!(!metric(&host, "pointsman_admissions_total{verdict=\"admitted\"} 1").await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_doorman_lets_everybody_in_or_nobody_as_the_operator_wants() {
    for (on_failure, status) in [("fallback", "200"), ("reject", "503")] {
        let limits = format!(
            "on_failure = {on_failure:?}\n[chain]\nadmit = [\"faulty\"]\n[engine]\ndevice = \"sim\"\n"
        );
        let source = component("faulty");
        let toml =
            format!("[plugins.faulty]\nsource = {source:?}\nconfig = {{ fault = \"trap\" }}\n{limits}");
        let host = Host::start(&toml).await;
        assert_eq!(host.chat_with(ACME, asking(1)).await.status(), status, "{on_failure}");
        assert_eq!(host.calls("faulty", "admit", "trapped").await, 1);
        assert_eq!(counted(&host), Default::default());
        host.stop().await;
    }
}
