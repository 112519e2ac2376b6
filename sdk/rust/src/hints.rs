//! Hints: what a caller wishes, typed.

/// What a request's caller wishes. Advice: the host bounds every field.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hints {
    /// Session that the request belongs to.
    pub session: Option<String>,
    /// Session or agent that started this one.
    pub parent: Option<String>,
    /// `main`, `subagent`, `background`, or another word of at most 64 bytes.
    pub class: Option<String>,
    /// Head start in seconds of waiting; may be negative.
    pub priority: Option<f32>,
    /// A higher tier always goes first.
    pub strict_tier: Option<u32>,
    /// Milliseconds from arrival within which the answer is useful.
    pub deadline_ms: Option<u32>,
    /// Output tokens that the caller expects.
    pub expected_output_tokens: Option<u32>,
    /// Whether the prompt may be computed ahead of need.
    pub speculative_prefill: Option<bool>,
    /// Whether the session ends with this request.
    pub session_final: Option<bool>,
    /// Hints that the contract has no field for, by name.
    pub attributes: Vec<(String, Value)>,
}

/// Value of an open attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Yes or no.
    Flag(bool),
    /// A number.
    Number(f64),
    /// A text of at most 256 bytes.
    Text(String),
}
