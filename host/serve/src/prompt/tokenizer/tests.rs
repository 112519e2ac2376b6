use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const TINY: &[u8] = include_bytes!("../../../../../examples/models/tiny-agent/tokenizer.json");

/// A variation of the tiny model's tokenizer, encoded both ways.
struct Pair {
    ours: Tokenizer,
    reference: tokenizers::Tokenizer,
}

fn pair(change: impl FnOnce(&mut Value)) -> Pair {
    let mut file: Value = serde_json::from_slice(TINY).expect("JSON");
    change(&mut file);
    let json = serde_json::to_vec(&file).expect("JSON");
    let ours = Tokenizer::from_bytes(Path::new("test"), &json).expect("a tokenizer");
    assert!(ours.is_fast());
    Pair { ours, reference: reference(&json).expect("a tokenizer") }
}

fn pattern(file: &mut Value, pattern: &str) {
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(pattern);
}

/// Every kind of tokenizer that has a fast path.
fn all() -> Vec<Pair> {
    let qwen = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let llama = qwen.replace(r"\p{N}|", r"\p{N}{1,3}|");
    let qwen35 =
        qwen.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]");
    vec![
        pair(|_| {}),
        pair(|file| {
            pattern(file, &llama);
            file["model"]["ignore_merges"] = json!(true);
            file["model"]["vocab"]["Ġpointsman"] = json!(768);
            file["model"]["vocab"]["123"] = json!(769);
        }),
        pair(|file| {
            pattern(file, &qwen35);
            file["normalizer"] = json!({"type": "NFC"});
            let late = json!({"id": 768, "content": "late>", "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": true, "special": false});
            file["added_tokens"].as_array_mut().expect("a list").push(late);
        }),
        pair(|file| {
            file["pre_tokenizer"] = json!({"type": "ByteLevel", "add_prefix_space": false,
                "trim_offsets": true, "use_regex": true});
            let merges = file["model"]["merges"].as_array_mut().expect("a list");
            for merge in merges {
                *merge = json!(format!(
                    "{} {}",
                    merge[0].as_str().expect("text"),
                    merge[1].as_str().expect("text")
                ));
            }
        }),
    ]
}

fn check(pair: &Pair, text: &str) {
    let expected = pair.reference.encode(text, false).expect("tokens");
    for _ in 0..2 {
        // The second time, words come from the cache.
        assert_eq!(pair.ours.encode(text), expected.get_ids(), "{text:?}");
    }
    let decoded: Vec<u8> = expected
        .get_ids()
        .iter()
        .flat_map(|&id| pair.ours.spelling.as_ref().expect("bytes").bytes(id))
        .copied()
        .collect();
    let reference = pair.reference.decode(expected.get_ids(), false).expect("text");
    assert_eq!(String::from_utf8_lossy(&decoded), reference);
}

#[test]
fn known_texts_have_the_tokens_of_the_reference() {
    let texts = [
        "",
        " ",
        "  ",
        "\n",
        " \n ",
        "\r\n\r\n x",
        "a",
        "a ",
        " a",
        "  a",
        "\t\ta",
        "I'm they'RE 'Ve 'ſ don'T x'",
        "12345 6 78",
        "٣٤٥ ½²",
        "fn main() {\n    println!(\"{}\", 1_000);\n}\n\n\n",
        "naïve café e\u{301} 漢字かな 한국어",
        "👩‍👩‍👧 🚂!",
        "<|im_start|>user\nhi<|im_end|>\n",
        "<tool_call><tool_call",
        "<|im_<|im_end|>|>",
        "a\u{a0}b\u{2003} c",
        "!!!\n\n??? ...\n x",
        "pointsman pointsman123",
        "late> late>\u{338} xlate>",
        "\u{1f1e9}\u{1f1ea}\u{301}\u{302}",
        "\u{fdd0}<",
        "क्षि हिन्दी ไทย",
        " \u{3000} \u{85}x\u{1680}",
    ];
    for pair in all() {
        texts.iter().for_each(|text| check(&pair, text));
    }
}

#[test]
fn a_word_of_any_length_is_encoded() {
    let pair = pair(|_| {});
    for len in [29, 30, 31, 32, 100, 3000] {
        check(&pair, &"to".repeat(len));
        check(&pair, &" ".repeat(len));
        check(&pair, &"é".repeat(len));
    }
}

fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        3 => "[a-zA-Z]{1,9}".boxed(),
        3 => "[ \t\r\n]{1,5}".boxed(),
        2 => "[0-9]{1,5}".boxed(),
        2 => "[!-/:-@\\[-`{-~]{1,4}".boxed(),
        1 => "'(s|t|re|ve|m|ll|d|S|LL|ſ|x|)".boxed(),
        1 => "<\\|im_(start|end)\\|>|</?(think|tool_call)>|<\\|im|<tool|late>".boxed(),
        2 => "\\PC{1,5}".boxed(),
        1 => "[\\p{L}\\p{M}]{1,6}".boxed(),
        1 => "[\\p{N}\\p{Z}\\p{So}]{1,4}".boxed(),
        1 => any::<char>().prop_map(String::from).boxed(),
        1 => "read the file plum|multiply|list_files|\\{\"name\": \"calc\"".boxed(),
    ];
    vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// Wherever a text may be cut, its parts have the tokens of the whole.
    #[test]
    fn parts_have_the_tokens_of_the_whole(text in "[aZs'tlre 0-9\\n\\t.,!\u{301}\u{e9}\u{4e00}_-]{0,40}( the [a-z' ]{0,12}){0,3}") {
        for Pair { ours, .. } in PAIRS.iter() {
            let Encoder::Fast(fast) = &ours.encoder else { continue };
            let encode = |text: &str| {
                let mut tokens = Vec::new();
                fast.bpe.encode(text, &mut tokens);
                tokens
            };
            let whole = encode(&text);
            let cuts = (0..text.len()).filter_map(|from| split::cut(&text, from));
            for at in cuts {
                let (part, rest) = text.split_at(at);
                prop_assert_eq!([encode(part), encode(rest)].concat(), whole.clone(), "cut at {} of {:?}", at, text);
            }
        }
    }

    /// For any text and every kind of tokenizer, the tokens are those of the reference.
    #[test]
    fn the_fast_path_matches_the_reference(texts in vec(any_text(), 1..4)) {
        for pair in PAIRS.iter() {
            texts.iter().for_each(|text| check(pair, text));
        }
    }

    /// What content spells is encoded as plain text: no added token, and nothing lost.
    #[test]
    fn content_cannot_spell_added_tokens(content in any_text(), mark in any::<bool>()) {
        let content = if mark { content.replace('m', "\u{fdd0}") } else { content };
        for pair in PAIRS.iter() {
            let tokenizer = &pair.ours;
            let marked = tokenizer.guard().text(&content);
            let tokens = tokenizer.encode_prompt(&marked);
            prop_assert!(tokens.iter().all(|token| !tokenizer.added.contains_key(token)));
            let plain = if matches!(&tokenizer.encoder, Encoder::Fast(fast) if fast.form_c) {
                form_c(&content).into_owned()
            } else {
                content.clone()
            };
            let bytes: Vec<u8> = tokens.iter().flat_map(|&t| tokenizer.spelled(t).expect("bytes")).copied().collect();
            prop_assert_eq!(String::from_utf8(bytes).expect("text"), plain);
            if marked == content {
                prop_assert_eq!(tokens, tokenizer.encode(&content));
            }
        }
    }
}

static PAIRS: std::sync::LazyLock<Vec<Pair>> = std::sync::LazyLock::new(all);

#[test]
fn marked_text_has_the_tokens_of_the_plain_text() {
    let pair = pair(|_| {});
    let text = "say <|im_end|> or </tool_call>!";
    let mut without: Value = serde_json::from_slice(TINY).expect("JSON");
    without["added_tokens"] = json!([]);
    let without =
        Tokenizer::from_bytes(Path::new("test"), without.to_string().as_bytes()).expect("a tokenizer");
    assert_eq!(pair.ours.encode_prompt(&pair.ours.guard().text(text)), without.encode(text));
}

#[test]
fn what_is_left_alone_by_the_quick_check_is_in_form_c() {
    for c in ('\0'..=char::MAX).filter(|&c| is_inert(c)) {
        for text in [
            String::from(c),
            format!("e{c}"),
            format!("\u{1100}{c}"),
            format!("\u{ac00}{c}"),
            format!("\u{304b}{c}"),
        ] {
            let mut normalized = NormalizedString::from(text.as_str());
            tokenizers::normalizers::NFC.normalize(&mut normalized).expect("no failure");
            assert_eq!(normalized.get(), text, "{c:?}");
        }
    }
}

#[test]
fn a_tokenizer_that_is_not_known_goes_through_the_reference() {
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": {"<unk>": 0, "<s>": 1, "▁": 2, "a": 3, "b": 4, "▁a": 5, "s": 6, "<": 7, ">": 8}, "merges": [["▁", "a"]]},
    });
    let tokenizer =
        Tokenizer::from_bytes(Path::new("test"), json.to_string().as_bytes()).expect("a tokenizer");
    assert!(!tokenizer.is_fast());
    assert_eq!(tokenizer.encode("a b"), [5, 2, 4]);
    assert_eq!(tokenizer.encode("<s>a b"), [1, 3, 2, 4]);
    assert_eq!(tokenizer.prefix(), [1]);
    assert_eq!(tokenizer.vocab_size(), 9);
    assert!(!tokenizer.encode_prompt(&tokenizer.guard().text("<s>a")).contains(&1));
}

#[test]
fn a_broken_file_is_the_operators_mistake() {
    let error = Tokenizer::from_bytes(Path::new("m/tokenizer.json"), b"{}").expect_err("no model");
    assert!(matches!(error, PromptError::Model { .. }));
    assert!(error.to_string().starts_with("m/tokenizer.json: "), "{error}");
}

#[test]
fn the_tiny_tokenizer_is_described() {
    let tokenizer = Tokenizer::from_bytes(Path::new("tiny"), TINY).expect("a tokenizer");
    assert_eq!(tokenizer.vocab_size(), 768);
    assert_eq!(tokenizer.added_id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.added_id("read"), None);
    assert_eq!(tokenizer.specials().count(), 9);
    assert_eq!((tokenizer.special(3), tokenizer.special(9)), (Some("<tool_call>"), None));
    assert!(tokenizer.prefix().is_empty());
    assert_eq!(*tokenizer.token_bytes(2), *b"<|im_end|>");
    assert_eq!(*tokenizer.token_bytes(800), *b"");
    assert_eq!(tokenizer.text_tokens(), 9..768);
}
