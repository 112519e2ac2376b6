//! The headers of each client.

use crate::Lineage;
use pointsman_sdk::HintsView;

fn owned(view: &HintsView<'_>, name: &str) -> Option<String> {
    view.header(name).map(str::to_owned)
}

/// `x-dynamo-*`: sent by whoever means it.
pub(crate) fn dynamo(view: &HintsView<'_>) -> Option<Lineage> {
    let session = owned(view, "x-dynamo-session-id")?;
    Some(Lineage { session, parent: owned(view, "x-dynamo-parent-session-id") })
}

/// Claude Code. Agents run inside a session with prompts of their own, so each is a session to us,
/// named `<session>/<agent>`.
pub(crate) fn claude_code(view: &HintsView<'_>) -> Option<Lineage> {
    let session = view.header("x-claude-code-session-id")?;
    let Some(agent) = view.header("x-claude-code-agent-id") else {
        return Some(Lineage { session: session.to_owned(), parent: None });
    };
    let parent = match view.header("x-claude-code-parent-agent-id") {
        Some(parent) => format!("{session}/{parent}"),
        None => session.to_owned(),
    };
    Some(Lineage { session: format!("{session}/{agent}"), parent: Some(parent) })
}

/// OpenCode.
pub(crate) fn open_code(view: &HintsView<'_>) -> Option<Lineage> {
    let session = owned(view, "x-session-id").or_else(|| owned(view, "x-session-affinity"))?;
    Some(Lineage { session, parent: owned(view, "x-parent-session-id") })
}

/// What kind of request it is, in Claude Code's words: `main`, `subagent`, `workflow`, `compaction`, `auxiliary`.
pub(crate) fn class<'a>(view: &HintsView<'a>) -> Option<&'a str> {
    // A sub-agent that is waited for is one; that it is waited for is an attribute.
    let first_party = |class: &'a str| class.strip_prefix("blocking-").unwrap_or(class);
    (view.header("x-claude-code-request-class"))
        .or_else(|| view.header("x-claude-1p-request-class").map(first_party))
}

/// Head start in seconds.
pub(crate) fn priority(view: &HintsView<'_>) -> Option<f32> {
    let priority: f32 = view.header("x-dynamo-request-priority")?.parse().ok()?;
    priority.is_finite().then_some(priority)
}

/// Strict tier.
pub(crate) fn strict_tier(view: &HintsView<'_>) -> Option<u32> {
    view.header("x-dynamo-request-strict-priority")?.parse().ok()
}

/// Whether the session ends with this request.
pub(crate) fn is_final(view: &HintsView<'_>) -> bool {
    view.header("x-dynamo-session-final").is_some_and(|value| matches!(value, "true" | "1"))
}
