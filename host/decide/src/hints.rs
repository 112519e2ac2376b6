//! What is known of a sequence besides its tokens, and how a caller's words become that.
//!
//! **Invariant:** hints are advice; nothing here can make a request fail, except a policy that the operator configured to
//! reject.

use policy::{Attributes, Hints, HintsView, Pin, Rejected, name_id};

/// Bounded hints of a sequence, as numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SequenceHints {
    /// Id of the session, or 0.
    pub session: u64,
    /// Id of the session or agent that started it, or 0.
    pub parent: u64,
    /// Whether the session ends with this request.
    pub session_final: bool,
    /// Id of the class, or 0.
    pub class: u64,
    /// Id of the tenant, or 0.
    pub tenant: u64,
    /// Head start in seconds.
    pub priority: f32,
    /// Strict tier.
    pub strict_tier: u32,
    /// Milliseconds from arrival, or 0 for none.
    pub deadline_ms: u32,
    /// Expected output tokens, or 0 for unknown.
    pub expected_output_tokens: u32,
}

/// Chosen: an hour of head start is more than any queue is long.
pub const PRIORITY_SECONDS_MAX: f32 = 3600.0;
/// Chosen: a handful of tiers is in use; the bound keeps them exact as `f32`.
pub const STRICT_TIER_MAX: u32 = 1 << 16;

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

/// Who asks, apart from what it says.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Its tenant, or nothing.
    pub tenant: &'a str,
    /// Most tokens that its answer can have.
    pub output_tokens_max: u32,
}

/// Asks the chain what a caller wishes, and bounds what it says. `said`: what is known of it before any plugin is asked.
///
/// Errors: a plugin failed that may not be replaced.
pub fn interpret(
    pin: &Pin,
    view: &HintsView<'_>,
    said: Hints,
    caller: Caller<'_>,
) -> Result<Wishes, Rejected> {
    let mut hints = pin.hints(view, said)?.hints;
    hints.priority = hints
        .priority
        .filter(|p| p.is_finite())
        .map(|p| p.clamp(-PRIORITY_SECONDS_MAX, PRIORITY_SECONDS_MAX));
    hints.strict_tier = hints.strict_tier.map(|t| t.min(STRICT_TIER_MAX));
    // A caller that expects more than its limit expects its limit.
    hints.expected_output_tokens = hints.expected_output_tokens.map(|n| n.min(caller.output_tokens_max));
    let attributes = std::mem::take(&mut hints.attributes).into();
    Ok(Wishes { numbers: SequenceHints::of(&hints, caller.tenant), attributes, hints })
}

impl SequenceHints {
    /// Hints and the tenant as the numbers that later slots see.
    pub fn of(hints: &Hints, tenant: &str) -> Self {
        // Sessions are their tenant's: nobody ends another's by a name that can be guessed.
        let session = |name: &Option<String>| match name.as_deref() {
            None => 0,
            Some(name) if tenant.is_empty() => name_id(name),
            Some(name) => name_id(&format!("{tenant}\0{name}")),
        };
        Self {
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
}

impl Wishes {
    /// The same, with no more head start than so many seconds, and no tier above this one.
    #[must_use]
    pub fn within(mut self, priority: f32, strict_tier: u32) -> Self {
        self.numbers.priority = self.numbers.priority.min(priority);
        self.numbers.strict_tier = self.numbers.strict_tier.min(strict_tier);
        self.hints.priority = self.hints.priority.map(|p| p.min(priority));
        self.hints.strict_tier = self.hints.strict_tier.map(|t| t.min(strict_tier));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_is_met_and_nothing_below_it_touched() {
        let wishes = |priority, strict_tier| Wishes {
            hints: Hints { priority: Some(priority), strict_tier: Some(strict_tier), ..Hints::default() },
            numbers: SequenceHints { priority, strict_tier, ..SequenceHints::default() },
            ..Wishes::default()
        };
        let capped = wishes(60.0, 9).within(5.0, 1);
        assert_eq!((capped.numbers.priority, capped.numbers.strict_tier), (5.0, 1));
        assert_eq!((capped.hints.priority, capped.hints.strict_tier), (Some(5.0), Some(1)));
        assert_eq!(wishes(-3.0, 0).within(5.0, 1).numbers.priority, -3.0);
        // Whoever says nothing asks for no head start, which is more than some may have.
        assert_eq!(Wishes::default().within(-10.0, 0).numbers.priority, -10.0);
    }
}
