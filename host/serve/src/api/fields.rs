//! Reads typed values out of a JSON object; every error names the field and what would be right.

use serde_json::{Map, Value};

use crate::request::Refusal;

/// The JSON value of some bytes.
pub(super) fn json(bytes: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| Refusal::Json(error.to_string()))
}

/// A JSON object on its way to becoming a request. Unknown fields are left alone; null is absence.
pub(super) struct Fields<'a> {
    path: String,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The top-level object of a body.
    pub(super) fn body(value: &'a Value) -> Result<Self, Refusal> {
        Self::at(value, "")
    }

    /// The object at `path`.
    pub(super) fn at(value: &'a Value, path: &str) -> Result<Self, Refusal> {
        let object = value.as_object().ok_or_else(|| match path {
            "" => Refusal::Json(format!("expected an object, got {}", kind(value))),
            path => Refusal::field(path, format!("`{path}` must be an object, got {}", kind(value))),
        })?;
        Ok(Self { path: path.to_owned(), object })
    }

    /// Path of a field of this object.
    pub(super) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A field that is there and not null.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|v| !v.is_null())
    }

    /// The refusal of a field: it must be `wanted`.
    pub(super) fn wrong(&self, name: &str, wanted: &str) -> Refusal {
        let path = self.path(name);
        let message = match self.get(name) {
            Some(value) => format!("`{path}` must be {wanted}, got {}", shown(value)),
            None => format!("`{path}` is missing: it must be {wanted}"),
        };
        Refusal::field(path, message)
    }

    /// A text, if there is one.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, Refusal> {
        self.get(name).map(|v| v.as_str().ok_or_else(|| self.wrong(name, "a string"))).transpose()
    }

    /// A flag; false if absent.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Refusal> {
        self.get(name)
            .map(|v| v.as_bool().ok_or_else(|| self.wrong(name, "true or false")))
            .transpose()
            .map(Option::unwrap_or_default)
    }

    /// A list, if there is one.
    pub(super) fn list(&self, name: &str) -> Result<Option<&'a Vec<Value>>, Refusal> {
        self.get(name).map(|v| v.as_array().ok_or_else(|| self.wrong(name, "a list"))).transpose()
    }

    /// An object, if there is one.
    pub(super) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, Refusal> {
        self.get(name).map(|v| Fields::at(v, &self.path(name))).transpose()
    }

    /// An integer within bounds, if there is one.
    pub(super) fn integer(&self, name: &str, min: i64, max: i64) -> Result<Option<i64>, Refusal> {
        let Some(value) = self.get(name) else { return Ok(None) };
        // 16.0 is an integer to most JSON writers.
        let number = value.as_i64().or_else(|| value.as_f64().filter(|f| f.fract() == 0.0).map(|f| f as i64));
        match number {
            Some(n) if (min..=max).contains(&n) => Ok(Some(n)),
            _ => Err(self.wrong(name, &integer_range(min, max))),
        }
    }

    /// A number within bounds, if there is one.
    pub(super) fn number(&self, name: &str, min: f64, max: f64) -> Result<Option<f64>, Refusal> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64() {
            Some(n) if (min..=max).contains(&n) => Ok(Some(n)),
            _ => Err(self.wrong(name, &format!("a number from {min} to {max}"))),
        }
    }
}

fn integer_range(min: i64, max: i64) -> String {
    if max >= i64::from(u32::MAX) {
        format!("an integer of at least {min}")
    } else {
        format!("an integer from {min} to {max}")
    }
}

/// The kind of a JSON value, with its article.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A value for an error message: numbers and flags as they are, the rest by kind.
fn shown(value: &Value) -> String {
    match value {
        Value::Number(n) => n.to_string(),
        Value::Bool(b) => b.to_string(),
        other => kind(other).to_owned(),
    }
}
