//! Structured output: what a grammar costs once, and what it costs each token, over a vocabulary of 128,000 tokens.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Map, Value, json};
use serve::ctx::mix;
use serve::prompt::{
    Ask, CallSyntax, Calls, Constraint, Format, Grammars, Guide, Next, Reasoning, Tokenizer,
};

use crate::table::{Bar, head, quantile, row, us};

const VOCAB: u32 = 128_000;
const STOP: u32 = VOCAB - 1;
const ANSWERS: u64 = 24;
const TOKENS_MAX: usize = 400;

pub(crate) fn run() -> anyhow::Result<()> {
    let json = vocabulary().to_string();
    let tokenizer = Arc::new(Tokenizer::from_bytes(Path::new("bench"), json.as_bytes())?);
    let grammars = Grammars::new(Arc::clone(&tokenizer), Arc::new([STOP]));
    head("structured output, 128,000 tokens");
    let free = Format::JsonObject;
    let begun = Instant::now();
    guide(&grammars, &Ask { format: &free, calls: Calls::None, syntax: None })?;
    row("trie of the vocabulary, once a model, ms", us(begun.elapsed()) / 1e3, None, Bar::None);
    let format = Format::JsonSchema { schema: schema(), strict: true, param: "schema".into() };
    let text = Ask { format: &format, calls: Calls::None, syntax: None };
    let tools: Vec<Value> = (0..24).map(tool).collect();
    let must = Calls::Must { tools: &tools, many: true, named: None };
    let calls = Ask { format: &Format::Text, calls: must, syntax: Some(&CallSyntax::HERMES) };
    for (name, ask) in [("a schema", text), ("24 tools", calls)] {
        let begun = Instant::now();
        let guide = guide(&grammars, &ask)?;
        row(&format!("{name}: compile, once, ms"), us(begun.elapsed()) / 1e3, None, Bar::None);
        let begun = Instant::now();
        self::guide(&grammars, &ask)?;
        row(&format!("{name}: find it compiled, us"), us(begun.elapsed()), None, Bar::None);
        let (mut masks, mut advances) = (Vec::new(), Vec::new());
        for seed in 0..ANSWERS {
            walk(guide.begin(), seed, &mut masks, &mut advances)?;
        }
        row(&format!("{name}: mask of a token, us, median"), quantile(&mut masks, 0.5), None, Bar::None);
        row(&format!("{name}: mask of a token, us, p99"), quantile(&mut masks, 0.99), None, Bar::None);
        row(&format!("{name}: taking a token in, us, median"), quantile(&mut advances, 0.5), None, Bar::None);
    }
    Ok(())
}

fn guide(grammars: &Grammars, ask: &Ask<'_>) -> anyhow::Result<Guide> {
    let grammar = grammars.grammar(ask, |work| work())?.context("it constrains")?;
    Ok(Guide { grammar, reasoning: Reasoning::None })
}

/// An answer of a model that draws any allowed token.
fn walk(
    mut constraint: Constraint,
    seed: u64,
    masks: &mut Vec<f64>,
    advances: &mut Vec<f64>,
) -> anyhow::Result<()> {
    for at in 0..TOKENS_MAX as u64 {
        let begun = Instant::now();
        constraint.compute().map_err(anyhow::Error::msg)?;
        masks.push(us(begun.elapsed()));
        let allowed: Vec<u32> = constraint.mask().tokens(VOCAB).collect();
        let token = allowed[(mix(seed ^ mix(at)) % allowed.len() as u64) as usize];
        if token == STOP {
            break;
        }
        let begun = Instant::now();
        let next = constraint.advance(token).map_err(anyhow::Error::msg)?;
        advances.push(us(begun.elapsed()));
        if next == Next::Complete {
            break;
        }
    }
    // A reading of the clock itself is in each sample.
    assert!(masks.iter().all(|mask| *mask < us(Duration::from_secs(10))));
    Ok(())
}

fn schema() -> Value {
    json!({ "type": "object", "properties": {
            "title": { "type": "string", "maxLength": 60 }, "kind": { "enum": ["plan", "act", "wait"] },
            "score": { "type": "number", "minimum": 0, "maximum": 1 },
            "steps": { "type": "array", "maxItems": 4, "items": { "type": "object", "properties": {
                "path": { "type": "string", "maxLength": 40 }, "done": { "type": "boolean" } },
                "required": ["path", "done"], "additionalProperties": false } } },
        "required": ["title", "kind", "score", "steps"], "additionalProperties": false })
}

fn tool(number: usize) -> Value {
    let property = |i: usize| match i % 3 {
        0 => json!({ "type": "string", "description": "what it is for", "maxLength": 80 }),
        1 => json!({ "type": "integer", "minimum": 0, "maximum": 5000 }),
        _ => json!({ "type": "array", "items": { "enum": ["a", "b", "c"] }, "maxItems": 5 }),
    };
    let names = |i: usize| format!("argument_{i}");
    let properties: Map<String, Value> = (0..3 + number % 5).map(|i| (names(i), property(i))).collect();
    json!({ "type": "function", "function": { "name": format!("tool_{number}"), "parameters": {
        "type": "object", "properties": properties, "required": ["argument_0"], "additionalProperties": false } } })
}

/// A byte-level vocabulary with made-up words of the lengths that trained ones have.
fn vocabulary() -> Value {
    let stand_ins: Vec<char> = (0..=255u32)
        .map(|byte| match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from_u32(byte),
            0..=0x20 => char::from_u32(0x100 + byte),
            0x7f..=0xa0 => char::from_u32(0x121 + byte - 0x7f),
            _ => char::from_u32(0x143),
        })
        .map(|c| c.unwrap_or('?'))
        .collect();
    let mut words: Map<String, Value> = Map::new();
    for c in &stand_ins {
        words.insert(c.to_string(), json!(words.len()));
    }
    const LETTERS: &[u8] = b"etaoinshrdlucmfwypvbgkjqxzETAOINS0123456789_.,:;-(){}[]\"'/\\<>=";
    let mut state = 7u64;
    while words.len() < STOP as usize {
        state = mix(state.wrapping_add(0x9E37_79B9_7F4A_7C15));
        let len = 2 + (state >> 60) as usize % 9;
        let mut word = if state & 1 == 0 { "\u{120}".to_owned() } else { String::new() };
        // Letters of a word come from the first few more often, as in any language.
        word.extend((0..len).map(|i| {
            let draw = mix(state ^ i as u64);
            let most = if draw & 7 < 6 { 20 } else { LETTERS.len() as u64 };
            char::from(LETTERS[((draw >> 8) % most) as usize])
        }));
        if !words.contains_key(&word) {
            words.insert(word, json!(words.len()));
        }
    }
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false })
    };
    json!({
        "added_tokens": [special(STOP, "<|im_end|>")], "normalizer": null, "post_processor": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": words, "merges": [] },
    })
}
