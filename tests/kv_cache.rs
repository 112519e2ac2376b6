//! Pages under pressure, and clients that leave.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Host, post, tools, user, with_model};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_sequence() {
    let host = Host::start("[engine]\ndevice = \"sim\"\n[engine.sim]\nstep_us = 2000.0\n").await;
    let body = with_model(json!({ "messages": user("hello"), "max_tokens": 16000, "stream": true }));
    let mut socket = host.connect().await;
    socket.write_all(&post("/v1/chat/completions", &body.to_string())).await.expect("the host reads");
    let mut some = [0; 512];
    assert!(socket.read(&mut some).await.expect("tokens come") > 0);
    host.until("it runs", async || host.workers("running").await == 1).await;
    drop(socket);
    host.until("it is gone", async || host.workers("running").await == 0).await;
    host.until("all pages are given back", async || host.workers("pages_pinned").await == 0).await;
    assert_eq!(host.server.app.requests_running(), 0);
    host.stop().await;
}

const SEQUENCES: u32 = 10;

/// A cache that holds a few of them at once: they preempt each other or evict, and every answer is the same as
/// that of a host with room for all.
#[tokio::test(flavor = "multi_thread")]
async fn sequences_that_preempt_each_other_give_the_same_answers() {
    let one_worker = "[engine]\nworkers = 1\n";
    let roomy = Host::start(one_worker).await;
    let page_bytes = 16 * 1024;
    let cramped = Host::start(&format!(
        "{one_worker}[kv]\nmemory_mib_per_worker = 1\nblock_tokens = 16\n[model]\ncontext_tokens_max = {}\n",
        (1 << 20) / page_bytes * 16
    ))
    .await;
    let ask = |i: u32| {
        json!({ "messages": user(&format!("write {i} {} to file.txt", "maple river stone ".repeat(20))),
                "tools": tools(), "max_tokens": 200, "temperature": 1.5, "seed": i })
    };
    let mut expected = Vec::new();
    for i in 0..SEQUENCES {
        expected.push(said(&roomy.chat(ask(i)).await.json));
    }
    let answers: Vec<_> = (0..SEQUENCES).map(|i| cramped.chat(ask(i))).collect();
    let mut joined = Vec::new();
    for answer in join_all(answers).await {
        assert_eq!(answer.status, 200, "{}", answer.json);
        joined.push(said(&answer.json));
    }
    assert_eq!(joined, expected);
    assert!(
        cramped.workers("preemptions").await + cramped.workers("evictions").await > 0,
        "there was no pressure"
    );
    // The last step is published after its answers have left.
    cramped.until("all pages are given back", async || cramped.workers("pages_pinned").await == 0).await;
    roomy.stop().await;
    cramped.stop().await;
}

async fn join_all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut pinned: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = pinned.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, slot) in pinned.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *slot = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// Text and first call of an answer, without ids.
fn said(reply: &serde_json::Value) -> (serde_json::Value, serde_json::Value) {
    let message = &reply["choices"][0]["message"];
    (message["content"].clone(), message["tool_calls"][0]["function"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn old_prefixes_make_room_and_recent_ones_stay() {
    let host = Host::start(
        "[engine]\nworkers = 1\n[kv]\nmemory_mib_per_worker = 1\n[model]\ncontext_tokens_max = 1024\n",
    )
    .await;
    let ask = |text: String| json!({ "messages": user(&text), "max_tokens": 2 });
    for i in 0..12 {
        let text = format!("{i} ").repeat(150);
        assert_eq!(host.chat(ask(text)).await.status, 200);
    }
    assert!(host.workers("evictions").await > 0);
    let again = host.chat(ask("11 ".repeat(150))).await.json;
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0) > 100, "{again}");
    host.stop().await;
}
