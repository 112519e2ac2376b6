//! Reads what agents say of their requests: Claude Code, Codex, OpenCode and Dynamo headers, and fields of the body.

mod body;
mod codex;
mod headers;
mod turn;

use body::Body;
use codex::Codex;
use pointsman_sdk::{Hints, HintsView, Interpret, Policy, export, within};
use serde::Deserialize;

/// Longest session name taken, in bytes: the contract's bound. `/` joins two shorter ones.
const SESSION_BYTES_MAX: usize = 256;
/// Longest class taken, in bytes.
const CLASS_BYTES_MAX: usize = 64;
/// Longest name of an attribute and longest text taken, in bytes.
const ATTRIBUTE_BYTES_MAX: usize = 64;
/// Most attributes in all.
const ATTRIBUTES_MAX: usize = 16;

/// Settings.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Priorities are clamped to this on both sides, in seconds of head start.
    pub priority_max: f32,
    /// Strict tiers are clamped to this. 0 ignores them.
    pub strict_tier_max: u32,
    /// Head start in seconds of `service_tier: "priority"`, where nothing else says a priority.
    pub priority_tier_s: f32,
    /// The same of `service_tier: "flex"`: it goes behind others.
    pub flex_tier_s: f32,
    /// Whether what the contract has no field for becomes attributes.
    pub attributes: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            priority_max: 60.0,
            strict_tier_max: 15,
            priority_tier_s: 10.0,
            flex_tier_s: -30.0,
            attributes: true,
        }
    }
}

/// The policy; it keeps no state.
pub struct AgentHints(Config);

impl Policy for AgentHints {
    type Config = Config;
    const WISHES: &'static [(&'static str, &'static str)] = &[("stateless", "true")];

    fn new(config: Config) -> Result<Self, String> {
        within("priority_tier_s", config.priority_tier_s, -3600.0..=3600.0)?;
        within("flex_tier_s", config.flex_tier_s, -3600.0..=3600.0)?;
        within("priority_max", config.priority_max, 0.0..=1e6)?;
        Ok(Self(config))
    }
}

/// Who a request belongs to, in the words of one dialect.
#[derive(Debug, Default, PartialEq)]
struct Lineage {
    session: String,
    parent: Option<String>,
}

impl Interpret for AgentHints {
    /// Fills what policies before it left open. Explicit statements (Dynamo headers, `nvext`) go before what clients
    /// send of their own accord, and that before `prompt_cache_key`.
    fn interpret(&mut self, view: &HintsView<'_>, so_far: Hints) -> Option<Hints> {
        let (body, codex) = (body::read(view), Codex::read(view));
        let mut hints = so_far.clone();
        if hints.session.is_none() {
            let lineage = (headers::dynamo(view).or_else(|| body.lineage()))
                .or_else(|| headers::claude_code(view))
                .or_else(|| codex.lineage())
                .or_else(|| headers::open_code(view))
                .or_else(|| body.user())
                .or_else(|| body.cache_key());
            if let Some(Lineage { session, parent }) = lineage {
                hints.session = bounded(session, SESSION_BYTES_MAX);
                hints.parent = hints.parent.or(parent.and_then(|parent| bounded(parent, SESSION_BYTES_MAX)));
            }
        }
        let class = || class(view, &codex, hints.parent.is_some());
        hints.class = hints.class.clone().or_else(|| bounded(class()?, CLASS_BYTES_MAX));
        self.urgency(view, &body, &mut hints);
        hints.expected_output_tokens = hints.expected_output_tokens.or(body.expected_output_tokens());
        hints.speculative_prefill = hints.speculative_prefill.or(body.speculative_prefill());
        let ends = headers::is_final(view) || body.closes_session();
        hints.session_final = hints.session_final.or(ends.then_some(true));
        if self.0.attributes {
            turn::add_attributes(view, &codex, &body, &mut hints.attributes);
            body.add_attributes(&mut hints.attributes);
        }
        (hints != so_far).then_some(hints)
    }
}

impl AgentHints {
    /// How soon it is wanted. Headers go before the body, and what was meant for us before a tier of service.
    fn urgency(&self, view: &HintsView<'_>, body: &Body, hints: &mut Hints) {
        let Config { priority_max, strict_tier_max, priority_tier_s, flex_tier_s, .. } = self.0;
        let of_service = match body.service_tier() {
            Some("priority") => Some(priority_tier_s),
            Some("flex") => Some(flex_tier_s),
            _ => None,
        };
        let priority = headers::priority(view).or(body.priority()).or(of_service);
        let clamp = |priority: f32| priority.clamp(-priority_max, priority_max);
        hints.priority = hints.priority.or(priority.map(clamp));
        let tier = headers::strict_tier(view).or(body.strict_tier());
        let tier = tier.map(|tier| tier.min(strict_tier_max)).filter(|tier| *tier > 0);
        hints.strict_tier = hints.strict_tier.or(tier);
    }
}

/// What kind of request it is. A request with a parent is a sub-agent's; so is one that Codex calls so, in whatever
/// way it was started.
fn class(view: &HintsView<'_>, codex: &Codex<'_>, has_parent: bool) -> Option<String> {
    let is_subagent = has_parent || codex.subagent().is_some();
    (headers::class(view).map(str::to_owned))
        .or_else(|| is_subagent.then(|| "subagent".to_owned()))
        .or_else(|| codex.request_kind().map(|kind| if kind == "turn" { "main".to_owned() } else { kind }))
}

fn bounded(text: String, bytes_max: usize) -> Option<String> {
    (!text.is_empty() && text.len() <= bytes_max).then_some(text)
}

export!(AgentHints: hints);

#[cfg(test)]
mod tests;
