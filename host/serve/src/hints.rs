//! The `hints` slot: what a caller said becomes typed, bounded [`Hints`].
//!
//! **Invariant:** hints are advice; nothing here can make a request fail, except a policy that the
//! operator configured to reject.

use policy::{Attributes, Frame, Hints, HintsView, Pin};

use crate::auth::Ceiling;
use crate::ctx::name_id;
use crate::request::{Prompt, Refusal, Request};
use crate::worker::SequenceHints;

/// Chosen: an hour of head start is more than any queue is long.
pub(crate) const PRIORITY_SECONDS_MAX: f32 = 3600.0;
/// Chosen: a handful of tiers is in use; the bound keeps them exact as `f32`.
pub(crate) const STRICT_TIER_MAX: u32 = 1 << 16;

/// What a caller wishes, as later slots see it.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Its hints, within bounds; the open attributes are beside them.
    pub hints: Hints,
    /// The hints that are columns.
    pub numbers: SequenceHints,
    /// What the contract has no field for.
    pub attributes: Attributes,
}

impl Wishes {
    /// The same, with no more head start than a key may ask for.
    pub fn within(mut self, ceiling: Option<Ceiling>) -> Self {
        let Some(ceiling) = ceiling else { return self };
        self.numbers.priority = self.numbers.priority.min(ceiling.priority);
        self.numbers.strict_tier = self.numbers.strict_tier.min(ceiling.strict_tier);
        self.hints.priority = self.hints.priority.map(|p| p.min(ceiling.priority));
        self.hints.strict_tier = self.hints.strict_tier.map(|t| t.min(ceiling.strict_tier));
        self
    }
}

/// Asks the chain; while a canary runs, that of the side on which the session is.
///
/// What the session is says the active side; the other one is asked again for itself. A request without a session
/// goes to either.
pub fn by_session(
    pin: Pin,
    request: &Request,
    prompt: &Prompt,
    frame: Frame,
) -> Result<(Pin, Wishes), Refusal> {
    let mut asked = None;
    let pin = pin.by_session(|active| {
        let wishes = interpret(active, request, prompt, frame);
        let session = wishes.as_ref().map_or(0, |wishes| wishes.numbers.session);
        asked = Some((active.id(), wishes));
        if session == 0 { frame.seed } else { session }
    });
    let wishes = match asked {
        Some((id, wishes)) if id == pin.id() => wishes,
        _ => interpret(&pin, request, prompt, frame),
    };
    Ok((pin, wishes?))
}

/// Asks the chain, and bounds what it says.
pub fn interpret(pin: &Pin, request: &Request, prompt: &Prompt, frame: Frame) -> Result<Wishes, Refusal> {
    let view = HintsView {
        frame,
        protocol: request.protocol.as_str(),
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
    // A caller that expects more than its limit expects its limit.
    hints.expected_output_tokens = hints.expected_output_tokens.map(|n| n.min(prompt.output_tokens_max));
    let attributes = std::mem::take(&mut hints.attributes).into();
    Ok(Wishes { numbers: numbers(&hints, &request.tenant), attributes, hints })
}

/// Hints and the tenant as the numbers that later slots see.
fn numbers(hints: &Hints, tenant: &str) -> SequenceHints {
    // Sessions are their tenant's: nobody ends another's by a name that can be guessed.
    let session = |name: &Option<String>| match name.as_deref() {
        None => 0,
        Some(name) if tenant.is_empty() => name_id(name),
        Some(name) => name_id(&format!("{tenant}\0{name}")),
    };
    SequenceHints {
        session: session(&hints.session),
        parent: session(&hints.parent),
        session_final: hints.session_final.unwrap_or(false),
        class: hints.class.as_deref().map_or(0, name_id),
        tenant: name_id(tenant),
        priority: hints.priority.unwrap_or(0.0),
        strict_tier: hints.strict_tier.unwrap_or(0),
        deadline_ms: hints.deadline_ms.unwrap_or(0),
        expected_output_tokens: hints.expected_output_tokens.unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_caps_what_is_asked_for_and_nothing_below() {
        let wishes = |priority, strict_tier| Wishes {
            hints: Hints { priority: Some(priority), strict_tier: Some(strict_tier), ..Hints::default() },
            numbers: SequenceHints { priority, strict_tier, ..SequenceHints::default() },
            ..Wishes::default()
        };
        let ceiling = Some(Ceiling { priority: 5.0, strict_tier: 1 });
        let capped = wishes(60.0, 9).within(ceiling);
        assert_eq!((capped.numbers.priority, capped.numbers.strict_tier), (5.0, 1));
        assert_eq!((capped.hints.priority, capped.hints.strict_tier), (Some(5.0), Some(1)));
        assert_eq!(wishes(-3.0, 0).within(ceiling).numbers.priority, -3.0);
        assert_eq!(wishes(60.0, 9).within(None).numbers.priority, 60.0);
        // Whoever says nothing asks for no head start, which is more than some may have.
        let last = Some(Ceiling { priority: -10.0, strict_tier: 0 });
        assert_eq!(Wishes::default().within(last).numbers.priority, -10.0);
    }
}
