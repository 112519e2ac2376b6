//! What a sequence leaves behind when its turn is over, as the `retain` slot is asked about it.

use decide::{Conversation, Role, Stretch};

use super::sequence::Sequence;
use crate::prompt::reasoning_tokens;

/// The conversation of a sequence whose turn is over.
pub(super) fn of(sequence: &Sequence, now_ms: u64) -> Conversation {
    let hints = &sequence.start.hints;
    let turn = sequence.start.turn.as_deref();
    Conversation {
        session: hints.session,
        parent: hints.parent,
        class: hints.class,
        tenant: hints.tenant,
        live: !hints.session_final,
        used_ms: now_ms,
        wish_priority: turn.map_or(0, |turn| turn.wishes.priority),
        attributes: turn.map(|turn| turn.attributes.clone()).unwrap_or_default(),
        names: sequence.sealed_names().to_vec(),
        stretches: stretches(sequence),
        priorities: Vec::new(),
    }
}

/// The stretches of prompt and output.
fn stretches(sequence: &Sequence) -> Vec<Stretch> {
    let prompt_len = sequence.prompt_len() as u32;
    let Some(turn) = sequence.start.turn.as_deref() else {
        return decide::stretches(
            [(Role::History, 0, 0), (Role::Output, prompt_len, 0)],
            sequence.len() as u32,
        );
    };
    let thought = reasoning_tokens(&turn.tokenizer, turn.family, &sequence.output, turn.in_reasoning) as u32;
    let prompt = turn.segments.iter().zip(turn.wishes.ttl_ms(&turn.segments));
    let prompt = prompt.map(|(segment, wish_ttl_ms)| (segment.role, segment.start, wish_ttl_ms));
    let answer = [(Role::Reasoning, prompt_len, 0), (Role::Output, prompt_len + thought, 0)];
    decide::stretches(prompt.chain(answer), sequence.len() as u32)
}
