//! The extensions of a body: `nvext`, `metadata`, `prompt_cache_key`, `service_tier`, and what asks for effort.
//!
//! A field of the wrong type is as good as absent: advice is never an error.

use crate::{ATTRIBUTE_BYTES_MAX, ATTRIBUTES_MAX, Lineage};
use pointsman_sdk::{HintsView, Value};
use serde_json::{Map, Value as Json};

/// Where each API lets a caller say how hard the model is to think.
const EFFORT: [&str; 3] = ["output_config.effort", "reasoning.effort", "reasoning_effort"];
/// Fields of `agent_hints` that have a place in the contract.
const KNOWN: [&str; 5] = ["priority", "strict_priority", "osl", "speculative_prefill", "latency_sensitivity"];

/// What the body says.
#[derive(Debug, Default)]
pub(crate) struct Body {
    agent_hints: Map<String, Json>,
    session_control: Map<String, Json>,
    cache_key: Option<String>,
    user: Option<String>,
    service_tier: Option<String>,
    effort: Option<String>,
}

/// Reads the extension objects; what is no JSON object is as good as absent.
pub(crate) fn read(view: &HintsView<'_>) -> Body {
    let mut body = Body::default();
    if let Some(Ok(Json::Object(mut nvext))) = view.extension("nvext").map(serde_json::from_str) {
        body.agent_hints = object(nvext.remove("agent_hints"));
        body.session_control = object(nvext.remove("session_control"));
    }
    let text = |name: &str| serde_json::from_str::<String>(view.extension(name)?).ok();
    body.cache_key = text("prompt_cache_key");
    body.service_tier = text("service_tier");
    body.effort = EFFORT.into_iter().find_map(text);
    let metadata = view.extension("metadata").and_then(|json| serde_json::from_str(json).ok());
    body.user = metadata.as_ref().and_then(|metadata: &Json| metadata["user_id"].as_str()).map(str::to_owned);
    body
}

fn object(json: Option<Json>) -> Map<String, Json> {
    match json {
        Some(Json::Object(object)) => object,
        _ => Map::new(),
    }
}

impl Body {
    pub(crate) fn lineage(&self) -> Option<Lineage> {
        let session = self.session_control.get("session_id")?.as_str()?.to_owned();
        Some(Lineage { session, parent: None })
    }

    /// The session that Claude Code names in `metadata.user_id`: a text with JSON, or one that ends in it.
    pub(crate) fn user(&self) -> Option<Lineage> {
        let user = self.user.as_deref()?;
        let session = match serde_json::from_str::<Json>(user) {
            Ok(user) => user["session_id"].as_str()?.to_owned(),
            Err(_) => user.rsplit_once("_session_")?.1.to_owned(),
        };
        Some(Lineage { session, parent: None })
    }

    /// The weakest word: a cache key says which requests share a prefix.
    pub(crate) fn cache_key(&self) -> Option<Lineage> {
        Some(Lineage { session: self.cache_key.clone()?, parent: None })
    }

    /// `latency_sensitivity` is the older name.
    pub(crate) fn priority(&self) -> Option<f32> {
        let number = |name| self.agent_hints.get(name).and_then(Json::as_f64);
        let priority = number("priority").or_else(|| number("latency_sensitivity"))? as f32;
        priority.is_finite().then_some(priority)
    }

    /// The tier of service that OpenAI's callers may ask for.
    pub(crate) fn service_tier(&self) -> Option<&str> {
        self.service_tier.as_deref()
    }

    /// How hard the model is to think, in the caller's word.
    pub(crate) fn effort(&self) -> Option<&str> {
        self.effort.as_deref()
    }

    pub(crate) fn strict_tier(&self) -> Option<u32> {
        self.count("strict_priority")
    }

    pub(crate) fn expected_output_tokens(&self) -> Option<u32> {
        self.count("osl").filter(|tokens| *tokens > 0)
    }

    pub(crate) fn speculative_prefill(&self) -> Option<bool> {
        self.agent_hints.get("speculative_prefill")?.as_bool()
    }

    pub(crate) fn closes_session(&self) -> bool {
        self.session_control.get("action").and_then(Json::as_str) == Some("close")
    }

    fn count(&self, name: &str) -> Option<u32> {
        Some(u32::try_from(self.agent_hints.get(name)?.as_u64()?).unwrap_or(u32::MAX))
    }

    /// Hints that the contract has no field for, for policies that know them.
    pub(crate) fn add_attributes(&self, attributes: &mut Vec<(String, Value)>) {
        for (name, json) in &self.agent_hints {
            let value = match json {
                Json::Bool(flag) => Value::Flag(*flag),
                Json::Number(number) => Value::Number(number.as_f64().unwrap_or_default()),
                Json::String(text) if text.len() <= ATTRIBUTE_BYTES_MAX => Value::Text(text.clone()),
                _ => continue,
            };
            let new = name.len() <= ATTRIBUTE_BYTES_MAX
                && !KNOWN.contains(&name.as_str())
                && !attributes.iter().any(|(known, _)| known == name);
            if new && attributes.len() < ATTRIBUTES_MAX {
                attributes.push((name.clone(), value));
            }
        }
    }
}
