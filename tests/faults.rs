//! Policies that misbehave: each costs one fallback, and never a request.

use std::time::Instant;

use serde_json::json;

use crate::support::{Host, faulty_scorer, user};

/// Requests are answered although the scorer misbehaves, and the fault is counted under its name.
async fn contained(fault: &str, outcome: &str, more: &str) {
    let host = Host::simulated(&faulty_scorer(fault, more)).await;
    for _ in 0..3 {
        let reply = host.chat(json!({ "messages": user("hello"), "max_tokens": 2 })).await;
        assert_eq!(reply.status, 200, "{fault}: {}", reply.json);
    }
    assert!(host.calls("faulty", "score", outcome).await >= 1, "{fault} was not counted as {outcome}");
    assert_eq!(host.calls("faulty", "score", "ok").await, 0, "{fault}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_costs_one_fallback_and_no_request() {
    contained("trap", "trapped", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_costs_one_fallback_and_no_request() {
    contained("panic", "trapped", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allocation_without_end_costs_one_fallback_and_no_request() {
    // Time enough to reach the memory limit first.
    contained("allocate", "trapped", "[plugins.faulty.limits]\ndeadline_us = 30000000").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_loop_is_cut_off() {
    contained("loop", "over_deadline", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_that_are_no_numbers_are_not_used() {
    contained("nan", "bad_answer", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_of_the_wrong_length_are_not_used() {
    contained("wrong_length", "bad_answer", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abstention_is_no_fault() {
    contained("abstain", "abstained", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reject_policy_refuses_the_request_and_says_which() {
    let host = Host::simulated(&faulty_scorer("trap", "on_failure = \"reject\"")).await;
    let reply = host.chat(json!({ "messages": user("hello"), "max_tokens": 2 })).await;
    assert_eq!(reply.status, 503, "{}", reply.json);
    let message = reply.json["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("faulty"), "{message}");
    assert_eq!(host.server.app.requests_running(), 0);
    host.stop().await;
}

/// Not a timing test: the bound is a hundred times the deadline, and a loop that is not cut off never ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_loop_with_a_short_deadline_does_not_hold_its_request() {
    let limits = "[plugins.faulty.limits]\ndeadline_us = 1000";
    let host = Host::simulated(&faulty_scorer("loop", limits)).await;
    #[allow(clippy::disallowed_methods, reason = "a test may look at the clock")]
    let begun = Instant::now();
    assert_eq!(host.chat(json!({ "messages": user("hello"), "max_tokens": 1 })).await.status, 200);
    assert!(begun.elapsed().as_millis() < 5_000);
    host.stop().await;
}
