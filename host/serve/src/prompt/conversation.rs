//! The messages of a request, as far as they had to be read.
//!
//! An agent sends its whole history with every turn. A message whose bytes were read before is known by their name: it
//! is neither parsed nor checked again, unless its text is needed after all. A protocol says how one message is read
//! ([`Translate`]); what it makes of it is checked then, and again never.
//! **Invariant:** a name is remembered only for what was read without a complaint.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::{Map, Value};

use super::canonical::neutral;
use super::digest::{Digest, Keys};
use crate::request::Refusal;

/// How a protocol reads one message: its JSON, and its place in the list.
pub type Translate = fn(&str, usize) -> Result<Translated, Refusal>;

/// What a protocol made of one message.
#[derive(Clone, Debug, Default)]
pub struct Translated {
    /// Messages in the shape of OpenAI's chat completions; one may become several.
    pub messages: Vec<Value>,
    /// Its `cache_control` marks.
    pub marks: Vec<Map<String, Value>>,
}

/// A protocol's way with messages.
#[derive(Clone, Copy, Debug)]
pub struct Dialect {
    /// Keeps its messages apart from those of others; a word of its own.
    pub kind: u64,
    /// Reads one.
    pub translate: Translate,
}

/// What is known of a message by its bytes.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The names of the messages that it stands for.
    pub(crate) digests: Vec<Digest>,
    marks: Vec<Map<String, Value>>,
}

/// The messages of a request.
#[derive(Clone, Debug)]
pub struct Conversation(Form);

#[derive(Clone, Debug)]
enum Form {
    /// As a protocol gave them, in the shape of OpenAI's chat completions.
    Plain(Arc<Vec<Value>>),
    Items(Vec<Item>),
}

impl From<Vec<Value>> for Conversation {
    fn from(messages: Vec<Value>) -> Self {
        Self(Form::Plain(Arc::new(messages)))
    }
}

impl From<Vec<Item>> for Conversation {
    fn from(items: Vec<Item>) -> Self {
        Self(Form::Items(items))
    }
}

/// One message of a body.
#[derive(Clone, Debug)]
pub struct Item {
    pub(super) known: Arc<Known>,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    /// Not read, for it is known.
    Raw { json: Bytes, dialect: Dialect, index: usize },
    /// Read, and in the form that messages are known by.
    Neutral(Arc<[Value]>),
}

impl Item {
    /// A message that is known.
    pub(super) fn known(known: Arc<Known>, json: Bytes, dialect: Dialect, index: usize) -> Self {
        Self { known, source: Source::Raw { json, dialect, index } }
    }

    /// Reads a message.
    pub(super) fn read(json: &[u8], dialect: Dialect, index: usize, keys: &Keys) -> Result<Self, Refusal> {
        let translated = translate(json, dialect, index)?;
        let messages = neutral_all(&translated.messages, index)?;
        Ok(Self::of(messages, translated.marks, keys))
    }

    fn of(messages: Vec<Value>, marks: Vec<Map<String, Value>>, keys: &Keys) -> Self {
        let digests = messages.iter().map(|message| name(message, keys)).collect();
        Self { known: Arc::new(Known { digests, marks }), source: Source::Neutral(messages.into()) }
    }

    /// Its `cache_control` marks.
    pub fn marks(&self) -> &[Map<String, Value>] {
        &self.known.marks
    }

    fn messages(&self) -> Result<Arc<[Value]>, Refusal> {
        match &self.source {
            Source::Neutral(messages) => Ok(Arc::clone(messages)),
            Source::Raw { json, dialect, index } => {
                let translated = translate(json, *dialect, *index)?;
                Ok(neutral_all(&translated.messages, *index)?.into())
            }
        }
    }
}

impl Conversation {
    /// The messages as a protocol gave them, in the shape of OpenAI's chat completions; none where it gave
    /// [`Item`]s, whose messages [`Prompts::messages`](super::Prompts::messages) reads.
    pub fn plain(&self) -> &[Value] {
        match &self.0 {
            Form::Plain(messages) => messages,
            Form::Items(_) => &[],
        }
    }

    /// The same conversation with messages after it, in the shape of OpenAI's chat completions.
    ///
    /// Errors: [`Refusal::Field`] for a message that is none.
    pub(super) fn followed_by(self, more: Vec<Value>, keys: &Keys) -> Result<Self, Refusal> {
        Ok(Self(match self.0 {
            Form::Plain(messages) => {
                let mut messages = Arc::unwrap_or_clone(messages);
                messages.extend(more);
                Form::Plain(messages.into())
            }
            Form::Items(mut items) => {
                for message in &more {
                    let at = items.len();
                    items.push(Item::of(neutral_all(std::slice::from_ref(message), at)?, Vec::new(), keys));
                }
                Form::Items(items)
            }
        }))
    }

    /// Its messages one by one, each with its name.
    ///
    /// Errors: [`Refusal::Field`] for a message that is none.
    pub(crate) fn items(&self, keys: &Keys) -> Result<Cow<'_, [Item]>, Refusal> {
        let one = |(i, message): (usize, &Value)| {
            Ok(Item::of(neutral_all(std::slice::from_ref(message), i)?, Vec::new(), keys))
        };
        match &self.0 {
            Form::Items(items) => Ok(items.into()),
            Form::Plain(messages) => {
                messages.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>().map(Cow::Owned)
            }
        }
    }
}

/// The names of the messages of all items.
pub(crate) fn digests(items: &[Item]) -> impl Iterator<Item = Digest> {
    items.iter().flat_map(|item| item.known.digests.iter().copied())
}

/// Bytes of all items, about.
pub(crate) fn bytes(items: &[Item]) -> usize {
    let one = |item: &Item| match &item.source {
        Source::Raw { json, .. } => json.len(),
        Source::Neutral(messages) => {
            messages.iter().map(|m| m["content"].as_str().map_or(64, str::len)).sum()
        }
    };
    items.iter().map(one).sum()
}

/// The messages from the `skip`th on, in the form that they are known by.
pub(crate) fn messages(items: &[Item], skip: usize) -> Result<Vec<Value>, Refusal> {
    let mut out = Vec::new();
    let mut before = 0;
    for item in items {
        let count = item.known.digests.len();
        if before + count > skip {
            let messages = item.messages()?;
            out.extend(messages.iter().skip(skip.saturating_sub(before)).cloned());
        }
        before += count;
    }
    Ok(out)
}

fn translate(json: &[u8], dialect: Dialect, index: usize) -> Result<Translated, Refusal> {
    let text = std::str::from_utf8(json).map_err(|error| Refusal::Json(error.to_string()))?;
    (dialect.translate)(text, index)
}

fn neutral_all(messages: &[Value], index: usize) -> Result<Vec<Value>, Refusal> {
    let field = format!("messages[{index}]");
    let neutral = messages.iter().map(|message| neutral(message, &field));
    neutral.collect::<Result<_, _>>().map_err(Refusal::from)
}

/// The name of a message in its neutral form.
fn name(message: &Value, keys: &Keys) -> Digest {
    keys.digest(MESSAGE, message.to_string().as_bytes())
}

/// Kinds of what is named.
const MESSAGE: u64 = 1;
const TOOLS: u64 = 2;

/// The tools of a request, in the shape that chat templates read. Clones share them.
#[derive(Clone, Debug)]
pub struct Tools(Arc<Listed>);

#[derive(Debug)]
struct Listed {
    values: Vec<Value>,
    digest: OnceLock<Digest>,
    objects: OnceLock<Vec<minijinja::Value>>,
}

impl From<Vec<Value>> for Tools {
    fn from(values: Vec<Value>) -> Self {
        Self(Arc::new(Listed { values, digest: OnceLock::new(), objects: OnceLock::new() }))
    }
}

impl PartialEq for Tools {
    fn eq(&self, other: &Self) -> bool {
        self.0.values == other.0.values
    }
}

impl std::ops::Deref for Tools {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.0.values
    }
}

impl Tools {
    /// Their name.
    pub(crate) fn digest(&self, keys: &Keys) -> Digest {
        let write = || keys.digest(TOOLS, Value::from(self.0.values.clone()).to_string().as_bytes());
        *self.0.digest.get_or_init(write)
    }

    /// The tools as the model's template sees them.
    pub(crate) fn objects(
        &self,
        make: impl FnOnce(&[Value]) -> Vec<minijinja::Value>,
    ) -> Vec<minijinja::Value> {
        self.0.objects.get_or_init(|| make(&self.0.values)).clone()
    }
}
