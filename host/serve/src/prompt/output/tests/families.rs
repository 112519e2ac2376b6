//! What each family's models write, and what becomes of it.

use serde_json::json;

use super::*;

/// Every size that a detokenizer or a speculating engine may give at once, and all.
const SIZES: [usize; 6] = [1, 2, 3, 7, 64, usize::MAX];

fn tools() -> Vec<Value> {
    let properties = json!({
        "s": {"type": "string"}, "n": {"type": "integer"}, "b": {"type": "boolean"},
        "l": {"type": "array"}, "o": {"type": "object"}, "e": {"type": ["string", "integer"]},
    });
    vec![json!({"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}})]
}

fn check_family(family: Family, answer: &str, expected: &[&str]) {
    let chars: Vec<char> = answer.chars().collect();
    for size in SIZES {
        let pieces: Vec<String> =
            chars.chunks(size.min(chars.len().max(1))).map(|piece| piece.iter().collect()).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let found = show(&run_family(family, Some(&tools()), false, &pieces));
        assert_eq!(found, expected.join("\n"), "{} in pieces of {size}", family.as_str());
    }
}

const QWEN: &str = "<think>\nr\n</think>\n\nt\n<tool_call>\n<function=f>\n<parameter=s>\na </parameter> \"é\" </tool_call>\n\n</parameter>\n<parameter=n>\n7\n</parameter>\n<parameter=b>\nTrue\n</parameter>\n<parameter=l>\n['x', 1]\n</parameter>\n</function>\n</tool_call>\n<function=g>\n</function>\n</tool_call>";

#[test]
fn qwen_coder_writes_elements() {
    let first = r#"a0 {"s": "a </parameter> \"é\" </tool_call>\n", "n": 7, "b": true, "l": ["x", 1]}"#;
    check_family(
        Family::QwenCoder,
        QWEN,
        &["r \"r\"", "t \"t\"", "c0 f", first, "e0", "c1 g", "a1 {}", "e1"],
    );
    check_family(
        Family::QwenCoder,
        "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>",
        &["c0 f", "a0 {}", "e0"],
    );
    check_family(Family::QwenCoder, "<function=f><parameter=s>ab", &["c0 f", r#"a0 {"s": "ab"#, "truncated"]);
    check_family(Family::QwenCoder, "<function=f><parameter=n>7", &["c0 f", "truncated"]);
    check_family(Family::QwenCoder, "<tool_call>\nno\n</tool_call>", &[r#"t "no""#]);
}

#[test]
fn llama_writes_objects_or_python() {
    let object = r#"{"name": "f", "parameters": {"a": "<|python_tag|>"}}"#;
    let expected = ["c0 f", r#"a0 {"a": "<|python_tag|>"}"#, "e0"];
    check_family(Family::Llama, object, &expected);
    check_family(Family::Llama, &format!("<|python_tag|>{object}"), &expected);
    check_family(
        Family::Llama,
        &format!("{object}; {object}"),
        &[&expected[..], &["c1 f", r#"a1 {"a": "<|python_tag|>"}"#, "e1"]].concat(),
    );
    check_family(Family::Llama, r#"{"answer": 42}"#, &[r#"t "{\"answer\": 42}""#]);
    check_family(
        Family::LlamaPythonic,
        "[f(a=1, b='x)', c=[True, None]), g()]",
        &["c0 f", r#"a0 {"a": 1, "b": "x)", "c": [true, null]}"#, "e0", "c1 g", "a1 {}", "e1"],
    );
    check_family(Family::LlamaPythonic, "[1] says", &[r#"t "[1] says""#]);
    check_family(Family::LlamaPythonic, "[f(a=1", &["truncated"]);
}

#[test]
fn mistral_writes_lists_or_names() {
    check_family(
        Family::MistralJson,
        r#"t[TOOL_CALLS] [{"name": "f", "arguments": {"a": "]"}}, {"id": "abcdefghi", "name": "g", "arguments": {}}]"#,
        &["t \"t\"", "c0 f", r#"a0 {"a": "]"}"#, "e0", "c1 g abcdefghi", "a1 {}", "e1"],
    );
    check_family(
        Family::Mistral,
        r#"[THINK]r[/THINK]t[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": "[TOOL_CALLS]"}[TOOL_CALLS]g[ARGS]{}"#,
        &["r \"r\"", "t \"t\"", "c0 f abcdefghi", r#"a0 {"a": "[TOOL_CALLS]"}"#, "e0", "c1 g", "a1 {}", "e1"],
    );
    check_family(Family::Mistral, "[TOOL_CALLS]f[ARGS]{\"a", &["c0 f", "a0 {\"a", "truncated"]);
}

#[test]
fn deepseek_and_kimi_put_tokens_around_json() {
    check_family(
        Family::Deepseek,
        "t<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": \"```\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        &["t \"t\"", "c0 f", "a0 {\"a\": \"```\"}", "e0", "c1 g", "a1 {}", "e1"],
    );
    check_family(
        Family::DeepseekV31,
        "<think>r</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        &["r \"r\"", "c0 f", "a0 {\"a\": 1}", "e0"],
    );
    for section in ["<|tool_calls_section_begin|>", "<|tool_call_section_begin|>", ""] {
        check_family(
            Family::Kimi,
            &format!(
                "<think>r{}<|tool_call_begin|>functions.f:3<|tool_call_argument_begin|>{{\"a\": \"<|tool_call_end|>\"}}<|tool_call_end|><|tool_calls_section_end|>",
                if section.is_empty() { "</think>" } else { section }
            ),
            &["r \"r\"", "c0 f functions.f:3", "a0 {\"a\": \"<|tool_call_end|>\"}", "e0"],
        );
    }
}

#[test]
fn dsml_glm_and_minimax_write_elements() {
    check_family(
        Family::DeepseekDsml,
        "t\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"s\" string=\"true\">7</｜DSML｜parameter>\n<｜DSML｜parameter name=\"n\" string=\"false\">[1]</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        &["t \"t\"", "c0 f", r#"a0 {"s": "7", "n": [1]}"#, "e0"],
    );
    check_family(
        Family::Glm,
        "<think>r</think>\n<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>a\n</tool_call> b</arg_value>\n<arg_key>n</arg_key>\n<arg_value>1</arg_value>\n</tool_call><tool_call>g</tool_call>",
        &["r \"r\"", "c0 f", r#"a0 {"s": "a\n</tool_call> b", "n": 1}"#, "e0", "c1 g", "a1 {}", "e1"],
    );
    check_family(
        Family::Minimax,
        "<minimax:tool_call>\n<invoke name=\"f\">\n<parameter name=\"s\">1</parameter>\n<parameter name=\"e\">2</parameter>\n</invoke>\n<invoke name=\"g\">\n</invoke>\n</minimax:tool_call>",
        &["c0 f", r#"a0 {"s": "1", "e": 2}"#, "e0", "c1 g", "a1 {}", "e1"],
    );
}

#[test]
fn harmony_has_channels() {
    check_family(
        Family::Harmony,
        "<|channel|>analysis<|message|>r<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\": \"<|call|>\"}<|call|>",
        &["r \"r\"", "c0 f", "a0 {\"a\": \"<|call|>\"}", "e0"],
    );
    check_family(Family::Harmony, "<|channel|>final<|message|>t<|return|>", &["t \"t\""]);
    check_family(
        Family::Harmony,
        "<|channel|>commentary to=functions.f<|message|>{\"a",
        &["c0 f", "a0 {\"a", "truncated"],
    );
}

#[test]
fn gemma_has_bare_keys() {
    check_family(
        Family::Gemma,
        "<|channel>thought\nr<channel|>t<|tool_call>call:f{s:<|\"|>a, \"}<tool_call|><|\"|>,n:-1.5,l:[1,<|\"|>x<|\"|>],o:{k:true},w:word}<tool_call|>",
        &[
            "r \"r\"",
            "t \"t\"",
            "c0 f",
            r#"a0 {"s": "a, \"}<tool_call|>", "n": -1.5, "l": [1, "x"], "o": {"k": true}, "w": "word"}"#,
            "e0",
        ],
    );
}

#[test]
fn plain_text_stays() {
    check_family(Family::Plain, "<think>a</think><tool_call>", &[r#"t "<think>a</think><tool_call>""#]);
}

/// What the markup of all families is made of, and a little else.
const PIECES: &[&str] = &[
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<function=",
    "f",
    ">",
    "<parameter=",
    "s",
    "n",
    "</parameter>",
    "</function>",
    "\n",
    " ",
    "é",
    "{",
    "}",
    "\"",
    "\\",
    "{\"name\": \"f\", \"parameters\": {\"a\": 1}}",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "[",
    "]",
    "[f(a=1), ",
    "g()",
    ",",
    ":",
    "7",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>",
    "functions.f:0",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜DSML｜function_calls>",
    "<｜DSML｜invoke name=\"",
    "\">",
    "</｜DSML｜invoke>",
    "<｜DSML｜parameter name=\"",
    "\" string=\"false\">",
    "</｜DSML｜parameter>",
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "<|start|>",
    "analysis",
    "to=f",
    "<minimax:tool_call>",
    "<invoke name=\"f\">",
    "</invoke>",
    "<parameter name=\"s\">",
    "<|tool_call>",
    "call:f{",
    "<|\"|>",
    "<tool_call|>",
    "<|channel>thought",
    "<channel|>",
    "<|python_tag|>",
    "<",
    "<|",
];

fn any_output() -> impl Strategy<Value = String> {
    vec(prop::sample::select(PIECES), 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// However an answer of any family is cut, the events are the same.
    #[test]
    fn no_family_minds_the_cut(
        answer in any_output(), family in prop::sample::select(Family::ALL.to_vec()),
        size in 1usize..9, open in any::<bool>(),
    ) {
        let tools = tools();
        let chars: Vec<char> = answer.chars().collect();
        let pieces: Vec<String> = chars.chunks(size).map(|piece| piece.iter().collect()).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        prop_assert_eq!(run_family(family, Some(&tools), open, &pieces), run_family(family, Some(&tools), open, &[&answer]));
    }
}

/// Calls as a grammar of these pieces makes the model write them: arguments are a text and a number.
fn written(syntax: &CallSyntax, calls: &[(String, String, i32)]) -> String {
    let call = |(name, text, number): &(String, String, i32)| {
        let name = match syntax.name {
            NameStyle::Plain => name.clone(),
            NameStyle::JsonString => json!(name).to_string().trim_matches('"').to_owned(),
        };
        let arguments = match syntax.arguments {
            ArgumentStyle::Json => json!({"s": text, "n": number}).to_string(),
            ArgumentStyle::Parameters { open, after_key, close } => {
                format!("{open}s{after_key}{text}{close}{open}n{after_key}{number}{close}")
            }
        };
        format!("{}{name}{}{arguments}{}", syntax.begin, syntax.after_name, syntax.end)
    };
    let calls: Vec<String> = calls.iter().map(call).collect();
    format!("{}{}{}", syntax.section_open, calls.join(syntax.between), syntax.section_close)
}

/// Name and arguments of every complete call; anything else is a failure.
fn read(family: Family, text: &str) -> Vec<(String, Value)> {
    let (events, truncated) = run_family(family, Some(&tools()), false, &[text]);
    assert!(!truncated, "{} is cut off: {text}", family.as_str());
    let mut calls: Vec<(String, String)> = Vec::new();
    for event in events {
        match event {
            OutputEvent::CallStart { name, .. } => calls.push((name, String::new())),
            OutputEvent::CallArguments { delta, .. } => calls.last_mut().expect("a call").1 += &delta,
            OutputEvent::CallEnd { .. } => {}
            other => panic!("{} reads {other:?} in {text}", family.as_str()),
        }
    }
    calls.into_iter().map(|(name, text)| (name, serde_json::from_str(&text).expect("arguments"))).collect()
}

/// Text that a parser may take for something else.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "\n",
        " ",
        "a",
        "é",
        "\"",
        "\\",
        "{",
        "}",
        "]",
        ",",
        "7",
        "true",
        "```",
        "<",
        ">",
        "</tool_call>",
        "<think>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<｜tool▁call▁end｜>",
        "<|tool_call_end|>",
        "<function=f>",
        "</invoke>",
        ";",
    ]);
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// What a grammar makes a model write is read as the same calls.
    #[test]
    fn calls_of_a_grammar_are_read_back(
        calls in vec((any_text(), any::<i32>()), 1..4),
        family in prop::sample::select(Family::ALL.to_vec()),
    ) {
        let Some(syntax) = family.call_syntax() else { return Ok(()) };
        // One tool of known types: without them, a number may be meant as text.
        let calls: Vec<_> = calls.into_iter().map(|(text, number)| ("f".to_owned(), text, number)).collect();
        let expected: Vec<_> =
            calls.iter().map(|(name, text, n)| (name.clone(), json!({"s": text, "n": n}))).collect();
        prop_assert_eq!(read(family, &written(&syntax, &calls)), expected);
    }

    /// Names are read as they are written.
    #[test]
    fn names_of_a_grammar_are_read_back(
        name in "[a-zA-Z_][a-zA-Z0-9_-]{0,24}", family in prop::sample::select(Family::ALL.to_vec()),
    ) {
        let Some(syntax) = family.call_syntax() else { return Ok(()) };
        let read = read(family, &written(&syntax, &[(name.clone(), "x".into(), 1)]));
        prop_assert_eq!(read.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), [name]);
    }
}

#[test]
fn an_id_that_the_host_mints_is_one_that_the_family_takes() {
    assert_eq!(Family::Hermes.call_id("call_1".into()), "call_1");
    for family in [Family::Mistral, Family::MistralJson] {
        let ids: std::collections::BTreeSet<String> =
            (0..10_000).map(|call| family.call_id(format!("call_7f{call}"))).collect();
        assert_eq!(ids.len(), 10_000, "each its own");
        assert!(ids.iter().all(|id| id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric())));
        assert_eq!(family.call_id("call_1".into()), family.call_id("call_1".into()));
    }
}
