//! The response object: what of it stays the same, and what its state adds.
//!
//! **Invariant:** every object has every key that OpenAI's API requires, null where there is nothing to say.

use serde_json::{Map, Value, json};

use super::cache::CacheOptions;
use super::tools::Tools;
use crate::answer::{Answer, Usage};
use crate::api::fields::Fields;
use crate::request::Refusal;

/// Chosen: OpenAI's own limits.
const METADATA_PAIRS_MAX: usize = 16;
const METADATA_KEY_CHARS_MAX: usize = 64;
const METADATA_VALUE_CHARS_MAX: usize = 512;

/// What stays the same from `response.created` to the end.
#[derive(Clone, Debug)]
pub(super) struct Head(Map<String, Value>);

/// What only the host knows of a response.
pub(super) struct Facts<'a> {
    pub(super) id: String,
    pub(super) created_s: u64,
    pub(super) model: &'a str,
    pub(super) tools: &'a Tools,
    pub(super) cache: &'a CacheOptions,
    pub(super) store: bool,
    /// What the model's own configuration says of sampling.
    pub(super) temperature: f32,
    pub(super) top_p: f32,
    pub(super) presence_penalty: f32,
    pub(super) frequency_penalty: f32,
}

/// How far a response is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    InProgress,
    Completed,
    /// The output limit ended it.
    Incomplete,
    Failed,
}

impl Status {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
        }
    }

    /// The event that says so.
    pub(super) fn event(self) -> &'static str {
        match self {
            Self::InProgress => "response.in_progress",
            Self::Completed => "response.completed",
            Self::Incomplete => "response.incomplete",
            Self::Failed => "response.failed",
        }
    }
}

impl Head {
    /// From a body and what the host adds. Errors: a field that is only repeated, and has a form that callers could
    /// not read.
    pub(super) fn of(body: &Fields<'_>, facts: &Facts<'_>) -> Result<Self, Refusal> {
        let or_null = |name: &str| body.get(name).cloned().unwrap_or(Value::Null);
        let or_number = |name: &str, default: f32| body.get(name).cloned().unwrap_or_else(|| shown(default));
        let mut head = Map::new();
        let mut set = |name: &str, value: Value| drop(head.insert(name.to_owned(), value));
        set("id", facts.id.as_str().into());
        set("object", "response".into());
        set("created_at", facts.created_s.into());
        set("completed_at", Value::Null);
        set("status", Value::Null);
        set("incomplete_details", Value::Null);
        set("model", facts.model.into());
        set("previous_response_id", or_null("previous_response_id"));
        set("instructions", or_null("instructions"));
        set("output", json!([]));
        set("error", Value::Null);
        set("tools", facts.tools.echo.clone().into());
        set("tool_choice", body.get("tool_choice").cloned().unwrap_or_else(|| "auto".into()));
        set("truncation", body.text("truncation")?.unwrap_or("disabled").into());
        set("parallel_tool_calls", body.get("parallel_tool_calls").cloned().unwrap_or(true.into()));
        set("text", text(body)?);
        set("top_p", or_number("top_p", facts.top_p));
        set("presence_penalty", or_number("presence_penalty", facts.presence_penalty));
        set("frequency_penalty", or_number("frequency_penalty", facts.frequency_penalty));
        set("top_logprobs", body.get("top_logprobs").cloned().unwrap_or(0.into()));
        set("temperature", or_number("temperature", facts.temperature));
        set("reasoning", reasoning(body)?);
        set("usage", Value::Null);
        set("max_output_tokens", or_null("max_output_tokens"));
        set("max_tool_calls", or_null("max_tool_calls"));
        set("store", facts.store.into());
        set("background", false.into());
        set("service_tier", "default".into());
        set("metadata", metadata(body)?);
        set("safety_identifier", or_null("safety_identifier"));
        set("prompt_cache_key", or_null("prompt_cache_key"));
        for name in ["user", "prompt_cache_retention"] {
            if let Some(value) = body.get(name) {
                set(name, value.clone());
            }
        }
        if let Some(options) = facts.cache.echo() {
            set("prompt_cache_options", options);
        }
        Ok(Self(head))
    }

    /// The id.
    pub(super) fn id(&self) -> &str {
        self.0["id"].as_str().unwrap_or_default()
    }

    /// The object in a state; `more` replaces what changes.
    pub(super) fn object(&self, status: Status, output: &[Value], more: Vec<(&str, Value)>) -> Value {
        let mut object = self.0.clone();
        object.insert("status".into(), status.as_str().into());
        object.insert("output".into(), output.to_vec().into());
        if status == Status::Incomplete {
            object.insert("incomplete_details".into(), json!({ "reason": "max_output_tokens" }));
        }
        for (name, value) in more {
            object.insert(name.to_owned(), value);
        }
        object.into()
    }
}

/// Tokens as the Responses API counts them. What a prompt writes into the cache are its whole blocks that were not
/// found there.
pub(super) fn usage_json(answer: &Answer) -> Value {
    let Usage { prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens } = answer.usage();
    let block_tokens = answer.pinned.app.config.kv.block_tokens;
    let whole = answer.pinned.prompt.blocks.len() as u32 * block_tokens;
    usage_of(
        (prompt_tokens, cached_tokens, whole.saturating_sub(cached_tokens)),
        (completion_tokens, reasoning_tokens),
    )
}

/// The same of plain numbers: input, cached, written; output, reasoning.
pub(super) fn usage_of((input, cached, written): (u32, u32, u32), (output, reasoning): (u32, u32)) -> Value {
    json!({
        "input_tokens": input,
        "input_tokens_details": { "cached_tokens": cached, "cache_write_tokens": written },
        "output_tokens": output,
        "output_tokens_details": { "reasoning_tokens": reasoning },
        "total_tokens": input + output,
    })
}

/// A number as a person would write it: the nearest `f64` of 0.7 is not that of the `f32`.
fn shown(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn text(body: &Fields<'_>) -> Result<Value, Refusal> {
    let text = body.object("text")?;
    let verbosity = text.as_ref().map(|t| t.text("verbosity")).transpose()?.flatten().unwrap_or("medium");
    let format = text.as_ref().and_then(|t| t.get("format")).cloned();
    Ok(json!({ "format": format.unwrap_or_else(|| json!({ "type": "text" })), "verbosity": verbosity }))
}

fn reasoning(body: &Fields<'_>) -> Result<Value, Refusal> {
    let reasoning = body.object("reasoning")?;
    let word = |name: &str| reasoning.as_ref().map(|r| r.text(name)).transpose().map(Option::flatten);
    Ok(json!({ "effort": word("effort")?, "summary": word("summary")? }))
}

fn metadata(body: &Fields<'_>) -> Result<Value, Refusal> {
    body.object("metadata")?;
    let Some(pairs) = body.get("metadata").and_then(Value::as_object) else { return Ok(json!({})) };
    let fits = |(key, value): (&String, &Value)| {
        let short = value.as_str().is_some_and(|text| text.chars().count() <= METADATA_VALUE_CHARS_MAX);
        short && key.chars().count() <= METADATA_KEY_CHARS_MAX
    };
    match pairs.len() <= METADATA_PAIRS_MAX && pairs.iter().all(fits) {
        true => Ok(pairs.clone().into()),
        false => Err(body.wrong(
            "metadata",
            "up to 16 pairs of a key of up to 64 characters and a string of up to 512 characters",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const REQUIRED: &str = "id object created_at completed_at status incomplete_details model \
        previous_response_id instructions output error tools tool_choice truncation parallel_tool_calls text top_p \
        presence_penalty frequency_penalty top_logprobs temperature reasoning usage max_output_tokens max_tool_calls \
        store background service_tier metadata safety_identifier prompt_cache_key";

    fn head(body: Value) -> Result<Head, String> {
        let facts = Facts {
            id: "resp_1".into(),
            created_s: 5,
            model: "m",
            tools: &Tools::default(),
            cache: &CacheOptions::default(),
            store: true,
            temperature: 0.7,
            top_p: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
        };
        Head::of(&Fields::body(&body).expect("an object"), &facts).map_err(|e| e.to_string())
    }

    #[test]
    fn every_state_has_every_key() {
        let head = head(json!({})).expect("an empty body");
        for status in [Status::InProgress, Status::Completed, Status::Incomplete, Status::Failed] {
            let object = head.object(status, &[], vec![]);
            for key in REQUIRED.split_whitespace() {
                assert!(object.get(key).is_some(), "{key}");
            }
            assert_eq!(object["status"], status.as_str());
        }
        let object = head.object(Status::Incomplete, &[json!(1)], vec![("completed_at", 7.into())]);
        assert_eq!(object["incomplete_details"]["reason"], "max_output_tokens");
        assert_eq!((&object["temperature"], &object["completed_at"]), (&json!(0.7), &json!(7)));
    }

    #[test]
    fn a_response_repeats_what_was_asked() {
        let body = json!({
            "temperature": 0.25, "top_logprobs": 3, "metadata": {"a": "b"}, "text": {"verbosity": "low"},
            "reasoning": {"effort": "high"}, "user": "u", "instructions": "i", "parallel_tool_calls": false,
        });
        let object = head(body.clone()).expect("a right body").object(Status::InProgress, &[], vec![]);
        for key in ["temperature", "top_logprobs", "metadata", "user", "instructions", "parallel_tool_calls"]
        {
            assert_eq!(object[key], body[key], "{key}");
        }
        assert_eq!(object["text"], json!({"format": {"type": "text"}, "verbosity": "low"}));
        assert_eq!(object["reasoning"], json!({"effort": "high", "summary": null}));
    }

    #[test]
    fn metadata_that_is_too_much_is_refused_by_name() {
        for wrong in
            [json!(3), json!({"a": 1}), json!({"a": "x".repeat(513)}), json!({ ("k".repeat(65)): "v" })]
        {
            let refused = head(json!({ "metadata": wrong })).expect_err("it is too much");
            assert!(refused.starts_with("`metadata` must be"), "{refused}");
        }
        let many: Map<String, Value> = (0..17).map(|i| (i.to_string(), "v".into())).collect();
        assert!(head(json!({ "metadata": many })).is_err());
    }
}
