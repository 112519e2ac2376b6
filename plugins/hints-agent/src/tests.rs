mod clients;

use super::*;
use pointsman_sdk::Value;
use pointsman_sdk::testing::{HintsCase, laws, policy, try_policy};

/// The hints that these headers and this `nvext` give.
fn read(headers: &[(&str, &str)], nvext: &str) -> Hints {
    let case = headers.iter().fold(HintsCase::default(), |case, (name, value)| case.header(name, value));
    let case = if nvext.is_empty() { case } else { case.extension("nvext", nvext) };
    case.interpret(&mut policy::<AgentHints>("{}")).unwrap_or_default()
}

/// Session, parent and class that these headers give.
fn check(headers: &[(&str, &str)], session: &str, parent: Option<&str>, class: Option<&str>) {
    let hints = read(headers, "");
    assert_eq!(
        (hints.session.as_deref(), hints.parent.as_deref(), hints.class.as_deref()),
        (Some(session), parent, class)
    );
}

#[test]
fn claude_code_names_sessions_agents_and_classes() {
    let session = ("x-claude-code-session-id", "s");
    check(&[session], "s", None, None);
    check(&[session, ("x-claude-code-request-class", "main")], "s", None, Some("main"));
    check(&[session, ("x-claude-code-agent-id", "a")], "s/a", Some("s"), Some("subagent"));
    let nested = [session, ("x-claude-code-agent-id", "b"), ("x-claude-code-parent-agent-id", "a")];
    check(&nested, "s/b", Some("s/a"), Some("subagent"));
}

#[test]
fn codex_names_threads() {
    check(&[("session-id", "s"), ("thread-id", "s")], "s", None, None);
    let child = [
        ("session-id", "s"),
        ("thread-id", "t"),
        ("x-codex-parent-thread-id", "s"),
        ("x-openai-subagent", "collab_spawn"),
    ];
    check(&child, "t", Some("s"), Some("subagent"));
}

#[test]
fn open_code_names_sessions() {
    check(&[("x-session-affinity", "s")], "s", None, None);
    check(&[("x-session-id", "t"), ("x-parent-session-id", "s")], "t", Some("s"), Some("subagent"));
}

#[test]
fn dynamo_headers_go_before_all_others() {
    let headers = [
        ("x-claude-code-session-id", "c"),
        ("x-dynamo-session-id", "d"),
        ("x-dynamo-parent-session-id", "p"),
    ];
    check(&headers, "d", Some("p"), Some("subagent"));
    assert_eq!(read(&[("x-dynamo-session-final", "true")], "").session_final, Some(true));
    assert_eq!(read(&[("x-dynamo-session-final", "false")], "").session_final, None);
}

#[test]
fn agent_hints_become_typed() {
    let hints = read(
        &[],
        r#"{"agent_hints": {"priority": 5, "strict_priority": 2, "osl": 300, "speculative_prefill": true}}"#,
    );
    assert_eq!(hints.priority, Some(5.0));
    assert_eq!(hints.strict_tier, Some(2));
    assert_eq!(hints.expected_output_tokens, Some(300));
    assert_eq!(hints.speculative_prefill, Some(true));
}

#[test]
fn a_header_goes_before_the_body() {
    let headers = [("x-dynamo-request-priority", "7"), ("x-dynamo-request-strict-priority", "3")];
    let hints = read(&headers, r#"{"agent_hints": {"priority": 5, "strict_priority": 2}}"#);
    assert_eq!((hints.priority, hints.strict_tier), (Some(7.0), Some(3)));
}

#[test]
fn wishes_are_clamped() {
    let hints = read(&[], r#"{"agent_hints": {"priority": -1e30, "strict_priority": 4000000000}}"#);
    assert_eq!((hints.priority, hints.strict_tier), (Some(-60.0), Some(15)));
    let hints = read(&[("x-dynamo-request-priority", "NaN")], "");
    assert_eq!(hints.priority, None);
}

#[test]
fn session_control_names_and_closes_a_session() {
    let hints = read(&[], r#"{"session_control": {"session_id": "s", "action": "close"}}"#);
    assert_eq!((hints.session.as_deref(), hints.session_final), (Some("s"), Some(true)));
}

#[test]
fn a_prompt_cache_key_is_the_last_resort() {
    let case = HintsCase::default().extension("prompt_cache_key", r#""k""#);
    let session =
        |case: &HintsCase| case.interpret(&mut policy::<AgentHints>("{}")).and_then(|it| it.session);
    assert_eq!(session(&case).as_deref(), Some("k"));
    assert_eq!(session(&case.header("thread-id", "t")).as_deref(), Some("t"));
}

#[test]
fn unknown_hints_become_attributes() {
    let nvext =
        r#"{"agent_hints": {"osl": 5, "prefix_id": "p", "total_requests": 7, "warm": true, "iat": [1]}}"#;
    let attributes = [
        ("prefix_id", Value::Text("p".to_owned())),
        ("total_requests", Value::Number(7.0)),
        ("warm", Value::Flag(true)),
    ];
    let mut seen = read(&[], nvext).attributes;
    seen.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(seen, attributes.map(|(name, value)| (name.to_owned(), value)));
    let mut silent = policy::<AgentHints>(r#"{"attributes": false}"#);
    let case = HintsCase::default().extension("nvext", r#"{"agent_hints": {"prefix_id": "p"}}"#);
    assert_eq!(case.interpret(&mut silent), None);
}

#[test]
fn what_came_before_is_kept() {
    let mut case = HintsCase::default().header("x-session-id", "mine").header("x-parent-session-id", "p");
    case.so_far = Hints { session: Some("theirs".to_owned()), priority: Some(1.0), ..Hints::default() };
    assert_eq!(case.interpret(&mut policy::<AgentHints>("{}")), None);
}

#[test]
fn names_that_are_too_long_are_ignored() {
    let long = "x".repeat(SESSION_BYTES_MAX + 1);
    assert_eq!(read(&[("x-session-id", &long)], "").session, None);
    assert_eq!(read(&[("x-claude-code-request-class", &long)], "").class, None);
}

#[test]
fn a_tier_of_service_is_a_priority_where_nothing_else_says_one() {
    let priority = |tier: &str, headers: &[(&str, &str)]| {
        let case = HintsCase::default().extension("service_tier", tier);
        let case = headers.iter().fold(case, |case, (name, value)| case.header(name, value));
        case.interpret(&mut policy::<AgentHints>("{}")).and_then(|hints| hints.priority)
    };
    assert_eq!(priority(r#""priority""#, &[]), Some(10.0));
    assert_eq!(priority(r#""flex""#, &[]), Some(-30.0));
    assert_eq!(priority(r#""auto""#, &[]), None);
    assert_eq!(priority("7", &[]), None);
    assert_eq!(priority(r#""flex""#, &[("x-dynamo-request-priority", "5")]), Some(5.0));
}

#[test]
fn effort_is_read_where_each_api_has_it() {
    for (name, word, place) in [
        ("output_config.effort", "high", 4.0),
        ("reasoning.effort", "minimal", 1.0),
        ("reasoning_effort", "xhigh", 5.0),
    ] {
        let case = HintsCase::default().extension(name, &format!("{word:?}"));
        let hints = case.interpret(&mut policy::<AgentHints>("{}")).expect("it says something");
        assert_eq!(hints.attributes, [("effort".to_owned(), Value::Number(place))]);
    }
    let case = HintsCase::default().extension("reasoning.effort", r#""brisk""#);
    assert_eq!(case.interpret(&mut policy::<AgentHints>("{}")), None);
}

#[test]
fn both_forms_of_a_user_id_name_a_session() {
    let session = |metadata: &str| {
        let case = HintsCase::default().extension("metadata", metadata);
        case.interpret(&mut policy::<AgentHints>("{}")).and_then(|hints| hints.session)
    };
    assert_eq!(session(r#"{"user_id":"{\"device_id\":\"d\",\"session_id\":\"s\"}"}"#).as_deref(), Some("s"));
    assert_eq!(session(r#"{"user_id":"user_d_account__session_s"}"#).as_deref(), Some("s"));
    assert_eq!(session(r#"{"user_id":"somebody"}"#), None);
    assert_eq!(session(r#"{"user_id":7}"#), None);
    assert_eq!(session("[]"), None);
}

#[test]
fn attributes_stay_within_the_bound_of_the_contract() {
    let mut hints: Vec<String> = (0..40).map(|i| format!("\"h{i}\": {i}")).collect();
    hints.push("\"osl\": 5".to_owned());
    let nvext = format!("{{\"agent_hints\": {{{}}}}}", hints.join(", "));
    let headers = [("x-claude-code-prompt-id", "p"), ("x-claude-code-prev-tool-durations", "Bash=37")];
    assert_eq!(read(&headers, &nvext).attributes.len(), ATTRIBUTES_MAX);
}

#[test]
fn settings_out_of_range_are_refused() {
    assert!(try_policy::<AgentHints>(r#"{"flex_tier_s": -1e9}"#).is_err());
    assert!(try_policy::<AgentHints>(r#"{"priority_max": -1}"#).is_err());
    assert!(try_policy::<AgentHints>(r#"{"dialects": []}"#).is_err());
}

#[test]
fn it_keeps_the_laws_of_its_slot() {
    laws::hints::<AgentHints>("{}");
}
