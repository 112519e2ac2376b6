//! Reads what agents say of their requests: Claude Code, Codex, OpenCode and Dynamo headers, and `nvext`.

mod body;
mod headers;

use pointsman_sdk::{Hints, HintsView, Interpret, Policy, export};
use serde::Deserialize;

/// Longest session name taken, in bytes: the contract's bound. `/` joins two shorter ones.
const SESSION_BYTES_MAX: usize = 256;
/// Longest class taken, in bytes.
const CLASS_BYTES_MAX: usize = 64;

/// Settings.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Priorities are clamped to this on both sides, in seconds of head start.
    pub priority_max: f32,
    /// Strict tiers are clamped to this. 0 ignores them.
    pub strict_tier_max: u32,
    /// Whether unknown scalars of `agent_hints` become attributes.
    pub attributes: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { priority_max: 60.0, strict_tier_max: 15, attributes: true }
    }
}

/// The policy; it keeps no state.
pub struct AgentHints(Config);

impl Policy for AgentHints {
    type Config = Config;
    const WISHES: &'static [(&'static str, &'static str)] = &[("stateless", "true")];

    fn new(config: Config) -> Result<Self, String> {
        match (0.0..=1e6).contains(&config.priority_max) {
            true => Ok(Self(config)),
            false => Err("priority_max lies between 0 and 1,000,000".to_owned()),
        }
    }
}

/// Who a request belongs to, in the words of one dialect.
#[derive(Debug, Default, PartialEq)]
struct Lineage {
    session: String,
    parent: Option<String>,
}

impl Interpret for AgentHints {
    /// Fills what policies before it left open. Explicit statements (Dynamo headers, `nvext`) go before
    /// the headers that clients send of their own accord, and those before `prompt_cache_key`.
    fn interpret(&mut self, view: &HintsView<'_>, so_far: Hints) -> Option<Hints> {
        let body = body::read(view);
        let mut hints = so_far.clone();
        if hints.session.is_none() {
            let lineage = (headers::dynamo(view).or_else(|| body.lineage()))
                .or_else(|| headers::claude_code(view))
                .or_else(|| headers::codex(view))
                .or_else(|| headers::open_code(view))
                .or_else(|| body.cache_key());
            if let Some(Lineage { session, parent }) = lineage {
                hints.session = bounded(session, SESSION_BYTES_MAX);
                hints.parent = hints.parent.or(parent.and_then(|parent| bounded(parent, SESSION_BYTES_MAX)));
            }
        }
        let class = || headers::class(view).or(hints.parent.is_some().then_some("subagent"));
        hints.class = hints.class.clone().or_else(|| bounded(class()?.to_owned(), CLASS_BYTES_MAX));
        let Config { priority_max, strict_tier_max, attributes } = self.0;
        let priority = headers::priority(view).or(body.priority());
        let clamp = |priority: f32| priority.clamp(-priority_max, priority_max);
        hints.priority = hints.priority.or(priority.map(clamp));
        let tier = headers::strict_tier(view).or(body.strict_tier());
        hints.strict_tier =
            hints.strict_tier.or(tier.map(|tier| tier.min(strict_tier_max)).filter(|tier| *tier > 0));
        hints.expected_output_tokens = hints.expected_output_tokens.or(body.expected_output_tokens());
        hints.speculative_prefill = hints.speculative_prefill.or(body.speculative_prefill());
        let ends = headers::is_final(view) || body.closes_session();
        hints.session_final = hints.session_final.or(ends.then_some(true));
        if attributes {
            body.add_attributes(&mut hints.attributes);
        }
        (hints != so_far).then_some(hints)
    }
}

fn bounded(text: String, bytes_max: usize) -> Option<String> {
    (!text.is_empty() && text.len() <= bytes_max).then_some(text)
}

export!(AgentHints: hints);

#[cfg(test)]
mod tests;
