//! The tokens that end a model's turn, from the three files that may name them.
//!
//! Models disagree on where they say it, and base models name another token than their chat versions; a
//! token that any file names ends a turn.
//! Called once at load.
//! **Invariant:** sorted, without repetition.

use serde_json::Value;

use super::Tokenizer;

impl Tokenizer {
    /// Tokens that end a turn: `eos_token_id` of `generation_config.json` and `config.json` (in a multimodal
    /// model, of its text part) and `eos_token` of `tokenizer_config.json`. An absent file is `null`.
    pub fn stop_tokens(
        &self,
        generation_config: &Value,
        config: &Value,
        tokenizer_config: &Value,
    ) -> Vec<u32> {
        let mut tokens = Vec::new();
        for file in [generation_config, config, &config["text_config"]] {
            match &file["eos_token_id"] {
                Value::Array(ids) => tokens.extend(ids.iter().filter_map(Value::as_u64)),
                id => tokens.extend(id.as_u64()),
            }
        }
        let mut tokens: Vec<u32> = tokens.into_iter().filter_map(|id| u32::try_from(id).ok()).collect();
        let eos = &tokenizer_config["eos_token"];
        let text = eos.as_str().or_else(|| eos["content"].as_str());
        tokens.extend(text.and_then(|text| self.added_id(text)));
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn check(generation: Value, config: Value, tokenizer: Value, expected: &[u32]) {
        let json = include_bytes!("../../../../examples/models/tiny-agent/tokenizer.json");
        let tiny = Tokenizer::from_bytes(Path::new("tiny"), json).expect("a tokenizer");
        assert_eq!(tiny.stop_tokens(&generation, &config, &tokenizer), expected);
    }

    #[test]
    fn every_file_may_name_them() {
        let none = Value::Null;
        check(none.clone(), none.clone(), none.clone(), &[]);
        check(none.clone(), json!({"eos_token_id": 2}), none.clone(), &[2]);
        check(json!({"eos_token_id": [2, 0]}), json!({"eos_token_id": null}), none.clone(), &[0, 2]);
        check(
            none.clone(),
            json!({"text_config": {"eos_token_id": 5}}),
            json!({"eos_token": "<|im_end|>"}),
            &[2, 5],
        );
        check(none.clone(), none.clone(), json!({"eos_token": {"content": "<|endoftext|>"}}), &[0]);
        check(none.clone(), none, json!({"eos_token": "</s>"}), &[]);
    }
}
