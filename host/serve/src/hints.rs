//! The `hints` slot: what a caller said becomes typed, bounded [`Hints`].
//!
//! **Invariant:** hints are advice; nothing here can make a request fail, except a policy that the
//! operator configured to reject.

use decide::{Caller, Wishes};
use policy::{Frame, Hints, HintsView, Pin};

use crate::auth::Ceiling;
use crate::request::{Prompt, Refusal, Request};

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
    let caller = Caller { tenant: &request.tenant, output_tokens_max: prompt.output_tokens_max };
    decide::interpret(pin, &view, Hints::default(), caller).map_err(|e| Refusal::Policy(e.to_string()))
}

/// The same wishes, with no more head start than a key may ask for.
pub fn within(wishes: Wishes, ceiling: Option<Ceiling>) -> Wishes {
    match ceiling {
        None => wishes,
        Some(ceiling) => wishes.within(ceiling.priority, ceiling.strict_tier),
    }
}
