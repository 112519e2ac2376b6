//! The grammar of calls: a family's literal pieces around names and arguments.
//!
//! Arguments of one JSON object fit the tool's schema as a whole. Where a family writes parameters one by one, each
//! value fits the schema of its property, and they come in the order of the schema.
//! **Invariant:** a piece that spells an added token is that token, so that no plain text passes for it.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::lark::{Source, string};
use super::schema::{self, Spacing};
use super::vocabulary::Vocabulary;
use super::{PromptError, refused};
use crate::prompt::{ArgumentStyle, CallSyntax, NameStyle};

/// Most calls of one answer that a grammar allows. Chosen: agents make a few at once; a model that cannot stop is.
const CALLS_MAX: usize = 16;

/// The grammar of an answer that is calls and nothing else.
pub(super) fn forced(
    vocabulary: &Vocabulary,
    syntax: &CallSyntax,
    tools: (&[Value], Option<&str>),
    many: bool,
) -> Result<Source, PromptError> {
    let rules = rules(vocabulary, syntax, tools, many)?;
    Ok(Source { lark: format!("start: calls\n{rules}"), param: "tools".into(), schema: None, foreign: false })
}

/// The rule `calls` with all it needs.
pub(super) fn rules(
    vocabulary: &Vocabulary,
    syntax: &CallSyntax,
    (tools, named): (&[Value], Option<&str>),
    many: bool,
) -> Result<String, PromptError> {
    let mut text = Rules { vocabulary, syntax, text: String::new() };
    let mut tools_of = Vec::new();
    for (i, tool) in tools.iter().enumerate() {
        let name = tool["function"]["name"].as_str().unwrap_or_default();
        if named.is_none_or(|named| named == name) {
            text.tool(i, name, &tool["function"])?;
            tools_of.push(format!("tool_{i}"));
        }
    }
    if tools_of.is_empty() {
        return Err(refused("tool_choice", "`tool_choice` forces a call, but `tools` has no such function"));
    }
    let first = text.literal(syntax.section_open);
    let last = text.literal(syntax.section_close);
    let more = match many {
        true => format!("({} call)~0..{}", text.literal(syntax.between), CALLS_MAX - 1),
        false => String::new(),
    };
    let call = tools_of.join(" | ");
    Ok(format!("calls: {first} call {more} {last}\ncall: {call}\n{}", text.text))
}

struct Rules<'a> {
    vocabulary: &'a Vocabulary,
    syntax: &'a CallSyntax,
    text: String,
}

impl Rules<'_> {
    /// Literal text: added tokens by their number, the rest as strings.
    fn literal(&self, text: &str) -> String {
        let mut pieces = Vec::new();
        self.vocabulary.pieces(text, |piece| {
            pieces.push(match piece {
                Ok(text) => string(text),
                Err(token) => format!("<[{token}]>"),
            });
        });
        pieces.join(" ")
    }

    fn rule(&mut self, name: &str, body: &str) {
        // Writing to a string has no way to fail.
        let _ = writeln!(self.text, "{name}: {body}");
    }

    fn tool(&mut self, i: usize, name: &str, function: &Value) -> Result<(), PromptError> {
        let CallSyntax { begin, after_name, end, .. } = *self.syntax;
        let written = match self.syntax.name {
            NameStyle::Plain => name.to_owned(),
            NameStyle::JsonString => within_quotes(name),
        };
        let strict = function["strict"] == Value::Bool(true);
        let param = format!("tools[{i}].function.parameters");
        let parameters = schema::prepare(&object(&function["parameters"]), &param, strict)?;
        let before = self.literal(&format!("{begin}{written}{after_name}"));
        let arguments = format!("arguments_{i}");
        match self.syntax.arguments {
            ArgumentStyle::Json => {
                let json = schema::text(parameters, strict, Spacing::AfterSeparators);
                self.rule(&arguments, &format!("%json {json}"));
            }
            ArgumentStyle::Parameters { open, after_key, close } => {
                self.parameters(&arguments, &parameters, (open, after_key, close));
            }
        }
        let after = self.literal(end);
        self.rule(&format!("tool_{i}"), &format!("{before} {arguments} {after}"));
        Ok(())
    }

    /// A rule for each parameter, and one for all of them in order.
    fn parameters(
        &mut self,
        name: &str,
        schema: &Map<String, Value>,
        (open, after_key, close): (&str, &str, &str),
    ) {
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        let required = schema.get("required").and_then(Value::as_array);
        let mut all = Vec::new();
        for (i, (key, property)) in properties.iter().enumerate() {
            let before = self.literal(&format!("{open}{key}{after_key}"));
            let rule = format!("{name}_{i}");
            let value = self.value(&rule, (schema, property), close);
            self.rule(&rule, &format!("{before} {value}"));
            let needed = required.is_some_and(|names| names.iter().any(|name| name == key));
            all.push(if needed { rule } else { format!("{rule}?") });
        }
        let all = if all.is_empty() { "\"\"".to_owned() } else { all.join(" ") };
        self.rule(name, &all);
    }

    /// A value and what closes it.
    fn value(
        &mut self,
        rule: &str,
        (schema, property): (&Map<String, Value>, &Value),
        close: &str,
    ) -> String {
        if let Some(texts) = texts(property) {
            return format!("({}) {}", texts.join(" | "), self.literal(close));
        }
        if !takes_text(property) {
            let value = schema::text(with_definitions(schema, property), false, Spacing::AfterSeparators);
            return format!("%json {value} {}", self.literal(close));
        }
        // Text goes on to the first token or text that closes it.
        let mut pieces = Vec::new();
        self.vocabulary.pieces(close, |piece| pieces.push(piece.map(str::to_owned)));
        match pieces.first() {
            Some(Ok(text)) => {
                let (suffix, rest) = (string(text), self.literal(&close[text.len()..]));
                self.rule(&format!("{rule}_text[suffix={suffix}]"), "/(?s:.*)/");
                format!("{rule}_text {rest}")
            }
            _ => format!("/(?s:.*)/ {}", self.literal(close)),
        }
    }
}

/// A text as it stands between the quotes of a JSON string.
fn within_quotes(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// Arguments are an object, whatever else the tool says of them.
fn object(parameters: &Value) -> Value {
    match parameters {
        Value::Object(schema) if !schema.contains_key("type") => {
            let mut schema = schema.clone();
            schema.insert("type".to_owned(), "object".into());
            Value::Object(schema)
        }
        Value::Null => json!({"type": "object"}),
        other => other.clone(),
    }
}

/// The texts of an enumeration of strings.
fn texts(property: &Value) -> Option<Vec<String>> {
    let one = property.get("const").map(std::slice::from_ref);
    let values = one.or_else(|| property.get("enum")?.as_array().map(Vec::as_slice))?;
    values.iter().map(|value| value.as_str().filter(|text| !text.is_empty()).map(string)).collect()
}

/// Whether a family that writes parameters one by one writes this one as plain text.
fn takes_text(property: &Value) -> bool {
    match &property["type"] {
        Value::String(name) => name == "string",
        Value::Array(names) => names.iter().any(|name| name == "string"),
        _ => !["anyOf", "oneOf", "allOf", "$ref", "enum", "const", "properties", "items"]
            .iter()
            .any(|key| property.get(key).is_some()),
    }
}

/// A property's schema with the definitions that it may refer to.
fn with_definitions(schema: &Map<String, Value>, property: &Value) -> Map<String, Value> {
    let mut whole = property.as_object().cloned().unwrap_or_default();
    for key in ["$defs", "definitions"] {
        if let Some(definitions) = schema.get(key) {
            whole.insert(key.to_owned(), definitions.clone());
        }
    }
    whole
}
