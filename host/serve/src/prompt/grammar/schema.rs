//! JSON schemas: what can be enforced of them, and where they are wrong.
//!
//! The grammar compiler tells what it does not take without saying where. Schemas are walked first: what is no schema
//! is refused by its path; what is one but cannot be enforced is refused if the caller wants strictness, and left
//! out of the copy that is compiled if not.
//! Objects that name their properties get no others.
//! **Invariant:** a schema that passed is small enough to be compiled, and its references stay within it.

use serde_json::{Map, Value, json};

use super::{PromptError, refused};

/// Most schemas within a schema. Chosen: the tools of an agent have some hundreds; compiling takes about 20 us each,
/// and at most [`super::compile::STACK_BYTES`] of stack over all of them.
const NODES_MAX: usize = 5_000;
const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];
/// Formats of strings that are enforced.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];
/// Keywords that constrain an instance in ways that a grammar of its text does not.
const UNENFORCED: [&str; 20] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
    "$vocabulary",
    "x-guidance",
];

/// White space around JSON's separators.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Spacing {
    /// None.
    None,
    /// At most one space after each comma and colon, as models write the arguments of calls.
    AfterSeparators,
}

/// Checks the schema at `param` of a request, and that it can be enforced as strictly as is asked for.
///
/// Errors: [`PromptError::Refused`] with the path of what is wrong.
pub(crate) fn check(schema: &Value, param: &str, strict: bool) -> Result<(), PromptError> {
    prepare(schema, param, strict).map(|_| ())
}

/// The part of a schema that can be enforced. Errors as [`check`].
pub(super) fn prepare(schema: &Value, param: &str, strict: bool) -> Result<Map<String, Value>, PromptError> {
    let mut prepared = match schema {
        Value::Bool(true) => json!({}),
        Value::Object(_) => schema.clone(),
        Value::Bool(false) => return Err(refused(param, format!("`{param}` is a schema that nothing fits"))),
        _ => return Err(refused(param, format!("`{param}` must be a JSON schema: an object"))),
    };
    // A part of an `allOf` must stay open for what the other parts have.
    let closes = find(schema, param, "allOf").is_none();
    Walk { root: schema, strict, closes, nodes: 0 }.schema(&mut prepared, param)?;
    match prepared {
        Value::Object(object) => Ok(object),
        _ => Ok(Map::new()),
    }
}

/// The text of a schema with the form that its instances are to have.
pub(super) fn text(mut schema: Map<String, Value>, strict: bool, spacing: Spacing) -> String {
    let space = match spacing {
        Spacing::None => "",
        Spacing::AfterSeparators => " ?",
    };
    let form = json!({
        "item_separator": format!(",{space}"),
        "key_separator": format!(":{space}"),
        "whitespace_flexible": false,
        "coerce_one_of": !strict,
        "lenient": !strict,
    });
    schema.insert("x-guidance".to_owned(), form);
    Value::Object(schema).to_string()
}

/// Path of the keyword that a compiler's words are about, if it can be told.
pub(super) fn culprit(schema: &Value, param: &str, reason: &str) -> String {
    let hints = [
        ("oneOf", "oneOf"),
        ("maxProperties", "maxProperties"),
        ("maxProperties", "minProperties"),
        ("patternProperty", "patternProperties"),
        ("circular references", "$ref"),
        ("enum", "enum"),
    ];
    let keywords = hints.iter().filter(|(words, _)| reason.contains(words)).map(|(_, keyword)| *keyword);
    keywords.filter_map(|keyword| find(schema, param, keyword)).next().unwrap_or_else(|| param.to_owned())
}

fn find(schema: &Value, path: &str, keyword: &str) -> Option<String> {
    match schema {
        Value::Object(object) if object.contains_key(keyword) => Some(format!("{path}.{keyword}")),
        Value::Object(object) => {
            object.iter().find_map(|(key, value)| find(value, &format!("{path}.{key}"), keyword))
        }
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(i, value)| find(value, &format!("{path}[{i}]"), keyword))
        }
        _ => None,
    }
}

struct Walk<'a> {
    root: &'a Value,
    strict: bool,
    /// Whether objects have the properties that they name and no others.
    closes: bool,
    nodes: usize,
}

impl Walk<'_> {
    fn schema(&mut self, schema: &mut Value, path: &str) -> Result<(), PromptError> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            let message = format!("`{path}` makes the schema too large: it may have {NODES_MAX} parts");
            return Err(refused(path, message));
        }
        let object = match schema {
            Value::Object(object) => object,
            Value::Bool(_) => return Ok(()),
            _ => return Err(wrong(path, "a schema: an object, true or false")),
        };
        let mut left_out = Vec::new();
        for (key, value) in object.iter_mut() {
            let path = format!("{path}.{key}");
            if !self.keyword(key, value, &path)? {
                left_out.push(key.clone());
            }
        }
        for key in left_out {
            object.shift_remove(&key);
        }
        if self.closes && is_open(object) {
            object.insert("additionalProperties".to_owned(), false.into());
        }
        Ok(())
    }

    /// Checks one keyword. False if it is to be left out.
    fn keyword(&mut self, key: &str, value: &mut Value, path: &str) -> Result<bool, PromptError> {
        match key {
            "properties" | "patternProperties" | "$defs" | "definitions" => self.map(value, path)?,
            "allOf" | "anyOf" | "oneOf" | "prefixItems" => self.list(value, path)?,
            "items" if value.is_array() => self.list(value, path)?,
            "items" | "additionalItems" | "additionalProperties" => self.schema(value, path)?,
            "type" => types(value, path)?,
            "enum" if value.as_array().is_none_or(Vec::is_empty) => {
                return Err(wrong(path, "a list of at least one value"));
            }
            "required" if !value.as_array().is_some_and(|list| list.iter().all(Value::is_string)) => {
                return Err(wrong(path, "a list of property names"));
            }
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties"
                if value.as_u64().is_none() =>
            {
                return Err(wrong(path, "a whole number of at least 0"));
            }
            "minimum" | "maximum" if !value.is_number() => return Err(wrong(path, "a number")),
            "exclusiveMinimum" | "exclusiveMaximum" if !(value.is_number() || value.is_boolean()) => {
                return Err(wrong(path, "a number"));
            }
            "multipleOf" if value.as_f64().is_none_or(|n| n <= 0.0) => {
                return Err(wrong(path, "a number above 0"));
            }
            "pattern" => return self.pattern(value, path),
            "format" => return self.format(value, path),
            "$ref" => self.reference(value, path)?,
            "$schema" if !value.is_string() => return Err(wrong(path, "a string")),
            "$schema" => return Ok(true),
            "uniqueItems" if value == &Value::Bool(false) => return Ok(false),
            key if UNENFORCED.contains(&key) => {
                return self.unenforced(path, &format!("`{key}` cannot be enforced"));
            }
            _ => {}
        }
        Ok(true)
    }

    fn map(&mut self, value: &mut Value, path: &str) -> Result<(), PromptError> {
        let Value::Object(schemas) = value else { return Err(wrong(path, "an object of schemas")) };
        for (name, schema) in schemas {
            self.schema(schema, &format!("{path}.{name}"))?;
        }
        Ok(())
    }

    fn list(&mut self, value: &mut Value, path: &str) -> Result<(), PromptError> {
        let schemas = value.as_array_mut().filter(|list| !list.is_empty());
        let schemas = schemas.ok_or_else(|| wrong(path, "a list of at least one schema"))?;
        for (i, schema) in schemas.iter_mut().enumerate() {
            self.schema(schema, &format!("{path}[{i}]"))?;
        }
        Ok(())
    }

    fn pattern(&self, value: &Value, path: &str) -> Result<bool, PromptError> {
        let pattern = value.as_str().ok_or_else(|| wrong(path, "a string with a regular expression"))?;
        match regex_syntax::parse(pattern) {
            Ok(_) => Ok(true),
            Err(_) => self.unenforced(
                path,
                "the regular expression cannot be enforced; look-around and back references never can",
            ),
        }
    }

    fn format(&self, value: &Value, path: &str) -> Result<bool, PromptError> {
        let format = value.as_str().ok_or_else(|| wrong(path, "a string"))?;
        if FORMATS.contains(&format) {
            return Ok(true);
        }
        self.unenforced(
            path,
            &format!("the format `{format}` cannot be enforced; these can: {}", FORMATS.join(", ")),
        )
    }

    /// A reference stays within the schema, and points at a part of it.
    fn reference(&self, value: &Value, path: &str) -> Result<(), PromptError> {
        let within = "a reference within the schema, such as `#/$defs/name`";
        let reference = value.as_str().ok_or_else(|| wrong(path, within))?;
        if reference == "#" {
            return Ok(());
        }
        let pointer = reference.strip_prefix('#').filter(|pointer| pointer.starts_with('/'));
        let pointer = pointer.ok_or_else(|| wrong(path, within))?;
        match self.root.pointer(pointer) {
            Some(target) if target.is_object() || target.is_boolean() => Ok(()),
            _ => Err(refused(
                path,
                format!("`{path}` refers to `{reference}`, which the schema does not have"),
            )),
        }
    }

    /// What cannot be enforced is left out, unless the caller wants strictness.
    fn unenforced(&self, path: &str, why: &str) -> Result<bool, PromptError> {
        match self.strict {
            false => Ok(false),
            true => Err(refused(path, format!("`{path}`: {why}; leave it out or set `strict` to false"))),
        }
    }
}

/// Whether an object names all that it needs and says nothing of other properties. A model that may invent some does not
/// know when to stop, and what fits the closed schema fits the open one.
fn is_open(object: &Map<String, Value>) -> bool {
    const OTHERS: [&str; 6] =
        ["additionalProperties", "patternProperties", "anyOf", "oneOf", "$ref", "minProperties"];
    let Some(named) = object.get("properties").and_then(Value::as_object) else { return false };
    let required = object.get("required").and_then(Value::as_array);
    let is_named = |name: &Value| name.as_str().is_some_and(|name| named.contains_key(name));
    !OTHERS.iter().any(|key| object.contains_key(*key)) && required.into_iter().flatten().all(is_named)
}

fn types(value: &Value, path: &str) -> Result<(), PromptError> {
    let known = |value: &Value| value.as_str().is_some_and(|name| TYPES.contains(&name));
    let right = match value {
        Value::Array(names) => !names.is_empty() && names.iter().all(known),
        name => known(name),
    };
    match right {
        true => Ok(()),
        false => Err(wrong(path, &format!("one of {}, or a list of them", TYPES.join(", ")))),
    }
}

fn wrong(path: &str, wanted: &str) -> PromptError {
    refused(path, format!("`{path}` must be {wanted}"))
}
