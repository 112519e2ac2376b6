//! What the request's tools say of their parameters, for families that write values as plain text.
//!
//! **Invariant:** what comes out is valid JSON, and says what the model wrote where no type fits it.

use std::sync::Arc;

use serde::de::IgnoredAny;
use serde_json::Value;

use super::python;

/// Chosen: schemas that nest alternatives deeper say nothing useful of one value.
const DEPTH_MAX: usize = 8;

/// Parameters of the request's tools.
#[derive(Clone, Debug)]
pub(super) struct Schemas(Arc<[(String, Value)]>);

/// Types that a parameter may have, one bit each; none where nothing is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Types(u8);

const STRING: u8 = 1;
const NUMBER: u8 = 2;
const BOOLEAN: u8 = 4;
const NULL: u8 = 8;
const OBJECT: u8 = 16;
const ARRAY: u8 = 32;

impl Schemas {
    /// Reads tools as the API has them; what has another form says nothing.
    pub(super) fn new(tools: &[Value]) -> Self {
        let of = |tool: &Value| {
            let function = tool.get("function").unwrap_or(tool);
            Some((function["name"].as_str()?.to_owned(), function["parameters"].clone()))
        };
        Self(tools.iter().filter_map(of).collect())
    }

    /// The types of a tool's parameter.
    pub(super) fn types(&self, tool: &str, parameter: &str) -> Types {
        let schema = self.0.iter().find(|(name, _)| name == tool).map(|(_, schema)| schema);
        let Some(schema) = schema else { return Types::default() };
        let mut types = 0;
        collect(&schema["properties"][parameter], DEPTH_MAX, &mut types);
        Types(types)
    }
}

fn collect(schema: &Value, depth: usize, types: &mut u8) {
    let mut named = |name: &Value| {
        *types |= match name.as_str().unwrap_or_default() {
            "string" => STRING,
            "number" | "integer" => NUMBER,
            "boolean" => BOOLEAN,
            "null" => NULL,
            "object" => OBJECT,
            "array" => ARRAY,
            _ => 0,
        }
    };
    match &schema["type"] {
        Value::Array(names) => names.iter().for_each(&mut named),
        name => named(name),
    }
    if schema["type"].is_null() {
        let values = schema["enum"].as_array().into_iter().flatten().chain(schema.get("const"));
        values.for_each(|value| *types |= type_of(value));
    }
    if depth > 0 {
        for word in ["anyOf", "oneOf", "allOf"] {
            let parts = schema[word].as_array().into_iter().flatten();
            parts.for_each(|part| collect(part, depth - 1, types));
        }
    }
}

fn type_of(value: &Value) -> u8 {
    match value {
        Value::String(_) => STRING,
        Value::Number(_) => NUMBER,
        Value::Bool(_) => BOOLEAN,
        Value::Null => NULL,
        Value::Object(_) => OBJECT,
        Value::Array(_) => ARRAY,
    }
}

impl Types {
    /// Text and nothing else.
    pub(super) const TEXT: Self = Self(STRING);
    /// Anything but text.
    pub(super) const JSON: Self = Self(NUMBER | BOOLEAN | NULL | OBJECT | ARRAY);
    /// Anything; text where it is no JSON.
    pub(super) const ANY: Self = Self(STRING | Self::JSON.0);

    /// These, or the given ones where nothing is known.
    pub(super) fn or(self, unknown: Self) -> Self {
        if self.0 == 0 { unknown } else { self }
    }

    /// Whether a value can be passed on as text while it arrives.
    pub(super) fn is_text(self) -> bool {
        self == Self::TEXT
    }

    /// A value written as plain text, in JSON.
    pub(super) fn json(self, text: &str) -> String {
        let value = text.trim();
        let word = match value {
            "True" | "TRUE" if self.0 & BOOLEAN != 0 => Some("true"),
            "False" | "FALSE" if self.0 & BOOLEAN != 0 => Some("false"),
            "None" if self.0 & NULL != 0 => Some("null"),
            _ => None,
        };
        if let Some(word) = word {
            return word.to_owned();
        }
        if self.fits(value) && serde_json::from_str::<IgnoredAny>(value).is_ok() {
            return value.to_owned();
        }
        let literal = (value.starts_with(['{', '[', '(']) && self.0 & (OBJECT | ARRAY) != 0)
            .then(|| python::to_json(value))
            .flatten();
        literal.unwrap_or_else(|| quoted(text))
    }

    /// Whether a value of this beginning is wanted as JSON. Without text among the types, any is: a server
    /// that checks arguments tells more than a value in quotes.
    fn fits(self, value: &str) -> bool {
        let own = match value.as_bytes().first() {
            Some(b'"') => return self.0 & STRING == 0,
            Some(b'{') => OBJECT,
            Some(b'[') => ARRAY,
            Some(b't' | b'f') => BOOLEAN,
            Some(b'n') => NULL,
            _ => NUMBER,
        };
        self.0 & own != 0 || self.0 & STRING == 0
    }
}

/// A JSON string.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text))
}

/// What stands between the quotes of a JSON string. Text may be cut anywhere.
pub(super) fn escaped(text: &str) -> String {
    let json = Value::from(text).to_string();
    json[1..json.len() - 1].to_owned()
}
