//! The fields of a `config.json` or `adapter_config.json`, read by name and checked.
//!
//! Called by [`crate::ModelConfig`] and by adapters.
//! **Invariant:** a field that asks for something is read, known to change nothing in a pass, or refused.

use std::path::Path;

use serde_json::{Map, Value};

use crate::EngineError;

/// Fields that change nothing in a pass: training, sampling, provenance, how another library runs it.
const WITHOUT_EFFECT: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "dtype",
    "embd_pdrop",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "model_type",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "resid_pdrop",
    "return_dict",
    "router_aux_loss_coef",
    "sep_token_id",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

/// An object of `config.json`, with the file's path for errors.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    pub(crate) path: &'a Path,
    pub(crate) fields: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// Refuses every field that asks for something and is neither in `read` nor `accepted` with its value.
    pub(crate) fn refuse_others(&self, read: &[&str], accepted: &[(&str, &str)]) -> Result<(), EngineError> {
        for (name, value) in self.fields {
            let name = name.as_str();
            if asks_for_nothing(value) || read.contains(&name) || WITHOUT_EFFECT.contains(&name) {
                continue;
            }
            match accepted.iter().find(|(accepted, _)| *accepted == name) {
                Some((_, "*")) => {}
                Some((_, only)) if says(value, only) => {}
                Some((_, only)) => {
                    return Err(self.malformed(format!(
                        "`{name}` is {value}, which is not supported (supported: {only})"
                    )));
                }
                None => return Err(self.malformed(format!("`{name}` is {value}, which is not supported"))),
            }
        }
        Ok(())
    }

    /// A value that is there and not null.
    pub(crate) fn value(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, EngineError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Fields { path: self.path, fields })),
            Some(_) => Err(self.malformed(format!("`{name}` is not an object"))),
        }
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&'a str>, EngineError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.malformed(format!("`{name}` is not a text"))),
        }
    }

    /// A finite number.
    pub(crate) fn number(&self, name: &str) -> Result<f64, EngineError> {
        let value = self.fields.get(name).ok_or_else(|| self.missing(name))?;
        value.as_f64().ok_or_else(|| self.malformed(format!("`{name}` is not a number")))
    }

    pub(crate) fn number_or(&self, name: &str, default: f64) -> Result<f64, EngineError> {
        self.value(name).map_or(Ok(default), |_| self.number(name))
    }

    /// A list of numbers.
    pub(crate) fn numbers(&self, name: &str) -> Result<Vec<f64>, EngineError> {
        let list = self.value(name).ok_or_else(|| self.missing(name))?;
        let numbers = list.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
        numbers.ok_or_else(|| self.malformed(format!("`{name}` is not a list of numbers")))
    }

    pub(crate) fn size(&self, name: &str) -> Result<usize, EngineError> {
        let value = self.fields.get(name).ok_or_else(|| self.missing(name))?;
        let size = value.as_u64().and_then(|value| u32::try_from(value).ok());
        size.map(|size| size as usize)
            .ok_or_else(|| self.malformed(format!("`{name}` is not a whole number below 2^32")))
    }

    pub(crate) fn size_or(&self, name: &str, default: usize) -> Result<usize, EngineError> {
        self.value(name).map_or(Ok(default), |_| self.size(name))
    }

    pub(crate) fn flag_or(&self, name: &str, default: bool) -> Result<bool, EngineError> {
        match self.value(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.malformed(format!("`{name}` is neither true nor false"))),
        }
    }

    /// Token ids: one, several or none.
    pub(crate) fn tokens(&self, name: &str) -> Result<Vec<u32>, EngineError> {
        let one = |value: &Value| value.as_u64().and_then(|token| u32::try_from(token).ok());
        let tokens = match self.value(name) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => one(value).map(|token| vec![token]),
        };
        tokens.ok_or_else(|| self.malformed(format!("`{name}` names no token id below 2^32")))
    }

    pub(crate) fn missing(&self, name: &str) -> EngineError {
        self.malformed(format!("field `{name}` is missing"))
    }

    pub(crate) fn malformed(&self, reason: impl Into<String>) -> EngineError {
        EngineError::Malformed { path: self.path.to_owned(), reason: reason.into() }
    }
}

/// Whether a value is the one that a JSON text says.
fn says(value: &Value, json: &str) -> bool {
    serde_json::from_str::<Value>(json).is_ok_and(|only| *value == only)
}

/// Whether a value turns nothing on, whatever its field is called.
fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
    }
}
