//! `truncation: "auto"`: the oldest turns leave until the prompt fits.
//!
//! **Invariant:** messages of the system and of developers at the head stay, and so does the last turn.

use serde_json::Value;

use super::cache;
use crate::app::App;
use crate::render;
use crate::request::{Refusal, Request};

/// Chosen: each attempt drops by the share that is too much; this many reach a prompt that is a thousand times too long.
const ATTEMPTS_MAX: usize = 32;

/// Drops what does not fit. A prompt that fits costs one more rendering.
pub(super) fn to_fit(app: &App, request: &mut Request) -> Result<(), Refusal> {
    for _ in 0..ATTEMPTS_MAX {
        match render::prompt(app, request) {
            Err(Refusal::TooLong { tokens, max }) => {
                let excess = 1.0 - max as f64 / tokens.max(1) as f64;
                let mut messages = request.messages.plain().to_vec();
                if !shorten(&mut messages, excess) {
                    return Ok(());
                }
                request.messages = messages.into();
                // Marks name messages by their place, which is another one from here on.
                request.extensions.retain(|(name, _)| name != cache::EXTENSION);
            }
            // What else is wrong is said when the prompt is made.
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// Takes a share of the turns off the beginning, at least one. Says whether there was one to take.
fn shorten(messages: &mut Vec<Value>, share: f64) -> bool {
    let head = messages.iter().take_while(|m| m["role"] == "system" || m["role"] == "developer").count();
    let starts: Vec<usize> = (head + 1..messages.len()).filter(|&i| messages[i]["role"] == "user").collect();
    let wanted = (messages.len() - head) as f64 * share;
    let enough = starts.iter().find(|&&start| (start - head) as f64 >= wanted).or(starts.last());
    let Some(&to) = enough else { return false };
    messages.drain(head..to);
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(roles: &str, share: f64, expected: &str) {
        let name = |c: char| match c {
            's' => "system",
            'd' => "developer",
            'u' => "user",
            't' => "tool",
            _ => "assistant",
        };
        let mut messages: Vec<Value> = roles.chars().map(|c| json!({ "role": name(c) })).collect();
        let before = messages.len();
        let shorter = shorten(&mut messages, share);
        let left: String = messages.iter().filter_map(|m| m["role"].as_str()?.chars().next()).collect();
        assert_eq!(left, expected);
        assert_eq!(shorter, messages.len() < before);
    }

    #[test]
    fn whole_turns_leave_and_the_head_stays() {
        check("sduautauau", 0.1, "sdutauau");
        check("sduautauau", 0.5, "sduau");
    }

    #[test]
    fn the_last_turn_stays() {
        check("suat", 0.9, "suat");
        check("suatuat", 0.99, "suat");
        check("su", 0.5, "su");
    }
}
