//! What the bodies of all protocols have in common: the model's name, how tokens are drawn, what policies may read.
//!
//! **Invariant:** every refusal names its field; limits that are larger than the model's are clamped later, never refused.

use axum::http::HeaderMap;
use engine::{AdapterId, SamplingParams};
use serde_json::Value;

use super::fields::{Fields, kind};
use super::matches_any;
use crate::auth::is_credential;
use crate::config::{Adapter, HintSources, Limits};
use crate::prompt::Prompts;
use crate::request::Refusal;

/// Chosen: as many as fit a matcher that is looked at on each token; OpenAI allows 4.
pub(super) const STOP_STRINGS_MAX: usize = 16;
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
    /// Further names that callers may use for it.
    pub aliases: &'a [String],
    /// Its adapters, each with a name of its own.
    pub adapters: &'a [Adapter],
    /// Number of token ids.
    pub vocab: u32,
    /// What the model's own configuration says of sampling.
    pub sampling: &'a SamplingParams,
    /// Bounds.
    pub limits: &'a Limits,
    /// What reaches hint policies.
    pub hints: &'a HintSources,
    /// What was read before.
    pub prompts: &'a Prompts,
    /// Whose body it is, or 0: nobody learns from the time that it takes what others sent.
    pub tenant: u64,
}

/// The adapter that a body names as its model; none where it names the model itself.
pub(super) fn adapter(fields: &Fields<'_>, rules: &Rules<'_>) -> Result<Option<AdapterId>, Refusal> {
    let named = fields.text("model")?;
    let place = rules.adapters.iter().position(|adapter| Some(adapter.name.as_str()) == named);
    match named {
        _ if place.is_some() => Ok(place.map(|place| AdapterId(place as u32))),
        Some(model) if model != rules.model && !matches_any(model, rules.aliases) => {
            let served = rules.model.to_owned();
            Err(Refusal::UnknownModel { model: model.chars().take(128).collect(), served })
        }
        // There is one model; a caller that names none means it.
        _ => Ok(None),
    }
}

pub(super) fn sampling(fields: &Fields<'_>, rules: &Rules<'_>, seed: u64) -> Result<SamplingParams, Refusal> {
    Ok(SamplingParams { logprobs: logprobs(fields)?, ..drawing(fields, rules, seed)? })
}

/// The same without log-probabilities, which not every API asks for in the same words.
pub(super) fn drawing(fields: &Fields<'_>, rules: &Rules<'_>, seed: u64) -> Result<SamplingParams, Refusal> {
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
        logprobs: None,
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

pub(super) fn output_limit(fields: &Fields<'_>) -> Result<Option<u32>, Refusal> {
    for name in ["max_completion_tokens", "max_tokens"] {
        if let Some(n) = fields.integer(name, 1, i64::MAX)? {
            return Ok(Some(u32::try_from(n).unwrap_or(u32::MAX)));
        }
    }
    Ok(None)
}

pub(super) fn stop_strings(fields: &Fields<'_>) -> Result<Vec<String>, Refusal> {
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

/// Headers whose name is on the list; a `*` at the end of a pattern takes every ending.
pub(super) fn hint_headers(headers: &HeaderMap, allowed: &[String]) -> Vec<(String, String)> {
    headers
        .iter()
        // A pattern such as `x-*` takes many headers, but never those with credentials.
        .filter(|(name, _)| matches_any(name.as_str(), allowed) && !is_credential(name.as_str()))
        .filter(|(_, value)| value.len() <= HEADER_VALUE_BYTES_MAX)
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
        .collect()
}

/// What of a body hint policies may read, by its path.
pub(super) fn extensions(fields: &Fields<'_>, allowed: &[String]) -> Result<Vec<(String, String)>, Refusal> {
    let mut found = Vec::new();
    for name in allowed {
        let Some(value) = at(fields, name) else { continue };
        if name == "nvext" && !value.is_object() {
            return Err(Refusal::field("nvext", format!("`nvext` must be an object, got {}", kind(value))));
        }
        let text = value.to_string();
        match (text.len() > EXTENSION_BYTES_MAX, name.as_str()) {
            (false, _) => found.push((name.clone(), text)),
            (true, "nvext") => {
                let message = format!(
                    "`nvext` must be at most {EXTENSION_BYTES_MAX} bytes of JSON, got {}",
                    text.len()
                );
                return Err(Refusal::field(name, message));
            }
            // It was not written for us: as good as absent.
            (true, _) => {}
        }
    }
    Ok(found)
}

/// A field of a body, or one of an object in it: `a.b`.
fn at<'a>(fields: &Fields<'a>, path: &str) -> Option<&'a Value> {
    let mut names = path.split('.');
    let top = fields.get(names.next()?)?;
    names.try_fold(top, |object, name| object.get(name).filter(|value| !value.is_null()))
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};
    use serde_json::json;

    use super::*;

    fn check(body: Value, expected: &[(&str, &str)]) {
        let fields = Fields::body(&body).expect("it is an object");
        let found = extensions(&fields, &HintSources::default().extensions).expect("none is refused");
        let found: Vec<(&str, &str)> =
            found.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_field_of_an_object_is_read_without_the_rest_of_it() {
        let schema = "x".repeat(EXTENSION_BYTES_MAX);
        check(
            json!({ "output_config": { "effort": "high", "format": { "schema": schema } } }),
            &[("output_config.effort", "\"high\"")],
        );
        check(json!({ "output_config": "high", "reasoning": { "effort": null } }), &[]);
    }

    #[test]
    fn what_is_too_long_and_was_not_written_for_us_is_left_out() {
        let long = "x".repeat(EXTENSION_BYTES_MAX);
        check(
            json!({ "metadata": { "note": long }, "service_tier": "flex" }),
            &[("service_tier", "\"flex\"")],
        );
        let body = json!({ "nvext": { "note": long } });
        let fields = Fields::body(&body).expect("it is an object");
        assert!(extensions(&fields, &HintSources::default().extensions).is_err());
    }

    #[test]
    fn every_header_of_an_agent_is_let_through_by_default() {
        let agents = [
            "session-id",
            "thread-id",
            "x-claude-1p-request-class",
            "x-claude-code-agent-id",
            "x-claude-code-prev-tool-durations",
            "x-claude-code-prompt-id",
            "x-claude-code-request-class",
            "x-claude-code-session-id",
            "x-codex-parent-thread-id",
            "x-codex-turn-metadata",
            "x-codex-window-id",
            "x-dynamo-session-final",
            "x-openai-subagent",
            "x-parent-session-id",
            "x-session-affinity",
            "x-session-id",
        ];
        let name = |name: &'static str| (HeaderName::from_static(name), HeaderValue::from_static("v"));
        let headers: HeaderMap = agents.into_iter().chain(["x-api-key", "accept"]).map(name).collect();
        let mut read = hint_headers(&headers, &HintSources::default().headers);
        read.sort();
        let read: Vec<&str> = read.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(read, agents);
    }
}
