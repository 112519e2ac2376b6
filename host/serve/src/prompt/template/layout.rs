//! Where a template puts messages: learned from probe conversations, found again in rendered text.
//!
//! A template writes a few words before each message, such as `<|im_start|>user` and a newline. The guard keeps
//! content from spelling added tokens, so such an opening is never content.
//! Asked only where something wants to know, never to render.
//! **Invariant:** spans lie one after the other and cover the whole text; what is not found belongs to the span
//! before it.

use std::borrow::Cow;
use std::cell::Cell;
use std::ops::Range;

use decide::Role;
use serde_json::{Value, json};

use crate::prompt::Guard;
use crate::prompt::canonical::{Arguments, Content, Rules};
use crate::prompt::segments::Span;

/// Chosen: a message that a template leaves out costs a search through the rest of the text.
const PASSES_MAX: usize = 16;
/// Bytes of a message's beginning that have to match.
const BEGINNING_BYTES: usize = 48;
/// Chosen: a shorter beginning could be found anywhere.
const ALONE_BYTES_MIN: usize = 16;
/// Chosen: what a template writes after the tools to close a turn is shorter than this, and instructions are longer.
const CLOSING_BYTES_MAX: usize = 40;

/// What stands before messages of each kind, around tools, and before the model's turn.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    system: Vec<String>,
    user: Vec<String>,
    assistant: Vec<String>,
    tool: Vec<String>,
    tools: Option<(String, String)>,
    turn: String,
}

/// A search through what is left of a text, within a budget of bytes.
struct Search<'a> {
    text: &'a str,
    from: usize,
    left: &'a Cell<usize>,
    guard: &'a Guard,
}

impl Search<'_> {
    fn find(&self, what: &str) -> Option<Range<usize>> {
        let rest = &self.text[self.from..];
        if self.left.get() == 0 {
            return None;
        }
        let found = rest.find(what);
        self.left.set(self.left.get().saturating_sub(found.map_or(rest.len(), |at| at + what.len())));
        found.map(|at| self.from + at..self.from + at + what.len())
    }
}

impl Layout {
    /// Learns the layout; `render` gives the text of messages and tools, with the model's turn begun or not.
    pub(super) fn learn(render: &dyn Fn(&Value, &Value, bool) -> String, rules: &Rules) -> Self {
        let parts = rules.content == Content::Parts;
        let arguments = if rules.arguments == Arguments::Text { json!("{}") } else { json!({}) };
        let mut layout = Self::default();
        let content = |text: &str| if parts { json!([{"type": "text", "text": text}]) } else { json!(text) };
        let message = |role: &str, text: &str| json!({"role": role, "content": content(text)});
        let plain = [
            message("system", "probeone"),
            message("user", "probetwo"),
            message("assistant", "probethree"),
            message("user", "probefour"),
        ];
        let none = Value::Null;
        for from in [0, 1] {
            layout.learn_openings(render, &plain[from..], &none);
        }
        let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "probe", "arguments": arguments}});
        let calling = json!({"role": "assistant", "content": content("probefive"),
            "tool_calls": [call("callaaaaa"), call("callbbbbb")]});
        let answer = |id: &str, text: &str| json!({"role": "tool", "tool_call_id": id, "name": "probe", "content": content(text)});
        let agent = [
            message("user", "probetwo"),
            calling,
            answer("callaaaaa", "probesix"),
            answer("callbbbbb", "probeseven"),
        ];
        layout.learn_openings(render, &agent, &tools("probe", "x"));
        layout.tools = learn_tools(render, &json!(plain[..2]));
        layout.turn = learn_turn(render, &plain[1..]);
        layout
    }

    /// Notes what stands before each message: what is between it and the one before, without what closes that one.
    fn learn_openings(
        &mut self,
        render: &dyn Fn(&Value, &Value, bool) -> String,
        messages: &[Value],
        tools: &Value,
    ) {
        let text = render(&json!(messages), tools, false);
        let mut end_before = 0;
        for (i, message) in messages.iter().enumerate() {
            let content = content_text(message);
            let Some(start) = text[end_before..].find(&*content).map(|at| end_before + at) else { return };
            let between = &text[end_before..start];
            let closing = if i == 0 {
                String::new()
            } else {
                let shorter = render(&json!(messages[..i]), tools, false);
                shorter.get(end_before..).unwrap_or_default().to_owned()
            };
            let opening = between[closed(between, &closing)..].to_owned();
            let known = self.openings_mut(message["role"].as_str().unwrap_or_default());
            // Before a first message may stand anything: a date, a system prompt of the template's own.
            let typical = i > 0 || message["role"] == "system";
            if typical && !opening.is_empty() && !known.contains(&opening) {
                known.push(opening);
            }
            end_before = start + content.len();
        }
    }

    fn openings_mut(&mut self, role: &str) -> &mut Vec<String> {
        match role {
            "system" => &mut self.system,
            "assistant" => &mut self.assistant,
            "tool" => &mut self.tool,
            _ => &mut self.user,
        }
    }

    fn openings(&self, role: &str) -> &[String] {
        match role {
            "system" | "developer" => &self.system,
            "assistant" => &self.assistant,
            "tool" | "function" => &self.tool,
            _ => &self.user,
        }
    }

    /// The spans of a text that was rendered from these messages, as the template saw them.
    ///
    /// Cost: at most [`PASSES_MAX`] searches through the text; mostly two.
    pub(super) fn spans(&self, messages: &[Value], tools: bool, text: &str, guard: &Guard) -> Vec<Span> {
        // What a template writes before its first system message is part of it.
        let is_given = messages.first().is_some_and(|first| role_of_message(first) == Role::System);
        let message = if is_given { 0 } else { Span::BEFORE };
        let mut spans = vec![Span { role: Role::System, start: 0, message }];
        let left = Cell::new(text.len().saturating_mul(PASSES_MAX));
        let mut cursor = 0;
        for (i, message) in messages.iter().enumerate() {
            let name = message["role"].as_str().unwrap_or_default();
            let search = Search { text, from: cursor, left: &left, guard };
            let Some(found) = self.find(name, &content_text(message), &search) else {
                if left.get() == 0 {
                    break;
                }
                continue;
            };
            let role = role_of(name);
            let start = if i == 0 && role == Role::System { 0 } else { found.start };
            put(&mut spans, Span { role, start, message: i as i32 });
            cursor = found.end;
            let opened = self.opened(name, &text[found.start..found.end]);
            if name == "assistant"
                && let Some(thought) = reasoning(text, found.start + opened)
                && !self.user.iter().any(|opening| text[thought.clone()].contains(opening.as_str()))
            {
                put(&mut spans, Span { role: Role::Reasoning, start: thought.start, message: i as i32 });
                put(&mut spans, Span { role, start: thought.end, message: i as i32 });
                cursor = cursor.max(thought.end);
            }
        }
        let begun = if self.turn.is_empty() { None } else { text[cursor..].rfind(&self.turn) };
        if let Some(at) = begun {
            put(&mut spans, Span { role: Role::Output, start: cursor + at, message: Span::AFTER });
        }
        if tools {
            self.split_tools(&mut spans, text);
        }
        spans
    }

    /// Where a message's opening stands, and how far it and what was compared reach.
    fn find(&self, role: &str, content: &str, search: &Search<'_>) -> Option<Range<usize>> {
        let content = content.trim();
        let openings = self.openings(role);
        let hits: Vec<Range<usize>> = openings.iter().filter_map(|opening| search.find(opening)).collect();
        let fitting = hits.iter().filter(|hit| search.text[hit.end..].starts_with(content));
        if let Some(hit) = fitting.min_by_key(|hit| hit.start) {
            return Some(hit.start..hit.end + content.len());
        }
        // What an assistant said is often written differently: old reasoning goes.
        let added = |hit: &&Range<usize>| search.guard.spells_added(&search.text[(*hit).clone()]);
        let first = hits.iter().filter(added).min_by_key(|hit| hit.start).cloned();
        if role == "assistant" && first.is_some() {
            return first;
        }
        let beginning = &content[..content.floor_char_boundary(BEGINNING_BYTES)];
        let whole = |opening: &String| search.find(&format!("{opening}{beginning}"));
        openings
            .iter()
            .filter_map(whole)
            .min_by_key(|hit| hit.start)
            .or(first)
            .or_else(|| if beginning.len() < ALONE_BYTES_MIN { None } else { search.find(beginning) })
    }

    /// Bytes of the opening at the beginning of what was found.
    fn opened(&self, role: &str, found: &str) -> usize {
        self.openings(role)
            .iter()
            .filter(|opening| found.starts_with(opening.as_str()))
            .map(String::len)
            .max()
            .unwrap_or(0)
    }

    fn split_tools(&self, spans: &mut Vec<Span>, text: &str) {
        let Some((open, close)) = &self.tools else { return };
        let Some(start) = text.find(open.as_str()) else { return };
        let after = start + open.len();
        let Some(end) = text[after..].find(close.as_str()).map(|at| after + at + close.len()) else { return };
        let at = spans.partition_point(|span| span.start <= start) - 1;
        let around = spans[at];
        let next = spans.get(at + 1).map_or(text.len(), |span| span.start);
        if end > next {
            return;
        }
        let mut split = vec![Span { role: Role::Tools, start, message: Span::BEFORE }];
        if next - end > CLOSING_BYTES_MAX {
            split.push(Span { start: end, ..around });
        }
        spans.splice(at + 1..at + 1, split);
        if around.start == start {
            spans.remove(at);
        }
    }
}

/// The text of a message; of several parts, the first.
fn content_text(message: &Value) -> Cow<'_, str> {
    let content = &message["content"];
    content.as_str().or_else(|| content[0]["text"].as_str()).unwrap_or_default().into()
}

/// Adds a span after the others; one without text gives way.
fn put(spans: &mut Vec<Span>, span: Span) {
    if let Some(last) = spans.last()
        && last.start == span.start
    {
        spans.pop();
    }
    spans.push(span);
}

fn role_of_message(message: &Value) -> Role {
    role_of(message["role"].as_str().unwrap_or_default())
}

fn role_of(name: &str) -> Role {
    match name {
        "system" | "developer" => Role::System,
        "tool" | "function" => Role::ToolResult,
        _ => Role::History,
    }
}

/// Reasoning at the beginning of what an assistant said, with the newlines that belong to its markup.
fn reasoning(text: &str, from: usize) -> Option<Range<usize>> {
    let begun = text[from..].trim_start();
    let start = text.len() - begun.len();
    let body = begun.strip_prefix("<think>")?;
    let end = text.len() - body.len() + body.find("</think>")? + "</think>".len();
    let rest = text[end..].trim_start_matches('\n');
    Some(start..text.len() - rest.len())
}

fn tools(name: &str, word: &str) -> Value {
    let parameters = json!({"type": "object", "properties": {word: {"type": "string", "description": word}}});
    json!([{"type": "function", "function": {"name": name, "description": word, "parameters": parameters}}])
}

/// What stands before and after the list of tools.
fn learn_tools(
    render: &dyn Fn(&Value, &Value, bool) -> String,
    messages: &Value,
) -> Option<(String, String)> {
    let without = render(messages, &Value::Null, false);
    let one = render(messages, &tools("probealpha", "lime"), false);
    let other = render(messages, &tools("zetaprobed", "oak"), false);
    if one == other {
        return None;
    }
    let before = &one[common_prefix(&one, &without)..common_prefix(&one, &other)];
    let after_len = common_suffix(&one, &other);
    let own = after_len.saturating_sub(common_suffix(&one, &without));
    let after = &one[one.len() - after_len..][..own];
    // Brackets are of the tools themselves, whose keys may stand in any order.
    let open = before.split('{').next().unwrap_or_default().trim();
    let close = after.trim_start_matches(|c: char| c.is_alphanumeric() || "}]\"',:".contains(c)).trim_end();
    (!open.is_empty() && !close.trim().is_empty()).then(|| (open.to_owned(), close.to_owned()))
}

/// Bytes of what is between two messages that close the first one, given what closes it at the end of a text. Where a
/// template joins messages, less closes it there.
fn closed(between: &str, closing: &str) -> usize {
    let same = common_prefix(between, closing);
    if same == closing.len() {
        return same;
    }
    // Not in the middle of a mark.
    between[..same].rfind(['>', ']', '\n']).map_or(0, |at| at + 1)
}

fn learn_turn(render: &dyn Fn(&Value, &Value, bool) -> String, messages: &[Value]) -> String {
    let (begun, ended) =
        (render(&json!(messages), &Value::Null, true), render(&json!(messages), &Value::Null, false));
    begun.strip_prefix(ended.as_str()).unwrap_or_default().to_owned()
}

fn common_prefix(one: &str, other: &str) -> usize {
    let same = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    one.floor_char_boundary(same)
}

fn common_suffix(one: &str, other: &str) -> usize {
    let same = one.bytes().rev().zip(other.bytes().rev()).take_while(|(a, b)| a == b).count();
    one.len() - one.ceil_char_boundary(one.len() - same)
}
