use std::path::Path;

use super::*;

/// Reads a file with these lines.
fn lines(lines: &[&str]) -> Result<Trace, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    read(&path).map_err(|e| e.to_string().replace(&folder.path().display().to_string(), ""))
}

fn row(at: u32, tokens: u32, ids: &str) -> String {
    format!(r#"{{"timestamp": {at}, "input_length": {tokens}, "output_length": 7, "hash_ids": [{ids}]}}"#)
}

#[test]
fn a_request_that_extends_an_earlier_one_is_its_next_turn() {
    let rows = [row(0, 1300, "0,1,2"), row(5, 600, "9,8"), row(9, 2000, "0,1,3,4")];
    let trace = lines(&rows.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let turns: Vec<_> = trace.requests.iter().map(|request| (request.session, request.turn)).collect();
    assert_eq!(turns, [(0, 0), (1, 0), (0, 1)]);
    let [first, other, next] = &trace.requests[..] else { panic!("three requests") };
    assert_eq!(trace.whole_blocks(first), &trace.blocks(next)[..2], "the third is partial");
    assert_eq!((trace.blocks(other).len(), trace.blocks_len(), trace.block_tokens), (2, 7, 512));
    assert_eq!(trace.ceiling(), 1024.0 / 3900.0);
}

#[test]
fn bad_lines_are_told_with_their_number() {
    let check = |bad: &str, expected: &str| {
        let error = lines(&[&row(4, 512, "1"), bad]).unwrap_err();
        assert!(error.starts_with("/a.jsonl, line 2: ") && error.contains(expected), "{error}");
    };
    check("{\"timestamp\":", "EOF while parsing");
    check(r#"{"timestamp": 5, "input_length": 9, "hash_ids": [1]}"#, "missing field `output_length`");
    check(&row(3, 512, "1"), "`timestamp` goes back from 4 to 3 ms");
    check(&row(5, 0, ""), "`input_length` and `output_length` are at least 1");
    check(&row(5, 513, "1"), "`hash_ids` names 1 blocks; 513 tokens have 2");
    check(&row(5, 512, "1").replace('{', r#"{"version": 2, "#), "has version 2 of the format; 1 is known");
}

#[test]
fn nothing_is_no_trace() {
    assert_eq!(lines(&["", ""]).unwrap_err(), "/a.jsonl has no requests");
    assert!(read(Path::new("/nowhere/at/all")).unwrap_err().to_string().starts_with("cannot read /nowhere"));
}

const CONVERSATION: &str = r#"{"block_size": 4, "hash_id_scope": "local", "tool_tokens": 5, "system_tokens": 3, "requests": [
    {"t": 0, "type": "s", "in": 9, "out": 3, "hash_ids": [1, 2], "stop": "tool_use"},
    {"t": 1.5, "type": "subagent", "requests": [{"t": 2, "type": "n", "in": 12, "out": 1, "hash_ids": [1, 2, 7]}]},
    {"t": 9, "type": "s", "in": 14, "out": 5, "hash_ids": [1, 2, 3], "stop": "end_turn", "think_time": 4}]}"#;

fn conversation(replace: &str, with: &str) -> String {
    CONVERSATION.replace('\n', " ").replace(replace, with)
}

#[test]
fn conversations_share_tools_and_system_prompt_alone() {
    let one = conversation("", "");
    let trace = lines(&[&one, &one, &conversation("\"tool_tokens\": 5", "\"tool_tokens\": 6")]).unwrap();
    assert_eq!((trace.sessions.len(), trace.requests.len(), trace.block_tokens), (6, 9, 4));
    assert_eq!(trace.sessions[1], Session { parent: Some(0), is_named: true });
    let due: Vec<f64> = trace.requests.iter().map(|request| request.due_ms).collect();
    assert_eq!(due[..4], [0.0, 3_500.0, 9_000.0, STAGGER_MS]);
    let of = |at: usize| trace.blocks(&trace.requests[at]);
    let last = &trace.requests[2];
    assert_eq!((last.turn, last.pause_ms, last.stop), (1, Some(4_000.0), Stop::Answer));
    assert_eq!(of(0), &of(2)[..2]);
    assert_eq!(of(0), &of(1)[..2], "a sub-agent has the conversation's numbers");
    assert!(of(3) == of(0) && of(5)[2] != of(2)[2], "two blocks of tools and system are shared");
    assert_ne!(of(6)[0], of(0)[0], "others have other tools");
}

#[test]
fn bad_conversations_are_told_with_their_line() {
    let check = |bad: String, expected: &str| {
        let error = lines(&[&conversation("", ""), &bad]).unwrap_err();
        assert!(error.starts_with("/a.jsonl, line 2: ") && error.contains(expected), "{error}");
    };
    check(conversation("\"t\": 9", "\"t\": -1"), "request 2: `t` goes back from 1.5 to -1 s");
    check(conversation("[1, 2, 3]", "[1, 2]"), "request 2: `hash_ids` names 2 blocks; 14 tokens have 3");
    check(conversation("local", "global"), "`hash_id_scope` is `global`; `local` is known");
    check(conversation("\"block_size\": 4", "\"block_size\": 8"), "`block_size` is 8");
    check(conversation("{\"block_size\"", "{\"version\": 9, \"block_size\""), "has version 9 of the format");
    check("{\"requests\": 7}".to_owned(), "invalid type");
}

#[test]
fn generated_sessions_are_the_same_for_a_seed_and_grow_from_turn_to_turn() {
    let agents = Agents { sessions: 12, subagent_share: 0.1, ..Agents::default() };
    let trace = agents.trace().unwrap();
    assert_eq!(trace, agents.trace().unwrap());
    assert_ne!(trace, Agents { seed: 2, ..agents.clone() }.trace().unwrap());
    assert!(trace.requests.is_sorted_by(|one, other| one.due_ms <= other.due_ms));
    assert!(trace.sessions.iter().any(|session| session.parent.is_some()));
    let mut last: Vec<Option<&Request>> = vec![None; trace.sessions.len()];
    let (mut grown, mut turns) = (0, 0);
    for request in &trace.requests {
        let before = last[request.session as usize].replace(request);
        let Some(before) = before else { continue };
        turns += 1;
        grown += usize::from(trace.blocks(request).starts_with(trace.whole_blocks(before)));
    }
    assert!(turns > 100 && grown * 100 > turns * 95, "{grown} of {turns}: only summaries begin anew");
    assert!((0.85..0.99).contains(&trace.ceiling()), "{}", trace.ceiling());
}

#[test]
fn sessions_that_cannot_be_are_refused_by_name() {
    let error = |agents: Agents| agents.trace().unwrap_err().to_string();
    let told = error(Agents { tools_share: 1.5, ..Agents::default() });
    assert_eq!(told, "`tools_share` is 1.5; a share lies between 0 and 1");
    assert!(error(Agents { sessions: 0, ..Agents::default() }).starts_with("`sessions` is 0;"));
    assert!(error(Agents { context_tokens: 100, ..Agents::default() }).starts_with("`context_tokens`"));
    assert!(error(Agents { stagger_s: f64::NAN, ..Agents::default() }).starts_with("`stagger_s`"));
}
