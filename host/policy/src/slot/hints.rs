//! `hints`: what callers say, and what becomes of it.

use super::{Answer, Frame};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a caller said about a request, raw.
#[derive(Clone, Copy, Debug)]
pub struct HintsView<'a> {
    /// Clock and seed.
    pub frame: Frame,
    /// `openai-chat` and the like.
    pub protocol: &'a str,
    /// Allow-listed headers, names in lower case.
    pub headers: &'a [(String, String)],
    /// Extension objects of the body by name (`nvext`, `metadata`, …), each as JSON text.
    pub extensions: &'a [(String, String)],
    /// Tokens of the rendered prompt.
    pub prompt_tokens: u32,
    /// Output limit that the caller asked for, if any.
    pub output_tokens_max: Option<u32>,
}

/// What a request's caller wishes, typed. Advice: the host bounds every field.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hints {
    /// Session that the request belongs to.
    pub session: Option<String>,
    /// Session or agent that started this one.
    pub parent: Option<String>,
    /// `main`, `subagent`, `background`, … free text, at most 64 bytes.
    pub class: Option<String>,
    /// Head start in seconds of waiting; may be negative.
    pub priority: Option<f32>,
    /// Strict tier: a higher one always goes first.
    pub strict_tier: Option<u32>,
    /// Milliseconds from arrival within which the answer is useful.
    pub deadline_ms: Option<u32>,
    /// Output tokens that the caller expects.
    pub expected_output_tokens: Option<u32>,
    /// Whether the prompt may be computed ahead of need.
    pub speculative_prefill: Option<bool>,
    /// Whether the session ends with this request.
    pub session_final: Option<bool>,
    /// Hints that the contract has no field for, by name. Later policies see them.
    pub attributes: Vec<(String, Value)>,
}

/// Value of an open attribute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// Yes or no.
    Flag(bool),
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
    /// A text of which only the id is known: what a log keeps of one.
    Id(u64),
}

/// Interprets what callers say.
pub trait HintsPolicy: Send {
    /// The hints after this policy: `so_far` completed or overruled. `None` leaves them as they are.
    fn interpret(&mut self, view: &HintsView<'_>, so_far: &Hints) -> Answer<Hints>;
}

/// The open attributes of a request, shared by everything that shows them to a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Attributes(Option<Arc<[(String, Value)]>>);

impl From<Vec<(String, Value)>> for Attributes {
    fn from(attributes: Vec<(String, Value)>) -> Self {
        Self((!attributes.is_empty()).then(|| attributes.into()))
    }
}

impl Attributes {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Every one, with its name.
    pub fn iter(&self) -> impl Iterator<Item = &(String, Value)> {
        self.0.as_deref().unwrap_or_default().iter()
    }

    /// One by name; the last one said of a name counts.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.as_deref()?.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// One as a number: a flag is 0 or 1, a text and what is absent are 0.
    pub fn number(&self, name: &str) -> f32 {
        match self.get(name) {
            Some(Value::Number(number)) => *number as f32,
            Some(Value::Flag(flag)) => f32::from(u8::from(*flag)),
            Some(Value::Text(_) | Value::Id(_)) | None => 0.0,
        }
    }

    /// One as an id: a text's hash, a whole number as it is; else 0.
    pub fn id(&self, name: &str) -> u64 {
        match self.get(name) {
            Some(Value::Text(text)) => name_id(text),
            Some(Value::Id(id)) => *id,
            Some(Value::Number(number)) => *number as u64,
            Some(Value::Flag(flag)) => u64::from(*flag),
            None => 0,
        }
    }
}

/// A stable 64-bit id for a name; 0 only for the empty name.
pub fn name_id(name: &str) -> u64 {
    if name.is_empty() {
        return 0;
    }
    // FNV-1a with a finaliser: stable over versions and machines, so that logs and replays agree.
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (hash ^ (hash >> 31)).max(1)
}
