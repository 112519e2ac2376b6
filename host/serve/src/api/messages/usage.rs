//! Usage as the protocol counts it: what was read from the cache, what was put there, and the rest.
//!
//! ```text
//! 0 ............ read ............ last 1h mark ............ last 5m mark ............ total
//! | cache_read    | cache_creation 1h    | cache_creation 5m      | input_tokens          |
//! ```
//!
//! **Invariant:** the parts make the whole prompt, which is what `count_tokens` counts.

use serde_json::{Value, json};

use crate::answer::Usage;
use crate::api::marks::Mark;
use crate::prompt::{Segment, end_of_message};
use crate::request::Prompt;

/// The `ttl` of marks that are to last.
const HOUR: &str = "1h";

/// A prompt's tokens, in parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Input {
    pub(super) rest: u32,
    pub(super) read: u32,
    pub(super) created_1h: u32,
    pub(super) created_5m: u32,
}

impl Input {
    /// The parts of a prompt that was computed, once its cached tokens are known.
    pub(super) fn of(usage: Usage, prompt: &Prompt, marks: &[Mark]) -> Self {
        let segments = prompt.segments.as_deref().unwrap_or_default();
        Self::split(usage.prompt_tokens, usage.cached_tokens, segments, marks)
    }

    fn split(total: u32, read: u32, segments: &[Segment], marks: &[Mark]) -> Self {
        let read = read.min(total);
        let end = |long: bool| {
            let marks = marks.iter().filter(|mark| (mark.ttl.as_deref() == Some(HOUR)) == long);
            marks.map(|mark| end_of_message(segments, mark.segment, total)).max().unwrap_or(0)
        };
        let hour = end(true).max(read);
        let last = end(false).max(hour);
        Self { rest: total - last, read, created_1h: hour - read, created_5m: last - hour }
    }

    fn created(&self) -> u32 {
        self.created_1h + self.created_5m
    }

    /// As it stands in a message.
    pub(super) fn message(&self, usage: Usage) -> Value {
        let mut json = self.cumulative(usage);
        json["cache_creation"] = json!({
            "ephemeral_5m_input_tokens": self.created_5m,
            "ephemeral_1h_input_tokens": self.created_1h,
        });
        json["service_tier"] = "standard".into();
        json
    }

    /// As it stands at the end of a stream.
    pub(super) fn cumulative(&self, usage: Usage) -> Value {
        json!({
            "input_tokens": self.rest,
            "cache_creation_input_tokens": self.created(),
            "cache_read_input_tokens": self.read,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": { "thinking_tokens": usage.reasoning_tokens },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use decide::Role;

    /// Tools and a system prompt of 100 tokens, then messages of 100 tokens each, 400 in all.
    fn check(read: u32, marks: &[(i32, Option<&str>)], expected: [u32; 4]) {
        let segment = |(role, start, message)| Segment { role, start, message };
        let segments = [
            (Role::System, 0, 0),
            (Role::Tools, 40, -1),
            (Role::History, 100, 1),
            (Role::ToolResult, 200, 2),
            (Role::Output, 300, i32::MAX),
        ];
        let mark = |&(segment, ttl): &(i32, Option<&str>)| Mark { segment, ttl: ttl.map(str::to_owned) };
        let marks: Vec<Mark> = marks.iter().map(mark).collect();
        let input = Input::split(400, read, &segments.map(segment), &marks);
        assert_eq!([input.read, input.created_1h, input.created_5m, input.rest], expected);
    }

    #[test]
    fn without_marks_nothing_is_created() {
        check(0, &[], [0, 0, 0, 400]);
        check(96, &[], [96, 0, 0, 304]);
    }

    #[test]
    fn what_lies_between_the_cache_and_the_last_mark_is_created() {
        check(0, &[(0, None), (2, Some("5m"))], [0, 0, 300, 100]);
        check(96, &[(0, None), (2, None)], [96, 0, 204, 100]);
        check(0, &[(-1, None)], [0, 0, 100, 300]);
        check(320, &[(2, None)], [320, 0, 0, 80]);
    }

    #[test]
    fn each_token_has_the_time_of_the_mark_that_covers_it() {
        check(0, &[(0, Some("1h")), (1, Some("1h")), (2, None)], [0, 200, 100, 100]);
        check(150, &[(0, Some("1h")), (2, None)], [150, 0, 150, 100]);
        check(0, &[(1, None), (2, Some("1h"))], [0, 300, 0, 100]);
        check(96, &[(-1, Some("1h")), (2, Some("1h"))], [96, 204, 0, 100]);
    }
}
