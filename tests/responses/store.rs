//! Stored responses: by id, by tenant, over a restart.

use axum::http::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{call, create, finished, refused, stream, text_of, tools};
use crate::support::Host;

async fn get(host: &Host, path: &str) -> (u16, Value) {
    call(host, Method::GET, path, Value::Null).await
}

fn path(response: &Value, rest: &str) -> String {
    format!("/v1/responses/{}{rest}", response["id"].as_str().expect("an id"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_is_read_and_deleted_by_its_id() {
    let host = Host::start("").await;
    let made = finished(&stream(&host, json!({ "input": "hello" })).await);
    assert_eq!(get(&host, &path(&made, "")).await, (200, made.clone()));
    let (status, error) = get(&host, &path(&made, "?stream=true")).await;
    assert_eq!((status, &error["error"]["param"]), (400, &json!("stream")));
    let (status, error) = call(&host, Method::POST, &path(&made, "/cancel"), json!({})).await;
    assert_eq!(status, 400, "{error}");
    assert!(error["error"]["message"].as_str().is_some_and(|m| m.contains("background")), "{error}");
    let deleted = call(&host, Method::DELETE, &path(&made, ""), Value::Null).await;
    assert_eq!(deleted, (200, json!({ "id": made["id"], "object": "response", "deleted": true })));
    for (method, rest) in
        [(Method::GET, ""), (Method::DELETE, ""), (Method::GET, "/input_items"), (Method::POST, "/cancel")]
    {
        let (status, error) = call(&host, method, &path(&made, rest), Value::Null).await;
        assert_eq!((status, &error["error"]["code"]), (404, &json!("response_not_found")), "{rest}");
    }
    let error = refused(&host, json!({ "input": "a", "previous_response_id": made["id"] }), 404).await;
    assert_eq!(error["code"], "previous_response_not_found");
    assert_eq!(error["param"], "previous_response_id");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_store_nothing_is_kept() {
    let host = Host::start("").await;
    let made = create(&host, json!({ "input": "hello", "store": false })).await;
    assert_eq!(made["store"], false);
    assert_eq!(get(&host, &path(&made, "")).await.0, 404);
    refused(&host, json!({ "input": "a", "previous_response_id": made["id"] }), 404).await;
    let item = &made["output"][0]["id"];
    let error = refused(&host, json!({ "input": [{ "type": "item_reference", "id": item }] }), 404).await;
    assert_eq!((&error["code"], &error["param"]), (&json!("item_not_found"), &json!("input[0].id")));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_items_are_everything_before_the_answer() {
    let host = Host::start("").await;
    let first =
        create(&host, json!({ "input": "what is 17 * 23?", "tools": tools(), "temperature": 0 })).await;
    let output = json!([{ "type": "function_call_output", "call_id": first["output"][0]["call_id"], "output": "391" }]);
    let second =
        create(&host, json!({ "input": output, "previous_response_id": first["id"], "tools": tools() }))
            .await;
    let kinds = |list: &Value| -> Vec<String> {
        let data = list["data"].as_array().expect("a list");
        data.iter().filter_map(|item| item["type"].as_str().map(str::to_owned)).collect()
    };
    let (_, all) = get(&host, &path(&second, "/input_items?order=asc")).await;
    assert_eq!(kinds(&all), ["message", "function_call", "function_call_output"]);
    assert_eq!((&all["object"], &all["has_more"]), (&json!("list"), &json!(false)));
    assert_eq!(all["data"][1], first["output"][0]);
    let (_, newest) = get(&host, &path(&second, "/input_items?limit=2")).await;
    assert_eq!(kinds(&newest), ["function_call_output", "function_call"]);
    assert_eq!(newest["has_more"], true);
    let last = newest["last_id"].as_str().expect("an id");
    let (_, rest) = get(&host, &path(&second, &format!("/input_items?after={last}"))).await;
    assert_eq!(kinds(&rest), ["message"]);
    let (status, error) = get(&host, &path(&second, "/input_items?limit=1000")).await;
    assert_eq!((status, &error["error"]["param"]), (400, &json!("limit")));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_stands_for_the_item() {
    let host = Host::start("").await;
    let first =
        create(&host, json!({ "input": "what is 17 * 23?", "tools": tools(), "temperature": 0 })).await;
    let call = &first["output"][0];
    let output = json!({ "type": "function_call_output", "call_id": call["call_id"], "output": "391" });
    let question = json!({ "role": "user", "content": "what is 17 * 23?" });
    let by_reference = json!([question, { "type": "item_reference", "id": call["id"] }, output]);
    let in_full = json!([question, call, output]);
    let ask = |input: Value| json!({ "input": input, "tools": tools(), "temperature": 0 });
    let (a, b) = (create(&host, ask(by_reference)).await, create(&host, ask(in_full)).await);
    assert_eq!(text_of(&a), text_of(&b));
    assert_eq!(a["usage"]["input_tokens"], b["usage"]["input_tokens"]);
    host.stop().await;
}

/// A conversation by id gives the prompt that the same items give.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_conversation_and_one_that_is_sent_are_the_same_prompt() {
    let host = Host::start("").await;
    let mut previous = Value::Null;
    let mut items = Vec::new();
    for turn in 0..3 {
        let question = json!({ "role": "user", "content": format!("what is {turn} * 3?") });
        items.push(question.clone());
        let more = json!({ "tools": tools(), "temperature": 0, "tool_choice": "none" });
        let mut stored = more.clone();
        stored["input"] = json!([question]);
        stored["previous_response_id"] = previous;
        let mut sent = more;
        sent["input"] = json!(items);
        sent["store"] = json!(false);
        let (stored, sent) = (create(&host, stored).await, create(&host, sent).await);
        assert_eq!(stored["usage"]["input_tokens"], sent["usage"]["input_tokens"], "turn {turn}");
        assert_eq!(text_of(&stored), text_of(&sent));
        items.extend(stored["output"].as_array().cloned().unwrap_or_default());
        previous = stored["id"].clone();
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_is_its_tenants_alone() {
    let hex = |key: &str| -> String { Sha256::digest(key).iter().map(|b| format!("{b:02x}")).collect() };
    let keys = format!(
        "[auth]\nkeys = [{{ sha256 = \"{}\", tenant = \"a\" }}, {{ sha256 = \"{}\", tenant = \"b\" }}]\n",
        hex("key-a"),
        hex("key-b")
    );
    let host = Host::start(&keys).await;
    let send = async |key: &str, method: Method, path: &str, body: Value| {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let reply = host.api.send_with(method, path, &headers, body.to_string()).await.expect("it answers");
        (reply.status.as_u16(), reply.json)
    };
    let (status, made) = send("key-a", Method::POST, "/v1/responses", json!({ "input": "hello" })).await;
    assert_eq!(status, 200);
    assert_eq!(send("key-a", Method::GET, &path(&made, ""), Value::Null).await.0, 200);
    for (method, rest) in [(Method::GET, ""), (Method::DELETE, ""), (Method::GET, "/input_items")] {
        assert_eq!(send("key-b", method.clone(), &path(&made, rest), Value::Null).await.0, 404);
        assert_eq!(call(&host, method, &path(&made, rest), Value::Null).await.0, 401);
    }
    let on = json!({ "input": "a", "previous_response_id": made["id"] });
    assert_eq!(send("key-b", Method::POST, "/v1/responses", on.clone()).await.0, 404);
    assert_eq!(send("key-a", Method::POST, "/v1/responses", on).await.0, 200);
    for path in ["/v1/responses", "/v1/responses/input_tokens", "/v1/responses/compact"] {
        assert_eq!(call(&host, Method::POST, path, json!({ "input": "a" })).await.0, 401);
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_goes_on_after_a_restart() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let config = format!("[state]\nfolder = {:?}\n", folder.path().display().to_string());
    let host = Host::start(&config).await;
    let first =
        create(&host, json!({ "input": "what is 17 * 23?", "tools": tools(), "temperature": 0 })).await;
    host.stop().await;
    let host = Host::start(&config).await;
    assert_eq!(get(&host, &path(&first, "")).await, (200, first.clone()));
    let output = json!([{ "type": "function_call_output", "call_id": first["output"][0]["call_id"], "output": "391" }]);
    let body =
        json!({ "input": output, "previous_response_id": first["id"], "tools": tools(), "temperature": 0 });
    assert_eq!(text_of(&create(&host, body).await), "17 * 23 = 391");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_gives_up_what_rested_longest() {
    let host = Host::start("[responses]\nentries_max = 3\n").await;
    let mut made = Vec::new();
    for i in 0..5 {
        made.push(create(&host, json!({ "input": format!("{i}"), "max_output_tokens": 1 })).await);
    }
    let mut kept = Vec::new();
    for response in &made {
        kept.push(get(&host, &path(response, "")).await.0);
    }
    assert_eq!(kept, [404, 404, 200, 200, 200]);
    host.stop().await;
}
