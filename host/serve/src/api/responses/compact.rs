//! `POST /v1/responses/compact`: a long conversation becomes its user messages and one item that holds the rest.
//!
//! The rest is a digest: who said and did what, in order, each entry cut to its beginning and the oldest entries left
//! out when there are too many. No model is asked: the same conversation gives the same digest, at once and at no cost.
//! Messages of the system and of developers are kept as they are, in the same item.
//! **Invariant:** the item is read by every host of this version; nothing is kept for it here.

use serde_json::{Value, json};

use super::conversation::Conversation;
use super::ids::Ids;
use super::items::type_of;
use super::sealed::{self, Compacted};

/// Chosen: a digest is a memory, not a copy. A word or two of a tool's output say which it was.
const SAID_CHARS_MAX: usize = 2000;
const ARGUMENTS_CHARS_MAX: usize = 400;
const OUTPUT_CHARS_MAX: usize = 600;
const ASKED_CHARS_MAX: usize = 200;
/// Chosen: some 8,000 tokens, a part of any context that agents work in.
const DIGEST_CHARS_MAX: usize = 32_000;

const OPENING: &str = "What was said and done before, shortened:";

/// The output of a compaction, and the digest in it.
pub(super) fn compacted(items: &[Value], ids: &Ids) -> (Vec<Value>, String) {
    let kept = Compacted { head: head(items), digest: digest(items) };
    let asked = items.iter().filter(|item| type_of(item) == "message" && item["role"] == "user");
    let mut output: Vec<Value> = asked.cloned().collect();
    output.push(json!({
        "id": ids.output("cmp", output.len()),
        "type": "compaction",
        "encrypted_content": sealed::compaction(&kept),
    }));
    (output, kept.digest)
}

/// The messages that stay as they are.
fn head(items: &[Value]) -> Vec<Value> {
    let stays = |message: &Value| message["role"] == "system" || message["role"] == "developer";
    Conversation::of(None, items.iter()).messages.into_iter().filter(stays).collect()
}

fn digest(items: &[Value]) -> String {
    // A digest has what came before it, user messages included.
    let earlier = items.iter().rposition(|item| type_of(item) == "compaction").unwrap_or(0);
    let mut entries: Vec<String> = items[earlier..].iter().filter_map(entry).collect();
    if entries.is_empty() {
        return String::new();
    }
    let mut chars: usize = entries.iter().map(|entry| entry.chars().count() + 1).sum();
    let mut left_out = 0;
    while chars > DIGEST_CHARS_MAX && left_out + 1 < entries.len() {
        chars -= entries[left_out].chars().count() + 1;
        left_out += 1;
    }
    entries.drain(..left_out);
    if left_out > 0 {
        entries.insert(0, format!("[{left_out} earlier entries left out]"));
    }
    format!("{OPENING}\n{}", entries.join("\n"))
}

fn entry(item: &Value) -> Option<String> {
    let text = |key: &str| item[key].as_str().unwrap_or_default();
    Some(match type_of(item) {
        "message" if item["role"] == "assistant" => {
            format!("[assistant] {}", cut(&texts(&item["content"]), SAID_CHARS_MAX))
        }
        "message" if item["role"] == "user" => {
            format!("[user] {}", cut(&texts(&item["content"]), ASKED_CHARS_MAX))
        }
        "function_call" => format!("[call] {} {}", text("name"), cut(text("arguments"), ARGUMENTS_CHARS_MAX)),
        "custom_tool_call" => format!("[call] {} {}", text("name"), cut(text("input"), ARGUMENTS_CHARS_MAX)),
        "function_call_output" | "custom_tool_call_output" => {
            format!("[result] {}", cut(&texts(&item["output"]), OUTPUT_CHARS_MAX))
        }
        "compaction" => {
            let earlier = sealed::open_compaction(text("encrypted_content"))?;
            let said = earlier.digest.strip_prefix(OPENING).unwrap_or(&earlier.digest);
            // A digest of digests keeps the newer half of each.
            tail(said.trim_start(), DIGEST_CHARS_MAX / 2).to_owned()
        }
        _ => return None,
    })
}

fn texts(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

/// The text, or its beginning and end with a gap between them.
fn cut(text: &str, chars_max: usize) -> String {
    let count = text.chars().count();
    if count <= chars_max {
        return text.to_owned();
    }
    let (begin, end) = (chars_max * 2 / 3, chars_max / 3);
    let first: String = text.chars().take(begin).collect();
    format!("{first} […{} characters…] {}", count - begin - end, tail(text, end))
}

fn tail(text: &str, chars_max: usize) -> &str {
    let from = text.char_indices().rev().take(chars_max).last().map_or(text.len(), |(at, _)| at);
    &text[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items() -> Vec<Value> {
        let list = json!([
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "be brief"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "read a"}]},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "secret"}]},
            {"type": "function_call", "call_id": "c", "name": "read", "arguments": "{\"path\": \"a\"}"},
            {"type": "function_call_output", "call_id": "c", "output": "x".repeat(5000)},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "done"}]},
        ]);
        list.as_array().cloned().unwrap_or_default()
    }

    #[test]
    fn user_messages_stay_and_the_rest_becomes_one_item() {
        let (output, digest) = compacted(&items(), &Ids::new(1));
        let kinds: Vec<&str> = output.iter().map(type_of).collect();
        assert_eq!(kinds, ["message", "compaction"]);
        assert!(
            digest.starts_with(
                "What was said and done before, shortened:\n[user] read a\n[call] read {\"path\""
            )
        );
        assert!(digest.contains("[…4400 characters…]") && digest.ends_with("[assistant] done"), "{digest}");
        assert!(!digest.contains("secret") && !digest.contains("be brief"));
        let again = compacted(&items(), &Ids::new(1)).0;
        assert_eq!(output, again);
    }

    #[test]
    fn what_was_compacted_goes_on_and_can_be_compacted_again() {
        let (mut output, digest) = compacted(&items(), &Ids::new(1));
        let messages = Conversation::of(None, output.iter()).messages;
        let roles: Vec<&str> = messages.iter().filter_map(|m| m["role"].as_str()).collect();
        assert_eq!(roles, ["developer", "user", "user"]);
        assert_eq!(messages[2]["content"], digest.as_str());
        output.push(json!({"type": "message", "role": "user", "content": "and b"}));
        let (output, digest) = compacted(&output, &Ids::new(2));
        assert_eq!(output.len(), 3);
        assert!(digest.contains("[assistant] done") && digest.ends_with("[user] and b"), "{digest}");
        let messages = Conversation::of(None, output.iter()).messages;
        assert_eq!(messages[0]["content"], "be brief");
    }

    #[test]
    fn a_digest_is_bounded_and_says_what_it_leaves_out() {
        let said = |i: usize| json!({"type": "message", "role": "assistant", "content": format!("{i} {}", "y".repeat(1000))});
        let many: Vec<Value> = (0..200).map(said).collect();
        let digest = digest(&many);
        assert!(digest.chars().count() < DIGEST_CHARS_MAX + 200);
        assert!(digest.contains("earlier entries left out]\n[assistant] 1"), "{}", &digest[..200]);
        assert!(digest.contains("[assistant] 199 y"));
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("äöüßàáâãå", 3), "äö […6 characters…] å");
        assert_eq!(tail("äöü", 0), "");
    }
}
