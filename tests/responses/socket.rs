//! Conversations on a connection, by WebSocket.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::events::finished;
use super::{cached, create, text_of, tools};
use crate::support::{Host, PATIENCE};

struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    async fn open(host: &Host) -> Self {
        let (socket, response) =
            connect_async(format!("ws://{}/v1/responses", host.server.api)).await.expect("the host upgrades");
        assert_eq!(response.status(), 101);
        Self(socket)
    }

    async fn send(&mut self, frame: impl Into<Message>) {
        self.0.send(frame.into()).await.expect("the host reads");
    }

    async fn say(&mut self, mut create: Value) {
        create["type"] = json!("response.create");
        self.send(create.to_string()).await;
    }

    /// The next event; `None` when the host closed.
    async fn event(&mut self) -> Option<Value> {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("an event comes");
            match message {
                Some(Ok(Message::Text(text))) => {
                    return Some(serde_json::from_str(&text).expect("an event is JSON"));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(other)) => panic!("{other:?}"),
            }
        }
    }

    async fn error(&mut self) -> Value {
        let event = self.event().await.expect("an error is told");
        assert_eq!(event["type"], "error", "{event}");
        event
    }

    /// One request through to its response.
    async fn ask(&mut self, create: Value) -> Value {
        self.say(create).await;
        finished(&self.events().await)
    }

    async fn events(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let event = self.event().await.expect("a response ends");
            let kind = event["type"].as_str().expect("a type is a text").to_owned();
            assert_ne!(kind, "error", "{event}");
            events.push(event);
            if ["response.completed", "response.incomplete", "response.failed"].contains(&kind.as_str()) {
                return events;
            }
        }
    }
}

/// What Codex does: the long beginning first, without an answer; then only what is new.
#[tokio::test(flavor = "multi_thread")]
async fn codex_warms_the_prompt_and_sends_only_what_is_new() {
    let host = Host::start("").await;
    let mut socket = Socket::open(&host).await;
    let base = |more: Value| {
        let mut body = json!({ "model": "tiny-agent", "tools": tools(), "store": false, "temperature": 0,
            "include": ["reasoning.encrypted_content"], "prompt_cache_key": "t" });
        body.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        body
    };
    let developer = json!({ "type": "message", "role": "developer", "id": "a",
        "content": [{ "type": "input_text", "text": "You are an agent. ".repeat(10) }] });
    let warmed = socket.ask(base(json!({ "input": [developer], "generate": false }))).await;
    assert_eq!((&warmed["output"], &warmed["status"]), (&json!([]), &json!("completed")));
    let mut prompt = warmed["usage"]["input_tokens"].as_u64().expect("usage");
    let question = json!([{ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "what is 17 * 23?" }] }]);
    let first = socket.ask(base(json!({ "input": question, "previous_response_id": warmed["id"] }))).await;
    assert!(cached(&first) + 32 > prompt, "{first}");
    prompt = first["usage"]["input_tokens"].as_u64().expect("usage");
    let call = &first["output"][0];
    assert_eq!(call["name"], "calc", "{first}");
    let output = json!([{ "type": "function_call_output", "call_id": call["call_id"], "output": "391" }]);
    let second = socket.ask(base(json!({ "input": output, "previous_response_id": first["id"] }))).await;
    assert_eq!(text_of(&second), "17 * 23 = 391");
    assert!(cached(&second) + 16 > prompt, "{second}");
    // Nothing of it was stored: another connection does not know it.
    let mut other = Socket::open(&host).await;
    other.say(base(json!({ "input": "a", "previous_response_id": second["id"] }))).await;
    let error = other.error().await;
    assert_eq!(
        (&error["status"], &error["error"]["code"]),
        (&json!(404), &json!("previous_response_not_found"))
    );
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_continuation_that_fails_makes_the_connection_forget() {
    let host = Host::start("").await;
    let mut socket = Socket::open(&host).await;
    let first = socket.ask(json!({ "input": "hello", "store": false })).await;
    // A failure elsewhere leaves the connection as it is.
    socket.say(json!({ "input": 7 })).await;
    assert_eq!(socket.error().await["error"]["param"], "input");
    let second =
        socket.ask(json!({ "input": "hello", "store": false, "previous_response_id": first["id"] })).await;
    // Only the latest is remembered.
    socket.say(json!({ "input": "a", "previous_response_id": first["id"] })).await;
    assert_eq!(socket.error().await["status"], 404);
    socket.say(json!({ "input": "a", "previous_response_id": second["id"], "temperature": 9 })).await;
    let error = socket.error().await;
    assert_eq!((&error["status"], &error["error"]["param"]), (&json!(400), &json!("temperature")));
    socket.say(json!({ "input": "a", "previous_response_id": second["id"] })).await;
    assert_eq!(socket.error().await["error"]["code"], "previous_response_not_found");
    socket.ask(json!({ "input": "hello" })).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_response_continues_on_any_connection() {
    let host = Host::start("").await;
    let first = create(&host, json!({ "input": "hello" })).await;
    let mut socket = Socket::open(&host).await;
    let second = socket.ask(json!({ "input": "hello", "previous_response_id": first["id"] })).await;
    let third = create(&host, json!({ "input": "hello", "previous_response_id": second["id"] })).await;
    assert_eq!(third["previous_response_id"], second["id"]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_frames_are_answered_and_the_connection_goes_on() {
    let host = Host::start("[limits]\nbody_bytes_max = 65536\n").await;
    let mut socket = Socket::open(&host).await;
    let huge = json!({ "type": "response.create", "input": "x".repeat(70_000) }).to_string();
    for (frame, status, param) in [
        (Message::text("no JSON"), 400, Value::Null),
        (Message::text("[1]"), 400, Value::Null),
        (Message::text(""), 400, Value::Null),
        (Message::text("{}"), 400, json!("type")),
        (Message::text("{\"type\":\"response.steer\"}"), 400, json!("type")),
        (Message::text("{\"type\":7}"), 400, json!("type")),
        (Message::binary(vec![0, 159, 146, 150]), 400, json!("frame")),
        (Message::text(huge), 413, Value::Null),
        (Message::text("{\"type\":\"response.create\",\"stream_id\":3}"), 400, json!("stream_id")),
        (Message::text("{\"type\":\"response.create\"}"), 400, json!("input")),
        (
            Message::text("{\"type\":\"response.create\",\"input\":\"a\",\"background\":true}"),
            400,
            json!("background"),
        ),
    ] {
        socket.send(frame.clone()).await;
        let error = socket.error().await;
        assert_eq!(
            (&error["status"], &error["error"]["param"]),
            (&json!(status), &param),
            "{frame:?}: {error}"
        );
    }
    let response = socket.ask(json!({ "input": "hello" })).await;
    assert_eq!(response["status"], "completed");
    // Beyond any bound a frame is not even read; the host lives on.
    let endless = json!({ "type": "response.create", "input": "x".repeat(400_000) }).to_string();
    let _ = socket.0.send(Message::text(endless)).await;
    while socket.event().await.is_some() {}
    create(&host, json!({ "input": "hello" })).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_for_each_other_and_events_say_their_lane() {
    let host = Host::start("").await;
    let mut socket = Socket::open(&host).await;
    for lane in ["a", "b"] {
        socket.say(json!({ "input": "hello", "stream_id": lane, "store": false })).await;
    }
    for lane in ["a", "b"] {
        let events = socket.events().await;
        assert!(events.iter().all(|event| event["stream_id"] == lane), "{lane}");
        finished(&events);
    }
    for _ in 0..40 {
        socket.say(json!({ "input": "hello", "max_output_tokens": 2 })).await;
    }
    let mut refused = 0;
    let mut ended = 0;
    while refused + ended < 40 {
        let event = socket.event().await.expect("each is answered");
        match event["type"].as_str() {
            Some("error") => {
                assert_eq!(
                    (&event["status"], &event["error"]["code"]),
                    (&json!(429), &json!("rate_limit_exceeded"))
                );
                refused += 1;
            }
            Some("response.incomplete" | "response.completed") => ended += 1,
            _ => {}
        }
    }
    assert!(ended >= 16, "as many as may wait are answered: {ended}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_its_sequence_along() {
    let host = Host::simulated("[engine.sim]\nstep_us = 2000.0\n").await;
    let mut socket = Socket::open(&host).await;
    socket.say(json!({ "input": "hello", "max_output_tokens": 16000 })).await;
    assert_eq!(socket.event().await.expect("it begins")["type"], "response.created");
    drop(socket);
    host.until("the sequence is gone", async || host.server.app.requests_running() == 0).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_the_answer_and_then_the_connection() {
    let host = Host::simulated("[engine.sim]\nstep_us = 2000.0\n").await;
    let mut idle = Socket::open(&host).await;
    let mut busy = Socket::open(&host).await;
    busy.say(json!({ "input": "hello", "max_output_tokens": 200 })).await;
    assert_eq!(busy.event().await.expect("it begins")["type"], "response.created");
    let stop = async { host.stop().await };
    let watch = async {
        assert_eq!(idle.event().await, None, "an idle connection is closed at once");
        let mut last = Value::Null;
        while let Some(event) = busy.event().await {
            last = event;
        }
        assert!(last["type"] == "response.incomplete" || last["type"] == "response.completed", "{last}");
    };
    tokio::join!(stop, watch);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_upgrade_with_a_key_is_taken_in() {
    let hash = "0".repeat(64);
    let host = Host::start(&format!("[auth]\nkeys = [{{ sha256 = \"{hash}\", tenant = \"a\" }}]\n")).await;
    let refused = connect_async(format!("ws://{}/v1/responses", host.server.api)).await;
    assert!(refused.is_err_and(|e| e.to_string().contains("401")));
    host.stop().await;
    let host = Host::start("[responses]\nsockets_max = 1\n").await;
    let plain = host.api.get("/v1/responses").await.expect("it answers");
    assert_eq!(plain.status, 404);
    let _first = Socket::open(&host).await;
    let second = connect_async(format!("ws://{}/v1/responses", host.server.api)).await;
    assert!(second.is_err_and(|e| e.to_string().contains("429")));
    host.stop().await;
}
