//! Middleware that makes a small model a dependable agent: it has to call one tool, and then to say one thing.
//!
//! A turn without a tool's result has to call the tool of [`CALLS`] that the caller offers, with arguments that can
//! only be those given there; a turn with one has to answer [`SAYS`]. Requests that offer no such tool pass.
#![allow(unsafe_code, reason = "generated from the contract")]

#[allow(missing_docs, reason = "generated from the contract")]
#[allow(clippy::allow_attributes_without_reason, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../host/policy/foreign", world: "middleware" });
}

use serde_json::{Map, Value, json};

use bindings::exports::vllm::router_middleware::on_request::Guest;
use bindings::vllm::router_middleware::types::{Action, ModifyAction, Request};

/// Tools that agents have, with the argument and the value that it has to have.
const CALLS: [(&str, &str, &str); 4] = [
    ("Read", "file_path", "notes.txt"),
    ("exec_command", "cmd", "cat notes.txt"),
    ("read", "filePath", "notes.txt"),
    ("read_file", "path", "notes.txt"),
];
/// What the answer says when the tool was called.
const SAYS: &str = "the notes were read";

struct Insist;

impl Guest for Insist {
    fn handle(request: Request) -> Action {
        let Ok(Value::Object(mut body)) = serde_json::from_slice(&request.body) else {
            return Action::Continue;
        };
        let changed = match request.path.as_str() {
            "/v1/messages" => messages(&mut body),
            "/v1/responses" => responses(&mut body),
            "/v1/chat/completions" => chat(&mut body),
            _ => None,
        };
        match changed {
            None => Action::Continue,
            Some(()) => Action::Modify(ModifyAction {
                headers_set: vec![],
                headers_add: vec![],
                headers_remove: vec![],
                body_replace: Some(Value::Object(body).to_string().into_bytes()),
            }),
        }
    }
}

fn messages(body: &mut Map<String, Value>) -> Option<()> {
    let last = body.get("messages")?.as_array()?.last()?;
    let is_result = |part: &Value| part["type"] == "tool_result";
    let ends = last["content"].as_array().is_some_and(|parts| parts.iter().any(is_result));
    let name = narrow(body, "/name", "/input_schema")?;
    if ends {
        body.insert("output_config".to_owned(), json!({"format": {"type": "json_schema", "schema": said()}}));
        body.insert("tool_choice".to_owned(), json!({"type": "none"}));
    } else {
        body.insert("tool_choice".to_owned(), json!({"type": "tool", "name": name}));
    }
    Some(())
}

fn responses(body: &mut Map<String, Value>) -> Option<()> {
    let ends = match body.get("input")? {
        Value::Array(items) => items.last()?["type"] == "function_call_output",
        _ => false,
    };
    let name = narrow(body, "/name", "/parameters")?;
    if ends {
        let format = json!({"type": "json_schema", "name": "said", "schema": said()});
        body.insert("text".to_owned(), json!({ "format": format }));
        body.insert("tool_choice".to_owned(), json!("none"));
    } else {
        body.insert("tool_choice".to_owned(), json!({"type": "function", "name": name}));
    }
    Some(())
}

fn chat(body: &mut Map<String, Value>) -> Option<()> {
    let ends = body.get("messages")?.as_array()?.last()?["role"] == "tool";
    let name = narrow(body, "/function/name", "/function/parameters")?;
    if ends {
        let format = json!({"type": "json_schema", "json_schema": {"name": "said", "schema": said()}});
        body.insert("response_format".to_owned(), format);
        body.insert("tool_choice".to_owned(), json!("none"));
    } else {
        body.insert("tool_choice".to_owned(), json!({"type": "function", "function": {"name": name}}));
    }
    Some(())
}

/// Leaves the one tool no arguments but those given; its name.
fn narrow(body: &mut Map<String, Value>, name: &str, schema: &str) -> Option<String> {
    let tools = body.get_mut("tools")?.as_array_mut()?;
    for tool in tools {
        let known = CALLS.iter().find(|known| tool.pointer(name).is_some_and(|name| name == known.0));
        let Some((name, argument, value)) = known else { continue };
        *tool.pointer_mut(schema)? = json!({
            "type": "object",
            "properties": { *argument: {"type": "string", "enum": [value]} },
            "required": [argument],
            "additionalProperties": false,
        });
        return Some((*name).to_owned());
    }
    None
}

fn said() -> Value {
    json!({
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": [SAYS]}},
        "required": ["answer"],
        "additionalProperties": false,
    })
}

#[cfg(target_arch = "wasm32")]
bindings::export!(Insist with_types_in bindings);
