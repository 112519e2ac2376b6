//! What constraints let a model say, with the tokens of the embedded model and a model that draws at random.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::ctx::mix;
use crate::prompt::{
    ArgumentStyle, CallSyntax, Family, NameStyle, OutputEvent, OutputParser, ReasoningMarks, Tokenizer,
};

const STOP: u32 = 2;

const THINK: ReasoningMarks = ReasoningMarks { open: "<think>", close: "</think>" };

fn grammars() -> (Arc<Tokenizer>, Grammars) {
    let json = include_bytes!("../../../../../examples/models/tiny-agent/tokenizer.json");
    let tokenizer = Arc::new(Tokenizer::from_bytes(Path::new("tiny"), json).expect("a tokenizer"));
    (Arc::clone(&tokenizer), Grammars::new(tokenizer, Arc::new([STOP])))
}

fn here(work: &mut dyn FnMut()) {
    work();
}

fn schema(schema: Value, strict: bool) -> Format {
    Format::JsonSchema { schema, strict, param: "schema".into() }
}

fn ask<'a>(format: &'a Format, calls: Calls<'a>) -> Ask<'a> {
    Ask { format, calls, syntax: Some(&CallSyntax::HERMES) }
}

/// What a model says that draws any allowed token; `None` if it is not done after `max` tokens.
fn random(asked: &Ask<'_>, reasoning: Reasoning, seed: u64, max: usize) -> Option<String> {
    let (tokenizer, grammars) = grammars();
    let grammar = grammars.grammar(asked, here).expect("it compiles").expect("it constrains");
    drawn(&tokenizer, grammar.begin(reasoning), seed, max)
}

fn drawn(tokenizer: &Tokenizer, mut constraint: Constraint, seed: u64, max: usize) -> Option<String> {
    let mut bytes = Vec::new();
    for at in 0..max {
        constraint.compute().expect("a mask");
        let tokens: Vec<u32> = constraint.mask().tokens(tokenizer.vocab_size()).collect();
        assert!(!tokens.is_empty(), "nothing is allowed after {}", String::from_utf8_lossy(&bytes));
        let token = tokens[(mix(seed ^ mix(at as u64)) % tokens.len() as u64) as usize];
        if token == STOP {
            return Some(String::from_utf8(bytes).expect("whole characters"));
        }
        bytes.extend_from_slice(&tokenizer.token_bytes(token));
        if constraint.advance(token).expect("an allowed token") == Next::Complete {
            return Some(String::from_utf8(bytes).expect("whole characters"));
        }
    }
    None
}

/// Whether a text's tokens are let through up to its end, and whether it may end there.
fn accepts(format: &Format, text: &str) -> bool {
    let (tokenizer, grammars) = grammars();
    let grammar = grammars.grammar(&ask(format, Calls::None), here).expect("it compiles");
    let mut constraint = grammar.expect("it constrains").begin(Reasoning::None);
    let tokens = tokenizer.encode(text);
    for (i, &token) in tokens.iter().enumerate() {
        constraint.compute().expect("a mask");
        if !constraint.mask().allows(token) {
            return false;
        }
        match constraint.advance(token).expect("an allowed token") {
            Next::More => {}
            Next::Complete => return i + 1 == tokens.len(),
        }
    }
    constraint.compute().expect("a mask");
    constraint.mask().allows(STOP)
}

#[test]
fn json_is_compact() {
    let format = schema(
        json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
        "required": ["a"], "additionalProperties": false}),
        true,
    );
    assert!(accepts(&format, r#"{"a":1,"b":"x y"}"#));
    assert!(accepts(&format, r#"{"a":-12}"#));
    for wrong in
        [r#"{"a": 1}"#, r#"{ "a":1}"#, "{\"a\":1\n}", r#"{"b":"x"}"#, r#"{"a":1,"c":2}"#, " {\"a\":1}", ""]
    {
        assert!(!accepts(&format, wrong), "{wrong}");
    }
}

#[test]
fn formats_accept_what_they_say() {
    assert!(accepts(&Format::JsonObject, r#"{"x":[1,{"y":null}]}"#));
    assert!(!accepts(&Format::JsonObject, "[1]"));
    let regex = Format::Regex { pattern: "[ab]+/c?".into(), param: "guided_regex".into() };
    assert!(accepts(&regex, "abba/"));
    assert!(!accepts(&regex, "abba"));
    let texts = vec!["yes \"so\"".to_owned(), "no\n".to_owned()];
    let choice = Format::Choice { texts, param: "guided_choice".into() };
    assert!(accepts(&choice, "yes \"so\""));
    assert!(accepts(&choice, "no\n"));
    assert!(!accepts(&choice, "no"));
    let grammar = "start: \"SELECT \" NAME\nNAME: /[a-z]+/\n".to_owned();
    let lark = Format::Lark { grammar, param: "guided_grammar".into() };
    assert!(accepts(&lark, "SELECT name"));
    assert!(!accepts(&lark, "SELECT 1"));
}

#[test]
fn schemas_reach_into_definitions_and_themselves() {
    let format = schema(
        json!({"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/definitions/node",
        "definitions": {"node": {"type": "object", "properties": {"v": {"$ref": "#/definitions/v"},
            "next": {"anyOf": [{"$ref": "#/definitions/node"}, {"type": "null"}]}},
            "required": ["v", "next"], "additionalProperties": false},
            "v": {"enum": [1, "two", null]}}}),
        true,
    );
    assert!(accepts(&format, r#"{"v":1,"next":{"v":"two","next":null}}"#));
    assert!(!accepts(&format, r#"{"v":2,"next":null}"#));
}

/// What is wrong with a format: the field, and words of the message.
fn refusal(format: &Format) -> (String, String) {
    match grammars().1.grammar(&ask(format, Calls::None), here) {
        Err(PromptError::Refused { param, message }) => (param, message),
        other => panic!("{format:?} gave {other:?}"),
    }
}

#[test]
fn what_is_wrong_is_named_by_its_path() {
    let check = |wrong: Value, strict, path: &str, words: &str| {
        let (param, message) = refusal(&schema(wrong, strict));
        assert_eq!(param, path, "{message}");
        assert!(message.contains(words) && message.contains(path), "{message}");
    };
    check(json!({"properties": {"x": {"type": "strin"}}}), false, "schema.properties.x.type", "one of null");
    check(json!({"required": "x"}), false, "schema.required", "a list of property names");
    check(json!({"anyOf": []}), false, "schema.anyOf", "at least one");
    check(json!({"items": {"$ref": "#/$defs/a"}}), false, "schema.items.$ref", "does not have");
    check(json!({"$ref": "https://example.com/s.json"}), false, "schema.$ref", "within the schema");
    check(json!({"items": {"minLength": -1}}), false, "schema.items.minLength", "whole number");
    check(json!({"properties": {"x": {"not": {}}}}), true, "schema.properties.x.not", "strict");
    check(json!({"pattern": "(?=a)b"}), true, "schema.pattern", "look-around");
    check(json!({"format": "colour"}), true, "schema.format", "date-time");
    check(
        json!({"items": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}),
        true,
        "schema.items.oneOf",
        "oneOf",
    );
    check(json!(7), false, "schema", "object");
    check(json!(false), false, "schema", "nothing fits");
    check(json!({"type": "integer", "minimum": 5, "maximum": 1}), false, "schema", "cannot be enforced");
    let regex = |pattern: &str| Format::Regex { pattern: pattern.into(), param: "guided_regex".into() };
    assert_eq!(refusal(&regex("(")).0, "guided_regex");
    let lark = |grammar: &str| Format::Lark { grammar: grammar.into(), param: "guided_grammar".into() };
    for wrong in ["start: other", "rule: \"x\"", "start: (((", "", &"(".repeat(9000), "start: <[99999]>"] {
        assert_eq!(refusal(&lark(wrong)).0, "guided_grammar");
    }
}

#[test]
fn what_cannot_be_enforced_is_left_out_where_that_is_wanted() {
    let format = schema(
        json!({"type": "object", "properties": {"x": {"type": "string", "pattern": "(?=a)b",
        "format": "colour", "not": {"const": "z"}}, "y": {"type": "array", "uniqueItems": true}},
        "additionalProperties": false}),
        false,
    );
    assert!(accepts(&format, r#"{"x":"q","y":[1,1]}"#));
}

#[test]
fn a_chain_of_references_does_not_end_the_host() {
    let link = |i: usize| {
        (format!("d{i}"), json!({"type": "array", "items": {"$ref": format!("#/$defs/d{}", i + 1)}}))
    };
    let mut definitions: serde_json::Map<String, Value> = (0..1600).map(link).collect();
    definitions.insert("d1600".into(), json!({"type": "null"}));
    let format = schema(json!({"$ref": "#/$defs/d0", "$defs": definitions}), true);
    let _ = grammars().1.grammar(&ask(&format, Calls::None), here);
    let rules: String = (0..6000).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
    let grammar = format!("start: r0\n{rules}r6000: \"x\"\n");
    let lark = Format::Lark { grammar: grammar.clone(), param: "guided_grammar".into() };
    let _ = grammars().1.grammar(&ask(&lark, Calls::None), here);
}

#[test]
fn a_long_pattern_is_followed_on_a_small_stack() {
    let pattern = "abcdefghij".repeat(300);
    let regex = Format::Regex { pattern: pattern.clone(), param: "guided_regex".into() };
    assert!(accepts(&regex, &pattern));
}

#[test]
fn a_grammar_is_compiled_once() {
    let (_, grammars) = grammars();
    let slow = std::cell::Cell::new(0);
    let slowly = |work: &mut dyn FnMut()| {
        slow.set(slow.get() + 1);
        work();
    };
    for _ in 0..3 {
        let format = schema(json!({"type": "integer"}), true);
        let grammar = grammars.grammar(&ask(&format, Calls::None), slowly).expect("it compiles");
        assert!(grammar.is_some());
    }
    assert_eq!(slow.get(), 2, "the vocabulary once, and the grammar once");
    assert!(grammars.grammar(&ask(&Format::Text, Calls::None), slowly).expect("free").is_none());
}

#[test]
fn a_random_model_cannot_lose_itself_in_white_space() {
    let format = schema(
        json!({"type": "object", "properties": {"a": {"type": "array", "minItems": 2, "maxItems": 3,
        "items": {"type": "object", "properties": {"k": {"enum": ["x", "yy"]}, "b": {"type": "boolean"}},
        "required": ["k", "b"], "additionalProperties": false}}}, "required": ["a"],
        "additionalProperties": false}),
        true,
    );
    for seed in 0..50 {
        let text = random(&ask(&format, Calls::None), Reasoning::None, seed, 120).expect("it ends");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value.to_string(), text, "compact");
    }
}

fn tools() -> Vec<Value> {
    let tool = |name: &str, parameters: Value| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    vec![
        tool(
            "set",
            json!({"type": "object", "properties": {"on": {"type": "boolean"}, "mode": {"enum": ["a", "b"]}},
            "required": ["on", "mode"], "additionalProperties": false}),
        ),
        tool(
            "wait \"now\"",
            json!({"type": "object", "properties": {"s": {"type": "integer", "minimum": 1, "maximum": 60}},
            "required": ["s"], "additionalProperties": false}),
        ),
    ]
}

/// Calls that a random model makes, read back by the parser of answers.
fn calls(ask: &Ask<'_>, reasoning: Reasoning, seed: u64) -> Vec<(String, Value)> {
    let text = random(ask, reasoning, seed, 400).expect("it ends");
    let mut parser = OutputParser::new(Family::Hermes, Some(&[]), matches!(reasoning, Reasoning::Inside(_)));
    let mut events = parser.push(&text);
    events.extend(parser.finish());
    let mut calls: Vec<(String, String)> = Vec::new();
    for event in events {
        match event {
            OutputEvent::CallStart { name, .. } => calls.push((name, String::new())),
            OutputEvent::CallArguments { delta, .. } => {
                calls.last_mut().expect("it began").1.push_str(&delta)
            }
            OutputEvent::Text(text) => assert!(text.trim().is_empty(), "text beside calls: {text}"),
            OutputEvent::Reasoning(_) | OutputEvent::CallEnd { .. } => {}
        }
    }
    assert!(!parser.truncated());
    calls.into_iter().map(|(name, json)| (name, serde_json::from_str(&json).expect("JSON"))).collect()
}

fn fits((name, arguments): &(String, Value)) -> bool {
    match name.as_str() {
        "set" => arguments["on"].is_boolean() && ["a", "b"].iter().any(|mode| arguments["mode"] == *mode),
        "wait \"now\"" => arguments["s"].as_i64().is_some_and(|s| (1..=60).contains(&s)),
        _ => false,
    }
}

#[test]
fn forced_calls_fit_their_tools() {
    let tools = tools();
    let mut several = 0;
    for seed in 0..40 {
        let must = |many, named| ask(&Format::Text, Calls::Must { tools: &tools, many, named });
        let one = calls(&must(false, None), Reasoning::None, seed);
        assert!(one.len() == 1 && fits(&one[0]), "{one:?}");
        let named = calls(&must(false, Some("set")), Reasoning::None, seed);
        assert!(named.len() == 1 && named[0].0 == "set" && fits(&named[0]), "{named:?}");
        let many = calls(&must(true, None), Reasoning::None, seed);
        assert!((1..=16).contains(&many.len()) && many.iter().all(fits), "{many:?}");
        several += usize::from(many.len() > 1);
    }
    assert!(several > 0, "several calls are possible");
}

#[test]
fn whoever_has_tools_and_a_format_gets_either() {
    let (tools, mut texts, mut called) = (tools(), 0, 0);
    let format = schema(json!({"enum": ["left", "right"]}), true);
    for seed in 0..40 {
        let text = random(&ask(&format, Calls::May(&tools)), Reasoning::None, seed, 400).expect("it ends");
        match text.contains("<tool_call>") {
            true => called += 1,
            false => {
                assert!(["\"left\"", "\"right\""].contains(&text.as_str()), "{text}");
                texts += 1;
            }
        }
    }
    assert!(texts > 0 && called > 0, "{texts} texts, {called} calls");
}

#[test]
fn parameters_one_by_one_fit_their_properties() {
    let syntax = CallSyntax {
        section_open: "",
        begin: "<tool_call>\n<function=",
        after_name: ">\n",
        end: "</function>\n</tool_call>",
        between: "\n",
        section_close: "",
        name: NameStyle::Plain,
        arguments: ArgumentStyle::Parameters {
            open: "<parameter=",
            after_key: ">\n",
            close: "\n</parameter>\n",
        },
    };
    let tools = [json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object",
        "properties": {"n": {"$ref": "#/$defs/n"}, "mode": {"type": "string", "enum": ["a", "b"]}, "free": {"type": "string"}},
        "required": ["n", "mode"], "$defs": {"n": {"type": "integer", "minimum": 3, "maximum": 5}}}}})];
    let asked = Ask {
        format: &Format::Text,
        calls: Calls::Must { tools: &tools, many: false, named: Some("f") },
        syntax: Some(&syntax),
    };
    let (tokenizer, grammars) = grammars();
    let grammar = grammars.grammar(&asked, here).expect("it compiles").expect("it constrains");
    let whole = |text: &str| {
        let mut constraint = grammar.begin(Reasoning::None);
        let mut ended = Next::More;
        tokenizer.encode(text).iter().all(|&token| {
            constraint.compute().is_ok() && constraint.mask().allows(token) && {
                ended = constraint.advance(token).expect("allowed");
                true
            }
        }) && ended == Next::Complete
    };
    let call = |n: &str, more: &str| {
        format!(
            "<tool_call>\n<function=f>\n<parameter=n>\n{n}\n</parameter>\n<parameter=mode>\nb\n</parameter>\n{more}</function>\n</tool_call>"
        )
    };
    assert!(whole(&call("4", "")));
    assert!(whole(&call("3", "<parameter=free>\nany <text>\nin lines\n</parameter>\n")));
    assert!(!whole(&call("7", "")));
}

#[test]
fn a_model_reasons_before_the_grammar_begins() {
    let format = schema(json!({"enum": [1, 2]}), true);
    let (tokenizer, grammars) = grammars();
    let grammar =
        grammars.grammar(&ask(&format, Calls::None), here).expect("it compiles").expect("it constrains");
    let check = |reasoning, text: &str, expected: bool| {
        let mut constraint = grammar.begin(reasoning);
        let mut tokens = tokenizer.encode(text);
        let last = tokens.pop().expect("some tokens");
        for token in tokens {
            constraint.compute().expect("a mask");
            assert!(constraint.mask().allows(token), "{text}: {token}");
            assert_eq!(constraint.advance(token), Ok(Next::More), "{text}");
        }
        constraint.compute().expect("a mask");
        let complete = constraint.mask().allows(last) && constraint.advance(last) == Ok(Next::Complete);
        assert_eq!(complete, expected, "{text}");
    };
    check(Reasoning::Inside(THINK), "any {thought\n</think>1", true);
    check(Reasoning::Inside(THINK), "any thought\n</think>\n\n2", true);
    check(Reasoning::Inside(THINK), "any thought\n</think>\n\n\n", false);
    check(Reasoning::Inside(THINK), "any thought<|im_end|>", false);
    check(Reasoning::May(THINK), "<think>x</think>1", true);
    check(Reasoning::May(THINK), "2", true);
    check(Reasoning::May(THINK), "x", false);
    check(Reasoning::None, "<think>", false);
}

fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "null"})),
        (-50i64..50, 0i64..50)
            .prop_map(|(min, more)| json!({"type": "integer", "minimum": min, "maximum": min + more})),
        (0u64..3, 0u64..4)
            .prop_map(|(min, more)| json!({"type": "string", "minLength": min, "maxLength": min + more})),
        Just(json!({"type": "string", "pattern": "^[a-c]{1,3}$"})),
        Just(json!({"enum": ["x", 1, null, {"k": [true]}, "a \"quoted\" \\ one"]})),
        Just(json!({"const": "é🚂"})),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), 0u64..3, 0u64..3).prop_map(|(items, min, more)| {
                json!({"type": "array", "items": items, "minItems": min, "maxItems": min + more})
            }),
            prop::collection::vec((inner.clone(), any::<bool>()), 1..4).prop_map(|properties| {
                let name = |i: usize| format!("p{i}");
                let required: Vec<String> =
                    (0..properties.len()).filter(|&i| properties[i].1).map(name).collect();
                let properties: serde_json::Map<String, Value> =
                    properties.iter().enumerate().map(|(i, (schema, _))| (name(i), schema.clone())).collect();
                json!({"type": "object", "properties": properties, "required": required,
                    "additionalProperties": false})
            }),
            prop::collection::vec(inner, 1..3).prop_map(|any| json!({"anyOf": any})),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever a constraint lets end is JSON that fits the schema.
    #[test]
    fn what_ends_fits_the_schema(schema_of in any_schema(), seed in any::<u64>()) {
        let format = schema(schema_of.clone(), true);
        let text = random(&ask(&format, Calls::None), Reasoning::None, seed, 2000);
        let text = text.expect("everything in it is bounded");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        let mut schemas = boon::Schemas::new();
        let mut compiler = boon::Compiler::new();
        compiler.add_resource("schema.json", schema_of.clone()).expect("a schema");
        let index = compiler.compile("schema.json", &mut schemas).expect("a schema");
        prop_assert!(schemas.validate(&value, index).is_ok(), "{text} does not fit {schema_of}");
    }
}

#[test]
fn objects_have_the_properties_that_they_name_and_no_others() {
    let check = |schema: Value, closed: bool| {
        let prepared = super::schema::prepare(&schema, "s", false).expect("a schema");
        assert_eq!(prepared.get("additionalProperties") == Some(&Value::Bool(false)), closed, "{schema}");
    };
    let one = json!({"a": {"type": "integer"}});
    check(json!({"properties": one, "required": ["a"]}), true);
    check(json!({"type": "object", "properties": {}}), true);
    check(json!({"type": "object"}), false);
    check(json!({"properties": one, "additionalProperties": {"type": "string"}}), false);
    check(json!({"properties": one, "required": ["b"]}), false);
    check(json!({"properties": one, "anyOf": [{"required": ["a"]}]}), false);
    check(json!({"properties": {"b": {"allOf": [{"properties": one}]}}}), false);
}
