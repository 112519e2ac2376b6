//! `POST /v1/chat/completions`: the body becomes a [`Request`].
//!
//! **Invariant:** what is accepted here can be served; every refusal names its field.

use axum::http::HeaderMap;
use engine::SamplingParams;
use serde_json::{Map, Value};

use super::fields::{Fields, kind};
use super::{format, marks, matches_any};
use crate::auth::is_credential;
use crate::config::{HintSources, Limits};
use crate::ctx::mix;
use crate::request::{Refusal, Request, Stream, ToolChoice};

/// Chosen: as many as fit a matcher that is looked at on each token; OpenAI allows 4.
const STOP_STRINGS_MAX: usize = 16;
/// Chosen: OpenAI's own limit.
const TOP_LOGPROBS_MAX: i64 = 20;
/// Chosen: what a hint plugin can parse within its budget.
const EXTENSION_BYTES_MAX: usize = 16 << 10;
/// Chosen: agent headers are ids and short JSON.
const HEADER_VALUE_BYTES_MAX: usize = 4 << 10;

/// What parsing needs to know of the host.
pub struct Rules<'a> {
    /// Name of the served model.
    pub model: &'a str,
    /// Number of token ids.
    pub vocab: u32,
    /// What the model's own configuration says of sampling.
    pub sampling: &'a SamplingParams,
    /// Bounds.
    pub limits: &'a Limits,
    /// What reaches hint policies.
    pub hints: &'a HintSources,
}

/// Parses and checks a body.
pub fn parse(body: &[u8], headers: &HeaderMap, rules: &Rules<'_>, seed: u64) -> Result<Request, Refusal> {
    let value: Value = serde_json::from_slice(body).map_err(|e| Refusal::Json(e.to_string()))?;
    let fields = Fields::body(&value)?;
    check_model(&fields, rules.model)?;
    let messages = messages(&fields)?;
    let tools = tools(&fields)?;
    let tool_choice = tool_choice(&fields, tools.as_deref())?;
    let mut extensions = extensions(&fields, &rules.hints.extensions)?;
    extensions.extend(marks::extension(&messages, fields.list("tools")?));
    let format = format::parse(&fields, &["response_format"])?;
    Ok(Request {
        id: format!("chatcmpl-{:016x}{:016x}", mix(seed), seed),
        tenant: String::new(),
        protocol: "openai-chat",
        messages,
        tools: tools.filter(|_| tool_choice != ToolChoice::None),
        tool_choice,
        parallel_calls: fields.get("parallel_tool_calls").is_none() || fields.flag("parallel_tool_calls")?,
        format,
        template_args: template_args(&fields)?,
        sampling: sampling(&fields, rules, seed)?,
        output_tokens_max: output_limit(&fields)?,
        stop: stop_strings(&fields)?,
        choices: fields.integer("n", 1, rules.limits.choices_max.into())?.unwrap_or(1) as u32,
        stream: stream(&fields)?,
        headers: hint_headers(headers, &rules.hints.headers),
        extensions,
    })
}

fn check_model(fields: &Fields<'_>, served: &str) -> Result<(), Refusal> {
    match fields.text("model")? {
        Some(model) if model != served => {
            Err(Refusal::UnknownModel { model: model.chars().take(128).collect(), served: served.to_owned() })
        }
        // There is one model; a caller that names none means it.
        _ => Ok(()),
    }
}

fn messages(fields: &Fields<'_>) -> Result<Vec<Value>, Refusal> {
    let list = fields.list("messages")?.ok_or_else(|| fields.wrong("messages", "a list of messages"))?;
    if list.is_empty() {
        return Err(Refusal::field("messages", "`messages` must have at least one message"));
    }
    for (i, message) in list.iter().enumerate() {
        let path = format!("messages[{i}]");
        let message = Fields::at(message, &path)?;
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
    }
    Ok(list.clone())
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

fn tools(fields: &Fields<'_>) -> Result<Option<Vec<Value>>, Refusal> {
    let Some(list) = fields.list("tools")? else { return Ok(None) };
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
        functions.push(marks::unmarked(tool));
    }
    Ok((!functions.is_empty()).then_some(functions))
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

fn sampling(fields: &Fields<'_>, rules: &Rules<'_>, seed: u64) -> Result<SamplingParams, Refusal> {
    let default = rules.sampling;
    let real = |name, min, max, default: f32| -> Result<f32, Refusal> {
        Ok(fields.number(name, min, max)?.map_or(default, |n| n as f32))
    };
    Ok(SamplingParams {
        temperature: real("temperature", 0.0, 2.0, default.temperature)?,
        top_k: fields
            .integer("top_k", -1, u32::MAX.into())?
            .map_or(default.top_k, |k| u32::try_from(k).unwrap_or(0)),
        top_p: real("top_p", 0.0, 1.0, default.top_p)?,
        min_p: real("min_p", 0.0, 1.0, default.min_p)?,
        repetition_penalty: real("repetition_penalty", 0.01, 10.0, default.repetition_penalty)?,
        presence_penalty: real("presence_penalty", -2.0, 2.0, default.presence_penalty)?,
        frequency_penalty: real("frequency_penalty", -2.0, 2.0, default.frequency_penalty)?,
        logit_bias: logit_bias(fields, rules.vocab)?,
        seed: fields.integer("seed", i64::MIN, i64::MAX)?.map_or(seed, |s| s as u64),
        logprobs: logprobs(fields)?,
    })
}

fn logit_bias(fields: &Fields<'_>, vocab: u32) -> Result<Vec<(u32, f32)>, Refusal> {
    const WANTED: &str = "an object of the model's token ids with numbers from -100 to 100";
    fields.object("logit_bias")?;
    let object = fields.get("logit_bias").and_then(Value::as_object);
    object
        .into_iter()
        .flatten()
        .map(|(token, bias)| {
            let bias = bias.as_f64().filter(|b| (-100.0..=100.0).contains(b));
            token
                .parse()
                .ok()
                .filter(|token| *token < vocab)
                .zip(bias.map(|b| b as f32))
                .ok_or_else(|| fields.wrong("logit_bias", WANTED))
        })
        .collect()
}

fn logprobs(fields: &Fields<'_>) -> Result<Option<u32>, Refusal> {
    let wanted = fields.flag("logprobs")?;
    let top = fields.integer("top_logprobs", 0, TOP_LOGPROBS_MAX)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as u32)),
        (false, Some(n)) if n > 0 => {
            Err(Refusal::field("top_logprobs", "`top_logprobs` needs `logprobs` to be true"))
        }
        (false, _) => Ok(None),
    }
}

fn output_limit(fields: &Fields<'_>) -> Result<Option<u32>, Refusal> {
    for name in ["max_completion_tokens", "max_tokens"] {
        if let Some(n) = fields.integer(name, 1, i64::MAX)? {
            return Ok(Some(u32::try_from(n).unwrap_or(u32::MAX)));
        }
    }
    Ok(None)
}

fn stop_strings(fields: &Fields<'_>) -> Result<Vec<String>, Refusal> {
    const WANTED: &str = "a string or a list of up to 16 strings, none of them empty";
    let stops: Vec<String> = match fields.get("stop") {
        None => Vec::new(),
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many
            .iter()
            .map(|v| v.as_str().map(str::to_owned).ok_or_else(|| fields.wrong("stop", WANTED)))
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(fields.wrong("stop", WANTED)),
    };
    if stops.len() > STOP_STRINGS_MAX || stops.iter().any(String::is_empty) {
        return Err(fields.wrong("stop", WANTED));
    }
    Ok(stops)
}

fn stream(fields: &Fields<'_>) -> Result<Stream, Refusal> {
    let streaming = fields.flag("stream")?;
    let usage = match fields.object("stream_options")? {
        Some(options) => options.flag("include_usage")?,
        None => false,
    };
    Ok(match (streaming, usage) {
        (false, _) => Stream::No,
        (true, false) => Stream::Events,
        (true, true) => Stream::EventsWithUsage,
    })
}

/// Headers whose name is on the list; a `*` at the end of a pattern takes every ending.
fn hint_headers(headers: &HeaderMap, allowed: &[String]) -> Vec<(String, String)> {
    headers
        .iter()
        // A pattern such as `x-*` takes many headers, but never those with credentials.
        .filter(|(name, _)| matches_any(name.as_str(), allowed) && !is_credential(name.as_str()))
        .filter(|(_, value)| value.len() <= HEADER_VALUE_BYTES_MAX)
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
        .collect()
}

fn extensions(fields: &Fields<'_>, allowed: &[String]) -> Result<Vec<(String, String)>, Refusal> {
    let mut found = Vec::new();
    for name in allowed {
        let Some(value) = fields.get(name) else { continue };
        if name == "nvext" && !value.is_object() {
            return Err(Refusal::field("nvext", format!("`nvext` must be an object, got {}", kind(value))));
        }
        let text = value.to_string();
        if text.len() > EXTENSION_BYTES_MAX {
            let message =
                format!("`{name}` must be at most {EXTENSION_BYTES_MAX} bytes of JSON, got {}", text.len());
            return Err(Refusal::field(name, message));
        }
        found.push((name.clone(), text));
    }
    Ok(found)
}
