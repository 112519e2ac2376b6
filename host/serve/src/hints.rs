//! The `hints` slot: what a caller said becomes typed, bounded [`Hints`].
//!
//! **Invariant:** hints are advice; nothing here can make a request fail, except a policy that the
//! operator configured to reject.

use policy::{Frame, Hints, HintsView, Pin, Subject};

use crate::app::App;
use crate::ctx::name_id;
use crate::request::{Prompt, Refusal, Request};
use crate::worker::SequenceHints;

/// Chosen: an hour of head start is more than any queue is long.
const PRIORITY_SECONDS_MAX: f32 = 3600.0;
/// Chosen: a handful of tiers is in use; the bound keeps them exact as `f32`.
const STRICT_TIER_MAX: u32 = 1 << 16;

/// Pins a request's generation and asks it for hints.
///
/// While a canary runs, the session says which side that is, and what the session is says the active side: the
/// other one is asked again for itself. A request without a session goes to either.
pub fn pin(
    app: &App,
    subject: &Subject<'_>,
    (request, prompt): (&Request, &Prompt),
) -> Result<(Pin, Hints), Refusal> {
    let frame = app.frame();
    let mut asked = None;
    let policies = app.generations.pin_for(subject, |active| {
        let hints = interpret(active, request, prompt, frame);
        let session = hints.as_ref().ok().and_then(|hints| hints.session.as_deref()).map_or(0, name_id);
        asked = Some((active.id(), hints));
        if session == 0 { frame.seed } else { session }
    });
    let hints = match asked {
        Some((id, hints)) if id == policies.id() => hints,
        _ => interpret(&policies, request, prompt, frame),
    };
    Ok((policies, hints?))
}

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

/// Hints as the numbers that later slots see.
pub fn numbers(hints: &Hints) -> SequenceHints {
    let id = |name: &Option<String>| name.as_deref().map_or(0, name_id);
    SequenceHints {
        session: id(&hints.session),
        class: id(&hints.class),
        tenant: 0,
        priority: hints.priority.unwrap_or(0.0),
        strict_tier: hints.strict_tier.unwrap_or(0),
        deadline_ms: hints.deadline_ms.unwrap_or(0),
        expected_output_tokens: hints.expected_output_tokens.unwrap_or(0),
    }
}
