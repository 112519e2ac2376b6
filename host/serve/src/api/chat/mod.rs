//! `POST /v1/chat/completions`: the body becomes a [`Request`].
//!
//! **Invariant:** what is accepted here can be served; every refusal names its field.

mod reply;

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::HeaderMap;
use serde_json::{Map, Value, json};

pub use self::reply::{Reply, Style};

use super::fields::{self, Fields};
use super::parts::Body;
use super::sampling::{self, Rules};
use super::{format, marks};
use crate::ctx::mix;
use crate::prompt::{Dialect, Item, ReadTools, Translated};
use crate::request::{Input, Protocol, Refusal, Request, ToolChoice};

/// How a message is read.
const DIALECT: Dialect = Dialect { kind: u64::from_be_bytes(*b"chat/msg"), translate: message };
/// The word by which lists of tools of this protocol are known.
const TOOLS: u64 = u64::from_be_bytes(*b"chat/fun");

/// Parses and checks a body; also how its caller wants the answer written.
pub fn parse(
    body: &Bytes,
    headers: &HeaderMap,
    rules: &Rules<'_>,
    seed: u64,
) -> Result<(Request, Style), Refusal> {
    let body = Body::read(body, "messages")?;
    let fields = Fields::body(&body.fields)?;
    let adapter = sampling::adapter(&fields, rules)?;
    let messages = messages(&fields, body.messages, rules)?;
    let tools = tools(body.tools.as_ref(), rules)?;
    let tool_choice = tool_choice(&fields, tools.tools.as_deref())?;
    let mut extensions = sampling::extensions(&fields, &rules.hints.extensions)?;
    extensions
        .extend(marks::written(&marks::of_conversation(messages.iter().map(Item::marks), &tools.marks)));
    let request = Request {
        id: format!("chatcmpl-{:016x}{:016x}", mix(seed), seed),
        tenant: String::new(),
        protocol: Protocol::Chat,
        adapter,
        input: Input::Conversation,
        messages: messages.into(),
        tools: tools.tools.clone().filter(|_| tool_choice != ToolChoice::None),
        tool_choice,
        parallel_calls: parallel_calls(&fields)?,
        format: format::parse(&fields, &["response_format"])?,
        template_args: template_args(&fields)?,
        sampling: sampling::sampling(&fields, rules, seed)?,
        output_tokens_max: sampling::output_limit(&fields)?,
        stop: sampling::stop_strings(&fields)?,
        choices: fields.integer("n", 1, rules.limits.choices_max.into())?.unwrap_or(1) as u32,
        streamed: fields.flag("stream")?,
        begins_early: false,
        headers: sampling::hint_headers(headers, &rules.hints.headers),
        extensions,
        idempotency: None,
    };
    Ok((request, style(&fields)?))
}

fn messages(fields: &Fields<'_>, list: Option<Vec<Bytes>>, rules: &Rules<'_>) -> Result<Vec<Item>, Refusal> {
    let list = list.ok_or_else(|| fields.wrong("messages", "a list of messages"))?;
    if list.is_empty() {
        return Err(Refusal::field("messages", "`messages` must have at least one message"));
    }
    let dialect = Dialect { kind: DIALECT.kind ^ rules.tenant, ..DIALECT };
    list.into_iter().enumerate().map(|(i, json)| rules.prompts.item(dialect, json, i)).collect()
}

/// Reads and checks one message.
fn message(json: &str, index: usize) -> Result<Translated, Refusal> {
    let value = fields::json(json.as_bytes())?;
    let message = Fields::at(&value, &format!("messages[{index}]"))?;
    let role = message.text("role")?.ok_or_else(|| message.wrong("role", "a role"))?;
    const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];
    if !ROLES.contains(&role) {
        return Err(message.wrong("role", &format!("one of {}", ROLES.join(", "))));
    }
    match message.get("content") {
        Some(Value::String(_) | Value::Array(_)) => {}
        None if role == "assistant" => {}
        _ => return Err(message.wrong("content", "a string or a list of parts")),
    }
    check_calls(&message)?;
    let marks = marks::of_message(&value);
    Ok(Translated { messages: vec![value], marks })
}

fn check_calls(message: &Fields<'_>) -> Result<(), Refusal> {
    for (i, call) in message.list("tool_calls")?.into_iter().flatten().enumerate() {
        let call = Fields::at(call, &message.path(&format!("tool_calls[{i}]")))?;
        let function = call.object("function")?.ok_or_else(|| call.wrong("function", "an object"))?;
        function.text("name")?.ok_or_else(|| function.wrong("name", "the name of a function"))?;
        if let Some(arguments) = function.get("arguments")
            && !(arguments.is_string() || arguments.is_object())
        {
            return Err(function.wrong("arguments", "a string with JSON"));
        }
    }
    Ok(())
}

fn tools(json: Option<&Bytes>, rules: &Rules<'_>) -> Result<Arc<ReadTools>, Refusal> {
    let Some(json) = json else { return Ok(Arc::default()) };
    rules.prompts.tools(TOOLS ^ rules.tenant, json, || {
        let list = fields::json(json)?;
        let body = json!({ "tools": list });
        read_tools(Fields::body(&body)?.list("tools")?.map(Vec::as_slice).unwrap_or_default())
    })
}

fn read_tools(list: &[Value]) -> Result<ReadTools, Refusal> {
    let mut functions = Vec::new();
    for (i, tool) in list.iter().enumerate() {
        let path = format!("tools[{i}]");
        let object = Fields::at(tool, &path)?;
        if object.text("type")?.unwrap_or("function") != "function" {
            // Tools that a vendor hosts cannot be called here, and must not break the caller.
            continue;
        }
        let function = object.object("function")?.ok_or_else(|| object.wrong("function", "an object"))?;
        function.text("name")?.ok_or_else(|| function.wrong("name", "the name of a function"))?;
        function.object("parameters")?;
        // A tool that is to be found first is no part of the prompt until it is.
        if !(object.flag("defer_loading")? || function.flag("defer_loading")?) {
            functions.push(marks::unmarked(tool));
        }
    }
    let marks = list.iter().filter_map(marks::of_tool).collect();
    Ok(ReadTools { tools: (!functions.is_empty()).then(|| functions.into()), marks })
}

fn tool_choice(fields: &Fields<'_>, tools: Option<&[Value]>) -> Result<ToolChoice, Refusal> {
    const WANTED: &str = "\"none\", \"auto\", \"required\" or an object that names a function";
    let choice = match fields.get("tool_choice") {
        None if tools.is_some() => ToolChoice::Auto,
        None => ToolChoice::None,
        Some(Value::String(word)) => match word.as_str() {
            "none" => ToolChoice::None,
            "auto" if tools.is_some() => ToolChoice::Auto,
            "auto" => ToolChoice::None,
            "required" => ToolChoice::Required,
            _ => return Err(fields.wrong("tool_choice", WANTED)),
        },
        Some(Value::Object(_)) => {
            let choice = fields.object("tool_choice")?.ok_or_else(|| fields.wrong("tool_choice", WANTED))?;
            let function = choice.object("function")?.ok_or_else(|| fields.wrong("tool_choice", WANTED))?;
            let name = function.text("name")?.ok_or_else(|| function.wrong("name", "a function's name"))?;
            ToolChoice::Named(name.to_owned())
        }
        Some(_) => return Err(fields.wrong("tool_choice", WANTED)),
    };
    let known: Vec<&str> =
        tools.unwrap_or_default().iter().filter_map(|t| t["function"]["name"].as_str()).collect();
    match &choice {
        ToolChoice::Required if known.is_empty() => {
            Err(Refusal::field("tool_choice", "`tool_choice` is \"required\", but `tools` has no function"))
        }
        ToolChoice::Named(name) if !known.contains(&name.as_str()) => {
            let message = format!(
                "`tool_choice` names the function `{name}`, which is not in `tools` ({})",
                known.join(", ")
            );
            Err(Refusal::field("tool_choice", message))
        }
        _ => Ok(choice),
    }
}

fn template_args(fields: &Fields<'_>) -> Result<Map<String, Value>, Refusal> {
    fields.object("chat_template_kwargs")?;
    Ok(fields.get("chat_template_kwargs").and_then(Value::as_object).cloned().unwrap_or_default())
}

fn parallel_calls(fields: &Fields<'_>) -> Result<bool, Refusal> {
    Ok(fields.get("parallel_tool_calls").is_none() || fields.flag("parallel_tool_calls")?)
}

fn style(fields: &Fields<'_>) -> Result<Style, Refusal> {
    let options = fields.object("stream_options")?;
    let usage = options.map(|options| options.flag("include_usage")).transpose()?.unwrap_or_default();
    Ok(Style { usage: usage && fields.flag("stream")? })
}
