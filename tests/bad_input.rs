//! Whatever a client sends, it gets an error that names the field, and the host goes on.

use serde_json::{Value, json};

use crate::support::{Host, post, tools, user, with_model};

/// Sends a body and checks status, `param`, and that the message says each of `words`.
async fn check(host: &Host, body: Value, (status, param): (u16, Option<&str>), words: &[&str]) {
    let reply = host.chat(body.clone()).await;
    assert_eq!(reply.status, status, "{body} gave {}", reply.json);
    let error = &reply.json["error"];
    assert_eq!(error["param"].as_str(), param, "{body} gave {}", reply.json);
    let message = error["message"].as_str().unwrap_or_default();
    for word in words {
        assert!(message.contains(word), "{body}: `{word}` is missing in `{message}`");
    }
    assert!(error["type"].is_string() && error.get("code").is_some(), "{}", reply.json);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_field_is_named() {
    let host = Host::simulated("").await;
    let hello = || user("hello");
    let field = |param| (400, Some(param));
    check(&host, json!({}), field("messages"), &["missing"]).await;
    check(&host, json!({ "messages": [] }), field("messages"), &["at least one"]).await;
    check(&host, json!({ "messages": "hi" }), field("messages"), &["a list", "a string"]).await;
    check(&host, json!({ "messages": [7] }), field("messages[0]"), &["an object"]).await;
    check(&host, json!({ "messages": [{ "content": "x" }] }), field("messages[0].role"), &["missing"]).await;
    let robot = json!([{ "role": "robot", "content": "x" }]);
    check(&host, json!({ "messages": robot }), field("messages[0].role"), &["one of system"]).await;
    let number = json!([{ "role": "user", "content": 7 }]);
    check(&host, json!({ "messages": number }), field("messages[0].content"), &["a string", "7"]).await;
    let image =
        json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "x" } }] }]);
    check(&host, json!({ "messages": image }), field("messages[0].content[0]"), &["image_url"]).await;
    for (name, value, words) in [
        ("max_tokens", json!(-3), vec!["at least 1", "-3"]),
        ("max_tokens", json!(0), vec!["at least 1", "0"]),
        ("max_completion_tokens", json!("many"), vec!["an integer"]),
        ("temperature", json!(-0.5), vec!["from 0 to 2", "-0.5"]),
        ("temperature", json!("hot"), vec!["a number", "a string"]),
        ("top_p", json!(1.5), vec!["from 0 to 1"]),
        ("n", json!(0), vec!["from 1 to 8"]),
        ("n", json!(99), vec!["from 1 to 8", "99"]),
        ("seed", json!(1.5), vec!["an integer"]),
        ("stop", json!([""]), vec!["none of them empty"]),
        ("stop", json!(5), vec!["a string or a list"]),
        ("stream", json!("yes"), vec!["true or false"]),
        ("stream_options", json!(true), vec!["an object"]),
        ("top_logprobs", json!(50), vec!["from 0 to 20"]),
        ("logit_bias", json!({ "a": 1 }), vec!["token ids"]),
        ("logit_bias", json!({ "99999": 1 }), vec!["token ids"]),
        ("tools", json!({}), vec!["a list"]),
        ("nvext", json!([]), vec!["an object"]),
    ] {
        check(&host, json!({ "messages": hello(), (name): value }), field(name), &words).await;
    }
    let nameless = json!([{ "type": "function", "function": {} }]);
    check(&host, json!({ "messages": hello(), "tools": nameless }), field("tools[0].function.name"), &[])
        .await;
    let unknown = json!({ "type": "function", "function": { "name": "fly" } });
    let body = json!({ "messages": hello(), "tools": tools(), "tool_choice": unknown });
    check(&host, body, field("tool_choice"), &["`fly`", "calc, list_files"]).await;
    let format = json!({ "type": "json_schema" });
    check(
        &host,
        json!({ "messages": hello(), "response_format": format }),
        field("response_format.json_schema"),
        &["an object"],
    )
    .await;
    assert_eq!(host.chat(json!({ "messages": hello(), "max_tokens": 4 })).await.status, 200);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_and_foreign_tools_are_accepted() {
    let host = Host::simulated("").await;
    let mut tools = tools();
    tools.as_array_mut().expect("tools are a list").push(json!({ "type": "web_search" }));
    let body = json!({
        "messages": user("hello"), "tools": tools, "max_tokens": 4, "verbosity": "low", "x": { "y": [1] },
        "stop": null, "temperature": null, "max_completion_tokens": 4.0, "nvext": { "agent_hints": { "new": 1 } },
    });
    let reply = host.chat(body).await;
    assert_eq!(reply.status, 200, "{}", reply.json);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_and_paths_that_are_not_there_are_404() {
    let host = Host::simulated("").await;
    let reply = host.chat(json!({ "model": "gpt-9", "messages": user("hello") })).await;
    assert_eq!((reply.status.as_u16(), &reply.json["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(reply.json["error"]["param"], "model");
    let reply = host.api.get("/v1/nothing").await.expect("it answers");
    assert_eq!((reply.status.as_u16(), &reply.json["error"]["code"]), (404, &json!("unknown_url")));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_not_json_objects_are_400() {
    let host = Host::simulated("").await;
    let cases: [&[u8]; 6] = [b"", b"{", b"[]", b"nonsense", b"{\"model\": \"\xff\xfe\"}", b"{\"a\":1}{"];
    for body in cases {
        let reply = host.api.send(axum::http::Method::POST, "/v1/chat/completions", body.to_vec()).await;
        let reply = reply.expect("it answers");
        assert_eq!(reply.status, 400, "{body:?} gave {}", reply.json);
        let message = reply.json["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("JSON"), "{message}");
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_is_too_long_is_told_both_numbers() {
    let host = Host::simulated("[model]\ncontext_tokens_max = 64").await;
    let reply = host.chat(json!({ "messages": user(&"word ".repeat(200)) })).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json["error"]["code"]),
        (400, &json!("context_length_exceeded"))
    );
    let message = reply.json["error"]["message"].as_str().unwrap_or_default();
    let numbers: Vec<usize> =
        message.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    assert_eq!(numbers[0], 64, "{message}");
    assert!(numbers[1] > 200, "{message}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_are_tokenized_and_refused_as_too_long() {
    let host = Host::simulated("").await;
    let reply = host.chat(json!({ "messages": user(&"the quick brown fox ".repeat(500_000)) })).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json["error"]["code"]),
        (400, &json!("context_length_exceeded"))
    );
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_beyond_the_limit_is_413() {
    let host = Host::simulated("[limits]\nbody_bytes_max = 2000").await;
    let reply = host.chat(json!({ "messages": user(&"x".repeat(3000)) })).await;
    assert_eq!((reply.status.as_u16(), &reply.json["error"]["code"]), (413, &json!("request_too_large")));
    assert_eq!(host.chat(json!({ "messages": user("x"), "max_tokens": 1 })).await.status, 200);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_house_answers_429_with_retry_after() {
    // Every step takes 20 ms, so that the first request is still there when the second comes.
    let host = Host::start(
        "[limits]\nrequests_max = 1\n[engine]\ndevice = \"sim\"\n[engine.sim]\nstep_us = 20000.0\n",
    )
    .await;
    let body = with_model(json!({ "messages": user("hello"), "max_tokens": 200, "stream": true }));
    let mut first = host.connect().await;
    tokio::io::AsyncWriteExt::write_all(&mut first, &post("/v1/chat/completions", &body.to_string()))
        .await
        .expect("the host reads");
    host.until("the first request is in the house", async || host.server.app.requests_running() == 1).await;
    let second = host.chat(json!({ "messages": user("hello") })).await;
    assert_eq!((second.status.as_u16(), second.header("retry-after")), (429, "1"));
    assert_eq!(second.json["error"]["code"], "rate_limit_exceeded");
    drop(first);
    host.until("its seat is free again", async || host.server.app.requests_running() == 0).await;
    assert_eq!(host.chat(json!({ "messages": user("hello"), "max_tokens": 1 })).await.status, 200);
    host.stop().await;
}
