use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// All events of an answer given in pieces, deltas of one kind joined.
fn run((tools, in_reasoning): Format, pieces: &[&str]) -> (Vec<OutputEvent>, bool) {
    run_family(Family::Hermes, tools.then_some(&[]), in_reasoning, pieces)
}

fn run_family(
    family: Family,
    tools: Option<&[Value]>,
    in_reasoning: bool,
    pieces: &[&str],
) -> (Vec<OutputEvent>, bool) {
    let mut parser = OutputParser::new(family, tools, in_reasoning);
    let mut events: Vec<_> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    events.extend(parser.finish());
    let mut joined: Vec<OutputEvent> = Vec::new();
    for event in events {
        match (joined.last_mut(), event) {
            (Some(OutputEvent::Reasoning(all)), OutputEvent::Reasoning(delta))
            | (Some(OutputEvent::Text(all)), OutputEvent::Text(delta))
            | (
                Some(OutputEvent::CallArguments { delta: all, .. }),
                OutputEvent::CallArguments { delta, .. },
            ) => {
                *all += &delta;
            }
            (_, event) => joined.push(event),
        }
    }
    (joined, parser.truncated())
}

/// Events, one a line: `r` reasoning, `t` text, `c0 name`, `a0 arguments`, `e0`; then `truncated`.
fn show((events, truncated): &(Vec<OutputEvent>, bool)) -> String {
    let line = |event: &OutputEvent| match event {
        OutputEvent::Reasoning(text) => format!("r {text:?}"),
        OutputEvent::Text(text) => format!("t {text:?}"),
        OutputEvent::CallStart { index, id: Some(id), name } => format!("c{index} {name} {id}"),
        OutputEvent::CallStart { index, id: None, name } => format!("c{index} {name}"),
        OutputEvent::CallArguments { index, delta } => format!("a{index} {delta}"),
        OutputEvent::CallEnd { index } => format!("e{index}"),
    };
    let mut lines: Vec<String> = events.iter().map(line).collect();
    lines.extend(truncated.then(|| "truncated".to_owned()));
    lines.join("\n")
}

/// Whether the request has tools, and whether the prompt opened the reasoning.
type Format = (bool, bool);
const TOOLS: Format = (true, false);
const PLAIN: Format = (false, false);
const OPEN: Format = (true, true);

/// Checks an answer given whole, character by character, and cut in two at every place.
fn check(format: Format, answer: &str, expected: &[&str]) {
    let expected = expected.join("\n");
    assert_eq!(show(&run(format, &[answer])), expected);
    let chars: Vec<String> = answer.chars().map(String::from).collect();
    let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
    assert_eq!(show(&run(format, &chars)), expected, "by character");
    for (at, _) in answer.char_indices() {
        let (left, right) = answer.split_at(at);
        assert_eq!(show(&run(format, &[left, right])), expected, "cut before {right:?}");
    }
}

#[test]
fn an_answer_without_markup_is_text() {
    for format in [TOOLS, PLAIN] {
        check(format, "", &[]);
        check(format, " a < b\n\nc <tool", &[r#"t " a < b\n\nc <tool""#]);
        check(format, "é<th", &[r#"t "é<th""#]);
    }
}

#[test]
fn reasoning_comes_before_text() {
    for format in [TOOLS, PLAIN] {
        check(format, "<think>\na\n\nb\n</think>\n\nc\n", &[r#"r "a\n\nb""#, r#"t "c\n""#]);
        check(format, " \n<think>\n\n</think>\n\nc", &[r#"t "c""#]);
        check(format, "<think>a</thin", &[r#"r "a</thin""#]);
    }
}

#[test]
fn a_template_may_open_the_reasoning() {
    check(OPEN, "\na</think>b", &[r#"r "a""#, r#"t "b""#]);
    check(OPEN, "a", &[r#"r "a""#]);
}

#[test]
fn a_caller_can_tell_reasoning_while_it_lasts() {
    let mut parser = OutputParser::new(Family::Hermes, None, false);
    let told = ["<th", "ink>", "a", "</think", ">", "b"].map(|piece| {
        parser.push(piece);
        parser.in_reasoning()
    });
    assert_eq!(told, [false, true, true, true, false, false]);
}

#[test]
fn reasoning_opens_at_the_start_only() {
    check(TOOLS, "a<think>b</think>", &[r#"t "a<think>b</think>""#]);
}

#[test]
fn a_call_is_taken_apart() {
    let answer =
        "I read.\n<tool_call>\n{\"name\": \"read\", \"arguments\": {\"path\":  \"a\\u00e9\"}}\n</tool_call>";
    check(TOOLS, answer, &[r#"t "I read.""#, "c0 read", r#"a0 {"path":  "a\u00e9"}"#, "e0"]);
    check(PLAIN, answer, &[&format!("t {answer:?}")]);
}

#[test]
fn calls_follow_each_other() {
    let call = |n| format!("<tool_call>\n{{\"name\": \"f{n}\", \"arguments\": {{}}}}\n</tool_call>");
    let answer = format!("<think>\nx\n</think>\n\n{}\n{} \n then\n", call(0), call(1));
    check(TOOLS, &answer, &["r \"x\"", "c0 f0", "a0 {}", "e0", "c1 f1", "a1 {}", "e1", r#"t " \n then\n""#]);
}

#[test]
fn arguments_stream_when_the_name_came_first() {
    let mut parser = OutputParser::new(Family::Hermes, Some(&[]), false);
    let events = parser.push(r#"<tool_call>{"name": "f", "arguments": {"a": "#);
    let delta = |delta: &str| OutputEvent::CallArguments { index: 0, delta: delta.into() };
    assert_eq!(events, [OutputEvent::CallStart { index: 0, id: None, name: "f".into() }, delta(r#"{"a": "#)]);
    assert_eq!(parser.push("1"), [delta("1")]);
}

#[test]
fn arguments_may_come_before_the_name() {
    let answer = r#"<tool_call>{"arguments": {"a": [1, "}"]}, "id": 7, "name": "f"}</tool_call>"#;
    check(TOOLS, answer, &["c0 f", r#"a0 {"a": [1, "}"]}"#, "e0"]);
}

#[test]
fn a_string_may_contain_the_end_marker() {
    let answer =
        r#"<tool_call>{"name": "f", "arguments": {"a": "</tool_call> \"} <tool_call>\\"}}</tool_call>"#;
    check(TOOLS, answer, &["c0 f", r#"a0 {"a": "</tool_call> \"} <tool_call>\\"}"#, "e0"]);
}

#[test]
fn arguments_are_any_json() {
    for arguments in ["null", "-1.5e3", "[1, 2]", r#""{\"a\": 1}""#, "{}"] {
        let answer = format!(r#"<tool_call>{{"name": "f", "arguments": {arguments} }}</tool_call>"#);
        check(TOOLS, &answer, &["c0 f", &format!("a0 {arguments}"), "e0"]);
    }
}

#[test]
fn a_call_without_arguments_has_an_empty_object() {
    check(TOOLS, r#"<tool_call>{"name": "f"}</tool_call>"#, &["c0 f", "a0 {}", "e0"]);
    check(TOOLS, r#"<tool_call>{"name": "f",}</tool_call>"#, &["c0 f", "a0 {}", "e0"]);
}

#[test]
fn what_is_no_call_becomes_text_without_markup() {
    check(TOOLS, "a\n<tool_call>\nhello\n</tool_call>\nb", &[r#"t "ahello\nb""#]);
    check(TOOLS, r#"<tool_call>{"arguments": {}}</tool_call>"#, &[r#"t "{\"arguments\": {}}""#]);
    check(TOOLS, r#"<tool_call>{"name": 3}</tool_call>"#, &[r#"t "{\"name\": 3}""#]);
    check(TOOLS, "<tool_call><function=f>x", &[r#"t "<function=f>x""#]);
}

#[test]
fn slips_behind_a_call_are_forgiven() {
    let start = r#"<tool_call>{"name": "f", "arguments": {"a": 1}"#;
    let call = ["c0 f", r#"a0 {"a": 1}"#, "e0"];
    check(TOOLS, &format!("{start}}}}}\n</tool_call>"), &call);
    check(TOOLS, &format!("{start}</tool_call>"), &call);
    check(TOOLS, &format!("{start}}}"), &call);
    check(TOOLS, &format!("{start}}}\nand"), &[&call[..], &[r#"t "and""#]].concat());
    check(
        TOOLS,
        &format!("{start}}}\n<tool_call>{{\"name\": \"g\"}}</tool_call>"),
        &[&call[..], &["c1 g", "a1 {}", "e1"]].concat(),
    );
}

#[test]
fn of_a_truncated_call_only_what_is_certain_comes_out() {
    check(
        TOOLS,
        r#"a<tool_call>{"name": "f", "arguments": {"a": "b"#,
        &[r#"t "a""#, "c0 f", r#"a0 {"a": "b"#, "truncated"],
    );
    check(TOOLS, r#"<tool_call>{"name": "f", "#, &["truncated"]);
    check(TOOLS, r#"<tool_call>{"arguments": {"a": 1}, "na"#, &["truncated"]);
    check(TOOLS, "<tool_call>", &["truncated"]);
}

#[test]
fn reasoning_may_speak_of_calls() {
    check(
        OPEN,
        "use <tool_call>{}</tool_call>\n</think>\n\nok",
        &[r#"r "use <tool_call>{}</tool_call>""#, r#"t "ok""#],
    );
}

fn any_answer() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "\n",
        " ",
        "a",
        "é",
        "{\"name\": \"f\"",
        ", ",
        "}",
        "{",
        "\"arguments\": {\"a\": \"b\"}",
        "\"arguments\": ",
        "\"name\": \"g\"",
        "[1]",
        "\"",
        "\\",
        "null",
        "<",
        "<tool",
        "</",
        "7",
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"</tool_call>\"}}\n</tool_call>",
    ]);
    vec(piece, 0..16).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// However an answer is cut, the events are the same.
    #[test]
    fn the_cut_does_not_matter(
        answer in any_answer(), cuts in vec(any::<prop::sample::Index>(), 0..8), open in any::<bool>(), tools in any::<bool>(),
    ) {
        let format = (tools, open);
        let chars: Vec<usize> = answer.char_indices().map(|(at, _)| at).chain([answer.len()]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| chars[cut.index(chars.len())]).collect();
        cuts.extend([0, answer.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|cut| &answer[cut[0]..cut[1]]).collect();
        prop_assert_eq!(run(format, &pieces), run(format, &[&answer]));
    }

    /// Every call is started once, in order, and ended once unless it was cut off; nothing goes on after its end.
    #[test]
    fn calls_are_well_formed(answer in any_answer()) {
        let (events, truncated) = run(TOOLS, &[&answer]);
        let (mut started, mut ended) = (0, 0);
        for event in &events {
            match event {
                OutputEvent::CallStart { index, .. } => {
                    prop_assert_eq!((*index, started), (started, ended));
                    started += 1;
                }
                OutputEvent::CallArguments { index, .. } => prop_assert_eq!((*index + 1, *index), (started, ended)),
                OutputEvent::CallEnd { index } => {
                    prop_assert_eq!((*index, started), (ended, ended + 1));
                    ended += 1;
                }
                OutputEvent::Text(_) | OutputEvent::Reasoning(_) => prop_assert_eq!(started, ended),
            }
        }
        prop_assert!(started - ended <= u32::from(truncated));
    }
}

mod detect;
mod families;
