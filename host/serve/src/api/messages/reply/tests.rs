use super::*;
use crate::api::messages::tests::{body, parsed};

/// The events that pieces give, each as its name and its data, and the content of the whole message.
fn written(fields: Value, pieces: Vec<OutputEvent>) -> (Vec<String>, Value) {
    let write = |streamed: bool| {
        let mut fields = fields.clone();
        fields["stream"] = streamed.into();
        let (request, style) = parsed(&body(fields)).expect("the body is right");
        let mut reply = Reply::new(&request, "", style, None);
        let mut events = Events::sse();
        for piece in pieces.clone() {
            reply.piece(piece, &mut events);
        }
        reply.close(&mut events);
        (String::from_utf8_lossy(&events.into_bytes()).into_owned(), Value::from(reply.content))
    };
    let ((events, nothing), (_, content)) = (write(true), write(false));
    assert_eq!(nothing, json!([]), "a stream keeps no text");
    let data = events.split("\n\n").filter(|event| !event.is_empty());
    let data = data.map(|event| event.split_once("\ndata: ").expect("an event has data").1.to_owned());
    (data.collect(), content)
}

fn check(fields: Value, pieces: Vec<OutputEvent>, expected: &[Value], content: Value) {
    let (events, whole) = written(fields, pieces);
    let events: Vec<Value> = events.iter().map(|e| serde_json::from_str(e).expect("data is JSON")).collect();
    assert_eq!(events, expected);
    assert_eq!(whole, content);
}

fn start(index: u32, block: Value) -> Value {
    json!({"type": "content_block_start", "index": index, "content_block": block})
}

fn delta(index: u32, delta: Value) -> Value {
    json!({"type": "content_block_delta", "index": index, "delta": delta})
}

fn stop(index: u32) -> Value {
    json!({"type": "content_block_stop", "index": index})
}

fn thoughts() -> Vec<OutputEvent> {
    vec![
        OutputEvent::Reasoning("so ".into()),
        OutputEvent::Reasoning("it is".into()),
        OutputEvent::Text("Hi".into()),
        OutputEvent::Text("!".into()),
    ]
}

#[test]
fn reasoning_is_signed_before_it_closes() {
    let signature = signature::of_shown("so it is");
    check(
        json!({}),
        thoughts(),
        &[
            start(0, json!({"type": "thinking", "thinking": "", "signature": ""})),
            delta(0, json!({"type": "thinking_delta", "thinking": "so "})),
            delta(0, json!({"type": "thinking_delta", "thinking": "it is"})),
            delta(0, json!({"type": "signature_delta", "signature": signature})),
            stop(0),
            start(1, json!({"type": "text", "text": ""})),
            delta(1, json!({"type": "text_delta", "text": "Hi"})),
            delta(1, json!({"type": "text_delta", "text": "!"})),
            stop(1),
        ],
        json!([{"type": "thinking", "thinking": "so it is", "signature": signature}, {"type": "text", "text": "Hi!"}]),
    );
}

#[test]
fn reasoning_that_is_not_shown_is_in_its_signature() {
    let signature = signature::holding("so it is");
    check(
        json!({"thinking": {"type": "adaptive", "display": "omitted"}}),
        thoughts()[..2].to_vec(),
        &[
            start(0, json!({"type": "thinking", "thinking": "", "signature": ""})),
            delta(0, json!({"type": "signature_delta", "signature": signature})),
            stop(0),
        ],
        json!([{"type": "thinking", "thinking": "", "signature": signature}]),
    );
}

#[test]
fn calls_keep_their_arguments_to_the_byte() {
    let call = |index: u32, name: &str| OutputEvent::CallStart { index, id: None, name: name.into() };
    let more = |index: u32, delta: &str| OutputEvent::CallArguments { index, delta: delta.into() };
    let pieces = vec![
        OutputEvent::Text("so".into()),
        call(0, "f"),
        more(0, "{\"b\":  "),
        more(0, "1}"),
        OutputEvent::CallEnd { index: 0 },
        call(1, "g"),
        more(1, "{\"cut"),
    ];
    let (request, _) = parsed(&body(json!({}))).expect("the body is right");
    let (one, two) = (call_id(&request.id, 0), call_id(&request.id, 1));
    assert!(one.starts_with("toolu_") && one != two);
    check(
        json!({}),
        pieces,
        &[
            start(0, json!({"type": "text", "text": ""})),
            delta(0, json!({"type": "text_delta", "text": "so"})),
            stop(0),
            start(1, json!({"type": "tool_use", "id": one, "name": "f", "input": {}})),
            delta(1, json!({"type": "input_json_delta", "partial_json": "{\"b\":  "})),
            delta(1, json!({"type": "input_json_delta", "partial_json": "1}"})),
            stop(1),
            start(2, json!({"type": "tool_use", "id": two, "name": "g", "input": {}})),
            delta(2, json!({"type": "input_json_delta", "partial_json": "{\"cut"})),
            stop(2),
        ],
        json!([
            {"type": "text", "text": "so"},
            {"type": "tool_use", "id": one, "name": "f", "input": {"b": 1}},
            {"type": "tool_use", "id": two, "name": "g", "input": {}},
        ]),
    );
}

#[test]
fn an_answer_that_says_nothing_has_no_blocks() {
    check(json!({}), vec![], &[], json!([]));
}

#[test]
fn silence_is_broken_by_a_ping() {
    let (request, style) = parsed(&body(json!({}))).expect("the body is right");
    let mut events = Events::sse();
    Reply::new(&request, "", style, None).heartbeat(&mut events);
    assert_eq!(events.into_bytes(), "event: ping\ndata: {\"type\":\"ping\"}\n\n");
}
