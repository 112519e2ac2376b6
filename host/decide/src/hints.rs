//! What is known of a sequence besides its tokens.

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
