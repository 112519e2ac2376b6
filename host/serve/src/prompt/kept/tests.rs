use std::path::Path;
use std::sync::LazyLock;

use kv::{BlockName, Fingerprint};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::prompt::template::{By, Turn};
use crate::prompt::{RenderInput, Segment, TemplateSource, segments};

const TINY: &[u8] = include_bytes!("../../../../../examples/models/tiny-agent/tokenizer.json");
const TINY_CONFIG: &[u8] = include_bytes!("../../../../../examples/models/tiny-agent/tokenizer_config.json");
const NAMING: Naming = Naming { fingerprint: Fingerprint(1), salt: 2, block_tokens: 16 };
const MIB: usize = 1 << 20;

static TOKENIZER: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_bytes(Path::new("tiny"), TINY).expect("a tokenizer"));

/// Templates of many families, with the added tokens of the tiny tokenizer for marks.
static TEMPLATES: LazyLock<Vec<(&str, ChatTemplate)>> = LazyLock::new(|| {
    let config = serde_json::from_slice(TINY_CONFIG).expect("the model's own configuration");
    let embedded = TemplateSource::from_config(Path::new("tiny"), &config, None);
    let named =
        |text: Option<&str>| TemplateSource { template: text.map(str::to_owned), ..Default::default() };
    let sources = [
        ("embedded", embedded),
        ("chatml", named(None)),
        ("qwen25", named(Some(include_str!("templates/qwen25.jinja")))),
        ("qwen3", named(Some(include_str!("templates/qwen3.jinja")))),
        ("llama31", named(Some(include_str!("templates/llama31.jinja")))),
        ("mistral", named(Some(include_str!("templates/mistral.jinja")))),
        ("deepseek", named(Some(include_str!("templates/deepseek.jinja")))),
        ("harmony", named(Some(include_str!("templates/harmony.jinja")))),
        (
            "counting",
            named(Some(
                "{% for m in messages %}<|im_start|>{{ loop.index }}/{{ loop.length }} {{ m.content }}{% endfor %}",
            )),
        ),
        (
            "numbering",
            named(Some(
                "{% for m in messages %}<|im_start|>{{ loop.index }} {{ m.content }}{% endfor %}<|im_end|>",
            )),
        ),
        ("shapeless", named(Some("{% for m in messages %}{{ m.content }}{% endfor %}"))),
    ];
    let load = |(name, source): (_, TemplateSource)| {
        (name, ChatTemplate::new(&source, TOKENIZER.guard()).expect("a template"))
    };
    sources.into_iter().map(load).collect()
});

fn template(name: &str) -> &'static ChatTemplate {
    &TEMPLATES.iter().find(|(other, _)| *other == name).expect("it is there").1
}

fn prompts(bytes: usize) -> Prompts {
    let mut seed = 7;
    Prompts::new(bytes, move || {
        seed = crate::ctx::mix(seed + 1);
        seed
    })
}

fn tools() -> Tools {
    let parameters = json!({"type": "object", "properties": {"path": {"type": "string"}}});
    vec![json!({"type": "function", "function": {"name": "read", "description": "reads", "parameters": parameters}})].into()
}

/// What a conversation is held with.
#[derive(Clone, Copy, Debug)]
struct Held {
    tools: bool,
    thinking: Option<bool>,
    segmented: bool,
}

impl Held {
    fn extra(self) -> Map<String, Value> {
        self.thinking.into_iter().map(|on| ("enable_thinking".to_owned(), on.into())).collect()
    }
}

/// The prompt that is kept, and that of the whole rendering; both tell the same error, if any.
fn both(
    prompts: &Prompts,
    template: &ChatTemplate,
    held: Held,
    messages: &[Value],
) -> Option<(Kept, Vec<u32>, Vec<u32>)> {
    let (tools, extra) = (tools(), held.extra());
    let tools = held.tools.then_some(&tools);
    let frame =
        Frame { tenant: "t", tools, extra: &extra, now_unix_ms: 86_400_000, segmented: held.segmented };
    let maker = prompts.maker(template, &TOKENIZER, NAMING, &frame);
    let kept = prompts.prompt(&maker, &Conversation::from(messages.to_vec()));
    let input = RenderInput {
        messages,
        tools: tools.map(|tools| &**tools),
        add_generation_prompt: true,
        extra: &extra,
        now_unix_ms: 86_400_000,
    };
    let whole = template.render(&input).map_err(Refusal::from);
    match (kept, whole) {
        (Ok(kept), Ok(text)) => {
            let expected = TOKENIZER.encode_prompt(&text);
            let (tokens, names) = maker.tokens(&kept);
            let tokens = tokens.since(0);
            assert_eq!(
                *names,
                BlockName::names(NAMING.fingerprint, NAMING.salt, &tokens, NAMING.block_tokens)
            );
            assert!(text.ends_with(kept.end()));
            if let Some(found) = kept.segments() {
                check_segments(found, tokens.len());
            }
            Some((kept, tokens, expected))
        }
        (Err(one), Err(other)) => {
            assert_eq!(one, other);
            None
        }
        (kept, whole) => panic!("one fails, the other does not: {kept:?} {whole:?}"),
    }
}

fn check_segments(found: &[Segment], tokens: usize) {
    assert_eq!(found.first().map(|segment| segment.start), Some(0));
    assert!(found.windows(2).all(|two| two[0].start < two[1].start), "{found:?}");
    assert!(found.last().is_some_and(|last| (last.start as usize) < tokens.max(1)), "{found:?}");
}

/// An act of a caller.
#[derive(Clone, Debug)]
enum Act {
    /// Appends messages of these kinds.
    Append(&'static str, u8),
    /// Drops the last messages.
    Cut(usize),
    /// Changes the text of a message.
    Edit(usize, u8),
    /// Writes a message in another way.
    Respell(usize),
}

fn any_act() -> impl Strategy<Value = Act> {
    let shapes = [
        "ct", "ct", "ct", "au", "au", "2tt", "u", "t", "a", "asu", "cts", "s", "Au", "Ct", "Ctct",
        "ctctctct", "auauau",
    ];
    prop_oneof![
        12 => (prop::sample::select(shapes.to_vec()), any::<u8>()).prop_map(|(shape, text)| Act::Append(shape, text)),
        1 => (1usize..4).prop_map(Act::Cut),
        1 => (any::<usize>(), any::<u8>()).prop_map(|(at, text)| Act::Edit(at, text)),
        2 => any::<usize>().prop_map(Act::Respell),
    ]
}

const TEXTS: [&str; 8] = [
    "some words of a text",
    "",
    "  spaces \n\n",
    "<|im_end|> is not <tool_response> a mark",
    "é漢字 ok </think> x",
    "a longer text, which goes on for a while and says nothing in particular, and then ends.\n",
    "<think>\nwell\n</think>\n\nyes",
    "end>",
];

fn message(letter: char, text: u8, number: usize) -> Value {
    let content = format!("{}{}", TEXTS[usize::from(text) % TEXTS.len()], text / 8);
    let call = |k: usize| {
        let arguments = format!("{{\"path\":  \"{}\", \"b\": [{text}, 1.0]}}", text % 7);
        json!({"id": format!("call{k:05}"), "type": "function", "function": {"name": "read", "arguments": arguments}})
    };
    match letter {
        's' => json!({"role": "system", "content": content}),
        'u' => json!({"role": "user", "content": content}),
        'a' => json!({"role": "assistant", "content": content}),
        'A' => json!({"role": "assistant", "content": content, "reasoning_content": "so\nit is"}),
        'c' => json!({"role": "assistant", "content": "", "tool_calls": [call(number)]}),
        'C' => {
            json!({"role": "assistant", "content": content, "reasoning": "hm", "tool_calls": [call(number)]})
        }
        '2' => json!({"role": "assistant", "content": null, "tool_calls": [call(number), call(number + 1)]}),
        _ => {
            json!({"role": "tool", "tool_call_id": format!("call{number:05}"), "name": "read", "content": content})
        }
    }
}

fn act(messages: &mut Vec<Value>, act: &Act) {
    match act {
        Act::Append(shape, text) => {
            for (i, letter) in shape.chars().enumerate() {
                messages.push(message(letter, text.wrapping_add(i as u8 * 3), messages.len()));
            }
        }
        Act::Cut(count) => messages.truncate(messages.len().saturating_sub(*count).max(1)),
        Act::Edit(at, text) => {
            let at = at % messages.len();
            messages[at]["content"] = TEXTS[usize::from(*text) % TEXTS.len()].into();
        }
        Act::Respell(at) => {
            let at = at % messages.len();
            let message = &mut messages[at];
            message["cache_control"] = json!({"type": "ephemeral"});
            if let Some(text) = message["content"].as_str().map(str::to_owned) {
                message["content"] = json!([{"type": "text", "text": text, "cache_control": {}}]);
            }
        }
    }
}

fn any_held() -> impl Strategy<Value = Held> {
    (any::<bool>(), prop::option::of(any::<bool>()), any::<bool>())
        .prop_map(|(tools, thinking, segmented)| Held { tools, thinking, segmented })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    /// However a conversation grows and changes, its tokens are those of a whole rendering.
    #[test]
    fn what_grew_has_the_tokens_of_what_is_rendered_whole(
        begins in prop::sample::select(vec!["su", "u", "ssu", "s"]),
        acts in vec(any_act(), 1..14),
        held in any_held(),
        memory in prop_oneof![4 => Just(MIB), 1 => Just(20_000usize)],
    ) {
        for (name, template) in TEMPLATES.iter() {
            let prompts = prompts(memory);
            let mut messages = Vec::new();
            act(&mut messages, &Act::Append(begins, 0));
            for next in &acts {
                if let Some((_, tokens, expected)) = both(&prompts, template, held, &messages) {
                    prop_assert_eq!(tokens, expected, "{}: {:?}", name, messages);
                }
                act(&mut messages, next);
            }
            prop_assert!(prompts.bytes() <= memory);
        }
    }
}

/// Plays an agent's conversation; how many turns grew, and how many there were.
fn turns_that_grow(name: &str, held: Held, begins: &str, shapes: &[&'static str]) -> (u64, usize) {
    let prompts = prompts(MIB);
    let mut messages = Vec::new();
    begins.chars().for_each(|letter| messages.push(message(letter, 0, 0)));
    both(&prompts, template(name), held, &messages).expect("it can be rendered");
    let mut turns = 0;
    for _ in 0..5 {
        for shape in shapes {
            act(&mut messages, &Act::Append(shape, 5));
            let (_, tokens, expected) =
                both(&prompts, template(name), held, &messages).expect("it can be rendered");
            assert_eq!(tokens, expected, "{name}");
            turns += 1;
        }
    }
    (prompts.counts().hits.load(Relaxed), turns)
}

#[test]
fn turns_of_agents_grow_with_every_usual_template() {
    let plain = Held { tools: true, thinking: None, segmented: false };
    let check = |name: &str, held: Held, begins: &str, shapes: &[&'static str]| {
        let (grown, turns) = turns_that_grow(name, held, begins, shapes);
        assert_eq!(grown as usize, turns, "{name}, {held:?}: {shapes:?}");
    };
    for name in ["embedded", "chatml", "qwen25", "qwen3", "llama31", "deepseek", "harmony", "mistral"] {
        for held in
            [plain, Held { thinking: Some(true), ..plain }, Held { segmented: name == "chatml", ..plain }]
        {
            check(name, held, "su", &["ct"]);
            // Mistral's moves the tools to the last question.
            check(name, Held { tools: held.tools && name != "mistral", ..held }, "su", &["au"]);
        }
        if name != "mistral" {
            check(name, plain, "u", &["ct", "ct", "au"]);
        }
    }
    for name in ["qwen3", "deepseek", "harmony"] {
        check(name, plain, "su", &["Ct"]);
    }
    // Reasoning that goes with the next question.
    check("qwen3", plain, "su", &["Ct", "Ct", "Au"]);
}

#[test]
fn a_template_that_counts_messages_is_rendered_whole() {
    let held = Held { tools: false, thinking: None, segmented: false };
    let (grown, _) = turns_that_grow("counting", held, "su", &["auauauau"]);
    assert_eq!(grown, 0);
}

/// All ways to go on from here, so many times; `both` holds each to the whole rendering.
fn go_on(prompts: &Prompts, template: &ChatTemplate, messages: &mut Vec<Value>, left: usize) -> usize {
    let held = Held { tools: false, thinking: None, segmented: false };
    let taken = both(prompts, template, held, messages).is_some();
    if left == 0 {
        return usize::from(!taken);
    }
    let length = messages.len();
    let further = ["u", "a", "ct", "2tt"].map(|shape| {
        act(messages, &Act::Append(shape, 0));
        let refused = go_on(prompts, template, messages, left - 1);
        messages.truncate(length);
        refused
    });
    usize::from(!taken) + further.iter().sum::<usize>()
}

#[test]
fn an_order_that_a_template_refuses_is_refused_of_what_grew() {
    for name in ["mistral", "chatml"] {
        let prompts = prompts(MIB);
        let mut messages = vec![message('u', 0, 0)];
        let refused = go_on(&prompts, template(name), &mut messages, 5);
        assert_eq!(refused > 100, name == "mistral", "{name} refuses {refused} of 1,365 conversations");
        assert!(prompts.counts().hits.load(Relaxed) > 0, "{name}: nothing grew");
    }
}

#[test]
fn segments_grow_as_they_are_found_in_the_whole_text() {
    let held = Held { tools: true, thinking: None, segmented: true };
    for name in ["chatml", "qwen25", "embedded"] {
        let prompts = prompts(MIB);
        let mut messages = vec![message('s', 0, 0), message('u', 5, 1)];
        for shape in ["ct", "au", "2tt", "au", "ct"] {
            let (kept, tokens, _) = both(&prompts, template(name), held, &messages).expect("rendered");
            let (tools, extra) = (tools(), Map::new());
            let input = RenderInput {
                messages: &messages,
                tools: Some(&tools),
                add_generation_prompt: true,
                extra: &extra,
                now_unix_ms: 0,
            };
            let text = template(name).render(&input).expect("rendered");
            let expected = segments(template(name), &TOKENIZER, &input, &text, &tokens);
            assert_eq!(kept.segments(), Some(expected.as_slice()), "{name}: {text}");
            act(&mut messages, &Act::Append(shape, 5));
        }
    }
}

#[test]
fn what_the_model_wrote_comes_back_as_it_was() {
    let held = Held { tools: false, thinking: None, segmented: false };
    let prompts = prompts(MIB);
    let mut messages = vec![message('u', 5, 0)];
    let (kept, before, _) = both(&prompts, template("chatml"), held, &messages).expect("rendered");
    // Letter by letter, as no tokenizer would.
    let written: Vec<u32> = "read the file".chars().flat_map(|c| TOKENIZER.encode(&c.to_string())).collect();
    assert_ne!(written, TOKENIZER.encode("read the file"));
    kept.remember(&written, &TOKENIZER);
    messages.push(json!({"role": "assistant", "content": "read the file"}));
    messages.push(message('u', 5, 2));
    let (_, tokens, expected) = both_unforced(&prompts, held, &messages);
    let said: Vec<u32> = before.iter().chain(&written).copied().collect();
    assert_eq!(tokens[..said.len()], said);
    let rest = TOKENIZER.encode_prompt("<|im_end|>\n");
    assert_eq!(tokens[said.len()..][..rest.len()], rest);
    assert_ne!(tokens, expected);
    assert_eq!(prompts.counts().said_tokens.load(Relaxed), written.len() as u64);
    // Another text is another answer.
    messages[1]["content"] = "read the files".into();
    let (_, tokens, expected) = both_unforced(&prompts, held, &messages);
    assert_eq!(tokens, expected);
}

fn both_unforced(prompts: &Prompts, held: Held, messages: &[Value]) -> (Kept, Vec<u32>, Vec<u32>) {
    let extra = held.extra();
    let frame = Frame { tenant: "t", tools: None, extra: &extra, now_unix_ms: 86_400_000, segmented: false };
    let maker = prompts.maker(template("chatml"), &TOKENIZER, NAMING, &frame);
    let kept = prompts.prompt(&maker, &Conversation::from(messages.to_vec())).expect("a prompt");
    let (tokens, _) = maker.tokens(&kept);
    let input =
        RenderInput { messages, tools: None, add_generation_prompt: true, extra: &extra, now_unix_ms: 0 };
    let text = template("chatml").render(&input).expect("rendered");
    (kept, tokens.since(0), TOKENIZER.encode_prompt(&text))
}

#[test]
fn tenants_tools_days_and_adapters_have_states_of_their_own() {
    let prompts = prompts(MIB);
    let messages = Conversation::from(vec![message('u', 0, 0)]);
    let (own, extra) = (tools(), Map::new());
    let adapted = |fingerprint, name: &str, tenant, tools, now_unix_ms| {
        let frame = Frame { tenant, tools, extra: &extra, now_unix_ms, segmented: false };
        let naming = Naming { fingerprint: Fingerprint(fingerprint), ..NAMING };
        let maker = prompts.maker(template(name), &TOKENIZER, naming, &frame);
        prompts.prompt(&maker, &messages).expect("a prompt");
        prompts.counts().hits.load(Relaxed)
    };
    let prompt = |name: &str, tenant, tools, now_unix_ms| adapted(1, name, tenant, tools, now_unix_ms);
    assert_eq!(prompt("llama31", "a", None, 0), 0);
    assert_eq!(prompt("llama31", "a", None, 86_399_000), 1, "the same day");
    assert_eq!(prompt("llama31", "b", None, 0), 1);
    assert_eq!(prompt("llama31", "a", Some(&own), 0), 1);
    assert_eq!(prompt("llama31", "a", None, 86_400_000), 1, "another day");
    assert_eq!(adapted(2, "llama31", "a", None, 0), 1, "another adapter");
}

#[test]
fn arguments_are_printed_as_the_model_wrote_them() {
    let arguments = "{\"b\":1,  \"a\": 1.50, \"c\": \"\\u00e9\"}";
    let call = json!({"id": "call00001", "function": {"name": "read", "arguments": arguments}});
    let messages = [message('u', 0, 0), json!({"role": "assistant", "content": "", "tool_calls": [call]})];
    for name in ["qwen25", "qwen3", "llama31", "mistral"] {
        let tools = tools();
        let input = RenderInput {
            messages: &messages,
            tools: Some(&tools),
            add_generation_prompt: false,
            extra: &Map::new(),
            now_unix_ms: 0,
        };
        let text = template(name).render(&input).expect("rendered");
        assert!(text.contains(arguments), "{name}: {text}");
    }
}

#[test]
fn a_message_is_read_once_for_all_its_spellings() {
    fn read(json: &str, _: usize) -> Result<crate::prompt::Translated, Refusal> {
        let message: Value = serde_json::from_str(json).map_err(|e| Refusal::Json(e.to_string()))?;
        Ok(crate::prompt::Translated { messages: vec![message], marks: vec![] })
    }
    let dialect = Dialect { kind: 9, translate: read };
    let prompts = prompts(MIB);
    let name = |json: &'static str| {
        let item = prompts.item(dialect, Bytes::from_static(json.as_bytes()), 0).expect("a message");
        item.known.digests.clone()
    };
    let plain = name(r#"{"role":"user","content":"a"}"#);
    assert_eq!(plain, name(r#"{"content":[{"type":"text","text":"a","cache_control":{}}],"role":"user"}"#));
    assert_ne!(plain, name(r#"{"role":"user","content":"b"}"#));
    let twice = Bytes::from_static(br#"{"role":"user","content":"a"}"#);
    let item = prompts.item(dialect, twice, 0).expect("a message");
    assert_eq!(messages(&[item], 0).expect("it was read before"), [json!({"role": "user", "content": "a"})]);
    let bad = prompts.item(dialect, Bytes::from_static(br#"{"role":"user","content":3}"#), 4);
    assert!(bad.expect_err("refused").to_string().contains("messages[4].content"));
}

#[test]
fn what_was_learned_of_templates_is_what_they_do() {
    let setting = Map::new();
    let learned: Vec<String> = TEMPLATES
        .iter()
        .map(|(name, template)| {
            let reaches = template.reach(&template.setting(None, &setting, 0));
            let all = [By::User, By::Answer, By::Call, By::Tool, By::Other];
            let of = |(tools, thought)| {
                let one =
                    |by| reaches.of(std::iter::once(Turn { by, thought, several: false }), tools, thought);
                all.map(|by| format!("{:?}", one(by))).join(" ")
            };
            let settings = [(false, false), (false, true), (true, false), (true, true)];
            format!("{name}: {}", settings.map(of).join(" | "))
        })
        .collect();
    insta::assert_snapshot!(learned.join("\n"));
}

#[test]
fn arguments_of_a_call_come_back_as_the_model_wrote_them() {
    let prompts = prompts(1 << 20);
    let written = |id: &str, arguments: serde_json::Value| {
        prompts.written_call(7, id, &arguments).map(|text| text.as_str().to_owned())
    };
    prompts.remember_call(7, "a", "{\"x\":1,\"y\":[2]}");
    prompts.remember_call(7, "b", "{\"x\": 1}");
    assert_eq!(written("a", json!({"y": [2], "x": 1})).as_deref(), Some("{\"x\":1,\"y\":[2]}"));
    assert_eq!(written("a", json!({"x": 2, "y": [2]})), None, "another call under the same id");
    assert_eq!(written("b", json!({"x": 1})), None, "whatever writes JSON writes it so");
    assert!(prompts.written_call(8, "a", &json!({"x": 1, "y": [2]})).is_none(), "another tenant's");
}
