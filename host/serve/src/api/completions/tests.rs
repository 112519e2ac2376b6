use engine::SamplingParams;
use serde_json::json;

use super::*;
use crate::config::{HintSources, Limits};
use crate::prompt::Prompts;

fn parsed(body: Value) -> Result<(Request, Style), Refusal> {
    let (limits, hints) = (Limits::default(), HintSources::default());
    let prompts = Prompts::new(0, || 1);
    let rules = Rules {
        model: "m",
        aliases: &[],
        adapters: &[],
        vocab: 100,
        sampling: &SamplingParams::default(),
        limits: &limits,
        hints: &hints,
        prompts: &prompts,
        tenant: 0,
    };
    parse(body.to_string().as_bytes(), &HeaderMap::new(), &rules, 7)
}

fn check(prompt: Value, expected: &Input) {
    let (request, _) = parsed(json!({ "prompt": prompt })).expect("it is right");
    assert_eq!(request.input, *expected);
}

/// The field that a body is refused for.
fn refused(body: Value) -> String {
    match parsed(body) {
        Err(Refusal::Field { param, message }) => {
            assert!(message.contains(&format!("`{param}`")), "{message}");
            param
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_prompt_has_four_forms() {
    let text = |text: &str| Input::Text(text.to_owned());
    check(json!("a b"), &text("a b"));
    check(json!(["a"]), &text("a"));
    check(json!(["a", "b"]), &Input::Batch(vec![text("a"), text("b")]));
    check(json!([1, 2]), &Input::Tokens(vec![1, 2]));
    check(json!([[1], [2, 3]]), &Input::Batch(vec![Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])]));
}

#[test]
fn a_prompt_of_another_form_is_refused_by_name() {
    for prompt in [json!(null), json!(7), json!([]), json!({}), json!(["a", 1]), json!([["a"], "b"])] {
        let param = refused(json!({ "prompt": prompt }));
        assert!(param.starts_with("prompt"), "{param}");
    }
    assert_eq!(refused(json!({ "prompt": [1, 100] })), "prompt[1]");
    assert_eq!(refused(json!({ "prompt": [1, "a"] })), "prompt[1]");
    assert_eq!(refused(json!({ "prompt": [[1], []] })), "prompt[1]");
    assert_eq!(refused(json!({ "prompt": [[1], [-1]] })), "prompt[1][0]");
    let many = vec!["a"; Limits::default().requests_max + 1];
    assert_eq!(refused(json!({ "prompt": many })), "prompt");
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    assert_eq!(refused(json!({ "prompt": "a", "suffix": "b" })), "suffix");
    assert_eq!(refused(json!({ "prompt": "a", "best_of": 2 })), "best_of");
    assert_eq!(refused(json!({ "prompt": "a", "echo": true, "logprobs": 1 })), "echo");
    assert_eq!(refused(json!({ "prompt": "a", "logprobs": 21 })), "logprobs");
    assert_eq!(refused(json!({ "prompt": "a", "logprobs": true })), "logprobs");
    assert_eq!(refused(json!({ "prompt": "a", "n": 0 })), "n");
    for more in [json!({ "suffix": "" }), json!({ "suffix": null }), json!({ "n": 2, "best_of": 2 })] {
        let mut body = json!({ "prompt": "a" });
        body.as_object_mut().expect("an object").extend(more.as_object().cloned().expect("an object"));
        assert!(parsed(body).is_ok());
    }
}

#[test]
fn limits_are_those_of_openai() {
    let (request, style) = parsed(json!({ "prompt": "a" })).expect("it is right");
    assert_eq!((request.output_tokens_max, request.sampling.logprobs), (Some(16), None));
    assert_eq!(style, Style { usage: false, echo: vec![] });
    let (request, style) =
        parsed(json!({ "prompt": "a", "max_tokens": 0, "echo": true })).expect("it is right");
    assert_eq!(request.output_tokens_max, Some(0));
    assert_eq!(style.echo, [Input::Text("a".to_owned())]);
    let (request, _) = parsed(json!({ "prompt": "a", "logprobs": 0 })).expect("it is right");
    assert_eq!(request.sampling.logprobs, Some(0));
}
