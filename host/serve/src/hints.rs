//! The `hints` slot: what a caller said becomes typed, bounded [`Hints`].
//!
//! **Invariant:** hints are advice; nothing here can make a request fail, except a policy that the
//! operator configured to reject.

use policy::{Frame, Hints, HintsView, Pin};

use crate::ctx::name_id;
use crate::request::{Prompt, Refusal, Request};
use crate::worker::SequenceHints;

/// Chosen: an hour of head start is more than any queue is long.
const PRIORITY_SECONDS_MAX: f32 = 3600.0;
/// Chosen: a handful of tiers is in use; the bound keeps them exact as `f32`.
const STRICT_TIER_MAX: u32 = 1 << 16;

/// Asks the chain, and bounds what it says.
pub fn interpret(pin: &Pin, request: &Request, prompt: &Prompt, frame: Frame) -> Result<Hints, Refusal> {
    let view = HintsView {
        frame,
        protocol: request.protocol,
        headers: &request.headers,
        extensions: &request.extensions,
        prompt_tokens: prompt.tokens.len() as u32,
        output_tokens_max: request.output_tokens_max,
    };
    let mut hints = pin.hints(&view).map_err(|e| Refusal::Policy(e.to_string()))?.hints;
    hints.priority = hints
        .priority
        .filter(|p| p.is_finite())
        .map(|p| p.clamp(-PRIORITY_SECONDS_MAX, PRIORITY_SECONDS_MAX));
    hints.strict_tier = hints.strict_tier.map(|t| t.min(STRICT_TIER_MAX));
    Ok(hints)
}

/// Hints and the tenant as the numbers that later slots see.
pub fn numbers(hints: &Hints, tenant: &str) -> SequenceHints {
    let id = |name: &Option<String>| name.as_deref().map_or(0, name_id);
    SequenceHints {
        session: id(&hints.session),
        class: id(&hints.class),
        tenant: name_id(tenant),
        priority: hints.priority.unwrap_or(0.0),
        strict_tier: hints.strict_tier.unwrap_or(0),
        deadline_ms: hints.deadline_ms.unwrap_or(0),
        expected_output_tokens: hints.expected_output_tokens.unwrap_or(0),
    }
}
