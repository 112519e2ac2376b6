//! Items of a request in their long form: checked, each with an id, as they are kept, listed and made into messages.
//!
//! Item types that mean nothing here are kept as they are and do not reach the model.
//! **Invariant:** every refusal names the item; what is accepted can be made into messages.

use serde_json::{Map, Value, json};

use super::ids::Ids;
use super::sealed;
use crate::api::fields::{Fields, kind};
use crate::request::Refusal;

/// What a text part may be called.
const TEXTS: [&str; 4] = ["input_text", "output_text", "text", "reasoning_text"];

/// The items of `input`, which is a text or a list.
pub(super) fn listed(input: Option<&Value>, ids: &Ids) -> Result<Vec<Value>, Refusal> {
    match input {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![json!({
            "id": ids.input("msg", 0),
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{ "type": "input_text", "text": text }],
        })]),
        Some(Value::Array(items)) => {
            items.iter().enumerate().map(|(i, item)| listed_item(item, i, ids)).collect()
        }
        Some(other) => {
            let message = format!("`input` must be a string or a list of items, got {}", kind(other));
            Err(Refusal::field("input", message))
        }
    }
}

/// The kind of an item. Older SDKs leave it out of messages and of references.
pub(super) fn type_of(item: &Value) -> &str {
    match item.get("type").and_then(Value::as_str) {
        Some(kind) => kind,
        None if item.get("role").is_some() => "message",
        None if item.get("id").is_some() => "item_reference",
        None => "",
    }
}

fn listed_item(item: &Value, index: usize, ids: &Ids) -> Result<Value, Refusal> {
    let path = format!("input[{index}]");
    let fields = Fields::at(item, &path)?;
    fields.text("type")?;
    fields.text("id")?;
    let prefix = match type_of(item) {
        "message" => return message(&fields, item, ids.input("msg", index)),
        "item_reference" => {
            fields.text("id")?.ok_or_else(|| fields.wrong("id", "the id of an item"))?;
            return Ok(item.clone());
        }
        "function_call" => {
            called(&fields, "arguments")?;
            "fc"
        }
        "custom_tool_call" => {
            called(&fields, "input")?;
            "ctc"
        }
        "function_call_output" | "custom_tool_call_output" => {
            output(&fields)?;
            "fco"
        }
        "reasoning" => {
            reasoning(&fields)?;
            "rs"
        }
        "compaction" => {
            compaction(&fields)?;
            "cmp"
        }
        "compaction_trigger" => {
            let wanted = "something else: ask `POST /v1/responses/compact` to compact a conversation";
            return Err(fields.wrong("type", wanted));
        }
        "" => return Err(fields.wrong("type", "the type of the item, such as \"message\"")),
        _ => "item",
    };
    let mut item = with_id(item, ids.input(prefix, index));
    // What the item's form wants when it is listed, and callers may leave out.
    match prefix {
        "fc" | "ctc" | "fco" => set_default(&mut item, "status", "completed".into()),
        "rs" => set_default(&mut item, "summary", json!([])),
        _ => {}
    }
    Ok(item)
}

fn set_default(item: &mut Value, name: &str, value: Value) {
    if item.get(name).is_none_or(Value::is_null) {
        item[name] = value;
    }
}

/// The same item, with this id if it has none.
fn with_id(item: &Value, id: String) -> Value {
    let mut object = Map::from_iter([("id".to_owned(), id.into())]);
    for (key, value) in item.as_object().into_iter().flatten() {
        if key != "id" || value.is_string() {
            object.insert(key.clone(), value.clone());
        }
    }
    object.into()
}

fn message(fields: &Fields<'_>, item: &Value, id: String) -> Result<Value, Refusal> {
    const ROLES: [&str; 4] = ["user", "assistant", "system", "developer"];
    let role = fields.text("role")?.filter(|role| ROLES.contains(role));
    let role = role.ok_or_else(|| fields.wrong("role", &format!("one of {}", ROLES.join(", "))))?;
    let text = if role == "assistant" { "output_text" } else { "input_text" };
    let parts: Vec<Value> = match fields.get("content") {
        Some(Value::String(content)) => vec![part(text, content)],
        Some(Value::Array(parts)) => {
            let path = fields.path("content");
            let checked =
                parts.iter().enumerate().map(|(i, p)| message_part(p, &format!("{path}[{i}]"), text));
            checked.collect::<Result<_, _>>()?
        }
        _ => return Err(fields.wrong("content", "a string or a list of parts")),
    };
    let mut message = with_id(item, id);
    message["type"] = "message".into();
    set_default(&mut message, "status", "completed".into());
    message["content"] = parts.into();
    Ok(message)
}

fn part(kind: &str, text: &str) -> Value {
    match kind {
        "output_text" => json!({ "type": kind, "text": text, "annotations": [] }),
        kind => json!({ "type": kind, "text": text }),
    }
}

fn message_part(value: &Value, path: &str, text: &str) -> Result<Value, Refusal> {
    if let Some(content) = value.as_str() {
        return Ok(part(text, content));
    }
    let fields = Fields::at(value, path)?;
    match fields.text("type")?.unwrap_or("text") {
        "refusal" => {
            fields.text("refusal")?.ok_or_else(|| fields.wrong("refusal", "a string"))?;
            Ok(value.clone())
        }
        known if TEXTS.contains(&known) => {
            fields.text("text")?.ok_or_else(|| fields.wrong("text", "a string"))?;
            let mut part = value.clone();
            if known == "text" {
                part["type"] = text.into();
            }
            if text == "output_text" && part.get("annotations").is_none() {
                part["annotations"] = json!([]);
            }
            Ok(part)
        }
        _ => Err(fields.wrong("type", "a type of text: this model reads nothing else")),
    }
}

fn called(fields: &Fields<'_>, text: &str) -> Result<(), Refusal> {
    for name in ["call_id", "name", text] {
        fields.text(name)?.ok_or_else(|| fields.wrong(name, "a string"))?;
    }
    fields.text("namespace")?;
    Ok(())
}

/// Parts that are no text are accepted in the output of a tool: they stay in a conversation, and a refusal would
/// end it. The model is told that they were left out.
fn output(fields: &Fields<'_>) -> Result<(), Refusal> {
    fields.text("call_id")?;
    match fields.get("output") {
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(parts)) => {
            let path = fields.path("output");
            for (i, part) in parts.iter().enumerate() {
                let part = Fields::at(part, &format!("{path}[{i}]"))?;
                if part.text("type")?.is_none_or(|kind| TEXTS.contains(&kind)) {
                    part.text("text")?.ok_or_else(|| part.wrong("text", "a string"))?;
                }
            }
            Ok(())
        }
        _ => Err(fields.wrong("output", "a string or a list of parts")),
    }
}

fn reasoning(fields: &Fields<'_>) -> Result<(), Refusal> {
    fields.text("encrypted_content")?;
    fields.list("summary")?;
    let path = fields.path("content");
    for (i, part) in fields.list("content")?.into_iter().flatten().enumerate() {
        let part = Fields::at(part, &format!("{path}[{i}]"))?;
        part.text("text")?.ok_or_else(|| part.wrong("text", "a string"))?;
    }
    Ok(())
}

fn compaction(fields: &Fields<'_>) -> Result<(), Refusal> {
    let ours = fields.text("encrypted_content")?.and_then(sealed::open_compaction);
    match ours {
        Some(_) => Ok(()),
        None => Err(fields.wrong("encrypted_content", "what this host's `/v1/responses/compact` answered")),
    }
}

/// The reasoning that an item holds, if it can be read here.
pub(super) fn reasoning_text(item: &Value) -> Option<String> {
    let parts = item["content"].as_array().into_iter().flatten();
    let text: String = parts.filter_map(|part| part["text"].as_str()).collect();
    match text.is_empty() {
        false => Some(text),
        true => item["encrypted_content"].as_str().and_then(sealed::open_reasoning),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(input: Value) -> Result<Vec<Value>, String> {
        listed(Some(&input), &Ids::new(3)).map_err(|e| e.to_string())
    }

    fn check(item: Value, expected: Value) {
        assert_eq!(list(json!([item])), Ok(vec![expected]));
    }

    #[test]
    fn a_text_and_a_short_message_become_the_same_item() {
        let long = list(json!("hi")).expect("a text");
        assert_eq!(long[0]["content"], json!([{"type": "input_text", "text": "hi"}]));
        let id = Ids::new(3).input("msg", 0);
        assert_eq!(long[0]["id"], id.as_str());
        let parts = |content: Value| {
            let mut item = list(json!([{"role": "user", "content": content}])).expect("a message");
            assert_eq!(item[0]["id"], id.as_str());
            item[0]["content"].take()
        };
        assert_eq!(parts(json!("hi")), long[0]["content"]);
        assert_eq!(parts(json!([{"type": "text", "text": "hi"}])), long[0]["content"]);
        assert_eq!(list(json!("")).expect("an empty text")[0]["content"][0]["text"], "");
    }

    #[test]
    fn an_items_own_id_stays() {
        let call =
            json!({"id": "fc_1", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"});
        let mut listed = call.clone();
        listed["status"] = "completed".into();
        check(call, listed);
        let assistant = json!({"role": "assistant", "content": "a", "id": "msg_1"});
        let expected = json!({"id": "msg_1", "role": "assistant", "content": [
            {"type": "output_text", "text": "a", "annotations": []}], "type": "message", "status": "completed"});
        check(assistant, expected);
        check(json!({"id": "rs_9"}), json!({"id": "rs_9"}));
    }

    #[test]
    fn unknown_items_are_kept() {
        let search = json!({"id": "ws_1", "type": "web_search_call", "status": "completed", "action": {}});
        check(search.clone(), search);
    }

    fn check_refused(item: Value, expected: &str) {
        assert_eq!(list(json!([{"role": "user", "content": "a"}, item])), Err(expected.to_owned()));
    }

    #[test]
    fn an_item_that_is_wrong_is_named() {
        check_refused(json!(3), "`input[1]` must be an object, got a number");
        check_refused(
            json!({}),
            "`input[1].type` is missing: it must be the type of the item, such as \"message\"",
        );
        check_refused(
            json!({"role": "tool", "content": "a"}),
            "`input[1].role` must be one of user, assistant, system, developer, got a string",
        );
        check_refused(
            json!({"role": "user", "content": 3}),
            "`input[1].content` must be a string or a list of parts, got 3",
        );
        check_refused(
            json!({"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}),
            "`input[1].content[0].type` must be a type of text: this model reads nothing else, got a string",
        );
        check_refused(
            json!({"type": "function_call", "call_id": "c", "name": "f"}),
            "`input[1].arguments` is missing: it must be a string",
        );
        check_refused(
            json!({"type": "function_call_output", "call_id": "c"}),
            "`input[1].output` is missing: it must be a string or a list of parts",
        );
        check_refused(
            json!({"type": "compaction", "encrypted_content": "gAAAA"}),
            "`input[1].encrypted_content` must be what this host's `/v1/responses/compact` answered, got a string",
        );
        assert_eq!(
            list(json!(7)),
            Err("`input` must be a string or a list of items, got a number".to_owned())
        );
    }

    #[test]
    fn reasoning_is_read_from_its_text_or_from_what_we_sealed() {
        let text = |item: Value| reasoning_text(&item);
        assert_eq!(text(json!({"content": [{"type": "reasoning_text", "text": "a"}]})), Some("a".into()));
        assert_eq!(
            text(json!({"content": null, "encrypted_content": sealed::reasoning("b")})),
            Some("b".into())
        );
        assert_eq!(text(json!({"summary": [], "encrypted_content": "gAAAA"})), None);
    }
}
