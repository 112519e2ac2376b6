//! A body as far as it has to be read: its messages and tools stay the bytes that they are.
//!
//! **Invariant:** what is not valid JSON is refused; the last of several fields of one name counts, as everywhere.

use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::fields::{self, Fields};
use crate::request::Refusal;

/// A body in parts.
#[derive(Debug, Default)]
pub(super) struct Body {
    /// All fields but those that are kept as bytes.
    pub(super) fields: Value,
    /// The messages, if they are a list.
    pub(super) messages: Option<Vec<Bytes>>,
    /// The tools.
    pub(super) tools: Option<Bytes>,
}

impl Body {
    /// Splits a body whose messages stand under `messages`.
    ///
    /// Cost: one scan of the bytes, and that of parsing the other fields.
    pub(super) fn read(body: &Bytes, messages: &str) -> Result<Self, Refusal> {
        let mut json = serde_json::Deserializer::from_slice(body);
        let split = Split { body, messages };
        let read = split.deserialize(&mut json).and_then(|read| json.end().map(|()| read));
        read.or_else(|_| {
            // The words of an error are those of a whole reading.
            let value = fields::json(body)?;
            Err(match Fields::body(&value) {
                Err(refusal) => refusal,
                Ok(_) => Refusal::Json("the body has a number or a text that cannot be read".into()),
            })
        })
    }
}

struct Split<'a> {
    body: &'a Bytes,
    messages: &'a str,
}

impl<'de> DeserializeSeed<'de> for Split<'_> {
    type Value = Body;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Body, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Split<'_> {
    type Value = Body;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Body, A::Error> {
        let mut out = Body::default();
        let mut fields = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == self.messages {
                out.messages = None;
                fields.shift_remove(&name);
                match map.next_value_seed(List(self.body))? {
                    Listed::Items(items) => out.messages = Some(items),
                    Listed::Other(value) => drop(fields.insert(name, value)),
                }
            } else if name == "tools" {
                let tools: &RawValue = map.next_value()?;
                out.tools = Some(self.body.slice_ref(tools.get().as_bytes()));
            } else {
                fields.insert(name, map.next_value()?);
            }
        }
        out.fields = fields.into();
        Ok(out)
    }
}

/// The items of a list as bytes; whatever else stands there as what it is.
struct List<'a>(&'a Bytes);

enum Listed {
    Items(Vec<Bytes>),
    Other(Value),
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = Listed;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Listed, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = Listed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Listed, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element::<&RawValue>()? {
            items.push(self.0.slice_ref(item.get().as_bytes()));
        }
        Ok(Listed::Items(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Listed, A::Error> {
        Value::deserialize(MapAccessDeserializer::new(map)).map(Listed::Other)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Listed, E> {
        Ok(Listed::Other(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Listed, E> {
        Ok(Listed::Other(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Listed, E> {
        Ok(Listed::Other(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Listed, E> {
        Ok(Listed::Other(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Listed, E> {
        Ok(Listed::Other(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Listed, E> {
        Ok(Listed::Other(Value::Null))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The other fields, each message, and the tools.
    fn check(body: &str, fields: &str, messages: Option<&[&str]>, tools: Option<&str>) {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let found = Body::read(&body, "messages").expect("an object");
        assert_eq!(found.fields.to_string(), fields);
        let list = |list: &Vec<Bytes>| list.iter().map(|m| String::from_utf8_lossy(m).into_owned()).collect();
        let found_messages: Option<Vec<String>> = found.messages.as_ref().map(list);
        let expected = messages.map(|list| list.iter().map(|m| (*m).to_owned()).collect());
        assert_eq!(found_messages, expected);
        assert_eq!(found.tools.map(|t| String::from_utf8_lossy(&t).into_owned()).as_deref(), tools);
    }

    fn check_error(body: &[u8], expected: &str) {
        let error = Body::read(&Bytes::copy_from_slice(body), "messages").expect_err("refused");
        assert!(error.to_string().contains(expected), "{error}");
    }

    #[test]
    fn messages_and_tools_stay_bytes() {
        check(
            r#" {"model":"m","messages":[ {"a" : "\u00e9"} ,2],"n":1,"tools":[ 3 ]} "#,
            r#"{"model":"m","n":1}"#,
            Some(&[r#"{"a" : "\u00e9"}"#, "2"]),
            Some("[ 3 ]"),
        );
        check("{}", "{}", None, None);
        check(r#"{"messages":[]}"#, "{}", Some(&[]), None);
    }

    #[test]
    fn messages_that_are_no_list_stay_a_field() {
        for other in ["null", "3", "-3", "3.5", "\"x\"", "true", "{\"a\":[1]}"] {
            let body = format!("{{\"messages\":{other}}}");
            check(&body, &body, None, None);
        }
        check(r#"{"messages":3,"messages":[1],"messages":[2]}"#, "{}", Some(&["2"]), None);
    }

    #[test]
    fn what_is_not_json_is_refused() {
        check_error(b"", "EOF while parsing");
        check_error(b"[1]", "expected an object, got a list");
        check_error(b"{\"messages\":[{\"a\":1]}", "expected `,` or `}`");
        check_error(b"{\"messages\":[1]} x", "trailing characters");
        check_error(b"{\"messages\":[\"\xff\"]}", "invalid unicode");
    }
}
