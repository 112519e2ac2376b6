//! The `hints` slot, and its records on both sides.

use super::Instance;
use crate::bindings::exports::pointsman::policy::hints;
use crate::slot::{Answer, Hints, HintsPolicy, HintsView, Value};

impl HintsPolicy for Instance {
    fn interpret(&mut self, view: &HintsView<'_>, so_far: &Hints) -> Answer<Hints> {
        let so_far = so_far.clone().into();
        let answer: Option<hints::HintSet> = self.guarded(|guest, store, _, _| match &guest.hints {
            Some(guest) => guest.call_interpret(
                store,
                view.frame.into(),
                view.protocol,
                view.headers,
                view.extensions,
                view.prompt_tokens,
                view.output_tokens_max,
                &so_far,
            ),
            None => Ok(None),
        })?;
        answer.map(Hints::from)
    }
}

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
            // Only logs have these, and no log has hints.
            Value::Id(id) => hints::Value::Text(format!("{id:016x}")),
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
