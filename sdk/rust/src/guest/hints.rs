//! Hints to and from the records of the contract.

use crate::bindings::hints::exports::pointsman::policy::hints;
use crate::hints::{Hints, Value};

impl From<hints::HintSet> for Hints {
    fn from(set: hints::HintSet) -> Self {
        let value = |value| match value {
            hints::Value::Flag(flag) => Value::Flag(flag),
            hints::Value::Number(number) => Value::Number(number),
            hints::Value::Text(text) => Value::Text(text),
        };
        Self {
            session: set.session,
            parent: set.parent,
            class: set.class,
            priority: set.priority,
            strict_tier: set.strict_tier,
            deadline_ms: set.deadline_ms,
            expected_output_tokens: set.expected_output_tokens,
            speculative_prefill: set.speculative_prefill,
            session_final: set.session_final,
            attributes: set.attributes.into_iter().map(|(name, it)| (name, value(it))).collect(),
        }
    }
}

impl From<Hints> for hints::HintSet {
    fn from(set: Hints) -> Self {
        let value = |value| match value {
            Value::Flag(flag) => hints::Value::Flag(flag),
            Value::Number(number) => hints::Value::Number(number),
            Value::Text(text) => hints::Value::Text(text),
        };
        Self {
            session: set.session,
            parent: set.parent,
            class: set.class,
            priority: set.priority,
            strict_tier: set.strict_tier,
            deadline_ms: set.deadline_ms,
            expected_output_tokens: set.expected_output_tokens,
            speculative_prefill: set.speculative_prefill,
            session_final: set.session_final,
            attributes: set.attributes.into_iter().map(|(name, it)| (name, value(it))).collect(),
        }
    }
}
