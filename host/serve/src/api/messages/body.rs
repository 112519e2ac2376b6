//! The body of a request: which fields there are, and what of them is asked.

use axum::http::HeaderMap;
use serde_json::{Map, Value};

use super::conversation;
use super::diagnosis::Diagnosis;
use super::tools::{self, Tools};
use crate::api::fields::Fields;
use crate::api::format;
use crate::api::marks::{self, Mark};
use crate::api::sampling::{self, Rules, STOP_STRINGS_MAX};
use crate::ctx::mix;
use crate::request::{Input, Protocol, Refusal, Request, ToolChoice};

/// How a caller wants its answer written.
#[derive(Debug)]
pub(super) struct Style {
    /// The name by which it calls the model.
    pub(super) model: String,
    /// Its limit, before the context clamps it.
    pub(super) output_tokens_max: u32,
    /// Whether reasoning is kept back, and only its signature is shown.
    pub(super) thinking_omitted: bool,
    /// Where it wants its prompt cached up to.
    pub(super) marks: Vec<Mark>,
    /// What it wants to know about its last answer.
    pub(super) diagnosis: Option<Diagnosis>,
}

/// Parses and checks a body; also how its caller wants the answer written.
pub(super) fn parse(
    body: &Value,
    headers: &HeaderMap,
    rules: &Rules<'_>,
    seed: u64,
) -> Result<(Request, Style), Refusal> {
    let fields = Fields::body(body)?;
    let limit = fields.integer("max_tokens", 0, i64::MAX)?;
    let limit = limit.ok_or_else(|| fields.wrong("max_tokens", "an integer of at least 0"))?;
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    let (mut request, marks) = request(&fields, headers, rules, seed)?;
    refuse_prefill(&request)?;
    request.output_tokens_max = Some(limit);
    if limit == 0 && request.tools.is_some() {
        // The beginning of a call that nobody makes is not part of what is warmed.
        request.tool_choice = ToolChoice::Auto;
    }
    let style = Style {
        model: fields.text("model")?.unwrap_or_default().to_owned(),
        output_tokens_max: limit,
        thinking_omitted: thinking_omitted(&fields)?,
        diagnosis: Diagnosis::parse(&fields, &request)?,
        marks,
    };
    Ok((request, style))
}

/// What makes the prompt and how tokens are drawn, and where the prompt is marked. A count of tokens needs no more.
pub(super) fn request(
    fields: &Fields<'_>,
    headers: &HeaderMap,
    rules: &Rules<'_>,
    seed: u64,
) -> Result<(Request, Vec<Mark>), Refusal> {
    fields.text("model")?.ok_or_else(|| fields.wrong("model", "the name of a model"))?;
    let adapter = sampling::adapter(fields, rules)?;
    let tools = Tools::parse(fields)?;
    let (tool_choice, parallel_calls) = tools::choice(fields, &tools)?;
    let (messages, marks) = conversation::parse(fields, &tools, rules)?;
    let mut extensions = sampling::extensions(fields, &rules.hints.extensions)?;
    extensions.extend(marks::written(&marks));
    let streamed = fields.flag("stream")?;
    let request = Request {
        id: format!("msg_{:016x}{:016x}", mix(seed), seed),
        tenant: String::new(),
        protocol: Protocol::Messages,
        adapter,
        input: Input::Conversation,
        messages: messages.into(),
        tools: tools.offered().filter(|_| tool_choice != ToolChoice::None).map(Into::into),
        tool_choice,
        parallel_calls,
        format: format::parse(fields, &["output_config.format", "output_format"])?,
        template_args: template_args(fields)?,
        sampling: sampling::sampling(fields, rules, seed)?,
        output_tokens_max: None,
        stop: stop_sequences(fields)?,
        choices: 1,
        streamed,
        begins_early: streamed,
        headers: sampling::hint_headers(headers, &rules.hints.headers),
        extensions,
        idempotency: None,
    };
    Ok((request, marks))
}

/// Templates close the turn that they are given; the words are those that clients of models without prefill know.
fn refuse_prefill(request: &Request) -> Result<(), Refusal> {
    match request.messages.plain().last() {
        Some(last) if last["role"] == "assistant" => Err(Refusal::field(
            "messages",
            "this model does not support assistant message prefill: the conversation must end with a user message",
        )),
        _ => Ok(()),
    }
}

fn stop_sequences(fields: &Fields<'_>) -> Result<Vec<String>, Refusal> {
    let wanted = format!("a list of up to {STOP_STRINGS_MAX} strings, none of them empty");
    let list = fields.list("stop_sequences")?.map(Vec::as_slice).unwrap_or_default();
    let stops: Option<Vec<String>> = list.iter().map(|stop| stop.as_str().map(str::to_owned)).collect();
    stops
        .filter(|stops| stops.len() <= STOP_STRINGS_MAX && stops.iter().all(|stop| !stop.is_empty()))
        .ok_or_else(|| fields.wrong("stop_sequences", &wanted))
}

/// Whether to think, in the words of templates that can be told. Budgets and efforts are advice that none of them take.
fn template_args(fields: &Fields<'_>) -> Result<Map<String, Value>, Refusal> {
    let Some(thinking) = fields.object("thinking")? else { return Ok(Map::new()) };
    thinking.integer("budget_tokens", 0, i64::MAX)?;
    let enabled = match thinking.text("type")? {
        Some("enabled" | "adaptive" | "between_tools") => true,
        Some("disabled") => false,
        _ => return Err(thinking.wrong("type", "\"enabled\", \"adaptive\" or \"disabled\"")),
    };
    Ok(Map::from_iter([("enable_thinking".to_owned(), enabled.into())]))
}

fn thinking_omitted(fields: &Fields<'_>) -> Result<bool, Refusal> {
    let Some(thinking) = fields.object("thinking")? else { return Ok(false) };
    // Updates on what is thought are what is thought.
    Ok(thinking.text("display")? == Some("omitted"))
}
