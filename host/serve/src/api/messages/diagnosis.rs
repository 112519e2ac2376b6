//! `diagnostics`: why a prompt was not read from the cache as far as the one before it.
//!
//! A caller that sends the object opts in: its prompts are remembered, as digests, under the ids of its answers.

use serde_json::{Value, json};

use crate::answer::Answer;
use crate::api::fields::Fields;
use crate::lineage::{Divergence, Trace};
use crate::request::{Refusal, Request};

/// What a caller wants to know about its last answer.
#[derive(Debug)]
pub(super) struct Diagnosis {
    trace: Trace,
    previous: Option<String>,
}

impl Diagnosis {
    /// Reads `diagnostics`, if it is there.
    pub(super) fn parse(fields: &Fields<'_>, request: &Request) -> Result<Option<Self>, Refusal> {
        let Some(wish) = fields.object("diagnostics")? else { return Ok(None) };
        let previous = wish.text("previous_message_id")?.map(str::to_owned);
        Ok(Some(Self { trace: Trace::of(request), previous }))
    }

    /// What is to be said, once the cached tokens are known; null where nothing was missed. Remembers this answer.
    pub(super) fn tell(self, answer: &Answer, tenant: &str) -> Value {
        let (app, usage) = (&answer.pinned.app, answer.usage());
        let trace = self.trace.with_tokens(usage.prompt_tokens);
        let said = match self.previous.map(|id| app.lineage.find(tenant, &id)) {
            None => Value::Null,
            Some(None) => reason("previous_message_not_found", None),
            Some(Some(old)) => {
                let missed = trace.missed_tokens(&old, usage.cached_tokens, app.config.kv.block_tokens);
                if missed > 0 { named(trace.compare(&old), missed) } else { Value::Null }
            }
        };
        app.lineage.keep(tenant, &answer.pinned.id, trace);
        said
    }
}

fn named(divergence: Divergence, missed_tokens: u32) -> Value {
    match divergence {
        // The prompt is the same; the pages went to somebody else meanwhile.
        Divergence::None => Value::Null,
        Divergence::Model => reason("model_changed", Some(missed_tokens)),
        Divergence::System => reason("system_changed", Some(missed_tokens)),
        Divergence::Tools => reason("tools_changed", Some(missed_tokens)),
        Divergence::Messages { .. } => reason("messages_changed", Some(missed_tokens)),
        // The protocol has no names for the others.
        Divergence::Parameter(_) => reason("unavailable", None),
    }
}

fn reason(kind: &str, missed_tokens: Option<u32>) -> Value {
    let mut reason = json!({"type": kind});
    if let Some(missed) = missed_tokens {
        reason["cache_missed_input_tokens"] = missed.into();
    }
    json!({"cache_miss_reason": reason})
}
