//! What tells a family: the template, or the vocabulary where the template is silent.

use super::*;
use crate::prompt::Tokenizer;

fn tokenizer(added: &[&str]) -> Tokenizer {
    let added: Vec<Value> = added
        .iter()
        .zip(1u32..)
        .map(|(content, id)| {
            serde_json::json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"a": 0}, "merges": []},
    });
    Tokenizer::from_bytes(std::path::Path::new("test"), file.to_string().as_bytes()).expect("a tokenizer")
}

#[test]
fn a_template_tells_the_family() {
    let tokenizer = tokenizer(&[]);
    let templates = [
        ("For each call write <tool_call>{\"name\": …}</tool_call>", Family::Hermes),
        ("{{ '<think>' }}{{ message.content }}", Family::Hermes),
        ("<tool_call>\n<function={{ name }}>\n<parameter={{ key }}>", Family::QwenCoder),
        ("<|start_header_id|>{{ role }}<|end_header_id|>", Family::Llama),
        ("{{ '<|python_tag|>' }}", Family::Llama),
        ("<|header_start|>{{ role }}<|header_end|>", Family::LlamaPythonic),
        ("<|python_start|>", Family::LlamaPythonic),
        ("[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}", Family::Mistral),
        ("[INST]{{ content }}[/INST][TOOL_CALLS] [", Family::MistralJson),
        ("<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ name }}\n```json\n", Family::Deepseek),
        ("<think><｜tool▁call▁begin｜>{{ name }}<｜tool▁sep｜>", Family::DeepseekV31),
        ("<think><｜DSML｜function_calls>", Family::DeepseekDsml),
        ("<think><tool_call>{{ name }}<arg_key>{{ key }}</arg_key>", Family::Glm),
        ("<think><|tool_calls_section_begin|><|tool_call_begin|>", Family::Kimi),
        ("<|start|>assistant<|channel|>analysis<|message|>", Family::Harmony),
        ("<think><minimax:tool_call><invoke name=", Family::Minimax),
        ("<|channel>thought<channel|><|tool_call>call:{{ name }}", Family::Gemma),
        ("<|im_start|>{{ content }}<|im_end|>", Family::Plain),
        ("", Family::Plain),
    ];
    for (template, family) in templates {
        assert_eq!(Family::detect(template, &tokenizer), family, "{template}");
    }
    for family in Family::ALL {
        assert!(templates.iter().any(|(_, found)| *found == family), "{} has a template", family.as_str());
        assert_eq!(Family::named(family.as_str()), Some(family));
    }
}

#[test]
fn the_vocabulary_tells_it_where_the_template_is_silent() {
    let silent = "{{ message.content }}";
    let of = |added: &[&str], template: &str| Family::detect(template, &tokenizer(added));
    assert_eq!(of(&["[TOOL_CALLS]", "[ARGS]"], silent), Family::Mistral);
    assert_eq!(of(&["<tool_call>", "</tool_call>"], silent), Family::Hermes);
    assert_eq!(of(&["<|channel|>", "<|message|>"], silent), Family::Harmony);
    assert_eq!(of(&["<tool_call>"], "[TOOL_CALLS]"), Family::MistralJson, "the template comes first");
}
