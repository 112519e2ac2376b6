//! What a request says of its turn that the contract has no field for: open attributes.

use crate::body::Body;
use crate::codex::Codex;
use crate::{ATTRIBUTE_BYTES_MAX, ATTRIBUTES_MAX};
use pointsman_sdk::{HintsView, Value};

/// Most tool calls of which a time is taken: Claude Code sends at most 32.
const TOOLS_MAX: usize = 64;
/// Words for effort, the least first; the attribute is the place in this list.
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// Adds what is said and has no better word.
pub(crate) fn add_attributes(
    view: &HintsView<'_>,
    codex: &Codex<'_>,
    body: &Body,
    attributes: &mut Vec<(String, Value)>,
) {
    let mut add = |name: &str, value: Option<Value>| {
        let taken = attributes.iter().any(|(known, _)| known == name);
        let fits = |value: &Value| match value {
            Value::Text(text) => text.len() <= ATTRIBUTE_BYTES_MAX,
            Value::Flag(_) | Value::Number(_) => true,
        };
        let value = value.filter(fits).filter(|_| !taken && attributes.len() < ATTRIBUTES_MAX);
        attributes.extend(value.map(|value| (name.to_owned(), value)));
    };
    let header = |name| view.header(name).map(str::to_owned);
    let (turn, root_turn) = codex.turns();
    let kind = header("x-claude-1p-request-class").or_else(|| codex.request_kind());
    let blocking = kind.as_deref().is_some_and(|kind| kind.starts_with("blocking"));
    let subagent = header("x-claude-code-agent-type").or_else(|| codex.subagent());
    add("turn", header("x-claude-code-prompt-id").or(turn).map(Value::Text));
    add("root_turn", root_turn.map(Value::Text));
    add("request_kind", kind.map(Value::Text));
    add("blocking", blocking.then_some(Value::Flag(true)));
    add("subagent_kind", subagent.map(Value::Text));
    add("compaction", header("x-claude-code-compaction").map(Value::Text));
    add("compacted", view.header("x-claude-code-context-compacted").map(|_| Value::Flag(true)));
    add("compactions", codex.compactions().map(Value::Number));
    add("turn_age_ms", codex.turn_age_ms().map(Value::Number));
    if let Some(tools) = view.header("x-claude-code-prev-tool-durations").and_then(Tools::read) {
        add("tool", Some(Value::Text(tools.longest)));
        add("tool_ms_longest", Some(Value::Number(tools.longest_ms)));
        add("tool_ms_total", Some(Value::Number(tools.total_ms)));
        add("tool_calls", Some(Value::Number(tools.calls)));
    }
    add("effort", body.effort().and_then(effort).map(Value::Number));
}

/// How long the tools took whose results a request brings.
#[derive(Debug, PartialEq)]
struct Tools {
    longest: String,
    longest_ms: f64,
    total_ms: f64,
    calls: f64,
}

impl Tools {
    /// Reads `Bash=742;Read=9`; names are percent-encoded. What is no such pair is left out.
    fn read(header: &str) -> Option<Self> {
        let times = header.split([';', ',']).filter_map(|pair| {
            let (name, ms) = pair.trim().split_once('=')?;
            Some((name, f64::from(ms.parse::<u32>().ok()?)))
        });
        let times: Vec<(&str, f64)> = times.take(TOOLS_MAX).collect();
        let (longest, longest_ms) = *times.iter().max_by(|one, other| one.1.total_cmp(&other.1))?;
        Some(Self {
            longest: decoded(longest),
            longest_ms,
            total_ms: times.iter().map(|(_, ms)| ms).sum(),
            calls: times.len() as f64,
        })
    }
}

/// A text without its percent-encoding.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.first_chunk::<2>().filter(|_| byte == b'%').and_then(|hex| {
            let digit = |digit: u8| char::from(digit).to_digit(16);
            Some((digit(hex[0])? * 16 + digit(hex[1])?) as u8)
        });
        bytes.push(code.unwrap_or(byte));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn effort(word: &str) -> Option<f64> {
    EFFORTS.iter().position(|known| *known == word).map(|place| place as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str, expected: Option<(&str, f64, f64, f64)>) {
        let seen = Tools::read(header);
        let seen = seen.as_ref().map(|it| (it.longest.as_str(), it.longest_ms, it.total_ms, it.calls));
        assert_eq!(seen, expected, "{header}");
    }

    #[test]
    fn the_times_of_tools_are_summed_and_the_longest_is_named() {
        check("Bash=37", Some(("Bash", 37.0, 37.0, 1.0)));
        check("Bash=742;Read=9;Read=11", Some(("Bash", 742.0, 762.0, 3.0)));
        check("Read=9,Bash=742", Some(("Bash", 742.0, 751.0, 2.0)));
        check("mcp__a%20b%3D=5", Some(("mcp__a b=", 5.0, 5.0, 1.0)));
    }

    #[test]
    fn what_is_no_time_is_left_out() {
        check("", None);
        check("Bash", None);
        check("Bash=-1", None);
        check("Bash=x;Read=9;;=", Some(("Read", 9.0, 9.0, 1.0)));
        check("%Gash%2=1", Some(("%Gash%2", 1.0, 1.0, 1.0)));
    }
}
