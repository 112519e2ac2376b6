//! `prompt_cache_diagnostics`: why a prompt was not found in the cache as far as another response's.
//!
//! **Invariant:** nothing is said to be missed that was found.

use std::sync::Arc;

use serde_json::{Value, json};

use super::items::type_of;
use crate::answer::Answer;
use crate::api::fields::Fields;
use crate::lineage::{Divergence, Trace};
use crate::request::Request;

/// Fields of a body that a prompt or its place may depend on, and what OpenAI calls a change of each.
const PARAMETERS: [(&str, &str, &str); 4] = [
    ("prompt_cache_key", "key", "prompt_cache_key_changed"),
    ("text.format", "format", "text_format_changed"),
    ("text.verbosity", "verbosity", "verbosity_changed"),
    ("service_tier", "tier", "service_tier_changed"),
];

/// What a prompt is made of, and what it is to be compared with.
#[derive(Clone, Debug)]
pub(super) struct Lineage {
    trace: Trace,
    compare: Option<String>,
    /// Whether the request brings along what became of a longer conversation.
    compacted: bool,
}

impl Lineage {
    /// Of a request, the response to compare it with, and its own items.
    pub(super) fn of(
        request: &Request,
        fields: &Fields<'_>,
        (compare, input): (Option<String>, &[Value]),
    ) -> Self {
        let trace = PARAMETERS
            .iter()
            .fold(Trace::of(request), |trace, (path, name, _)| trace.with(name, value_at(fields, path)));
        let compacted = input.iter().any(|item| type_of(item) == "compaction");
        Self { trace, compare, compacted }
    }

    /// What is to be said of an answer that has ended, which is remembered by its id.
    pub(super) fn diagnosis(&self, answer: &Answer, tenant: &str, id: &str) -> Option<Value> {
        let app = &answer.pinned.app;
        let trace = self.trace.clone().with_tokens(answer.usage().prompt_tokens);
        let found = self.compare.as_ref().map(|compare| {
            let old = app.lineage.find(tenant, compare);
            said(&trace, old, (answer.usage().cached_tokens, app.config.kv.block_tokens), self.compacted)
        });
        app.lineage.keep(tenant, id, trace);
        found
    }
}

fn value_at<'a>(fields: &Fields<'a>, path: &str) -> &'a Value {
    let mut names = path.split('.');
    let first = names.next().and_then(|name| fields.get(name));
    names.fold(first.unwrap_or(&Value::Null), |value, name| &value[name])
}

fn said(
    trace: &Trace,
    old: Option<Arc<Trace>>,
    (cached_tokens, block_tokens): (u32, u32),
    compacted: bool,
) -> Value {
    let Some(old) = old else { return json!({ "type": "comparison_response_not_found" }) };
    let missed = trace.missed_tokens(&old, cached_tokens, block_tokens);
    if missed == 0 {
        return json!({ "type": "cache_hit" });
    }
    match reason(trace.compare(&old), compacted) {
        Some(reason) => json!({ "type": "cache_miss", "reason": reason, "cache_missed_tokens": missed }),
        // The prompt did not change: its pages had to give way, which OpenAI has no word for.
        None => json!({ "type": "unavailable" }),
    }
}

fn reason(divergence: Divergence, compacted: bool) -> Option<&'static str> {
    Some(match divergence {
        Divergence::None => return None,
        Divergence::Model => "model_changed",
        Divergence::Tools => "tools_changed",
        Divergence::System | Divergence::Messages { .. } if compacted => "context_compacted",
        Divergence::Messages { shorter: true, .. } => "context_compacted",
        Divergence::System | Divergence::Messages { .. } => "input_changed",
        Divergence::Parameter(name) => PARAMETERS
            .iter()
            .find(|(_, known, _)| *known == name)
            // What templates are told besides messages and tools is how much to think.
            .map_or("reasoning_effort_changed", |(.., reason)| reason),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_has_openais_name() {
        let check = |divergence, compacted, expected| assert_eq!(reason(divergence, compacted), expected);
        check(Divergence::None, true, None);
        check(Divergence::Model, true, Some("model_changed"));
        check(Divergence::System, false, Some("input_changed"));
        check(Divergence::System, true, Some("context_compacted"));
        check(Divergence::Tools, true, Some("tools_changed"));
        check(Divergence::Messages { index: 3, shorter: false }, false, Some("input_changed"));
        check(Divergence::Messages { index: 1, shorter: true }, false, Some("context_compacted"));
        check(Divergence::Parameter("key"), false, Some("prompt_cache_key_changed"));
        check(Divergence::Parameter("template_args"), false, Some("reasoning_effort_changed"));
    }
}
