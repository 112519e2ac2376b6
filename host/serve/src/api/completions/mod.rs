//! `POST /v1/completions`: a text, or tokens, as they are, without a template.
//!
//! Several prompts of one call are several requests with one answer: each is admitted and routed for itself.
//! **Invariant:** what is accepted here can be served; every refusal names its field.

mod reply;

use axum::http::HeaderMap;
use serde_json::{Map, Value};

pub use self::reply::{Reply, Style};

use super::fields::{self, Fields};
use super::sampling::{self, Rules};
use crate::ctx::mix;
use crate::request::{Format, Input, Protocol, Refusal, Request, ToolChoice};

/// OpenAI's own limit for a call that names none.
const OUTPUT_TOKENS: u32 = 16;
/// Chosen: as many as chat completions give.
const LOGPROBS_MAX: i64 = 20;

/// Parses and checks a body; also how its caller wants the answer written.
pub fn parse(
    body: &[u8],
    headers: &HeaderMap,
    rules: &Rules<'_>,
    seed: u64,
) -> Result<(Request, Style), Refusal> {
    let value = fields::json(body)?;
    let fields = Fields::body(&value)?;
    let adapter = sampling::adapter(&fields, rules)?;
    let mut prompts = prompts(&fields, rules)?;
    let choices = fields.integer("n", 1, rules.limits.choices_max.into())?.unwrap_or(1) as u32;
    refuse_what_is_not_there(&fields, choices)?;
    let mut sampling = sampling::drawing(&fields, rules, seed)?;
    sampling.logprobs = fields.integer("logprobs", 0, LOGPROBS_MAX)?.map(|top| top as u32);
    let style = style(&fields, &prompts, sampling.logprobs.is_some())?;
    let input = match prompts.len() {
        1 => prompts.remove(0),
        _ => Input::Batch(prompts),
    };
    let limit = fields.integer("max_tokens", 0, i64::MAX)?;
    let request = Request {
        id: format!("cmpl-{:016x}{:016x}", mix(seed), seed),
        tenant: String::new(),
        protocol: Protocol::Completions,
        adapter,
        input,
        messages: Vec::<Value>::new().into(),
        tools: None,
        tool_choice: ToolChoice::None,
        parallel_calls: false,
        format: Format::Text,
        template_args: Map::new(),
        sampling,
        output_tokens_max: Some(limit.map_or(OUTPUT_TOKENS, |n| u32::try_from(n).unwrap_or(u32::MAX))),
        stop: sampling::stop_strings(&fields)?,
        choices,
        streamed: fields.flag("stream")?,
        begins_early: false,
        headers: sampling::hint_headers(headers, &rules.hints.headers),
        extensions: sampling::extensions(&fields, &rules.hints.extensions)?,
        idempotency: None,
    };
    Ok((request, style))
}

/// A string, a list of token ids, or a list of either: one prompt or several.
fn prompts(fields: &Fields<'_>, rules: &Rules<'_>) -> Result<Vec<Input>, Refusal> {
    const WANTED: &str = "a string, a list of strings, a list of token ids, or a list of such lists";
    let wrong = || fields.wrong("prompt", WANTED);
    let prompts = match fields.get("prompt") {
        Some(Value::String(text)) => vec![Input::Text(text.clone())],
        Some(Value::Array(ids)) if ids.first().is_some_and(Value::is_number) => {
            vec![tokens("prompt", ids, rules.vocab)?]
        }
        Some(Value::Array(list)) if !list.is_empty() => {
            let prompt = |(i, prompt): (usize, &Value)| match prompt {
                Value::String(text) if list[0].is_string() => Ok(Input::Text(text.clone())),
                Value::Array(ids) if list[0].is_array() => tokens(&format!("prompt[{i}]"), ids, rules.vocab),
                _ => Err(wrong()),
            };
            list.iter().enumerate().map(prompt).collect::<Result<_, _>>()?
        }
        _ => return Err(wrong()),
    };
    let max = rules.limits.requests_max;
    if prompts.len() > max {
        let message = format!(
            "`prompt` has {} prompts, but this host serves at most {max} at once; send fewer",
            prompts.len()
        );
        return Err(Refusal::field("prompt", message));
    }
    Ok(prompts)
}

fn tokens(path: &str, ids: &[Value], vocab: u32) -> Result<Input, Refusal> {
    let token = |(i, id): (usize, &Value)| {
        let known = id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < vocab);
        known.ok_or_else(|| {
            let field = format!("{path}[{i}]");
            Refusal::field(&*field, format!("`{field}` must be a token id from 0 to {}", vocab - 1))
        })
    };
    if ids.is_empty() {
        return Err(Refusal::field(path, format!("`{path}` must have at least one token")));
    }
    ids.iter().enumerate().map(token).collect::<Result<_, _>>().map(Input::Tokens)
}

/// What would change the answer and cannot be done is refused rather than ignored.
fn refuse_what_is_not_there(fields: &Fields<'_>, choices: u32) -> Result<(), Refusal> {
    if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        let message =
            "`suffix` is not supported: the model writes what follows a prompt, and nothing into it";
        return Err(Refusal::field("suffix", message));
    }
    match fields.integer("best_of", 1, i64::MAX)? {
        Some(best_of) if best_of != i64::from(choices) => {
            let message = format!(
                "`best_of` must be equal to `n`, which is {choices}: every completion is returned, got {best_of}"
            );
            Err(Refusal::field("best_of", message))
        }
        _ => Ok(()),
    }
}

fn style(fields: &Fields<'_>, prompts: &[Input], logprobs: bool) -> Result<Style, Refusal> {
    let options = fields.object("stream_options")?;
    let usage = options.map(|options| options.flag("include_usage")).transpose()?.unwrap_or_default();
    let echo = fields.flag("echo")?;
    if echo && logprobs {
        let message = "`echo` cannot be combined with `logprobs`: there are no log-probabilities of prompts";
        return Err(Refusal::field("echo", message));
    }
    let echo = if echo { prompts.to_vec() } else { Vec::new() };
    Ok(Style { usage: usage && fields.flag("stream")?, echo })
}

#[cfg(test)]
mod tests;
