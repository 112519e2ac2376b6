//! The order of events and what each must hold: a state machine that every stream of the tests goes through.

use serde_json::{Value, json};

const KEYS: &str = "id object created_at completed_at status incomplete_details model previous_response_id instructions \
    output error tools tool_choice truncation parallel_tool_calls text top_p presence_penalty frequency_penalty \
    top_logprobs temperature reasoning usage max_output_tokens max_tool_calls store background service_tier metadata \
    safety_identifier prompt_cache_key";

/// Every key is there, and has a form that strict validators take.
pub(super) fn check_object(response: &Value) {
    for key in KEYS.split_whitespace() {
        assert!(response.get(key).is_some(), "`{key}` is missing in {response}");
    }
    assert!(response["id"].as_str().is_some_and(|id| id.starts_with("resp_")));
    assert!(response["created_at"].is_u64() && response["temperature"].is_number());
    assert_eq!(response["object"], "response");
    for tool in response["tools"].as_array().expect("tools are a list") {
        if tool["type"] == "function" {
            assert!(tool["strict"].is_boolean() && tool.get("description").is_some(), "{tool}");
        }
    }
    let status = response["status"].as_str().expect("a status is a text");
    assert_eq!(response["completed_at"].is_null(), status != "completed");
    assert_eq!(response["incomplete_details"].is_null(), status != "incomplete");
    if status == "completed" || status == "incomplete" {
        let usage = &response["usage"];
        let number =
            |at: &str| usage.pointer(at).and_then(Value::as_u64).unwrap_or_else(|| panic!("{at}: {usage}"));
        assert_eq!(number("/total_tokens"), number("/input_tokens") + number("/output_tokens"));
        let read_or_written = number("/input_tokens_details/cached_tokens")
            + number("/input_tokens_details/cache_write_tokens");
        assert!(read_or_written <= number("/input_tokens"));
        assert!(number("/output_tokens_details/reasoning_tokens") <= number("/output_tokens"));
    }
}

/// The item that is being written.
struct Open {
    item: Value,
    text: String,
    /// What of it has been told: its part began, its text is done, its part is done.
    begun: bool,
    done: bool,
    closed: bool,
}

#[derive(Default)]
struct Machine {
    open: Option<Open>,
    items: Vec<Value>,
}

impl Machine {
    fn take(&mut self, event: &Value) {
        let kind = event["type"].as_str().expect("a type is a text");
        if kind == "response.output_item.added" {
            assert!(self.open.is_none(), "one item at a time: {event}");
            return self.begin(event);
        }
        assert_eq!(event["output_index"], json!(self.items.len()), "{event}");
        let open = self.open.as_mut().unwrap_or_else(|| panic!("no item is open: {event}"));
        if kind == "response.output_item.done" {
            let open = self.open.take().expect("it is open");
            return self.end(open, &event["item"]);
        }
        assert_eq!(event["item_id"], open.item["id"], "{event}");
        let is = open.item["type"].as_str().expect("a type is a text");
        let has_part = is == "message" || is == "reasoning";
        assert!(!has_part || event["content_index"] == 0, "{event}");
        match (is, kind.trim_start_matches("response.")) {
            ("message" | "reasoning", "content_part.added") => {
                assert!(!std::mem::replace(&mut open.begun, true), "{event}");
                assert_eq!(event["part"]["text"], "");
            }
            ("message", "output_text.delta") | ("reasoning", "reasoning_text.delta") => {
                assert!(open.begun && !open.done, "{event}");
                assert!(is == "reasoning" || event["logprobs"].is_array(), "{event}");
                open.text += event["delta"].as_str().expect("a delta is a text");
            }
            ("message", "output_text.done") | ("reasoning", "reasoning_text.done") => {
                assert!(open.begun && !std::mem::replace(&mut open.done, true), "{event}");
                assert_eq!(event["text"], open.text.as_str());
            }
            ("message" | "reasoning", "content_part.done") => {
                assert!(open.done && !std::mem::replace(&mut open.closed, true), "{event}");
                assert_eq!(event["part"]["text"], open.text.as_str());
            }
            ("function_call", "function_call_arguments.delta")
            | ("custom_tool_call", "custom_tool_call_input.delta") => {
                assert!(!open.done, "{event}");
                open.text += event["delta"].as_str().expect("a delta is a text");
            }
            ("function_call", "function_call_arguments.done") => {
                assert!(!std::mem::replace(&mut open.done, true), "{event}");
                assert_eq!(event["arguments"], open.text.as_str());
                open.closed = true;
            }
            ("custom_tool_call", "custom_tool_call_input.done") => {
                assert!(!std::mem::replace(&mut open.done, true), "{event}");
                assert_eq!(event["input"], open.text.as_str());
                open.closed = true;
            }
            _ => panic!("out of order in a {is}: {event}"),
        }
    }

    fn begin(&mut self, event: &Value) {
        assert_eq!(event["output_index"], json!(self.items.len()), "{event}");
        let item = event["item"].clone();
        assert_eq!(item["status"], "in_progress", "{event}");
        let prefix = match item["type"].as_str() {
            Some("message") => {
                assert_eq!((&item["content"], &item["role"]), (&json!([]), &json!("assistant")));
                "msg_"
            }
            Some("reasoning") => "rs_",
            Some("function_call") => {
                assert_eq!(item["arguments"], "");
                "fc_"
            }
            Some("custom_tool_call") => {
                assert_eq!(item["input"], "");
                "ctc_"
            }
            _ => panic!("{event}"),
        };
        assert!(item["id"].as_str().is_some_and(|id| id.starts_with(prefix)), "{event}");
        if prefix == "fc_" || prefix == "ctc_" {
            assert!(item["call_id"].as_str().is_some_and(|id| id.starts_with("call_")), "{event}");
            assert_ne!(item["call_id"], item["id"]);
        }
        self.open = Some(Open { item, text: String::new(), begun: false, done: false, closed: false });
    }

    fn end(&mut self, open: Open, item: &Value) {
        assert!(open.done && open.closed, "{item}");
        for key in ["id", "type", "call_id", "name", "namespace"] {
            assert_eq!(item.get(key), open.item.get(key), "{item}");
        }
        assert!(item["status"] == "completed" || item["status"] == "incomplete", "{item}");
        let text = match open.item["type"].as_str() {
            Some("function_call") => &item["arguments"],
            Some("custom_tool_call") => &item["input"],
            _ => &item["content"][0]["text"],
        };
        assert_eq!(text, open.text.as_str());
        self.items.push(item.clone());
    }
}

/// Checks a whole stream; the response that it ends with.
pub(super) fn finished(events: &[Value]) -> Value {
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], json!(number), "{event}");
    }
    let (first, rest) = events.split_first().expect("a stream has events");
    let (second, rest) = rest.split_first().expect("a stream has several");
    let (last, between) = rest.split_last().expect("a stream ends");
    assert_eq!(
        (&first["type"], &second["type"]),
        (&json!("response.created"), &json!("response.in_progress"))
    );
    for event in [first, second, last] {
        check_object(&event["response"]);
        assert_eq!(event["response"]["id"], first["response"]["id"]);
    }
    assert_eq!(
        (&first["response"]["status"], &first["response"]["output"]),
        (&json!("in_progress"), &json!([]))
    );
    let mut machine = Machine::default();
    for event in between {
        machine.take(event);
    }
    assert!(machine.open.is_none(), "every item ends");
    let response = &last["response"];
    assert_eq!(response["output"], json!(machine.items));
    let status = response["status"].as_str().expect("a status is a text");
    assert!(["completed", "incomplete", "failed"].contains(&status), "{status}");
    assert_eq!(last["type"], format!("response.{status}"));
    response.clone()
}

/// A stream in this order, with what is said of each event put into it.
fn made(kinds: &[&str]) -> Vec<Value> {
    let object = |status: &str| {
        let mut object = json!({});
        for key in KEYS.split_whitespace() {
            object[key] = Value::Null;
        }
        let usage = json!({ "input_tokens": 2, "input_tokens_details": { "cached_tokens": 0, "cache_write_tokens": 0 },
            "output_tokens": 1, "output_tokens_details": { "reasoning_tokens": 0 }, "total_tokens": 3 });
        let items = if status == "completed" { json!([item("completed", "a")]) } else { json!([]) };
        for (key, value) in [
            ("id", json!("resp_1")),
            ("object", json!("response")),
            ("created_at", json!(1)),
            ("temperature", json!(1)),
            ("tools", json!([])),
            ("status", json!(status)),
            ("output", items),
            ("usage", usage),
        ] {
            object[key] = value;
        }
        object["completed_at"] = if status == "completed" { json!(1) } else { Value::Null };
        object
    };
    let place = json!({ "item_id": "msg_1", "output_index": 0, "content_index": 0, "delta": "a", "text": "a",
        "logprobs": [] });
    let event = |(number, kind): (usize, &&str)| {
        let mut event = place.clone();
        event["type"] = json!(kind);
        event["sequence_number"] = json!(number);
        event["response"] = object(if *kind == "response.completed" { "completed" } else { "in_progress" });
        event["part"] = json!({ "text": if kind.ends_with("added") { "" } else { "a" } });
        event["item"] =
            if kind.ends_with("added") { item("in_progress", "") } else { item("completed", "a") };
        event
    };
    kinds.iter().enumerate().map(event).collect()
}

fn item(status: &str, text: &str) -> Value {
    let content = if text.is_empty() { json!([]) } else { json!([{ "type": "output_text", "text": text }]) };
    json!({ "id": "msg_1", "type": "message", "role": "assistant", "status": status, "content": content })
}

const RIGHT: [&str; 9] = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
];

/// A checker that accepts everything checks nothing.
#[test]
fn the_checker_takes_the_right_order_and_no_other() {
    finished(&made(&RIGHT));
    for (left_out, event) in RIGHT.iter().enumerate() {
        let mut wrong = RIGHT.to_vec();
        wrong.remove(left_out);
        // A message may have no delta, but then it has no text either.
        assert!(std::panic::catch_unwind(|| finished(&made(&wrong))).is_err(), "without {event}");
    }
    for at in 0..RIGHT.len() - 1 {
        let mut wrong = RIGHT.to_vec();
        wrong.swap(at, at + 1);
        assert!(
            std::panic::catch_unwind(|| finished(&made(&wrong))).is_err(),
            "{at} and the next change places"
        );
    }
}
