//! Values that know how they are printed: a call's arguments, to the byte as the model wrote them, and tools, which
//! come with every request.
//!
//! A template may look into one as into any object; the filter `tojson` writes the text that it remembers.
//! **Invariant:** the text says what the value says.

use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Serde, Value, ValueKind};

use serde::{Serialize, Serializer};

use super::python::dumps;

/// An object and its JSON.
#[derive(Debug)]
pub(super) struct Printed {
    value: Value,
    json: String,
    /// Whether a template that asks for another layout gets this text all the same.
    always: bool,
}

impl Printed {
    /// The text, for a template that wants Python's own layout or another one.
    pub(super) fn json(&self, pythons_own: bool) -> Option<&str> {
        (self.always || pythons_own).then_some(&self.json)
    }
}

impl Object for Printed {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.value.get_item(key).ok().filter(|value| !value.is_undefined())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let keys = self.value.try_iter().map(Iterator::collect::<Vec<Value>>);
        keys.map_or(Enumerator::Empty, |keys| Enumerator::RevIter(Box::new(keys.into_iter())))
    }
}

/// A tool.
pub(super) fn tool(tool: &serde_json::Value) -> Value {
    let value = Value::from(Serde(tool));
    match dumps(tool) {
        Ok(json) if value.kind() == ValueKind::Map => {
            Value::from_object(Printed { value, json, always: false })
        }
        _ => value,
    }
}

/// A message; with `as_objects`, the arguments of its calls are objects.
pub(super) fn message(message: &serde_json::Value, as_objects: bool) -> Value {
    let fields = message.as_object().filter(|fields| as_objects && fields.contains_key("tool_calls"));
    let Some(fields) = fields else { return Value::from(Serde(message)) };
    let field = |(name, value): (&String, &serde_json::Value)| {
        let calls = value.as_array().filter(|_| name == "tool_calls");
        let value = match calls {
            Some(calls) => calls.iter().map(call).collect(),
            None => Value::from(Serde(value)),
        };
        (name.clone(), value)
    };
    object(fields.iter().map(field))
}

fn call(call: &serde_json::Value) -> Value {
    let field = |(name, value): (&String, &serde_json::Value)| {
        let function = value.as_object().filter(|_| name == "function");
        let value = match function {
            Some(function) => object(function.iter().map(|(name, value)| {
                let text = value.as_str().filter(|_| name == "arguments");
                (name.clone(), text.map_or_else(|| Value::from(Serde(value)), arguments))
            })),
            None => Value::from(Serde(value)),
        };
        (name.clone(), value)
    };
    object(call.as_object().into_iter().flatten().map(field))
}

/// Arguments that are an object, or else the text as it is.
fn arguments(text: &str) -> Value {
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(parsed) if parsed.is_object() => {
            let value = Value::from(Serde(&parsed));
            Value::from_object(Printed { value, json: text.to_owned(), always: true })
        }
        _ => text.into(),
    }
}

/// An object whose keys keep their order, and whose values stay the objects that they are.
fn object(fields: impl Iterator<Item = (String, Value)>) -> Value {
    Value::from(Serde(Fields(fields.collect())))
}

struct Fields(Vec<(String, Value)>);

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}
