//! Requests as real clients send them: what of each reaches the policy, and what it makes of it.
//!
//! Names and forms are those of Claude Code 2.1.329, Codex 0.169.0 and opencode 1.18.33; ids are made up.

use super::*;

/// When Codex's turn had gone on for 1.5 s.
const NOW_MS: u64 = 1_795_000_001_500;

/// Every hint that is there, a line each.
fn show(headers: &[(&str, &str)], extensions: &[(&str, &str)]) -> String {
    let mut case = HintsCase::default();
    case.frame.now_ms = NOW_MS;
    let case = headers.iter().fold(case, |case, (name, value)| case.header(name, value));
    let case = extensions.iter().fold(case, |case, (name, json)| case.extension(name, json));
    let hints = case.interpret(&mut policy::<AgentHints>("{}")).unwrap_or_default();
    let mut lines = Vec::new();
    let mut line = |name: &str, value: Option<String>| {
        lines.extend(value.map(|value| format!("{name}: {value}")));
    };
    line("session", hints.session);
    line("parent", hints.parent);
    line("class", hints.class);
    line("priority", hints.priority.map(|it| it.to_string()));
    line("strict_tier", hints.strict_tier.map(|it| it.to_string()));
    line("expected_output_tokens", hints.expected_output_tokens.map(|it| it.to_string()));
    line("speculative_prefill", hints.speculative_prefill.map(|it| it.to_string()));
    line("session_final", hints.session_final.map(|it| it.to_string()));
    for (name, value) in hints.attributes {
        let value = match value {
            Value::Flag(flag) => flag.to_string(),
            Value::Number(number) => number.to_string(),
            Value::Text(text) => text,
        };
        line(&format!("attr.{name}"), Some(value));
    }
    lines.join("\n")
}

fn check(headers: &[(&str, &str)], extensions: &[(&str, &str)], expected: &[&str]) {
    assert_eq!(show(headers, extensions), expected.join("\n"));
}

const CLAUDE_METADATA: (&str, &str) = (
    "metadata",
    r#"{"user_id":"{\"device_id\":\"6f0c\",\"account_uuid\":\"\",\"session_id\":\"0b7a4e1c\"}"}"#,
);

#[test]
fn claude_code_without_hints() {
    let headers = [("x-claude-code-session-id", "0b7a4e1c")];
    let body = [CLAUDE_METADATA, ("output_config.effort", r#""high""#)];
    check(&headers, &body, &["session: 0b7a4e1c", "attr.effort: 4"]);
}

#[test]
fn claude_code_whose_headers_a_gateway_took() {
    check(&[], &[CLAUDE_METADATA], &["session: 0b7a4e1c"]);
}

#[test]
fn claude_code_with_hints_after_a_tool() {
    let headers = [
        ("x-claude-code-session-id", "0b7a4e1c"),
        ("x-claude-code-request-class", "main"),
        ("x-claude-code-prompt-id", "5d21"),
        ("x-claude-code-prev-tool-durations", "Bash=37;Read=9"),
    ];
    let expected = [
        "session: 0b7a4e1c",
        "class: main",
        "attr.turn: 5d21",
        "attr.tool: Bash",
        "attr.tool_ms_longest: 37",
        "attr.tool_ms_total: 46",
        "attr.tool_calls: 2",
        "attr.effort: 4",
    ];
    check(&headers, &[CLAUDE_METADATA, ("output_config.effort", r#""high""#)], &expected);
}

#[test]
fn claude_code_and_its_sub_agents() {
    let headers = [
        ("x-claude-code-session-id", "0b7a4e1c"),
        ("x-claude-code-agent-id", "a81f"),
        ("x-claude-code-request-class", "subagent"),
        ("x-claude-1p-request-class", "blocking-subagent"),
        ("x-claude-code-agent-type", "Explore"),
        ("x-claude-code-prompt-id", "5d21"),
    ];
    let expected = [
        "session: 0b7a4e1c/a81f",
        "parent: 0b7a4e1c",
        "class: subagent",
        "attr.turn: 5d21",
        "attr.request_kind: blocking-subagent",
        "attr.blocking: true",
        "attr.subagent_kind: Explore",
    ];
    check(&headers, &[CLAUDE_METADATA], &expected);
    let nested = [
        ("x-claude-code-session-id", "0b7a4e1c"),
        ("x-claude-code-agent-id", "b2"),
        ("x-claude-code-parent-agent-id", "a81f"),
        ("x-claude-1p-request-class", "blocking-subagent"),
    ];
    let expected = [
        "session: 0b7a4e1c/b2",
        "parent: 0b7a4e1c/a81f",
        "class: subagent",
        "attr.request_kind: blocking-subagent",
        "attr.blocking: true",
    ];
    check(&nested, &[], &expected);
}

#[test]
fn claude_code_compacts() {
    let session = ("x-claude-code-session-id", "0b7a4e1c");
    let headers =
        [session, ("x-claude-code-request-class", "compaction"), ("x-claude-code-compaction", "auto")];
    check(&headers, &[], &["session: 0b7a4e1c", "class: compaction", "attr.compaction: auto"]);
    let headers =
        [session, ("x-claude-code-request-class", "main"), ("x-claude-code-context-compacted", "auto")];
    check(&headers, &[], &["session: 0b7a4e1c", "class: main", "attr.compacted: true"]);
}

const TURN: &str = r#"{"installation_id":"i","session_id":"019a","thread_id":"019a","turn_id":"t2","root_turn_id":"t2","window_id":"019a:1","request_kind":"turn","turn_trigger":"user","sandbox":"seccomp","turn_started_at_unix_ms":1795000000000}"#;

#[test]
fn codex_over_http() {
    let headers = [
        ("session-id", "019a"),
        ("thread-id", "019a"),
        ("originator", "codex_exec"),
        ("x-codex-window-id", "019a:1"),
        ("x-codex-turn-metadata", TURN),
    ];
    let expected = [
        "session: 019a",
        "class: main",
        "attr.turn: t2",
        "attr.root_turn: t2",
        "attr.request_kind: turn",
        "attr.compactions: 1",
        "attr.turn_age_ms: 1500",
    ];
    check(&headers, &[("prompt_cache_key", r#""019a""#)], &expected);
}

#[test]
fn codex_over_a_websocket_says_its_turn_in_the_body() {
    // The headers are those of the first turn.
    let stale = TURN.replace("t2", "t1").replace("\"turn\"", "\"prewarm\"");
    let headers = [("session-id", "019a"), ("thread-id", "019a"), ("x-codex-turn-metadata", stale.as_str())];
    let client =
        serde_json::json!({"x-codex-window-id": "019a:1", "x-codex-turn-metadata": TURN}).to_string();
    let expected = [
        "session: 019a",
        "class: main",
        "attr.turn: t2",
        "attr.root_turn: t2",
        "attr.request_kind: turn",
        "attr.compactions: 1",
        "attr.turn_age_ms: 1500",
    ];
    check(&headers, &[("client_metadata", &client)], &expected);
    let warm = r#"{"thread_id":"019a","request_kind":"prewarm"}"#;
    let client = serde_json::json!({ "x-codex-turn-metadata": warm }).to_string();
    let expected = ["session: 019a", "class: prewarm", "attr.request_kind: prewarm"];
    check(&[], &[("client_metadata", &client)], &expected);
}

#[test]
fn codex_spawns_an_agent() {
    let headers = [
        ("session-id", "019a"),
        ("thread-id", "019b"),
        ("x-codex-window-id", "019b:0"),
        ("x-codex-parent-thread-id", "019a"),
        ("x-openai-subagent", "collab_spawn"),
    ];
    let expected = [
        "session: 019b",
        "parent: 019a",
        "class: subagent",
        "attr.subagent_kind: collab_spawn",
        "attr.compactions: 0",
    ];
    check(&headers, &[("prompt_cache_key", r#""019b""#)], &expected);
}

#[test]
fn codex_reviews_without_naming_a_parent() {
    let headers = [("session-id", "019a"), ("thread-id", "019c"), ("x-openai-subagent", "review")];
    let expected = ["session: 019c", "parent: 019a", "class: subagent", "attr.subagent_kind: review"];
    check(&headers, &[], &expected);
}

#[test]
fn opencode_and_its_tasks() {
    check(&[("x-session-affinity", "ses_1"), ("x-session-id", "ses_1")], &[], &["session: ses_1"]);
    let headers =
        [("x-session-affinity", "ses_2"), ("x-session-id", "ses_2"), ("x-parent-session-id", "ses_1")];
    check(&headers, &[], &["session: ses_2", "parent: ses_1", "class: subagent"]);
}

#[test]
fn dynamo_and_nvext() {
    let headers = [
        ("x-dynamo-session-id", "run-7/2"),
        ("x-dynamo-parent-session-id", "run-7"),
        ("x-dynamo-session-final", "true"),
    ];
    let nvext = r#"{"agent_hints":{"priority":3,"strict_priority":1,"osl":128,"speculative_prefill":true,"reuse":2},"cache_control":{"type":"ephemeral","ttl":"1h"}}"#;
    let expected = [
        "session: run-7/2",
        "parent: run-7",
        "class: subagent",
        "priority: 3",
        "strict_tier: 1",
        "expected_output_tokens: 128",
        "speculative_prefill: true",
        "session_final: true",
        "attr.reuse: 2",
    ];
    check(&headers, &[("nvext", nvext)], &expected);
    let closing = r#"{"session_control":{"session_id":"run-8","action":"close"}}"#;
    check(&[], &[("nvext", closing)], &["session: run-8", "session_final: true"]);
}

#[test]
fn a_body_alone() {
    let body = [
        ("prompt_cache_key", r#""batch-3""#),
        ("service_tier", r#""flex""#),
        ("reasoning_effort", r#""low""#),
    ];
    check(&[], &body, &["session: batch-3", "priority: -30", "attr.effort: 2"]);
}
